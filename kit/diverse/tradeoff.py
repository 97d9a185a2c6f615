"""Accuracy against robustness over many networks: on the images that all have right, and with the slope's interval.

    common    which images every network labels rightly: each network on its own easy ones would be another comparison
    slope     b of   mean distance = a + b · log₁₀ error,   one point for each network

The error of a network is known from a test set, its distance from a sample of the common images, and the networks are a
sample of those that somebody might have trained: the interval of `slope` draws all three again.
Source: Su et al., Is robustness the cost of accuracy?, ECCV 2018, who fit distance against the logarithm of the error.
"""
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import fooled
from kit.report import Estimate
from kit.report.intervals import as_array, resampled


def common(models: Mapping[str, nn.Module] | Iterable[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Which images (N,) every one of the networks labels y. Cost: a forward pass of each.

    Raises ValueError where there is no network, and where no image is left.
    """
    several = list(models.values() if isinstance(models, Mapping) else models)
    if not several:
        raise ValueError("there is no network to compare")
    right = ~torch.stack([fooled(model, x, y) for model in several]).any(0)
    if not bool(right.any()):
        raise ValueError(f"no image of {len(x)} is right for all {len(several)} networks: leave the weakest out, or "
                         "take more images")
    return right


class Line(NamedTuple):
    """distance = at + slope · log₁₀ error; `slope` says by how much the distance grows where the error grows tenfold.

    With groups the line is fitted within them: each has its own `at`, and all share the slope. `slope.n` counts the
    networks."""

    slope: Estimate
    at: dict[Any, float]


def log_error(right: Any) -> np.ndarray:
    """log₁₀ of the share of errors (M,) in `right` (M, T), whether each of M networks has each of T test images right.

    Counted as (errors + ½)/(T + 1), so that a network without an error has one: its logarithm is the lowest that T
    images can tell. Raises ValueError for what is not (M, T).
    """
    right = as_array(right).astype(bool)
    if right.ndim != 2 or not right.size:
        raise ValueError(f"right is (networks, test images), not {right.shape}")
    return np.log10(((~right).sum(1) + 0.5) / (right.shape[1] + 1))


def slope(
    right: Any, distance: Any, groups: Sequence[Any] | None = None, *, resamples: int = 2000, seed: int = 0,
) -> Line:
    """The least-squares line of the mean distance over log₁₀ error, and the 95 % interval of its slope.

    right (M, T): whether each network has each test image right. distance (M, N): of each network on the same N images,
    or whether it withstood an attack there. groups (M,): the family of each network; the slope is then that within
    families, the means of each taken off first. The interval is a percentile bootstrap that draws networks (within
    their groups), test images and measured images with replacement, the same images for all networks.
    Raises ValueError for other shapes, fewer than three networks, distances that are not finite, and networks that all
    have the same error (in every group).
    """
    right, distance = as_array(right).astype(bool), as_array(distance).astype(float)
    if distance.ndim != 2 or len(distance) != len(right):
        raise ValueError(f"distance is (networks, images) for the {len(right)} networks of right, not {distance.shape}")
    if len(right) < 3:
        raise ValueError(f"a line with an interval needs three networks or more, not {len(right)}")
    if not np.isfinite(distance).all():
        raise ValueError("a distance is not finite: give what no attack reached the largest that was tried")
    names = list(groups) if groups is not None else [""] * len(right)
    if len(names) != len(right):
        raise ValueError(f"groups has {len(names)} names for {len(right)} networks")
    members = [np.flatnonzero([name == g for name in names]) for g in dict.fromkeys(names)]
    x, y = log_error(right), distance.mean(1)
    found = _within(x, y, members)
    if found is None:
        raise ValueError("all networks have the same error, so that there is no slope")
    draws, random = [], np.random.default_rng(seed)
    for _ in range(resamples):
        rows = [random.choice(m, len(m)) for m in members]
        tests = random.integers(0, right.shape[1], right.shape[1])
        images = random.integers(0, distance.shape[1], distance.shape[1])
        again = _within(log_error(right[:, tests]), distance[:, images].mean(1), rows)
        if again is not None:
            draws.append(again)
    at = {names[m[0]]: float(y[m].mean() - found * x[m].mean()) for m in members}
    return Line(resampled(found, draws, len(right)), at)


def _within(x: np.ndarray, y: np.ndarray, members: Sequence[np.ndarray]) -> float | None:
    """Σ (x − x̄)(y − ȳ) / Σ (x − x̄)², means of the group; None where no group has two different x."""
    dx, dy = (np.concatenate([v[m] - v[m].mean() for m in members]) for v in (x, y))
    return float(dx @ dy / (dx @ dx)) if dx @ dx > 1e-12 else None
