"""Measures of robustness: how often and how near, a Lipschitz radius, a norm, a ReLU's triangle, early votes."""
import math
from collections.abc import Iterator

import torch
from scipy.special import log_ndtr, ndtr
from torch import Tensor

from kit.defend.smoothing.binomial import clopper_pearson
from kit.lab.checks import Case, exercise


def distance_cases(g: torch.Generator) -> Iterator[Case]:
    for eps in (0.1, 0.05):
        rho = 0.2 * torch.rand(40, generator=g)
        rho[:5] = 0.0
        rho[5:9] = torch.inf
        yield rho, eps


def within(rho: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    near = rho <= eps
    return near.float().mean(), rho[near].mean()


exercise(
    "frequency-severity", "frequency_severity(rho, eps) -> (ψ, µ), the share of the images with an error within ε, "
    "and the mean "
    "distance of those, for distances rho (N,), 0 where the answer is wrong already and ∞ where there is no error",
    within, distance_cases,
    [
        ("no-op", lambda rho, eps: (0.0, 0.0),
         ["nothing is counted.", "rho <= eps says which images have an error that near."]),
        ("mean of all", lambda rho, eps: (within(rho, eps)[0], rho.clamp_max(1.0).mean()),
         ["µ is over the images with an error within ε alone.", "rho[rho <= eps].mean()."]),
        ("cut at eps", lambda rho, eps: (within(rho, eps)[0], rho.clamp_max(eps).mean()),
         ["those that held do not count with ε; they do not count at all.", "rho[rho <= eps].mean()."]),
        ("over all images", lambda rho, eps: (within(rho, eps)[0], rho[rho <= eps].sum() / len(rho)),
         ["your µ falls when more images hold.", "divide by the number within ε."]),
        ("those that held", lambda rho, eps: (1 - within(rho, eps)[0], within(rho, eps)[1]),
         ["that ψ is the share that held.", "the share with an error within ε."]),
        ("without the wrong ones", lambda rho, eps: within(rho[rho > 0], eps),
         ["an image that is wrong already has an error at distance 0.", "keep it in both."]),
    ],
)


def chain_cases(g: torch.Generator) -> Iterator[Case]:
    for shape in ((6, 5, 4), (8, 7, 6, 3)):
        W = [torch.randn(k, d, generator=g, dtype=torch.float64) / d**0.5
             for d, k in zip(shape, shape[1:], strict=False)]
        z = 3 * torch.randn(10, shape[-1], generator=g, dtype=torch.float64)
        yield W, z, torch.randint(shape[-1], (10,), generator=g)


def radius(W: list[Tensor], z: Tensor, y: Tensor, size=None, *, joined=torch.prod, between=torch.sub,
           cut: bool = True) -> Tensor:
    """(z_y − z_k)/L_yk, the least over k ≠ y."""
    size = size or (lambda w: w.abs().sum(1).max())
    sizes = torch.stack([size(w) for w in W[:-1]])
    rows = between(W[-1][y][:, None], W[-1][None]).abs().sum(2)
    lead = (z.gather(1, y[:, None]) - z) / (joined(sizes) * rows)
    lead = lead.scatter(1, y[:, None], torch.inf).amin(1)
    return lead.clamp_min(0) if cut else lead


exercise(
    "lipschitz-radius", "lipschitz_radius(W, z, y) -> (N,), the l∞ radius that a chain of linear layers W = [W₁, …, "
    "W_L] with "
    "ReLUs between proves: min over k ≠ y of (z_y − z_k)/L_yk, 0 where negative; logits z (N, K)",
    radius, chain_cases,
    [
        ("no-op", lambda W, z, y: 0 * z[:, 0], ["nothing is proved.", "L_yk = Π ‖W_l‖ times ‖w_y − w_k‖₁."]),
        ("columns for rows", lambda W, z, y: radius(W, z, y, lambda w: w.abs().sum(0).max()),
         ["that is the norm for l1.", "in l∞ a layer stretches by its largest row sum of |w|."]),
        ("spectral norms", lambda W, z, y: radius(W, z, y, lambda w: torch.linalg.matrix_norm(w, 2)),
         ["those are l2 norms: an l∞ change may be stretched further.", "the largest row sum of |w|."]),
        ("sum for product", lambda W, z, y: radius(W, z, y, joined=torch.sum),
         ["layers follow one another: their stretches multiply.", "the product over the hidden layers."]),
        ("two rows apart", lambda W, z, y: radius(W, z, y, between=lambda a, b: a.abs() + b.abs()),
         ["true, and smaller than it need be.", "z_y − z_k is one row, w_y − w_k: take the l1 norm of that."]),
        ("negative radii", lambda W, z, y: radius(W, z, y, cut=False),
         ["some radii are negative.", "where the answer is wrong: 0."]),
    ],
)


def matrix_cases(g: torch.Generator) -> Iterator[Case]:
    for d, rounds in ((5, 3), (8, 6)):
        W, v = torch.randn(d, d, generator=g, dtype=torch.float64), torch.randn(d, generator=g, dtype=torch.float64)
        yield W, v, rounds


def powered(W: Tensor, v: Tensor, rounds: int) -> Tensor:
    for _ in range(rounds):
        v = W.T @ (W @ v)
        v = v / v.norm()
    return (W @ v).norm()


def forward_alone(W: Tensor, v: Tensor, rounds: int) -> Tensor:
    for _ in range(rounds):
        v = W @ v
        v = v / v.norm()
    return (W @ v).norm()


def unnormalised(W: Tensor, v: Tensor, rounds: int) -> Tensor:
    for _ in range(rounds):
        v = W.T @ (W @ v)
    return (W @ v).norm()


exercise(
    "power-iteration", "power_iteration(W, v, rounds) -> ‖W v‖₂ after `rounds` times v ← WᵀW v, normalised",
    powered, matrix_cases,
    [
        ("no-op", lambda W, v, rounds: powered(W, v / v.norm(), 0),
         ["v has not moved.", "WᵀW v, divided by its norm, `rounds` times."]),
        ("no way back", forward_alone,
         ["that seeks eigenvectors of W.", "the norm of W comes from WᵀW: multiply by Wᵀ as well."]),
        ("not normalised", unnormalised, ["yours grows without end.", "divide v by its norm in each round."]),
        ("Frobenius", lambda W, v, rounds: W.norm(),
         ["that is the root of the sum of all squares: an upper bound.", "‖W v‖ for the last v."]),
        ("squared", lambda W, v, rounds: powered(W, v, rounds) ** 2,
         ["that is the eigenvalue of WᵀW.", "its root: ‖W v‖."]),
        ("one round", lambda W, v, rounds: powered(W, v, 1),
         ["that is what one round gives.", "is the `return` inside of the loop?"]),
    ],
)


def triangle_cases(g: torch.Generator) -> Iterator[Case]:
    low, high = -0.2 - torch.rand(200, generator=g), 0.2 + torch.rand(200, generator=g)
    yield low, high, torch.randn(200, generator=g), torch.randn(200, generator=g)


def corners(low: Tensor, high: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a * low, torch.zeros_like(a), (a + b) * high])


