"""Linear bounds of a chain over many boxes at once, some of whose ReLUs may be decided (CROWN, with α and β).

    min over the box of  A z_i + a   ≥   A' x + a'   ≥   A' m − |A'| r + a',    m, r the box's middle and half width

going back layer by layer. A ReLU with l < 0 < u lies under the line u (z − l)/(u − l) and above α z, for any α in
[0, 1]; a positive entry of A takes the line below, a negative one that above. Where a ReLU is decided (phase +1: z ≥ 0,
−1: z ≤ 0), β ≥ 0 times ±z may be taken off, since that only lowers what is bounded. Sources: Zhang et al. (CROWN),
NeurIPS 2018; Xu et al. (α-CROWN), ICLR 2021; Wang et al. (β-CROWN), NeurIPS 2021.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kit.certify.verify.chain import Chain


class Hidden(NamedTuple):
    """Bounds of the hidden z_i, each (B, n_i)."""

    low: list[Tensor]
    high: list[Tensor]

    def decided(self, phase: list[Tensor]) -> Hidden:
        """The same where phase (B, n_i) says z ≥ 0 (+1) or z ≤ 0 (−1)."""
        low = [torch.where(p > 0, x.clamp_min(0), x) for x, p in zip(self.low, phase, strict=True)]
        high = [torch.where(p < 0, x.clamp_max(0), x) for x, p in zip(self.high, phase, strict=True)]
        return Hidden(low, high)

    def of(self, rows: Tensor) -> Hidden:
        """Those of some of the boxes."""
        return Hidden([t[rows] for t in self.low], [t[rows] for t in self.high])

    def joined(self, *others: Hidden) -> Hidden:
        """These boxes and then the others'."""
        return Hidden([torch.cat(t) for t in zip(self.low, *(o.low for o in others), strict=True)],
                      [torch.cat(t) for t in zip(self.high, *(o.high for o in others), strict=True)])

    def alpha(self) -> list[Tensor]:
        """CROWN's choice of the lines below: 1 where u > −l, else 0."""
        return [(high > -low).to(low) for low, high in zip(self.low, self.high, strict=True)]

    def unstable(self) -> list[Tensor]:
        """Which ReLUs have l < 0 < u."""
        return [(low < 0) & (high > 0) for low, high in zip(self.low, self.high, strict=True)]


class Found(NamedTuple):
    """What going back gives: the bound (B, m), its coefficients A' (B, m, d), and those at each hidden layer."""

    bound: Tensor
    A: Tensor
    layers: list[Tensor]


def below(
    chain: Chain, A: Tensor, a: Tensor, low: Tensor, high: Tensor, hidden: Hidden, *, alpha: list[Tensor] | None = None,
    beta: list[Tensor] | None = None, phase: list[Tensor] | None = None,
) -> Found:
    """A lower bound on A relu(z_i) + a over each box [low, high] (B, d), given bounds `hidden` of z_1 … z_i.

    A (B, m, n_i), a (B, m); `alpha`, `beta` (B, m, n_j), `phase` (B, n_j). Without α, CROWN's choice.
    """
    layers = []
    alpha = [t[:, None] for t in hidden.alpha()] if alpha is None else alpha
    for j in reversed(range(len(hidden.low))):
        l, u = hidden.low[j][:, None], hidden.high[j][:, None]
        cross = (l < 0) & (u > 0)
        above = torch.where(cross, u / (u - l), (l >= 0).to(l))
        under = torch.where(cross, alpha[j], above)
        shift = torch.where(cross, -above * l, 0.0)
        layers.append(A)
        a = a + (A.clamp_max(0) @ shift.mT)[:, :, 0]
        A = A * torch.where(A > 0, under, above)
        if beta is not None and phase is not None:
            A = A - beta[j] * phase[j][:, None]
        a = a + A @ chain.b[j]
        A = A @ chain.W[j]
    middle, half = (low + high) / 2, (high - low) / 2
    bound = a + (A @ middle[:, :, None])[:, :, 0] - (A.abs() @ half[:, :, None])[:, :, 0]
    return Found(bound, A, layers[::-1])


def outputs_below(chain: Chain, low: Tensor, high: Tensor, hidden: Hidden, **more) -> Found:
    """`below` of the chain's outputs."""
    B = len(low)
    return below(chain, chain.W[-1].expand(B, -1, -1), chain.b[-1].expand(B, -1), low, high, hidden, **more)


def hidden_bounds(
    chain: Chain, low: Tensor, high: Tensor, rounding: list[Tensor], known: Hidden | None = None
) -> Hidden:
    """Bounds of every hidden layer over each box: the best of the interval's, CROWN's, and those `known` of a larger
    box, widened by the rounding.

    CROWN is asked about the ReLUs that the others leave undecided. With ReLUs decided in `known`, a lower bound above
    its upper one says that the part is empty. Cost: for each hidden layer, one way back through those before it.
    """
    found = Hidden([], [])
    middle, half = (low + high) / 2, (high - low) / 2
    for i, (W, b) in enumerate(zip(chain.W[:-1], chain.b[:-1], strict=True)):
        at, width = middle @ W.T + b, half @ W.abs().T + rounding[i]
        l, u = at - width, at + width
        if known is not None:
            l, u = torch.maximum(l, known.low[i]), torch.minimum(u, known.high[i])
        cross = (l < 0) & (u > 0)
        if i and (k := int(cross.sum(1).max())):
            rows = cross.to(torch.uint8).topk(k, 1).indices
            A, a = W[rows], b[rows]
            sides = below(chain, torch.cat([A, -A], 1), torch.cat([a, -a], 1), low, high, found).bound
            off = rounding[i][rows]
            l = l.scatter(1, rows, torch.maximum(l.gather(1, rows), sides[:, :k] - off))
            u = u.scatter(1, rows, torch.minimum(u.gather(1, rows), off - sides[:, k:]))
        found.low.append(l)
        found.high.append(u)
        middle, half = (u.relu() + l.relu()) / 2, (u.relu() - l.relu()) / 2
    return found
