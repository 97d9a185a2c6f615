"""A detector: what it measures, where its threshold comes from, what an alarm is worth, and how one gets past it."""
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def answers(g: torch.Generator, n: int, k: int) -> Tensor:
    return (3 * torch.randn(n, k, generator=g)).softmax(1)


def squeeze_cases(g: torch.Generator) -> Iterator[Case]:
    for n, k in ((5, 3), (8, 10)):
        yield answers(g, n, k), answers(g, n, k)


exercise(
    "squeeze-score",
    "squeeze_score(p, q) -> (N,), the l1 distance of two answers (N, K): of the image and of the squeezed one",
    lambda p, q: (p - q).abs().sum(1), squeeze_cases,
    [
        ("mean for sum", lambda p, q: (p - q).abs().mean(1),
         ["your scores are too small by the number of classes.", "the l1 norm is a sum: .sum(1)."]),
        ("l2 norm", lambda p, q: (p - q).norm(dim=1), ["that is the l2 norm.", "l1: the sum of the absolute values."]),
        ("no absolute value", lambda p, q: (p - q).sum(1),
         ["every image looks clean to you: yours is always 0.",
          "probabilities sum to 1, so their differences sum to 0: the absolute value comes first."]),
        ("top class alone", lambda p, q: (p - q).abs().amax(1),
         ["one class counts in yours.", "all classes count: sum, not max."]),
    ],
)


def threshold_cases(g: torch.Generator) -> Iterator[Case]:
    for n, rate in ((199, 0.05), (99, 0.1)):
        yield torch.rand(n, generator=g) ** 2, 0.3 + torch.rand(n, generator=g), rate


def promised(scores: Tensor, rate: float) -> Tensor:
    """The ⌈(n + 1)(1 − rate)⌉-th smallest, as `Detector.threshold` takes it."""
    return scores.sort().values[math.ceil((len(scores) + 1) * (1 - rate) - 1e-9) - 1]


exercise(
    "threshold", "threshold(train, held_out, rate) -> τ, so that a clean image raises an alarm (score > τ) with "
    "probability `rate` at most: the ⌈(n + 1)(1 − rate)⌉-th smallest score of n clean images",
    lambda train, held_out, rate: promised(held_out, rate), threshold_cases,
    [
        ("no-op", lambda train, held_out, rate: torch.zeros(()),
         ["at τ = 0 everything raises an alarm.", "take a quantile."]),
        ("threshold chosen on training images", lambda train, held_out, rate: promised(train, rate),
         ["on which images did you choose τ?",
          "the detector was fitted on `train`: their scores are too small. Choose τ on `held_out`."]),
        ("all clean images", lambda train, held_out, rate: promised(torch.cat([train, held_out]), rate),
         ["some of these images were trained on.", "only `held_out` are like the images to come."]),
        ("the wrong end", lambda train, held_out, rate: promised(held_out, 1 - rate),
         ["almost every clean image raises an alarm at yours.", "`rate` of them should be *above* τ: 1 − rate below."]),
        ("largest score", lambda train, held_out, rate: held_out.max(),
         ["no clean image raises an alarm at yours.", "`rate` of them may: take that quantile, not the maximum."]),
    ],
)


def auc_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (12, 25):
        clean = torch.randint(8, (n,), generator=g).float()
        yield clean, torch.randint(3, 12, (n + 3,), generator=g).float()


def above(clean: Tensor, attacked: Tensor, tie: float) -> Tensor:
    higher, same = attacked[:, None] > clean, attacked[:, None] == clean
    return (higher.double() + tie * same.double()).mean()


