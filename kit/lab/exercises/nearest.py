"""Counterfactuals: the nearest point on a plane, the unit of its distance, columns that are tied, several models."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.explain import mad
from kit.lab.checks import Case, exercise


def plane_cases(g: torch.Generator) -> Iterator[Case]:
    w = torch.tensor([3.0, -1.0, 1.0, 0.4, -0.7])
    s = torch.tensor([0.5, 4.0, 0.1, 1.0, 1.5])  # |w|, |w| s and |w| / s are each largest at another place
    for sign in (1, -1):
        some = 1 + 0.1 * torch.rand(2, 5, generator=g)
        yield torch.randn(5, generator=g), sign * w * some[0], 0.5 + float(torch.rand((), generator=g)), s * some[1]


def moved(x: Tensor, w: Tensor, b: float, k: Tensor) -> Tensor:
    """x with feature k changed so that w·x + b = 0."""
    return x.index_add(0, k[None], (-(w @ x + b) / w[k])[None])


def best(w: Tensor, s: Tensor) -> Tensor:
    return (w.abs() * s).argmax()


exercise(
    "sparse-nearest",
    "nearest(x, w, b, s) -> (d,), the point with w·x' + b = 0 and the least Σ |x_k − x'_k| / s_k",
    lambda x, w, b, s: moved(x, w, b, best(w, s)), plane_cases,
    [
        ("no-op", lambda x, w, b, s: x, ["that is x itself.", "change one feature, so that w·x' + b = 0."]),
        ("Euclid's", lambda x, w, b, s: x - (w @ x + b) * w / w.square().sum(),
         ["yours is the nearest point in l2: every feature changes.",
          "the l1 distance pays for one feature alone: the one that gains most for what it costs."]),
        ("scale forgotten", lambda x, w, b, s: moved(x, w, b, w.abs().argmax()),
         ["yours does not ask what a change costs.", "a change of s_k costs 1 and gains |w_k| s_k."]),
        ("divided by the scale", lambda x, w, b, s: moved(x, w, b, (w.abs() / s).argmax()),
         ["a feature with a large s is cheap to change.", "the largest |w_k| s_k."]),
        ("the sign of w lost", lambda x, w, b, s: x + (moved(x, w, b, best(w, s)) - x) * w[best(w, s)].sign(),
         ["where w_k is negative yours goes the wrong way.", "divide by w_k, not by |w_k|."]),
        ("sign error", lambda x, w, b, s: 2 * x - moved(x, w, b, best(w, s)),
         ["yours goes away from the plane, as far as it should go towards it.", "x_k − (w·x + b) / w_k."]),
        ("the bias forgotten", lambda x, w, b, s: moved(x, w, 0.0, best(w, s)),
         ["yours ends on another plane.", "w·x' + b = 0, with b."]),
    ],
)


def column_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (11, 21):
        yield (torch.tensor([1.0, 10.0, 0.2]) * (1.5 * torch.randn(n, 3, generator=g)).exp(),)


def about(data: Tensor, middle: Tensor) -> Tensor:
    return (data - middle).abs().median(0).values


exercise(
    "column-mad", "column_mad(X) -> (d,), the median absolute deviation median_i |x_ik − median_j x_jk| of each column "
    "of a table (n, d)",
    mad, column_cases,
    [
        ("standard deviation", lambda X: X.std(0),
         ["a few extreme patients set your unit.", "medians, twice: of the column, and of what is left."]),
        ("mean deviation", lambda X: (X - X.median(0).values).abs().mean(0),
         ["yours is the mean of the deviations.", "their median."]),
        ("about the mean", lambda X: about(X, X.mean(0)),
         ["your deviations are from the mean.", "subtract each column's median."]),
        ("no absolute value", lambda X: (X - X.median(0).values).median(0).values,
         ["yours is zero: half of the deviations are negative.", "`abs` before the second median."]),
        ("one median for all columns", lambda X: about(X, X.median()),
         ["a year and a millimetre have no common median.", "X.median(0).values, one for each column."]),
        ("1.4826 times", lambda X: 1.4826 * mad(X),
         ["yours estimates a standard deviation.", "no constant: MAD itself."]),
        ("median for MAD", lambda X: X.median(0).values,
         ["that is where a column lies, not how far it spreads.", "the median of |X − median|."]),
    ],
)


def table_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (3, 6):
        yield (20 + 100 * torch.rand(n, 10, generator=g),)


def put(v: Tensor, k: int, column: Tensor) -> Tensor:
    return torch.cat([v[:, :k], column[:, None], v[:, k + 1 :]], 1)


exercise(
    "tied-columns",
    "with_ratio(v) -> (N, 10), the table v (N, 10) whose column 7, cholesterol/HDL, follows from cholesterol (4) and "
    "HDL (6); columns are counted from 0",
    lambda v: put(v, 7, v[:, 4] / v[:, 6]), table_cases,
    [
        ("no-op", lambda v: v, ["column 7 still says what it said.", "v[:, 4] / v[:, 6] in column 7 of a new tensor."]),
        ("upside down", lambda v: put(v, 7, v[:, 6] / v[:, 4]), ["yours is HDL/cholesterol.", "v[:, 4] / v[:, 6]."]),
        ("LDL for HDL", lambda v: put(v, 7, v[:, 4] / v[:, 5]), ["column 5 is LDL.", "HDL is column 6."]),
        ("difference for ratio", lambda v: put(v, 7, v[:, 4] - v[:, 6]), ["yours is a difference.", "divide."]),
        ("counted from one", lambda v: put(v, 6, v[:, 3] / v[:, 5]),
         ["your columns are one too early.", "Python counts from 0: 4, 6, and 7 for the ratio."]),
        ("the others follow", lambda v: put(v, 4, v[:, 7] * v[:, 6]),
         ["in yours cholesterol follows from the ratio.", "the ratio is what follows: column 7."]),
    ],
)


def models_cases(g: torch.Generator) -> Iterator[Case]:
    for m in (3, 7):
        yield (2 * torch.randn(m, 8, 2, generator=g),)


exercise(
    "strictest-model",
    "strictest(z) -> (N,), the log-odds z₀ − z₁ of the model that is least convinced of class 0, for logits z "
    "(models, N, 2)",
    lambda z: (z[..., 0] - z[..., 1]).amin(0), models_cases,
    [
        ("mean for min", lambda z: (z[..., 0] - z[..., 1]).mean(0),
         ["with yours one sure model outvotes the others.", "all must agree: the smallest over the models."]),
        ("the easiest model", lambda z: (z[..., 0] - z[..., 1]).amax(0),
         ["yours is content with one model.", "amin, not amax."]),
        ("no-op", lambda z: z[0, :, 0] - z[0, :, 1], ["yours asks the first model alone.", "over all models."]),
        ("logit by logit", lambda z: z[..., 0].amin(0) - z[..., 1].amax(0),
         ["yours mixes logits of different models: nobody gave that answer.",
          "the difference within each model first, then the smallest."]),
        ("the other class", lambda z: (z[..., 1] - z[..., 0]).amin(0),
         ["that is the log-odds of class 1.", "z₀ − z₁."]),
        ("the logit alone", lambda z: z[..., 0].amin(0),
         ["a large logit says nothing by itself.", "z₀ less z₁."]),
        ("a majority", lambda z: (z[..., 0] - z[..., 1]).median(0).values,
         ["yours is positive where half of the models agree.", "all of them: the smallest."]),
    ],
)
