"""Along the boundary: by random steps, kept where the label stays wrong, or along the normal that votes give."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.decision.labels import ask, begin, left, length, reached, rounds, settled, to_boundary, votes
from kit.core import Goal, Live, Progress, normal, per_image
from kit.core.balls import column
from kit.core.seeding import Draws

FIRST_PROBE = 0.1  # HopSkipJump's radius of probes before it has a distance
LEAST_STEP = 1e-6  # Boundary leaves an image when a step is so small a share of the distance
CHECK = 5  # of Boundary's steps, one in so many is asked about before it goes towards x
WINDOW = 10  # its answers of either kind until it looks at their share, and sizes are changed by
FACTOR = 1.5


@per_image
def hopskipjump(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str = "l2", max_queries: int = 5000, probes: int = 100,
    gamma: float = 1.0, start: Tensor | None = None, tries: int = 100, target: Tensor | None = None,
    trace: Progress | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """HopSkipJump, in l2 or l∞: from a point v on the boundary, with D = ‖v − x‖,

        ĝ = Σ_b (φ_b − φ̄) u_b     φ_b = ±1: is v + δ u_b wrong?     B = probes · √t unit vectors u_b in iteration t
        v ← v + ξ ĝ/‖ĝ‖₂, or v + ξ sign(ĝ) in l∞;     ξ = D/√t, halved until that is wrong;     back to the boundary

    ĝ points along the boundary's normal: where it is a plane through v, with the cosine 1/√(1 + π(d − 1)/2B).
    The bisection stops at θ = γ d^(−3/2) of the way, and δ = √d θ ‖v − x‖₂, so that a probe leaves the boundary by more
    than the bisection erred. The last estimate takes what is left of the budget, but for the steps after it.
    Cost: B + log₂(1/θ) + 1 or more forward passes an iteration, `max_queries` at most.
    Source: Chen, Jordan and Wainwright, HopSkipJumpAttack, IEEE S&P 2020, algorithms 1 and 2. Their δ in l∞ is measured
    in that norm, which float32 images cannot hold; here it is ‖·‖₂ in both.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm must be 'l2' or 'linf', not {norm!r}")
    if gamma <= 0:
        raise ValueError(f"gamma must be more than 0, not {gamma}")
    live, everyone = begin(model, x, Goal(y, target), generator, trace, start, tries, max_queries, norm)
    d = x[0].numel()
    theta = min(0.1, gamma * d**-1.5)
    live.v = to_boundary(live, live.v, theta)
    after, t = rounds(theta) + 2, 1  # what a step takes after its estimate, at least
    while True:
        live.drop(left(live) <= after)
        if not len(live):
            return settled(everyone)
        apart = live.v - live.x
        live.delta = theta * d**0.5 * apart.flatten(1).norm(dim=1)
        if t == 1:
            live.delta = torch.full_like(live.delta, FIRST_PROBE)
        count = (left(live) - after).clamp(max=int(probes * t**0.5))
        v, delta = live.v[:, None], live.delta[:, None, None, None, None]
        g = votes(live, count, lambda u: torch.addcmul(v, delta, u).clamp_(0, 1), centred=True)  # noqa: B023
        live.towards = g.sign() if norm == "linf" else F.normalize(g.flatten(1)).view_as(g)
        live.size = length(live, apart)
        _step(live, live.size / t**0.5)
        live.v = to_boundary(live, live.v, theta)
        t += 1


def _step(live: Live, xi: Tensor) -> None:
    """v + ξ · towards, with ξ halved until it reaches the goal; v stays where none does in time."""
    waiting = torch.ones_like(xi, dtype=torch.bool)
    while True:
        of = (waiting & (left(live) > 0) & (xi > LEAST_STEP * live.size)).nonzero()[:, 0]
        if not len(of):
            return
        v = (live.v[of] + column(xi[of], live.x) * live.towards[of]).clamp(0, 1)
        hit = ask(live, v, of)
        live.v = live.v.index_copy(0, of[hit], v[hit])
        waiting = waiting.index_fill(0, of[hit], False)
        xi = torch.where(waiting, xi / 2, xi)


