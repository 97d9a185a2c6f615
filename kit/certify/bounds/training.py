"""Networks for interval bounds: trained to have margins that intervals can prove."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks import pgd
from kit.certify.bounds.domains import ClippedBall
from kit.certify.bounds.layers import Layers
from kit.certify.bounds.methods import certified, ibp, margins
from kit.certify.bounds.relaxed import Relaxed
from kit.core import accuracy
from kit.models import Recipe, fit


class Rising:
    """The `share` of ε: 0 over the first `warm` of the steps, then rising to 1 until `ramp` of them, then 1.

    `fit` says before each step where it is: `fit(…, before=rising)`.
    """

    def __init__(self, warm: float, ramp: float):
        if not 0 <= warm <= ramp <= 1:
            raise ValueError(f"warm and ramp are shares of the steps, 0 ≤ warm ≤ ramp ≤ 1, not {warm:g} and {ramp:g}")
        self.warm, self.ramp, self.share = warm, ramp, 0.0

    def __call__(self, step: int, steps: int) -> None:
        at, width = step / steps, self.ramp - self.warm
        self.share = min(max((at - self.warm) / width, 0.0), 1.0) if width else float(at >= self.ramp)


def ibp_training(
    r: Recipe, x: Tensor, y: Tensor, *, eps: float, kappa: float = 0.5, warm: float = 0.05, ramp: float = 0.6,
    **how: Any,
) -> nn.Module:
    """min κ CE(z(x), y) + (1 − κ) CE(−m, y), m_k ≤ z_y − z_k the lower bounds by intervals over the l∞ ball of ε.

    ε rises from zero to `eps` and κ falls from one to `kappa`, together, between the shares `warm` and `ramp` of the
    steps: at the full ε from the start the bounds of a fresh network are so loose that it learns nothing. Raises
    ValueError for shares that make no sense, and for a family with batch norm.
    Cost: three forward passes and their backward passes for each step of training.
    Source: Gowal et al., On the effectiveness of interval bound propagation, 2018, section 3 and appendix A.
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa is the weight of the clean loss, between 0 and 1, not {kappa:g}")
    rising = Rising(warm, ramp)
    listed: list[Layers] = []

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        if not listed:
            if any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules()):
                raise ValueError(f"the family {r.family!r} has batch norm, whose statistics have no bounds while they "
                                 "are learnt: use one without, such as 'small'")
            listed.append(Layers(model, xb))
        clean = F.cross_entropy(model(xb), yb)
        if not rising.share:
            return clean
        net = Relaxed(listed[0], ClippedBall(xb, rising.share * eps), "ibp")
        worst = -net.least(margins(yb, listed[0].classes, xb))
        k = 1 - rising.share * (1 - kappa)
        return k * clean + (1 - k) * F.cross_entropy(worst, yb)

    return fit(r, x, y, loss=loss, before=rising, **how)


def certified_figures(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: accuracy, and at the training's ε the share proved by intervals (of all images) and the
    accuracy of 500 of them under `pgd` of 20 steps."""
    eps, few = r.options["eps"], slice(0, 500)
    proved = certified(ibp(model, x, y, eps=eps), y)
    attacked = pgd(model, x[few], y[few], eps=eps, steps=20)
    return {"accuracy": accuracy(model, x, y), "certified": float(proved.float().mean()),
            "pgd": accuracy(model, attacked, y[few])}
