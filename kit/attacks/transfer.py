"""Transfer attacks: made on a network at hand, meant for one that is not. Here, by another gradient.

Plain iterations overfit the source. Four remedies change how the gradient is taken, and each wraps the one oracle:

    MI  momentum (the rule)               m ← μ m + g / mean|g|
    NI  look ahead                        g read at x' + step μ m
    TI  translation                       g ← W ∗ g, W a Gaussian kernel
    SI  scale                             g ← Σ_i ∇_x' ℓ(s_i(x')), s_i halving the contrast i times
    DI  input diversity                   g read through a random resizing and padding

`travel` composes them for any objective; `ni_fgsm`, `tim`, `dim`, `sim`, `si_ni_ti_dim` are choices of its arguments.
What else can be maximised than the loss is in `kit.attacks.attention`. Arguments are those of `kit.attacks.gradient`,
with the default step eps/steps and the same errors.
"""
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.gradient import _gain, _stride
from kit.core import Trace, ball, cross_entropy, generator, per_image
from kit.core.balls import column
from kit.core.loop import Memory, Oracle, gradient, momentum, optimise, steepest

Objective = Callable[[Tensor, int], Tensor]
RATIO = 330 / 299  # DIM: from 299 pixels up to 330
GREY, BLACK = 0.5, 0.0


