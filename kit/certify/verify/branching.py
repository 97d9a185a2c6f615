"""Branch and bound: is there a point of a box at which every one of m outputs is at most zero?

A part of the box is closed once one output is bounded above zero on all of it; otherwise it is divided, into two boxes
along one input, or into the two sides of one ReLU. An answer is "safe" when nothing is left, "unsafe" with a point that
was evaluated, and "unknown" when the budget is spent. Bounds and evaluations are in float64, moved outward by what
rounding may do to them (`Chain.rounding`), so that neither of the first two is a matter of rounding.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kit.certify.verify.chain import Chain
from kit.certify.verify.linear import Found, Hidden, hidden_bounds, outputs_below
from kit.certify.verify.programs import last_word
from kit.core.loop import Memory, adam

FEW = 10  # up to so many inputs, a box is divided along one of them


@dataclass
class Verdict:
    """`answer`: "safe", "unsafe" or "unknown". `x` (d,): the point that is unsafe, else None. `bound`: what the least
    max of the outputs is proven to exceed. `nodes`: how many parts were bounded. `seconds`: how long it took."""

    answer: str
    x: Tensor | None
    bound: float
    nodes: int
    seconds: float


class Budget:
    """How much may still be spent: parts of the box, and seconds."""

    def __init__(self, max_nodes: int, seconds: float):
        self.max_nodes, self.seconds, self.nodes, self.start = max_nodes, seconds, 0, time.perf_counter()

    def spent(self) -> bool:
        return self.nodes >= self.max_nodes or self.passed() >= self.seconds

    def passed(self) -> float:
        return time.perf_counter() - self.start


def search(
    chain: Chain, low: Tensor, high: Tensor, *, split: str = "auto", max_nodes: int = 100_000,
    seconds: float = math.inf, batch: int = 64, steps: int = 4,
) -> Verdict:
    """Whether some x in the box low ≤ x ≤ high (d,) makes every output of the chain (m,) at most zero: "unsafe".

    `split`: "input" divides the box along an input, "relu" at a ReLU; "auto" takes inputs where there are ten or fewer.
    `batch` parts are bounded together; `steps` of gradient ascent choose α and β where ReLUs are divided. The first
    guesses are `falsify`'s. Raises ValueError for a box that is none. Cost: `max_nodes` bounds, the last batch whole.
    """
    if split not in ("auto", "input", "relu"):
        raise ValueError(f"split must be 'auto', 'input' or 'relu', not {split!r}")
    low, high = low.double(), high.double()
    if low.shape != high.shape or low.shape != chain.W[0].shape[1:] or not bool((low <= high).all()):
        raise ValueError(f"a box is low ≤ high, both ({chain.W[0].shape[1]},): not {tuple(low.shape)} and "
                         f"{tuple(high.shape)} with low above high in {int((low > high).sum())} places")
    budget = Budget(max_nodes, seconds)
    rounding = chain.rounding(low, high)
    point = falsify(chain, low, high, rounding[-1])
    if point is not None:
        return Verdict("unsafe", point, -math.inf, 0, budget.passed())
    by_input = split == "input" or (split == "auto" and len(low) <= FEW) or not chain.relus
    divide: Callable = split_inputs if by_input else split_relus
    answer, point, bound = divide(chain, low, high, rounding, budget, batch, steps)
    return Verdict(answer, point, bound, budget.nodes, budget.passed())


def unsafe(chain: Chain, x: Tensor, rounding: Tensor) -> Tensor:
    """Which points (B, d) make every output at most zero, by more than rounding: (B,) bool."""
    return (chain(x) <= -rounding).all(1)


def falsify(
    chain: Chain, low: Tensor, high: Tensor, rounding: Tensor, starts: int = 32, steps: int = 30
) -> Tensor | None:
    """A point that is unsafe, or None: signed gradient descent on the largest output, from the middle and at random."""
    source = torch.Generator().manual_seed(0)
    x = low + (high - low) * torch.rand(starts, len(low), generator=source, dtype=low.dtype).to(low)
    x[0] = (low + high) / 2
    for k in range(steps + 1):
        if bool((hit := unsafe(chain, x, rounding)).any()):
            return x[hit][0]
        with torch.enable_grad():
            at = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(chain(at).amax(1).sum(), at)
        x = torch.clamp(x - 0.25 * 0.9**k * (high - low) * g.sign(), low, high)
    return None


def split_inputs(
    chain: Chain, low: Tensor, high: Tensor, rounding: list[Tensor], budget: Budget, batch: int, steps: int
) -> tuple[str, Tensor | None, float]:
    """Divides boxes along the input that moves the bounds most, Σ |A'_j| · width_j; the least bounded box is next."""
    lows, highs, score = low[None], high[None], torch.full_like(low[:1], -math.inf)
    known = hidden_bounds(chain, lows, highs, rounding)
    opposite = Chain([*chain.W[:-1], -chain.W[-1]], [*chain.b[:-1], -chain.b[-1]])
    closed = math.inf
    while len(score):
        if budget.spent():
            return "unknown", None, min(closed, float(score.min()))
        order = score.argsort()
        now, later = order[:batch], order[batch:]
        l, h = lows[now], highs[now]
        hidden = hidden_bounds(chain, l, h, rounding, known.of(now))
        found = outputs_below(chain, l, h, hidden)
        budget.nodes += len(now)
        best, A = together(found, l, h, rounding[-1])
        if steps and bool((weak := best <= 0).any()):
            best[weak], A[weak] = raised(chain, l[weak], h[weak], hidden.of(weak), rounding[-1], steps)
        points = torch.where(A > 0, l, h)
        if bool((hit := unsafe(chain, points, rounding[-1])).any()):
            return "unsafe", points[hit][0], -math.inf
        if bool((shut := best > 0).any()):
            closed = min(closed, float(best[shut].min()))
        l, h, best = l[~shut], h[~shut], best[~shut]
        hidden = hidden.of(~shut)
        slopes = found.A[~shut].abs().sum(1) + outputs_below(opposite, l, h, hidden).A.abs().sum(1)
        at = (slopes * (h - l)).argmax(1, keepdim=True)
        cut = ((l + h) / 2).gather(1, at)
        if bool(((cut <= l.gather(1, at)) | (cut >= h.gather(1, at))).any()):
            least = torch.cat([best, score[later]]).min()
            return "unknown", None, min(closed, float(least))  # a box as thin as rounding allows
        lows = torch.cat([lows[later], l, l.scatter(1, at, cut)])
        highs = torch.cat([highs[later], h.scatter(1, at, cut), h])
        score = torch.cat([score[later], best, best])
        known = known.of(later).joined(hidden, hidden)
    return "safe", None, closed


