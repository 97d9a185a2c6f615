"""The table of attackers and defenders: a mixture by hand, and the worst attack image by image."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def game_cases(g: torch.Generator) -> Iterator[Case]:
    yield 0.4, 0.1, 0.7, 0.9
    yield 0.7, 0.9, 0.4, 0.1
    yield 0.1, 0.4, 0.9, 0.7
    for _ in range(4):
        small, large = 0.4 * torch.rand(2, generator=g), 0.6 + 0.4 * torch.rand(2, generator=g)
        yield float(small[0]), float(large[0]), float(large[1]), float(small[1])


def equalised(a: float, b: float, c: float, d: float) -> tuple[float, float]:
    det = a + d - b - c
    return (a * d - b * c) / det, (d - b) / det


def mixture(a: float, b: float, c: float, d: float) -> tuple[float, float]:
    guaranteed = min(a, c), min(b, d)
    if max(guaranteed) == min(max(a, b), max(c, d)):
        return max(guaranteed), float(guaranteed[0] >= guaranteed[1])
    return equalised(a, b, c, d)


exercise(
    "mixture", "mixture(a, b, c, d) -> (value, q) of the game with rows (a, b) and (c, d) for two attackers, columns "
    "for two "
    "defenders; q is the share of the first defender, who wants much",
    mixture, game_cases,
    [
        ("no-op", lambda a, b, c, d: ((a + b + c + d) / 4, 0.5),
         ["half and half is seldom best.", "q a + (1 − q) b = q c + (1 − q) d."]),
        ("no saddle point", equalised,
         ["your q lies outside of [0, 1] where one defender is best anyway.",
          "first: is max of the column minima the min of the row maxima?"]),
        ("share of the attacker", lambda a, b, c, d: (mixture(a, b, c, d)[0], mixture(a, c, b, d)[1]),
         ["that is how the first attacker is mixed.",
          "the defender makes the attacker indifferent: rows are compared."]),
        ("without mixing", lambda a, b, c, d: (max(min(a, c), min(b, d)), float(min(a, c) >= min(b, d))),
         ["that is the best single defender.", "without a saddle point a mixture guarantees more."]),
        ("share of the second", lambda a, b, c, d: (mixture(a, b, c, d)[0], 1 - mixture(a, b, c, d)[1]),
         ["that is the share of the second.", "q belongs to the first column."]),
    ],
)


def kept_cases(g: torch.Generator) -> Iterator[Case]:
    for k, n in ((3, 40), (5, 60)):
        yield (torch.rand(k, n, generator=g) < 0.6 + 0.3 * torch.rand(k, 1, generator=g),)


def two_shares(kept: Tensor) -> tuple[Tensor, Tensor]:
    return kept.float().mean(1).amin(), kept.all(0).float().mean()


exercise(
    "worst-per-image", "worst_per_image(kept) -> (the least share kept under one attack, the share kept under all of "
    "them), for "
    "kept (attacks, N) bool",
    two_shares, kept_cases,
    [
        ("no-op", lambda kept: (kept.float().mean(), kept.float().mean()),
         ["that is the mean of all cells.", "the worst cell, then the worst for each image."]),
        ("any for all", lambda kept: (two_shares(kept)[0], kept.any(0).float().mean()),
         ["an image is kept only if no attack takes it.", "kept.all(0), not any."]),
        ("mean of the cells", lambda kept: (kept.float().mean(1).mean(), two_shares(kept)[1]),
         ["the first number is that of the strongest attack.", "the least of the shares, not their mean."]),
        ("one number twice", lambda kept: (two_shares(kept)[0],) * 2,
         ["the attacker may choose another attack for every image.", "kept.all(0) asks image by image."]),
        ("swapped", lambda kept: two_shares(kept)[::-1],
         ["the cell first.", "the worst image by image is the smaller of the two."]),
        ("what is lost", lambda kept: tuple(1 - s for s in two_shares(kept)),
         ["those are the shares that fall.", "kept, not lost."]),
    ],
)
