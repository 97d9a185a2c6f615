"""Move the map of an explainer by questions alone, and keep the answer."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kit.attacks.scores.search import share
from kit.core import Goal, asking, ball, laid_out, per_image, uniform
from kit.core.balls import column
from kit.fire.adv2 import map_distance

Explain = Callable[..., Tensor]


@per_image
def move_map(
    model: nn.Module, x: Tensor, y: Tensor, explain: Explain, *, eps: float | Tensor, steps: int = 200,
    map_target: Tensor | None = None, p: float = 0.2, start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random search for the x' of another map:  max ℓ(g(x'; y), g(x; y))  in  ‖x' − x‖∞ ≤ eps, with x' answered y.

    Each proposal sets every channel of one square, at a random place, to x ± eps; it is kept where the answer is still
    y and the map g = explain(model, ·, y) is farther from where it began (`map_distance`). The square's share of the
    image begins at p and is halved as in `kit.attacks.square`. With map_target (N, H, W) the map is to come near that.

    explain   any explainer of `kit.explain`, with or without gradients: for LIME partial(lime, samples=…). It must give
              the same map for the same image, and the search fits to the samples that it draws: judge x' by others
    start     images (N, C, H, W) to begin with, such as x with noise, cut to the ball; x where they are not answered y

    Returns x' (N, C, H, W); where no proposal was kept, what it began with. Cost: `steps` forward passes, and as many
    maps at most.
    """
    goal, within = Goal(y, y), ball("linf", eps)
    (channels, h, w), sign = x.shape[1:], 1.0 if map_target is None else -1.0
    down, across = torch.arange(h, device=x.device)[:, None], torch.arange(w, device=x.device)
    first = explain(model, x, y)
    aim = first if map_target is None else map_target.to(first).expand_as(first)
    v, best = x.clone(), sign * map_distance(first, aim)
    if start is not None:
        begun = within.project(start, x)
        with torch.no_grad():
            v = torch.where(column(goal.reached(model(laid_out(begun))), x), begun, x)
        best = sign * map_distance(explain(model, v, y), aim)
    for k in range(steps):
        place, turn = uniform(x.new_empty(len(x), 2 + channels), generator).split([2, channels], 1)
        side = max(1, min(h, w, round((share(k, steps, p) * h * w) ** 0.5)))
        top, left = ((column(place[:, i], x) * (size - side + 1)).long() for i, size in enumerate((h, w)))
        inside = (down >= top) & (down < top + side) & (across >= left) & (across < left + side)
        edge = column(torch.as_tensor(eps).to(x).expand(len(x)), x) * (turn - 0.5).sign()[:, :, None, None]
        new = torch.where(inside, within.project(x + edge, x), v)
        with torch.no_grad():
            rows = goal.reached(model(laid_out(new))).nonzero()[:, 0]
        if not len(rows):
            continue
        with asking(model, rows):
            value = sign * map_distance(explain(model, new[rows], y[rows]), aim[rows])
        better = value > best[rows]
        v[rows[better]], best[rows[better]] = new[rows][better], value[better]
    return v
