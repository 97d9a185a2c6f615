"""A simple model nearby: Shapley's weights, a linear model's values, a line through both ends, and rows given away."""
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def count_cases(g: torch.Generator) -> Iterator[Case]:
    for least in (3, 5, 7):
        yield (least + int(torch.randint(2, (), generator=g)),)


def by_size(M: int, weight: Callable[[int], float]) -> list[float]:
    return [float(weight(s)) for s in range(M)]


exercise(
    "shapley-weights",
    "shapley_weights(M) -> M numbers, the weight in a player's Shapley value of one coalition S of the others, for "
    "|S| = 0 … M − 1",
    lambda M: by_size(M, lambda s: math.factorial(s) * math.factorial(M - s - 1) / math.factorial(M)), count_cases,
    [
        ("no-op", lambda M: [1.0] * M,
         ["they should be a mean: over all coalitions the weights sum to 1.", "|S|! (M − |S| − 1)! / M!."]),
        ("all alike", lambda M: [0.5 ** (M - 1)] * M,
         ["that is the mean over coalitions, as Banzhaf has it.",
          "over orders: those in which S comes first, then the player, then the rest."]),
        ("of the size", lambda M: [1 / M] * M,
         ["that is the weight of all coalitions of the size together.", "one of them: divided by C(M − 1, |S|)."]),
        ("player counted among the rest", lambda M: by_size(
            M, lambda s: math.factorial(s) * math.factorial(M - s) / math.factorial(M)),
         ["the player itself is neither in S nor among those who come later.", "M − |S| − 1 come after it."]),
        ("order of the first", lambda M: by_size(M, lambda s: math.factorial(M - s - 1) / math.factorial(M)),
         ["those in S may come in any order.", "|S|! orders of them."]),
        ("coalitions of all players", lambda M: by_size(M, lambda s: 1 / (M * math.comb(M, s))),
         ["S is chosen from the M − 1 others.", "1 / (M · C(M − 1, |S|))."]),
    ],
)


def linear_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((8, 3), (20, 5)):
        w, row = torch.randn(d, generator=g).double(), torch.randn(d, generator=g).double()
        yield w.numpy(), row.numpy(), (1 + 2 * torch.rand(n, d, generator=g).double()).square().numpy()


exercise(
    "linear-shapley",
    "linear_shapley(w, row, background) -> (d,), the Shapley values of the columns for the model f(x) = w · x, where "
    "hidden columns are taken from the rows of background (n, d); NumPy arrays",
    lambda w, row, background: w * (row - background.mean(0)), linear_cases,
    [
        ("no-op", lambda w, row, background: w,
         ["those are the slopes, the same for every row.", "how far the row is from the others, times the slope."]),
        ("nothing hidden", lambda w, row, background: w * row,
         ["in yours a hidden column is 0.", "it has the background's mean: w_j (x_j − mean)."]),
        ("sign error", lambda w, row, background: w * (background.mean(0) - row),
         ["a column that raises the answer lowers it in yours.", "the row less the mean."]),
        ("LIME's", lambda w, row, background: w * background.std(0),
         ["that is LIME for tables: one standard deviation of the column.", "w_j (x_j − mean), of this row."]),
        ("standardised", lambda w, row, background: w * (row - background.mean(0)) / background.std(0),
         ["w is for the columns as they are.", "do not divide by the standard deviation."]),
        ("median", lambda w, row, background: w * (row - np.median(background, 0)),
         ["the mean answer has the mean of the hidden columns.", "background.mean(0), not the median."]),
        ("one other row", lambda w, row, background: w * (row - background[0]),
         ["yours hides behind one row.", "the mean over all rows of the background."]),
    ],
)


def line_cases(g: torch.Generator) -> Iterator[Case]:
    for n, M in ((20, 3), (40, 5)):
        b = torch.rand(n, M, generator=g) < 0.5
        phi, mixed = torch.randn(M, generator=g).double(), torch.randn(n, generator=g).double()
        none, whole = (torch.randn(2, generator=g).double() + torch.tensor([0.7, 2.5])).tolist()
        yield b, none + b.double() @ phi + 0.3 * mixed, none, whole


