"""A camera, simulated: what a network is given of a flat sign that stands at some distance and angle, in some light.

    x ↦ resize(8 bits(gain · lens(perspective(x)) + noise))

It is a simulation, and a simple one. The whole picture is a plane that turns about its upright middle axis; whoever
crops the sign out of the camera's picture is right about its place and height; a greater distance costs sensor pixels
and nothing else; the light is one factor. There is no glare, no shadow, no motion, no compression and no printer.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core import check_images, check_settings, generator, leaf, normal, uniform
from kit.core.balls import column
from kit.core.seeding import Draws, Source

MOST = 2  # times `size`: more sensor pixels than these are averaged away when the crop is resized


@dataclass(frozen=True)
class Camera:
    """`camera(x, source)` is one view of each image x (N, C, H, H): (N, C, size, size) in [0, 1].

    Each draws its distance, angle and light from U(low, high). Distances are in feet, as in the source, angles in
    degrees; `half` is half the width of what x shows, in feet. The sensor has size · sharp / distance pixels across it
    (at least 4, at most 2 · size and H); `blur` is the lens's standard deviation in these pixels, `noise` that of the
    sensor in brightness. What the sensor reads is rounded to 8 bits, and the gradient passes through the rounding
    as if it were not there, so that an attack may be trained through the camera. From `kit.core.seeding.Draws` an image
    has a view of its own, whatever is seen beside it.
    Raises ValueError for ranges that make no sense, and for images that are not square.
    Source: the effects are among those of Athalye et al., ICML 2018, and Eykholt et al., CVPR 2018.
    """

    distance: tuple[float, float] = (5.0, 40.0)
    angle: tuple[float, float] = (-60.0, 60.0)
    light: tuple[float, float] = (0.7, 1.2)
    blur: float = 0.5
    noise: float = 0.02
    size: int = 32
    sharp: float = 25.0
    half: float = 1.25

    def __post_init__(self) -> None:
        for name, least, most in (("distance", 0.0, math.inf), ("angle", -90.0, 90.0), ("light", 0.0, math.inf)):
            between = getattr(self, name)
            if not is_range(between) or not least < between[0] <= between[1] < most:
                raise ValueError(f"{name} must be (low, high) with {least:g} < low ≤ high < {most:g}, not {between}")
        for name in ("blur", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("size", "sharp", "half"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.size != int(self.size):
            raise ValueError(f"size must be a whole number of pixels, not {self.size}")
        if self.half >= self.distance[0]:
            raise ValueError(f"the camera must stand farther off than half the sign's width: distance from "
                             f"{self.distance[0]:g}, half = {self.half:g}")

    def at(self, distance: float, angle: float) -> Camera:
        """The same camera at one place; the light is still drawn."""
        return replace(self, distance=(distance, distance), angle=(angle, angle))

    def __call__(self, x: Tensor, source: Source = None) -> Tensor:
        check_images(x)
        check_settings({"generator": source})
        if x.shape[2] != x.shape[3]:
            raise ValueError(f"the camera takes square images, not {tuple(x.shape[2:])} pixels")
        drawn = uniform(x.new_empty(len(x), 3), source)
        distance, angle, light = (
            low + (high - low) * u for (low, high), u in
            zip((self.distance, self.angle, self.light), drawn.unbind(1), strict=True))
        pixels = (self.size * self.sharp / distance).round().clamp(4, min(MOST * self.size, x.shape[2]))
        lens = blurred(pixels, self.blur) @ averaged(x.shape[2], pixels)
        read = across(turned(x, angle, distance / self.half), lens) * column(light, x)
        read = eight_bits((read + self._noise(read, min(MOST * self.size, x.shape[2]), source)).clamp(0, 1))
        return across(read, resized(pixels, read.shape[2], self.size)).clamp(0, 1)


    def _noise(self, read: Tensor, most: int, source: Source) -> Tensor:
        """The sensor's noise, of the shape of `read` (N, C, R, R). From a stream for each image it is drawn for the
        largest sensor that can be, most × most pixels, so that R, the largest of the batch, has no say in it."""
        if not isinstance(source, Draws):
            return normal(read, source, self.noise)
        whole = normal(read.new_empty(*read.shape[:2], most, most), source, self.noise)
        return whole[:, :, :read.shape[2], :read.shape[3]]


def is_range(between) -> bool:
    """Whether it is a pair of numbers, the lower first."""
    try:
        low, high = between
        return float(low) <= float(high)
    except (TypeError, ValueError):
        return False


def first_look(views: Callable, x: Tensor, name: str = "views") -> Tensor:
    """A view of each of these images, before an attack trains through `views`. Raises ValueError or TypeError unless
    they are as many, in [0, 1], and have a gradient."""
    seen = views(leaf(x), generator())
    try:
        check_images(seen)
    except (TypeError, ValueError) as error:
        raise type(error)(f"what {name} returns is of no use: {error}") from None
    if len(seen) != len(x):
        raise ValueError(f"{name} must return one image for each it is given: {len(x)} gave {len(seen)}")
    if not seen.requires_grad:
        raise ValueError(f"what {name} returns has no gradient: make it of operations that have one, as Camera is")
    return seen.detach()


def turned(x: Tensor, angle: Tensor, distance: Tensor) -> Tensor:
    """The plane of x, turned by `angle` degrees (N,) about its upright middle axis, from `distance` half-widths.

    A point (X, Y) of it appears at u = X cos φ / (1 + X sin φ / D), v = Y / (1 + X sin φ / D). Beyond its edge the
    plane goes on as it ends.
    """
    if not bool(angle.any()):
        return x
    phi, D = torch.deg2rad(angle).view(-1, 1, 1), distance.view(-1, 1, 1)
    axis = (torch.arange(x.shape[2], device=x.device, dtype=x.dtype) + 0.5) * 2 / x.shape[2] - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    X = u * D / (D * phi.cos() - u * phi.sin())
    beyond = D * phi.cos() - u * phi.sin() <= 0  # behind the horizon of a plane that has no end
    X = torch.where(beyond, u.sign() * 1e3, X)
    Y = v * (1 + X * phi.sin() / D)
    return F.grid_sample(x, torch.stack([X, Y], 3).clamp(-1e3, 1e3), padding_mode="border", align_corners=False)


def across(x: Tensor, matrix: Tensor) -> Tensor:
    """matrix · x · matrixᵀ for every channel: (N, C, H, H) and (N, R, H) → (N, C, R, R)."""
    return matrix[:, None] @ x @ matrix[:, None].mT


def averaged(many: int, pixels: Tensor) -> Tensor:
    """The matrices (N, R, many) of sensors with so many pixels (N,), R the most of them: each the mean over its part of
    `many` points. The rows beyond an image's own sensor are zero."""
    j = torch.arange(int(pixels.max()), device=pixels.device).view(1, -1, 1)
    k = torch.arange(many, device=pixels.device)
    wide = many / pixels.view(-1, 1, 1)
    overlap = torch.minimum((j + 1) * wide, k + 1) - torch.maximum(j * wide, k)
    return torch.where(j < pixels.view(-1, 1, 1), overlap.clamp_min(0) / wide, 0)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """A Gaussian over the pixels of each sensor, (N, R, R), whose rows have the sum 1."""
    r = torch.arange(int(pixels.max()), device=pixels.device, dtype=pixels.dtype)
    weight = torch.exp(-((r[:, None] - r) / max(sigma, 1e-3)).square() / 2)
    weight = torch.where(r < pixels.view(-1, 1, 1), weight, 0)
    return weight / weight.sum(2, keepdim=True).clamp_min(1e-30)  # rows beyond a sensor read nothing


def resized(pixels: Tensor, many: int, size: int) -> Tensor:
    """The matrices (N, size, many) that bring each sensor to `size` pixels: bilinear, and averaged where it shrinks."""
    times = (pixels / size).view(-1, 1, 1)
    centre = (torch.arange(size, device=pixels.device, dtype=pixels.dtype).view(1, -1, 1) + 0.5) * times - 0.5
    centre = torch.minimum(centre.clamp_min(0), pixels.view(-1, 1, 1) - 1)
    j = torch.arange(many, device=pixels.device)
    weight = (1 - (centre - j).abs() / times.clamp_min(1)).clamp_min(0)
    weight = torch.where(j < pixels.view(-1, 1, 1), weight, 0)
    return weight / weight.sum(2, keepdim=True)


def eight_bits(x: Tensor) -> Tensor:
    """x rounded to multiples of 1/255; its gradient is that of x."""
    return x + ((255 * x).round() / 255 - x).detach()
