"""Cleaning the input: what fewer grey levels leave of a perturbation, and the gradient past a cleaner."""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kit.defend import straight_through
from kit.lab.checks import Case, exercise

Cleaner = Callable[[Tensor], Tensor]


def level_cases(g: torch.Generator) -> Iterator[Case]:
    for bits, delta in ((2, 0.05), (3, 0.03)):
        x = torch.rand(4, 3, 8, 8, generator=g)
        sign = 2 * torch.randint(2, x.shape, generator=g) - 1.0
        yield x, delta * torch.arange(1, 5)[:, None, None, None] / 4 * sign, bits


def levels(x: Tensor, steps: float) -> Tensor:
    return (x * steps).round() / steps


def ratio(after: Tensor, d: Tensor) -> Tensor:
    return after.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1)


def length_left(x: Tensor, d: Tensor, bits: int) -> Tensor:
    return ratio(levels(x + d, 2**bits - 1) - levels(x, 2**bits - 1), d)


def floors(x: Tensor, steps: float) -> Tensor:
    return (x * steps).floor() / steps


exercise(
    "length-left",
    "length_left(x, d, bits) -> (N,), ‖q(x + d) − q(x)‖₂ / ‖d‖₂ of each image, where q rounds to the 2ᵇⁱᵗˢ levels "
    "0, s, 2s, …, 1 with s = 1/(2ᵇⁱᵗˢ − 1)",
    length_left, level_cases,
    [
        ("no-op", lambda x, d, bits: torch.ones(len(x)),
         ["rounding does not leave a perturbation as it is.", "q of both images, subtract, divide the lengths."]),
        ("clean image not cleaned", lambda x, d, bits: ratio(levels(x + d, 2**bits - 1) - x, d),
         ["yours also holds the rounding of the clean image, which is there without any attack.",
          "q(x + d) − q(x), not q(x + d) − x."]),
        ("one level too many", lambda x, d, bits: ratio(levels(x + d, 2**bits) - levels(x, 2**bits), d),
         ["yours has 2ᵇⁱᵗˢ + 1 levels from 0 to 1.", "2ᵇⁱᵗˢ levels have 2ᵇⁱᵗˢ − 1 steps between them."]),
        ("cut off for rounded", lambda x, d, bits: ratio(
            floors(x + d, 2**bits - 1) - floors(x, 2**bits - 1), d),
         ["yours takes the level below.", "the nearest level: round, not floor."]),
        ("the noise cleaned alone", lambda x, d, bits: ratio(levels(d, 2**bits - 1), d),
         ["q is not linear: q(x + d) − q(x) is not q(d).", "clean x + d, clean x, then subtract."]),
        ("one number for all", lambda x, d, bits: (
            (levels(x + d, 2**bits - 1) - levels(x, 2**bits - 1)).norm() / d.norm()).expand(len(x)),
         ["one image's number depends on the others.", "norms over each image: flatten(1).norm(dim=1)."]),
        ("l1 for l2", lambda x, d, bits: (
            levels(x + d, 2**bits - 1) - levels(x, 2**bits - 1)).abs().sum((1, 2, 3)) / d.abs().sum((1, 2, 3)),
         ["yours is the mean change, which rounding keeps.", "the Euclidean length: square before you add."]),
    ],
)


def cleaner_cases(g: torch.Generator) -> Iterator[Case]:
    for q in (_rounded, _blurred):
        W, b = torch.randn(5, 12, generator=g), torch.randn(5, generator=g)
        yield _bent(W, b), q, torch.rand(4, 12, generator=g)


def _bent(W: Tensor, b: Tensor) -> Cleaner:
    return lambda v: (v @ W.T + b).sin().sum(1)


def _rounded(v: Tensor) -> Tensor:
    return (3 * v).round() / 3


def _blurred(v: Tensor) -> Tensor:
    return 0.5 * v.square() + 0.5 * v.roll(1, 1)


def slope(loss: Cleaner, x: Tensor) -> Tensor:
    v = x.detach().clone().requires_grad_()
    value = loss(v).sum()
    return torch.autograd.grad(value, v, allow_unused=True, materialize_grads=True)[0]


def bpda(loss: Cleaner, q: Cleaner, x: Tensor) -> Tensor:
    through = straight_through(q)
    return slope(lambda v: loss(through(v)), x)


exercise(
    "bpda-gradient",
    "bpda_gradient(loss, q, x) -> like x (N, d), the gradient of each image's loss(q(x)), (N,), with q taken for the "
    "identity on the way back",
    bpda, cleaner_cases,
    [
        ("no-op", lambda loss, q, x: torch.zeros_like(x),
         ["zero everywhere.", "the gradient of the loss, taken at q(x)."]),
        ("through q", lambda loss, q, x: slope(lambda v: loss(q(v)), x),
         ["where q rounds, yours is zero: an attacker with it stands still.",
          "differentiate the loss at v = q(x).detach(), and not q."]),
        ("does not know", lambda loss, q, x: slope(loss, x),
         ["that is the attacker who does not know q.", "the loss is taken at q(x): the identity is for the way back."]),
        ("gradient cleaned", lambda loss, q, x: q(slope(loss, x)),
         ["yours cleans the gradient.", "clean the image, and take the gradient there."]),
        ("cleaned twice", lambda loss, q, x: bpda(lambda v: loss(q(v)), q, q(x)),
         ["yours is zero where q rounds, since q is in what you differentiate.", "loss(v) at v = q(x).detach()."]),
        ("sign only", lambda loss, q, x: bpda(loss, q, x).sign(),
         ["that is the step's direction in l∞.", "the gradient itself, without its sign taken."]),
        ("mean over the batch", lambda loss, q, x: bpda(loss, q, x) / len(x),
         ["an image's gradient depends on how many there are.", "loss(v).sum(), not its mean."]),
    ],
)
