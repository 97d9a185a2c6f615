"""The lp balls of radius eps around an image, cut by the box [0, 1]: distance, projection, steepest step.

`eps` is a number or one number per image (N,), in the units of the pixels, which lie in [0, 1].
"""
from typing import Any, overload

import torch
from torch import Tensor

from kit.core.seeding import Source, normal, uniform


@overload
def column(values: Tensor, like: Tensor) -> Tensor: ...
@overload
def column(values: float | Tensor, like: Tensor) -> float | Tensor: ...
def column(values: float | Tensor, like: Tensor) -> float | Tensor:
    """One number per image, shaped to multiply `like` (N, …)."""
    return values.view(-1, *[1] * (like.dim() - 1)) if isinstance(values, Tensor) and values.dim() else values


class Linf:
    """‖δ‖∞ = max |δ_i| ≤ eps."""

    def __init__(self, eps: float | Tensor):
        self.eps = eps

    @staticmethod
    def norm(delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest point to z in ball ∩ box: a clamp, pixel by pixel."""
        eps: Any = column(self.eps, x)
        return torch.clamp(z - x, -eps, eps).add_(x).clamp_(0, 1)

    @staticmethod
    def step(z: Tensor, g: Tensor, size: float | Tensor) -> Tensor:
        """z + argmax ⟨g, d⟩ over ‖d‖∞ ≤ size: the sign of the gradient."""
        return z + column(size, z) * g.sign()

    def random(self, x: Tensor, source: Source = None) -> Tensor:
        """Uniform in the ball, then projected onto the box."""
        return self.project(x + column(self.eps, x) * uniform(x, source, -1, 1), x)


class L2:
    """‖δ‖₂ = (Σ δ_i²)^½ ≤ eps."""

    def __init__(self, eps: float | Tensor):
        self.eps = eps

    @staticmethod
    def norm(delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest point to z in ball ∩ box, exactly.

        It is clamp(x + s (z − x), 0, 1) for the largest s ≤ 1 that fits the ball (the KKT conditions). Pixels that meet
        the box leave budget to the others, so s only grows from eps/‖z − x‖ and settles after a few rounds.
        """
        d = (z - x).flatten(1)
        room = torch.where(d > 0, 1 - x.flatten(1), x.flatten(1))
        size = d.abs()
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device).reshape(-1, 1)
        s = (eps / size.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp(max=1)
        inside = torch.minimum(size, room).norm(dim=1, keepdim=True) <= eps
        s = torch.where(inside, 1.0, s)
        for _ in range(d.shape[1]):
            full = s * size >= room
            used = torch.where(full, room, 0).square().sum(1, keepdim=True)
            free = torch.where(full, 0, size).square().sum(1, keepdim=True)
            grown = ((eps**2 - used).clamp_min(0) / free.clamp_min(1e-30)).sqrt().clamp(max=1)
            grown = torch.where(inside, 1.0, torch.maximum(s, grown))
            if bool((grown <= s * (1 + 1e-6)).all()):
                break
            s = grown
        return (x + column(s[:, 0], x) * (z - x)).clamp_(0, 1)

    @staticmethod
    def step(z: Tensor, g: Tensor, size: float | Tensor) -> Tensor:
        """z + argmax ⟨g, d⟩ over ‖d‖₂ ≤ size: the normalised gradient (a zero gradient does not move)."""
        length = L2.norm(g)
        scale = torch.as_tensor(size, dtype=g.dtype, device=g.device) / torch.where(length > 0, length, 1)
        return z + column(scale, g) * g

    def random(self, x: Tensor, source: Source = None) -> Tensor:
        """Uniform in the ball (a Gaussian direction, radius eps U^(1/d)), then projected onto the box."""
        radius = uniform(x.flatten(1)[:, 0], source) ** (1 / x[0].numel())
        return self.project(L2.step(x, normal(x, source), self.eps * radius), x)


class L1:
    """‖δ‖₁ = Σ |δ_i| ≤ eps."""

    def __init__(self, eps: float | Tensor):
        self.eps = eps

    @staticmethod
    def norm(delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest point to z in ball ∩ box, exactly.

        It shrinks every |z_i − x_i| by one threshold λ and cuts it at the room r_i left in the box:
        used(λ) = Σ_i clamp(|d_i| − λ, 0, r_i) falls piecewise linearly, with corners at |d_i| and |d_i| − r_i, so the λ
        with used(λ) = eps is found by sorting the corners (as Croce and Hein 2021, Mind the box, do).
        """
        d = (z - x).flatten(1)
        room = torch.where(d > 0, 1 - x.flatten(1), x.flatten(1))
        size = d.abs()
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device).reshape(-1, 1)
        corners, order = torch.cat([size, size - room], 1).sort(1, descending=True)
        slope = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1).gather(1, order).cumsum(1)
        gained = slope[:, :-1] * (corners[:, :-1] - corners[:, 1:])
        used = torch.cat([torch.zeros_like(eps).expand(len(x), 1), gained.cumsum(1)], 1)
        k = torch.searchsorted(used, eps.expand(len(x), 1).contiguous(), right=True).clamp(max=used.shape[1]) - 1
        threshold = corners.gather(1, k) - (eps - used.gather(1, k)) / slope.gather(1, k).clamp_min(1)
        kept = torch.minimum((size - threshold.clamp_min(0)).clamp_min(0), room)
        kept = kept * (eps / kept.sum(1, keepdim=True).clamp_min(1e-30)).clamp(max=1)  # only rounding is left to mend
        return (x + (d.sign() * kept).view_as(x)).clamp_(0, 1)

    @staticmethod
    def step(z: Tensor, g: Tensor, size: float | Tensor) -> Tensor:
        """z + argmax ⟨g, d⟩ over ‖d‖₁ ≤ size and z + d in the box: fill the pixels of largest |g| to the brim."""
        slope, at = g.flatten(1).abs().sort(1, descending=True)
        up, here = g.flatten(1).gather(1, at) > 0, z.flatten(1).gather(1, at)
        room = torch.where(up, 1 - here, here) * (slope > 0)
        size = torch.as_tensor(size, dtype=g.dtype, device=g.device).reshape(-1, 1)
        move = torch.minimum(room, (size - (room.cumsum(1) - room)).clamp_min(0))
        return z + torch.zeros_like(move).scatter_(1, at, torch.where(up, move, -move)).view_as(z)

    def random(self, x: Tensor, source: Source = None) -> Tensor:
        """Uniform in the ball (signed exponentials over their sum, radius eps U^(1/d)), then projected onto the box."""
        radius = uniform(x.flatten(1)[:, 0], source) ** (1 / x[0].numel())
        e = -uniform(x, source).clamp_min(1e-30).log() * uniform(x, source, -1, 1).sign()
        return self.project(x + column(self.eps * radius / L1.norm(e), x) * e, x)


def ball(norm: str, eps: float | Tensor) -> Linf | L2 | L1:
    """The ball of that norm. Raises ValueError for another name, a negative eps, or an l∞ eps above 1."""
    kinds: dict[str, Any] = {"linf": Linf, "l2": L2, "l1": L1}
    if norm not in kinds:
        raise ValueError(f"norm must be 'linf', 'l2' or 'l1', not {norm!r}")
    largest, smallest = (float(eps.max()), float(eps.min())) if isinstance(eps, Tensor) else (float(eps), float(eps))
    if not smallest >= 0:
        raise ValueError(f"eps must be zero or more, not {smallest:g}")
    if norm == "linf" and largest > 1:
        raise ValueError(f"eps = {largest:g} is larger than the range of a pixel, [0, 1]: write {largest:g}/255")
    return kinds[norm](eps)
