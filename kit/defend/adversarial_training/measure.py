"""How much a network withstands: image by image under several attacks, and what the manifest says of it."""
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from kit.attacks import pgd
from kit.core import accuracy, fooled
from kit.models import Recipe

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def surviving(
    model: nn.Module, x: Tensor, y: Tensor, attacks: Mapping[str, Attack], *, eps: float
) -> dict[str, Tensor]:
    """Which images are right before all attacks ("clean"), and still after each: (N,) truth values, by name.

    The attacks `(model, x, y) -> x_adv` come one after another, and each is asked only about the images that all before
    it left right: the last entry is the worst case per image. An answer farther than eps (ℓ∞) from its image counts for
    nothing. Cost: a forward pass, and the attacks'.
    """
    right = ~fooled(model, x, y)
    found = {"clean": right}
    for name, attack in attacks.items():
        rows = right.nonzero()[:, 0]
        right = right.clone()
        if len(rows):
            x_adv = attack(model, x[rows], y[rows])
            within = (x_adv - x[rows]).flatten(1).abs().amax(1) <= eps + 1e-6
            right[rows] = ~(within & fooled(model, x_adv, y[rows]))
        found[name] = right
    return found


def robust_accuracy(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy on clean images, and on 500 of them after `pgd` (20 steps) at ε = 4/255 and 8/255."""
    few = slice(0, 500)
    attacked = {
        f"pgd_{e}_255": accuracy(model, pgd(model, x[few], y[few], eps=e / 255, steps=20), y[few]) for e in (4, 8)
    }
    return {"accuracy": accuracy(model, x, y), **attacked}


def robust_at_eps(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy on clean images, and on 400 of them after `pgd` (20 steps) at its radius, 0.2 where it has none."""
    few = slice(0, 400)
    x_adv = pgd(model, x[few], y[few], eps=r.options.get("eps", 0.2), steps=20)
    return {"accuracy": accuracy(model, x, y), "robust": accuracy(model, x_adv, y[few])}
