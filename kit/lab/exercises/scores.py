"""A black box: gradients out of answers, what rounded answers are worth, and how queries are counted."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def cubic(g: torch.Generator, d: int):
    """A function of one point (d,) that bends, so that one-sided differences are off."""
    a, b = torch.randn(2, d, generator=g, dtype=torch.float64)
    return lambda x: (a * x + b * x**2 + x**3).sum() + 1.5


def cubic_cases(g: torch.Generator) -> Iterator[Case]:
    for d, h in ((3, 0.2), (6, 0.5)):
        yield cubic(g, d), torch.rand(d, generator=g, dtype=torch.float64), h


def central(f, x: Tensor, h: float) -> Tensor:
    return torch.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in torch.eye(len(x), dtype=x.dtype)])


exercise(
    "central-difference", "central_difference(f, x, h) -> (d,), the gradient of f at x (d,), from 2d values of f",
    central, cubic_cases,
    [
        ("no-op", lambda f, x, h: torch.zeros_like(x),
         ["you say that f is flat.", "(f(x + h e_i) − f(x − h e_i)) / 2h."]),
        ("one-sided", lambda f, x,
         h: torch.stack([(f(x + h * e) - f(x)) / h for e in torch.eye(len(x), dtype=x.dtype)]),
         ["that is a one-sided difference: its error is of order h.", "look at x + h e_i and at x − h e_i."]),
        ("no half", lambda f, x, h: 2 * central(f, x, h), ["twice the gradient.", "the two points are 2h apart."]),
        ("not divided", lambda f, x, h: 2 * h * central(f, x, h), ["a difference is no slope.", "divide by 2h."]),
        ("sign error", lambda f, x, h: -central(f, x, h), ["it points down.", "f(x + h e_i) first, minus the other."]),
    ],
)


def nes_cases(g: torch.Generator) -> Iterator[Case]:
    for d, n, sigma in ((4, 6, 0.3), (5, 20, 0.1)):
        yield cubic(g, d), torch.rand(d, generator=g).double(), sigma, torch.randn(n, d, generator=g).double()


def nes(f, x: Tensor, sigma: float, u: Tensor) -> Tensor:
    weights = torch.stack([f(x + sigma * v) - f(x - sigma * v) for v in u])
    return weights @ u / (2 * sigma * len(u))


exercise(
    "nes-gradient",
    "nes_gradient(f, x, sigma, u) -> (d,), 1/(2nσ) Σ_i (f(x + σu_i) − f(x − σu_i)) u_i for directions u (n, d)",
    nes, nes_cases,
    [
        ("no-op", lambda f, x, sigma, u: torch.zeros_like(x),
         ["you say that f is flat.", "weigh each u_i by what f says."]),
        ("sum for mean", lambda f, x, sigma, u: len(u) * nes(f, x, sigma, u),
         ["yours grows with the number of directions.", "it is a mean over the n directions: divide by n."]),
        ("no sigma", lambda f, x, sigma, u: 2 * sigma * nes(f, x, sigma, u),
         ["yours shrinks with σ.", "a slope is a difference over a distance: divide by 2σ."]),
        ("one-sided", lambda f, x, sigma, u: torch.stack([f(x + sigma * v) for v in u]) @ u / (sigma * len(u)),
         ["you ask at x + σu alone: f's own size drowns the slope.", "antithetic pairs: subtract f(x − σu_i)."]),
        ("sign error", lambda f, x, sigma, u: -nes(f, x, sigma, u),
         ["it points down.", "f(x + σu) first, minus the other."]),
        ("pairs counted as one", lambda f, x, sigma, u: 2 * nes(f, x, sigma, u),
         ["twice the gradient.", "the two points of a pair are 2σ apart."]),
    ],
)


def rounded_cases(g: torch.Generator) -> Iterator[Case]:
    for digits in (2, 3):
        yield (4 * torch.randn(6, 5, generator=g)).softmax(1).round(decimals=digits), digits


exercise(
    "log-of-rounded",
    "log_of_rounded(p, digits) -> log p, where p was rounded to `digits` decimals; what reads 0 counts as "
    "half of the last decimal",
    lambda p, digits: p.clamp(min=0.5 * 10**-digits).log(), rounded_cases,
    [
        ("no floor", lambda p, digits: p.log(),
         ["some of your values are −∞.", "0 means less than half of the last decimal: clamp(min=0.5 · 10^−digits)."]),
        ("tiny floor", lambda p, digits: p.clamp(min=1e-30).log(),
         ["−69 for a probability that may be 0.004: one rounded class then decides the loss.",
          "the floor is half of the last decimal, 0.5 · 10^−digits."]),
        ("floor of one decimal", lambda p, digits: p.clamp(min=10.0**-digits).log(),
         ["what reads 0 is smaller than what reads 1 in the last place.", "half of the last decimal."]),
        ("added, not clamped", lambda p, digits: (p + 0.5 * 10**-digits).log(),
         ["you change the probabilities that are known, too.", "clamp: only what is below the floor moves."]),
        ("no logarithm", lambda p, digits: p.clamp(min=0.5 * 10**-digits),
         ["those are probabilities.", "`.log()` of them."]),
    ],
)


def count_cases(g: torch.Generator) -> Iterator[Case]:
    for n, budget in ((20, 500), (31, 100)):
        fooled = torch.rand(n, generator=g) > 0.4
        yield torch.where(fooled, torch.randint(1, budget, (n,), generator=g), budget), fooled


def typical(queries: Tensor, fooled: Tensor) -> tuple[Tensor, Tensor]:
    return fooled.float().mean(), queries[fooled].float().mean()


exercise(
    "query-count", "query_count(queries, fooled) -> (share fooled, mean queries of those that were fooled)",
    typical, count_cases,
    [
        ("no-op", lambda queries, fooled: (0.0, 0.0),
         ["nothing is counted.", "the share, and a mean over the fooled ones."]),
        ("mean over all", lambda queries, fooled: (fooled.float().mean(), queries.float().mean()),
         ["an image that held costs as much as you were ready to pay: your mean measures your budget.",
          "take the mean over queries[fooled], and state the share beside it."]),
        ("mean over those that held", lambda queries, fooled: (fooled.float().mean(), queries[~fooled].float().mean()),
         ["that is the mean over the images that held.", "queries[fooled]."]),
        ("share that held", lambda queries, fooled: (1 - fooled.float().mean(), typical(queries, fooled)[1]),
         ["that is the share that held.", "the mean of `fooled` itself."]),
        ("median", lambda queries, fooled: (fooled.float().mean(), queries[fooled].float().median()),
         ["that is the median.", "asked is the mean."]),
    ],
)
