"""The sets of inputs over which a network is bounded, and the least value of linear functions on them.

    least(A) = min ⟨a, x⟩ over x in the set, for every row a of A (N, S, …)
"""
from __future__ import annotations

import torch
from torch import Tensor

from kit.core.balls import ball, column
from kit.core.steps import tiny


class Box:
    """lower ≤ x ≤ upper, tensors (N, …) of any shape: one box for each row. Raises ValueError where one is empty."""

    def __init__(self, lower: Tensor, upper: Tensor):
        if lower.shape != upper.shape or lower.dim() < 2 or not len(lower):
            raise ValueError(f"a box has lower and upper ends of one shape (N, …), not {tuple(lower.shape)} and "
                             f"{tuple(upper.shape)}")
        if not bool((lower <= upper).all()):
            raise ValueError("a box is empty or holds NaN: every lower end must be at most the upper one")
        self.lower, self.upper = lower, upper

    product = True  # every coordinate moves for itself

    def __len__(self) -> int:
        return len(self.lower)

    def least(self, A: Tensor) -> Tensor:
        return least_on_box(A, self.lower, self.upper)


def least_on_box(A: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """min ⟨a, h⟩ over lower ≤ h ≤ upper: ⟨a, middle⟩ − ⟨|a|, half the width⟩, (N, S)."""
    flat, middle, half = A.flatten(2), ((lower + upper) / 2).flatten(1), ((upper - lower) / 2).flatten(1)
    return torch.einsum("nsi,ni->ns", flat, middle) - torch.einsum("nsi,ni->ns", flat.abs(), half)


class ClippedBall:
    """‖x' − x‖ ≤ eps and x' in [0, 1]: what an attack on images may do. `eps` is a number, or one for each image.

    In l∞ it is a box. In l2 and l1 `least` is that of ball and box together, to rounding from below:
    δ_i = −sign(a_i) min(|a_i|/λ, room_i), λ ≥ 0 by bisection on ‖δ‖₂ = eps, and its dual value, which is a lower bound
    for every λ; and in l1 the pixels of largest |a_i| filled to the brim, one after another.
    """

    def __init__(self, x: Tensor, eps: float | Tensor, norm: str = "linf"):
        ball(norm, eps)
        size = column(eps, x)
        self.x, self.norm = x, norm
        self.eps = torch.as_tensor(eps, dtype=x.dtype, device=x.device).reshape(-1, 1)
        self.lower, self.upper = (x - size).clamp(0, 1), (x + size).clamp(0, 1)
        self.product = norm == "linf"

    def __len__(self) -> int:
        return len(self.x)

    def least(self, A: Tensor) -> Tensor:
        if self.norm == "linf":
            return least_on_box(A, self.lower, self.upper)
        a, x = A.flatten(2), self.x.flatten(1)
        size = a.abs()
        room = torch.where(a > 0, x[:, None], 1 - x[:, None])
        return torch.einsum("nsi,ni->ns", a, x) - (self._l1 if self.norm == "l1" else self._l2)(size, room)

    def _l1(self, size: Tensor, room: Tensor) -> Tensor:
        size, at = size.sort(2, descending=True)
        room = room.gather(2, at)
        left = self.eps[:, :, None] - (room.cumsum(2) - room)
        return (size * torch.minimum(room, left.clamp_min(0))).sum(2)

    def _l2(self, size: Tensor, room: Tensor) -> Tensor:
        eps = self.eps.clamp_min(1e-12)
        with torch.no_grad():  # the dual value is stationary in λ: its gradient in a needs none of λ's
            low = torch.zeros_like(size[..., 0])
            high = size.norm(dim=2) / eps  # at it the ball alone is spent
            for _ in range(20):
                middle = (low + high) / 2
                spent = torch.minimum(size / middle.clamp_min(tiny(size))[..., None], room).norm(dim=2)
                low, high = torch.where(spent > eps, middle, low), torch.where(spent > eps, high, middle)
            scale = high.clamp_min(tiny(size))[..., None]
            move = torch.minimum(size / scale, room)
        dual = (size * move - scale / 2 * move.square()).sum(2) + scale[..., 0] / 2 * eps.square()
        return torch.minimum(dual, (size * room).sum(2))


Domain = Box | ClippedBall
