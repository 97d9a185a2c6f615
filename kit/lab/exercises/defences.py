"""Defences against forged maps: overlap by chance, the distance of several maps at once, the disagreement score."""
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from kit.explain.metrics import l1_distance, unit_range
from kit.fire.adv2.descent import map_distance
from kit.fire.defences.disagreement import apart
from kit.lab.checks import Case, exercise


def share_cases(g: torch.Generator) -> Iterator[Case]:
    for low in (0.1, 0.3, 0.6):
        yield (low + 0.2 * float(torch.rand((), generator=g)),)


exercise(
    "chance-iou",
    "chance_iou(q) -> the IoU |A ∩ B| / |A ∪ B| to expect of two sets, each a share q of very many pixels, that have "
    "nothing to do with each other",
    lambda q: q / (2 - q), share_cases,
    [
        ("no-op", lambda q: q,
         ["that is the share of A that lies in B.", "A ∪ B is larger than A: how large are the two?"]),
        ("intersection only", lambda q: q**2,
         ["that is the share of the pixels in both.", "divide by the share in one or both."]),
        ("counted twice", lambda q: q / 2,
         ["your union is 2q: the pixels in both are counted twice.", "2q − q²."]),
        ("one and not both", lambda q: q / (2 - 2 * q),
         ["your union leaves out the pixels in both.", "in one or both: 2q − q²."]),
        ("sign error", lambda q: q / (2 + q),
         ["your union is larger than the two sets together.", "2q − q², not 2q + q²."]),
        ("Dice", lambda q: 2 * q / (1 + q),
         ["yours grows beyond q: an overlap by chance is less than that.", "q² / (2q − q²)."]),
    ],
)


def maps_cases(g: torch.Generator) -> Iterator[Case]:
    size = torch.tensor([1.0, 20, 3, 0.2])[:, None, None, None]  # explainers have unlike scales
    for E in (3, 4):
        maps, aims = torch.rand(2, E, 3, 6, 5, generator=g)
        yield size[:E] * maps - 0.3, size[:E] * aims


def joint_distance(maps: Tensor, aims: Tensor) -> Tensor:
    return torch.stack([map_distance(a, b) for a, b in zip(maps, aims, strict=True)]).mean(0)


def beside(maps: Tensor) -> Tensor:
    """All maps of an image side by side, (N, H, E·W)."""
    return torch.cat(list(maps), 2)


exercise(
    "joint-distance",
    "joint_distance(maps, aims) -> (N,), the mean square of the difference of E explainers' maps to those wanted, both "
    "(E, N, H, W), each map first scaled to [0, 1]",
    joint_distance, maps_cases,
    [
        ("no-op", lambda maps, aims: torch.zeros(maps.shape[1]),
         ["any maps agree for yours.", "scale each map, subtract, square, mean."]),
        ("not scaled", lambda maps, aims: (maps - aims).square().mean((0, 2, 3)),
         ["the explainer of the largest numbers decides alone.", "scale each explainer's map by itself first."]),
        ("scaled together", lambda maps, aims: map_distance(beside(maps), beside(aims)),
         ["yours scales all explainers' maps by one range.", "scale each, then put them side by side."]),
        ("sum over the explainers", lambda maps, aims: len(maps) * joint_distance(maps, aims),
         ["yours grows with the number of explainers, so that λ would have to shrink.", "the mean of the parts."]),
        ("one explainer", lambda maps, aims: map_distance(maps[0], aims[0]),
         ["yours looks at the first explainer alone.", "the mean over all of them."]),
        ("mean map", lambda maps, aims: map_distance(maps.mean(0), aims.mean(0)),
         ["two maps may be wrong in opposite ways, and their mean right.", "distance first, then the mean."]),
        ("absolute value for square", lambda maps, aims: torch.stack(
            [l1_distance(a, b) for a, b in zip(maps, aims, strict=True)]).mean(0),
         ["that is the measure of the tables.", "the loss takes the square."]),
    ],
)


def disagreement_cases(g: torch.Generator) -> Iterator[Case]:
    for maps, _ in maps_cases(g):
        yield (maps,)


def disagreement(maps: Tensor) -> Tensor:
    return apart(list(maps))


exercise(
    "disagreement",
    "disagreement(maps) -> (N,), the mean over the pairs i < j of E explainers of the mean absolute difference of "
    "their maps (E, N, H, W), each map first scaled to [0, 1]",
    disagreement, disagreement_cases,
    [
        ("no-op", lambda maps: torch.zeros(maps.shape[1]),
         ["your explainers always agree.", "itertools.combinations(maps, 2) gives the pairs."]),
        ("not scaled", lambda maps: torch.stack(
            [(a - b).abs().mean((1, 2)) for a, b in combinations(maps, 2)]).mean(0),
         ["maps of two methods have two scales.", "(R − min R) / (max R − min R) first, for each map."]),
        ("each with itself", lambda maps: disagreement(maps) * (len(maps) - 1) / len(maps),
         ["a map never disagrees with itself, and yours counts that.", "the pairs i < j: E(E − 1)/2 of them."]),
        ("sum over the pairs", lambda maps: disagreement(maps) * len(maps) * (len(maps) - 1) / 2,
         ["yours grows with the number of explainers.", "the mean over the pairs."]),
        ("to the first", lambda maps: torch.stack([l1_distance(maps[0], b) for b in maps[1:]]).mean(0),
         ["yours asks who disagrees with the first explainer.", "all pairs i < j."]),
        ("signed", lambda maps: torch.stack(
            [(unit_range(a) - unit_range(b)).mean((1, 2)) for a, b in combinations(maps, 2)]).mean(0),
         ["differences of both signs cancel in yours.", "the absolute value, before the mean."]),
        ("square for absolute value", lambda maps: torch.stack(
            [map_distance(a, b) for a, b in combinations(maps, 2)]).mean(0),
         ["that is the loss of the attack.", "the absolute difference, not its square."]),
    ],
)
