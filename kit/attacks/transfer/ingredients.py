"""Transfer attacks: made on a network at hand, meant for one that is not. Here, by another gradient.

Plain iterations overfit the source. Five remedies change how the gradient is taken, each an oracle of
`kit.core.oracles`:

    MI  momentum                          m ← μ m + g / mean|g|, and m is the direction
    NI  look ahead                        g read at x' + step μ m
    TI  translation                       g ← W ∗ g, W a Gaussian kernel
    SI  scale                             g ← Σ_i ∇_x' ℓ(s_i(x')), s_i halving the contrast i times
    DI  input diversity                   g read through a random resizing and padding

`travelling` puts them together, and each attack is `bim` with such an oracle; it takes `bim`'s other arguments.
What else can be maximised than the loss is in `kit.attacks.attention`.
"""
from collections.abc import Callable
from typing import TypedDict, Unpack

from torch import Tensor, nn

from kit.attacks.gradient import Climb, Steps, bim, climb
from kit.core import Draws, Trace, ahead, diverse, gaussian, gradient, momentum, scaled, smoothed
from kit.core.loop import Oracle
from kit.core.oracles import BLACK, MID_GREY

RATIO = 330 / 299  # DIM: from 299 pixels up to 330


class Ingredients(TypedDict, total=False):
    """What `travelling` takes beside mu."""

    look_ahead: bool
    kernel: int
    copies: int
    towards: str
    p: float
    ratio: float


class Travel(Steps, Ingredients, total=False):
    """And the arguments of `climb`."""


def travelling(
    *, mu: float = 1.0, look_ahead: bool = False, kernel: int = 1, copies: int = 1, towards: str = "grey",
    p: float = 0.0, ratio: float = RATIO,
) -> Oracle:
    """The oracle with the chosen ingredients: mu > 0 is MI, look_ahead NI, an odd kernel above 1 TI, copies above 1 SI
    towards "grey" or "black", p > 0 DI. With none of them (mu = 0) it is the gradient.

    Cost of a call: `copies` forward and backward passes.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, not {kernel}")
    if copies < 1:
        raise ValueError(f"copies must be 1 or more, not {copies}")
    if towards not in ("grey", "black"):
        raise ValueError(f"towards must be 'grey' or 'black', not {towards!r}")
    oracle: Oracle = gradient
    if p != 0:
        oracle = diverse(oracle, p, ratio)
    if copies > 1:
        oracle = scaled(oracle, copies, MID_GREY if towards == "grey" else BLACK)
    if kernel > 1:
        oracle = smoothed(oracle, gaussian(kernel))
    if look_ahead:
        oracle = ahead(oracle, mu)
    return momentum(oracle, mu) if mu else oracle


def travel(
    objective: Callable[[Tensor, int], Tensor], x: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None,
    steps: int = 10, norm: str = "linf", draws: Draws | None = None, trace: Trace | None = None, mu: float = 1.0,
    **ingredients: Unpack[Ingredients],
) -> Tensor:
    """`kit.attacks.gradient.climb` with the oracle of these ingredients: maximise objective(x', k) -> (N,) from x."""
    return climb(objective, x, eps=eps, step=step, steps=steps, norm=norm, oracle=travelling(mu=mu, **ingredients),
                 draws=draws or Draws(len(x)), trace=trace)


def width(kernel: int | None, x: Tensor, original: int) -> int:
    """The kernel asked for, or in proportion to the original at 299 pixels, but 5 at least: 3 does next to nothing."""
    return kernel or max(5, 2 * (original * min(x.shape[2:]) // (2 * 299)) + 1)


def ni_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, mu: float = 1.0, **how: Unpack[Climb],
) -> Tensor:
    """Nesterov's momentum: `mi_fgsm` with the gradient read at x' + step · μ · m, where the momentum is leading.

    Cost: `steps` forward and backward passes.
    Source: Lin et al., Nesterov accelerated gradient and scale invariance, ICLR 2020, equations 6 to 8.
    """
    return bim(model, x, y, eps=eps, oracle=travelling(mu=mu, look_ahead=True), **how)


def tim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, mu: float = 1.0, kernel: int | None = None,
    **how: Unpack[Climb],
) -> Tensor:
    """Translation invariance (TI-MI-FGSM; with mu = 0 TI-BIM): g ← W ∗ g with a Gaussian W, before the momentum.

    W ∗ g is the gradient averaged over shifted images, if the network does not mind shifts. `kernel` is 15 at 299
    pixels, in proportion for other sizes, but 5 at least (so at 28 and 32 pixels). Cost: `steps` forward and backward
    passes. Source: Dong et al., Evading defenses by translation-invariant attacks, CVPR 2019, equations 5 to 8.
    """
    return bim(model, x, y, eps=eps, oracle=travelling(mu=mu, kernel=width(kernel, x, 15)), **how)


def dim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, mu: float = 1.0, p: float = 0.5,
    ratio: float = RATIO, **how: Unpack[Climb],
) -> Tensor:
    """Input diversity (M-DI²-FGSM; with mu = 0 DI²-FGSM): each gradient with probability p through a random resizing.

    The image is resized by a factor in [1, ratio), padded with grey to `ratio`, and resized back; one draw per step
    serves all images, as in the original, so that none depends on another. Cost: `steps` forward and backward passes.
    Source: Xie et al., Improving transferability with input diversity, CVPR 2019, section 3.3.
    """
    return bim(model, x, y, eps=eps, oracle=travelling(mu=mu, p=p, ratio=ratio), **how)


def sim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, mu: float = 1.0, copies: int = 5,
    towards: str = "grey", **how: Unpack[Climb],
) -> Tensor:
    """Scale invariance (SI-MI-FGSM): the sum of the gradients through `copies` images of halved contrast.

    towards="grey" is ½ + (x' − ½)/2^i, what the original does on images in [−1, 1]; towards="black" is x'/2^i, what the
    formula says on images in [0, 1]. Cost: `steps` · `copies` forward and backward passes.
    Source: Lin et al., Nesterov accelerated gradient and scale invariance, ICLR 2020, section 3.3.
    """
    return bim(model, x, y, eps=eps, oracle=travelling(mu=mu, copies=copies, towards=towards), **how)


def si_ni_ti_dim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, mu: float = 1.0, look_ahead: bool = True,
    kernel: int | None = None, copies: int = 5, towards: str = "grey", p: float = 0.5, ratio: float = RATIO,
    **how: Unpack[Climb],
) -> Tensor:
    """All of them: each scaled copy through its own random resizing, at the point ahead; their sum smoothed.

    look_ahead=False, kernel=1, copies=1 and p=0 leave an ingredient out. `kernel` is 7 at 299 pixels, 5 at least.
    Cost: `steps` · `copies` forward and backward passes. Source: Lin et al., ICLR 2020, section 4.3.
    """
    oracle = travelling(mu=mu, look_ahead=look_ahead, kernel=width(kernel, x, 7), copies=copies, towards=towards, p=p,
                        ratio=ratio)
    return bim(model, x, y, eps=eps, oracle=oracle, **how)
