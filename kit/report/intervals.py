"""How sure a number is: 95 % intervals, and a test for two methods tried on the same images."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np


def as_array(values: Any) -> np.ndarray:
    """Numbers as an array, from a tensor on any device, an array or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


class Estimate(NamedTuple):
    """A number, its 95 % interval, and over how many images. `record` and `verdict` take it whole."""

    value: float
    low: float
    high: float
    n: int

    def text(self, *, scale: float = 100, decimals: int = 1, sign: bool = False) -> str:
        """`52.7 [50.1, 55.4]`: by default in percent (or points, then with `sign`)."""
        form = f"{'+' if sign else ''}.{decimals}f"
        value, low, high = (format(scale * v, form) for v in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def share(successes: int, n: int) -> Estimate:
    """The proportion successes / n with Wilson's interval."""
    return Estimate(int(successes) / int(n), *wilson(successes, n), int(n))


def mean(values: Any) -> Estimate:
    """The mean of `values` (N,) with its bootstrap interval."""
    values = as_array(values).astype(float).ravel()
    return Estimate(float(values.mean()), *bootstrap_mean(values), len(values))


def resampled(value: float, draws: Any, n: int) -> Estimate:
    """A number with the middle 95 % of what resamples gave for it; NaN among them counts for none."""
    low, high = np.nanquantile(as_array(draws), (0.025, 0.975))
    return Estimate(float(value), float(low), float(high), n)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion p̂ = successes / n, as fractions (lo, hi).

    (p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), which stays within [0, 1] and has a width also at p̂ = 0 or 1.
    Raises ValueError unless 0 ≤ successes ≤ n and n ≥ 1. Source: Wilson, JASA 22 (1927).
    """
    successes, n = int(successes), int(n)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"an interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p, z = successes / n, NormalDist().inv_cdf((1 + level) / 2)  # SciPy takes seconds to import
    middle, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + side * reach) / (1 + z * z / n) for side in (-1, 1))
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def bootstrap_mean(values: Any, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval (lo, hi) of the mean of `values`, drawn with replacement `resamples` times.

    Raises ValueError for fewer than two values or for values that are not finite. Source: Efron, Ann. Stat. 7 (1979).
    """
    values = as_array(values).astype(float).ravel()
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError("a bootstrap needs at least two values, all of them finite")
    generator, n = np.random.default_rng(seed), len(values)
    some = max(1, 2**18 // n)  # samples drawn at once, within the cache
    parts = [(min(some, resamples - start), n) for start in range(0, resamples, some)]
    means = np.concatenate([generator.choice(values, part).mean(1) for part in parts])
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def paired(a: Any, b: Any) -> float:
    """The p-value of McNemar's exact test: do two methods succeed equally often on the same images?

    `a` and `b` (N,) say for each image whether the method succeeded. Of the images on which they differ, the share
    that `a` alone solves is compared with 1/2 (two-sided binomial test). Raises ValueError for different lengths.
    Source: McNemar, Psychometrika 12 (1947).
    """
    a, b = as_array(a).astype(bool), as_array(b).astype(bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"two methods are compared on the same images: shapes {a.shape} and {b.shape} differ")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
