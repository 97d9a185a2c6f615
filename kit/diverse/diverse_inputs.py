"""Inputs on which networks that agree come to differ, by a joint search: DeepXplore.

    max  Σ_{k≠j} z_k[c] − λ z_j[c] + λ_push Σ A_pushed        c the class that all networks name at x, j the odd one out

by x ← clip(x + step · g / RMS(g)), where g is what a change of the image may be made of:

    any         the gradient as it is
    light       one value for the whole image, its mean
    occlusion   the gradient within one rectangle, nothing elsewhere
    blackout    patches: −1 in those whose mean gradient is negative, nothing elsewhere, so that it only darkens
"""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kit.core import Ensemble, features, laid_out, normal, per_image, uniform
from kit.core.loop import differentiate, leaf
from kit.explain import answers

CHANGES = ("any", "light", "occlusion", "blackout")


def differ(model: Ensemble, x: Tensor) -> Tensor:
    """Whether the networks of the ensemble disagree about each image (N,). Cost: one forward pass of each.

    Raises TypeError for what is no Ensemble, and ValueError for fewer than two networks.
    """
    check_several("differ", model)
    said = answers(model.models, x).argmax(2)
    return (said != said[:, :1]).any(1)


def allowed(g: Tensor, change: str, corner: Tensor, size: int) -> Tensor:
    """The part of a gradient (N, C, H, W) that a change is made of; corner (N, P, 2) in [0, 1) places the patches."""
    if change == "any":
        return g
    if change == "light":
        return g.mean((1, 2, 3), keepdim=True).expand_as(g)
    height, width = g.shape[2:]
    rooms = corner.new_tensor([height - size + 1, width - size + 1])
    top, left = (corner * rooms).long()[..., None].unbind(2)  # (N, P, 1) each
    rows, columns = torch.arange(height, device=g.device), torch.arange(width, device=g.device)
    down, across = (rows >= top) & (rows < top + size), (columns >= left) & (columns < left + size)
    inside = down[..., None] & across[:, :, None]
    if change == "occlusion":
        return g * inside[:, 0, None]
    mean = (g[:, None] * inside[:, :, None]).mean((2, 3, 4))  # (N, P); its sign is that of the patch's mean
    dark = (inside & (mean < 0)[..., None, None]).any(1)
    return -dark[:, None].to(g).expand_as(g)


@per_image
def deepxplore(
    model: Ensemble, x: Tensor, *, change: str = "light", odd: int = 0, lam: float = 1.0,
    push: Mapping[str, int] | None = None, lam_push: float = 0.1, step: float = 10 / 255, steps: int = 50,
    size: int | None = None, patches: int = 10, guided: bool = True, generator: Any = None,
) -> Tensor:
    """Move each image until the networks of the ensemble differ about it: raise what the others say, lower the odd one.

    `push` names layers of the ensemble and a channel of each (`{"models.0.block2": 7}`) whose mean is raised beside it,
    for coverage. `size` is the side of a rectangle or patch, 10 (6) at 28 pixels and in proportion; occlusion keeps its
    rectangle, blackout draws patches anew at every step. An image about which they differ is left as it is, from the
    start. Unlike in the authors' code, no image leaves [0, 1] on the way, and the networks are asked within it.
    With `guided=False` g is a random direction, drawn once for each image: the control, of the same step and shape.
    Returns the images; `differ` says about which of them the networks disagree.
    Cost: `steps` forward passes of all networks, and as many backward passes if guided.
    Raises TypeError for what is no Ensemble, ValueError for another word, place, size or channel, for fewer than two
    networks, and for networks of different classes.
    Source: Pei et al., DeepXplore, SOSP 2017, algorithm 1. Their code divides by the RMS first, and takes the part that
    is allowed afterwards: light moves by the mean of the scaled gradient (10⁴ times that on ImageNet). It darkens one
    patch a step, and is told the rectangle.
    """
    check_several("deepxplore", model)
    if change not in CHANGES:
        raise ValueError(f"change must be {', '.join(CHANGES)}, not {change!r}")
    if not 0 <= odd < len(model.models):
        raise ValueError(f"odd must be one of two networks or more: {odd} of {len(model.models)}")
    side = min(x.shape[2:])
    size = max(1, round((6 if change == "blackout" else 10) * side / 28)) if size is None else size
    if size != int(size) or not 1 <= size <= side:
        raise ValueError(f"size is a whole number of pixels from 1 to {side}, not {size}")
    if patches < 1:
        raise ValueError(f"patches must be 1 or more, not {patches}")
    x, live = x.clone(), torch.arange(len(x), device=x.device)
    place = uniform(x.new_empty(len(x), 1, 2), generator)
    chance = None if guided else normal(x, generator)
    weights = torch.ones(len(model.models), 1, device=x.device)
    weights[odd] = -lam
    for _ in range(steps):
        if change == "blackout":
            place = uniform(x.new_empty(len(x), patches, 2), generator)
        v = leaf(x[live])
        with torch.set_grad_enabled(guided), features(model, list(push or ()) if guided else []) as A:
            z = torch.stack([member(laid_out(v)) for member in model.models])
        said = z.argmax(2)
        agreed = torch.nonzero((said == said[:1]).all(0))[:, 0]
        live = live[agreed]
        if not len(live):
            break
        if chance is None:
            c = said[:, :, None]  # where they agree, the same for all
            value = (weights * z.gather(2, c)[..., 0]).sum(0)
            for name, channel in (push or {}).items():
                if not 0 <= channel < A[name].shape[1]:
                    raise ValueError(f"{name} has the channels 0 to {A[name].shape[1] - 1}, not {channel}")
                value = value + lam_push * A[name][:, channel].reshape(len(v), -1).mean(1)
            g = differentiate(value, v)[agreed]
        else:
            g = chance[live]
        g = allowed(g, change, place[live], size)
        g = g / g.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        x[live] = (v.detach()[agreed] + step * g).clamp(0, 1)
    return x


def check_several(name: str, model: Any) -> None:
    """Raises TypeError for what is no Ensemble, and ValueError for one of fewer than two networks."""
    if not isinstance(model, Ensemble):
        raise TypeError(f"{name} compares the networks of a kit.core.Ensemble, not a {type(model).__name__}")
    if len(model.models) < 2:
        raise ValueError(f"{name} compares two networks or more, and this ensemble has {len(model.models)}")
