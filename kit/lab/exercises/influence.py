"""Leave one out: ridge regression, where retraining has a closed form, and the influence functions beside it."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def ridge_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d, lam in ((8, 2, 0.5), (14, 4, 2.0)):
        X = torch.randn(n, d, generator=g, dtype=torch.float64)
        yield X, X @ torch.randn(d, generator=g, dtype=torch.float64) + torch.randn(n, generator=g).double(), lam


def hat(X: Tensor, lam: float) -> Tensor:
    return X @ torch.linalg.solve(X.T @ X + lam * torch.eye(X.shape[1], dtype=X.dtype), X.T)


def retrained(X: Tensor, y: Tensor, lam: float) -> Tensor:
    """The error at each point of the machine that was trained without it: n trainings."""
    errors = []
    for i in range(len(y)):
        kept = torch.arange(len(y)) != i
        A = X[kept].T @ X[kept] + lam * torch.eye(X.shape[1], dtype=X.dtype)
        errors.append(y[i] - X[i] @ torch.linalg.solve(A, X[kept].T @ y[kept]))
    return torch.stack(errors)


def residual(X: Tensor, y: Tensor, lam: float) -> Tensor:
    return y - hat(X, lam) @ y


exercise(
    "leave-one-out",
    "leave_one_out(X, y, lam) -> (n,), y_i − f₋ᵢ(x_i), where f₋ᵢ minimises Σ (y − Xθ)² + λ‖θ‖² without "
    "point i",
    retrained, ridge_cases,
    [
        ("no-op", residual,
         ["those are the errors of the machine that saw all points.",
          "point i has pulled f towards itself: divide its error by 1 − h_ii, h = X(XᵀX + λI)⁻¹Xᵀ."]),
        ("multiplied", lambda X, y, lam: residual(X, y, lam) * (1 - hat(X, lam).diagonal()),
         ["your errors are smaller than those of the machine that saw the point.", "divide by 1 − h_ii."]),
        ("no λ in the hat", lambda X, y, lam: residual(X, y, lam) / (1 - hat(X, 0.0).diagonal()),
         ["your leverage is that of plain least squares.", "h = X(XᵀX + λI)⁻¹Xᵀ: λ belongs in it, too."]),
        ("sign error", lambda X, y, lam: -retrained(X, y, lam),
         ["it is the negative of what is expected.", "y_i minus the prediction."]),
        ("squared leverage", lambda X, y, lam: residual(X, y, lam) / (1 - hat(X, lam).diagonal()) ** 2,
         ["one division too many.", "1 − h_ii, once."]),
    ],
)


def score_cases(g: torch.Generator) -> Iterator[Case]:
    for n, p in ((6, 3), (10, 5)):
        A = torch.randn(p, 2 * p, generator=g)
        H = A @ A.T / (2 * p) + 0.1 * torch.eye(p)
        yield torch.randn(n, p, generator=g), H, torch.randn(p, generator=g)


def removed(G: Tensor, H: Tensor, g: Tensor) -> Tensor:
    return G @ torch.linalg.solve(H, g) / len(G)


exercise(
    "influence-score", "influence_score(G, H, g) -> (n,), by how much the test loss rises when point i is removed, to "
    "first order; G (n, p) gradients at the points, H Hessian of the mean loss, g test gradient",
    removed, score_cases,
    [
        ("no-op", lambda G, H, g: torch.zeros(len(G)), ["you say that nobody has an influence.", "gᵀ H⁻¹ ∇ℓ_i / n."]),
        ("sign error", lambda G, H, g: -removed(G, H, g),
         ["your helpful points are harmful ones.",
          "upweighting moves θ by −H⁻¹∇ℓ_i; removing is a weight of −1/n: the two signs cancel."]),
        ("no 1/n", lambda G, H, g: len(G) * removed(G, H, g),
         ["your numbers grow with the training set.", "removing one of n points is a weight of −1/n: divide by n."]),
        ("no Hessian", lambda G, H, g: G @ g / len(G),
         ["that is the product of the gradients, as in TracIn.",
          "a step is cheap where the loss is flat: H⁻¹ in between."]),
        ("H for its inverse", lambda G, H, g: G @ H @ g / len(G),
         ["you multiply by H.", "solve H h = g: torch.linalg.solve(H, g)."]),
    ],
)


def hessian_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d, l2 in ((6, 3, 0.3), (20, 4, 0.05)):
        yield torch.randn(n, d, generator=g), torch.rand(n, generator=g), l2


def logistic_hessian(X: Tensor, p: Tensor, l2: float) -> Tensor:
    return (X * (p * (1 - p))[:, None]).T @ X / len(X) + l2 * torch.eye(X.shape[1])


exercise(
    "logistic-hessian",
    "logistic_hessian(X, p, l2) -> (d, d), of the mean cross-entropy of probabilities p = σ(Xθ) plus "
    "l2/2 ‖θ‖²",
    logistic_hessian, hessian_cases,
    [
        ("no-op", lambda X, p, l2: torch.zeros(X.shape[1], X.shape[1]),
         ["a loss without curvature has no minimum.", "Xᵀ diag(p(1 − p)) X / n + l2·I."]),
        ("sum for mean", lambda X, p, l2: len(X) * logistic_hessian(X, p, 0.0) + l2 * torch.eye(X.shape[1]),
         ["the curvature of the data is n times too large.", "the risk is a mean: divide XᵀWX by n."]),
        ("no weight decay", lambda X, p, l2: logistic_hessian(X, p, 0.0),
         ["yours does not depend on l2.", "l2/2 ‖θ‖² has the Hessian l2·I."]),
        ("half the weight decay", lambda X, p, l2: logistic_hessian(X, p, l2 / 2),
         ["half of l2 is missing.", "the second derivative of l2/2 θ² is l2."]),
        ("least squares", lambda X, p, l2: X.T @ X / len(X) + l2 * torch.eye(X.shape[1]),
         ["that is the Hessian of least squares.", "the cross-entropy bends by p(1 − p) at each point."]),
        ("p for p(1 − p)", lambda X, p, l2: (X * p[:, None]).T @ X / len(X) + l2 * torch.eye(X.shape[1]),
         ["a sure answer should bend the loss least.", "the weight of a point is p(1 − p)."]),
    ],
)


def top_cases(g: torch.Generator) -> Iterator[Case]:
    for n, k in ((9, 3), (30, 5)):
        yield torch.randn(n, generator=g), k


exercise(
    "most-harmful", "most_harmful(scores, k) -> the k places with which the test loss would fall most if they were "
    "removed, worst first; `scores` say by how much it would rise",
    lambda scores, k: scores.argsort()[:k], top_cases,
    [
        ("no-op", lambda scores, k: torch.arange(k),
         ["those are the first k, whatever their score.", "sort the scores."]),
        ("sign error", lambda scores, k: scores.argsort(descending=True)[:k],
         ["those are the most helpful ones.", "without them the loss should *fall*: the smallest scores."]),
        ("|score| for score", lambda scores, k: scores.abs().argsort(descending=True)[:k],
         ["yours mixes help and harm.", "large in size is not the same as harmful: no abs()."]),
        ("values for places", lambda scores, k: scores.sort().values[:k],
         ["those are scores, not places.", "argsort gives places."]),
    ],
)


def series_cases(g: torch.Generator) -> Iterator[Case]:
    for p, scale, steps in ((3, 2.0, 6), (5, 3.0, 9)):
        Q = torch.linalg.qr(torch.randn(p, p, generator=g, dtype=torch.float64))[0]
        H = (Q * (0.2 + torch.rand(p, generator=g).double())) @ Q.T
        yield H, torch.randn(p, generator=g, dtype=torch.float64), scale, steps


def series(H: Tensor, v: Tensor, scale: float, steps: int, sign: float = 1.0) -> Tensor:
    """h after the steps, not yet divided by the scale."""
    h = v
    for _ in range(steps):
        h = v + h - sign * H @ h / scale
    return h


exercise(
    "lissa", "lissa(H, v, scale, steps) -> (p,), the estimate of H⁻¹v after so many steps h ← v + h − Hh/σ from h = v; "
    "H (p, p), σ = scale",
    lambda H, v, scale, steps: series(H, v, scale, steps) / scale, series_cases,
    [
        ("no-op", lambda H, v, scale, steps: v / scale,
         ["that is the first term of the series.", "h ← v + h − Hh/σ, `steps` times."]),
        ("not divided", series,
         ["the h of the steps tends to σ H⁻¹v.", "divide by σ at the end."]),
        ("divided twice", lambda H, v, scale, steps: series(H, v, scale, steps) / scale**2,
         ["σ once too often.", "v is added as it is; h is divided by σ once, at the end."]),
        ("sign error", lambda H, v, scale, steps: series(H, v, scale, steps, -1.0) / scale,
         ["yours grows without bound on any H.", "(I − H/σ)h: minus Hh/σ."]),
        ("v added once", lambda H, v, scale, steps: torch.linalg.matrix_power(
            torch.eye(len(v), dtype=v.dtype) - H / scale, steps) @ v / scale,
         ["yours is the last term alone, and it shrinks to nothing.", "v is added at every step: that makes the sum."]),
        ("the whole solve", lambda H, v, scale, steps: torch.linalg.solve(H, v),
         ["that is where the series ends.", "asked is how far it has come after `steps` steps."]),
    ],
)


def slope_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((4, 3), (7, 5)):
        yield (torch.randn(n, d, generator=g), torch.randint(2, (n,), generator=g).float(),
               torch.randn(d, generator=g), torch.randn(d, generator=g))


def pixel_slope(X: Tensor, y: Tensor, theta: Tensor, h: Tensor, direct: float = 1.0, bend=lambda p: p * (1 - p)):
    p = (X @ theta).sigmoid()
    return -(direct * (p - y)[:, None] * h + (bend(p) * (X @ h))[:, None] * theta) / len(X)


exercise(
    "pixel-slope",
    "pixel_slope(X, y, theta, h) -> (n, d), the slope of the test loss in the values of each training point, by the "
    "influence function, for logistic regression p = σ(θ·x) with y 0 or 1 and h = H⁻¹∇ℓ_test (d,)",
    pixel_slope, slope_cases,
    [
        ("no-op", lambda X, y, theta, h: torch.zeros_like(X),
         ["yours says that no training value matters.", "differentiate −(p − y)(x·h)/n with respect to x."]),
        ("p held fixed", lambda X, y, theta, h: pixel_slope(X, y, theta, h, bend=lambda p: 0 * p),
         ["a change of x changes p as well.", "product rule: p − y depends on x, with the slope p(1 − p) θ."]),
        ("only through p", lambda X, y, theta, h: pixel_slope(X, y, theta, h, 0.0),
         ["x itself is a factor of the gradient, too.", "add (p − y) h."]),
        ("least squares", lambda X, y, theta, h: pixel_slope(X, y, theta, h, bend=torch.ones_like),
         ["yours has the slope of p for a linear model.", "the slope of σ is p(1 − p)."]),
        ("sign error", lambda X, y, theta, h: -pixel_slope(X, y, theta, h),
         ["the attacker would lower the loss with yours.", "the parameters move by *minus* H⁻¹ times the gradient."]),
        ("no 1/n", lambda X, y, theta, h: len(X) * pixel_slope(X, y, theta, h),
         ["a training point has the weight 1/n in the risk.", "divide by n."]),
    ],
)
