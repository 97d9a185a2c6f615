"""Attacks that others answer for too: FGSM against the network that learns, and against some that stay as they are."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.models
from kit.attacks import fgsm
from kit.core import ball
from kit.defend.adversarial_training.inner import Growing, check
from kit.models import Recipe, fit


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
    check(eps=eps)
    ball("linf", eps)
    grown = Growing(ramp)
    others = [kit.models.load(name, how.get("device")) for name in static]

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        n = len(xb) // 2
        source = [model, *others][int(torch.randint(len(others) + 1, (), generator=generator))]
        radius = half_normal(n, grown.share * eps, generator).to(xb.device)
        x_adv = fgsm(source, xb[:n], yb[:n], eps=radius)
        return F.cross_entropy(model(torch.cat([x_adv, xb[n:]])), yb)

    return fit(r, x, y, loss=loss, before=grown, **how)


def half_normal(n: int, eps: float, generator: torch.Generator) -> Tensor:
    """|N(0, ε/2)| on condition that it is at most ε, (n,): by the inverse of its distribution function."""
    most = torch.erf(torch.tensor(2 / 2**0.5))  # P(|N(0, 1)| ≤ 2)
    return torch.erfinv(most * torch.rand(n, generator=generator)) * (eps / 2 * 2**0.5)
