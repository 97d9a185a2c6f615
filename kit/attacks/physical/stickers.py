"""One sticker for many photographs: a perturbation in a mask that is added to a sign, and a patch that covers what is
under it. Both are optimised in expectation over where they are seen from (EOT).

    masked_attack     δ* = argmin_δ  mean_i E_T[ℓ(f(T(x_i + W_i(M·δ))), target)] + λ ‖M·δ‖_p + λ_print NPS
    patch             p* = argmax_p  E_{i, A, T}[log f_target(T(A(p, x_i)))],    A a random place, scale and rotation

M is a mask (1, 1, S, S) of 0 and 1, T a view: any function (images, generator) -> images that has a gradient, such as
`Camera`. W_i lays the sticker's own frame onto photograph i: `frames` (N, 2, 3) takes the places of the photograph,
[−1, 1]² from edge to edge, to those of the sticker, as torch's `affine_grid` does. Without frames the two are the same
pixels. The lecture's sum over photographs is a mean here, so that λ means the same for five of them as for fifty.

    model      images (N, C, h, w) in [0, 1] → logits (N, K)      x, y    photographs and their labels (N,)
    target     labels (N,) to be answered; None: any but y        views   T; None: the photograph itself
    batch      photographs, with a view each, in a step; all of them, or a chunk, where it is None. More than there are
               take several views of each
    rule       how a gradient moves the sticker, see kit.core.optimise; None is Adam with the step lr

What is returned has 8 bits, as a file for a printer has, and is to be judged as it is: put it on with `stick` or
`paste`, look through a camera, and ask `kit.core.fooled`.
Each raises ValueError or TypeError for images, labels, masks, frames and numbers that make no sense.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.physical.camera import first_look, is_range
from kit.attacks.physical.printing import palette, printability
from kit.core import (
    Goal,
    Trace,
    adam,
    ball,
    borrowed,
    check_images,
    check_labels,
    check_model,
    check_settings,
    chunk_size,
    cross_entropy,
    laid_out,
    optimise,
    uniform,
)
from kit.core import generator as seeded
from kit.core.goal import Loss
from kit.core.loop import Rule
from kit.core.seeding import Source

Views = Callable[[Tensor, torch.Generator], Tensor]
Place = Callable[[int, Source], Tensor]


def laid(content: Tensor, frames: Tensor | None, like: Tensor) -> Tensor:
    """W: the sticker (1 or N, C, S, S) where the frames put it in the images `like` (N, ·, H, W); zero elsewhere."""
    if frames is None:
        return content
    check_frames(frames, len(like))
    content = content.expand(len(frames), -1, -1, -1)
    grid = F.affine_grid(frames.to(content), [len(frames), content.shape[1], *like.shape[2:]], align_corners=False)
    return F.grid_sample(content, grid, padding_mode="zeros", align_corners=False)


def check_frames(frames: Tensor, many: int) -> None:
    """Frames are a float tensor (N, 2, 3), one for each photograph, without NaN. Raises ValueError."""
    if not isinstance(frames, Tensor) or frames.shape != (many, 2, 3):
        raise ValueError(f"frames must have the shape ({many}, 2, 3), one for each photograph, "
                         f"not {tuple(getattr(frames, 'shape', ())) or type(frames).__name__}")
    if not bool(frames.isfinite().all()):
        raise ValueError("frames hold NaN or infinity")


def _fits(x: Tensor, content: Tensor, mask: Tensor, frames: Tensor | None) -> None:
    """Raise ValueError where a sticker is not of its mask's size, or, without frames, of the photographs'."""
    check_images(x)
    for name, value in (("the sticker", content), ("the mask", mask)):
        if not isinstance(value, Tensor) or value.dim() != 4:
            raise ValueError(f"{name} must be a tensor of 4 axes, not "
                             f"{tuple(getattr(value, 'shape', ())) or type(value).__name__}")
    sizes = {"mask": mask, "sticker": content} | ({"photographs": x} if frames is None else {})
    if len({value.shape[2:] for value in sizes.values()}) > 1:
        said = ", ".join(f"{name} {tuple(value.shape[2:])}" for name, value in sizes.items())
        raise ValueError(f"these must have as many pixels: {said}" + "; or give frames" * (frames is None))
    if content.shape[1] != x.shape[1] or mask.shape[1] != 1:
        raise ValueError(f"the sticker must have the {x.shape[1]} channels of the photographs and the mask 1, not "
                         f"{content.shape[1]} and {mask.shape[1]}")


def stick(x: Tensor, delta: Tensor, mask: Tensor, frames: Tensor | None = None) -> Tensor:
    """x + W(M·δ), cut to [0, 1]. Where the mask does not reach, x is the same bit for bit."""
    _fits(x, delta, mask, frames)
    return (x + laid(mask.to(x) * delta.to(x), frames, x)).clamp(0, 1)


def paste(x: Tensor, p: Tensor, mask: Tensor, frames: Tensor | None = None) -> Tensor:
    """(1 − W(M)) x + W(M·p): the patch covers x. Where the mask does not reach, x is the same bit for bit."""
    _fits(x, p, mask, frames)
    if float(p.detach().min()) < 0 or float(p.detach().max()) > 1:
        raise ValueError("the colours of a patch must lie in [0, 1]")
    mask = mask.to(x)
    return ((1 - laid(mask, frames, x)) * x + laid(mask * p.to(x), frames, x)).clamp(0, 1)


@dataclass(frozen=True)
class Anywhere:
    """Places for a patch: `Anywhere()(n, source)` are n frames (n, 2, 3), each drawn anew.

    The side of the patch's frame is a share of the image's, from U(scale); it is turned by up to `angle` degrees to
    either side, and its middle is uniform where the upright frame lies within the image.
    Source: Brown et al. 2017, whose shares are 0.1 to 1 and whose angle is 22.5.
    """

    scale: tuple[float, float] = (0.3, 0.5)
    angle: float = 22.5

    def __post_init__(self) -> None:
        if not is_range(self.scale) or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be (low, high) with 0 < low ≤ high ≤ 1, not {self.scale}")
        if isinstance(self.angle, list | tuple) or not 0 <= self.angle <= 180:
            raise ValueError(f"angle must be one number from 0 to 180 degrees, to either side, not {self.angle}")

    def __call__(self, n: int, source: Source = None) -> Tensor:
        u = uniform(torch.empty(n, 4), source)
        s = self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 0]
        turn = math.radians(self.angle) * (2 * u[:, 1] - 1)
        middle = (1 - s)[:, None] * (2 * u[:, 2:] - 1)
        c, d = turn.cos() / s, turn.sin() / s
        back = torch.stack([torch.stack([c, d], 1), torch.stack([-d, c], 1)], 1)  # turned back, and to the patch's size
        return torch.cat([back, -back @ middle[:, :, None]], 2)


def masked_attack(
    model: nn.Module, x: Tensor, y: Tensor, *, mask: Tensor, target: Tensor | None = None,
    frames: Tensor | None = None, views: Views | None = None, eps: float = 1.0, lam: float = 0.02, norm: str = "l2",
    lam_print: float = 0.0, inks: Tensor | None = None, steps: int = 100, lr: float = 0.05, batch: int | None = None,
    loss: Loss = cross_entropy, rule: Rule | None = None, generator: torch.Generator | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Robust physical perturbations (RP2): one δ (1, C, S, S) for all photographs x, zero outside the mask, |δ| ≤ eps,

        min_δ  mean_i E_T[ℓ(f(T(x_i + W_i(M·δ))), target)] + λ ‖M·δ‖_p + λ_print mean_i NPS(x_i + M·δ)

    (with −ℓ(·, y) where there is no target). The norm is not squared; NPS is that of the printed colours inside the
    mask, in the `inks` (K, C), or those of `palette`. (The authors' code: λ = 0.02, Adam 0.1, 300 steps or more, and
    λ_print = 0.)
    Cost: `steps` times `batch` forward and backward passes, and the views'.
    Source: Eykholt et al., Robust physical-world attacks on deep learning visual classification, CVPR 2018, equation 3.
    """
    x, goal, source, batch = _checked(
        model, x, y, target, mask, frames, views, generator, batch, eps=eps, lam=lam, lam_print=lam_print, steps=steps,
        lr=lr)
    if frames is None and mask.shape[2:] != x.shape[2:]:
        raise ValueError(f"the mask has {tuple(mask.shape[2:])} pixels and the photographs {tuple(x.shape[2:])}: "
                         "give frames, or a mask of their size")
    inks, mask, size = palette(x.shape[1]) if inks is None else inks, mask.to(x), ball(norm, 1.0).norm
    covers = (laid(mask, frames, x) > 0.5).expand(len(x), -1, -1, -1)

    def penalty(delta: Tensor, rows: Tensor) -> Tensor:
        cost = lam * size(mask * delta)[0] if lam else delta.new_zeros(())
        if lam_print:
            cost = cost + lam_print * printability(put(delta, rows), inks, covers[rows]).mean()
        return cost

    def put(delta: Tensor, rows: Tensor) -> Tensor:
        return stick(x[rows], delta, mask, None if frames is None else frames[rows])

    nothing = x.new_zeros(1, x.shape[1], *mask.shape[2:])
    delta = _climb(model, goal, nothing, put, penalty, lambda v: mask * v.clamp(-eps, eps), views=views, steps=steps,
                   batch=batch, loss=loss, rule=rule or adam(lr), source=source, trace=trace)
    coarse = (255 * delta).round() / 255
    return torch.where(coarse.abs() <= eps, coarse, (255 * delta).trunc() / 255)


