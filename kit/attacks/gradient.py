"""Gradient attacks: find an image in a small ball around x, on which the loss of the model is as large as can be.

    x' = argmax ℓ(f(x'), y)   subject to   ‖x' − x‖_p ≤ eps   and   x' ∈ [0, 1]

They climb the loss step by step; they differ in the number of steps, the start, and the oracle that says where up is.
With `target` (N,) they maximise −ℓ(f(x'), target) instead. Shared arguments:

    model      images (N, C, H, W) in [0, 1] → logits (N, K)      x, y    images and their labels (N,)
    eps        radius of the ball, in pixel units, one or (N,)    norm    "linf", "l2" or "l1"
    step       length of a step in that norm, one or (N,)         loss    (logits, labels) → (N,), see kit.core.losses
    trace      a kit.core.Trace to fill                           generator    where random numbers come from

Each returns x' (N, C, H, W), and raises ValueError or TypeError for images, labels, norms and numbers that make no
sense.
"""
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from kit.core import (
    Goal,
    Live,
    Trace,
    ball,
    cross_entropy,
    gradient,
    laid_out,
    leaf,
    momentum,
    optimise,
    per_image,
    steepest,
)
from kit.core.goal import Loss
from kit.core.loop import Oracle


class Steps(TypedDict, total=False):
    """The arguments of `climb` that every attack built on it hands on."""

    step: float | Tensor | None
    steps: int
    norm: str
    trace: Trace | None


class Climb(Steps, total=False):
    """And those of `bim`."""

    target: Tensor | None
    loss: Loss
    generator: torch.Generator | None


def climb(
    objective: Callable[[Tensor, int], Tensor], x: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None,
    steps: int = 10, norm: str = "linf", oracle: Oracle = gradient, draws: Any = None,
    trace: Trace | None = None,
) -> Tensor:
    """From x, `steps` times x' ← Π(x' + the longest climb along the oracle's direction within one step).

    objective(x', k) -> (N,) is what to maximise; Π projects onto the ball and the box; the default step is eps/steps.
    To be called inside `per_image`. Cost: `steps` calls of the oracle.
    """
    within = ball(norm, eps)
    step = eps / steps if step is None else step
    memory = {"reach": step / float(within.norm(torch.ones_like(x[:1]))), "draws": draws.alike() if draws else None}
    return optimise(objective, x, steps=steps, rule=steepest(within, step), oracle=oracle, memory=memory,
                    project=lambda v: within.project(v, x), trace=trace)


@per_image
def bim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    norm: str = "linf", target: Tensor | None = None, loss: Loss = cross_entropy, oracle: Oracle = gradient,
    generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """Basic iterative method (I-FGSM): from x, x' ← Π(x' + step · sign ∇ℓ); Π projects onto the ball and the box.

    The default step is eps/steps, the thesis's ε' = ε/K. Another `oracle` (`kit.core.oracles`) takes the gradient
    otherwise: with momentum, ahead, smoothed, scaled, diverse. Cost: `steps` forward and backward passes.
    Source: Kurakin et al., Adversarial examples in the physical world, 2017, section 2.2.
    """
    goal = Goal(y, target)
    return climb(lambda v, k: goal.gain(model(laid_out(v)), loss), x, eps=eps, step=step, steps=steps, norm=norm,
                 oracle=oracle, draws=generator, trace=trace)


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf",
    target: Tensor | None = None, loss: Loss = cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Fast gradient sign method: x' = x + eps · sign ∇_x ℓ(f(x), y), cut to [0, 1]: one step of `bim`.

    In another norm, the step that climbs most within it. Cost: one forward and one backward pass.
    Source: Goodfellow et al., Explaining and harnessing adversarial examples, ICLR 2015, section 4.
    """
    return bim(model, x, y, eps=eps, steps=1, norm=norm, target=target, loss=loss, trace=trace)


def fgm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "l2",
    target: Tensor | None = None, loss: Loss = cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Fast gradient method: x' = x + eps · ∇_x ℓ / ‖∇_x ℓ‖₂, cut to the ball and to [0, 1].

    `fgsm` with the l2 norm as its default. Cost: one forward and one backward pass.
    Source: Miyato et al., Adversarial training methods, ICLR 2017, section 3.
    """
    return fgsm(model, x, y, eps=eps, norm=norm, target=target, loss=loss, trace=trace)


def mi_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, mu: float = 1.0, **how: Unpack[Climb],
) -> Tensor:
    """Momentum iterative method: m ← μ m + ∇ℓ/mean|∇ℓ|, then a step of `bim` along m in place of the gradient.

    With mu = 0 it is `bim`, whose other arguments it takes. Cost: `steps` forward and backward passes.
    Source: Dong et al., Boosting adversarial attacks with momentum, CVPR 2018, algorithm 1.
    """
    return bim(model, x, y, eps=eps, oracle=momentum(mu=mu) if mu else gradient, **how)


@per_image
def pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 40,
    norm: str = "linf", restarts: int = 1, random_start: bool = True, target: Tensor | None = None,
    loss: Loss = cross_entropy, generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """Projected gradient descent: `bim` from a random point of the ball, keeping each image's best iterate.

    The best is one that fools before one that does not, then the one of greatest loss. The default step is
    2.5 eps/steps, so that any point of the ball can be reached and left again. With `restarts`, an image that is fooled
    is left alone and the others start again from a new point.
    Cost: `steps` forward and backward passes and one forward pass, per restart that an image needs.
    Source: Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018, section 2.1.
    """
    live = Live(model, x, Goal(y, target), generator)
    live.eps, live.step = eps, 2.5 * eps / steps if step is None else step

    def look(v: Tensor) -> Tensor:
        z = live.ask(v)
        value = live.goal.gain(z, loss)
        live.best(v, value, live.goal.reached(z))
        return value

    for restart in range(restarts if random_start else 1):
        within = ball(norm, live.eps)
        v = within.random(live.x, live.draws) if random_start else live.x
        for _ in range(steps):
            v = leaf(v)
            value = look(v)
            if trace is not None and restart == 0:
                trace.add(value, v)
            v = within.project(within.step(v.detach(), live.grad(value, v), live.step), live.x)
        with torch.no_grad():
            look(v)
        live.drop(live.found.reached[live.rows])
        if not len(live):
            break
    return live.found.x_adv
