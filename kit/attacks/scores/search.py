"""Random search: propose a change, ask, keep what is better. Square changes squares, SimBA one direction at a time."""
import torch
from torch import Tensor, nn

from kit.core import Goal, Live, Progress, ball, cross_entropy, margin, per_image, uniform
from kit.core.balls import column
from kit.core.goal import Loss

TOGETHER = 50  # proposals whose random numbers are drawn at once


@per_image
def square(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, max_queries: int = 5000, p: float = 0.05,
    target: Tensor | None = None, loss: Loss = margin, trace: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Square attack in l∞: random search among images whose pixels lie at x ± eps.

    It begins with vertical stripes of ± eps. Each proposal sets every channel of one square, at a random place, to
    + eps or − eps, and is kept where it raises ℓ. The square covers a share of the image that begins at p and is halved
    after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the queries. A proposal that would change nothing has its signs
    turned. Cost: `max_queries` forward passes at most.
    Source: Andriushchenko et al., Square attack, ECCV 2020, algorithms 1 and 2, and their schedule of p.
    """
    live, (channels, h, w) = Live(model, x, Goal(y, target), generator, trace), x.shape[1:]
    live.eps, live.proposal = eps, x
    down, across = torch.arange(h, device=x.device)[:, None], torch.arange(w, device=x.device)
    for query in range(max_queries):
        # The stripes are the start, whatever they are worth: x itself is none.
        _, reached = live.propose(live.proposal, loss, whatever=query == 1)
        live.drop(reached)
        if not len(live):
            break
        within = ball("linf", live.eps)
        if query == 0:
            edge = column(live.eps, x) * uniform(live.x[:, :, :1], live.draws, -1, 1).sign()
            live.proposal = within.project(live.x + edge, live.x)
            continue
        if (query - 1) % TOGETHER == 0:
            live.numbers = uniform(live.x.new_empty(len(live), TOGETHER, 2 + channels), live.draws)
        place, sign = live.numbers[:, (query - 1) % TOGETHER].split([2, channels], 1)
        side = max(1, min(h, w, round((share(query, max_queries, p) * h * w) ** 0.5)))
        top, left = ((column(place[:, i], x) * (size - side + 1)).long() for i, size in enumerate((h, w)))
        inside = (down >= top) & (down < top + side) & (across >= left) & (across < left + side)
        edge = column(live.eps, x) * (sign - 0.5).sign()[:, :, None, None]
        new = torch.where(inside, within.project(live.x + edge, live.x), live.v)
        same = (new == live.v).flatten(1).all(1)
        live.proposal = torch.where(column(same, x) & inside, within.project(live.x - edge, live.x), new)
    return live.found.x_adv


def share(query: int, queries: int, p: float) -> float:
    """The share of the image that a square covers at this query: p, halved at each of nine times."""
    return p / 2 ** sum(query > queries * part for part in (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8))


@per_image
def simba(
    model: nn.Module, x: Tensor, y: Tensor, *, step: float | Tensor = 0.2, eps: float | Tensor = 1.0,
    max_queries: int = 5000, target: Tensor | None = None, loss: Loss = cross_entropy, trace: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """SimBA: one pixel's channel after the other, in random order, is made brighter by `step`; where that does not
    raise ℓ, darker; where that does not either, it stays. No pixel changes by more than `eps`.

    After T steps that were kept ‖x' − x‖₂ ≤ step √T. When all have been tried it begins again.
    Cost: `max_queries` forward passes at most; a step takes one or two.
    Source: Guo et al., Simple black-box adversarial attacks, ICML 2019, algorithm 1 (pixel basis, there without eps).
    """
    live, pixels = Live(model, x, Goal(y, target), generator, trace), x[0].numel()
    live.order = uniform(x.flatten(1), live.draws).argsort(1)
    live.step, live.eps = (column(torch.as_tensor(s).to(x).expand(len(x)), x) for s in (step, eps))
    live.proposal, live.turn = x, torch.zeros_like(live.rows)
    for _ in range(max_queries):
        better, reached = live.propose(live.proposal, loss)
        # Turn 0 is x; 2q + 1 and 2q + 2 are the q-th pixel up and down, and down is left out where up was better.
        live.turn = torch.where(better & (live.turn % 2 == 1), live.turn + 2, live.turn + 1)
        live.drop(reached)
        if not len(live):
            break
        at = live.order.gather(1, ((live.turn - 1) // 2 % pixels)[:, None])
        sign = torch.where(live.turn % 2 == 1, 1.0, -1.0).to(x)
        move = torch.zeros_like(live.x).flatten(1).scatter_(1, at, sign[:, None]).view_as(live.x)
        live.proposal = (live.v + live.step * move - live.x).clamp(-live.eps, live.eps).add(live.x).clamp(0, 1)
    return live.found.x_adv