def ahead(oracle: Oracle, reach: float | Tensor) -> Oracle:
    """NI: the gradient at v + reach · m, where the momentum is about to lead (it may lie outside the box)."""

    def look(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        return oracle(f, v + column(reach, v) * memory["m"] if "m" in memory else v, memory)

    return look


def smoothed(oracle: Oracle, W: Tensor) -> Oracle:
    """TI: the gradient convolved with W (k, k), channel by channel, with zeros around the image."""

    def convolved(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        value, g = oracle(f, v, memory)
        each = W.to(g).expand(g.shape[1], 1, *W.shape)
        return value, F.conv2d(g, each, padding=W.shape[0] // 2, groups=g.shape[1])

    return convolved


def gaussian(k: int) -> Tensor:
    """The normal density at k points from −3 to 3, times itself, with sum 1 (k, k): σ is (k − 1)/6 pixels."""
    w = torch.exp(-torch.linspace(-3, 3, k).square() / 2) if k > 1 else torch.ones(1)
    return torch.outer(w, w) / w.sum() ** 2


def scaled(oracle: Oracle, copies: int, level: float) -> Oracle:
    """SI: the sum of the gradients through level + (v − level)/2^i, i = 0 … copies − 1; the value is that of i = 0."""

    def paler(f, s: float):
        return lambda u: f(level + (u - level) * s)

    def summed(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        value, g = oracle(f, v, memory)
        for i in range(1, copies):
            g = g + oracle(paler(f, 2.0**-i), v, memory)[1]
        return value, g

    return summed


def diverse(oracle: Oracle, p: float, ratio: float, seed: int) -> Oracle:
    """DI: with probability p the gradient through `resized_and_padded`, drawn at each call for all images alike."""
    draws = generator(seed)

    def through(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        coin, *place = torch.rand(4, generator=draws).tolist()
        return oracle((lambda u: f(resized_and_padded(u, ratio, place))) if coin < p else f, v, memory)

    return through


def resized_and_padded(x: Tensor, ratio: float, draws: Sequence[float]) -> Tensor:
    """Resize (nearest) to a size from 1 up to `ratio` times, pad to the latter with grey, and resize back (bilinear).

    Three numbers in [0, 1) choose the size and the offsets. The original pads with 0 on images in [−1, 1], which is
    grey, and does not resize back: its networks take any size.
    """
    h, w = x.shape[2:]
    H, W = round(h * ratio), round(w * ratio)
    rows, columns = h + int(draws[0] * (H - h)), w + int(draws[0] * (W - w))
    top, left = int(draws[1] * (H - rows + 1)), int(draws[2] * (W - columns + 1))
    x = F.interpolate(x, (rows, columns), mode="nearest")
    x = F.pad(x, (left, W - columns - left, top, H - rows - top), value=GREY)
    return F.interpolate(x, (h, w), mode="bilinear", align_corners=False)


def travel(
    objective: Objective, x: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, look_ahead: bool = False, kernel: int = 1, copies: int = 1, towards: str = "grey", p: float = 0.0,
    ratio: float = RATIO, norm: str = "linf", seed: int = 0, trace: Trace | None = None,
) -> Tensor:
    """Maximise objective(x', k) -> (N,) over the ball around x, from x, with the chosen ingredients.

    mu > 0 is MI, look_ahead NI, an odd kernel above 1 TI, copies above 1 SI, p > 0 DI; with none of them (mu = 0) the
    steps are those of `bim`. Draws come from `seed`, the same for every image and every chunk. To be called inside
    `per_image`. Cost: `steps` · `copies` forward and backward passes of the objective.
    """
    if kernel < 1 or kernel % 2 == 0 or kernel // 2 >= min(x.shape[2:]):
        raise ValueError(f"kernel must be odd and fit the image, not {kernel}")
    if copies < 1:
        raise ValueError(f"copies must be 1 or more, not {copies}")
    if towards not in ("grey", "black"):
        raise ValueError(f"towards must be 'grey' or 'black', not {towards!r}")
    if not (0 <= p <= 1 and ratio >= 1):
        raise ValueError(f"p must lie in [0, 1] and ratio be 1 or more, not {p} and {ratio}")
    within = ball(norm, eps)
    stride = _stride(step, eps, steps)
    oracle: Oracle = gradient
    if p > 0:
        oracle = diverse(oracle, p, ratio, seed)
    if copies > 1:
        oracle = scaled(oracle, copies, GREY if towards == "grey" else BLACK)
    if kernel > 1:
        oracle = smoothed(oracle, gaussian(kernel))
    if look_ahead:  # in another norm than l∞, a momentum with |m| = 1 everywhere is as long as a step
        oracle = ahead(oracle, mu * stride / float(within.norm(torch.ones_like(x[:1]))))
    rule = momentum(within, stride, mu) if mu else steepest(within, stride)
    return optimise(
        objective, x, steps=steps, rule=rule, oracle=oracle, project=lambda v: within.project(v, x), trace=trace)


@per_image
def _travel(model, x, y, *, eps, step, target, loss, **ingredients) -> Tensor:
    """`travel` on a loss of the model; per image, and the same in every chunk."""

    def objective(x_adv: Tensor, k: int) -> Tensor:
        return _gain(model(x_adv), y, target, loss)

    return travel(objective, x, eps=eps, step=step, **ingredients)


def _seed(source: torch.Generator | None) -> int:
    source = source or generator()
    return int(torch.randint(2**62, (), generator=source, device=source.device))


def _width(kernel: int | None, x: Tensor, original: int) -> int:
    """The kernel asked for, or in proportion to the original at 299 pixels, but 5 at least: 3 does next to nothing."""
    return kernel or max(5, 2 * (original * min(x.shape[2:]) // (2 * 299)) + 1)


def ni_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Nesterov's momentum: `mi_fgsm` with the gradient read at x' + step · μ · m, where the momentum is leading.

    Cost: `steps` forward and backward passes.
    Source: Lin et al., Nesterov accelerated gradient and scale invariance, ICLR 2020, equations 6 to 8.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, look_ahead=True, norm=norm, target=target,
                   loss=loss, trace=trace)


def tim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, kernel: int | None = None, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy,
    trace: Trace | None = None,
) -> Tensor:
    """Translation invariance (TI-MI-FGSM; with mu = 0 TI-BIM): g ← W ∗ g with a Gaussian W, before the momentum.

    W ∗ g is the gradient averaged over shifted images, if the network does not mind shifts. `kernel` is 15 at 299
    pixels, in proportion for other sizes, but 5 at least (so at 28 and 32 pixels). Cost: `steps` forward and backward
    passes. Source: Dong et al., Evading defenses by translation-invariant attacks, CVPR 2019, equations 5 to 8.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, kernel=_width(kernel, x, 15), norm=norm,
                   target=target, loss=loss, trace=trace)


def dim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, p: float = 0.5, ratio: float = RATIO, norm: str = "linf", target: Tensor | None = None,
    loss=cross_entropy, generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """Input diversity (M-DI²-FGSM; with mu = 0 DI²-FGSM): each gradient with probability p through a random resizing.

    The image is resized by a factor in [1, ratio), padded with grey to `ratio`, and resized back; one draw per step
    serves all images, as in the original, so that none depends on another. Cost: `steps` forward and backward passes.
    Source: Xie et al., Improving transferability with input diversity, CVPR 2019, section 3.3.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, p=p, ratio=ratio, norm=norm, target=target,
                   loss=loss, seed=_seed(generator), trace=trace)


def sim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, copies: int = 5, towards: str = "grey", norm: str = "linf", target: Tensor | None = None,
    loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Scale invariance (SI-MI-FGSM): the sum of the gradients through `copies` images of halved contrast.

    towards="grey" is ½ + (x' − ½)/2^i, what the original does on images in [−1, 1]; towards="black" is x'/2^i, what the
    formula says on images in [0, 1]. Cost: `steps` · `copies` forward and backward passes.
    Source: Lin et al., Nesterov accelerated gradient and scale invariance, ICLR 2020, section 3.3.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, copies=copies, towards=towards, norm=norm,
                   target=target, loss=loss, trace=trace)


def si_ni_ti_dim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, look_ahead: bool = True, kernel: int | None = None, copies: int = 5, towards: str = "grey",
    p: float = 0.5, ratio: float = RATIO, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy,
    generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """All of them: each scaled copy through its own random resizing, at the point ahead; their sum smoothed.

    look_ahead=False, kernel=1, copies=1 and p=0 leave an ingredient out. `kernel` is 7 at 299 pixels, 5 at least.
    Cost: `steps` · `copies` forward and backward passes. Source: Lin et al., ICLR 2020, section 4.3.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, look_ahead=look_ahead,
                   kernel=_width(kernel, x, 7), copies=copies, towards=towards, p=p, ratio=ratio, norm=norm,
                   target=target, loss=loss, seed=_seed(generator), trace=trace)
