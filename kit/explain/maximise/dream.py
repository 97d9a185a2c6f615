"""DeepDream: enlarge whatever a layer sees in an image."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import alike, features, laid_out, optimise, per_image
from kit.core.balls import column
from kit.core.loop import Memory
from kit.explain.mask import pixels


@per_image
def deep_dream(
    model: nn.Module, x: Tensor, layers: Sequence[str], *, octaves: int = 4, ratio: float = 1.4, steps: int = 10,
    step: float | Tensor = 1.5 / 255, jitter: int = 32, generator: torch.Generator | None = None,
) -> Tensor:
    """Climbs ½ Σ_layers ‖A(x)‖² from the image, on `octaves` sizes, from the smallest, each `ratio` times the last.

    On each size: x ← x + step · g / mean|g|, `steps` times, the image rolled by up to `jitter` pixels each way for each
    gradient (all images alike; at most half of the image). What a size has added is enlarged and carried to the next.
    Returns (N, C, H, W) in [0, 1]. Cost: octaves · steps forward and backward passes, the smaller ones of fewer pixels.
    Raises ValueError for a network that takes images of one size alone: give octaves=1.
    Source: Mordvintsev, Olah and Tyka, Inceptionism, 2015; constants as in google/deepdream.
    """
    if not isinstance(octaves, int) or octaves < 1 or not ratio > 1:
        raise ValueError(f"octaves must be 1 or more and ratio above 1, not {octaves!r}, {ratio}")
    if isinstance(layers, str):
        layers = [layers]
    if not layers:
        raise ValueError("name a layer at least whose energy is to grow, ['block3']")
    sizes = [[max(1, round(n / ratio**k)) for n in x.shape[2:]] for k in reversed(range(octaves))]
    source, added = alike(generator), torch.zeros_like(x)
    for size in sizes:
        base, reach = _resized(x, size), min(pixels("jitter", jitter, 0, 10**6), min(size) // 2)
        moves = torch.randint(-reach, reach + 1, (steps, 2), generator=source).tolist()

        def answer(v: Tensor, k: int, moves: list = moves) -> Tensor:
            with features(model, layers) as A:
                model(laid_out(v.roll(moves[k], (2, 3))))
            return torch.stack([A[name].square().flatten(1).sum(1) for name in layers]).sum(0) / 2

        def climb(v: Tensor, g: Tensor, memory: Memory) -> Tensor:
            return v + column(step, g) * g / g.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)

        try:
            v = optimise(answer, (base + _resized(added, size)).clamp(0, 1), steps=steps, rule=climb,
                         project=lambda v: v.clamp(0, 1))
        except RuntimeError as error:
            if size == list(x.shape[2:]) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"the network takes no images of {size[0]} × {size[1]} pixels: give octaves=1") from error
        added = v - base
    return (x + added).clamp(0, 1)


def _resized(x: Tensor, size: list[int]) -> Tensor:
    return x if list(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