def slopes(b: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.lstsq(b.double(), v[:, None]).solution[:, 0]


def through(b: Tensor, v: Tensor, none: float, whole: float) -> Tensor:
    """The last piece has what the others leave of the sum."""
    rows, total = b.double(), whole - none
    first = slopes(rows[:, :-1] - rows[:, -1:], v - none - total * rows[:, -1])
    return torch.cat([first, (total - first.sum())[None]])


def free_intercept(b: Tensor, v: Tensor, none: float, whole: float) -> Tensor:
    return slopes(torch.cat([b.double(), torch.ones(len(b), 1)], 1), v)[:-1]


exercise(
    "line-through-both-ends",
    "through_both(b, v, none, whole) -> (M,), the φ with the least Σ (v − none − φ · b)² of those whose sum is exactly "
    "whole − none; b (n, M) bool the coalitions, v (n,) their values",
    through, line_cases,
    [
        ("no condition", lambda b, v, none, whole: slopes(b, v - none),
         ["your values do not sum to what there is to share.",
          "put φ_M = (whole − none) − the rest, or a Lagrange multiplier."]),
        ("LIME's line", free_intercept,
         ["your line goes through neither end.", "φ₀ is none, and Σ φ is whole − none."]),
        ("scaled to the sum", lambda b, v, none, whole: slopes(b, v - none) * (
            (whole - none) / slopes(b, v - none).sum()),
         ["a fit that is scaled afterwards is no longer the best.", "the condition belongs into the fit."]),
        ("remainder shared equally", lambda b, v, none, whole: slopes(b, v - none) + (
            whole - none - slopes(b, v - none).sum()) / b.shape[1],
         ["a remainder shared equally is not the best fit: coalitions are not balanced.",
          "the condition belongs into the fit."]),
        ("sum is the whole", lambda b, v, none, whole: through(b, v - none, 0.0, whole),
         ["your values share out v(all), with v(∅) on top of it.", "their sum is whole − none."]),
        ("none forgotten", lambda b, v, none, whole: through(b, v, 0.0, whole - none),
         ["the line begins at v(∅).", "take none off v."]),
    ],
)


def away_cases(g: torch.Generator) -> Iterator[Case]:
    for c, n, d, share in ((12, 10, 4, 0.25), (20, 6, 5, 0.1)):
        b = torch.rand(c, d, generator=g) < 0.6
        b[0] = True
        seen = torch.randn(40, d, generator=g).double()
        yield b.numpy(), seen[0].numpy(), seen[1:n + 1].numpy() + 0.1, seen.numpy(), share * d


def filled(b: np.ndarray, row: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(C, n, d)"""
    return np.where(b[:, None], row, background)


def apart(rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows[..., None, :] - seen, axis=-1)


def given_away(b: np.ndarray, row: np.ndarray, background: np.ndarray, seen: np.ndarray, limit: float) -> np.ndarray:
    return (apart(filled(b, row, background), seen).min(-1) >= limit).mean(1)


exercise(
    "given-away",
    "given_away(b, row, background, seen, limit) -> (C,), for each coalition b (C, d) bool the share of its rows (the "
    "row's columns where b, else those of each of the rows of background (n, d)) that lie at least limit from all of "
    "seen (N, d); NumPy arrays",
    given_away, away_cases,
    [
        ("no-op", lambda b, row, background, seen, limit: np.zeros(len(b)),
         ["in yours no row is ever told apart.", "np.where(b[:, None], row, background) are the rows, (C, n, d)."]),
        ("those near", lambda b, row, background, seen, limit: 1 - given_away(b, row, background, seen, limit),
         ["that is the share that passes for data.", "at least limit from the nearest: ≥."]),
        ("shown for hidden", lambda b, row, background, seen, limit: given_away(~b, row, background, seen, limit),
         ["yours hides what should be shown.", "np.where(b, row, background): the row where b is True."]),
        ("from some", lambda b, row, background, seen, limit: (
            apart(filled(b, row, background), seen).max(-1) >= limit).mean(1),
         ["far from one of them is easy.", "far from all: the smallest distance."]),
        ("background's mean", lambda b, row, background, seen, limit: given_away(
            b, row, background.mean(0, keepdims=True), seen, limit),
         ["yours asks about one row, filled with means.", "each row of the background by itself, then the share."]),
        ("from the row", lambda b, row, background, seen, limit: given_away(b, row, background, row[None], limit),
         ["yours measures from the row that is explained.", "from the nearest of seen."]),
    ],
)
