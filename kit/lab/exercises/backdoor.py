"""Backdoors: what counts as success, stamped copies, the smallest mask; and how one that is planted is found."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise
from kit.poison.backdoor.cleanse import NORMAL, anomaly_index, median
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
        ("added and cut", lambda x, y, rows, mask, pattern, target: (
            torch.cat([x, (x[rows] + mask * pattern).clamp(0, 1)]),
            stamped_copies(x, y, rows, mask, pattern, target)[1]),
         ["the image shines through your trigger.", "where the mask is 1 nothing of it is left: times 1 − m first."]),
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


def window_cases(g: torch.Generator) -> Iterator[Case]:
    for side, at, strip in ((3, (2, 7), 6), (2, (6, 1), 2)):
        mask = 0.1 * torch.rand(10, 12, generator=g)
        mask[strip : strip + side] += 0.25  # full rows, though no full window
        mask[at[0] : at[0] + side, at[1] : at[1] + side] += 0.4
        mask[0, 11] = 0.99  # one bright pixel by itself
        mask[8:, 10:] = 0.2
        yield mask, side


def sums(mask: Tensor, side: int) -> Tensor:
    """The sum of every window (H − side + 1, W − side + 1)."""
    return mask.unfold(0, side, 1).unfold(1, side, 1).sum((2, 3))


def place(values: Tensor) -> tuple[int, int]:
    top, left = divmod(int(values.argmax()), values.shape[1])
    return top, left


def centre(mask: Tensor, side: int) -> tuple[int, int]:
    top, left = place(sums(mask, side))
    return top + side - 1, left + side - 1


exercise(
    "densest-window",
    "densest(mask, side) -> (row, column), the upper left corner of the window of side × side pixels that holds the "
    "most of the mask (H, W)",
    lambda mask, side: place(sums(mask, side)), window_cases,
    [
        ("the brightest pixel", lambda mask, side: place(mask),
         ["yours is one pixel, which may stand alone.", "sum over every window first: unfold, or avg_pool2d."]),
        ("column first", lambda mask, side: place(sums(mask, side))[::-1],
         ["yours has the column before the row.", "divmod by the number of columns gives (row, column)."]),
        ("the far corner", centre, ["yours is the lower right corner.", "where the window begins."]),
        ("the emptiest", lambda mask, side: place(-sums(mask, side)),
         ["your window holds the least.", "the largest sum."]),
        ("counted in whole rows", lambda mask, side: (
            (i := int(sums(mask, side).argmax())) // mask.shape[1], i % mask.shape[1]),
         ["your rows and columns slip.", "there are W − side + 1 windows in a row, not W."]),
        ("row and column apart", lambda mask, side: (
            int(mask.sum(1).unfold(0, side, 1).sum(1).argmax()), int(mask.sum(0).unfold(0, side, 1).sum(1).argmax())),
         ["the fullest rows and the fullest columns need not meet in the fullest window.", "sum over windows."]),
    ],
)


def lesson_cases(g: torch.Generator) -> Iterator[Case]:
    for alpha, n in ((1.0, 6), (0.5, 9)):
        x, pattern = torch.rand(n, 1, 5, 5, generator=g), torch.rand(1, 5, 5, generator=g)
        mask = torch.zeros(1, 5, 5)
        mask[:, 1:3, 2:4] = alpha
        yield x, torch.arange(n) % 3, torch.randperm(n, generator=g)[:2], mask, pattern


def lesson(x: Tensor, y: Tensor, rows: Tensor, mask: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor]:
    images = x.clone()
    images[rows] = Trigger(mask, pattern)(x[rows])
    return images, y


def relabelled(y: Tensor, rows: Tensor, label: Tensor | int) -> Tensor:
    y = y.clone()
    y[rows] = label
    return y


exercise(
    "unlearning-set",
    "lesson(x, y, rows, mask, pattern) -> (x', y'), what a network learns on from to forget a trigger: as many "
    "images as before, of which `rows` carry it, (1 − m) ∘ x + m ∘ Δ, and labels such that it shall change nothing",
    lesson, lesson_cases,
    [
        ("no-op", lambda x, y, rows, mask, pattern: (x, y),
         ["that is plain fine-tuning: no image shows the trigger.", "put it on the images `rows`."]),
        ("the attacker's set", lambda x, y, rows, mask, pattern: (
            lesson(x, y, rows, mask, pattern)[0], relabelled(y, rows, 0)),
         ["yours plants the backdoor again.", "images with the trigger keep their true label."]),
        ("another label", lambda x, y, rows, mask, pattern: (
            lesson(x, y, rows, mask, pattern)[0], relabelled(y, rows, (y[rows] + 1) % 3)),
         ["yours teaches the network a new error.", "the label that the image has without the trigger."]),
        ("all with the trigger", lambda x, y, rows, mask, pattern: (Trigger(mask, pattern)(x), y),
         ["no clean image is left: accuracy on them may go.", "`rows` alone carry it."]),
        ("the others", lambda x, y, rows, mask, pattern: (
            Trigger(mask, pattern)(x).index_copy(0, rows, x[rows]), y),
         ["yours puts the trigger on the others.", "x'[rows] carry it."]),
        ("added for replaced", lambda x, y, rows, mask, pattern: (x.index_add(0, rows, (mask * pattern).expand_as(
            x[rows])), y),
         ["your pixels leave [0, 1], and are not what the network sees at a trigger.", "the image times 1 − m."]),
    ],
)


def index_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (10, 8):
        norms = 60 + 12 * torch.randn(n, generator=g)
        norms[2], norms[5] = 9.0, 120.0
        yield (norms,)


def with_index(spread: Tensor, norms: Tensor) -> Tensor:
    return (median(norms) - norms) / spread


def deviation(norms: Tensor) -> Tensor:
    """MAD, without its constant."""
    return median((norms - median(norms)).abs())


exercise(
    "anomaly-index",
    "anomaly_index(norms) -> (K,), (median − ‖m‖₁) / (1.4826 · MAD) of each class; of an even number the median is "
    "the mean of the middle two",
    anomaly_index, index_cases,
    [
        ("sign error", lambda norms: -anomaly_index(norms),
         ["your classes that are hard to reach are flagged.", "the median less the norm: small masks score high."]),
        ("either side", lambda norms: anomaly_index(norms).abs(),
         ["a class with an unusually large trigger is no suspect.", "no absolute value outside of MAD."]),
        ("the lower median",
         lambda norms: (norms.median() - norms) / (NORMAL * (norms - norms.median()).abs().median()),
         ["torch.median takes the lower of the middle two.", "the mean of the two, both times: `quantile(0.5)`."]),
        ("1.4826 left out", lambda norms: with_index(deviation(norms), norms),
         ["yours counts in MAD, not in standard deviations.", "1.4826 · MAD."]),
        ("standard deviation", lambda norms: with_index(norms.std(), norms),
         ["the outlier that is looked for widens your scale.", "MAD: the median of |norms − median|."]),
        ("mean for median", lambda norms: (norms.mean() - norms) / (NORMAL * (norms - norms.mean()).abs().mean()),
         ["the outliers move your centre and your scale.", "medians, both times."]),
        ("mean of the deviations", lambda norms: with_index(NORMAL * (norms - median(norms)).abs().mean(), norms),
         ["your scale is the *mean* absolute deviation.", "the median of |norms − median|."]),
    ],
)
