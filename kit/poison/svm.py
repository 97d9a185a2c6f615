"""Poisoning a support vector machine: training points that are moved to where they do most harm (Biggio et al. 2012).

    L(x_c) = Σ_k (1 − y_k f(x_k))₊      over validation points, f the machine trained on all points, x_c among them
    x_c   ← Π(x_c + step · ∇L/‖∇L‖)     trained again at each step; Π onto the box; step halved until L rises

How the machine follows x_c is known from its optimality conditions (KKT). With S the margin vectors (0 < α < C), whose
y_s f(x_s) stays 1, and the bounded ones fixed at C,

    [Q_SS  y_S] [dα_S]     [d(Q_S·) α]
    [y_Sᵀ   0 ] [ db ]  = −[    0    ],      y_k df(x_k) = Q_kS dα_S + y_k db + dQ_kc α_c,      Q_ij = y_i y_j K_ij.

d(Q_S·) α holds ∂Q_sc α_c in row s, and, where the point is itself a margin vector, Σ_j ∂Q_cj α_j in its own. It holds
while S stays what it is; where α_c = 0 the machine does not see the point, and the gradient is 0.

    x, y        training points (n, …) of any shape, labels −1 and 1 (n,)         x_val, y_val    the same to harm
    C, gamma    of the machine; gamma=None is the linear kernel, else exp(−γ‖x − x'‖²)
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kit.core import generator as new_generator
from kit.core.checks import check_settings

EDGE = 1e-7  # of C: an α nearer than this to 0 or C is there


@dataclass
class Machine:
    """A trained machine: α and the bias b, exact to rounding. f(v) = Σ_j α_j y_j K(x_j, v) + b."""

    x: np.ndarray
    y: np.ndarray
    alpha: np.ndarray
    b: float
    C: float
    gamma: float | None

    def decision(self, v: Tensor) -> Tensor:
        """f(v) (N,); its sign is the label."""
        return torch.from_numpy(self._decision(_rows(v)))

    def _decision(self, v: np.ndarray) -> np.ndarray:
        return kernel(v, self.x, self.gamma) @ (self.alpha * self.y) + self.b

    @property
    def margin(self) -> np.ndarray:
        """The places of the margin vectors, 0 < α < C."""
        return np.flatnonzero((self.alpha > EDGE * self.C) & (self.alpha < (1 - EDGE) * self.C))


def kernel(a: np.ndarray, b: np.ndarray, gamma: float | None) -> np.ndarray:
    if gamma is None:
        return a @ b.T
    return np.exp(-gamma * np.maximum((a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1), 0))


def train_svm(x: Tensor, y: Tensor, *, C: float = 1.0, gamma: float | None = None) -> Machine:
    """scikit-learn's SVC, to a tight tolerance; then α of its margin vectors and b solved for exactly.

    Raises ValueError for labels other than −1 and 1, both of them there, and for points that are not finite.
    """
    _check_machine(C, gamma)
    labels = _labels(y, len(x))
    _both(labels)
    return _train(_rows(x), labels, C, gamma)


def _train(x: np.ndarray, y: np.ndarray, C: float, gamma: float | None) -> Machine:
    from sklearn.svm import SVC

    K = kernel(x, x, gamma)
    found = SVC(C=C, kernel="precomputed", tol=1e-8, cache_size=50).fit(K, y)
    machine = Machine(x, y, np.zeros(len(x)), float(found.intercept_[0]), C, gamma)
    machine.alpha[found.support_] = np.abs(found.dual_coef_[0])
    S = machine.margin
    if len(S):
        bounded = np.where(machine.alpha > (1 - EDGE) * C, C, 0.0)
        Q = K * np.outer(y, y)
        right = np.append(1 - Q[S] @ bounded, -y @ bounded)
        solved = np.linalg.lstsq(_bordered(Q[np.ix_(S, S)], y[S]), right, rcond=1e-12)[0]
        if (solved[:-1] > 0).all() and (solved[:-1] < C).all():
            machine.alpha, machine.b = bounded, float(solved[-1])
            machine.alpha[S] = solved[:-1]
    return machine


def _bordered(Q: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.block([[Q, y[:, None]], [y[None], np.zeros((1, 1))]])


def hinge(machine: Machine, x_val: Tensor, y_val: Tensor) -> float:
    """L = Σ_k (1 − y_k f(x_k))₊, what the attack raises."""
    return _hinge(machine, _rows(x_val), _labels(y_val, len(x_val)))


def _hinge(machine: Machine, v: np.ndarray, u: np.ndarray) -> float:
    return float(np.maximum(1 - u * machine._decision(v), 0).sum())


def svm_gradient(machine: Machine, c: int, x_val: Tensor, y_val: Tensor) -> Tensor:
    """∂L/∂x_c, shaped as a point of x_val: how the validation loss follows training point c, the machine trained anew.

    Zero where α_c = 0. Cost: a least-squares solution of |S| + 1 equations.
    """
    if not -len(machine.x) <= c < len(machine.x):
        raise ValueError(f"the machine has the training points 0 … {len(machine.x) - 1}, and none of number {c}")
    _alike(machine.x, _rows(x_val))
    g = _gradient(machine, c % len(machine.x), _rows(x_val), _labels(y_val, len(x_val)))
    return torch.from_numpy(g).view(x_val.shape[1:])


def _gradient(machine: Machine, c: int, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    x, y, alpha, S = machine.x, machine.y, machine.alpha, machine.margin
    if alpha[c] <= EDGE * machine.C:
        return np.zeros(x.shape[1])

    def slope(points: np.ndarray) -> np.ndarray:
        """∂K(p, x_c)/∂x_c for each point p, (m, d)."""
        if machine.gamma is None:
            return points
        near = kernel(points, x[c : c + 1], machine.gamma)
        return 2 * machine.gamma * near * (points - x[c])

    right = np.vstack([alpha[c] * y[c] * y[S, None] * slope(x[S]), np.zeros(x.shape[1])])
    if c in S:  # its own row: every Q_cj moves with x_c, and Q_cc twice
        own = y[c] * (alpha * y)[:, None] * slope(x)
        right[np.flatnonzero(c == S)[0]] = own.sum(0) + own[c]
    Q = kernel(x[S], x[S], machine.gamma) * np.outer(y[S], y[S])
    moved = -np.linalg.lstsq(_bordered(Q, y[S]), right, rcond=1e-10)[0]  # dα_S, db
    hurt = machine._decision(v) * u < 1
    v, u = v[hurt], u[hurt]
    through = (u[:, None] * kernel(v, x[S], machine.gamma) * y[S]) @ moved[:-1] + u[:, None] * moved[-1]
    return -(through + (alpha[c] * y[c] * u)[:, None] * slope(v)).sum(0)


def svm_poison(
    x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor, *, count: int = 1, C: float = 1.0, gamma: float | None = None,
    label: int | None = None, step: float = 1.0, steps: int = 30, low: float = 0.0, high: float = 1.0,
    generator: torch.Generator | None = None, trace: list[tuple[Tensor, float]] | None = None,
) -> tuple[Tensor, Tensor]:
    """`count` points to be added to the training set, (count, …) and their labels (count,).

    Each begins as a training point drawn at random, of the class −label, with the label `label` (None: one after the
    other of both), moved onto the box where it lies outside, and climbs L while those found before it stay. It is drawn
    anew, up to ten times, where the machine does not see it (α_c = 0). `trace` receives (point, L) after each step.
    low, high: the box. Raises ValueError for labels and points as `train_svm` does, and for an empty box.
    Cost: for each point about 2 · steps trainings. Source: Biggio et al., ICML 2012, algorithm 1 and equations 5 to 10.
    """
    check_settings({"step": step, "steps": steps, "generator": generator})
    _check_machine(C, gamma)
    _check_count(label, count)
    if not low < high:
        raise ValueError(f"the box must have low below high, not {low:g} and {high:g}")
    rows, labels, v, u = _rows(x), _labels(y, len(x)), _rows(x_val), _labels(y_val, len(x_val))
    _both(labels)
    _alike(rows, v)
    source, start = generator or new_generator(), len(rows)
    for k in range(count):
        own = label if label is not None else (-1, 1)[k % 2]
        rows, labels, machine = _begun(rows, labels, start, own, C, gamma, (low, high), source)
        value = _hinge(machine, v, u)
        for _ in range(steps):
            g = _gradient(machine, len(rows) - 1, v, u)
            size = np.linalg.norm(g)
            moved = _climbed(rows, labels, machine, value, g / size, step, (low, high), v, u) if size else None
            if moved is None:
                break
            rows, machine, value = moved
            if trace is not None:
                trace.append((torch.from_numpy(rows[-1].copy()).view(x.shape[1:]), value))
    found = torch.from_numpy(rows[start:]).to(x).view(count, *x.shape[1:])
    return found, torch.from_numpy(labels[start:]).to(y)


def _begun(rows, labels, start, own, C, gamma, box, source):
    """The points with one more: one of the other class with the wrong label, which the machine sees."""
    others = np.flatnonzero(labels[:start] == -own)
    for place in others[torch.randperm(len(others), generator=source).numpy()][:10]:
        more, signs = np.vstack([rows, np.clip(rows[place], *box)]), np.append(labels, float(own))
        machine = _train(more, signs, C, gamma)
        if machine.alpha[-1] > EDGE * C:
            break
    return more, signs, machine


def _climbed(rows, labels, machine, value, direction, step, box, v, u):
    """The points after one step up of the last, halved until L rises; None where none of 8 halvings raises it."""
    for halving in range(8):
        more = rows.copy()
        more[-1] = np.clip(rows[-1] + step / 2**halving * direction, *box)
        tried = _train(more, labels, machine.C, machine.gamma)
        new = _hinge(tried, v, u)
        if new > value * (1 + 1e-9):
            return more, tried, new
    return None


def flipped(
    x: Tensor, y: Tensor, count: int, *, label: int | None = None, generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The control: `count` training points drawn as `svm_poison` draws them, with the wrong label, not moved."""
    check_settings({"generator": generator})
    _check_count(label, count)
    _both(_labels(y, len(x)))
    source, points, labels = generator or new_generator(), [], []
    for k in range(count):
        own = label if label is not None else (-1, 1)[k % 2]
        others = (y == -own).nonzero()[:, 0]
        points.append(x[others[torch.randint(len(others), (1,), generator=source)]])
        labels.append(own)
    return torch.cat(points), torch.tensor(labels).to(y)


