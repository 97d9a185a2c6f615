"""Explanations that know they are watched: rows for a precision, noise that goes with the data, one column swapped."""
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def precision_cases(g: torch.Generator) -> Iterator[Case]:
    for n, width in ((200, 0.02), (500, 0.01), (1000, 0.2)):  # of the last there are enough
        yield 0.03 + 0.1 * torch.rand(6, generator=g), n, width


def rows_needed(half: Tensor, n: int, width: float) -> int:
    return max(n, math.ceil(n * (float(half.max()) / width) ** 2))


exercise(
    "rows-needed",
    "rows_needed(half, n, width) -> a number: how many rows in all until every interval is ± width or narrower, after "
    "n rows gave the half-widths half (M,), which fall as 1/√n; never fewer than n",
    rows_needed, precision_cases,
    [
        ("no-op", lambda half, n, width: n,
         ["yours never asks for more.", "n times the square of what is there over what is wanted."]),
        ("not squared", lambda half, n, width: max(n, math.ceil(n * float(half.max()) / width)),
         ["half as wide takes four times the rows.", "the ratio squared: half-widths fall as 1/√n."]),
        ("mean for max", lambda half, n, width: max(n, math.ceil(n * (float(half.mean()) / width) ** 2)),
         ["some of the intervals stay wider than that.", "the widest decides: half.max()."]),
        ("further rows", lambda half, n, width: rows_needed(half, n, width) - n,
         ["yours is how many are still to come.", "in all: n of them are there already."]),
        ("fewer than there are", lambda half, n, width: math.ceil(n * (float(half.max()) / width) ** 2),
         ["n rows are asked about already.", "max(n, …)."]),
        ("upside down", lambda half, n, width: max(n, math.ceil(n * (width / float(half.max())) ** 2)),
         ["a narrower interval takes more rows.", "half.max() over width."]),
    ],
)


def people_cases(g: torch.Generator) -> Iterator[Case]:
    for d in (3, 5):
        A = torch.randn(d, d, generator=g)
        known = torch.randn(400, d, generator=g) @ A + 2 * torch.rand(d, generator=g) + 1
        xi = torch.randn(50, d, generator=g)
        yield tuple(t.double().numpy() for t in (known[0], known, xi))


def read_rows(answer: np.ndarray, row: np.ndarray, known: np.ndarray, xi: np.ndarray) -> tuple[Tensor, Tensor]:
    """The covariance of what is added to the row, for xi of covariance I, and what is no linear function of xi."""
    moved = torch.as_tensor(np.asarray(answer)).double() - torch.from_numpy(row)
    source = torch.from_numpy(xi)
    A = torch.linalg.lstsq(source, moved).solution
    return A.T @ A, (moved - source @ A).abs().amax()


def root(covariance: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(covariance)


exercise(
    "correlated-rows",
    "correlated_rows(row, known, xi) -> (n, d), row + noise, where the noise is linear in xi (n, d), independent with "
    "variance 1, and has the covariance of the columns of known (N, d); NumPy arrays",
    lambda row, known, xi: row + xi @ root(np.cov(known.T)).T, people_cases,
    [
        ("no-op", lambda row, known, xi: row + xi * known.std(0, ddof=1),
         ["that is LIME's own noise: each column by itself.", "L of np.linalg.cholesky(np.cov(known.T)), L Lᵀ = C."]),
        ("not transposed", lambda row, known, xi: row + xi @ root(np.cov(known.T)),
         ["your noise has the covariance Lᵀ L.", "rows of xi are multiplied from the right: xi @ L.T."]),
        ("covariance for its root", lambda row, known, xi: row + xi @ np.cov(known.T),
         ["your noise has the covariance C².", "multiply by a root of C: L with L Lᵀ = C."]),
        ("correlation", lambda row, known, xi: row + xi @ root(np.corrcoef(known.T)).T,
         ["every column of your noise has variance 1.", "np.cov, not np.corrcoef."]),
        ("not about the mean", lambda row, known, xi: row + xi @ root(known.T @ known / len(known)).T,
         ["yours takes the mean of the people for noise.", "the covariance is about the mean: np.cov."]),
        ("no row", lambda row, known, xi: xi @ root(np.cov(known.T)).T,
         ["yours are rows about zero.", "row + noise."]),
        ("about the mean person", lambda row, known, xi: known.mean(0) + xi @ root(np.cov(known.T)).T,
         ["your rows lie around the mean of the people.", "around the row that is explained."]),
    ],
    reads=read_rows, rtol=0.02, atol=1e-3,
)


def swap_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((6, 4), (9, 5)):
        column, who = torch.randint(d, (n,), generator=g), torch.randint(20, (n,), generator=g)
        parts = torch.randn(n, d, generator=g), torch.randn(20, d, generator=g), column, who
        yield tuple(t.numpy() for t in parts)


def swapped(rows: np.ndarray, others: np.ndarray, column: np.ndarray, who: np.ndarray) -> np.ndarray:
    return np.where(np.arange(rows.shape[1]) == column[:, None], others[who], rows)


exercise(
    "swap-probes",
    "swap_probes(rows, others, column, who) -> (n, d), the rows (n, d), but row i has in its column[i] the value of "
    "the person others[who[i]]; others (m, d), column and who (n,) int; NumPy arrays",
    swapped, swap_cases,
    [
        ("no-op", lambda rows, others, column, who: rows,
         ["nothing is swapped.", "one place of each row: (i, column[i])."]),
        ("all columns", lambda rows, others, column, who: others[who],
         ["those are other people.", "one column of each row, the rest stays."]),
        ("all but one", lambda rows, others, column, who: swapped(others[who], rows, column, np.arange(len(rows))),
         ["yours keeps one column and swaps the rest.", "the other's value where the column is column[i]."]),
        ("one column for all", lambda rows, others, column, who: swapped(rows, others, 0 * column + column[0], who),
         ["each row has a column of its own.", "np.arange(d) == column[:, None]."]),
        ("one person for all", lambda rows, others, column, who: swapped(rows, others, column, 0 * who + who[0]),
         ["each row meets a person of its own.", "others[who], (n, d)."]),
        ("by place", lambda rows, others, column, who: swapped(rows, others, column, np.arange(len(rows))),
         ["row i takes the value of person i in yours.", "of person who[i]."]),
    ],
)