def patch(
    model: nn.Module, x: Tensor, y: Tensor, *, mask: Tensor, target: Tensor | None = None,
    place: Place | Tensor | None = None, views: Views | None = None, lam_tv: float = 0.0, lam_print: float = 0.0,
    inks: Tensor | None = None, steps: int = 100, lr: float = 0.05, batch: int | None = None,
    loss: Loss = cross_entropy, rule: Rule | None = None, generator: torch.Generator | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Adversarial patch: the colours p (1, C, S, S) in [0, 1] of a sticker for any scene, zero outside the mask,

        max_p  E_{i, A, T}[log f_target(T(A(p, x_i)))] − λ_tv TV(p) − λ_print NPS(p),

    A(p, x) = `paste` where `place` says: None is `Anywhere()`, a place of each photograph's own drawn at each step; a
    tensor of frames (N, 2, 3) stays. It begins grey. TV is the mean |difference| of neighbours inside the mask.
    (The authors' code: plain descent with the step 5, 500 steps of 16 images, a disc.)
    Cost: `steps` times `batch` forward and backward passes, and the views'.
    Source: Brown et al., Adversarial patch, 2017; with a mask of glasses on faces, Sharif et al., Accessorize to a
    crime, CCS 2016, who add TV and NPS.
    """
    x, goal, source, batch = _checked(
        model, x, y, target, mask, None if callable(place) else place, views, generator, batch,
        lam_tv=lam_tv, lam_print=lam_print, steps=steps, lr=lr)
    inks, mask = palette(x.shape[1]) if inks is None else inks, mask.to(x)
    draw = Anywhere() if place is None else place

    def penalty(p: Tensor, rows: Tensor) -> Tensor:
        cost = lam_tv * unevenness(p, mask) if lam_tv else p.new_zeros(())
        return cost + lam_print * printability(p, inks, mask)[0] if lam_print else cost

    def put(p: Tensor, rows: Tensor) -> Tensor:
        frames = draw[rows] if isinstance(draw, Tensor) else draw(len(rows), source)
        return paste(x[rows], p, mask, frames)

    grey = x.new_full((1, x.shape[1], *mask.shape[2:]), 0.5) * mask
    p = _climb(model, goal, grey, put, penalty, lambda v: mask * v.clamp(0, 1), views=views, steps=steps, batch=batch,
               loss=loss, rule=rule or adam(lr), source=source, trace=trace)
    return (255 * p).round() / 255


def unevenness(p: Tensor, mask: Tensor) -> Tensor:
    """The mean |difference| of neighbours, down and across, of which both lie inside the mask."""
    total, many = p.new_zeros(()), 0.0
    for axis in (2, 3):
        a, b = p.narrow(axis, 1, p.shape[axis] - 1), p.narrow(axis, 0, p.shape[axis] - 1)
        both = mask.narrow(axis, 1, p.shape[axis] - 1) * mask.narrow(axis, 0, p.shape[axis] - 1)
        total, many = total + (both * (a - b).abs()).sum(), many + float(both.sum()) * p.shape[1]
    return total / max(many, 1.0)


def _climb(
    model: nn.Module, goal: Goal, v: Tensor, put: Callable[[Tensor, Tensor], Tensor],
    penalty: Callable[[Tensor, Tensor], Tensor], project: Callable[[Tensor], Tensor], *, views: Views | None,
    steps: int, batch: int, loss: Loss, rule: Rule, source: torch.Generator, trace: Trace | None,
) -> Tensor:
    """The sticker after so many steps up the mean gain of `batch` photographs, less the penalty."""
    many = len(goal.y)

    def objective(v: Tensor, k: int) -> Tensor:
        rows = torch.arange(batch) % many
        if batch % many:  # some of them, others at each step
            rows = torch.randperm(many, generator=source)[rows]
        rows = rows.to(v.device)
        seen = put(v, rows)
        seen = seen if views is None else views(seen, source)
        return (goal[rows].gain(model(laid_out(seen)), loss).mean() - penalty(v, rows))[None]

    if trace is not None:
        trace.clear()
    with borrowed(model, v):
        v = optimise(objective, v, steps=steps, rule=rule, project=project, trace=trace)
    if trace is not None:
        trace.close()
    return v


def _checked(
    model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, mask: Tensor, frames: Tensor | None,
    views: Views | None, generator: torch.Generator | None, batch: int | None, **settings: float,
) -> tuple[Tensor, Goal, torch.Generator, int]:
    """The photographs, what the attack is after, its random numbers, and how many photographs go into a step."""
    check_images(x)
    if isinstance(model, list | tuple):
        raise TypeError("a sticker's attack takes one model: kit.core.Ensemble makes one of several")
    if many := [name for name, value in settings.items() if isinstance(value, Tensor)]:
        raise TypeError(f"{many[0]} must be a number, not a tensor: there is one sticker for all photographs")
    check_settings({**settings, "batch": batch, "generator": generator})
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[:2] != (1, 1):
        raise ValueError(f"mask must be a tensor (1, 1, S, S), not {tuple(getattr(mask, 'shape', ())) or mask!r}")
    if not bool(((mask == 0) | (mask == 1)).all()) or not bool(mask.any()):
        raise ValueError("mask must hold 0 and 1, and a 1 somewhere: use (mask > 0.5).float()")
    if frames is not None:
        check_frames(frames, len(x))
    x, source = x.detach(), seeded() if generator is None else generator
    with borrowed(model, x):
        few = x[:2]
        classes = check_model(model, few if views is None else first_look(views, few))
    check_labels(y, x, classes)
    if target is not None:
        check_labels(target, x, classes, "target")
        if bool((target == y).all()):
            raise ValueError("the target of every photograph is its own label: give another class")
    return x, Goal(y, target), source, batch or min(len(x), chunk_size(x))
