"""Does a code carry the factors that made its images, one each? Four answers, from codes (N, D) and factors (N, K).

Codes are the means that an encoder gives, factors are class numbers (int64); a quantity is cut into classes first
(`binned`). Each metric is 1 for one factor a number and falls to 0, and each means something else by it:

    mig                a factor's information is in one number only, and not in a second
    factor_vae_score   where a factor is held still, its own number moves least
    sap                one number alone predicts a factor better than any other alone does
    dci                each number is used for one factor only (and each factor needs one number only)

Sources: Chen et al., "Isolating sources of disentanglement in variational autoencoders" (NeurIPS 2018); Kim & Mnih,
"Disentangling by factorising" (ICML 2018); Kumar et al., "Variational inference of disentangled latent concepts" (ICLR
2018); Eastwood & Williams, "A framework for the quantitative evaluation of disentangled representations" (ICLR 2018).
The numbers (20 bins, batches of 64, C = 0.01) are those of disentanglement_lib (Locatello et al., ICML 2019).
"""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.core.checks import check_counts

BINS = 20
PRUNED = 0.05  # the standard deviation below which a number counts as unused


def binned(values: Tensor, bins: int = BINS) -> Tensor:
    """Class numbers 0 … bins − 1 of equal bins between the least and the largest value of each column, as int64."""
    check_counts(bins=bins)
    if not isinstance(values, Tensor) or not values.numel() or not bool(values.isfinite().all()):
        raise ValueError("values are a tensor with a row at least, without NaN or infinity")
    low, high = values.amin(0), values.amax(0)
    width = torch.where(high > low, high - low, torch.ones_like(low))
    return ((values - low) / width * bins).floor().long().clamp(0, bins - 1)


def information(codes: Tensor, factors: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor]:
    """I(z_j; v_k) (D, K) of the binned codes, and the entropies H(v_k) (K,), in nats, from counts of the N rows.

    Raises ValueError for what is no pair of tables of as many rows, for codes that are not finite, and for a factor of
    one value, whose entropy is 0.
    """
    codes, factors = _checked(codes, factors)
    z = binned(codes, bins)
    pairs = [[_entropy(z[:, j]) + _entropy(factors[:, k]) - _entropy(z[:, j] * (int(factors.max()) + 1) + factors[:, k])
              for k in range(factors.shape[1])] for j in range(z.shape[1])]
    entropy = [_entropy(v) for v in factors.T]
    return torch.tensor(pairs, dtype=torch.float64).clamp_min(0), torch.tensor(entropy, dtype=torch.float64)


def mig(codes: Tensor, factors: Tensor, *, bins: int = BINS) -> float:
    """Mutual information gap: the mean over factors of (I₁ − I₂) / H(v_k), I₁ and I₂ the two largest of I(z_j; v_k).

    Below 1 for a perfect code of more values than `bins`: (ln 20) / ln 40 for 40 of them. A single number has I₂ = 0.
    """
    shared, entropy = information(codes, factors, bins)
    return float((_gap(shared) / entropy).mean())


def factor_vae_score(
    codes: Tensor, factors: Tensor, *, batch: int = 64, votes: int = 10_000, tests: int = 5_000, seed: int = 0
) -> float:
    """How often the number that moves least tells which factor was held still.

    A vote: draw a factor and a value of it, then `batch` rows that have it; d = argmin_j var_j(batch) / var_j(all) over
    the numbers whose standard deviation is 0.05 or more. Each d is given the factor that most of its `votes` had; the
    score is the share of right answers in `tests` further votes. 0 where no number is left. Chance is 1 / K.
    """
    codes, factors = _checked(codes, factors)
    check_counts(2, batch=batch)
    check_counts(votes=votes, tests=tests)
    variance = codes.var(0, unbiased=False)
    used = variance.sqrt() >= PRUNED
    if not bool(used.any()):
        return 0.0
    z, K = (codes[:, used] / variance[used].sqrt()).numpy(), factors.shape[1]
    source = np.random.default_rng(seed)
    rows = [[np.flatnonzero(factors[:, k] == value) for value in factors[:, k].unique()] for k in range(K)]
    kept = source.integers(K, size=votes + tests)
    least = np.empty(len(kept), dtype=np.int64)
    for i, k in enumerate(kept):
        own = rows[k][source.integers(len(rows[k]))]
        least[i] = z[source.choice(own, batch)].var(0).argmin()
    table = np.zeros((z.shape[1], K))
    np.add.at(table, (least[:votes], kept[:votes]), 1)
    return float((table.argmax(1)[least[votes:]] == kept[votes:]).mean())


