"""How far a bound proves: the greatest eps at which it still shows every margin above zero."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kit.certify.bounds.methods import certified, crown
from kit.core import asking, logits, per_image

Bound = Callable[..., Tensor]


@per_image
def certified_radius(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str = "linf", bound: Bound = crown, steps: int = 14,
) -> Tensor:
    """The greatest eps (N,), of those asked about, at which `bound` proves that nothing in the ball changes the answer.

    eps doubles from 1/256 of the radius that holds the whole box, 1 (l∞), √d (l2) or d (l1), until the proof fails, and
    is then halved in between: `steps` bounds for every image, each with its own eps. What is returned was itself
    proved. The greatest that could be is larger by at most 1 % up to a quarter of the box's radius, 3 % beyond, which
    more steps halve. It is 0 for an image that is not classified y.
    `bound(model, x, y, eps=, norm=)` -> (N, K) is ibp, fast_lin, crown, alpha_crown, or one with settings of its own.
    Cost: `steps` times that of the bound, and a forward pass.
    """
    d = x[0].numel()
    whole = {"linf": 1.0, "l2": d**0.5, "l1": float(d)}.get(norm, 1.0)
    radius = torch.zeros_like(x[:, 0, 0, 0])
    right = (logits(model, x).argmax(1) == y).nonzero()[:, 0]
    if not len(right):
        return radius
    x, y = x[right], y[right]
    proved = radius[right]
    failed = torch.full_like(proved, 2 * whole)
    for _ in range(steps):
        rising = failed > whole
        eps = torch.where(rising, (2 * proved).clamp(whole / 256, whole), (proved + failed) / 2)
        with asking(model, right):
            sure = certified(bound(model, x, y, eps=eps, norm=norm), y)
        proved, failed = torch.where(sure, eps, proved), torch.where(sure, failed, eps)
    return radius.index_copy(0, right, proved)
