"""A certificate: a box through a layer, a line over a ReLU, a vote with its bound, and what may be reported."""
from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from kit.defend.smoothing.binomial import clopper_pearson
from kit.lab.checks import Case, exercise


def box_cases(g: torch.Generator) -> Iterator[Case]:
    for d, k in ((3, 2), (7, 5)):
        low = torch.randn(4, d, generator=g)
        yield low, low + torch.rand(4, d, generator=g), torch.randn(k, d, generator=g), torch.randn(k, generator=g)


def through(low: Tensor, high: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    centre, radius = (low + high) / 2 @ W.T + b, (high - low) / 2 @ W.abs().T
    return centre - radius, centre + radius


def without_bias(low: Tensor, high: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return through(low, high, W, 0 * b)


def twice(low: Tensor, high: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    centre, radius = (low + high) / 2 @ W.T + b, (high - low) @ W.abs().T
    return centre - radius, centre + radius


exercise(
    "box-through-layer",
    "box_through_layer(low, high, W, b) -> (low', high') of W x + b over the box low ≤ x ≤ high; W (k, d)",
    through, box_cases,
    [
        ("no-op", lambda low, high, W, b: (low @ W.T + b, low @ W.T + b),
         ["your box has no width.", "negative weights take the other end: split W into its signs."]),
        ("ends mapped", lambda low, high, W, b: (low @ W.T + b, high @ W.T + b),
         ["some of your lower bounds are above the upper ones.",
          "where a weight is negative, the upper end of the input gives the lower end of the output.",
          "centre (low + high)/2 · Wᵀ + b, radius (high − low)/2 · |W|ᵀ."]),
        ("ends sorted", lambda low, high, W, b: tuple(torch.stack([low @ W.T + b, high @ W.T + b]).sort(0).values),
         ["sorting the two ends does not make them bounds: try a point in the middle of the box.",
          "each weight chooses its own end: |W| times the radius."]),
        ("no bias", without_bias, ["your bounds do not depend on b.", "b moves both ends."]),
        ("width for radius", twice, ["true, but twice as wide as it could be.", "the radius is half of high − low."]),
        ("swapped", lambda *a: through(*a)[::-1], ["the lower end comes first.", "return (low, high)."]),
    ],
)


def relu_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (6, 12):
        low = -0.1 - torch.rand(n, generator=g)
        yield low, 0.1 + torch.rand(n, generator=g)


def line(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    slope = high / (high - low)
    return slope, -slope * low


exercise(
    "relu-line",
    "relu_line(low, high) -> (slope, intercept), the lowest line above max(0, z) for low ≤ z ≤ high, low < 0 < high",
    line, relu_cases,
    [
        ("no-op", lambda low, high: (torch.ones_like(low), torch.zeros_like(low)),
         ["the line z is below the ReLU where z < 0.", "it goes through (low, 0) and (high, high)."]),
        ("constant", lambda low, high: (torch.zeros_like(low), high),
         ["true, and the loosest of all: it is far above at z = low.", "it may go through (low, 0)."]),
        ("through the origin", lambda low, high: (line(low, high)[0], torch.zeros_like(low)),
         ["at z = high yours is below the ReLU.", "the intercept is −slope · low."]),
        ("sign error", lambda low, high: (line(low, high)[0], line(low, high)[0] * low),
         ["your intercept is negative: yours is below the ReLU.", "low < 0, so −slope · low is positive."]),
        ("slope of the sizes", lambda low, high: (high / (high + low), -high / (high + low) * low),
         ["your slope is not between 0 and 1.", "rise over run: high over high − low."]),
    ],
)


def vote_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (100, 1000):
        yield int(n * (0.6 + 0.35 * float(torch.rand((), generator=g)))), n, 0.001


def lower(k: int, n: int, alpha: float) -> float:
    return float(clopper_pearson(np.array(k), n, alpha))


def wald(k: int, n: int, alpha: float) -> float:
    p = k / n
    return float(p - ndtri(1 - alpha) * (p * (1 - p) / n) ** 0.5)


exercise(
    "lower-bound",
    "lower_bound(k, n, alpha) -> Clopper and Pearson's bound: the p at which k or more of n votes happen with "
    "probability α",
    lower, vote_cases,
    [
        ("no-op", lambda k, n, alpha: k / n,
         ["that is the share of the votes: half of the time the truth is below it.",
          "scipy.stats.beta.ppf(alpha, k, n − k + 1)."]),
        ("two-sided", lambda k, n, alpha: lower(k, n, alpha / 2),
         ["yours spends half of α on an upper bound that nobody needs.", "one-sided: α, not α/2."]),
        ("normal approximation", wald,
         ["that is the normal approximation: near 1 it promises too much.",
          "the exact bound is a quantile of the beta distribution."]),
        ("upper bound", lambda k, n, alpha: 1 - lower(n - k, n, alpha),
         ["that is an upper bound.", "the quantile at α, not at 1 − α: beta(k, n − k + 1)."]),
    ],
    rtol=1e-4, atol=1e-6,
)


def radius_cases(g: torch.Generator) -> Iterator[Case]:
    for sigma in (0.25, 1.0):
        yield torch.cat([0.5 + 0.49 * torch.rand(5, generator=g), 0.5 * torch.rand(3, generator=g) + 0.01]), sigma


def probit(p: Tensor) -> Tensor:
    return torch.special.ndtri(p)


exercise(
    "smoothed-radius",
    "smoothed_radius(p, sigma) -> (N,), the l2 radius that a lower bound p of the winner's probability "
    "certifies, 0 where it certifies nothing",
    lambda p, sigma: sigma * probit(p).clamp(min=0), radius_cases,
    [
        ("no-op", lambda p, sigma: torch.zeros_like(p), ["yours certifies nothing.", "σ Φ⁻¹(p)."]),
        ("no sigma", lambda p, sigma: probit(p).clamp(min=0),
         ["yours does not depend on the noise.", "the radius is measured in units of σ: multiply by it."]),
        ("negative radii", lambda p, sigma: sigma * probit(p),
         ["some of your radii are negative.", "where p ≤ ½ there is no certificate: clamp(min=0)."]),
        ("Φ for its inverse", lambda p, sigma: sigma * torch.special.ndtr(p),
         ["a probability of ½ should certify nothing, and 1 everything.", "Φ⁻¹: torch.special.ndtri or norm.ppf."]),
        ("margin for radius", lambda p, sigma: sigma * (p - 0.5).clamp(min=0),
         ["the radius grows without end as p comes near 1.", "Φ⁻¹(p), not p − ½."]),
        ("variance for deviation", lambda p, sigma: sigma**2 * probit(p).clamp(min=0),
         ["yours is in units of the variance.", "σ, not σ²."]),
    ],
)


def bound_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (30, 50, 70):
        bounds, right = 2 * torch.randn(n, 2, generator=g), torch.rand(n, generator=g) > 0.3
        yield bounds, right


exercise(
    "certified-accuracy",
    "certified_accuracy(bounds, right) -> the share of all images that are right and for which every lower "
    "bound (N, K − 1) of z_y − z_k is positive",
    lambda bounds, right: ((bounds > 0).all(1) & right).float().mean(), bound_cases,
    [
        ("no-op", lambda bounds, right: right.float().mean(), ["that is the accuracy.", "and every bound positive."]),
        ("any for all", lambda bounds, right: ((bounds > 0).any(1) & right).float().mean(),
         ["one safe class is not enough.", "every other class must stay behind: all(1), not any(1)."]),
        ("mean margin", lambda bounds, right: ((bounds.mean(1) > 0) & right).float().mean(),
         ["a mean hides the class that comes through.", "the least of the bounds decides."]),
        ("wrong but stable", lambda bounds, right: (bounds > 0).all(1).float().mean(),
         ["an image that is wrong, and stays so, is not accurate.", "and `right`."]),
        ("of those that are right", lambda bounds, right: (bounds > 0).all(1)[right].float().mean(),
         ["of how many images is that the share?", "of all of them, as every accuracy."]),
    ],
)
