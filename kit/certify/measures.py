"""How robust a network is, in one number: from the distances of images to their nearest errors.

    ρ(x)   pointwise robustness: the least ‖x' − x‖ with another answer than y, 0 where x itself has one
    ψ(ε)   adversarial frequency:  P(ρ(x) ≤ ε)
    μ(ε)   adversarial severity:   E[ρ(x) | ρ(x) ≤ ε]

ρ is seldom known exactly. A proof gives a number below it, an attack one above; every measure here takes both sides,
and returns both. Source: Bastani et al., Measuring neural net robustness with constraints, NeurIPS 2016. Their ρ asks
for another answer than the network's own; here it is another than the right one, so that errors count as failures.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kit.attacks import pgd
from kit.core import asking, ball, fooled, per_image
from kit.report.intervals import Estimate, as_array, mean, share


class Robustness(NamedTuple):
    """Between which numbers ρ lies for each image: low (N,) ≤ ρ ≤ high (N,), float64; high may be infinite."""

    low: Tensor
    high: Tensor


class Between(NamedTuple):
    """What a measure is at least and at most, given what is known of each image. Each is an Estimate: its interval is
    about which images were drawn, the two values about what is not known of them."""

    least: Estimate
    most: Estimate

    def text(self, *, scale: float = 100, decimals: int = 1) -> str:
        """`12.5 to 25.0 [5.0, 42.1]`: both values, and from the lower end of one interval to the upper of the other."""
        values = dict.fromkeys(format(scale * v.value, f".{decimals}f") for v in self)
        return (f"{' to '.join(values)} [{scale * self.least.low:.{decimals}f}, "
                f"{scale * self.most.high:.{decimals}f}]")


def pointwise_robustness(right: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Robustness:
    """ρ of every image: at least `low` (N,), which was proved, at most `high` (N,), which an attack reached.

    One number on both sides is an exact distance. None is 0, or infinity. `right` (N,) bool says whose answer is y:
    the others have ρ = 0, whatever is said of them. Raises ValueError for NaN or negative numbers, and where a proof
    contradicts an attack, low > high, by more than rounding: one of the two is wrong.
    """
    right = torch.as_tensor(right)
    if right.dtype != torch.bool or right.dim() != 1 or not len(right):
        raise ValueError(f"right says of each image whether the answer is y: bools (N,), not {right.dtype} of shape "
                         f"{tuple(right.shape)}")
    sides = []
    for name, side, absent in (("low", low, 0.0), ("high", high, torch.inf)):
        value = torch.full(right.shape, absent) if side is None else torch.as_tensor(side)
        if value.shape != right.shape:
            raise ValueError(f"{name} must have one number for each of {len(right)} images, not the shape "
                             f"{tuple(value.shape)}")
        value = value.double().to(right.device)
        if not bool((value[right] >= 0).all()):
            raise ValueError(f"{name} holds NaN or a negative number: a distance is zero or more")
        sides.append(torch.where(right, value, 0.0))
    below, above = sides
    if bool((crossed := below > above * (1 + 1e-5) + 1e-6).any()):
        i = int(crossed.nonzero()[0])
        raise ValueError(f"image {i} is proved up to {float(below[i]):g} and has an error at {float(above[i]):g}: a "
                         "bound or an attack is wrong, or they are of different networks, norms or balls")
    return Robustness(torch.minimum(below, above), above)


def adversarial_frequency(rho: Robustness | Tensor, eps: float) -> Between:
    """ψ(ε): the share of images with an error within eps, between those that have one and those not proved free of it.

    From attacks alone the first is all that is known, and it understates ψ: an attack that finds nothing proves
    nothing. `rho` is what `pointwise_robustness` returns, or exact distances (N,). Intervals: Wilson's.
    Raises ValueError for a negative eps.
    """
    low, high = _sides(rho, eps)
    return Between(share(int((high <= eps).sum()), len(low)), share(int((low <= eps).sum()), len(low)))


def adversarial_severity(rho: Robustness | Tensor, eps: float) -> Between:
    """μ(ε): the mean distance of those errors that lie within eps; NaN where there is none, since it is then undefined.

    Over all that ρ may be between its two sides. It is a mean over those that ψ counts: a better network may have
    fewer errors and *nearer* ones, so that ψ and μ are read together. With μ small, errors within eps are near.
    Intervals: bootstrap, of the images that enter. Raises ValueError for a negative eps.
    """
    low, high = _sides(rho, eps)
    sure, open_ = high <= eps, (low <= eps) & (high > eps)
    least = np.sort(low[open_])
    nearest = low[sure]
    for distance in least:  # an image that may have an error is one where that lowers the mean
        if len(nearest) and distance >= nearest.mean():
            break
        nearest = np.append(nearest, distance)
    farthest = np.append(high[sure], np.full(int(open_.sum()), eps))
    return Between(_mean(nearest), _mean(farthest))


def _sides(rho: Robustness | Tensor, eps: float) -> tuple[np.ndarray, np.ndarray]:
    if not eps >= 0:
        raise ValueError(f"eps must be zero or more, not {eps:g}")
    low, high = (as_array(side).astype(float) for side in (rho if isinstance(rho, tuple) else (rho, rho)))
    if np.isnan(low).any() or np.isnan(high).any():
        raise ValueError("rho holds NaN: a distance is zero or more, infinity where no error is known")
    if (low > high).any():
        raise ValueError("rho has a lower side above its upper one: give (low, high), as pointwise_robustness does")
    return low, high


def _mean(values: np.ndarray) -> Estimate:
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan, 0)
    return mean(values) if len(values) > 1 else Estimate(float(values[0]), np.nan, np.nan, 1)


@per_image
def attacked_distance(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str = "linf", largest: float = 0.5,
    attack: Callable[..., Tensor] = pgd, rounds: int = 8, generator: Any = None,
) -> Tensor:
    """An upper bound on ρ for every image (N,): the nearest error that `attack` finds within `largest`, else infinity.

    By bisection over eps, each image with its own; what is returned is the size of an x' that was classified wrongly,
    0 for an image that is misclassified itself. The attack is given eps, norm and generator; `partial(pgd, steps=20)`
    sets the rest. Cost: `rounds` + 1 attacks and as many forward passes.
    """
    found = torch.where(fooled(model, x, y), 0.0, torch.inf).to(x)
    low, high = torch.zeros_like(found), torch.full_like(found, largest)
    eps = high
    for _ in range(rounds + 1):
        rows = (found > 0).nonzero()[:, 0]
        if not len(rows):
            break
        with asking(model, rows):
            x_adv = attack(model, x[rows], y[rows], eps=eps[rows], norm=norm, generator=generator[rows])
            wrong = fooled(model, x_adv, y[rows])
        size = ball(norm, 1.0).norm(x_adv - x[rows])
        found[rows] = torch.where(wrong, torch.minimum(size, found[rows]), found[rows])
        high[rows] = torch.where(wrong, torch.minimum(size, high[rows]), high[rows])
        low[rows] = torch.where(wrong, low[rows], torch.maximum(low[rows], eps[rows]))
        eps = (low + high) / 2
    return found