def together(found: Found, low: Tensor, high: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """What the largest output exceeds on each box (B,), and the coefficients of that bound (B, d).

    Not only the best output's own bound: where t f + (1 − t) g > 0 everywhere, f or g is positive at each point. The
    bound of two outputs is concave in t and has its corners where a coefficient changes its sign.
    """
    A, bound = found.A, found.bound - rounding
    m = A.shape[1]
    middle, half = (low + high) / 2, (high - low) / 2
    if m > 1:
        i, j = torch.triu_indices(m, m, 1, device=A.device)
        f, g = A[:, i], A[:, j]
        t = (g / (g - f)).nan_to_num(0.0).clamp(0, 1)[..., None]  # (B, pairs, d, 1)
        mixed = t * f[:, :, None] + (1 - t) * g[:, :, None]
        a = bound - (A @ middle[:, :, None])[..., 0] + (A.abs() @ half[:, :, None])[..., 0]
        a = t[..., 0] * a[:, i, None] + (1 - t[..., 0]) * a[:, j, None]
        value = a + (mixed * middle[:, None, None]).sum(3) - (mixed.abs() * half[:, None, None]).sum(3)
        bound, A = torch.cat([bound, value.flatten(1)], 1), torch.cat([A, mixed.flatten(1, 2)], 1)
    best, row = bound.max(1)
    return best, A[torch.arange(len(A), device=A.device), row]


def raised(
    chain: Chain, low: Tensor, high: Tensor, hidden: Hidden, rounding: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """What `together` says after `steps` of signed gradient ascent on α, from CROWN's choice: bounds (B,), their A."""
    alpha = [a[:, None].repeat(1, len(chain.b[-1]), 1) for a in hidden.alpha()]
    best, A = torch.full_like(low[:, 0], -math.inf), torch.zeros_like(low)
    for k in range(steps + 1):
        with torch.enable_grad():
            a = [t.requires_grad_(k < steps) for t in alpha]
            found = outputs_below(chain, low, high, hidden, alpha=a)
            g = torch.autograd.grad(found.bound.sum(), a) if k < steps else []
        bound, slopes = together(Found(found.bound.detach(), found.A.detach(), []), low, high, rounding)
        better = bound > best
        best, A = torch.where(better, bound, best), torch.where(better[:, None], slopes, A)
        alpha = [(t.detach() + 0.4 * 0.8**k * d.sign()).clamp(0, 1) for t, d in zip(alpha, g, strict=False)]
    return best, A


@dataclass
class Parts:
    """Parts of the box: which side of which ReLU each is on (B, Σ n_i), the multipliers it begins with, its bound."""

    phase: Tensor
    alpha: Tensor
    beta: Tensor
    score: Tensor

    def __getitem__(self, rows: Tensor) -> Parts:
        return Parts(self.phase[rows], self.alpha[rows], self.beta[rows], self.score[rows])

    def __len__(self) -> int:
        return len(self.score)

    def with_others(self, *others: Parts) -> Parts:
        every = (self, *others)
        return Parts(*(torch.cat([getattr(p, name) for p in every]) for name in ("phase", "alpha", "beta", "score")))


def split_relus(
    chain: Chain, low: Tensor, high: Tensor, rounding: list[Tensor], budget: Budget, batch: int, steps: int
) -> tuple[str, Tensor | None, float]:
    """Divides at the ReLU whose line above costs the bound most; where all are decided, a linear program has the word.

    Each part has bounds of hidden layers of its own, from the whole box's, cut where a ReLU is decided.
    """
    sizes = [len(b) for b in chain.b[:-1]]
    whole = hidden_bounds(chain, low[None], high[None], rounding)
    m, n = len(chain.b[-1]), sum(sizes)
    parts = Parts(torch.zeros(1, n, dtype=low.dtype, device=low.device),
                  torch.cat(whole.alpha(), 1)[:, None].repeat(1, m, 1),
                  torch.zeros(1, m, n, dtype=low.dtype, device=low.device), torch.full_like(low[:1], -math.inf))
    closed = math.inf
    while len(parts):
        if budget.spent():
            return "unknown", None, min(closed, float(parts.score.min()))
        order = parts.score.argsort()
        now, later = parts[order[:batch]], parts[order[batch:]]
        found, off, hidden, now = ascended(chain, low, high, whole, now, rounding, steps)
        budget.nodes += len(now)
        best, A = together(found, low.expand(len(now), -1), high.expand(len(now), -1), off)
        empty = torch.stack([(l > h).any(1) for l, h in zip(hidden.low, hidden.high, strict=True)]).any(0)
        best = torch.where(empty, math.inf, best)
        points = torch.where(A > 0, low, high)
        if bool((hit := unsafe(chain, points, rounding[-1])).any()):
            return "unsafe", points[hit][0], -math.inf
        free = torch.cat(hidden.unstable(), 1)
        for i in ((best <= 0) & ~free.any(1)).nonzero()[:, 0].tolist():
            best[i], point = last_word(chain, low, high, now.phase[i].split(sizes), hidden, i, rounding)
            if point is not None and bool(unsafe(chain, point[None], rounding[-1])[0]):
                return "unsafe", point, -math.inf
            if best[i] <= 0:  # neither: decided by less than rounding and the program's tolerance
                return "unknown", None, min(closed, float(torch.cat([best, later.score]).min()))
        if bool((shut := best > 0).any()):
            closed = min(closed, float(best[shut].min()))
        left = (~shut).nonzero()[:, 0]
        if not len(left):
            parts = later
            continue
        at = costliest(found, hidden)[left]
        now, best = now[left], best[left]
        sides = []
        for side in (1.0, -1.0):
            phase = now.phase.clone()
            phase[torch.arange(len(left)), at] = side
            sides.append(Parts(phase, now.alpha, now.beta, best))
        parts = later.with_others(*sides)
    return "safe", None, closed


def ascended(
    chain: Chain, low: Tensor, high: Tensor, whole: Hidden, parts: Parts, rounding: list[Tensor], steps: int,
    lr: float = 0.2,
) -> tuple[Found, Tensor, Hidden, Parts]:
    """Bounds with α and β raised by `steps` of Adam from those of the parts, and what rounding may do to them (B, m).

    A β moves in proportion to the coefficients that it is taken off.
    """
    sizes = [len(b) for b in chain.b[:-1]]
    B = len(parts)
    phase = list(parts.phase.split(sizes, 1))
    l, h = low.expand(B, -1), high.expand(B, -1)
    hidden = whole.of(torch.zeros(B, dtype=torch.int64, device=low.device)).decided(phase)
    if bool(parts.phase.any()):
        hidden = hidden_bounds(chain, l, h, rounding, hidden)
    alpha, beta = parts.alpha.clone(), parts.beta.clone()
    of_alpha: Memory = {}
    of_beta: Memory = {}
    kept = torch.full((B, len(chain.b[-1])), -math.inf).to(low), alpha.clone(), beta.clone()
    scale: Tensor | float = 1.0
    for k in range(steps + 1):
        with torch.enable_grad():
            a, b = alpha.clone().requires_grad_(k < steps), beta.clone().requires_grad_(k < steps)
            found = outputs_below(chain, l, h, hidden, alpha=list(a.split(sizes, 2)), beta=list(b.split(sizes, 2)),
                                  phase=phase)
            if k < steps:
                ga, gb = torch.autograd.grad(found.bound.sum(), [a, b])
        bound = found.bound.detach()
        better = bound > kept[0]
        kept = (torch.where(better, bound, kept[0]), torch.where(better[..., None], alpha, kept[1]),
                torch.where(better[..., None], beta, kept[2]))
        if k == 0:
            scale = torch.cat([A.detach().abs().amax(2, keepdim=True).expand(-1, -1, n)
                               for A, n in zip(found.layers, sizes, strict=True)], 2)
        if k == steps or bool((kept[0].max(1).values > 2 * rounding[-1].max()).all()):
            break
        climb = adam(lr * 0.95**k)
        alpha = climb(alpha, ga, of_alpha).clamp(0, 1)
        beta = (beta + scale * climb(torch.zeros_like(beta), gb, of_beta)).clamp_min(0)
    bound, alpha, beta = kept
    found = outputs_below(chain, l, h, hidden, alpha=list(alpha.split(sizes, 2)), beta=list(beta.split(sizes, 2)),
                          phase=phase)
    off = rounding[-1] + len(chain.W) * (beta * parts.phase.abs()[:, None] @ torch.cat(rounding[:-1]))
    return found, off, hidden, Parts(parts.phase, alpha, beta, bound.max(1).values)


def costliest(found: Found, hidden: Hidden) -> Tensor:
    """For each part the ReLU, among the undecided, whose relaxation costs the bounds most: (B,)."""
    cost = []
    for A, l, h, free in zip(found.layers, hidden.low, hidden.high, hidden.unstable(), strict=True):
        lost = A.clamp_max(0).abs().sum(1) * (-h * l / (h - l)) + A.clamp_min(0).sum(1) * torch.minimum(h, -l) / 2
        cost.append(torch.where(free, lost + 1e-12 * (h - l), -1.0))
    return torch.cat(cost, 1).argmax(1)
