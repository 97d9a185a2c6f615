"""Linear and mixed-integer programs of a chain, solved by HiGHS through scipy: the check of the search, and its leaves.

    y ≥ z,   y ≥ 0,   y ≤ u a,   y ≤ z − l (1 − a),   a ∈ {0, 1}

says y = relu(z) exactly where l ≤ z ≤ u (Tjeng et al., Evaluating robustness of neural networks with mixed integer
programming, ICLR 2019); with 0 ≤ a ≤ 1 it is the triangle that a ReLU's graph is relaxed to. The solver works with
tolerances (1e-7 on constraints): its optimum is a check, and no proof.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.certify.verify.chain import Chain
from kit.certify.verify.linear import Hidden, hidden_bounds, outputs_below


class Optimum(NamedTuple):
    """`value`: the least max of the outputs over the box; `x` (d,): where; `bound`: what the solver proved it exceeds;
    `solved`: whether the two met. A program that ran out of time may have no x."""

    value: float
    x: Tensor | None
    bound: float
    solved: bool


def mixed_integer(
    chain: Chain, low: Tensor, high: Tensor, *, bounds: str = "interval", relaxed: bool = False,
    seconds: float = math.inf,
) -> Optimum:
    """min over low ≤ x ≤ high of max_j output_j, by the program above; with `relaxed`, by its triangles alone.

    `bounds` of the ReLUs' inputs, which the constants l and u are made from: "interval" or "linear" (CROWN's).
    Raises ValueError for other bounds. Cost: exponential in the ReLUs with l < 0 < u.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_array

    low, high = low.double(), high.double()
    if bounds not in ("interval", "linear"):
        raise ValueError(f"bounds must be 'interval' or 'linear', not {bounds!r}")
    hidden = (hidden_bounds(chain, low[None], high[None], chain.rounding(low, high)) if bounds == "linear"
              else intervals(chain, low, high))
    l, u = (torch.cat([t[0] for t in side]).cpu().numpy() for side in (hidden.low, hidden.high))
    d, n = len(low), chain.relus
    y, a, t = d, d + n, d + 2 * n  # where the y, the a and the largest output begin among the variables
    rows, least, most = [], [], []

    def add(entries: list[tuple[int, np.ndarray | float]], lo: float, hi: float) -> None:
        rows.append(entries)
        least.append(lo)
        most.append(hi)

    before, j = 0, 0
    for i, (W, b) in enumerate(zip(chain.W, chain.b, strict=True)):
        w, c = W.cpu().numpy(), b.cpu().numpy()
        for k in range(len(c)):
            z = [(before, w[k])]
            if i == len(chain.W) - 1:
                add([(before, -w[k]), (t, 1.0)], c[k], math.inf)  # t ≥ output
                continue
            if l[j] >= 0:
                add([(before, -w[k]), (y + j, 1.0)], c[k], c[k])
            elif u[j] > 0:
                add([(before, -w[k]), (y + j, 1.0)], c[k], math.inf)
                add([(y + j, 1.0), (a + j, -u[j])], -math.inf, 0.0)
                add([(z[0][0], -z[0][1]), (y + j, 1.0), (a + j, -l[j])], -math.inf, c[k] - l[j])
            j += 1
        before = y + j - len(c) if i < len(chain.W) - 1 else before
    matrix = lil_array((len(rows), t + 1))
    for r, entries in enumerate(rows):
        for at, values in entries:
            size = np.size(values)
            matrix[[r], at : at + size] = np.reshape(values, (1, size))
    lower = np.concatenate([low.cpu().numpy(), np.zeros(2 * n), [-np.inf]])
    upper = np.concatenate([high.cpu().numpy(), np.maximum(u, 0), ((l < 0) & (u > 0)).astype(float), [np.inf]])
    whole = np.concatenate([np.zeros(d + n), np.full(n, 0 if relaxed else 1), [0]])
    cost = np.zeros(t + 1)
    cost[t] = 1
    options = {} if math.isinf(seconds) else {"time_limit": seconds}
    found = milp(cost, constraints=LinearConstraint(matrix.tocsr(), least, most), bounds=Bounds(lower, upper),
                 integrality=whole, options=options)
    x = None if found.x is None else torch.as_tensor(found.x[:d]).to(low).clamp(low, high)
    proven = found.get("mip_dual_bound")
    value = math.inf if found.fun is None else float(found.fun)
    bound = value if found.success and proven is None else -math.inf if proven is None else float(proven)
    return Optimum(value, x, bound, bool(found.success))