exercise(
    "auc", "auc(clean, attacked) -> the probability that an attacked image scores higher than a clean one, ties half",
    lambda clean, attacked: above(clean, attacked, 0.5), auc_cases,
    [
        ("no-op", lambda clean, attacked: 0.5,
         ["0.5 is chance.", "compare every attacked image with every clean one."]),
        ("reversed", lambda clean, attacked: 1 - above(clean, attacked, 0.5),
         ["your detector is worse than chance.", "higher is more suspicious: count attacked > clean."]),
        ("ties as nothing", lambda clean, attacked: above(clean, attacked, 0.0),
         ["what becomes of equal scores?", "a tie is worth a half."]),
        ("ties as hits", lambda clean, attacked: above(clean, attacked, 1.0),
         ["what becomes of equal scores?", "a tie is worth a half, not a hit: > and ==, not >=."]),
        ("against the mean", lambda clean, attacked: (attacked > clean.mean()).double().mean(),
         ["yours compares with one number.", "compare with each clean image: attacked[:, None] > clean."]),
    ],
)


def rate_cases(g: torch.Generator) -> Iterator[Case]:
    for _ in range(3):
        tpr, fpr, base = torch.rand(3, generator=g).tolist()
        yield 0.5 + tpr / 2, 0.01 + fpr / 10, 0.001 + base / 20


def precision(tpr: float, fpr: float, base: float) -> float:
    return tpr * base / (tpr * base + fpr * (1 - base))


exercise(
    "alarm-precision",
    "alarm_precision(tpr, fpr, base) -> the share of the alarms that are attacks, if the share `base` "
    "of all images is attacked",
    precision, rate_cases,
    [
        ("no-op", lambda tpr, fpr, base: base,
         ["that is the share without a detector.", "Bayes' rule, given an alarm."]),
        ("no base rate", lambda tpr, fpr, base: precision(tpr, fpr, 0.5),
         ["for yours half of all images would have to be attacks.", "attacks are rare: weigh by base and 1 − base."]),
        ("true-positive rate", lambda tpr, fpr, base: tpr,
         ["that is the share of the attacks that raise an alarm.", "asked is the other way round: Bayes' rule."]),
        ("false alarms not weighed", lambda tpr, fpr, base: tpr * base / (tpr * base + fpr),
         ["how many images can raise a false alarm?", "only the clean ones: fpr · (1 − base)."]),
        ("false alarms", lambda tpr, fpr, base: 1 - precision(tpr, fpr, base),
         ["that is the share of false alarms.", "asked is 1 minus it."]),
    ],
)


def evasion_cases(g: torch.Generator) -> Iterator[Case]:
    for tau, lam in ((0.5, 2.0), (1.2, 0.7)):
        yield torch.randn(10, generator=g), 2 * torch.rand(10, generator=g), tau, lam


exercise(
    "evasion-objective",
    "evasion_objective(margin, score, tau, lam) -> (N,), to be maximised: the margin, less λ times by "
    "how much the score exceeds τ",
    lambda margin, score, tau, lam: margin - lam * (score - tau).clamp(min=0), evasion_cases,
    [
        ("ignores the detector", lambda margin, score, tau, lam: margin,
         ["yours does not look at the detector.", "subtract λ · max(0, score − τ)."]),
        ("no hinge", lambda margin, score, tau, lam: margin - lam * (score - tau),
         ["yours goes on lowering a score that raises no alarm any more.", "max(0, score − τ): `.clamp(min=0)`."]),
        ("sign error", lambda margin, score, tau, lam: margin + lam * (score - tau).clamp(min=0),
         ["yours is rewarded for alarms.", "a minus before λ."]),
        ("hinge inverted", lambda margin, score, tau, lam: margin - lam * (tau - score).clamp(min=0),
         ["yours is punished for passing.", "score − τ is what is too much, not τ − score."]),
        ("a mask for the excess", lambda margin, score, tau, lam: margin - lam * (score > tau).to(score.dtype),
         ["a comparison has no gradient: a mask tells the attacker nothing about where to go.",
          "subtract the excess itself, max(0, score − τ)."]),
        ("mean over the batch", lambda margin, score, tau, lam: margin - lam * (score - tau).clamp(min=0).mean(),
         ["an image's objective depends on the others in the batch.", "one number for each image: no mean."]),
    ],
)