exercise(
    "triangle", "triangle(low, high, a, b) -> the most of a z + b h over the triangle h ≥ 0, h ≥ z, h ≤ the chord of "
    "a ReLU on low ≤ z ≤ high, low < 0 < high",
    lambda low, high, a, b: corners(low, high, a, b).amax(0), triangle_cases,
    [
        ("no-op", lambda low, high, a, b: 0 * a,
         ["that is the corner at 0 alone.", "a linear function is greatest at a corner: there are three."]),
        ("chord alone", lambda low, high, a, b: corners(low, high, a, b)[[0, 2]].amax(0),
         ["one corner is missing.", "(0, 0) is a corner too."]),
        ("box", lambda low, high, a, b: (a * low).maximum(a * high) + (b * high).clamp_min(0),
         ["z and h take their worst values as if they did not know of each other.",
          "h is tied to z: try the three corners."]),
        ("least", lambda low, high, a, b: corners(low, high, a, b).amin(0),
         ["that is the least.", "the largest of the three."]),
        ("middle", lambda low, high, a, b: corners(low, high, a, b).mean(0),
         ["that is the mean of the corners.", "the largest of the three."]),
    ],
)


def vote_radii(g: torch.Generator) -> Iterator[Case]:
    yield from ((1.0, 0.001), (3.0, 0.01), (2.0, 0.05))


