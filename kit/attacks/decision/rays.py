"""Cheng's formulation: turn the direction θ from x in which the label changes soonest. OPT and Sign-OPT."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.decision.labels import (
    ask,
    begin,
    candidate,
    left,
    number,
    rounds,
    settled,
    to_boundary,
    turn,
    votes,
)
from kit.core import Goal, Live, Progress, normal, per_image
from kit.core.balls import column

GROWTH, WIDER = 0.01, 8  # the first bracket around a guessed distance, and how often it is doubled
SEARCHES = 15  # steps that a line search tries at most
ALPHA = (0.2, 1e-4)  # the first step of the line search, and the least
FINE = 500  # a distance is found to the share β/500 of its guess
COARSE = 1e-3  # as are the first ones, of many directions
LEAST_BETA = 1e-4  # below it float32 images do not turn


def unit(v: Tensor) -> Tensor:
    return F.normalize(v.flatten(1)).view_as(v)


def ray(live: Live, theta: Tensor, lam: Tensor, of: Tensor) -> Tensor:
    """x + λ θ, cut off at the box."""
    return (live.x[of] + column(lam, theta) * theta).clamp(0, 1)


def distances(live: Live, theta: Tensor, of: Tensor, guess: Tensor, precision: Tensor) -> Tensor:
    """g(θ_i), the λ at which x + λ θ_i begins to reach the goal, near a guess (m,), to the share `precision` of it.

    A bracket of 1 % to one side of the guess is doubled until it holds the change, eight times at most, then halved.
    Where it never does, the farthest λ that was tried stands for g, so that a difference of two g stays finite. An
    image may have several θ: `of`, in rising order, says whose they are.
    """
    low, high = torch.zeros_like(guess), torch.full_like(guess, torch.inf)

    def look(lam: Tensor, which: Tensor) -> None:
        which = which[turn(of[which]) < left(live)[of[which]]]
        hit = ask(live, ray(live, theta[which], lam[which], of[which]), of[which])
        high[which[hit]], low[which[~hit]] = lam[which[hit]], lam[which[~hit]]

    look(guess, torch.arange(len(of), device=of.device))
    inside = high.isfinite()
    for k in range(WIDER):
        lam = guess * torch.where(inside, max(0.0, 1 - GROWTH * 2**k), 1 + GROWTH * 2**k)
        look(lam, torch.where(inside, low == 0, high.isinf()).nonzero()[:, 0])
    for _ in range(rounds(float(precision.min()))):
        look((low + high) / 2, (high.isfinite() & (high - low > precision * guess)).nonzero()[:, 0])
    return torch.where(high.isfinite(), high, low)


def aim(live: Live, start: Tensor | None, candidates: int) -> None:
    """From the start to the boundary, and to it along the other starts, or `candidates` directions; the nearest stays.

    θ takes the place of v, and g(θ) that of the distance. Cost: one query a direction, and more where it is nearer.
    """
    apart = to_boundary(live, live.v, COARSE) - live.x
    live.size, live.v = apart.flatten(1).norm(dim=1), unit(apart)
    for k in range(1, candidates if start is None else number(start)):
        of = (left(live) > 0).nonzero()[:, 0]
        if not len(of):
            break
        nearer(live, unit(candidate(live, of, start, k) - live.x[of]), of, torch.full_like(live.size, COARSE))


def nearer(live: Live, theta: Tensor, of: Tensor, precision: Tensor) -> Tensor:
    """Ask whether these directions reach the goal at a distance a little smaller than the best; take those that do,
    and find their distance. Returns which, (m,) bool."""
    shorter = live.size[of] * (1 - precision[of])
    hit = ask(live, ray(live, theta, shorter, of), of)
    at, theta = of[hit], theta[hit]
    if len(at):
        lam = distances(live, theta, at, shorter[hit], precision[at])
        apart = ray(live, theta, lam, at) - live.x[at]  # what the box leaves of it
        live.size = live.size.index_copy(0, at, apart.flatten(1).norm(dim=1))
        live.v = live.v.index_copy(0, at, unit(apart))
    return hit


def line_search(live: Live, g: Tensor) -> None:
    """θ ← unit(θ − α ĝ): α is doubled while the distance falls; where the first does not make it fall, quartered.

    An image that no α serves has β divided by ten, since ĝ was too coarse.
    """
    theta, alpha, best = live.v, live.alpha, live.alpha
    fell, open_ = torch.zeros_like(alpha, dtype=torch.bool), torch.ones_like(alpha, dtype=torch.bool)
    for _ in range(SEARCHES):
        of = (open_ & (left(live) > 0)).nonzero()[:, 0]
        if not len(of):
            break
        better = of[nearer(live, unit(theta[of] - column(alpha[of], g) * g[of]), of, live.beta / FINE)]
        now = torch.zeros_like(fell).index_fill(0, better, True)
        best = torch.where(now, alpha, best)
        open_ = now | (open_ & ~fell & (alpha > ALPHA[1]))
        fell = fell | now
        alpha = torch.where(now, 2 * alpha, alpha / 4)
    live.alpha = torch.where(fell, best, ALPHA[0])
    live.beta = torch.where(fell, live.beta, (live.beta / 10).clamp_min(LEAST_BETA))


def check_beta(beta: float) -> None:
    if beta <= 0:
        raise ValueError(f"beta, by how much a direction is turned, must be more than 0, not {beta}")


def descend(live: Live, beta: float, gradient: Callable[[Live], Tensor]) -> None:
    """Turn θ down the estimated gradient until the budget is used."""
    live.alpha, live.beta = torch.full_like(live.size, ALPHA[0]), torch.full_like(live.size, beta)
    while True:
        live.drop(left(live) <= 0)
        if not len(live):
            return
        line_search(live, unit(gradient(live)))


@per_image
def opt_attack(
    model: nn.Module, x: Tensor, y: Tensor, *, max_queries: int = 5000, q: int = 10, beta: float = 0.01,
    start: Tensor | None = None, tries: int = 100, candidates: int = 10, target: Tensor | None = None,
    trace: Progress | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """OPT, in l2: the distance g(θ) to the boundary along a unit vector θ, which labels give by bisection, descended by

        ĝ = 1/q Σ_j (g(θ + β u_j) − g(θ)) / β · u_j,     θ ← unit(θ − α ĝ/‖ĝ‖), α by a line search (`line_search`)

    A direction that meets the box goes along it. θ begins at the nearest of `candidates` directions of
    noise (the authors take 100), or of all of `start`.
    Cost: about 12 q + 20 forward passes an iteration, `max_queries` at most.
    Source: Cheng et al., Query-efficient hard-label black-box attack, ICLR 2019, algorithms 1 and 2. There β = 0.001,
    for which a difference of two distances is near what float32 images can hold.
    """
    check_beta(beta)
    live, everyone = begin(model, x, Goal(y, target), generator, trace, start, tries, max_queries)
    aim(live, start, candidates)

    def gradient(live: Live) -> Tensor:
        u = torch.stack([unit(normal(live.x, live.draws)) for _ in range(q)], 1)
        of = torch.arange(len(live), device=x.device).repeat_interleave(q)
        theta = unit((live.v[:, None] + live.beta[:, None, None, None, None] * u).flatten(0, 1))
        g = distances(live, theta, of, live.size[of], live.beta[of] / FINE)
        slope = (g - live.size[of]).view(-1, 1, q)
        return (slope @ u.flatten(2)).view_as(live.x)

    descend(live, beta, gradient)
    return settled(everyone)


@per_image
def sign_opt(
    model: nn.Module, x: Tensor, y: Tensor, *, max_queries: int = 5000, q: int = 200, beta: float = 0.001,
    start: Tensor | None = None, tries: int = 100, candidates: int = 10, target: Tensor | None = None,
    trace: Progress | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """Sign-OPT, in l2: as `opt_attack`, but of each difference the sign alone, which is one label:

        ĝ = 1/q Σ_j sign(g(θ + β u_j) − g(θ)) u_j,     sign = −1 where x + g(θ) unit(θ + β u_j) reaches the goal, else 1

    Cost: q + 20 or so forward passes an iteration, `max_queries` at most.
    Source: Cheng et al., Sign-OPT, ICLR 2020, algorithm 1.
    """
    check_beta(beta)
    live, everyone = begin(model, x, Goal(y, target), generator, trace, start, tries, max_queries)
    aim(live, start, candidates)

    def gradient(live: Live) -> Tensor:
        v, beta, far = live.v[:, None], live.beta[:, None, None, None, None], live.size[:, None, None, None, None]

        def point(u: Tensor) -> Tensor:
            theta = v + beta * u
            return (live.x[:, None] + far / theta.flatten(2).norm(dim=2)[..., None, None, None] * theta).clamp_(0, 1)

        return -votes(live, left(live).clamp(max=q), point)

    descend(live, beta, gradient)
    return settled(everyone)
