"""Poison whose label is right: a step of a feature collision, and the filter that asks an image's neighbours."""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.lab.checks import Case, exercise


def step_cases(g: torch.Generator) -> Iterator[Case]:
    for rate, beta in ((0.1, 5.0), (0.3, 0.5)):
        v, base = torch.rand(2, 3, 1, 5, 5, generator=g)
        yield v, 4 * torch.randn(3, 1, 5, 5, generator=g), base, rate, beta


def pulled(v: Tensor, gradient: Tensor, base: Tensor, rate: float, pull: float) -> Tensor:
    return (v - rate * gradient + pull * base) / (1 + pull)


def collision_step(v: Tensor, gradient: Tensor, base: Tensor, rate: float, beta: float) -> Tensor:
    return pulled(v, gradient, base, rate, 2 * rate * beta).clamp(0, 1)


exercise(
    "collision-step",
    "collision_step(v, gradient, base, rate, beta) -> x', after x̂ = v − λ · gradient the nearest to both, "
    "argmin ‖x' − x̂‖² / (2λ) + β ‖x' − b‖², in [0, 1]; λ = rate, b = base",
    collision_step, step_cases,
    [
        ("no-op", lambda v, gradient, base, rate, beta: v,
         ["that is v again.", "x̂ first, then set the derivative of the second line to zero."]),
        ("the base forgotten", lambda v, gradient, base, rate, beta: (v - rate * gradient).clamp(0, 1),
         ["β does not matter to yours: the poison may look like the target.",
          "(x̂ + 2λβ b) / (1 + 2λβ), with b the base."]),
        ("plain descent",
         lambda v, gradient, base, rate, beta: (v - rate * (gradient + 2 * beta * (v - base))).clamp(0, 1),
         ["yours takes a step down the second term; with a large β it jumps over the base.",
          "the second term is solved exactly: (x' − x̂)/λ + 2β (x' − b) = 0."]),
        ("β for 2β", lambda v, gradient, base, rate, beta: pulled(v, gradient, base, rate, rate * beta).clamp(0, 1),
         ["a square has a 2 in its derivative.", "(x' − x̂)/λ + 2β (x' − b) = 0."]),
        ("λ left out", lambda v, gradient, base, rate, beta: pulled(v, gradient, base, rate, 2 * beta).clamp(0, 1),
         ["your pull to the base does not depend on the step.", "multiply by λ: 2λβ."]),
        ("towards black", lambda v, gradient, base, rate, beta: pulled(v, gradient, 0 * base, rate, 2 * rate * beta)
         .clamp(0, 1), ["your images grow dark.", "add 2λβ b above the line."]),
        ("no clip", lambda v, gradient, base, rate, beta: pulled(v, gradient, base, rate, 2 * rate * beta),
         ["some of your pixels are no pixels.", "`.clamp(0, 1)`."]),
        ("clipped before",
         lambda v, gradient, base, rate, beta: pulled((v - rate * gradient).clamp(0, 1), 0 * v, base, rate,
                                                      2 * rate * beta),
         ["yours clips x̂, which may lie outside.", "clip once, at the end."]),
        ("sign error", lambda v, gradient, base, rate, beta: collision_step(v, -gradient, base, rate, beta),
         ["yours goes away from the target's features.", "minus λ times the gradient."]),
    ],
)


def neighbour_cases(g: torch.Generator) -> Iterator[Case]:
    for k, spread in ((5, 0.5), (4, 0.8), (2, 0.8)):
        y = torch.arange(36) % 3
        phi = torch.eye(3)[y] + spread * torch.randn(36, 3, generator=g)
        y = torch.where(torch.rand(36, generator=g) < 0.2, (y + 1) % 3, y)
        yield torch.cdist(phi, phi), y, k


def votes(far: Tensor, y: Tensor, k: int, *, itself: bool = False) -> tuple[Tensor, Tensor]:
    """How many of the k neighbours have the image's own label (N,), and the most that any label has (N,)."""
    if not itself:
        far = far.clone().fill_diagonal_(torch.inf)
    near = F.one_hot(y)[far.topk(k, largest=False).indices].sum(1)
    return near.gather(1, y[:, None])[:, 0], near.amax(1)


def kept(far: Tensor, y: Tensor, k: int, **how: bool) -> Tensor:
    own, most = votes(far, y, k, **how)
    return own == most


exercise(
    "neighbours-agree",
    "neighbours_agree(far, y, k) -> (N,) bool, whether no label is more frequent than the image's own among its k "
    "nearest other images; far (N, N) are distances, y (N,) labels",
    kept, neighbour_cases,
    [
        ("no-op", lambda far, y, k: torch.ones(len(y), dtype=torch.bool),
         ["yours keeps everything.", "sort each row of `far`, and ask the labels of the nearest."]),
        ("itself counted", lambda far, y, k: kept(far, y, k, itself=True),
         ["every image votes for itself in yours.", "its distance to itself is 0: fill the diagonal with infinity."]),
        ("the farthest", lambda far, y, k: kept(-far, y, k),
         ["your neighbours are the ones farthest away.", "topk with largest=False."]),
        ("any neighbour", lambda far, y, k: votes(far, y, k)[0] > 0,
         ["one neighbour of its own label is enough for yours.", "the most frequent label must be its own."]),
        ("more than half", lambda far, y, k: votes(far, y, k)[0] > k / 2,
         ["with three labels the most frequent one need not have half of the votes.",
          "compare with the most that any label has."]),
        ("a tie lost", lambda far, y, k: votes(far, y, k)[0] > _second(far, y, k),
         ["of two labels equally frequent the image's own wins.", "at least as frequent: ≥, not >."]),
        ("a tie to the smallest label", lambda far, y, k: y[far.clone().fill_diagonal_(torch.inf).topk(
            k, largest=False).indices].mode(1).values == y,
         ["where two labels are equally frequent, yours knows one of them alone.",
          "mode gives the smallest of them; compare the count of the own label with the largest count."]),
        ("those thrown out", lambda far, y, k: ~kept(far, y, k),
         ["yours are the images to throw out.", "True is for those that stay."]),
    ],
)


def _second(far: Tensor, y: Tensor, k: int) -> Tensor:
    """The most that any label but the image's own has among the k neighbours, (N,)."""
    near = y[far.clone().fill_diagonal_(torch.inf).topk(k, largest=False).indices]
    counts = F.one_hot(near, int(y.max()) + 1).sum(1)
    return counts.scatter(1, y[:, None], -1).amax(1)
