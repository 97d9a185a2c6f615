"""What a server makes of the clients' updates: Δ (n, P), one row each, and who sent them (n,), into one update (P,).

    mean                 federated averaging                   median      of each weight
    geometric_median     the nearest to all                    bounded     the mean of shortened updates
    FoolsGold            less weight for those who agree

All take (updates, who), so that a server is exchanged by exchanging one word. Cost: none of the network's passes.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Aggregate = Callable[[Tensor, Tensor], Tensor]


def mean(updates: Tensor, who: Tensor) -> Tensor:
    """(1/n) Σ Δ_i. One client alone can move it as far as it likes. Source: McMahan et al., AISTATS 2017."""
    return updates.mean(0)


def median(updates: Tensor, who: Tensor) -> Tensor:
    """The median of each weight; of an even number of clients the mean of the middle two. Source: Yin et al. 2018."""
    ordered, n = updates.sort(0).values, len(updates)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def geometric_median(updates: Tensor, who: Tensor, *, iterations: int = 10, near: float = 1e-6) -> Tensor:
    """argmin_v Σ ‖v − Δ_i‖₂, by `iterations` of Weiszfeld from the mean; `near` is the least distance that counts.

        v ← Σ w_i Δ_i / Σ w_i        w_i = 1 / max(‖v − Δ_i‖, near)

    Source: Pillutla, Kakade and Harchaoui, Robust aggregation for federated learning (RFA), 2019.
    """
    v = updates.mean(0)
    for _ in range(iterations):
        w = 1 / (updates - v).norm(dim=1).clamp_min(near)
        v = w @ updates / w.sum()
    return v


def bounded(limit: float) -> Aggregate:
    """The mean of Δ_i · min(1, limit / ‖Δ_i‖₂): no client moves it by more than limit / n. Source: Sun et al. 2019."""
    if not limit > 0:
        raise ValueError(f"the limit is a norm above 0, not {limit:g}")

    def shortened(updates: Tensor, who: Tensor) -> Tensor:
        norms = updates.norm(dim=1, keepdim=True)
        return (updates * (limit / norms.clamp_min(limit))).mean(0)

    return shortened


class FoolsGold:
    """(1/n) Σ α_i Δ_i, where α_i is small for clients whose updates so far, summed, point where another's do.

        c_ij = cos(Σ Δ_i, Σ Δ_j)    c_ij ← c_ij · v_i / v_j  where v_j > v_i = max_j c_ij
        α_i = 1 − max_j c_ij, divided by the largest        α_i ← clip(log(α_i / (1 − α_i)) + 1/2, 0, 1)

    Many attackers with one aim look alike; honest clients with images of their own do not. It remembers what each
    client sent, so that every training needs a new one. Source: Fung, Yoon and Beschastnikh 2018, algorithm 1.
    """

    def __init__(self) -> None:
        self.sent: dict[int, Tensor] = {}
        self.weights = torch.ones(0)

    def __call__(self, updates: Tensor, who: Tensor) -> Tensor:
        for i, update in zip(who.tolist(), updates, strict=True):
            self.sent[i] = self.sent[i] + update if i in self.sent else update.clone()
        if len(updates) == 1:
            return updates[0]
        h = torch.nn.functional.normalize(torch.stack([self.sent[i] for i in who.tolist()]), dim=1)
        c = (h @ h.T).fill_diagonal_(-torch.inf)
        v = c.max(1).values
        c = torch.where((v[None] > v[:, None]) & (v[None] > 0), c * v[:, None] / v[None], c)
        alpha = (1 - c.max(1).values).clamp(0, 1)
        alpha = (alpha / alpha.max().clamp_min(1e-12)).clamp(1e-12, 0.99)
        self.weights = ((alpha / (1 - alpha)).log() + 0.5).clamp(0, 1)
        return self.weights @ updates / len(updates)
