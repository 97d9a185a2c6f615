"""Auto-PGD: projected gradient ascent whose step length needs no setting.

It maximises a loss over the ball, as `kit.attacks.pgd` does, but halves an image's step when it has stopped to pay, and
goes back to the best point then. The rule needs the history of the values, image by image, which the slots of
`kit.core.optimise` do not hold: it is a loop of its own.
"""
import math

import torch
from torch import Tensor, nn

from kit.core import L1, L2, Goal, Linf, Live, Trace, ball, cross_entropy, leaf, per_image
from kit.core.balls import column
from kit.core.goal import Loss


@per_image
def auto_pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", steps: int = 100,
    restarts: int = 1, loss: Loss = cross_entropy, target: Tensor | None = None, targets: int = 0,
    rho: float = 0.75, generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """Ascent with momentum, from a random point of the ball, with a step η that begins at 2 eps and is halved:

        u = Π(x'_k + η step(∇ℓ(x'_k))),     x'_{k+1} = Π(x'_k + ¾ (u − x'_k) + ¼ (x'_k − x'_{k−1})).

    At checkpoints (22 % of the steps, then ever sooner) an image goes back to its best point with η/2 if less than a
    share ρ of the steps since the last one raised ℓ, or if neither η nor the best value has changed since.
    loss is `cross_entropy`, `dlr` or any (logits, labels) → (N,); with `target` it is −loss(z, target), and for `dlr`
    its targeted form. With `targets` = T the targeted loss is run against each of the T most likely wrong classes in
    turn, and any wrong class counts. `auto_pgd(…)` and `auto_pgd(…, loss=dlr, targets=9)` are the first two of the
    four-attack ensemble AutoAttack. An image that is fooled leaves before the next restart or class; the point of
    greatest loss is returned, fooled before not fooled.
    Cost: `steps` forward and backward passes and one forward pass, per run that an image needs.
    Source: Croce and Hein, Reliable evaluation of adversarial robustness, ICML 2020, algorithm 1 and section 4.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"Auto-PGD's norm must be 'linf' or 'l2', not {norm!r}: in l1 it needs other steps, use pgd")
    if targets and target is not None:
        raise ValueError("give a target, or the number of classes to try as targets, not both")
    live = Live(model, x, Goal(y, target), generator)
    live.eps = eps
    if targets:
        with torch.no_grad():
            z = live.ask(x)
        if not 1 <= targets < z.shape[1]:
            raise ValueError(f"targets must be 1 to {z.shape[1] - 1}, the number of wrong classes, not {targets}")
        live.likely = z.scatter(1, y[:, None], -torch.inf).topk(targets, 1).indices
    for run in range(max(targets, 1) * restarts):
        toward = Goal(live.goal.y, live.likely[:, run % targets]) if targets else live.goal
        _ascend(live, toward, loss, ball(norm, live.eps), steps, rho, None if run else trace)
        live.drop(live.found.reached[live.rows])
        if not len(live):
            break
    return live.found.x_adv


def _ascend(live: Live, toward: Goal, loss: Loss, within: Linf | L2 | L1, steps: int, rho: float, trace) -> None:
    """One run. `toward` says what is climbed, the goal of the images what is kept."""

    def look(v: Tensor) -> Tensor:
        z = live.ask(v)
        value = toward.gain(z, loss)
        live.best(v, value, live.goal.reached(z))
        return value

    def climb(v: Tensor) -> tuple[Tensor, Tensor]:
        v = leaf(v)
        value = look(v)
        return value.detach(), live.grad(value, v)

    v = before = within.random(live.x, live.draws)
    value, g = climb(v)
    eta = 2 * within.eps * torch.ones_like(value)
    top, top_value, top_g = v, value, g  # the best point so far, where a halving goes back to
    checkpoints = _checkpoints(steps)
    rises, last, value_then, halved = torch.zeros_like(value), 0, value, torch.ones_like(value, dtype=torch.bool)
    for k in range(1, steps + 1):
        if trace is not None:
            trace.add(value, v)
        u = within.project(within.step(v, g, eta), live.x)
        new = u if k == 1 else within.project(v + 0.75 * (u - v) + 0.25 * (v - before), live.x)
        before, v, value_before = v, new, value
        if k == steps:
            with torch.no_grad():
                look(v)
            break
        value, g = climb(v)
        rises += value > value_before
        wins = value > top_value
        top, top_g = torch.where(column(wins, v), v, top), torch.where(column(wins, v), g, top_g)
        top_value = torch.maximum(value, top_value)
        if k in checkpoints:
            idle = (rises <= rho * (k - last)) | (~halved & (top_value <= value_then))
            eta = torch.where(idle, eta / 2, eta)
            v, g = torch.where(column(idle, v), top, v), torch.where(column(idle, v), top_g, g)
            value = torch.where(idle, top_value, value)
            rises, last, value_then, halved = torch.zeros_like(rises), k, top_value, idle


def _checkpoints(steps: int) -> set[int]:
    """⌈p_j · steps⌉ with p_1 = 0.22 and p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)."""
    p, gap, found = 0.22, 0.22, set()
    while p <= 1:
        found.add(math.ceil(p * steps - 1e-9))
        gap = max(gap - 0.03, 0.06)
        p += gap
    return found
