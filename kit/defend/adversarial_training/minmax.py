"""The min-max problem as it stands, and TRADES, which sets another maximum beside the clean loss."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import ball, borrowed, laid_out
from kit.core.seeding import normal
from kit.defend.adversarial_training.inner import Growing, ascend, check, nearby
from kit.models import Recipe, fit


def adversarial_training(
    r: Recipe, x: Tensor, y: Tensor, *, eps: float = 8 / 255, steps: int = 7, step: float | None = None,
    norm: str = "linf", random_start: bool = True, clean: float = 0.0, ramp: float = 0.0, **how: Any,
) -> nn.Module:
    """Learns from what `steps` steps uphill from a random start make of each batch: min E[max CE(f(x + δ), y)].

    clean = α adds the clean images, α CE(f(x), y) + (1 − α) CE(f(x + δ), y): with α = 1/2, steps=1, step=eps and
    random_start=False that is the regulariser of Goodfellow et al. (ICLR 2015, section 6), with more steps the joint
    loss CE(f(x), y) + max CE(f(x + δ), y) of the lecture, halved. The default step is 2.5 eps/steps. ramp > 0 lets ε
    grow from zero over that share of the training: where a fresh network finds no hold against the full ε, it stays at
    chance.
    Cost: steps + 1 forward and backward passes; with clean > 0 one of each more.
    Source: Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018, equation 2.1.
    """
    check(eps=eps, step=step, steps=steps, clean=clean)
    step = 2.5 * eps / steps if step is None else step
    grown = Growing(ramp)

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        if clean == 1:
            return F.cross_entropy(model(xb).float(), yb)
        now = grown.share * eps
        start = ball(norm, now).random(xb, nearby(generator, xb)) if random_start else xb
        x_adv = ascend(model, lambda v: F.cross_entropy(model(v).float(), yb, reduction="sum"), xb, start, eps=now,
                       step=grown.share * step, steps=steps, norm=norm)
        worst = F.cross_entropy(model(laid_out(x_adv)).float(), yb)
        return (1 - clean) * worst + clean * F.cross_entropy(model(xb).float(), yb) if clean else worst

    return fit(r, x, y, loss=loss, before=grown, **how)


def trades(
    r: Recipe, x: Tensor, y: Tensor, *, eps: float = 8 / 255, steps: int = 10, step: float | None = None,
    beta: float = 6.0, ramp: float = 0.0, **how: Any,
) -> nn.Module:
    """CE(f(x), y) + β max KL(p(x) ‖ p(x + δ)), p the softmax: right on the image, and the same answer around it.

    δ climbs the KL divergence from x + 0.001 N(0, 1), since at x itself its gradient is zero. Both of its arguments are
    learnt. With β = 0 it is plain training; the default step is 2.5 eps/steps.
    Cost: steps + 2 forward and backward passes, and a forward pass for p(x).
    Source: Zhang et al., Theoretically principled trade-off between robustness and accuracy, ICML 2019, algorithm 1.
    """
    check(eps=eps, step=step, steps=steps, beta=beta)
    step = 2.5 * eps / steps if step is None else step
    grown = Growing(ramp)

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        if not beta:
            return F.cross_entropy(model(xb).float(), yb)
        now = grown.share * eps
        with borrowed(model, xb), torch.no_grad():
            p = model(xb).float().softmax(1)
        start = ball("linf", now).project(xb + 0.001 * normal(xb, nearby(generator, xb)), xb)
        x_adv = ascend(model, lambda v: divergence(p, model(v)), xb, start, eps=now, step=grown.share * step,
                       steps=steps)
        z = model(xb)
        apart = divergence(z.float().softmax(1), model(laid_out(x_adv))) / len(xb)
        return F.cross_entropy(z.float(), yb) + beta * apart

    return fit(r, x, y, loss=loss, before=grown, **how)


def divergence(p: Tensor, z: Tensor) -> Tensor:
    """Σ over images and classes of p (log p − log softmax(z)), in nats."""
    return F.kl_div(z.float().log_softmax(1), p, reduction="sum")
