"""Minimal attacks: the hinge of Carlini and Wagner, the way back to the boundary, and the pixels JSMA looks at."""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kit.core.balls import column
from kit.lab.checks import Case, exercise
from kit.lab.exercises.gradient import others, own


def hinge_cases(g: torch.Generator) -> Iterator[Case]:
    for kappa in (0.5, 2.0):
        z = 3 * torch.randn(30, 5, generator=g)
        yield z, torch.randint(5, (30,), generator=g), kappa


def gap(z: Tensor, y: Tensor) -> Tensor:
    return own(z, y) - others(z, y).amax(1)


exercise(
    "cw-hinge", "cw_hinge(z, y, kappa) -> (N,), max(z_y − max over j ≠ y of z_j, −κ): to be minimised by an "
    "untargeted attack",
    lambda z, y, kappa: gap(z, y).clamp_min(-kappa), hinge_cases,
    [
        ("a mask of zeros", lambda z, y, kappa: 0 * gap(z, y),
         ["zero everywhere.", "z_y less the best of the others, cut at −κ."]),
        ("no kappa", lambda z, y, kappa: gap(z, y).clamp_min(0),
         ["yours stops at the boundary.", "it goes on until another class leads by κ: cut at −κ, not at 0."]),
        ("no hinge", lambda z, y, kappa: gap(z, y),
         ["yours has no end: it is lowered further where the distance alone should count.", "`.clamp_min(-kappa)`."]),
        ("hinge inverted", lambda z, y, kappa: gap(z, y).clamp_max(-kappa),
         ["yours is flat where the answer is still right: there is nothing to go down.",
          "the larger of the two: max, not min."]),
        ("sign error", lambda z, y, kappa: (-gap(z, y)).clamp_min(-kappa),
         ["it is minimised where the network is right.", "z_y first, less the others."]),
        ("y among the others", lambda z, y, kappa: (own(z, y) - z.amax(1)).clamp_min(-kappa),
         ["yours is never positive.", "leave y out of the maximum."]),
    ],
)


def boundary_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((5, 3), (8, 10)):
        x, way = torch.rand(n, 1, 1, d, generator=g), torch.rand(n, 1, 1, d, generator=g)
        at = 0.1 + 0.8 * torch.rand(n, generator=g)
        start = x.clone()

        def wrong(v: Tensor, start=start, way=way, at=at) -> Tensor:
            return ((v - start) * way).flatten(1).sum(1) >= at * way.flatten(1).square().sum(1)

        yield wrong, x, x + way


def along(x: Tensor, v: Tensor, share: Tensor) -> Tensor:
    return x + column(share, x) * (v - x)


def bisected(wrong: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, rounds: int = 30) -> tuple[Tensor, Tensor]:
    """The last right and the first wrong share of the way from x to v, for each image."""
    low, high = x.new_zeros(len(x)), x.new_ones(len(x))
    for _ in range(rounds):
        middle = (low + high) / 2
        hit = wrong(along(x, v, middle))
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return low, high


def together(wrong: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """One share of the way for all images."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if bool(wrong(x + middle * (v - x)).all()) else (middle, high)
    return x + high * (v - x)


def outcome(answer: Tensor, wrong: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each point is wrong, and how far along it lies."""
    return wrong(answer).double(), ((answer - x) / (v - x)).mean((1, 2, 3))


exercise(
    "pull-back", "pull_back(wrong, x, v) -> the points nearest to x on the ways from x to v at which wrong(point) "
    "(N,) is "
    "still true, to a thousandth of the way; true at v, and false at x",
    lambda wrong, x, v: along(x, v, bisected(wrong, x, v)[1]), boundary_cases,
    [
        ("no-op", lambda wrong, x, v: v, ["it gives v back.", "halve the way: is the middle wrong as well?"]),
        ("the right side", lambda wrong, x, v: along(x, v, bisected(wrong, x, v, 9)[0]),
         ["your points are just on the near side: the network answers them rightly.",
          "return the end that is known to be wrong, `high`."]),
        ("back to the image", lambda wrong, x, v: x,
         ["that is x itself.", "where the middle is wrong it becomes the far end, else the near end."]),
        ("one share for all", together,
         ["how far an image goes depends on its mates.", "one share of the way for each image: (N,)."]),
        ("one halving", lambda wrong, x, v: along(x, v, bisected(wrong, x, v, 1)[1]),
         ["one halving is not enough.", "twelve of them are 1/4096."]),
    ],
    reads=outcome, rtol=0.0, atol=0.005,
)


def pixel_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((3, 40), (2, 90)):
        yield torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)


def rivals(a: Tensor, b: Tensor) -> Tensor:
    """How many pixels match or beat each in both, itself counted: (N, d)."""
    return ((a[:, None] >= a[:, :, None]) & (b[:, None] >= b[:, :, None])).sum(2)


def either(a: Tensor, b: Tensor) -> Tensor:
    found = ((a[:, None] >= a[:, :, None]) | (b[:, None] >= b[:, :, None])).sum(2) - 1
    return (found < 2).sum(1)


exercise(
    "jsma-left", "jsma_left(a, b) -> (N,), how many of the pixels are matched or beaten, in both gradients a and b "
    "(N, d), "
    "by fewer than two others",
    lambda a, b: (rivals(a, b) - 1 < 2).sum(1), pixel_cases,
    [
        ("no-op", lambda a, b: torch.full((len(a),), a.shape[1]),
         ["none is left out.", "count, for each pixel, who beats it in a and in b."]),
        ("itself counted", lambda a, b: (rivals(a, b) < 2).sum(1),
         ["a pixel matches itself; and one other that beats it may still be its partner.",
          "take one off the count, and ask for fewer than two."]),
        ("either", either, ["beaten in one gradient is not beaten.", "in both: and, not or."]),
        ("turned round", lambda a, b: (rivals(-a, -b) - 1 < 2).sum(1),
         ["those are the pixels that beat nearly no other.", "who has a and b at least as large as this one?"]),
        ("those left out", lambda a, b: (rivals(a, b) - 1 >= 2).sum(1),
         ["that is the number left out.", "count those that stay."]),
    ],
)
