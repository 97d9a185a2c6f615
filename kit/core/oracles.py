"""Where the direction of a step comes from: an oracle is a function (f, v, memory) -> f(v) (N,), direction like v.

`gradient` differentiates; each of the others wraps an oracle and changes exactly one thing about it. What they keep
from step to step stands in the memory that `kit.core.optimise` hands them: `m`, the momentum; `reach`, by how much a
step moves each pixel along a direction of ones; `draws`, a random generator, the same for all images and chunks.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.balls import column
from kit.core.checks import check_settings
from kit.core.loop import Memory, Oracle, gradient

MID_GREY, BLACK = 0.5, 0.0


def momentum(oracle: Oracle = gradient, mu: float = 1.0) -> Oracle:
    """MI: m ← μ m + g / mean|g|, and m is the direction (Dong et al. 2018, equation 6)."""
    check_settings({"mu": mu})

    def accumulated(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        value, g = oracle(f, v, memory)
        g = g / g.abs().mean(dim=tuple(range(1, g.dim())), keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        memory["m"] = mu * memory["m"] + g if "m" in memory else g
        return value, memory["m"]

    return accumulated


def ahead(oracle: Oracle = gradient, mu: float = 1.0) -> Oracle:
    """NI: the gradient at v + μ · reach · m, where the momentum is about to lead (it may lie outside the box)."""
    check_settings({"mu": mu})

    def look(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        return oracle(f, v + mu * column(memory["reach"], v) * memory["m"] if "m" in memory else v, memory)

    return look


def smoothed(oracle: Oracle, W: Tensor) -> Oracle:
    """TI: the gradient convolved with W (k, k), k odd, channel by channel, with zeros around the image."""
    k = len(W)
    if W.shape != (k, k) or k % 2 == 0:
        raise ValueError(f"the kernel must be square and odd, not {tuple(W.shape)}")

    def convolved(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        if k // 2 >= min(v.shape[2:]):
            raise ValueError(f"the kernel must be odd and fit the image, not {k} for {tuple(v.shape[2:])} pixels")
        value, g = oracle(f, v, memory)
        each = W.to(g).expand(g.shape[1], 1, *W.shape)
        return value, F.conv2d(g, each, padding=k // 2, groups=g.shape[1])

    return convolved


def gaussian(k: int) -> Tensor:
    """The normal density at k points from −3 to 3, times itself, with sum 1 (k, k): σ is (k − 1)/6 pixels."""
    w = torch.exp(-torch.linspace(-3, 3, k).square() / 2) if k > 1 else torch.ones(1)
    return torch.outer(w, w) / w.sum() ** 2


def scaled(oracle: Oracle, copies: int, level: float = MID_GREY) -> Oracle:
    """SI: the sum of the gradients through level + (v − level)/2^i, i = 0 … copies − 1; the value is that of i = 0."""
    check_settings({"copies": copies})

    def paler(f, s: float):
        return lambda u: f(level + (u - level) * s)

    def summed(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        value, g = oracle(f, v, memory)
        for i in range(1, copies):
            g = g + oracle(paler(f, 2.0**-i), v, memory)[1]
        return value, g

    return summed


def diverse(oracle: Oracle, p: float, ratio: float) -> Oracle:
    """DI: with probability p the gradient through `resized_and_padded`, drawn at each call for all images alike."""
    check_settings({"p": p})
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"ratio must be 1 or more, not {ratio}")

    def through(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        coin, *place = torch.rand(4, generator=memory["draws"]).tolist()
        return oracle((lambda u: f(resized_and_padded(u, ratio, place))) if coin < p else f, v, memory)

    return through


def resized_and_padded(x: Tensor, ratio: float, draws: Sequence[float]) -> Tensor:
    """Resize (nearest) to a size from 1 up to `ratio` times, pad to the latter with grey, and resize back (bilinear).

    Three numbers in [0, 1) choose the size and the offsets. The original pads with 0 on images in [−1, 1], which is
    grey, and does not resize back: its networks take any size.
    """
    h, w = x.shape[2:]
    H, W = round(h * ratio), round(w * ratio)
    rows, columns = h + int(draws[0] * (H - h)), w + int(draws[0] * (W - w))
    top, left = int(draws[1] * (H - rows + 1)), int(draws[2] * (W - columns + 1))
    x = F.interpolate(x, (rows, columns), mode="nearest")
    x = F.pad(x, (left, W - columns - left, top, H - rows - top), value=MID_GREY)
    return F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
