"""The occluder: the least δ that hides a class, what it leaves of an image, and the changes t it has to survive."""
from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Goal, chunks, generator, gradient, laid_out, uniform, warn
from kit.core.seeding import Source

GROWTH = 0.1  # by which log c grows or falls in a step of the occluder


def occluder(
    model: nn.Module, x: Tensor, y: int, *, noise: float = 0.1, degrees: float = 15.0, kappa: float = 1.0,
    share: float = 0.95, steps: int = 100, step: float = 0.02, batch: int = 24, source: torch.Generator | None = None,
) -> Tensor:
    """δ* (1, C, H, W) for images x (N, C, H, W) of the class y, by proximal steps with a weight c that learns.

        min_δ ‖δ‖₁ + c · mean_{i,t} max(0, κ − lead(t(x_i − δ))),     lead = max_{j≠y} z_j − z_y,   t: none, noise, turn

        m ← (m + g)/2,   δ ← soft(δ − η c m, η),   |δ| ≤ 1,   g the gradient of the mean over `batch` random images

    soft shrinks every |δ_j| by η, which is the step of ‖δ‖₁, and leaves zeros. c begins where the largest |g| just
    outweighs it, and is multiplied by e^{±0.1} in each step: up while the constraints hold for less than `share` of the
    batch, else down. η falls linearly from `step` to a tenth. Every tenth step of the second half, and at the end, all
    N images are asked; returned is the smallest δ with which the share holds, or, with a warning, the nearest to it.
    The model is used as it is: wrap the call in `borrowed`.
    """
    draws = source or generator()
    v, m, c = torch.zeros_like(x[:1]), torch.zeros_like(x[:1]), 0.0
    held = torch.empty(0)

    def hinge(v: Tensor, images: Tensor) -> Tensor:
        nonlocal held
        versions = transformed(occluded(images, v), noise, degrees, draws)
        goal = Goal(torch.full((len(versions) * len(images),), y, device=x.device))
        z = model(laid_out(torch.cat(versions)))
        held = goal.reached(z.detach()).view(len(versions), -1).all(0)
        return -F.relu(kappa - goal.lead(z)).mean()[None]

    best: tuple[bool, float, Tensor] | None = None
    for k in range(steps):
        rows = torch.randperm(len(x), generator=draws, device=draws.device)[:batch].to(x.device)
        _, g = gradient(partial(hinge, images=x[rows]), v)
        if k == 0:
            if not bool(g.any()):
                raise ValueError("the model's answer does not change with the images of this class: its gradient is 0")
            c = 1 / float(g.abs().max())
        c *= math.exp(GROWTH if float(held.double().mean()) < share else -GROWTH)
        m = (m + g) / 2
        eta = step * (1 - 0.9 * k / steps)
        v = v + eta * c * m
        v = (v.sign() * (v.abs() - eta).clamp_min(0)).clamp(-1, 1)
        if k == steps - 1 or (k >= steps // 2 and k % 10 == 0):
            with torch.no_grad():
                everywhere = []
                for part in chunks(x):
                    hinge(v, x[part])
                    everywhere.append(held)
            reached = float(torch.cat(everywhere).double().mean())
            enough = reached >= share
            rank = -float(v.abs().sum()) if enough else reached
            if best is None or (enough, rank) > best[:2]:
                best = enough, rank, v
    assert best is not None
    if not best[0]:
        warn(f"the constraints hold for {best[1]:.0%} of the fitted images, not for {share:.0%}: use more steps, a "
             "larger step, or a smaller share")
    return best[2]


def occluded(x: Tensor, delta: Tensor) -> Tensor:
    """x − δ, cut to [0, 1]: one δ (1, C, H, W) for all images."""
    return (x - delta).clamp(0, 1)


def shuffled(delta: Tensor, source: torch.Generator | None = None) -> Tensor:
    """The control: the values of δ at random places, each with a random sign, so that every norm is the same."""
    source = source or generator()
    order = torch.randperm(delta.numel(), generator=source, device=source.device).to(delta.device)
    signs = uniform(delta, source, -1, 1).sign()
    return delta.flatten()[order].view_as(delta) * signs


def transformed(x: Tensor, noise: float, degrees: float, source: Source, all_three: bool = False) -> list[Tensor]:
    """x, x + U(−noise, noise) cut to [0, 1], and x turned by U(−degrees, degrees); those of size 0 only if all_three.

    What a rotation brings in from outside repeats the edge.
    """
    versions = [x]
    if noise or all_three:
        versions.append((x + uniform(x, source, -noise, noise)).clamp(0, 1))
    if degrees or all_three:
        angle = math.radians(degrees)
        versions.append(rotated(x, uniform(x[:, 0, 0, 0], source, -angle, angle)))
    return versions


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Each image turned about its centre by its angle (N,), in radians, bilinearly."""
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    aspect = x.shape[2] / x.shape[3]
    rows = [torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
