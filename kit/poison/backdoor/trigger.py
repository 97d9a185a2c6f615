"""A trigger is a mask and a pattern: what it covers, and with what."""
from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kit.core import check_images, generator


@dataclass(frozen=True, eq=False)
class Trigger:
    """A(x) = (1 − m) ∘ x + m ∘ Δ: images in [0, 1] stay in [0, 1].

    mask       m (1, H, W) in [0, 1], one for all channels: how much of each pixel is covered
    pattern    Δ (C, H, W) in [0, 1]: with what

    Raises ValueError for other shapes and values, and for images of another size.
    Source: Wang et al., Neural Cleanse, IEEE S&P 2019, equation 2.
    """

    mask: Tensor
    pattern: Tensor

    def __post_init__(self) -> None:
        for name, t in (("mask", self.mask), ("pattern", self.pattern)):
            if not isinstance(t, Tensor):
                raise TypeError(f"the {name} must be a torch tensor, not {type(t).__name__}: use torch.as_tensor")
            if t.dim() != 3 or not t.is_floating_point():
                raise ValueError(f"the {name} must be floats of shape (C, H, W), not {t.dtype} {tuple(t.shape)}")
            if not bool(((t >= 0) & (t <= 1)).all()):
                raise ValueError(f"the {name} must lie in [0, 1]: clamp it, or divide it by 255")
        if self.mask.shape != (1, *self.pattern.shape[1:]):
            raise ValueError(f"the mask must have the shape (1, H, W) of the pattern {tuple(self.pattern.shape)}, "
                             f"not {tuple(self.mask.shape)}")

    def __call__(self, x: Tensor) -> Tensor:
        """The images x (N, C, H, W) with the trigger."""
        check_images(x)
        if x.shape[1:] != self.pattern.shape:
            raise ValueError(f"a trigger of shape {tuple(self.pattern.shape)} does not fit images of "
                             f"{tuple(x.shape[1:])}: make one for these")
        m, pattern = self.mask.to(x), self.pattern.to(x)
        return ((1 - m) * x + m * pattern).clamp(0, 1)

    @property
    def norm(self) -> float:
        """‖m‖₁: how many pixels it covers, those in part counted in part."""
        return float(self.mask.sum())

    def to(self, device: str | torch.device) -> Trigger:
        return Trigger(self.mask.to(device), self.pattern.to(device))

    @classmethod
    def patch(cls, shape: tuple[int, ...], side: int = 3, *, colour: float | tuple[float, ...] = 1.0,
              place: tuple[int, int] | None = None) -> Trigger:
        """A square of `side` pixels and one colour on images of `shape` (C, H, W), its upper left corner at `place`.

        By default it stands in the lower right corner, one pixel from the edges. Source: Gu et al., BadNets, 2017.
        """
        channels, height, width = _sizes(shape)
        side = operator.index(side)
        top, left = (height - side - 1, width - side - 1) if place is None else place
        if side < 1 or not (0 <= top <= height - side and 0 <= left <= width - side):
            raise ValueError(f"a square of {side} pixels at {(top, left)} does not lie within {height} × {width}")
        mask = torch.zeros(1, height, width)
        mask[:, top : top + side, left : left + side] = 1
        tint = torch.as_tensor(colour).float().flatten()
        if len(tint) not in (1, channels):
            raise ValueError(f"a colour is one number or one for each of {channels} channels, not {len(tint)}")
        return cls(mask, tint.expand(channels).view(-1, 1, 1).expand(shape).contiguous())

    @classmethod
    def blended(cls, shape: tuple[int, ...], alpha: float = 0.15, *, seed: int = 0) -> Trigger:
        """m = alpha everywhere, and uniform noise as the pattern: it covers the whole image, and no pixel of it.

        Source: Chen et al., Targeted backdoor attacks using data poisoning, 2017, section 4 (blended injection).
        """
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is a share of each pixel above 0 and up to 1, not {alpha:g}")
        _sizes(shape)
        return cls(torch.full((1, *shape[1:]), alpha), torch.rand(*shape, generator=generator(seed)))

    @classmethod
    def of(cls, shape: tuple[int, ...], kind: str = "patch", **settings: Any) -> Trigger:
        """By the words of a recipe: {"kind": "patch", "side": 3}. Raises ValueError for a kind that there is not."""
        if kind not in ("patch", "blended"):
            raise ValueError(f"a trigger's kind is 'patch' or 'blended', not {kind!r}")
        if "place" in settings and settings["place"] is not None:
            settings["place"] = tuple(settings["place"])
        return getattr(cls, kind)(tuple(shape), **settings)


def _sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ValueError(f"shape is (C, H, W) of one image, not {tuple(shape)}: use x.shape[1:]")
    return shape


def whole(share: float, n: int) -> int:
    """⌊share · n⌋ as it would be on paper: 0.29 of 100 is 29, though the product of the floats is 28.999…"""
    return int(share * n + 1e-9)
