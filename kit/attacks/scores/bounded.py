"""Climbing ℓ within a ball, along gradients that are estimated from answers."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kit.core import Goal, Live, Progress, ball, margin, per_image, uniform
from kit.core.goal import Loss


@per_image
def finite_difference(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", steps: int = 1,
    step: float | Tensor | None = None, h: float = 0.01, group: int = 1, directions: Tensor | None = None,
    max_queries: int | None = None, target: Tensor | None = None, loss: Loss = margin,
    trace: Progress | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """FGSM, or with several `steps` BIM, with the gradient from differences along directions u_i,

        ĝ = Σ_i (ℓ(x + h u_i) − ℓ(x − h u_i)) / 2h · u_i,

    which are the channels of pixels one by one; or random groups of `group` of them, drawn for each image and step; or
    `directions` (1 or N, B, C, H, W), such as principal components of the data. Images that are asked about lie in
    the box; where it cuts one off, the difference is divided by the way that is left. An image leaves when it reaches
    its goal. `step` is eps for one step, and 1.25 eps/steps for several.
    Cost: 2B + 1 forward passes a step, B the number of directions; fewer steps where `max_queries` allows no more.
    Raises ValueError where it does not allow for one.
    Source: Bhagoji et al., Practical black-box attacks on deep neural networks using efficient query mechanisms,
    ECCV 2018, sections 3.1 to 3.3: FD, IFD, and their query reduction by random grouping and by PCA.
    """
    live, within = Live(model, x, Goal(y, target), generator, trace), ball(norm, eps)
    pixels = x[0].numel()
    if not 1 <= group <= pixels:
        raise ValueError(f"group must be from 1 to the image's {pixels} numbers, not {group}")
    count = -(-pixels // group) if directions is None else directions.shape[1]
    if max_queries is not None and max_queries < 2 * count + 2:
        raise ValueError(f"a step along {count} directions takes {2 * count + 2} queries, and max_queries is "
                         f"{max_queries}: give more, or fewer directions by group= or directions=")
    live.eps = eps
    live.step = step if step is not None else eps if steps == 1 else 1.25 * eps / steps
    live.v, each = x, torch.arange(len(x), device=x.device)
    for k in range(steps + 1):
        z = live.answers(live.v, each[:len(live)])
        reached = live.goal.reached(z)
        live.best(live.v, live.goal.gain(z, loss), reached)
        live.drop(reached)
        if not len(live) or k == steps or max_queries is not None and int(live.asked.max()) + 2 * count >= max_queries:
            break
        within = ball(norm, live.eps)
        g = estimated(live, _directions(live, group, directions), count, h, loss)
        live.v = within.project(within.step(live.v, g, live.step), live.x)
    return live.found.x_adv


def _directions(live: Live, group: int, directions: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The directions of these numbers (b,), (n or 1, b, C, H, W)."""
    if directions is not None:
        own = directions if len(directions) == 1 else directions[live.rows]
        return lambda numbers: own[:, numbers]
    place = torch.arange(live.x[0].numel(), device=live.x.device)[None]
    if group > 1:
        place = uniform(live.x.flatten(1), live.draws).argsort(1)
    of = place // group
    return lambda numbers: (of[:, None] == numbers[None, :, None]).to(live.x).unflatten(2, live.x.shape[1:])


def estimated(live: Live, directions: Callable[[Tensor], Tensor], count: int, h: float, loss: Loss) -> Tensor:
    """Σ_i of the difference of ℓ along u_i times u_i, at v (n, C, H, W). Cost: 2 · count queries."""
    n, g = len(live), torch.zeros_like(live.v)
    for numbers in torch.arange(count, device=g.device).split(max(1, 64 // n)):
        u = directions(numbers)
        up, down = ((live.v[:, None] + s * u).clamp(0, 1) for s in (h, -h))
        of = torch.arange(n, device=g.device).repeat_interleave(len(numbers))
        values = [live.goal[of].gain(live.answers(v.flatten(0, 1), of), loss).view(n, -1) for v in (up, down)]
        way = ((up - down) * u).flatten(2).sum(2) / u.square().flatten(2).sum(2)
        g += torch.einsum("nb,nbchw->nchw", (values[0] - values[1]).to(way) / way, u.expand_as(up))
    return g
