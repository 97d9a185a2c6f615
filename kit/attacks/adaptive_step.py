"""Auto-PGD: projected gradient ascent whose step length needs no setting.

It maximises a loss over the ball, as `kit.attacks.pgd` does, but halves an image's step when it has stopped to pay, and
goes back to the best point then. The rule needs the history of the values, image by image, which the slots of
`kit.core.optimise` do not hold: it is a loop of its own.
"""
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kit.core import L1, L2, Linf, Trace, asking, ball, cross_entropy, dlr, laid_out, per_image, take
from kit.core.checks import check_gradient


@per_image
def auto_pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", steps: int = 100,
    restarts: int = 1, loss: Callable = cross_entropy, target: Tensor | None = None, targets: int = 0,
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
    if restarts < 1 or steps < 1:
        raise ValueError(f"restarts and steps must be 1 or more, not {restarts} and {steps}")
    if targets and target is not None:
        raise ValueError("give a target, or the number of classes to try as targets, not both")
    within = ball(norm, eps)
    every = torch.arange(len(x), device=x.device)
    open_, hit = every, torch.zeros_like(y, dtype=torch.bool)
    best, best_value = x, torch.full_like(x[:, 0, 0, 0], -torch.inf)
    likely = None
    if targets:
        with torch.no_grad(), asking(model, every):
            z = model(x)
        if not 1 <= targets < z.shape[1]:
            raise ValueError(f"targets must be 1 to {z.shape[1] - 1}, the number of wrong classes, not {targets}")
        likely = z.scatter(1, y[:, None], -torch.inf).topk(targets, 1).indices
    for run in range(max(targets, 1) * restarts):
        start = within.random(x, generator)  # drawn for all, so that none depends on the others
        toward = target if likely is None else likely[:, run % targets]
        open_ = open_[~hit]
        if not len(open_):
            break
        x_, start, y_, toward, target_, eps_ = take(open_, x, start, y, toward, target, eps)

        def f(v: Tensor, y=y_, toward=toward, target=target_) -> tuple[Tensor, Tensor]:
            z = model(v)
            predicted = z.detach().argmax(1)
            return _gain(z, y, toward, loss), predicted != y if target is None else predicted == target

        with asking(model, open_):
            end, value, hit = _ascend(f, x_, start, ball(norm, eps_), steps, rho, None if run else trace)
        better = hit | (value > best_value[open_])
        best = best.index_copy(0, open_[better], end[better])
        best_value[open_[better]] = value[better]
    return best


def _gain(z: Tensor, y: Tensor, target: Tensor | None, loss: Callable) -> Tensor:
    if target is None:
        return loss(z, y)
    return dlr(z, y, target) if loss is dlr else -loss(z, target)


def _ascend(f, x, start, within: Linf | L2 | L1, steps: int, rho: float, trace) -> tuple[Tensor, Tensor, Tensor]:
    """One run: the point to return, its loss, and whether it is adversarial."""

    def look(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = laid_out(v).detach().requires_grad_()
        value, hit = f(v)
        return value.detach(), hit, torch.autograd.grad(value.sum(), v)[0]

    v = before = start
    value, hit, g = look(v)
    check_gradient(value, g)
    eta = 2 * within.eps * torch.ones_like(value)
    top, top_value, top_g = v, value, g  # the best point so far, where a halving goes back to
    kept, kept_value, kept_hit = v, value, hit  # the one to return: an adversarial one if there was any
    checkpoints = _checkpoints(steps)
    rises, last, value_then, halved = torch.zeros_like(value), 0, value, torch.ones_like(hit)
    for k in range(1, steps + 1):
        if trace is not None:
            trace.add(value, v)
        u = within.project(within.step(v, g, eta), x)
        new = u if k == 1 else within.project(v + 0.75 * (u - v) + 0.25 * (v - before), x)
        before, v, value_before = v, new, value
        if k < steps:
            value, hit, g = look(v)
        else:
            with torch.no_grad():
                value, hit = f(v)
        rises += value > value_before
        wins = value > top_value
        top, top_g = torch.where(_col(wins), v, top), torch.where(_col(wins), g, top_g)
        top_value = torch.maximum(value, top_value)
        wins = (hit & ~kept_hit) | ((hit == kept_hit) & (value > kept_value))
        kept, kept_value = torch.where(_col(wins), v, kept), torch.where(wins, value, kept_value)
        kept_hit = kept_hit | hit
        if k in checkpoints:
            idle = (rises <= rho * (k - last)) | (~halved & (top_value <= value_then))
            eta = torch.where(idle, eta / 2, eta)
            v, g = torch.where(_col(idle), top, v), torch.where(_col(idle), top_g, g)
            value = torch.where(idle, top_value, value)
            rises, last, value_then, halved = torch.zeros_like(rises), k, top_value, idle
    return kept, kept_value, kept_hit


def _col(a: Tensor) -> Tensor:
    return a.view(-1, 1, 1, 1)


def _checkpoints(steps: int) -> set[int]:
    """⌈p_j · steps⌉ with p_1 = 0.22 and p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)."""
    p, gap, found = 0.22, 0.22, set()
    while p <= 1:
        found.add(math.ceil(p * steps - 1e-9))
        gap = max(gap - 0.03, 0.06)
        p += gap
    return found
