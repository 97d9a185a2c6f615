"""The four terms of RTS, what stands in the place of pixels, and which classes are asked for: see `kit.explain.rts`."""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core import alike
from kit.explain.metrics import blurred

POWER, TINY, BORDER = 0.3, 5e-4, 0.3  # of the area; of the smoothness
BLUR = 11 / 224  # σ in sides of the image; their 55 pixels are 5 σ
COLOUR, COLOUR_NOISE, IMAGE_NOISE = 0.165, 0.055, 0.015  # their 0.33, 0.11 and 0.03, of images in [−1, 1]
FAKES = 0.3  # the share of classes asked for that are not there, in phase two; in phase one it is a half
WEIGHT_DECAY = 1e-4  # of both phases


class Terms(NamedTuple):
    """The four terms of the objective, not weighted, (N,) each."""

    area: Tensor
    smooth: Tensor
    preserve: Tensor
    destroy: Tensor


def area(mask: Tensor) -> Tensor:
    """Mean over the pixels of (m + 0.0005)^0.3: (N,). The power makes little everywhere dearer than much in places."""
    return (mask + TINY).pow(POWER).mean((1, 2))


def smoothness(mask: Tensor) -> Tensor:
    """½ (Σ (differences of neighbours)² + 0.3 Σ_border m²): sums over the pixels (N,). Corners are counted twice."""
    steps = mask.diff(dim=1).square().sum((1, 2)) + mask.diff(dim=2).square().sum((1, 2))
    border = sum(side.square().sum(1) for side in (mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]))
    return (steps + BORDER * border) / 2


def masked(x: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Φ(x, m) = m ⊙ x + (1 − m) ⊙ x̃, not cut to [0, 1]: every image has its own x̃, and a little noise on x.

    x̃ is x blurred with σ = side · 11/224, or one colour 0.5 ± 0.165 with noise of 0.055, with equal probability.
    """
    generator = alike(generator)

    def normal(sigma: float) -> Tensor:
        return sigma * torch.randn(x.shape, generator=generator).to(x)

    def uniform(channels: int) -> Tensor:
        return torch.rand(len(x), channels, 1, 1, generator=generator).to(x)

    x = x + normal(IMAGE_NOISE)
    colour = 0.5 + COLOUR * (2 * uniform(x.shape[1]) - 1) + normal(COLOUR_NOISE)
    sigma = BLUR * max(x.shape[2:])
    blur = blurred(x, 2 * round(2.5 * sigma) + 1, sigma)
    return mask[:, None] * x + (1 - mask[:, None]) * torch.where(uniform(1) < 0.5, blur, colour)


def selection(pooled: Tensor, y: Tensor, classes: int) -> Tensor:
    """argmin over e (classes, K) of E[½ softplus(−⟨Ā, e_y⟩) + ½ mean_{c≠y} softplus(⟨Ā, e_c⟩)] + 10⁻⁴ ½ ‖e‖².

    Ā (N, K) are the maps' means over the places: the cross-entropy of "class c is there" where half of the classes
    asked for are not. The authors take 8500 steps on draws of c; it is convex, so here L-BFGS takes its expectation.
    """
    e = torch.zeros(classes, pooled.shape[1], device=pooled.device, requires_grad=True)
    pooled, there = pooled.to(e.dtype), F.one_hot(y, classes).bool()
    solver = torch.optim.LBFGS([e], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        s = pooled @ e.T
        fakes = F.softplus(s).masked_fill(there, 0).sum(1) / (classes - 1)
        value = (F.softplus(-s[there]) + fakes).mean() / 2 + WEIGHT_DECAY * e.square().sum() / 2
        solver.zero_grad()
        (e.grad,) = torch.autograd.grad(value, e)
        return value

    solver.step(loss)
    return e.detach()


def asked(y: Tensor, classes: int, generator: torch.Generator, fakes: float = FAKES) -> tuple[Tensor, Tensor]:
    """The classes asked for (N,): y, or with probability `fakes` any other, all alike; and whether it is y."""
    other = torch.randint(1, classes, y.shape, generator=generator).to(y.device)
    real = (torch.rand(y.shape, generator=generator) >= fakes).to(y.device)
    return torch.where(real, y, (y + other) % classes), real