@per_image
def boundary(
    model: nn.Module, x: Tensor, y: Tensor, *, max_queries: int = 5000, around: float = 0.1, towards: float = 0.1,
    start: Tensor | None = None, tries: int = 100, target: Tensor | None = None, trace: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The Boundary attack, in l2: a random walk along the boundary that comes nearer to x. With D = ‖v − x‖₂,

        w = unit(v + around · D · η − x), η ⊥ v − x a random unit vector
        v ← x + (1 − towards) D w where that is wrong

    One step in five asks about x + D w too. Of those answers half should be wrong, and of the steps a quarter: beyond
    that a size is multiplied by 1.5, below 0.2 and 0.1 divided, after every ten answers, image by image.
    The walk begins on the boundary. Each question depends on the answer before it, so that only images go together.
    Cost: one forward pass a step, `max_queries` at most.
    Source: Brendel, Rauber and Bethge, Decision-based adversarial attacks, ICLR 2018, section 2; the shares as in their
    code, which looks at them after 100 and 30 answers.
    """
    if not (0 < around <= 1 and 0 < towards < 1):
        raise ValueError(f"around must be more than 0 and at most 1, and towards more than 0 and less than 1, not "
                         f"{around} and {towards}")
    live, everyone = begin(model, x, Goal(y, target), generator, trace, start, tries, max_queries)
    live.v = to_boundary(live, live.v, 1e-3)
    live.around, live.towards = (torch.full_like(live.size, s) for s in (around, towards))
    live.seen, live.hits = (live.size.new_zeros(len(live), 2) for _ in range(2))  # on the sphere, and of steps
    step = 0
    while True:
        live.drop((left(live) <= 0) | (live.towards < LEAST_STEP))
        if not len(live):
            return settled(everyone)
        step += 1
        apart = live.v - live.x
        D = apart.flatten(1).norm(dim=1)
        w = _turned(apart, D, live.around, live.draws)
        if step % CHECK == 0:
            hit = reached(live, (live.x + column(D, x) * w).clamp(0, 1), torch.arange(len(live), device=x.device))
            _count(live, 0, hit)
        of = (left(live) > 0).nonzero()[:, 0]
        v = (live.x + column(D * (1 - live.towards), x) * w).clamp(0, 1)[of]
        hit = ask(live, v, of)
        live.v = live.v.index_copy(0, of[hit], v[hit])
        _count(live, 1, torch.zeros_like(D, dtype=torch.bool).index_copy(0, of, hit))


def _turned(apart: Tensor, D: Tensor, around: Tensor, draws: Draws | None) -> Tensor:
    """The direction of `apart`, of length D, after a random turn by the angle whose tangent is `around`."""
    to = apart / column(D.clamp_min(1e-12), apart)
    eta = normal(apart, draws)
    eta = eta - column((eta * to).flatten(1).sum(1), eta) * to
    eta = F.normalize(eta.flatten(1)).view_as(eta)
    return F.normalize((to + column(around, eta) * eta).flatten(1)).view_as(eta)


def _count(live: Live, kind: int, hit: Tensor) -> None:
    """Note an answer; after WINDOW of them change the sizes by their share: both by that on the sphere."""
    live.seen[:, kind] += 1
    live.hits[:, kind] += hit
    share = live.hits[:, kind] / WINDOW
    full = live.seen[:, kind] >= WINDOW
    high, low = ((0.5, 0.2), (0.25, 0.1))[kind]
    factor = torch.where(full & (share > high), FACTOR, torch.where(full & (share < low), 1 / FACTOR, 1.0)).to(share)
    live.towards = (live.towards * factor).clamp(max=0.5)
    if kind == 0:
        live.around = (live.around * factor).clamp(max=1.0)
    live.seen[:, kind] *= ~full
    live.hits[:, kind] *= ~full
