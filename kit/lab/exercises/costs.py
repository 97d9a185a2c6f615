"""What robustness costs, in worlds with a closed form: a lead that ε takes away, a spread, a rule with thresholds."""
import math
from collections.abc import Iterator

import torch
from scipy.special import ndtr
from torch import Tensor

from kit.defend.costs import Weak
from kit.lab.checks import Case, exercise


def weak_cases(g: torch.Generator) -> Iterator[Case]:
    for d in (10, 100, 1000):
        for eps in (0.0, 0.03, 0.1):
            yield d, eps


def accuracies(d: int, eps: float) -> tuple[float, float]:
    """Of Bayes' rule and of the strong feature alone, under ε."""
    world = Weak(p=0.95, eta=0.1, d=d)
    return float(world.accuracy(world.bayes(), eps)), float(world.accuracy(world.rule(1.0, 0.0), eps))


def unweighted(d: int, eps: float) -> float:
    world = Weak(p=0.95, eta=0.1, d=d)
    return float(world.accuracy(world.mean(), eps)) - accuracies(d, eps)[1]


exercise(
    "weak-lead", "lead(d, eps) -> by how much Bayes' rule is right more often than the strong feature alone, both "
    "under ε, with d "
    "weak features, p = 0.95 and η = 0.1",
    lambda d, eps: accuracies(d, eps)[0] - accuracies(d, eps)[1], weak_cases,
    [
        ("no-op", lambda d, eps: 0.0, ["no lead anywhere.", "the accuracy of one rule less that of the other."]),
        ("no attack", lambda d, eps: accuracies(d, 0.0)[0] - accuracies(d, 0.0)[1],
         ["yours does not depend on ε.", "give ε to both accuracies."]),
        ("sign error", lambda d, eps: accuracies(d, eps)[1] - accuracies(d, eps)[0],
         ["with many features and no attack yours is behind.", "Bayes' rule first."]),
        ("not compared", lambda d, eps: accuracies(d, eps)[0],
         ["that is an accuracy, not a lead.", "less that of the strong feature."]),
        ("weak features alone", unweighted,
         ["that rule has forgotten the strong feature.", "`bayes()`, which weighs both."]),
    ],
)


def tau_cases(g: torch.Generator) -> Iterator[Case]:
    for tau in (0.3, 1.0, 3.0):
        yield (tau,)


def folded(tau: float) -> float:
    return tau * (2 / math.pi) ** 0.5 * math.exp(-0.5 / tau**2) + 1 - 2 * float(ndtr(-1 / tau))


exercise(
    "folded-spread", "spread(tau) -> E|1 + τ z| for a standard normal z, in closed form or as the mean of 100 000 "
    "draws",
    folded, tau_cases,
    [
        ("no absolute value", lambda tau: 1.0, ["E(1 + τ z) is 1, whatever τ.", "take |1 + τ z| before the mean."]),
        ("root mean square", lambda tau: (1 + tau**2) ** 0.5,
         ["that is √E(1 + τ z)².", "the mean of the sizes, not of the squares."]),
        ("no one", lambda tau: tau * (2 / math.pi) ** 0.5, ["that is E|τ z|.", "1 + τ z."]),
        ("sum of both", lambda tau: 1 + tau * (2 / math.pi) ** 0.5,
         ["|1 + τ z| is not 1 + |τ z|.", "add first, then take the size."]),
        ("variance for deviation", lambda tau: folded(tau**2),
         ["your noise has the variance as its deviation.", "τ z, not τ² z."]),
    ],
    rtol=0.0, atol=0.03,
)


def bit_cases(g: torch.Generator) -> Iterator[Case]:
    for first in (1.0, -1.0):
        yield (2 * torch.randint(2, (60, 8), generator=g) - 1).float(), torch.tensor([5.0, 1.0, -3.0]), first


def turned(x: Tensor, cuts: Tensor, first: float) -> Tensor:
    return first * (-1.0) ** (x.sum(1)[:, None] < cuts).sum(1)


exercise(
    "thresholds", "thresholds(x, cuts, first) -> (N,), the sign `first` on a sum of the bits x (N, n) above all cuts, "
    "turned round "
    "once for each cut above the sum",
    turned, bit_cases,
    [
        ("no-op", lambda x, cuts, first: torch.full((len(x),), first),
         ["the same sign for all.", "count the cuts above the sum: each turns it."]),
        ("from below", lambda x, cuts, first: first * (-1.0) ** (x.sum(1)[:, None] > cuts).sum(1),
         ["you begin below all cuts.", "`first` is the sign above them: count the cuts that lie above the sum."]),
        ("first ignored", lambda x, cuts, first: turned(x, cuts, 1.0),
         ["`first` makes no difference.", "first times (−1)^count."]),
        ("one cut", lambda x, cuts, first: turned(x, cuts[:1], first),
         ["only one cut turns the sign.", "all cuts above the sum."]),
        ("product of the bits", lambda x, cuts, first: first * x.prod(1),
         ["that is the parity itself.", "the rule reads the sum alone."]),
    ],
)
