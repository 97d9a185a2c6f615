"""How sure is an explanation? LIME and KernelSHAP as Bayesian regressions, with a posterior in closed form.

The linear model of `lime` is taken at its word: what it misses is noise, the less of it the more a coalition counts,

    v(b) = φ₀ + φ·b + e,   e ~ N(0, σ²/π(b)),   φ ~ N(0, σ² I/prior),   φ₀ and log σ² uniform.

With A, c, s the weighted sums of products of the pieces, of the pieces with the answer, and of the answer, about means,

    V = (A + prior I)⁻¹,   φ̂ = V c,   s² = (s − φ̂·c)/ν,   ν = n − 1,
    σ² | v ~ ν s²/χ²_ν,   φ | σ², v ~ N(φ̂, σ² V),   and so φ_j | v is Student's t: φ̂_j + s √V_jj t_ν.

φ̂ are the weights of `lime` with ridge = prior. For KernelSHAP the ends are known without noise, so that there is no φ₀
and the posterior is conditioned on Σφ = v(all) − v(∅); ν = n + 1.

What these intervals are about is the draw of the samples: how far φ̂ may be from what infinitely many coalitions would
give, of the same model asked in the same way. They say nothing of whether that is how the model decides.

Source: Slack et al., Reliable post hoc explanations: modeling uncertainty in explainability, NeurIPS 2021 (BayesLIME,
BayesSHAP), sections 3.1 to 3.3. Other than there, the prior does not shrink the intercept, BayesSHAP draws its
coalitions from the kernel (independent, each counts 1) instead of weighting uniform ones, and it meets both ends.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.core import generator as fresh
from kit.core import normal, uniform
from kit.explain.games import Game
from kit.explain.lime import add, around_table, centred, coalitions_of, near_table, shapley_mass


@dataclass(frozen=True)
class Posterior:
    """What is known of the weights after n samples: φ_j = `weights`_j + `variance`^½ · `spread`_jj^½ · t of `freedom`.

    weights (M,) is φ̂, spread (M, M) is V, variance is s². `n` is the number of samples that were asked about.
    """

    weights: Tensor
    spread: Tensor
    variance: float
    freedom: int
    n: int

    def half_width(self, level: float = 0.95) -> Tensor:
        """Half of the credible interval's length, (M,)."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, not {level}")
        from scipy.special import stdtrit

        quantile = float(stdtrit(self.freedom, (1 + level) / 2))
        return quantile * (self.variance * self.spread.diagonal().clamp_min(0)).sqrt()

    def interval(self, level: float = 0.95) -> Tensor:
        """The credible interval that holds each weight with this probability, (M, 2)."""
        half = self.half_width(level)
        return torch.stack([self.weights - half, self.weights + half], 1)

    def draws(self, number: int = 1000, generator: torch.Generator | None = None) -> Tensor:
        """Weights drawn from the posterior, (number, M), all together: their correlations are kept."""
        source, blank = generator or fresh(), torch.empty(number, len(self.weights), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self.spread)
        z = normal(blank, source) * values.clamp_min(0).sqrt()
        from scipy.special import gammaincinv

        chi2 = 2 * torch.from_numpy(gammaincinv(self.freedom / 2, uniform(blank[:, 0], source).numpy()))
        sigma = (self.variance * self.freedom / chi2).sqrt()
        return self.weights + sigma[:, None] * (z @ vectors.T)

    def first(self, number: int = 1000, generator: torch.Generator | None = None) -> Tensor:
        """The probability that each piece is the one of largest |φ|, (M,), by `number` draws."""
        best = self.draws(number, generator).abs().argmax(1)
        return torch.bincount(best, minlength=len(self.weights)).double() / number

    def needed(self, width: float, level: float = 0.95) -> int:
        """How many samples, these included, until every interval is φ̂ ± width: half-widths fall as 1/√n.

        With coalitions of half of the pieces that is the paper's 4s²/(π̄ (width/1.96)²), its "perturbations to go".
        """
        if not width > 0:
            raise ValueError(f"width must be more than 0, not {width}")
        return max(self.n, math.ceil(self.n * (float(self.half_width(level).max()) / width) ** 2))


def bayes(
    game: Game, *, kernel: str = "lime", samples: int = 1000, width: float = 0.25, prior: float = 1.0,
    generator: torch.Generator | None = None,
) -> Posterior:
    """The posterior of LIME's weights (kernel="lime") or of Shapley values (kernel="shap"), from `samples` coalitions.

    The first coalition of LIME is the whole, the others keep each piece with probability ½; those of KernelSHAP are
    drawn from its kernel, after two that are the ends. Cost: `samples` predictions.
    Raises ValueError for names or sizes that make no sense.
    """
    if kernel not in ("lime", "shap"):
        raise ValueError(f"kernel must be 'lime' or 'shap', not {kernel!r}")
    _check(samples, prior)
    if kernel == "lime":
        table, _ = near_table(game, samples, width, "half", generator)
        return _posterior(*centred(table)[:3], prior, samples - 1, samples)
    M, source = game.players, generator or fresh()
    if M < 2:
        raise ValueError("one piece has the whole difference v(all) − v(∅): there is nothing to estimate")
    empty, whole = game.value(torch.tensor([[False] * M, [True] * M])).tolist()
    table = torch.zeros(M + 2, M + 2, dtype=torch.float64)
    for start in range(0, samples - 2, game.batch):
        many = min(game.batch, samples - 2 - start)
        size = 1 + torch.multinomial(shapley_mass(M), many, replacement=True, generator=source)
        b = coalitions_of(size, M, source)
        add(table, b.double(), game.value(b) - empty, torch.ones(many, dtype=torch.float64))
    free = _posterior(table[:M, :M], table[:M, -1], table[-1, -1], prior, samples - 2, samples)
    return _summing_to(free, whole - empty)


def bayes_table(
    predict: Any, row: Any, data: Any, target: int | None = None, *, samples: int = 1000, width: float | None = None,
    prior: float = 1.0, generator: torch.Generator | None = None,
) -> Posterior:
    """The posterior of the weights of `lime_table` with ridge = prior. Cost: `samples` + 1 predictions."""
    _check(samples, prior)
    row, data = np.asarray(row, dtype=np.float64).reshape(-1), np.asarray(data, dtype=np.float64)
    table, _, _ = around_table(predict, row, data, target, samples, width, generator)
    return _posterior(*centred(table)[:3], prior, samples - 1, samples)


def _check(samples: int, prior: float) -> None:
    if samples < 4:
        raise ValueError(f"samples must be 4 or more, not {samples}")
    if not 0 < prior < math.inf:
        raise ValueError(f"prior must be more than 0 and finite, not {prior}: without it few samples fix no weights")


def _posterior(A: Tensor, c: Tensor, s: Tensor, prior: float, freedom: int, n: int) -> Posterior:
    V = torch.linalg.inv(A + prior * torch.eye(len(c), dtype=A.dtype))
    mean = V @ c
    return Posterior(mean, V, max(0.0, float(s - c @ mean)) / freedom, freedom, n)


def _summing_to(free: Posterior, total: float) -> Posterior:
    """The posterior, given that Σφ = total: one more observation, without noise."""
    one, gap = free.spread.sum(1), total - float(free.weights.sum())
    over = float(one.sum())
    rest = free.variance * free.freedom + gap**2 / over
    return Posterior(free.weights + one * gap / over, free.spread - torch.outer(one, one) / over,
                     rest / (free.freedom + 1), free.freedom + 1, free.n)
