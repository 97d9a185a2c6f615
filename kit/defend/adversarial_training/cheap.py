"""Adversarial training for less: one step (fast), the same pass for δ and θ (free), cheap steps in one layer (YOPO)."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import ball, laid_out, leaf
from kit.defend.adversarial_training.inner import Growing, check, nearby
from kit.defend.adversarial_training.minmax import adversarial_training
from kit.models import Recipe, fit
from kit.models.training import Gradients


def fast_training(
    r: Recipe, x: Tensor, y: Tensor, *, eps: float = 8 / 255, step: float | None = None, random_start: bool = True,
    **how: Any,
) -> nn.Module:
    """`adversarial_training` with a single step, by default of 1.25 eps, from a random start.

    It can collapse within an epoch ("catastrophic overfitting"): the network then withstands the single step and
    nothing else. The random start makes that rarer; without it, and with longer steps, it is to be expected. So watch
    the accuracy under `pgd` (`fit`'s `watch`).
    Cost: two forward and backward passes.
    Source: Wong et al., Fast is better than free: revisiting adversarial training, ICLR 2020, algorithm 3.
    """
    check(eps=eps, step=step)
    step = 1.25 * eps if step is None else step
    return adversarial_training(r, x, y, eps=eps, steps=1, step=step, random_start=random_start, **how)


def free_training(
    r: Recipe, x: Tensor, y: Tensor, *, eps: float = 8 / 255, step: float | None = None, m: int = 8,
    ramp: float = 0.0, **how: Any,
) -> nn.Module:
    """Each batch m times in a row; every pass gives the gradient for θ and the one for δ, and both step.

        g_θ, g_δ = ∇ CE(f_θ(x + δ), y),    θ ← θ − … g_θ,    δ ← Π(δ + step · sign g_δ)

    δ is kept from one batch to the next, by the place in the batch, and x + δ is cut to [0, 1]. The network is in
    training mode throughout. The default step is eps. An epoch is m passes, so that a recipe has 1/m of the epochs;
    with m = 1 an image never meets a δ of its own, only that of the image before it.
    Cost: m forward and backward passes.
    Source: Shafahi et al., Adversarial training for free!, NeurIPS 2019, algorithm 1.
    """
    check(eps=eps, step=step, m=m)
    ball("linf", eps)
    step = eps if step is None else step
    grown, kept = Growing(ramp), {"delta": torch.zeros_like(x[:r.batch])}

    def oracle(
        model: nn.Module, weights: list[nn.Parameter], xb: Tensor, yb: Tensor, generator: torch.Generator
    ) -> Gradients:
        delta = kept["delta"].to(xb)
        v = leaf((xb + delta).clamp(0, 1))
        value = F.cross_entropy(model(laid_out(v)).float(), yb)
        *gradients, g = torch.autograd.grad(value, [*weights, v])
        kept["delta"] = (delta + grown.share * step * g.sign()).clamp(-grown.share * eps, grown.share * eps)
        return value, gradients

    return fit(r, x, y, oracle=oracle, replays=m, memory=kept, before=grown, **how)


def yopo_training(
    r: Recipe, x: Tensor, y: Tensor, *, eps: float = 8 / 255, step: float | None = None, m: int = 5, n: int = 3,
    layer: str = "", ramp: float = 0.0, **how: Any,
) -> nn.Module:
    """m passes through the network, and between them n steps of δ that need its first layer f₀ alone.

        p = ∂CE/∂f₀(x + δ),  held for n steps of   δ ← Π(δ + step · sign ∇_δ ⟨p, f₀(x + δ)⟩)

    ("you only propagate once"). θ learns from the mean gradient of the m passes. f₀ is the chain of stages up to the
    end of `layer`, by default the first convolution or linear layer. With n = 1 the δ of the passes are those of PGD.
    The network is in training mode throughout; δ begins at random. The default step is 2.5 eps/(m n).
    Cost: m forward and backward passes, and (m − 1)(n − 1) through f₀.
    Source: Zhang et al., You only propagate once, NeurIPS 2019, algorithm 1.
    """
    check(eps=eps, step=step, m=m, n=n)
    step = 2.5 * eps / (m * n) if step is None else step
    grown = Growing(ramp)

    def oracle(
        model: nn.Module, weights: list[nn.Parameter], xb: Tensor, yb: Tensor, generator: torch.Generator
    ) -> Gradients:
        first, rest = halves(model, layer)
        within = ball("linf", grown.share * eps)
        v = within.random(xb, nearby(generator, xb))
        values, total = [], [torch.zeros_like(w) for w in weights]
        for j in range(m):
            v = leaf(v)
            h = first(laid_out(v))
            value = F.cross_entropy(rest(h).float(), yb)
            p, g, *gradients = torch.autograd.grad(value, [h, v, *weights])
            values.append(value.detach())
            total = [t + w / m for t, w in zip(total, gradients, strict=True)]
            for i in range(n * (j < m - 1)):
                if i:
                    v = leaf(v)
                    (g,) = torch.autograd.grad((p.detach() * first(laid_out(v))).sum(), v)
                v = within.project(within.step(v.detach(), g, grown.share * step), xb)
        return torch.stack(values).mean(), total

    return fit(r, x, y, oracle=oracle, before=grown, **how)


def halves(model: nn.Module, layer: str = "") -> tuple[nn.Sequential, nn.Sequential]:
    """A chain cut behind `layer`: what comes before, and what comes after. Without a name, behind the first
    convolution or linear layer. Raises ValueError where the model is no chain there."""
    leaves = list(chain("", model))
    names = [name for name, _ in leaves]
    if layer:
        inside = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{layer}.")]
    else:
        inside = [i for i, (_, module) in enumerate(leaves) if isinstance(module, nn.Conv2d | nn.Linear)][:1]
    if not inside:
        raise ValueError(f"the model has no layer {layer!r} in its chain: it has {', '.join(names)}")
    cut = inside[-1] + 1
    return nn.Sequential(*(m for _, m in leaves[:cut])), nn.Sequential(*(m for _, m in leaves[cut:]))


def chain(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that a network applies one after another, by name: those of its nn.Sequential, opened."""
    if not isinstance(module, nn.Sequential):
        return [(name, module)]
    return [part for inner, child in module.named_children()
            for part in chain(f"{name}.{inner}" if name else inner, child)]
