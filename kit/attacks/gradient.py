"""Gradient attacks: find an image in a small ball around x, on which the loss of the model is as large as can be.

    x' = argmax ℓ(f(x'), y)   subject to   ‖x' − x‖_p ≤ eps   and   x' ∈ [0, 1]

All of them fill the slots of `kit.core.optimise`; they differ in the number of steps, the start, and the rule.
With `target` (N,) they maximise −ℓ(f(x'), target) instead. Shared arguments:

    model      images (N, C, H, W) in [0, 1] → logits (N, K)      x, y    images and their labels (N,)
    eps        radius of the ball, in pixel units, one or (N,)    norm    "linf", "l2" or "l1"
    step       length of a step in that norm                      loss    (logits, labels) → (N,), see kit.core.losses
    trace      a kit.core.Trace to fill                           generator    where random starts come from

Each returns x' (N, C, H, W), and raises ValueError or TypeError for images, labels, norms and radii that make no sense.
"""
import torch
from torch import Tensor, nn

from kit.core import Trace, asking, ball, cross_entropy, laid_out, momentum, optimise, per_image, steepest, take
from kit.core.loop import Rule


def _climb(model, x, start, y, *, within, rule: Rule, steps, target, loss, trace, keep="last") -> Tensor:
    """Maximise the loss over the ball `within` around x, from `start`, by the given rule."""

    def objective(x_adv: Tensor, k: int) -> Tensor:
        return _gain(model(laid_out(x_adv)), y, target, loss)

    return optimise(
        objective, start, steps=steps, rule=rule, project=lambda v: within.project(v, x), keep=keep, trace=trace)


def _gain(z: Tensor, y: Tensor, target: Tensor | None, loss) -> Tensor:
    return loss(z, y) if target is None else -loss(z, target)


def _stride(step: float | Tensor | None, way: float | Tensor, steps: int) -> float | Tensor:
    """The given step, or the one that covers the way in `steps` steps."""
    return way / max(steps, 1) if step is None else step


@per_image
def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf",
    target: Tensor | None = None, loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Fast gradient sign method: x' = x + eps · sign ∇_x ℓ(f(x), y), cut to [0, 1].

    In another norm, the step that climbs most within it. Cost: one forward and one backward pass.
    Source: Goodfellow et al., Explaining and harnessing adversarial examples, ICLR 2015, section 4.
    """
    within = ball(norm, eps)
    rule = steepest(within, eps)
    return _climb(model, x, x, y, within=within, rule=rule, steps=1, target=target, loss=loss, trace=trace)


def fgm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "l2",
    target: Tensor | None = None, loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Fast gradient method: x' = x + eps · ∇_x ℓ / ‖∇_x ℓ‖₂, cut to the ball and to [0, 1].

    `fgsm` with the l2 norm as its default. Cost: one forward and one backward pass.
    Source: Miyato et al., Adversarial training methods, ICLR 2017, section 3.
    """
    return fgsm(model, x, y, eps=eps, norm=norm, target=target, loss=loss, trace=trace)


@per_image
def bim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    norm: str = "linf", target: Tensor | None = None, loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Basic iterative method (I-FGSM): from x, x' ← Π(x' + step · sign ∇ℓ); Π projects onto the ball and the box.

    The default step is eps/steps, the thesis's ε' = ε/K. Cost: `steps` forward and backward passes.
    Source: Kurakin et al., Adversarial examples in the physical world, 2017, section 2.2.
    """
    within = ball(norm, eps)
    rule = steepest(within, _stride(step, eps, steps))
    return _climb(model, x, x, y, within=within, rule=rule, steps=steps, target=target, loss=loss, trace=trace)


@per_image
def mi_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Momentum iterative method: m ← μ m + ∇ℓ/‖∇ℓ‖₁, then a step of `bim` along m in place of the gradient.

    The default step is eps/steps; with mu = 0 it is `bim`. Cost: `steps` forward and backward passes.
    Source: Dong et al., Boosting adversarial attacks with momentum, CVPR 2018, algorithm 1.
    """
    within = ball(norm, eps)
    rule = momentum(within, _stride(step, eps, steps), mu)
    return _climb(model, x, x, y, within=within, rule=rule, steps=steps, target=target, loss=loss, trace=trace)


@per_image
def pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 40,
    norm: str = "linf", restarts: int = 1, random_start: bool = True, target: Tensor | None = None,
    loss=cross_entropy, generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """Projected gradient descent: `bim` from a random point of the ball, keeping each image's best iterate.

    The default step is 2.5 eps/steps, so that any point of the ball can be reached and left again. With `restarts`, an
    image that is fooled is left alone and the others start again from a new point; the best end is returned, fooled
    before not fooled. Cost: `steps` forward and backward passes and one forward pass, per restart that an image needs.
    Source: Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018, section 2.1.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be 1 or more, not {restarts}")
    step = _stride(step, 2.5 * eps, steps)
    within = ball(norm, eps)
    best, best_value = x, torch.full_like(x[:, 0, 0, 0], -torch.inf)
    open_ = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        start = within.random(x, generator) if random_start else x  # drawn for all, so that none depends on the others
        x_, start, y_, target_, eps_, step_ = take(open_, x, start, y, target, eps, step)
        near = ball(norm, eps_)
        with asking(model, open_):
            end = _climb(model, x_, start, y_, within=near, rule=steepest(near, step_), steps=steps, target=target_,
                         loss=loss, trace=None if restart else trace, keep="best")
            if restarts == 1:
                return end
            with torch.no_grad():
                z = model(end)
        value = _gain(z, y_, target_, loss)
        hit = z.argmax(1) != y_ if target_ is None else z.argmax(1) == target_
        better = hit | (value > best_value[open_])
        best = best.index_copy(0, open_[better], end[better])
        best_value[open_[better]] = value[better]
        open_ = open_[~hit]
        if not len(open_) or not random_start:
            break
    return best
