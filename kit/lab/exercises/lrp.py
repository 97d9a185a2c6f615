"""Relevance by hand: two rules, what happens at a sum, the map of the pixels, and what was lost on the way."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def layer_cases(g: torch.Generator) -> Iterator[Case]:
    for d, k in ((3, 2), (8, 5)):
        a = torch.rand(4, d, generator=g)
        w, R = torch.randn(d, k, generator=g), torch.randn(4, k, generator=g)
        yield a, w, R


def epsilon_cases(g: torch.Generator) -> Iterator[Case]:
    for eps, case in zip((0.1, 0.5), layer_cases(g), strict=True):
        yield (*case, eps)


def shared(a: Tensor, w: Tensor, R: Tensor, divisor: Tensor) -> Tensor:
    """R_j = a_j Σ_k w_jk R_k / divisor_k."""
    return a * ((R / divisor) @ w.T)


def epsilon(a: Tensor, w: Tensor, R: Tensor, eps: float) -> Tensor:
    z = a @ w
    return shared(a, w, R, z + torch.copysign(torch.full_like(z, eps), z))


exercise(
    "lrp-epsilon", "lrp_epsilon(a, w, R, eps) -> R_j = Σ_k a_j w_jk / (z_k + ε sign z_k) R_k with z = a @ w, for "
    "activations a (N, d), weights w (d, k), relevance R (N, k)",
    epsilon, epsilon_cases,
    [
        ("no-op", lambda a, w, R, eps: torch.zeros_like(a), ["nothing is handed down.", "R_j = a_j Σ_k w_jk s_k."]),
        ("no stabiliser", lambda a, w, R, eps: epsilon(a, w, R, 0.0),
         ["your answer does not depend on ε.", "the divisor is z_k + ε sign(z_k)."]),
        ("stabiliser without its sign", lambda a, w, R, eps: shared(a, w, R, a @ w + eps),
         ["where z_k < 0 your divisor comes nearer to zero.", "ε takes the sign of z_k."]),
        ("|z| in the divisor", lambda a, w, R, eps: shared(a, w, R, (a @ w).abs() + eps),
         ["where z_k < 0 your relevance has the wrong sign.", "divide by z_k + ε sign(z_k), not by |z_k| + ε."]),
        ("|R| for R", lambda a, w, R, eps: epsilon(a, w, R.abs(), eps),
         ["negative relevance is handed down as if it were positive.", "R keeps its sign: leave the abs() out."]),
        ("without the activation", lambda a, w, R, eps: shared(torch.ones_like(a), w, R, a @ w + eps * (a @ w).sign()),
         ["the shares do not add up: what is a unit's share of z_k?", "it is a_j w_jk: multiply by a_j."]),
        ("sign error", lambda a, w, R, eps: -epsilon(a, w, R, eps),
         ["it is the negative of what is expected.", "the sum over j should have the sign of the sum of R."]),
    ],
)


def positive_cases(g: torch.Generator) -> Iterator[Case]:
    for a, w, R in layer_cases(g):
        w[0] = 0.1 + w[0].abs()  # every unit has a positive weight: without one the formula says 0/0
        yield 0.1 + a, w, R


def zplus(a: Tensor, w: Tensor, R: Tensor) -> Tensor:
    return shared(a, w.clamp(min=0), R, a @ w.clamp(min=0))


exercise(
    "lrp-zplus", "lrp_zplus(a, w, R) -> R_j = Σ_k a_j w_jk⁺ / Σ_i a_i w_ik⁺ R_k for a ≥ 0",
    zplus, positive_cases,
    [
        ("no-op", lambda a, w, R: torch.zeros_like(a),
         ["nothing is handed down.", "share R_k by the positive a_j w_jk."]),
        ("all weights", lambda a, w, R: shared(a, w, R, a @ w),
         ["negative weights take part in yours.", "replace w by its positive part, above and below the line."]),
        ("positive above the line alone", lambda a, w, R: shared(a, w.clamp(min=0), R, a @ w),
         ["your shares do not add up to 1.", "the divisor is the sum of the positive parts as well."]),
        ("|w| for w⁺", lambda a, w, R: shared(a, w.abs(), R, a @ w.abs()),
         ["negative weights take part in yours, as if they were positive.", "w⁺ is max(w, 0), not |w|."]),
        ("|R| for R", lambda a, w, R: zplus(a, w, R.abs()),
         ["negative relevance is handed down as if it were positive.", "R keeps its sign: leave the abs() out."]),
    ],
)


def sum_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (5, 9):
        a, b = 0.1 + torch.rand(n, 4, generator=g), 0.1 + torch.rand(n, 4, generator=g)
        yield a, b, torch.randn(n, 4, generator=g)


exercise(
    "lrp-sum", "lrp_sum(a, b, R) -> (R_a, R_b), the relevance R of a + b shared between the two, as at a residual sum",
    lambda a, b, R: (a / (a + b) * R, b / (a + b) * R), sum_cases,
    [
        ("no-op", lambda a, b, R: (0 * R, 0 * R), ["nothing is handed down.", "R_a + R_b must be R."]),
        ("relevance doubled at a sum", lambda a, b, R: (R, R),
         ["both branches get all of it: the relevance has doubled.",
          "that is what the gradient does at a sum. Conservation asks for R_a + R_b = R.",
          "each gets its share of the sum: a/(a + b) and b/(a + b)."]),
        ("half each", lambda a, b, R: (R / 2, R / 2),
         ["conserved, but it does not depend on a and b.", "who contributed more gets more: a/(a + b)."]),
        ("one branch alone", lambda a, b, R: (R, 0 * R),
         ["the second branch gets nothing.", "a skip connection carries its share as well: b/(a + b)."]),
        ("shares swapped", lambda a, b, R: (b / (a + b) * R, a / (a + b) * R),
         ["the shares are exchanged.", "R_a goes with a."]),
    ],
)


def map_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (2, 4):
        yield (torch.randn(n, 3, 5, 4, generator=g),)


exercise(
    "pixel-map", "pixel_map(R) -> (N, H, W), what each pixel gets of the relevance R (N, C, H, W) of its channels",
    lambda R: R.sum(1), map_cases,
    [
        ("no-op", lambda R: 0 * R[:, 0], ["the map is empty.", "add the channels up."]),
        ("|R| for R", lambda R: R.abs().sum(1),
         ["your map has no negative pixels.", "relevance for and against a class cancel: no abs() before the sum."]),
        ("mean for sum", lambda R: R.mean(1),
         ["your map adds up to a third of the score.", "conservation is about sums: .sum(1), not .mean(1)."]),
        ("largest channel", lambda R: R.amax(1), ["one channel is kept and two are lost.", "add them up."]),
        ("positive alone", lambda R: R.clamp(min=0).sum(1),
         ["what speaks against the class is gone.", "keep the sign."]),
    ],
)


def lost_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (3, 6):
        R = torch.randn(n, 1, 4, 4, generator=g) + 0.3
        yield 3 + 5 * torch.rand(n, generator=g), R


exercise(
    "relevance-lost",
    "relevance_lost(score, R) -> (N,), the share of the score that the relevance R (N, C, H, W) lacks",
    lambda score, R: 1 - R.flatten(1).sum(1) / score, lost_cases,
    [
        ("no-op", lambda score, R: torch.zeros_like(score),
         ["you say that nothing is lost.", "compare ΣR with the score."]),
        ("|R| for R", lambda score, R: 1 - R.flatten(1).abs().sum(1) / score,
         ["negative relevance counts as positive in yours.", "conservation is about ΣR with its signs."]),
        ("mean for sum", lambda score, R: 1 - R.flatten(1).mean(1) / score,
         ["you say that almost everything is lost.", "add the pixels up: .sum(1), not .mean(1)."]),
        ("what is left", lambda score, R: R.flatten(1).sum(1) / score,
         ["that is the share that arrived.", "what is lost is 1 minus it."]),
        ("not relative", lambda score, R: score - R.flatten(1).sum(1),
         ["that is a difference, not a share.", "divide by the score."]),
        ("over the batch", lambda score, R: (1 - R.sum() / score),
         ["an image's loss depends on the others in the batch.", "sum over its own pixels: flatten(1).sum(1)."]),
    ],
)