def all_agree(r: float, alpha: float) -> float:
    return math.log(alpha) / math.log(ndtr(r))


exercise(
    "votes-for-radius", "votes_for_radius(r, alpha) -> n, not rounded: how many votes that all agree prove a radius "
    "of r σ at level α",
    all_agree, vote_radii,
    [
        ("no-op", lambda r, alpha: 1.0,
         ["one vote proves nothing.", "n votes that agree give p ≥ α^(1/n), and p = Φ(r) is wanted."]),
        ("two-sided", lambda r, alpha: all_agree(r, alpha / 2),
         ["a two-sided bound spends half of α elsewhere.", "α, not α/2."]),
        ("upside down", lambda r, alpha: 1 / all_agree(r, alpha), ["less than one vote.", "n = ln α / ln Φ(r)."]),
        ("one over alpha", lambda r, alpha: 1 / alpha, ["where is the radius?", "α^(1/n) ≥ Φ(r): take logarithms."]),
        ("the other tail", lambda r, alpha: all_agree(r, alpha) * (log_ndtr(r) / log_ndtr(-r)),
         ["that many votes prove next to nothing.", "Φ(r), above one half; not Φ(−r)."]),
    ],
)


def look_cases(g: torch.Generator) -> Iterator[Case]:
    for alpha in (0.05, 0.2):
        asked = 50 * torch.arange(1, 11)
        bits = (torch.rand(80, 10, 50, generator=g) < 0.5 + 0.1 * torch.rand(80, 1, 1, generator=g)).sum(2)
        yield bits.cumsum(1), asked, alpha


def sure(hits: Tensor, asked: Tensor, alpha: float) -> Tensor:
    """(times, looks): whether the bound at each look is above one half."""
    return torch.stack([torch.as_tensor(clopper_pearson(hits[:, j].numpy(), int(asked[j]), alpha) > 0.5)
                        for j in range(len(asked))], 1)


exercise(
    "early-success", "early_success(hits, asked, alpha) -> (times,) bool, whether a run may stop with a certificate "
    "at one of its "
    "looks, so that it is wrong with probability α at most; hits (times, looks) of `asked` (looks,) votes",
    lambda hits, asked, alpha: sure(hits, asked, alpha / len(asked)).any(1), look_cases,
    [
        ("no-op", lambda hits, asked, alpha: torch.zeros(len(hits), dtype=torch.bool),
         ["no run ever stops.", "Clopper and Pearson's bound above ½, at any look."]),
        ("alpha at every look", lambda hits, asked, alpha: sure(hits, asked, alpha).any(1),
         ["ten looks are ten chances to be wrong.", "each may spend α divided by the number of looks."]),
        ("last look", lambda hits, asked, alpha: sure(hits, asked, alpha)[:, -1],
         ["that waits for the end.", "any look counts, at α divided by their number."]),
        ("at all looks", lambda hits, asked, alpha: sure(hits, asked, alpha / len(asked)).all(1),
         ["one look is enough to stop.", "any, not all."]),
        ("majority", lambda hits, asked, alpha: (hits * 2 > asked).any(1),
         ["a majority is no proof.", "the lower bound has to be above ½."]),
    ],
)
