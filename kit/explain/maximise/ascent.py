"""The search for the picture that a unit answers to most."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Trace, adam, check_images, laid_out, normal, optimise, per_image
from kit.core.balls import column
from kit.core.network import relus
from kit.explain.mask import pixels, total_variation
from kit.explain.maximise.pictures import IMAGENET_COLOURS, Fourier, Picture, Pixels, shaken
from kit.explain.maximise.units import Unit, as_unit

GREY = 0.5
AWAKE = 16  # steps in which silent ReLUs are woken, as in Lucid
JITTER = 1 / 16  # of the shorter side: 8 of Lucid's 128 pixels


def maximise(
    model: nn.Module, unit: Unit | int | Sequence[int] | Tensor, *,
    start: Tensor | tuple[int, ...] | list[int] = (3, 224, 224), seeds: int = 1, fourier: bool = True,
    colours: Tensor | str | None = None, steps: int = 512, lr: float = 0.05, lam: float = 0.0, lam_tv: float = 0.0,
    beta: float = 1.0, jitter: int | None = None, zoom: float = 0.1, degrees: float = 10.0, sigma: float = 0.01,
    generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """argmax_x E h(t(x)) − λ Σ (x − ½)² − λ_tv TV(x), x in [0, 1], by `steps` steps of Adam on the parameters of x.

    Both sums run over the values of one image; TV is Σ_pixels (Δ₁² + Δ₂²)^(β/2) of each channel. t is one draw for
    each step and image: a jitter, a zoom and a turn.

    unit       a `Unit`: h; or numbers of classes
    start      (C, H, W): grey, of the model's dtype and device. Or images to start from (N, C, H, W)
    seeds      pictures for each unit, unit by unit; they differ in what they draw. With images as `start`, there is one
               for each image: one unit for all, or one for each
    fourier    write x as Fourier coefficients (`Fourier`); else as pixels
    colours    of `fourier`: "imagenet", a matrix (C, C) as `colour_basis` makes it, or None, which leaves them apart
    jitter     pixels; None is 1/16 of the shorter side       zoom, degrees    up to 1 ± zoom, and ± degrees
    sigma      of the noise N(0, σ²) that is added to the parameters at the start

    Where the whole gradient of a ReLU layer is zero for an image, as at a silent unit, it lets through what would raise
    it, for the first 16 steps. Returns (units · seeds, C, H, W). All but the unit and the steps is as in Lucid where it
    has a default: `lam=…, fourier=False, jitter=0, zoom=0, degrees=0` is Simonyan's. trace gets the objective.

    Cost: `steps` forward and backward passes. Raises ValueError for a layer, unit or place that is not there.
    Sources: Erhan et al. 2009; Simonyan, Vedaldi and Zisserman, Deep inside convolutional networks, 2014, section 2;
    Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017, with tensorflow/lucid.
    """
    unit = as_unit(unit)
    if isinstance(start, tuple | list):
        if len(start) != 3 or any(not isinstance(n, int) or n < 1 for n in (*start, seeds)):
            raise ValueError(f"start must be (channels, height, width) or images, and seeds 1 or more, not {start}, "
                             f"{seeds}")
        like = next(iter(model.parameters()), torch.empty(0))
        x = torch.full((len(unit) * seeds, *start), GREY, dtype=like.dtype, device=like.device)
        unit = unit.each(seeds)
    else:
        check_images(start)
        if seeds != 1:
            raise ValueError("with images to start from there is one picture for each: give an image several times "
                             "in place of seeds")
        x = start if len(start) > 1 else start.expand(len(unit), *start.shape[1:])
    side = min(x.shape[2:])
    jitter = pixels("jitter", round(JITTER * side) if jitter is None else jitter, 0, side - 1)
    if not 0 <= zoom < 1 or not 0 <= degrees <= 180:
        raise ValueError(f"zoom lies in [0, 1) and degrees in [0, 180], not {zoom}, {degrees}")
    shake = {"jitter": jitter, "zoom": zoom, "degrees": degrees}
    return _ascend(model, x, unit, picture=_picture(x, fourier, colours), shake=shake, steps=steps, lr=lr, lam=lam,
                   lam_tv=lam_tv, beta=beta, sigma=sigma, generator=generator, trace=trace)


@per_image
def _ascend(
    model: nn.Module, x: Tensor, unit: Unit, *, picture: Picture, shake: dict[str, Any], steps: int, lr: float,
    lam: float, lam_tv: float, beta: float, sigma: float, generator: torch.Generator | None, trace: Trace | None,
) -> Tensor:
    def objective(v: Tensor, k: int) -> Tensor:
        image = picture.image(v)
        seen = laid_out(shaken(image, generator, **shake))
        if k < AWAKE:
            with waking(woken):
                h = unit.of(model, seen)
        else:
            h = unit.of(model, seen)
        if lam:
            h = h - lam * (image - GREY).square().flatten(1).sum(1)
        if lam_tv:
            h = h - lam_tv * total_variation(image.flatten(0, 1), beta).view(len(x), -1).sum(1)
        return h

    v = picture.parameters(x)
    v = picture.project(v + normal(v, generator, sigma))
    v = optimise(objective, v, steps=steps, rule=adam(lr), project=picture.project, trace=trace)
    return picture.image(v)


def _picture(x: Tensor, fourier: bool, colours: Tensor | str | None) -> Picture:
    if isinstance(colours, str):
        if colours != "imagenet":
            raise ValueError(f"colours must be 'imagenet', a matrix or None, not {colours!r}")
        colours = IMAGENET_COLOURS
    if not fourier and colours is not None:
        raise ValueError("colours belong to the Fourier parameters: leave them out, or let fourier=True")
    return Fourier(x, colours) if fourier else Pixels()


class waking(relus):
    """`relus`, with ReLU6 as min(ReLU, 6): mobile networks have no other."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = dict(zip(("input", "min_val", "max_val", "inplace"), args, strict=False)) | (kwargs or {})
        if func is F.relu6:
            return super().__torch_function__(F.relu, types, (given["input"],)).clamp(max=6)
        if func in (F.hardtanh, F.hardtanh_) and given.get("min_val") == 0:
            return super().__torch_function__(F.relu, types, (given["input"],)).clamp(max=given.get("max_val", 1.0))
        return super().__torch_function__(func, types, args, kwargs)


def woken(g: Tensor, z: Tensor) -> Tensor:
    """The gradient g of max(z, 0), carried to z; where it would be zero for the whole of an image, what raises z."""
    plain = g * (z > 0)
    silent = (plain.flatten(1) == 0).all(1)
    return torch.where(column(silent, z), g * ((z > 0) | (g > 0)), plain)
