"""Support vector machines as poisoning needs them: which points stand on the margin, and the hinge's gradient."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def alpha_cases(g: torch.Generator) -> Iterator[Case]:
    for C in (1.0, 5.0):
        alpha = C * torch.rand(12, generator=g)
        alpha[:3], alpha[3:7] = 0.0, C
        yield alpha[torch.randperm(12, generator=g)], C


exercise(
    "svm-margin",
    "svm_margin(alpha, C) -> (n,) bool, which points lie exactly on the margin, and so move with the machine",
    lambda alpha, C: (alpha > 0) & (alpha < C), alpha_cases,
    [
        ("no-op", lambda alpha, C: torch.zeros(len(alpha), dtype=torch.bool), ["you found none.", "0 < α < C."]),
        ("SVs outside the margin", lambda alpha, C: alpha > 0,
         ["yours has the support vectors that are on the wrong side as well.",
          "at α = C a point is inside of the margin or beyond: only 0 < α < C lies on it."]),
        ("those at the bound", lambda alpha, C: alpha >= C,
         ["those are the points that violate the margin.", "α < C is what leaves α free to move."]),
        ("no support vectors", lambda alpha, C: alpha == 0, ["those have no part in the machine.", "α > 0."]),
    ],
)


def hinge_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (9, 15):
        yield 2 * torch.randn(n, generator=g), 2 * torch.randint(2, (n,), generator=g) - 1


def hinge_gradient(f: Tensor, y: Tensor) -> Tensor:
    return torch.where(y * f < 1, -y.to(f.dtype), torch.zeros_like(f))


exercise(
    "hinge-gradient", "hinge_gradient(f, y) -> (n,), the derivative of Σ max(0, 1 − y f) by each f",
    hinge_gradient, hinge_cases,
    [
        ("a mask of zeros", lambda f, y: torch.zeros_like(f),
         ["your gradient is zero everywhere.", "where y f < 1 it is −y: which way round is your mask?"]),
        ("no hinge", lambda f, y: -y.to(f.dtype),
         ["a point beyond the margin costs nothing.", "where y f ≥ 1 the derivative is 0."]),
        ("mask inverted", lambda f, y: torch.where(y * f < 1, torch.zeros_like(f), -y.to(f.dtype)),
         ["your gradient is on where the loss is flat.", "it counts where y f < 1."]),
        ("sign error", lambda f, y: -hinge_gradient(f, y), ["your gradient points down.", "d(1 − y f)/df = −y."]),
        ("mean for sum", lambda f, y: hinge_gradient(f, y) / len(f),
         ["yours shrinks with the number of points.", "the loss is a sum: do not divide by n."]),
        ("the perceptron's", lambda f, y: torch.where(y * f < 0, -y.to(f.dtype), torch.zeros_like(f)),
         ["points that are right, but within the margin, count as well.", "the hinge begins at y f = 1, not at 0."]),
    ],
)
