"""What counts of votes say about the probabilities behind them, and how many votes are enough to say anything."""
import math

import numpy as np
import torch
from torch import Tensor


def clopper_pearson(k: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The p with P(Binomial(n, p) ≥ k) = alpha, 0 for k = 0: a lower bound, wrong with probability at most alpha."""
    from scipy import stats

    return np.where(k > 0, stats.beta.ppf(alpha, np.maximum(k, 1), n - k + 1), 0.0)


def at_most(k: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The upper bound that belongs to it: one less the lower bound of the n − k votes that went elsewhere."""
    return 1 - clopper_pearson(n - k, n, alpha)


def looks(n: int) -> list[int]:
    """After how many of n votes a sequential count looks at them: n/16, n/8, n/4, n/2, n, each once and none at 0."""
    return sorted({n // 2**i for i in range(5)} - {0})


def hopeless(k: np.ndarray, t: int, n: int, alpha: float) -> np.ndarray:
    """Which counts need no further votes: k of the first t of n, at one of the `looks`.

    A class whose probability is above one half is given up at any of the looks before the last with probability at
    most alpha: each has the same share of it, and P(Binomial(t, p) ≤ k) falls with p. Whoever is given up gets no
    certificate, so that none becomes wrong by it, whatever the test.
    """
    from scipy import stats

    before = len(looks(n)) - 1
    return stats.binom.cdf(k, t, 0.5) <= alpha / max(1, before)


def with_no_answer(counts: Tensor, n: int) -> Tensor:
    """(N, 1 + K): before the classes, how many of the n copies voted for none. Where that leads, nothing is known."""
    return torch.cat([n - counts.sum(1, keepdim=True), counts], 1)


def enough_to_decide(alpha: float) -> int:
    """The fewest votes whose agreement has a two-sided p-value of alpha at most: 2 (1/2)ⁿ ≤ α."""
    return math.ceil(1 - math.log2(level(alpha)))


def enough_to_certify(alpha: float) -> int:
    """The fewest votes whose agreement bounds a probability above one half: α^(1/n) > 1/2."""
    return math.floor(-math.log2(level(alpha))) + 1


def level(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, not {alpha:g}")
    return alpha


def check_copies(n: int, least: int = 1) -> None:
    if n != int(n) or n < 1:
        raise ValueError(f"at least one noisy copy is needed, and a whole number of them, not {n}")
    if n < least:
        raise ValueError(f"n={n} noisy copies can be sure of nothing at this alpha, whatever the network says: give "
                         f"n={least} or more, or a larger alpha")
