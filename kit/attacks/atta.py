"""ATTA: learn the transformation of images that hurts an attack most, and attack through it.

Defences that transform the image undo much of a perturbation made on an undefended network f. So let a small network
T(·; θ) learn to undo it, in a game against the attacker, and then fool f and f∘T together (x' in the ball and the box):

    the game          min_θ max_x' J(f(T(x')), y)   with   f(T(x)) = y
    the attacker      max_x'  −L_fool = J(f(T(x')), y) + β J(f(x'), y)
    the network T     min_θ   L_T = J(f(T(x')), y) + α₁ J(f(T(x)), y) + α₂ ‖x' − T(x')‖²
    the attack        max_x'  L_attack = J(f(x'), y) + γ J(f(T(x')), y)

J is the cross-entropy in nats; ‖·‖² is the sum over channels and pixels, so that α₂ is in nats per unit of it.
Source: Wu et al., Improving the transferability of adversarial samples with adversarial transformations, CVPR 2021.
"""
from functools import partial
from math import prod
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.transfer import Travel, travel, width
from kit.core import (
    Goal,
    Trace,
    adam,
    ball,
    borrowed,
    check_images,
    check_labels,
    check_model,
    check_settings,
    cross_entropy,
    gradient,
    laid_out,
    per_image,
    uniform,
)
from kit.core.goal import Loss
from kit.core.loop import Memory
from kit.core.passes import PerImage

SLOPE = 0.01  # of the LeakyReLU below zero, torch's own


class Transformation(nn.Module, PerImage):
    """T(x) = W₂ ∗ LeakyReLU(W₁ ∗ x + b₁) + b₂: images (N, C, H, W) to images, which may leave [0, 1] a little.

    W₁ is 3×3 and has `width` channels, W₂ is kernel×kernel and has C; zeros around the image. θ holds all weights, one
    row for any images (1, P) or a row for each (N, P), in their order. `T[rows]` are the transformations of some.
    """

    theta: Tensor

    def __init__(self, theta: Tensor, channels: int = 3, kernel: int = 3, width: int = 3):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0 or width < channels:
            raise ValueError(f"T needs an odd kernel and a width of {channels} or more, not {kernel} and {width}")
        self.shapes = (width, channels, 3, 3), (width,), (channels, width, kernel, kernel), (channels,)
        self.layout = channels, kernel, width
        size = sum(map(prod, self.shapes))
        if theta.dim() != 2 or theta.shape[1] != size:
            raise ValueError(f"theta must be (1, {size}) or (N, {size}), not {tuple(theta.shape)}")
        self.register_buffer("theta", theta.clone() if theta.is_inference() else theta)

    @classmethod
    def start(cls, how: str, channels: int, kernel: int, width: int, generator: torch.Generator | None = None):
        """One T: "identity", by Dirac kernels (exact where x ≥ 0), or "random", as torch starts its convolutions."""
        if how not in ("identity", "random"):
            raise ValueError(f"start must be 'identity' or 'random', not {how!r}")
        empty = cls(torch.zeros(1, width * (9 * channels + 1) + channels * (width * kernel**2 + 1)), channels, kernel,
                    width)
        W1, b1, W2, b2 = (torch.zeros(shape) for shape in empty.shapes)
        if how == "identity":
            nn.init.dirac_(W1)
            nn.init.dirac_(W2)
        else:
            for W, b in ((W1, b1), (W2, b2)):
                for part in (W, b):
                    part.copy_(uniform(part, generator, -1, 1) / W[0].numel() ** 0.5)
        return empty.at(torch.cat([part.flatten() for part in (W1, b1, W2, b2)])[None])

    def at(self, theta: Tensor) -> "Transformation":
        """The same network with other weights, which keep their graph."""
        return Transformation(theta, *self.layout)

    def parts(self) -> list[Tensor]:
        """W₁, b₁, W₂ and b₂, each with a first axis of 1 or N."""
        pieces = self.theta.split([prod(shape) for shape in self.shapes], 1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, rows) -> "Transformation":
        return self.at(self.theta[rows])

    def forward(self, x: Tensor) -> Tensor:
        if len(self) not in (1, len(x)):
            raise ValueError(f"T has {len(self)} transformations for {len(x)} images: use T[rows], or a shared one")
        W1, b1, W2, b2 = self.parts()
        return _convolve(F.leaky_relu(_convolve(x, W1, b1), SLOPE), W2, b2)


