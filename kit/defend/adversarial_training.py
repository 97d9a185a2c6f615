"""Adversarial training: learn from the images that an attack makes of the training images, while learning.

    min_θ E_(x,y) [ max_{‖δ‖∞ ≤ ε} CE(f_θ(x + δ), y) ]

The three trainers differ in who looks for δ, and how long. Each is `kit.models.fit` with another loss, and stands in a
recipe as its `train`, with its settings as `options`; what they share is

    r       the kit.models.Recipe      x, y    training images and labels
    device, seed, progress, checkpoint         as in `fit`, which keeps the caller's random state

Attacks are run on the network as it is used, in evaluation mode; the network then learns from what they return.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.models
from kit.attacks import fgsm, pgd
from kit.core import accuracy
from kit.models import Recipe, fit


def adversarial_training(
    r: Recipe, x: Tensor, y: Tensor, *, eps: float = 8 / 255, steps: int = 7, step: float | None = None,
    clean: float = 0.0, ramp: float = 0.0, **how: Any,
) -> nn.Module:
    """Every batch is replaced by what `pgd` with `steps` steps from a random start makes of it against the network.

    steps=1 with step = 1.25 eps is the fast variant: FGSM from a random start (Wong et al., ICLR 2020), which works
    where the start is random and the step not too long. clean > 0 adds that share of the loss on the clean images:
    (1 − clean) CE(f(x'), y) + clean CE(f(x), y). For `ramp` see below.
    Cost: a step of training and `steps` + 1 forward and `steps` backward passes (one more forward for `clean`).
    Source: Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018, equation 2.1.
    """
    if not 0 <= clean <= 1:
        raise ValueError(f"clean is a share of the loss between 0 and 1, not {clean:g}")
    grown = Growing(ramp)

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        stride = None if step is None else grown.share * step
        x_adv = pgd(model, xb, yb, eps=grown.share * eps, step=stride, steps=steps, generator=generator)
        worst = F.cross_entropy(model(x_adv), yb)
        return (1 - clean) * worst + clean * F.cross_entropy(model(xb), yb) if clean else worst

    return fit(r, x, y, loss=loss, before=grown, **how)


def single_step_training(
    r: Recipe, x: Tensor, y: Tensor, *, eps: float = 16 / 255, ramp: float = 0.0, **how: Any
) -> nn.Module:
    """Half of every batch is replaced by FGSM against the network itself, each image with its own |N(0, ε/2)| ≤ ε.

    `ensemble_adversarial_training` without an ensemble, the training of Kurakin et al. (Adversarial machine learning
    at scale, ICLR 2017). It can learn to hide its gradient instead of resisting: judge it by `pgd` and by transfer.
    Cost: as below.
    """
    return ensemble_adversarial_training(r, x, y, static=(), eps=eps, ramp=ramp, **how)


def ensemble_adversarial_training(
    r: Recipe, x: Tensor, y: Tensor, *, static: Sequence[str] = (), eps: float = 16 / 255, ramp: float = 0.0,
    **how: Any,
) -> nn.Module:
    """Half of every batch is replaced by FGSM against a network drawn among `static` (trained before) and itself.

    The radius of each image is |N(0, ε/2)|, drawn again until it is at most ε, so that weak perturbations are learnt
    too. Since the static networks do not follow, hiding the gradient does not help against them. ramp > 0 lets ε grow
    from zero over that share of the steps: where FGSM hides every feature that a fresh network could begin with, it
    stays at chance, as our `resnet` does for all of its training without a ramp.
    Cost: a step of training, and a forward and a backward pass for half of the batch.
    Source: Tramèr et al., Ensemble adversarial training: attacks and defenses, ICLR 2018, section 3.4; the radius is
    that of Kurakin et al. (ICLR 2017). They use the least likely class as FGSM's target; here it is untargeted.
    """
    grown = Growing(ramp)
    others = [kit.models.load(name, how.get("device")) for name in static]

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        n = len(xb) // 2
        source = [model, *others][int(torch.randint(len(others) + 1, (), generator=generator))]
        radius = half_normal(n, grown.share * eps, generator).to(xb.device)
        x_adv = fgsm(source, xb[:n], yb[:n], eps=radius)
        return F.cross_entropy(model(torch.cat([x_adv, xb[n:]])), yb)

    return fit(r, x, y, loss=loss, before=grown, **how)


class Growing:
    """The `share` of ε (or of another disturbance): from 0 to 1 over the first `ramp` of the steps, then 1.

    `fit` says before each step where it is: `fit(…, before=grown)`.
    """

    def __init__(self, ramp: float):
        if not 0 <= ramp <= 1:
            raise ValueError(f"ramp is a share of the steps between 0 and 1, not {ramp:g}")
        self.ramp, self.share = ramp, 0.0

    def __call__(self, step: int, steps: int) -> None:
        rising = int(self.ramp * steps)
        self.share = step / rising if step < rising else 1.0


def half_normal(n: int, eps: float, generator: torch.Generator) -> Tensor:
    """|N(0, ε/2)| on condition that it is at most ε, (n,): by the inverse of its distribution function."""
    most = torch.erf(torch.tensor(2 / 2**0.5))  # P(|N(0, 1)| ≤ 2)
    return torch.erfinv(most * torch.rand(n, generator=generator)) * (eps / 2 * 2**0.5)


def robust_accuracy(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: accuracy on clean images, and on 500 of them after `pgd` (20 steps) at ε = 4/255 and 8/255."""
    few = slice(0, 500)
    attacked = {
        f"pgd_{e}_255": accuracy(model, pgd(model, x[few], y[few], eps=e / 255, steps=20), y[few]) for e in (4, 8)
    }
    return {"accuracy": accuracy(model, x, y), **attacked}
