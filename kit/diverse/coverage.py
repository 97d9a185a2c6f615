"""Coverage: how much of a network a set of images has exercised, and whether that says anything about its failures.

A neuron is a channel of a layer, and its value the mean of the channel over the image. Every measure is a truth table
(N, cells), one row for each image, and the coverage of a set is the share of cells that one of its images hits:

    activated    one cell a neuron: its value, the layer scaled to [0, 1] for each image apart, is above a threshold
    sections     k cells a neuron: the k equal parts of its range over the training images
    corners      two cells a neuron: below that range, and above it

Sources: Pei et al., DeepXplore, SOSP 2017, and its code (activated: scaled within the layer and the input); Ma et al.,
DeepGauge, ASE 2018 (k-multisection and boundary coverage).
"""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import asking, check_images, features, laid_out, per_image
from kit.core.network import calls
from kit.report import Estimate
from kit.report.intervals import as_array, resampled


def watched(model: nn.Module, x: Tensor) -> list[str]:
    """The layers whose outputs count by default: every ReLU (or ReLU6) that a pass calls once. Cost: a pass of x[:1].

    Raises ValueError where there is none.
    """
    check_images(x)
    with torch.no_grad(), asking(model, torch.arange(1)):
        names = [name for name, module, _ in calls(model, laid_out(x[:1])) if isinstance(module, nn.ReLU | nn.ReLU6)]
    once = [name for name in names if names.count(name) == 1]
    if not once:
        raise ValueError("no ReLU of this model is a module that is called once: name the layers to watch")
    return once


@per_image
def neurons(model: nn.Module, x: Tensor, *, layers: Sequence[str] | None = None, scaled: bool = False) -> Tensor:
    """The mean of every channel of the layers (N, K), in their order; without `layers` those `watched`, then the
    probabilities. With `scaled` each layer goes from 0 to 1 within each image first; a constant layer is 0.

    Cost: one forward pass, and one of the first image of each chunk without `layers`.
    """
    with torch.no_grad():
        names = watched(model, x) if layers is None else list(layers)
        with features(model, names) as A:
            z = model(laid_out(x))
        outputs = [A[name] for name in names] + ([z.softmax(1)] if layers is None else [])
        if scaled:
            outputs = [_scaled(a) for a in outputs]
        return torch.cat([a.flatten(2).mean(2) if a.dim() > 2 else a for a in outputs], 1)


def _scaled(a: Tensor) -> Tensor:
    """(a − min)/(max − min) within each image."""
    low, high = (v.view(-1, *[1] * (a.dim() - 1)) for v in a.flatten(1).aminmax(dim=1))
    return torch.where(high > low, (a - low) / (high - low), torch.zeros_like(a))


def activated(
    model: nn.Module, x: Tensor, *, threshold: float = 0.0, layers: Sequence[str] | None = None,
) -> Tensor:
    """Which neurons each image activates (N, K): scaled value > threshold. Cost: that of `neurons`."""
    return neurons(model, x, layers=layers, scaled=True) > threshold


