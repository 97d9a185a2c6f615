"""Concept vectors: what a class's derivatives say of a concept, its rank among random concepts, and counterparts."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.explain.tcav import KINDS, summary
from kit.lab.checks import Case, exercise


def derivative_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((8, 3), (15, 6)):
        G, w = torch.randn(n, d, generator=g).double(), 2 + torch.rand(d, generator=g).double()
        G[0], G[1] = 0.0, w  # a logit that is flat there, and one that rises towards the concept
        yield G, w


def along(G: Tensor, w: Tensor) -> Tensor:
    return G @ w / w.norm()


def three(S: Tensor) -> Tensor:
    return torch.stack([summary(S, kind) for kind in KINDS])


exercise(
    "tcav-scores",
    "tcav_scores(G, w) -> (3,), the sign, the ratio and the mean of the directional derivatives along the unit vector "
    "of w; G (N, d) the gradients ∇_A z_y(x_i), w (d,) a normal of any length, towards the concept",
    lambda G, w: three(along(G, w)), derivative_cases,
    [
        ("not a unit vector", lambda G, w: three(G @ w),
         ["your mean grows with the length of w.", "S = G @ (w / ‖w‖)."]),
        ("flat ones counted", lambda G, w: torch.cat(
            [(along(G, w) >= 0).double().mean()[None], three(along(G, w))[1:]]),
         ["where the derivative is 0 the logit does not grow.", "S > 0, not ≥."]),
        ("sign error", lambda G, w: three(-along(G, w)),
         ["yours asks about the way from the concept.", "⟨∇_A z, v⟩, without a minus."]),
        ("length of the gradient", lambda G, w: three(along(G, w) / G.norm(dim=1).clamp_min(1e-12)),
         ["yours are cosines: a steep logit counts no more than a flat one.", "divide by the length of w alone."]),
        ("mean for the ratio", lambda G, w: torch.stack([three(along(G, w))[k] for k in (0, 2, 2)]),
         ["your ratio is the mean.", "Σ [S]₊ / Σ |S|: what points to the concept, as a share."]),
        ("ratio of the rest", lambda G, w: torch.stack(
            [three(along(G, w))[0], along(G, w).clamp_min(0).sum() / (-along(G, w)).clamp_min(0).sum(),
             three(along(G, w))[2]]),
         ["your ratio may exceed 1.", "divide by Σ |S|, both directions together."]),
        ("mean of sizes", lambda G, w: torch.cat([three(along(G, w))[:2], along(G, w).abs().mean()[None]]),
         ["your mean never says that the class falls towards the concept.", "the mean of S, not of |S|."]),
    ],
)


def rank_cases(g: torch.Generator) -> Iterator[Case]:
    for size, at in ((19, -1.6), (39, 0.9), (99, 0.0)):
        chance = 0.8 + torch.randn(size, generator=g).double()
        m = chance.mean() + at if at else chance[3].clone()  # the last ties with one of them
        yield m, chance


def rank_p(m: Tensor, chance: Tensor) -> float:
    middle = chance.mean()
    as_far = ((chance - middle).abs() >= (m - middle).abs()).sum()
    return float(1 + as_far) / (1 + len(chance))


def beyond(m: Tensor, chance: Tensor) -> int:
    return int(((chance - chance.mean()).abs() > (m - chance.mean()).abs()).sum())


exercise(
    "tcav-rank",
    "rank_p(m, chance) -> a number, the two-sided p of the mean score m among those of the random concepts, chance "
    "(B,)",
    rank_p, rank_cases,
    [
        ("itself not counted", lambda m, chance: rank_p(m, chance) * (1 + 1 / len(chance)) - 1 / len(chance),
         ["yours can be 0: no B random concepts can show that.", "(1 + …) / (1 + B): the concept is one of them."]),
        ("divided by B", lambda m, chance: rank_p(m, chance) * (1 + 1 / len(chance)),
         ["yours can exceed 1.", "with the concept itself they are 1 + B."]),
        ("one side", lambda m, chance: float(1 + (chance >= m).sum()) / (1 + len(chance)),
         ["a concept far below chance counts as well.", "distances from the middle: |m_b − m̄| ≥ |m − m̄|."]),
        ("about zero", lambda m, chance: float(1 + (chance.abs() >= m.abs()).sum()) / (1 + len(chance)),
         ["random concepts do not lie around 0.", "both distances are from chance.mean()."]),
        ("ties left out", lambda m, chance: (1 + beyond(m, chance)) / (1 + len(chance)),
         ["a random concept that is exactly as far is not less far.", "≥, not >."]),
        ("those less far", lambda m, chance: 1 - beyond(m, chance) / (1 + len(chance)),
         ["yours is large where the concept stands out.", "count the random concepts that are as far or farther."]),
    ],
)


def scene_cases(g: torch.Generator) -> Iterator[Case]:
    for fixed, factor in (((2, -1, 0), 0), ((1, 0, -1, 2), 3)):
        factors = torch.randint(3, (60, len(fixed)), generator=g)
        yield factors, torch.tensor(fixed), factor


def agree(factors: Tensor, concept: Tensor) -> Tensor:
    """Where a scene has what all images of the concept have, or where those have nothing in common: (N, F)."""
    return (factors == concept) | (concept < 0)


def alone(factors: Tensor, concept: Tensor, factor: int) -> Tensor:
    rest = torch.arange(len(concept)) != factor
    return agree(factors, concept)[:, rest].all(1) & (factors[:, factor] != concept[factor])


exercise(
    "tcav-counterparts",
    "counterparts(factors, concept, factor) -> (N,) bool, which scenes differ from the concept's images in column "
    "`factor` alone; factors (N, F) int, a scene's value of each factor; concept (F,) int, the value that all images "
    "of the concept have, or −1 for a factor that varies among them",
    alone, scene_cases,
    [
        ("no-op", lambda factors, concept, factor: torch.ones(len(factors), dtype=torch.bool),
         ["against any scene the vector is all that the images share.", "keep what is shared, but for one factor."]),
        ("the factor may agree", lambda factors, concept, factor: agree(factors, concept)[
            :, torch.arange(len(concept)) != factor].all(1),
         ["some of yours show what is asked about.", "and factors[:, factor] != concept[factor]."]),
        ("the rest may differ", lambda factors, concept, factor: factors[:, factor] != concept[factor],
         ["what else the images share is a difference, too.", "all other shared factors must agree with the concept."]),
        ("the other factors turned round", lambda factors, concept, factor: (factors[:, factor] == concept[factor])
         & ~agree(factors, concept)[:, torch.arange(len(concept)) != factor].all(1),
         ["your scenes keep the factor that is asked about and lose the others.", "the other way round."]),
        ("all factors differ", lambda factors, concept, factor: ((factors != concept) | (concept < 0)).all(1),
         ["yours differ in everything that the images share.", "in one of them: the others agree."]),
        ("−1 as a value", lambda factors, concept, factor: (factors == concept)[
            :, torch.arange(len(concept)) != factor].all(1) & (factors[:, factor] != concept[factor]),
         ["no scene has the value −1.", "where concept is −1 any value will do: … | (concept < 0)."]),
    ],
)