def intervals(chain: Chain, low: Tensor, high: Tensor) -> Hidden:
    """Bounds of every hidden layer by interval arithmetic alone: W m + b ± |W| r, m and r middle and half width."""
    found = Hidden([], [])
    middle, half = (low + high)[None] / 2, (high - low)[None] / 2
    for W, b, off in zip(chain.W[:-1], chain.b[:-1], chain.rounding(low, high), strict=False):
        at, width = middle @ W.T + b, half @ W.abs().T + off
        found.low.append(at - width)
        found.high.append(at + width)
        top, bottom = (at + width).relu(), (at - width).relu()
        middle, half = (top + bottom) / 2, (top - bottom) / 2
    return found


def last_word(
    chain: Chain, low: Tensor, high: Tensor, phase: tuple[Tensor, ...], hidden: Hidden, row: int,
    rounding: list[Tensor], penalty: float = 1e4,
) -> tuple[float, Tensor | None]:
    """What is proven about the largest output where every ReLU is decided, and the program's point x (d,).

    There the chain is affine, and  min t + penalty · s  with  t ≥ every output,  s ≥ 0 and ± z_j ≥ −s on the decided
    side  is a linear program. Its multipliers are the β (and the outputs' weights) of a bound that is computed here
    again, so that the program's tolerances matter to no proof.
    """
    from scipy.optimize import linprog

    part = Hidden([t[row : row + 1] for t in hidden.low], [t[row : row + 1] for t in hidden.high])
    signs = torch.cat(phase)
    Z, z, M, c = affine(chain, part)
    asked = signs != 0
    d = len(low)
    A = torch.cat([torch.cat([M, -torch.ones(len(c), 1).to(M), torch.zeros(len(c), 1).to(M)], 1),
                   torch.cat([-signs[asked, None] * Z[asked], torch.zeros(int(asked.sum()), 1).to(M),
                              -torch.ones(int(asked.sum()), 1).to(M)], 1)])
    b = torch.cat([-c, signs[asked] * z[asked]])
    cost = np.concatenate([np.zeros(d), [1.0, penalty]])
    limits = [*zip(low.tolist(), high.tolist(), strict=True), (None, None), (0, None)]
    found = linprog(cost, A.cpu().numpy(), b.cpu().numpy(), bounds=limits, method="highs")
    if found.x is None:
        return -math.inf, None
    weights = torch.as_tensor(-found.ineqlin.marginals).to(M).clamp_min(0)
    share = weights[: len(c)] / weights[: len(c)].sum().clamp_min(1e-300)
    beta = torch.zeros_like(signs)
    beta[asked] = weights[len(c) :]
    sizes = [len(p) for p in phase]
    together = chain.ended(share[None], torch.zeros(1).to(M))
    bound = outputs_below(together, low[None], high[None], part, beta=list(beta[None, None].split(sizes, 2)),
                  phase=[p[None] for p in phase]).bound[0, 0]
    off = (share * rounding[-1]).sum() + len(chain.W) * (beta * torch.cat(rounding[:-1])).sum()
    return float(bound - off), torch.as_tensor(found.x[:d]).to(low).clamp(low, high)


def affine(chain: Chain, hidden: Hidden) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where every ReLU is decided: hidden z = Z x + z0 (Σ n_i, d), and outputs M x + c (m, d)."""
    M, c = chain.W[0], chain.b[0]
    Zs, zs = [], []
    for i in range(len(chain.W) - 1):
        Zs.append(M)
        zs.append(c)
        on = (hidden.low[i][0] >= 0).to(M)
        M, c = chain.W[i + 1] @ (on[:, None] * M), chain.W[i + 1] @ (on * c) + chain.b[i + 1]
    return torch.cat(Zs), torch.cat(zs), M, c
