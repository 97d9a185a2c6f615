"""What attacks on labels share: the question, a start, the way to the boundary, votes of random directions."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Goal, Live, Progress, ball, chunk_size, normal, uniform
from kit.core.balls import column
from kit.core.checks import check_start
from kit.core.seeding import Source

GRAINS, WEIGHTS = (1, 2, 4, 8), (1.0, 0.75, 0.5, 0.25)  # of noise, in turn: many networks give all fine noise one label
FURTHER = 1e-3  # of the way from x: what is returned lies so much beyond the boundary


class LabelOnly(nn.Module):
    """A model that gives away its label and nothing else: 1 for that class, −1 for the others, (N, K)."""

    def __init__(self, model: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.model(x)
        return 2 * F.one_hot(z.argmax(1), z.shape[1]).to(z) - 1


def begin(
    model: nn.Module, x: Tensor, goal: Goal, draws: Source, trace: Progress | None, start: Tensor | None, tries: int,
    max_queries: int, norm: str = "l2",
) -> tuple[Live, Live]:
    """The images that have a start, `v` (n, C, H, W), at the distance `size` (n,); and all of them, for `settled`.

    Asked about are x, then the `start` images of each, nearest first, or blends of x and noise, until one reaches the
    goal. Raises ValueError for a target without `start`, and ValueError or TypeError for starts that are no images.
    """
    if goal.target is not None and start is None:
        raise ValueError("a targeted attack on labels begins from images of the target class: give start=, one for "
                         "each image, (N, C, H, W)")
    if start is not None:
        check_start(start, x, several=True)
    live = Live(model, x, goal, draws, trace)
    live.most, live.norm = max_queries, norm
    everyone = live.again()
    everyone.most = max_queries
    live.v, live.size = live.x, torch.full_like(x[:, 0, 0, 0], torch.inf)
    live.drop(ask(live, live.x, torch.arange(len(x), device=x.device)))
    for k in range(tries if start is None else number(start)):
        of = (live.size.isinf() & (live.asked < max_queries)).nonzero()[:, 0]
        if not len(of):
            break
        v = candidate(live, of, start, k)
        hit = ask(live, v, of)
        live.v = live.v.index_copy(0, of[hit], v[hit])
        live.size = live.size.index_copy(0, of[hit], length(live, v[hit] - live.x[of[hit]]))
    live.drop(live.size.isinf())
    return live, everyone


def candidate(live: Live, of: Tensor, start: Tensor | None, k: int) -> Tensor:
    """The k-th start of these images: of `start` in the order of their distances, or a blend of x and new noise, whose
    grains are squares of 1, 2, 4 or 8 pixels, with a weight of 1 and, later, of less."""
    x = live.x[of]
    if start is None:
        grain, weight = GRAINS[k % len(GRAINS)], WEIGHTS[k // len(GRAINS) % len(WEIGHTS)]
        rows, columns = (torch.arange(side, device=x.device) // grain for side in x.shape[2:])
        noise = uniform(x, live.draws and live.draws[of])[:, :, rows][..., columns]
        return x + weight * (noise - x)
    several = (start if start.dim() == 5 else start[:, None]).to(x)
    own = several.expand(len(live.found.score), *several.shape[1:])[live.rows[of]]
    order = (own - x[:, None]).flatten(2).norm(dim=2).argsort(1)
    return own[torch.arange(len(of), device=of.device), order[:, k]]


def number(start: Tensor) -> int:
    """How many starts there are for each image."""
    return 1 if start.dim() == 4 else start.shape[1]


def left(live: Live) -> Tensor:
    """How many answers each image may still ask for, (n,); one more is kept for `settled`."""
    return live.most - 1 - live.asked


def length(live: Live, delta: Tensor) -> Tensor:
    return ball(live.norm, 1.0).norm(delta)


def reached(live: Live, v: Tensor, of: Tensor) -> Tensor:
    """Whether the label of v_i (m, C, H, W) is what the image of[i] is after, (m,) bool. Cost: one query each."""
    if not len(of):
        return torch.zeros_like(of, dtype=torch.bool)
    label, goal = live.answers(v, of).argmax(1), live.goal[of]
    return label != goal.y if goal.target is None else label == goal.target


def ask(live: Live, v: Tensor, of: Tensor) -> Tensor:
    """`reached`, where of each image the nearest that reaches the goal is kept; `of` is in rising order."""
    hit = reached(live, v, of)
    if bool(hit.any()):
        v, of = v[hit], of[hit]
        size = length(live, v - live.x[of])
        order = size.argsort()
        order = order[of[order].argsort(stable=True)]
        nearest = order[turn(of[order]) == 0]
        rows = live.rows[of[nearest]]
        live.found.see(rows, v[nearest], -size[nearest], torch.ones_like(rows, dtype=torch.bool))
    return hit


def turn(of: Tensor) -> Tensor:
    """The how-manieth of its image each is, from 0; `of` says whose they are, in rising order."""
    return torch.arange(len(of), device=of.device) - torch.searchsorted(of, of)


def between(x: Tensor, v: Tensor, a: Tensor, norm: str) -> Tensor:
    """The point at the share a (n,) of the way from x to v: on the line, or in l∞ cut off at a ‖v − x‖∞."""
    d = v - x
    if norm == "linf":
        reach = column(a * d.flatten(1).abs().amax(1), x)
        return (x + torch.maximum(torch.minimum(d, reach), -reach)).clamp(0, 1)
    return (x + column(a, x) * d).clamp(0, 1)


def to_boundary(live: Live, v: Tensor, theta: float) -> Tensor:
    """From v, which reach the goal, towards x as far as they still do, to the share theta of the way: bisection.

    Cost: log₂(1/theta) queries, rounded up.
    """
    low, high = torch.zeros_like(live.size), torch.ones_like(live.size)
    for _ in range(rounds(theta)):
        of = (left(live) > 0).nonzero()[:, 0]
        if not len(of):
            break
        middle = (low[of] + high[of]) / 2
        hit = ask(live, between(live.x[of], v[of], middle, live.norm), of)
        high, low = high.index_copy(0, of[hit], middle[hit]), low.index_copy(0, of[~hit], middle[~hit])
    return between(live.x, v, high, live.norm)


def rounds(theta: float) -> int:
    return max(1, math.ceil(math.log2(1 / theta)))


def votes(live: Live, count: Tensor, point: Callable[[Tensor], Tensor], centred: bool = False) -> Tensor:
    """Σ_b φ_b u_b over count[i] unit vectors u of the image i, φ_b = +1 where point(u_b) reaches the goal, else −1.

    `point` takes u (n, b, C, H, W) to images in the box. With `centred` the u are what the box has left of them, which
    is (point(u) − point(0)) up to a factor, and φ has its mean taken off, unless all agree (HopSkipJump, equation 16).
    The u come a chunk at a time. Cost: count[i] queries, in chunks of all images together.
    """
    n, many = len(live), int(count.max())
    sums = live.x.new_zeros(n, 2, live.x[0].numel())  # of φ u, and of u
    number, agreed = torch.arange(n, device=live.x.device), torch.zeros_like(live.size)
    here = point(torch.zeros_like(live.x[:, None])) if centred else None
    together = max(1, chunk_size(live.x) // n)
    for first in range(0, many, together):
        last = min(first + together, many)
        # one direction at a time from each image's stream, so that how many go together makes no difference
        u = torch.stack([normal(live.x, live.draws) for _ in range(first, last)], 1)
        u.div_(u.flatten(2).norm(dim=2)[..., None, None, None])
        v = point(u)
        if here is not None:
            u = v - here
        asks = torch.arange(first, last, device=count.device) < count[:, None]
        phi = asks.to(u)
        if bool(asks.all()):
            of = number.repeat_interleave(last - first)
            hit = reached(live, v.flatten(0, 1), of)
        else:
            of = number.repeat_interleave(asks.sum(1))
            hit = reached(live, v[asks], of)
        weights = torch.stack([phi.masked_scatter(asks, 2 * hit.to(u) - 1), phi], 1)
        agreed += weights[:, 0].sum(1)
        sums += weights @ u.flatten(2)
    mean = (agreed / count.clamp_min(1))[:, None]
    total = sums[:, 0]
    if centred:
        total = torch.where(mean.abs() == 1, total, total - mean * sums[:, 1])
    return total.view_as(live.x)


def settled(everyone: Live) -> Tensor:
    """What was found, a little further from x where that is asked about and reaches the goal too. Cost: one query."""
    found, x = everyone.found, everyone.x
    moved = found.reached & (found.x_adv != x).flatten(1).any(1)
    of = (moved & (everyone.asked < everyone.most)).nonzero()[:, 0]
    if len(of):
        v = (x[of] + (1 + FURTHER) * (found.x_adv[of] - x[of])).clamp(0, 1)
        hit = reached(everyone, v, of)
        found.x_adv = found.x_adv.index_copy(0, of[hit], v[hit])
    return found.x_adv
