"""A biased model behind a scaffold, which shows LIME and KernelSHAP an innocuous one.

    e(x) = f(x)  where  s(x) ≤ threshold,   ψ(x)  elsewhere

    f   the biased model, which people meet        s   how much x looks like a question of an explainer: the share of a
    ψ   the innocuous one, which auditors meet         forest's trees that take it for one

Explainers ask about rows that nobody has: the forest learns them from real rows and from the same rows, perturbed as an
explainer would. Source: Slack et al. 2020, section 3; the forest of 100 trees and the threshold ½ are theirs.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch

from kit.core import generator as fresh
from kit.core import normal
from kit.explain.games import asker
from kit.explain.lime import coalitions_of, shapley_mass

Probes = Callable[[np.ndarray, torch.Generator], np.ndarray]


def lime_probes(data: Any) -> Probes:
    """What `lime_table` asks about: rows + σ∘ξ, ξ ~ N(0, I), σ the standard deviations of the columns of `data`."""
    scale = np.asarray(data, dtype=np.float64).std(0)

    def probes(rows: np.ndarray, source: torch.Generator) -> np.ndarray:
        return rows + scale * normal(torch.empty(rows.shape, dtype=torch.float64), source).numpy()

    return probes


def shap_probes(background: Any) -> Probes:
    """What KernelSHAP asks of a `table_game`: a coalition drawn from its kernel stays, one background row fills in."""
    background = np.asarray(background, dtype=np.float64)

    def probes(rows: np.ndarray, source: torch.Generator) -> np.ndarray:
        n, M = rows.shape
        size = 1 + torch.multinomial(shapley_mass(M), n, replacement=True, generator=source)
        shown = coalitions_of(size, M, source).numpy()
        filler = torch.randint(len(background), (n,), generator=source).numpy()
        return np.where(shown, rows, background[filler])

    return probes


class Scaffold:
    """`Scaffold(biased, innocuous).fit(x)` answers as `biased` on rows like x, as `innocuous` on what explainers make.

    biased, innocuous   what `kit.explain` can ask about tables: an object with predict_proba, or a function of rows
    threshold           the suspicion s above which ψ answers: 1 never hides, a negative one always does
    trees               of the forest (scikit-learn's)
    """

    def __init__(self, biased: Any, innocuous: Any, *, threshold: float = 0.5, trees: int = 100):
        self.biased, self.innocuous = asker(biased), asker(innocuous)
        self.threshold, self.trees = threshold, trees
        self.forest: Any = None

    def fit(
        self, x: Any, *, probes: Probes | None = None, copies: int = 10, generator: torch.Generator | None = None,
    ) -> Self:
        """Teach the forest real rows x (n, d), and `copies` perturbed ones of each: `lime_probes(x)` by default.

        A perturbed row that is a real one counts as real. The classes weigh the same. Cost: one forest.
        Raises ValueError for rows that are not finite, and for perturbations that make nothing new.
        """
        from sklearn.ensemble import RandomForestClassifier

        x, source = _rows(x), generator or fresh()
        made = np.concatenate([(probes or lime_probes(x))(x, source) for _ in range(copies)])
        made = made[~_among(made, x)]
        if not len(made):
            raise ValueError("every perturbed row is a real one: nothing tells a question of the explainer from data")
        seed = int(torch.randint(2**31, (1,), generator=source, device=source.device))
        self.forest = RandomForestClassifier(self.trees, class_weight="balanced", random_state=seed)
        self.forest.fit(np.concatenate([x, made]), np.repeat([0, 1], [len(x), len(made)]))
        return self

    def score(self, rows: Any) -> np.ndarray:
        """How suspicious each row is, (n,): the share of trees that take it for a question of an explainer."""
        if self.forest is None:
            raise RuntimeError("this Scaffold has no detector yet: call fit(x) with real rows first")
        return self.forest.predict_proba(_rows(rows))[:, 1]

    def hides(self, rows: Any) -> np.ndarray:
        """Whether ψ answers in place of f, (n,)."""
        return self.score(rows) > self.threshold

    def predict_proba(self, rows: Any) -> np.ndarray:
        """The answers (n, K), each of f or of ψ. This is all that anybody sees."""
        rows = _rows(rows)
        biased, innocuous = self.biased(rows).numpy(), self.innocuous(rows).numpy()
        if biased.shape != innocuous.shape:
            raise ValueError(f"biased answers {biased.shape[1]} numbers a row and innocuous {innocuous.shape[1]}: "
                             "give two models of the same classes")
        return np.where(self.hides(rows)[:, None], innocuous, biased)

    def separates(self, x: Any, probes: Probes, generator: torch.Generator | None = None) -> float:
        """The area under the ROC curve of s, for rows x that were not fitted on against one perturbed row of each.

        On rows of `fit` it would be too good: the forest remembers them.
        """
        from sklearn.metrics import roc_auc_score

        x = _rows(x)
        made = probes(x, generator or fresh())
        return float(roc_auc_score(np.repeat([0, 1], len(x)), self.score(np.concatenate([x, made]))))


def applicants(n: int, generator: torch.Generator | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Made, not collected: n people who ask for a loan, as standard scores (n, 10), and the names of the columns.

    Three hidden causes, maturity, means and habit, are behind three columns each, with independent noise, so that
    columns of one cause correlate by about 0.92. The number of the house has no cause. No column says who pays back:
    what a model makes of them is up to the model. `age` is the protected one.
    """
    groups = (("age", "years of work", "years at address"), ("income", "savings", "rent"),
              ("loan", "open credit", "late payments"))
    source = generator or fresh()
    causes = normal(torch.empty(n, 3, dtype=torch.float64), source)
    noise = normal(torch.empty(n, 10, dtype=torch.float64), source)
    rows = torch.cat([(causes.repeat_interleave(3, 1) + 0.3 * noise[:, :9]) / 1.09**0.5, noise[:, 9:]], 1)
    return rows.numpy(), (*sum(groups, ()), "house number")


def _rows(x: Any) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"rows must be a table (n, d), not of shape {x.shape}: use x[None] for one row")
    if not np.isfinite(x).all():
        raise ValueError("the rows hold NaN or infinity: fill in or leave out what is missing")
    return x


def _among(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    seen = {row.tobytes() for row in known}
    return np.array([row.tobytes() in seen for row in rows])