def _convolve(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Images with the kernels W (1 or N, D, C, k, k), one set for all or one for each: a convolution in N groups."""
    pad = W.shape[-1] // 2
    if len(W) == 1:
        return F.conv2d(x, W[0], b[0], padding=pad)
    z = F.conv2d(x.reshape(1, -1, *x.shape[2:]), W.flatten(0, 1), b.flatten(), padding=pad, groups=len(W))
    return z.view(len(W), -1, *x.shape[2:])


# --- algorithm 1: the game ------------------------------------------------------------------------------------------


def train_transformation(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, shared: bool = False, kernel: int = 3, width: int = 3,
    start: str = "identity", outer: int = 10, inner: int = 10, lr: float = 0.01, step: float | None = None,
    alpha1: float = 1.0, alpha2: float = 10.0, beta: float = 1.0, batch: int = 64, epochs: int = 1,
    generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Transformation:
    """Algorithm 1: from x' = x, `outer` times: `inner` steps of Adam on L_fool over x', each projected onto the l∞ ball
    of radius eps and the box, then one step of Adam on L_T over θ. Both keep their state throughout.

    Every image gets its own T, all in one batch; with `shared` one T is trained on one batch of images after another,
    `outer` steps each, for use on other images. The random start is one draw, the same for all. `step` (eps/inner) is
    Adam's rate for x', in units of pixels, and `lr` the one for θ; the paper names neither.
    The trace holds J(f(T(x')), y) at every inner step and, after them, before θ moves: (outer · (inner + 1), N).
    Cost: 2 · outer · (inner + 1) forward and backward passes. Raises ValueError for sizes that make no T.
    """
    if min(outer, inner, batch, epochs) < 1:
        raise ValueError(f"outer, inner, batch and epochs must be 1 or more, not {outer}, {inner}, {batch}, {epochs}")
    check_images(x)
    check_settings({"eps": eps, "step": step, "lr": lr, "generator": generator}, x)
    ball("linf", eps)
    x = x.detach()
    T = Transformation.start(start, x.shape[1], kernel, width, generator).to(x)
    step = eps / inner if step is None else step
    game = {"T": T, "eps": eps, "outer": outer, "inner": inner, "lr": lr, "step": step, "alpha1": alpha1,
            "alpha2": alpha2, "beta": beta, "trace": trace}
    return T.at(_shared(model, x, y, batch, epochs, game) if shared else _each(model, x, y, **game))


@per_image
def _each(model, x, y, T: Transformation, trace, **game) -> Tensor:
    """θ (N, P), a T for each image."""
    return _play(model, x, y, T.at(T.theta.expand(len(x), -1)), {}, trace=trace, **game)


def _shared(model, x, y, batch: int, epochs: int, game: dict) -> Tensor:
    """θ (1, P), one T for all, through batches in the order of the images."""
    memory: Memory = {}
    with borrowed(model, x):
        check_labels(y, x, check_model(model, x))
        for start in range(0, epochs * len(x), batch):
            rows = torch.arange(start, min(start + batch, epochs * len(x)), device=x.device) % len(x)
            game["T"] = game["T"].at(_play(model, laid_out(x[rows]), y[rows], memory=memory, **game))
            if game["trace"] is not None:
                game["trace"].close()
    return game["T"].theta


def _play(model, x, y, T: Transformation, memory: Memory, *, eps, outer, inner, lr, step, alpha1, alpha2, beta, trace):
    """θ after the game from T and x' = x. Both Adams climb: on −L_fool, and on −L_T with its state in `memory`."""
    within, attacker, learner = ball("linf", eps), adam(step), adam(lr)
    own: Memory = {}
    x_adv = x

    def through(seen: Tensor, x_adv: Tensor) -> Tensor:
        value = cross_entropy(model(seen), y)
        if trace is not None:
            trace.add(value, x_adv)
        return value

    def fooling(x_adv: Tensor, T: Transformation) -> Tensor:
        return through(T(x_adv), x_adv) + beta * cross_entropy(model(x_adv), y)

    def undoing(theta: Tensor, x_adv: Tensor) -> Tensor:
        T_ = T.at(theta)
        seen = T_(x_adv)
        far = (x_adv - seen).square().flatten(1).sum(1)
        return -through(seen, x_adv) - alpha1 * cross_entropy(model(T_(x)), y) - alpha2 * far

    for _ in range(outer):
        for _ in range(inner):
            g = gradient(partial(fooling, T=T), x_adv)[1]
            x_adv = within.project(attacker(x_adv, g, own), x)
        g = gradient(partial(undoing, x_adv=x_adv), T.theta)[1]
        T = T.at(learner(T.theta, g, memory))
    return T.theta


# --- algorithm 2: the attack ----------------------------------------------------------------------------------------


@per_image
def atta(
    model: nn.Module, x: Tensor, y: Tensor, *, T: nn.Module, eps: float | Tensor, gamma: float = 1.0, mu: float = 0.0,
    target: Tensor | None = None, loss: Loss = cross_entropy, generator: Any = None, **how: Unpack[Travel],
) -> Tensor:
    """Algorithm 2: `bim` on ℓ(f(x'), y) + γ ℓ(f(T(x')), y), so that a transformation does not undo what it does.

    T is a `Transformation`, shared or with one row for each image of x, or any differentiable module from images to
    images. mu, look_ahead, kernel, copies, p and the rest are the ingredients of
    `kit.attacks.transfer.travelling`, here off: each acts on both terms alike. With gamma = 0 it is `bim`, bit for bit.
    Cost: 2 · `steps` · `copies` forward and backward passes (half of them with gamma = 0), beside the training of T.
    Raises ValueError for another number of transformations than images.
    """
    goal = Goal(y, target)

    def objective(v: Tensor, k: int) -> Tensor:
        value = goal.gain(model(laid_out(v)), loss)
        return value + gamma * goal.gain(model(laid_out(T(v))), loss) if gamma else value

    return travel(objective, x, eps=eps, mu=mu, draws=generator, **how)


def at_si_ni_ti_dim(
    model: nn.Module, x: Tensor, y: Tensor, *, T: nn.Module, eps: float | Tensor, gamma: float = 1.0, mu: float = 1.0,
    look_ahead: bool = True, kernel: int | None = None, copies: int = 5, p: float = 0.5, **options,
) -> Tensor:
    """AT-SI-NI-TI-DIM: `si_ni_ti_dim` on f and f∘T together, which `atta` does with all ingredients on.

    `options` are the other arguments of `atta`. With gamma = 0 it is `si_ni_ti_dim`, bit for bit.
    Cost: 2 · `steps` · `copies` forward and backward passes. Source: Wu et al., CVPR 2021, section 4.4.
    """
    return atta(model, x, y, T=T, eps=eps, gamma=gamma, mu=mu, look_ahead=look_ahead, kernel=width(kernel, x, 7),
                copies=copies, p=p, **options)