class Ranges(NamedTuple):
    """The lowest and the highest value of each neuron, (K,) both."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, a: Tensor) -> "Ranges":
        """Those of the values (N, K) of training images. Raises ValueError for no images, and for NaN."""
        if not len(a) or bool(a.isnan().any()):
            raise ValueError("ranges are those of one image or more, without NaN")
        return cls(*a.aminmax(dim=0))


def sections(a: Tensor, ranges: Ranges, k: int = 10) -> Tensor:
    """Which of the k equal parts of its range each neuron is in, (N, K·k); values a (N, K) outside it hit none.

    A neuron that is constant on the training images has one part, its first. Raises ValueError for k below 1, and for
    values of other neurons.
    """
    if k != int(k) or k < 1:
        raise ValueError(f"k is the number of parts, 1 or more, not {k}")
    if a.shape[1:] != ranges.low.shape:
        raise ValueError(f"values of {a.shape[-1]} neurons, ranges of {len(ranges.low)}")
    width = (ranges.high - ranges.low).clamp_min(torch.finfo(a.dtype).tiny)
    part = ((a - ranges.low) / width * k).floor().clamp(0, k - 1)
    inside = (a >= ranges.low) & (a <= ranges.high)
    return (inside[..., None] & (part[..., None] == torch.arange(k, device=a.device))).flatten(1)


def corners(a: Tensor, ranges: Ranges) -> Tensor:
    """Which neurons are below their range, and which are above it: (N, 2K), from values a (N, K)."""
    return torch.cat([a < ranges.low, a > ranges.high], 1)


def covered(hit: Any) -> float:
    """The share of cells that one image or more hits, from (N, cells). Raises ValueError for another shape."""
    hit = as_array(hit)
    if hit.ndim != 2 or not hit.shape[1]:
        raise ValueError(f"hit is (N, cells), with one cell or more, not {hit.shape}")
    return float(hit.any(0).mean())


def most_covering(hit: Any, n: int) -> list[int]:
    """n images chosen one by one, each of those left that hits the most cells not hit yet; the first of equals.

    Where none hits a new cell, all cells count as new again. Raises ValueError for more images than there are.
    """
    hit = as_array(hit).astype(bool)
    if not 1 <= n <= len(hit):
        raise ValueError(f"n must be 1 to {len(hit)}, the number of images, not {n}")
    new, left, chosen = np.ones(hit.shape[1], bool), np.ones(len(hit), bool), []
    for _ in range(n):
        gain = np.where(left, (hit & new).sum(1), -1)
        if gain.max() == 0:
            new[:] = True
            gain = np.where(left, hit.sum(1), -1)
        best = int(gain.argmax())
        chosen.append(best)
        left[best] = False
        new &= ~hit[best]
    return chosen


def guides(
    hit: Any, failed: Any, size: int, groups: Sequence[Any] | None = None, *, resamples: int = 2000, seed: int = 0,
) -> Estimate | None:
    """Whether sets of `size` images that cover more fail more: the correlation of coverage with the share of failures.

    hit (N, cells), failed (N,), groups (N,): where each image comes from. The images of each group are dealt out into
    sets that share none. With groups the correlation is that within them: their means are taken off first. Its 95 %
    interval is a percentile bootstrap over sets, drawn within groups; its n counts the sets. None where all sets of a
    group cover the same, or fail alike. Raises ValueError for fewer than three sets, for shapes that do not fit,
    and for sizes and resamples below 1.
    """
    hit, failed = as_array(hit).astype(bool), as_array(failed).astype(float)
    names = np.asarray(list(groups)) if groups is not None else np.zeros(len(hit), int)
    if hit.ndim != 2 or failed.shape != (len(hit),) or len(names) != len(hit):
        raise ValueError("hit is (N, cells), failed and groups are (N,): not "
                         f"{hit.shape}, {failed.shape}, {names.shape}")
    if size != int(size) or size < 1 or resamples < 1:
        raise ValueError(f"size and resamples are whole numbers, 1 or more, not {size} and {resamples}")
    random, sets = np.random.default_rng(seed), []
    for place, name in enumerate(dict.fromkeys(names.tolist())):
        rows = random.permutation(np.flatnonzero(names == name))
        dealt = rows[: len(rows) // size * size].reshape(-1, size)
        sets += [(place, hit[r].any(0).mean(), failed[r].mean()) for r in dealt]
    if len(sets) < 3:
        raise ValueError(f"a correlation needs three sets or more, and {len(hit)} images make {len(sets)} of {size}")
    of, covered, failing = np.array(sets).T
    members = [np.flatnonzero(of == place) for place in np.unique(of)]
    value = _within(covered, failing, members)
    if value is None:
        return None
    draws = [_within(covered, failing, [random.choice(m, len(m)) for m in members]) for _ in range(resamples)]
    return resampled(value, [d for d in draws if d is not None], len(sets))


def _within(x: np.ndarray, y: np.ndarray, members: Sequence[np.ndarray]) -> float | None:
    """The correlation of x and y, each less its group's mean; None where one of them does not vary."""
    dx, dy = (np.concatenate([v[m] - v[m].mean() for m in members]) for v in (x, y))
    spread = float(dx @ dx * (dy @ dy))
    return float(dx @ dy) / spread**0.5 if spread > 1e-18 else None
