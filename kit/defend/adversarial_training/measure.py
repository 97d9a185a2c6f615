"""What the manifest says of a robust network."""
from torch import Tensor, nn

from kit.attacks import pgd
from kit.core import accuracy
from kit.models import Recipe


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
