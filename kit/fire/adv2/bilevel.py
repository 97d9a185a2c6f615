"""ADV² on MASK, whose map is itself the end of a descent: symbols as in `kit.fire.adv2`.

    x' = argmin ℓ_int(m*(x'), m)   where   m*(x') = argmin_m ℓ_map(m; x')   and   f(x') says t

m* has no formula to differentiate. Instead a mask follows the image by a few steps of its own descent in each round,
and x' is moved as if the last of these steps were all that depended on it: a look-ahead of one step.
"""
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kit.core import Goal, Linf, Live, asking, differentiate, leaf, per_image
from kit.core.balls import column
from kit.explain.mask import Descent, mask
from kit.fire.adv2.descent import View, keep, map_distance, wanted

HALVINGS = 6  # of the step; their code makes 10


@per_image
def adv2_mask(
    model: nn.Module, x: Tensor, target: Tensor, explain: Callable[..., Tensor] = mask, *,
    map_target: Tensor | None = None, eps: float | Tensor, step: float | Tensor | None = None, warm: int = 20,
    steps: int = 60, inner: int = 4, unroll: int = 1, solve: int = 100, every: int = 15, kappa: float = 0.3,
    sure: float = 0.5, views: Sequence[View] = (),
) -> Tensor:
    """`warm` targeted steps up the lead z_t − max_{j≠t} z_j, then `steps` rounds, each of which

        (a) moves images that lead by less than κ up the lead, by a step of its sign
        (b) moves each mask by `inner` steps of MASK's own descent on x', the last `unroll` with their graph
        (c) moves x' by s · sign ∇ℓ_int through these last steps, with the largest s ≤ step, found by bisection for each
            image, that leaves the lead above κ (s = 0 where none does)

    and every `every` rounds, and at the end, solves the mask anew on x', by `solve` steps, and goes on from there:
    of these the image keeps the one of least ℓ_int, as `adv2` does. With `views`, as there, the lead is the least of
    those of x' and its views. `explain` is `kit.explain.mask`, with settings by `functools.partial`; the default step
    is eps/8, and the authors' is normalised in l2. Memory grows with `unroll` (theirs is 1) and with no other of these
    numbers. The maps of `adv2` with `partial(mask, unroll=10)` come nearer: there each step solves the mask anew, and
    derives through the end of that. Cost, in forward and backward passes: `solve` and steps · (inner + 3), `solve` at
    each look, and a forward pass for each halving. Source: the paper, section 3.4 and algorithm 1; the authors' code.
    """
    if warm < 0 or every < 1 or not 1 <= unroll <= inner or not 0 <= sure < 1:
        raise ValueError("warm must be 0 or more, every 1 or more, unroll from 1 to inner, and sure lie in [0, 1), not "
                         f"{warm}, {every}, {unroll} and {sure}")
    live, within = Live(model, x, Goal(target, target)), Linf(eps)
    step = eps / 8 if step is None else step

    def solved(v: Tensor, classes: Tensor) -> tuple[Tensor, Descent]:
        state = Descent(v)
        with asking(model, live.rows):
            return explain(model, v, classes, state=state, steps=solve), state

    def answers(v: Tensor) -> Tensor:
        return torch.stack([live.ask(w) for w in (v, *(view(v) for view in views))])

    def least(v: Tensor) -> Tensor:
        return torch.stack([live.goal.lead(z) for z in answers(v)]).amin(0)

    def lead(v: Tensor) -> Tensor:
        with torch.no_grad():
            return least(v)

    def up(v: Tensor, short: Tensor | None = None) -> Tensor:
        """A step of the lead's sign for the images that are short of it."""
        v = leaf(v)
        g = live.grad(least(v), v)
        moved = within.project(within.step(v.detach(), g, step), x)
        return moved if short is None else torch.where(column(short, v), moved, v.detach())

    def down(v: Tensor, g: Tensor, s: Tensor) -> Tensor:
        return within.project(v - column(s * step, v) * g.sign(), x)

    m = wanted(live, map_target, lambda v, classes: solved(v, classes)[0])
    v = x
    for _ in range(warm):
        v = up(v)
    for k in range(steps + 1):
        if k % every == 0 or k == steps:
            shown, state = solved(v, target)
            with torch.no_grad():
                keep(live, v, answers(v), map_distance(shown, m), sure)
        if k == steps:
            break
        if bool((short := lead(v) <= kappa).any()):
            v = up(v, short)
        v = leaf(v)
        with asking(model, live.rows):
            ahead = explain(model, v, target, state=state, steps=inner, unroll=unroll, create_graph=True)
        g = differentiate(map_distance(ahead, m), v)
        v = as_far_as(partial(down, v.detach(), g), lambda moved: lead(moved) > kappa, v)
    return live.found.x_adv


def as_far_as(move: Callable[[Tensor], Tensor], allowed: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """move(s) for the largest s in [0, 1] that is allowed, one for each image of v, as bisection finds it."""
    low, high = torch.zeros_like(v[:, 0, 0, 0]), torch.ones_like(v[:, 0, 0, 0])
    s = high
    for _ in range(HALVINGS + 1):
        fits = allowed(move(s))
        low, high = torch.where(fits, s, low), torch.where(fits, high, s)
        s = (low + high) / 2
    return move(low.detach())