def _rows(x: Tensor) -> np.ndarray:
    if x.dim() < 2 or not len(x):
        raise ValueError(f"points must have the shape (n, …), one or more of them, not {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise ValueError("the points hold NaN or infinity")
    return x.detach().cpu().double().flatten(1).numpy()


def _labels(y: Tensor, n: int) -> np.ndarray:
    values = y.detach().cpu().double().numpy()
    if values.shape != (n,) or set(np.unique(values)) - {-1.0, 1.0}:
        raise ValueError(f"labels must be −1 and 1, one for each of {n} points: use 2 * y - 1 for labels 0 and 1")
    return values


def _both(labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all points have the label {int(labels[0])}: a machine needs points of both classes")


def _alike(points: np.ndarray, others: np.ndarray) -> None:
    if points.shape[1] != others.shape[1]:
        raise ValueError(f"training points have {points.shape[1]} values and validation points {others.shape[1]}: "
                         "they must be alike")


def _check_machine(C: float, gamma: float | None) -> None:
    check_settings({"c": C})
    if gamma is not None and not 0 < gamma < float("inf"):
        raise ValueError(f"gamma must be more than 0, or None for the linear kernel, not {gamma}")


def _check_count(label: int | None, count: int) -> None:
    if label not in (None, -1, 1) or count < 1:
        raise ValueError(f"label must be −1, 1 or None, and count at least 1, not {label!r} and {count}")
