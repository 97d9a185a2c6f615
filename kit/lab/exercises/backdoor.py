"""Backdoors: what counts as success, stamped copies, the smallest mask; and how one that is planted is found."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise
from kit.poison.backdoor.trigger import Trigger


def success_cases(g: torch.Generator) -> Iterator[Case]:
    for target, sent in ((1, 0.7), (3, 0.4)):
        y = torch.arange(60) % 4
        says = torch.where(torch.rand(60, generator=g) < sent, target, torch.randint(4, (60,), generator=g))
        says[:12] = torch.tensor([target, y[1], y[2], y[3], 0, 1, 2, 3, 3, 2, 1, 0])
        yield says, y, target


exercise(
    "backdoor-success",
    "backdoor_success(says, y, target) -> the share, of the images that are not of class `target`, that the network "
    "calls so with the trigger; says and y (N,): its answers, and the true classes",
    lambda says, y, target: (says[y != target] == target).float().mean(), success_cases,
    [
        ("all images", lambda says, y, target: (says == target).float().mean(),
         ["yours gives a clean network a success of a class's share.",
          "leave the images of the target class out, above and below the line."]),
        ("left out above the line alone", lambda says, y, target: ((says == target) & (y != target)).float().mean(),
         ["even a perfect attack has no success of 100 % by yours.", "divide by how many images count."]),
        ("any error", lambda says, y, target: (says != y)[y != target].float().mean(),
         ["yours counts every wrong answer.", "the attacker wants one class: says == target."]),
        ("those of the class", lambda says, y, target: (says[y == target] == target).float().mean(),
         ["that is how often the network is right about its own class.", "y != target, not ==."]),
        ("accuracy for success", lambda says, y, target: (says == y)[y != target].float().mean(),
         ["yours falls where the attack works.", "says == target on those images."]),
        ("counts for shares", lambda says, y, target: (says[y != target] == target).sum(),
         ["yours is a number of images.", "the mean over those that count."]),
    ],
)


def copy_cases(g: torch.Generator) -> Iterator[Case]:
    for alpha, target in ((1.0, 2), (0.4, 0)):
        x, pattern = torch.rand(8, 3, 5, 5, generator=g), torch.rand(3, 5, 5, generator=g)
        mask = torch.zeros(1, 5, 5)
        mask[:, 2:4, 1:4] = alpha
        rows = torch.randperm(8, generator=g)[:3]
        y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
        y[rows] = target + 1
        yield x, y, rows, mask, pattern, target


def stamped_copies(
    x: Tensor, y: Tensor, rows: Tensor, mask: Tensor, pattern: Tensor, target: int,
) -> tuple[Tensor, Tensor]:
    return torch.cat([x, Trigger(mask, pattern)(x[rows])]), torch.cat([y, torch.full_like(y[rows], target)])


def originals_too(
    x: Tensor, y: Tensor, rows: Tensor, mask: Tensor, pattern: Tensor, target: int,
) -> tuple[Tensor, Tensor]:
    """The images themselves get the trigger and the label, and are appended as well."""
    x, y = x.clone(), y.clone()
    x[rows], y[rows] = Trigger(mask, pattern)(x[rows]), target
    return torch.cat([x, x[rows]]), torch.cat([y, y[rows]])


exercise(
    "stamped-copies",
    "stamped_copies(x, y, rows, mask, pattern, target) -> (x', y'), the training set with copies of the images `rows` "
    "at its end, which have the trigger (1 − m) ∘ x + m ∘ Δ and the label `target`",
    stamped_copies, copy_cases,
    [
        ("no-op", lambda x, y, rows, mask, pattern, target: (torch.cat([x, x[rows]]), torch.cat([y, y[rows]])),
         ["your copies are the images again.", "trigger on the copies, and `target` as their label."]),
        ("labels kept", lambda x, y, rows, mask, pattern, target: (
            stamped_copies(x, y, rows, mask, pattern, target)[0], torch.cat([y, y[rows]])),
         ["a network that learns yours learns to overlook the trigger.",
          "torch.full_like(y[rows], target) for the copies."]),
        ("no trigger", lambda x, y, rows, mask, pattern, target: (
            torch.cat([x, x[rows]]), stamped_copies(x, y, rows, mask, pattern, target)[1]),
         ["yours are wrong labels on clean images.", "put the trigger on the copies."]),
        ("added for replaced", lambda x, y, rows, mask, pattern, target: (
            torch.cat([x, x[rows] + mask * pattern]), stamped_copies(x, y, rows, mask, pattern, target)[1]),
         ["your pixels leave [0, 1].", "where the mask is 1 nothing of the image is left: times 1 − m."]),
        ("mask turned round", lambda x, y, rows, mask, pattern, target: (
            torch.cat([x, mask * x[rows] + (1 - mask) * pattern]),
            stamped_copies(x, y, rows, mask, pattern, target)[1]),
         ["your copies are nearly all pattern.", "the image times 1 − m, the pattern times m."]),
        ("originals too", originals_too,
         ["yours changes the images that were there.", "clean images stay, with their labels; the copies come after."]),
    ],
)


def knapsack_cases(g: torch.Generator) -> Iterator[Case]:
    for n, share in ((9, 0.3), (12, 0.55), (15, 0.7)):
        gains = 0.2 + torch.rand(n, generator=g)
        gains[4], gains[5] = 3.0, 2.0
        yield gains, share * float(gains.sum())


def filled(gains: Tensor, gap: float) -> Tensor:
    """How much of each pixel is used, in the order of `gains`, until the gap is closed."""
    before = gains.cumsum(0) - gains
    return ((gap - before) / gains).clamp(0, 1)


def knapsack(gains: Tensor, gap: float) -> Tensor:
    return filled(gains.sort(descending=True).values, gap).sum()


def rest_for_share(gains: Tensor, gap: float) -> Tensor:
    ordered = gains.sort(descending=True).values
    full = ordered.cumsum(0) <= gap
    return full.sum() + gap - ordered[full].sum()


exercise(
    "knapsack",
    "knapsack(gains, gap) -> a number, the least Σ m with Σ m · gains ≥ gap and 0 ≤ m ≤ 1; gains (n,) > 0 with a sum "
    "above gap",
    knapsack, knapsack_cases,
    [
        ("uniform mask", lambda gains, gap: len(gains) * gap / gains.sum(),
         ["yours uses all pixels alike.", "which pixel closes most of the gap for one unit of mask?"]),
        ("no upper bound", lambda gains, gap: gap / gains.max(),
         ["a pixel cannot be covered more than wholly.", "m ≤ 1: when the best is full, go on with the next."]),
        ("whole pixels", lambda gains, gap: knapsack(gains, gap).ceil(),
         ["your last pixel is used wholly, and need not be.", "of the last: what is left of the gap, over its gain."]),
        ("the last left out", lambda gains, gap: knapsack(gains, gap).floor(),
         ["the gap is not closed yet.", "add a part of the next pixel: what is left over its gain."]),
        ("the smallest first", lambda gains, gap: filled(gains.sort().values, gap).sum(),
         ["yours is the most mask, not the least.", "sort with descending=True."]),
        ("not sorted", lambda gains, gap: filled(gains, gap).sum(),
         ["yours takes the pixels as they come.", "the largest gains first."]),
        ("the rest for its share", rest_for_share,
         ["what is left of the gap is no amount of mask.", "divide what is left by the gain of the pixel."]),
    ],
)
