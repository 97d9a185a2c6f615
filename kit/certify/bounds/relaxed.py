"""A network between linear functions: lines at every ReLU, pulled back to the input (Fast-Lin, CROWN, CNN-Cert).

    max(h, 0) on l ≤ h ≤ u:   s h  ≤  max(h, 0)  ≤  w h + t,      w = u/(u − l),  t = −w l

    ⟨A, max(h, 0)⟩ ≥ ⟨A⁺ s + A⁻ w, h⟩ + ⟨A⁻, t⟩        A⁺ the rows' positive part, A⁻ their negative

Where l ≥ 0 or u ≤ 0 the two lines are one. The slope s may be any number in [0, 1]: w in Fast-Lin, 0 or 1 in CROWN.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kit.certify.bounds.domains import Domain, least_on_box
from kit.certify.bounds.layers import Affine, Elementwise, Ends, Layers, MaxPool, ReLU, Reshape, Step, Weighted
from kit.core.steps import tiny

METHODS = ("ibp", "fast_lin", "crown")
INTERVALS = ("cut", "choose", "unused")
# How many numbers the rows that are pulled back together may hold in one layer.
ROWS = {"cpu": 2**20, "cuda": 2**28}


@dataclass
class Lines:
    """Of a ReLU: w and t of the line above, the slope s of the one below, which passes through 0. All (N, …)."""

    w: Tensor
    t: Tensor
    s: Tensor

    @classmethod
    def over(cls, ends: Ends, method: str) -> Lines:
        l, u = ends
        down, up = l.clamp(max=0), u.clamp(min=0)
        w = up / (up - down).clamp_min(tiny(u))
        return cls(w, -w * down, w if method == "fast_lin" else (u > -l).to(u))

    def pulled(self, A: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """A' and c with ⟨A, max(h, 0)⟩ ≥ ⟨A', h⟩ + c, for rows A (N, S, …). `s` may differ among the rows."""
        plus, minus = A.clamp(min=0), A.clamp(max=0)
        s = self.s if self.s.dim() == A.dim() else self.s[:, None]
        return plus * s + minus * self.w[:, None], (minus * self.t[:, None]).flatten(2).sum(2)


@dataclass
class Planes:
    """Of a max pooling: Σ_i w_i h_i + below ≤ max_i h_i ≤ Σ_i w_i h_i + above, one plane's slopes for both.

    γ = (Σ u_i/(u_i − l_i) − 1) / Σ 1/(u_i − l_i) within [max l, min u],  w_i = (u_i − γ)/(u_i − l_i), over the entries
    that may be the greatest: u_i ≥ max l (Boopathy et al., CNN-Cert, AAAI 2019, table 3).
    """

    w: Tensor
    above: Tensor
    below: Tensor

    @classmethod
    def over(cls, ends: Ends, step: MaxPool) -> Planes:
        l, u = (step.windows(end) for end in ends)
        greatest_l, greatest_u = l.amax(2, keepdim=True), u.amax(2, keepdim=True)
        may = u >= greatest_l
        l, u = torch.where(may, l, greatest_l), torch.where(may, u, greatest_l)
        inverse = may / (u - l).clamp_min(torch.finfo(u.dtype).eps * (1 + u.abs()))
        gamma = ((u * inverse).sum(2, keepdim=True) - 1) / inverse.sum(2, keepdim=True)
        least_u = torch.where(may, u, math.inf).amin(2, keepdim=True)
        gamma = torch.maximum(torch.minimum(gamma, least_u), greatest_l)
        w = ((u - gamma) * inverse).clamp(0, 1)
        spare = 1 - w.sum(2, keepdim=True)
        below = spare * torch.where(spare < 0, greatest_u, greatest_l)
        return cls(w, (gamma - (w * l).sum(2, keepdim=True))[:, :, 0], below[:, :, 0])

    def pulled(self, A: Tensor, step: MaxPool) -> tuple[Tensor, Tensor]:
        c = (A.clamp(min=0) * self.below[:, None] + A.clamp(max=0) * self.above[:, None]).flatten(2).sum(2)
        entries = (A[:, :, :, None] * self.w[:, None]).flatten(0, 1)
        return step.gathered(entries).unflatten(0, A.shape[:2]), c


def pulled_back(
    layers: Layers, A: Tensor, at: int, lines: Mapping[int, Lines | Planes], stop: Sequence[int] = (),
) -> tuple[dict[int, Tensor], Tensor]:
    """{i: A_i} and c (N, S) with ⟨A, h_at⟩ ≥ Σ_i ⟨A_i, h_i⟩ + c, where i is the input 0, or one of the tensors `stop`.

    `lines` has those of every bent step on the way, by the place of its output. Cost: a backward pass of the steps
    before `at` for each row of A (N, S, …).
    """
    held, c = {at: A}, A.new_zeros(A.shape[:2])
    for step in reversed(layers.steps):
        if step.output in stop or step.output not in held:
            continue
        A = held.pop(step.output)
        if isinstance(step, Affine):
            below, constant = step.down(A)
        else:
            pulled, constant = lines[step.output].pulled(A, step)  # type: ignore[arg-type]
            below = [pulled]
        c = c + constant
        for i, part in zip(step.inputs, below, strict=True):
            held[i] = held[i] + part if i in held else part
    return held, c


class Relaxed:
    """A network over a set of inputs: bounds before every ReLU and max pooling, and lines or planes through them.

        net = Relaxed(model, Box(lower, upper))             # or ClippedBall(x, eps, "l2")
        net.ends                                            # [(l, u), …], of what enters each ReLU, in order
        net.least(C, d)                                     # (N, S): lower bounds of C z + d over the set
        A, c = net.linear(C, d)                             # C z(x) + d ≥ ⟨A, x⟩ + c for every x of the set

    `method` is "crown", "fast_lin" or "ibp" (then intervals alone: `linear` is not there). `intermediate` is how
    the bounds before the ReLUs are found: the same method, or "ibp", which is cheaper and looser. What `intervals` do
    for a linear method: "choose" the entries that it is asked about, those that they leave undecided; and "cut" what it
    says with their own ends, which is tightest; "unused" is the method as it was published, at two rows for every ReLU.
    `known` are bounds [(l, u), …] that hold already, as those of a set that includes this one or of a ReLU that is
    split: the ends are cut with them.
    `model` may be its `Layers`, listed once. All is differentiable in the weights and the set, and keeps its graph:
    under torch.no_grad() it holds little.

    Sound up to rounding: what is to be proved is asked for in float64, or with a margin.
    Cost: intervals take two forward passes; a linear method one backward pass, up to the ReLU, for each undecided entry
    and side, in groups of bounded memory.
    """

    def __init__(
        self, model: nn.Module | Layers, domain: Domain, method: str = "crown", *, intermediate: str | None = None,
        known: Sequence[Ends] | None = None, intervals: str = "cut",
    ):
        intermediate = intermediate or method
        if method not in METHODS or intermediate not in ("ibp", method):
            raise ValueError(f"method must be one of {', '.join(METHODS)}, and intermediate the same or 'ibp', not "
                             f"{method!r} and {intermediate!r}")
        self.layers = model if isinstance(model, Layers) else Layers(model, domain.lower)
        if self.layers.shapes[0] != domain.lower.shape[1:]:
            raise ValueError(f"the network was listed for inputs of shape {tuple(self.layers.shapes[0])}, and the "
                             f"set's have {tuple(domain.lower.shape[1:])}")
        if known is not None and len(known) != len(self.layers.bent):
            raise ValueError(f"known has bounds for {len(known)} ReLUs and poolings, the network has "
                             f"{len(self.layers.bent)}")
        if intervals not in INTERVALS:
            raise ValueError(f"intervals must be one of {', '.join(INTERVALS)}, not {intervals!r}")
        self.domain, self.method, self.use = domain, method, intervals
        self.intervals: dict[int, Ends] = {0: (domain.lower, domain.upper)}
        self.lines: dict[int, Lines | Planes] = {}
        self.ends: list[Ends] = []
        sure = _sure(self.layers) if domain.product else set()
        for step in self.layers.steps:
            if not isinstance(step, Affine):
                place, = step.inputs
                ends = self.intervals[place]
                if intermediate != "ibp" and place not in sure:
                    ends = self._tightened(place, ends, step)
                if known is not None:
                    ends = _cut(ends, known[len(self.ends)])
                self.ends.append(ends)
                self.intervals[place] = ends
                if method == "ibp":
                    pass
                elif isinstance(step, MaxPool):
                    self.lines[step.output] = Planes.over(ends, step)
                else:
                    self.lines[step.output] = Lines.over(ends, method)
            self.intervals[step.output] = step.up([self.intervals[i] for i in step.inputs])

    def _tightened(self, place: int, ends: Ends, step: Step) -> Ends:
        """The ends of a tensor, with those by back-substitution for the entries that are undecided."""
        shape, (l, u) = ends[0].shape, (end.flatten(1) for end in ends)
        wanted = (l < 0) & (u > 0) if isinstance(step, ReLU) and self.use != "unused" else l < u
        many = int(wanted.sum(1).max())
        order = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :many]
        for at in order.split(self._rows(2), 1) if many else ():
            A = l.new_zeros(len(l), 2, at.shape[1], l.shape[1])
            A[:, 0].scatter_(2, at[:, :, None], 1.0)
            A[:, 1].scatter_(2, at[:, :, None], -1.0)
            low, high = self._least(A.view(len(l), -1, *shape[1:]), place).unflatten(1, (2, -1)).unbind(1)
            asked, old_l, old_u = wanted.gather(1, at), l.gather(1, at), u.gather(1, at)
            if self.use == "cut":
                low, high = torch.maximum(low, old_l), torch.maximum(high, -old_u)
            l, u = l.scatter(1, at, torch.where(asked, low, old_l)), u.scatter(1, at, torch.where(asked, -high, old_u))
        return l.view(shape), torch.maximum(l, u).view(shape)

    def _rows(self, sides: int = 1) -> int:
        size = ROWS.get(self.domain.lower.device.type, ROWS["cuda"])
        return max(1, size // (sides * len(self.domain) * self.layers.widest()))

    def _least(self, A: Tensor, at: int) -> Tensor:
        """min ⟨A, h_at⟩, (N, S): over the set for the input; for intervals, over those of what the last stops gave."""
        stop = self.layers.stops if self.method == "ibp" else []
        held, c = pulled_back(self.layers, A, at, self.lines, stop)
        for i, A_i in held.items():
            c = c + (self.domain.least(A_i) if i == 0 else least_on_box(A_i, *self.intervals[i]))
        return c

    def least(self, C: Tensor, d: Tensor | float = 0.0) -> Tensor:
        """Lower bounds (N, S) of C z + d over the set; C (S, K), or (N, S, K) with rows for each input.

        With "ibp" the last affine steps are taken together with C (Gowal et al. 2018, section 3). Cost: a backward
        pass for each row of C.
        """
        C = self._specified(C)
        groups = [C] if self.method == "ibp" else C.split(self._rows(), 1)
        return torch.cat([self._least(rows, self.layers.output) for rows in groups], 1) + d

    def linear(self, C: Tensor, d: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """A (N, S, …) and c (N, S) with C z(x) + d ≥ ⟨A, x⟩ + c for every x of the set. Cost: as `least`."""
        if self.method == "ibp":
            raise ValueError("intervals give no linear function: use the method 'crown' or 'fast_lin'")
        held, c = pulled_back(self.layers, self._specified(C), self.layers.output, self.lines)
        return held.get(0, c.new_zeros(*c.shape, *self.layers.shapes[0])), c + d

    def _specified(self, C: Tensor) -> Tensor:
        if C.dim() not in (2, 3) or C.shape[-1] != self.layers.classes or C.dim() == 3 and len(C) != len(self.domain):
            raise ValueError(f"C must have the shape (S, {self.layers.classes}) or ({len(self.domain)}, S, "
                             f"{self.layers.classes}), not {tuple(C.shape)}")
        return (C if C.dim() == 3 else C.expand(len(self.domain), *C.shape)).to(self.domain.lower)


def least_by_intervals(layers: Layers, domain: Domain, C: Tensor) -> Tensor:
    """What `Relaxed(layers, domain, "ibp").least(C)` says, for C (N, S, K), holding little memory: ends are dropped
    when the last step has read them, since memory that was just used costs less than other."""
    held, c = pulled_back(layers, C, layers.output, {}, layers.stops)
    ends = {0: (domain.lower, domain.upper)}
    last = {i: step.output for step in layers.steps for i in step.inputs}
    for step in layers.steps[: max(held, default=0)]:
        ends[step.output] = step.up([ends[i] for i in step.inputs])
        for i in step.inputs:
            if last[i] == step.output and i not in held:
                ends.pop(i, None)
    for i, A in held.items():
        c = c + (domain.least(A) if i == 0 else least_on_box(A, *ends[i]))
    return c


def _cut(ends: Ends, known: Ends) -> Ends:
    """Where both hold. What contradicts itself, as the halves of a split ReLU may, is left as a point."""
    l, u = torch.maximum(ends[0], known[0]), torch.minimum(ends[1], known[1])
    return l, torch.maximum(l, u)


def _sure(layers: Layers) -> set[int]:
    """The tensors whose intervals over a box are exact: of one weighted step at most, from a box whose values move
    each for itself."""
    free, exact = {0}, {0}
    for step in layers.steps:
        if all(i in free for i in step.inputs) and isinstance(step, Elementwise | Reshape):
            free.add(step.output)
        fixed = isinstance(step, Elementwise | Reshape) and all(i in exact for i in step.inputs)
        if fixed or isinstance(step, Weighted) and step.inputs[0] in free:
            exact.add(step.output)
    return exact
