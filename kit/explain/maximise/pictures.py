"""How a picture x in [0, 1] is written as parameters v, and how it is shaken before the network sees it."""
from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core import check_images, uniform
from kit.core.seeding import Source

# The root of the covariance of ImageNet's colours, over the length of its longest column (Lucid's constant).
IMAGENET_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
IMAGENET_COLOURS = IMAGENET_COLOURS / IMAGENET_COLOURS.norm(dim=0).max()
SOFTEN = 4.0  # Lucid's: parameters of length 1 make a picture of low contrast
EDGE = 1e-4  # pixels of a start are that far from black and white, where the sigmoid has no inverse


class Picture(Protocol):
    """x = image(v), v = parameters(x), and what is done to v after each step."""

    def image(self, v: Tensor) -> Tensor: ...

    def parameters(self, x: Tensor) -> Tensor: ...

    def project(self, v: Tensor) -> Tensor: ...


class Pixels:
    """x = v, cut to [0, 1] after each step."""

    def image(self, v: Tensor) -> Tensor:
        return v

    def parameters(self, x: Tensor) -> Tensor:
        return x

    def project(self, v: Tensor) -> Tensor:
        return v.clamp(0, 1)


class Fourier:
    """x = sigmoid(C F⁻¹(s v) / 4), F⁻¹ the orthonormal inverse Fourier transform, s = 1 / max(|f|, 1 / max(H, W)).

    v (N, C, H, W // 2 + 1, 2) are the real and imaginary parts; |f| is in cycles a pixel. A step of the same length in
    every v changes low frequencies by more, as natural images have more of them. C (C, C) mixes the colours, None
    leaves them apart. Where W or H is even, some imaginary parts say nothing, and stay.
    Source: Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017; constants as in tensorflow/lucid.
    """

    def __init__(self, x: Tensor, colours: Tensor | None = None):
        h, w = self.size = x.shape[-2:]
        f = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w))
        self.scale = (1 / f.clamp_min(1 / max(h, w))).to(x)
        if colours is not None and not isinstance(colours, Tensor):
            raise TypeError(f"colours must be a matrix (C, C), a torch tensor, not {type(colours).__name__}")
        if colours is not None and colours.shape != (x.shape[1], x.shape[1]):
            raise ValueError(f"colours must be a matrix ({x.shape[1]}, {x.shape[1]}) for images of {x.shape[1]} "
                             f"channels, not {tuple(colours.shape)}")
        if colours is not None and not (bool(colours.isfinite().all()) and bool(torch.linalg.cond(colours) < 1e6)):
            raise ValueError("colours must be a finite matrix with an inverse: that of images without colour has none")
        self.colours = torch.eye(x.shape[1]).to(x) if colours is None else colours.to(x)

    def image(self, v: Tensor) -> Tensor:
        t = torch.fft.irfft2(torch.view_as_complex(v) * self.scale, s=self.size, norm="ortho") / SOFTEN
        return torch.einsum("ij,njhw->nihw", self.colours, t).sigmoid()

    def parameters(self, x: Tensor) -> Tensor:
        t = x.clamp(EDGE, 1 - EDGE).logit()
        t = torch.einsum("ij,njhw->nihw", torch.linalg.inv(self.colours), t)
        return torch.view_as_real(torch.fft.rfft2(SOFTEN * t, norm="ortho") / self.scale).contiguous()

    def project(self, v: Tensor) -> Tensor:
        return v


def colour_basis(x: Tensor) -> Tensor:
    """C = U √S of the colours' covariance U S Uᵀ in images x (N, C, H, W), over its longest column's length, (C, C).

    Colours C u with u of covariance 1 are distributed as those of x, to scale: steps of equal length in u go where
    natural images vary. Lucid's constant is that of ImageNet.
    """
    check_images(x)
    pixels = x.transpose(0, 1).flatten(1).double()
    if not bool((pixels.std(1, correction=0) > 0).all()):
        raise ValueError("a channel of these images is one value everywhere: colours that never vary have no basis")
    U, S, _ = torch.linalg.svd(torch.cov(pixels).view(len(pixels), -1))
    C = U * S.sqrt()
    C = C * torch.where(C.sum(0) < 0, -1.0, 1.0)  # the sign says nothing: towards light
    return (C / C.norm(dim=0).max()).to(x.dtype)


def shaken(x: Tensor, source: Source, *, jitter: int = 0, zoom: float = 0.0, degrees: float = 0.0) -> Tensor:
    """Each image moved by up to `jitter` whole pixels each way, enlarged by 1 ± `zoom` and turned by up to ± `degrees`,
    all uniform, each with its own draws. What comes in from outside is mid-grey."""
    if not (jitter or zoom or degrees):
        return x
    h, w = x.shape[2:]
    u = uniform(x.new_empty(len(x), 4), source, -1, 1)
    shift = (u[:, :2] * (jitter + 0.5)).round().clamp(-jitter, jitter)
    angle, size = math.radians(degrees) * u[:, 2], 1 + zoom * u[:, 3]
    cos, sin = angle.cos() / size, angle.sin() / size
    across = torch.stack([cos, -sin * h / w, 2 * shift[:, 0] / w], 1)
    down = torch.stack([sin * w / h, cos, 2 * shift[:, 1] / h], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(x.shape), align_corners=False)
    return 0.5 + F.grid_sample(x - 0.5, grid, align_corners=False)
