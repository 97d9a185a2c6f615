"""Codes: what bins leave of a factor, the price at which a number collapses, and what a generator's code must tell."""
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.explain import information, information_bound
from kit.lab.checks import Case, exercise


def ceiling_cases(g: torch.Generator) -> Iterator[Case]:
    more = int(torch.randint(25, 60, (), generator=g))
    yield from ((more, 20), (32, 20), (3, 20), (11, 4))


def told(k: int, bins: int) -> float:
    """What the bins tell of the factor, in nats."""
    values = torch.arange(k)[:, None]
    return float(information(values.double(), values, bins)[0][0, 0])


exercise(
    "binned-ceiling",
    "ceiling(k, bins) -> a number, I(bin; v) / H(v) of a factor v with the values 0 … k − 1, all as frequent, whose "
    "perfect code is put into `bins` equal bins from its least to its largest value",
    lambda k, bins: told(k, bins) / math.log(k), ceiling_cases,
    [
        ("no-op", lambda k, bins: 1.0,
         ["yours says that bins lose nothing.", "two values in one bin cannot be told apart: count the bins' shares."]),
        ("all bins full", lambda k, bins: math.log(bins) / math.log(k),
         ["three values do not fill twenty bins.", "the entropy of the shares that the bins really have."]),
        ("bins alike", lambda k, bins: min(1.0, math.log(bins) / math.log(k)),
         ["of 32 values in 20 bins some bins hold two and some one.",
          "−Σ p ln p over the bins' shares p, then divide by ln k."]),
        ("not divided", told, ["yours is in nats.", "divide by H(v) = ln k."]),
        ("over the bins' entropy", lambda k, bins: told(k, bins) / math.log(bins),
         ["you divide by what bins can tell at most.", "MIG divides by H(v) = ln k."]),
        ("bits over nats", lambda k, bins: told(k, bins) / math.log(2) / math.log(k),
         ["above the line bits, below it nats.", "one logarithm for both."]),
        ("shares for logarithms", lambda k, bins: min(1.0, bins / k),
         ["yours counts values, not information.", "−Σ p ln p over ln k."]),
    ],
)


def price_cases(g: torch.Generator) -> Iterator[Case]:
    for v, beta, noise in ((4.0, 1.0, 0.25), (1.0, 2.0, 0.25), (0.4, 2.0, 0.3), (3.0, 4.0, 0.5)):
        yield v * (1 + 0.1 * float(torch.rand((), generator=g))), beta, noise


def minimum(v: float, beta: float, noise: float) -> tuple[float, float]:
    return max(v - beta * noise, 0.0), 0.5 * math.log(max(v / (beta * noise), 1.0))


exercise(
    "collapse",
    "minimum(v, beta, noise) -> (b², price), at the least of the loss of a linear decoder b z that draws a number of "
    "variance v under noise σ² = noise; the price in nats",
    minimum, price_cases,
    [
        ("no-op", lambda v, beta, noise: (v, 0.0),
         ["yours keeps all of the variance and pays nothing.", "set the derivative by b² to zero."]),
        ("no collapse", lambda v, beta, noise: (v - beta * noise, 0.5 * math.log(v / (beta * noise))),
         ["a square is not negative, and neither is a price.", "0 for both where v ≤ βσ²."]),
        ("β forgotten", lambda v, beta, noise: minimum(v, 1.0, noise),
         ["yours is the plain VAE.", "the price counts β times: βσ² in the place of σ²."]),
        ("the half left out", lambda v, beta, noise: (minimum(v, beta, noise)[0], 2 * minimum(v, beta, noise)[1]),
         ["your price is twice too high.", "½ ln(v / βσ²)."]),
        ("b for b²", lambda v, beta, noise: (minimum(v, beta, noise)[0] ** 0.5, minimum(v, beta, noise)[1]),
         ["that is b.", "b² = v − βσ²."]),
        ("σ for σ²", lambda v, beta, noise: minimum(v, beta, noise**2),
         ["`noise` is σ² already.", "do not square it."]),
        ("price in bits", lambda v, beta, noise: (minimum(v, beta, noise)[0], minimum(v, beta, noise)[1] / math.log(2)),
         ["nats are asked for.", "the natural logarithm."]),
        ("β outside", lambda v, beta, noise: (minimum(v, beta, noise)[0], beta * minimum(v, beta, noise)[1]),
         ["yours is β times the price, as it stands in the loss.", "the KL itself."]),
    ],
)


def bound_cases(g: torch.Generator) -> Iterator[Case]:
    for n, k in ((8, 3), (12, 10)):
        c = torch.randint(k, (n,), generator=g)
        yield 3 * torch.randn(n, k, generator=g) + 3 * F.one_hot(c, k), c


def log_q(logits: Tensor, c: Tensor) -> Tensor:
    return logits.log_softmax(1).gather(1, c[:, None])[:, 0]


exercise(
    "information-bound",
    "bound(logits, c) -> a number, H(c) + mean ln Q(c|x), for Q's logits (N, K) on images that were drawn with the "
    "categories c (N,), all K as likely",
    information_bound, bound_cases,
    [
        ("no-op", lambda logits, c: math.log(logits.shape[1]),
         ["that is H(c), the most that can be told.", "add the mean of ln Q(c|x), which is negative."]),
        ("entropy forgotten", lambda logits, c: log_q(logits, c).mean(),
         ["yours is never positive.", "plus H(c) = ln K."]),
        ("bits", lambda logits, c: information_bound(logits, c) / math.log(2),
         ["yours is in bits.", "nats: the natural logarithm."]),
        ("sign error", lambda logits, c: math.log(logits.shape[1]) - log_q(logits, c).mean(),
         ["yours is above H(c), and grows where Q is wrong.", "minus the cross-entropy."]),
        ("sure for right", lambda logits, c: math.log(logits.shape[1]) + (
            logits.softmax(1) * logits.log_softmax(1)).sum(1).mean(),
         ["yours asks how sure Q is, and does not look at c.", "ln Q at the category that the image was drawn with."]),
        ("probability for logarithm", lambda logits, c: math.log(logits.shape[1]) + log_q(logits, c).exp().mean(),
         ["yours adds Q itself.", "ln Q: log_softmax."]),
        ("logarithm of the mean", lambda logits, c: math.log(logits.shape[1]) + log_q(logits, c).exp().mean().log(),
         ["yours takes the mean first.", "the logarithm of each, then the mean."]),
        ("sum for mean", lambda logits, c: math.log(logits.shape[1]) + log_q(logits, c).sum(),
         ["yours falls with the number of images.", "the mean over N."]),
    ],
)