def sap(codes: Tensor, factors: Tensor, *, C: float = 0.01, seed: int = 0) -> float:
    """Separated attribute predictability: the mean over factors of the gap between the two best numbers, each by the
    accuracy with which a linear SVM (scikit-learn's, balanced) predicts the factor from it alone, on a third held out.

    A perfect code does not reach 1: a line through one number tells the first and the last of many values from the
    rest, but not those between. And with this C it matters in which units the code is.
    """
    from sklearn.svm import LinearSVC

    codes, factors = _checked(codes, factors)
    train, test = _halves(len(codes), 1 / 3, seed)
    z, v = codes.numpy(), factors.numpy()
    scores = torch.zeros(z.shape[1], v.shape[1])
    for j in range(z.shape[1]):
        if z[:, j].std() > 1e-12:  # a number that never changes predicts nothing
            for k in range(v.shape[1]):
                machine = LinearSVC(C=C, class_weight="balanced", random_state=seed)
                scores[j, k] = machine.fit(z[train, j : j + 1], v[train, k]).score(z[test, j : j + 1], v[test, k])
    return float(_gap(scores).mean())


class DCI(NamedTuple):
    """Disentanglement, completeness, informativeness, and the importances R (D, K) that the first two come from."""

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Tensor


def dci(codes: Tensor, factors: Tensor, *, learner: Any = None, seed: int = 0) -> DCI:
    """From R_jk, the importance of number j for predicting factor k (each column sums to 1):

        disentanglement   Σ_j ρ_j (1 − H_K(R_j·)),  ρ_j the share of number j in all importance, H_K to the base K
        completeness      Σ_k ρ_k (1 − H_D(R_·k))
        informativeness   mean accuracy on the third of the rows that is held out

    `learner` is a classifier of scikit-learn's with `feature_importances_`; gradient boosting where it is None.
    A number that copies another takes nothing from disentanglement, and half from completeness.
    """
    from sklearn.base import clone
    from sklearn.ensemble import GradientBoostingClassifier

    codes, factors = _checked(codes, factors)
    train, test = _halves(len(codes), 1 / 3, seed)
    z, v = codes.numpy(), factors.numpy()
    R, right = np.zeros((z.shape[1], v.shape[1])), []
    for k in range(v.shape[1]):
        machine = clone(GradientBoostingClassifier() if learner is None else learner).set_params(random_state=seed)
        machine.fit(z[train], v[train, k])
        R[:, k] = np.abs(machine.feature_importances_)
        right.append(machine.score(z[test], v[test, k]))
    return DCI(_concentration(R), _concentration(R.T), float(np.mean(right)), torch.from_numpy(R))


def _concentration(R: np.ndarray) -> float:
    """Σ ρ (1 − H) over the rows of R: 1 where each row is in one place. H to the base of a row's length."""
    total = R.sum(1)
    share = R / np.maximum(total, 1e-12)[:, None]
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(1) / np.log(max(R.shape[1], 2))
    return float((total / max(total.sum(), 1e-12) * (1 - entropy)).sum())


def _gap(scores: Tensor) -> Tensor:
    """The best minus the second best of each column (D, K) → (K,); the best alone where there is one row."""
    best = torch.cat([scores, torch.zeros_like(scores[:1])]).topk(2, 0).values
    return best[0] - best[1]


def _entropy(v: Tensor) -> float:
    p = v.unique(return_counts=True)[1].double() / len(v)
    return float(torch.special.entr(p).sum())


def _halves(n: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to ask about."""
    if n < 6:
        raise ValueError(f"{n} rows are too few to learn from some and ask about others: 6 at least, better 500")
    order = np.random.default_rng(seed).permutation(n)
    cut = round(n * held_out)
    return order[cut:], order[:cut]


def _checked(codes: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(codes, Tensor) or not isinstance(factors, Tensor):
        raise TypeError("codes and factors are torch tensors: use torch.as_tensor")
    if codes.dim() != 2 or factors.dim() != 2 or len(codes) != len(factors) or not codes.numel() or not factors.numel():
        raise ValueError("codes (N, D) and factors (N, K) are two tables with a row for each image, not "
                         f"{tuple(codes.shape)} and {tuple(factors.shape)}")
    if factors.dtype != torch.int64 or bool((factors < 0).any()):
        raise ValueError(f"factors are class numbers, int64 from 0, not {factors.dtype}: cut quantities into classes "
                         "with binned")
    if not bool(codes.isfinite().all()):
        raise ValueError("the codes hold NaN or infinity")
    if any(len(column.unique()) < 2 for column in factors.T):
        raise ValueError("a factor of one value has no entropy: leave it out")
    return codes.detach().cpu().double(), factors.cpu()
