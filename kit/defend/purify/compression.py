"""Fewer grey levels, smoother images, coarser cosine transforms: an image loses little of itself by them.

Rounding is differentiated as the identity in all of them, and everything else as it is.
"""
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.defend.purify.wrapper import Purified
from kit.detect.squeezing import SQUEEZERS

# ITU-T T.81, annex K.1: the steps of quality 50, for the luminance and for both chrominances.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99))
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *[(99,) * 8] * 4)
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # ITU-T T.871


class Squeezed(Purified):
    """f(q(x)) with q one of the squeezers of `kit.detect.squeezing`: they detect by a difference, this corrects.

    `squeezer` is "bit_depth", "median" or "non_local_means"; its arguments follow: Squeezed(model, "median", 3).
    Cost: the squeezer's and the model's pass.
    Source: Xu et al., Feature Squeezing: detecting adversarial examples in deep neural networks, NDSS 2018.
    """

    def __init__(self, model: nn.Module, squeezer: str, *arguments: Any):
        super().__init__(model)
        if squeezer not in SQUEEZERS:
            raise ValueError(f"there is no squeezer {squeezer!r}: choose among {', '.join(SQUEEZERS)}")
        self.squeezer, self.arguments = squeezer, arguments

    def purify(self, x: Tensor) -> Tensor:
        return SQUEEZERS[self.squeezer](x, *self.arguments)


class CosineSteps(Purified):
    """A purifier that rounds the cosine transform of 8 × 8 blocks to multiples of a table of steps."""

    table: Tensor
    dct: Tensor

    def __init__(self, model: nn.Module, table: Tensor):
        super().__init__(model)
        i = torch.arange(8.0)
        dct = (math.pi / 8 * (i + 0.5) * i[:, None]).cos() / 2  # (frequency, pixel)
        dct[0] /= 2**0.5
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("dct", dct, persistent=False)

    def rounded(self, x: Tensor, table: Tensor) -> Tensor:
        """DCT⁻¹(Q round(DCT(x) / Q)), x (N, C, H, W) in grey levels, Q = `table` (8, 8) or (C, 1, 8, 1, 8).

        The transform is orthonormal. Where H or W is no multiple of 8 the edge is repeated, and cut off again.
        """
        height, width = x.shape[2:]
        wide = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = wide.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # (N, C, rows, 8, columns, 8)
        dct, table = self.dct.to(x), table.to(x)
        levels = torch.einsum("ui,ncrisj,vj->ncrusv", dct, blocks, dct) / table
        levels = whole(levels)
        blocks = torch.einsum("ui,ncrusv,vj->ncrisj", dct, levels * table, dct)
        return blocks.flatten(4).flatten(2, 3)[..., :height, :width]


class FeatureDistillation(CosineSteps):
    """Quantise the cosine transform of 8 × 8 blocks: q(x) = DCT⁻¹(Q round(DCT(255 x) / Q)) / 255, per channel.

    Q is `low` for the 4 × 4 lowest frequencies and `high` elsewhere; RGB channels are treated separately. Cost: the
    model's pass, and two 8 × 8 products per block.
    Source: Liu et al., Feature distillation: DNN-oriented JPEG compression against adversarial examples, CVPR 2019.
    """

    def __init__(self, model: nn.Module, low: float = 25.0, high: float = 30.0):
        table = torch.full((8, 8), float(high))
        table[:4, :4] = low
        super().__init__(model, table[:, None])

    def purify(self, x: Tensor) -> Tensor:
        return (self.rounded(255 * x, self.table) / 255).clamp(0, 1)


class JPEG(CosineSteps):
    """q(x) is what is left of x in a JPEG file of this `quality`, 1 … 100: a coarser Q, in luminance and chrominance.

    The standard's tables, scaled as libjpeg does; the chrominance keeps its resolution (4:4:4). One channel or three.
    Cost: the model's pass, and two 8 × 8 products per block.
    Source: Dziugaite et al., A study of the effect of JPG compression on adversarial images, 2016.
    """

    rgb: Tensor

    def __init__(self, model: nn.Module, quality: int = 75):
        if not 1 <= quality <= 100:
            raise ValueError(f"quality must be 1 … 100, not {quality}")
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        tables = [_scaled(t, scale) for t in (LUMINANCE, CHROMINANCE, CHROMINANCE)]
        super().__init__(model, torch.stack(tables)[:, None, :, None])
        self.register_buffer("rgb", torch.tensor(YCBCR), persistent=False)

    def purify(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        if channels not in (1, 3):
            raise ValueError(f"JPEG takes images of 1 or 3 channels, not {channels}")
        mix = self.rgb.to(x) if channels == 3 else torch.ones(1, 1).to(x)
        centre = torch.tensor([128.0, 0, 0][:channels]).to(x)[:, None, None]
        levels = whole(torch.einsum("kc,nchw->nkhw", mix, whole(255 * x))) - centre
        levels = whole(self.rounded(levels, self.table[:channels]) + centre)
        return (whole(torch.einsum("ck,nkhw->nchw", mix.double().inverse().to(x), levels)) / 255).clamp(0, 1)


def whole(x: Tensor) -> Tensor:
    """round(x), differentiated as x."""
    return x + (x.round() - x).detach()


def _scaled(table: Sequence[Sequence[int]], percent: int) -> Tensor:
    return ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255).float()
