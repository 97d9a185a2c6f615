"""What a game is worth when both sides may mix: the defender's best mixture, by a linear programme.

    v = max_q min_a Σ_d q_d M_ad = min_p max_d Σ_a p_a M_ad          M_ad what the defender d keeps under the attack a

The two are equal (von Neumann 1928), and no single defender keeps more: max_d min_a M_ad ≤ v ≤ min_a max_d M_ad.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kit.report import Estimate


@dataclass(frozen=True)
class Solution:
    """The value of a game, both mixtures, and the best that each side can do with one row or column alone."""

    value: float
    attacker: np.ndarray  # p (A,)
    defender: np.ndarray  # q (D,)
    best_defender: int  # argmax_d min_a M_ad
    maximin: float
    best_attacker: int  # argmin_a max_d M_ad
    minimax: float


@dataclass(frozen=True)
class Game:
    """A solution with names and intervals: the value, the best single defender's, and what mixing adds to that."""

    value: Estimate
    pure: Estimate
    gain: Estimate
    best: str
    defender: dict[str, float]
    attacker: dict[str, float]


def solve(M: np.ndarray) -> Solution:
    """The game M (A, D): the attacker chooses a row and wants little, the defender a column and wants much.

    Raises ValueError for what is no finite matrix.
    """
    M = np.asarray(M, dtype=float)
    if M.ndim != 2 or not M.size or not np.isfinite(M).all():
        raise ValueError(f"a game is a finite matrix (attackers, defenders), not an array of shape {M.shape}")
    value, q, p = _programme(M, np.ones(1), M.shape[0])
    worst, most = M.min(0), M.max(1)
    return Solution(value, p, q, int(worst.argmax()), float(worst.max()), int(most.argmin()), float(most.min()))


def informed(held: np.ndarray) -> tuple[float, np.ndarray]:
    """(v, q (D,)): the same where the attacker sees the image before he chooses, and the defender does not.

        v = max_q (1/N) Σ_i min_a Σ_d q_d H_adi,        H (A, D, N) what is kept of every image

    One mixture for all images, a worst attack for each. v is at most `solve(H.mean(2)).value`.
    """
    held = np.asarray(held, dtype=float)
    if held.ndim != 3 or not held.size or not np.isfinite(held).all():
        raise ValueError(f"what is kept is finite (attackers, defenders, images), not of the shape {held.shape}")
    A, D, N = held.shape
    patterns, counts = np.unique(held.reshape(A * D, N).T, axis=0, return_counts=True)
    rows = patterns.reshape(-1, A, D).reshape(-1, D)  # image by image, attack by attack
    value, q, _ = _programme(rows, counts / N, A)
    return value, q


def _programme(rows: np.ndarray, weights: np.ndarray, attacks: int) -> tuple[float, np.ndarray, np.ndarray]:
    """max Σ_i w_i v_i over q in the simplex with v_i ≤ ⟨rows_ia, q⟩: its value, q, and the multipliers of the rows."""
    from scipy import optimize, sparse

    D, images = rows.shape[1], len(weights)
    of = np.repeat(np.arange(images), attacks)
    own = sparse.csr_matrix((np.ones(len(rows)), (np.arange(len(rows)), of)), (len(rows), images))
    found = optimize.linprog(
        np.concatenate([np.zeros(D), -weights]), A_ub=sparse.hstack([sparse.csr_matrix(-rows), own]),
        b_ub=np.zeros(len(rows)), A_eq=np.concatenate([np.ones(D), np.zeros(images)])[None], b_eq=[1.0],
        bounds=[(0, None)] * D + [(None, None)] * images, method="highs")
    if not found.success:
        raise RuntimeError(f"the linear programme has no solution: {found.message}")
    return -float(found.fun), found.x[:D], -found.ineqlin.marginals
