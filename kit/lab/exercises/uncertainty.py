"""Two kinds of not knowing: what a learnt noise does to the gradients, what dropout calls variance, and calibration."""
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.lab.checks import Case, exercise

Pair = tuple[Tensor, Tensor]


def pixel_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (8, 20):
        yield torch.randn(n, generator=g), 1.5 * torch.randn(n, generator=g), torch.randn(n, generator=g)


def slopes(mu: Tensor, s: Tensor, y: Tensor) -> Pair:
    return (mu - y) * (-s).exp(), 0.5 - 0.5 * (-s).exp() * (y - mu).square()


exercise(
    "nll-gradients",
    "nll_gradients(mu, s, y) -> (by_mu, by_s), the derivatives of ½ e^{−s} (y − μ)² + ½ s by μ and by s, elementwise, "
    "all (N,)",
    slopes, pixel_cases,
    [
        ("no-op", lambda mu, s, y: (mu - y, torch.zeros_like(s)),
         ["that is the squared error: the noise is not learnt.", "both terms hold s: differentiate by it as well."]),
        ("no σ in μ's", lambda mu, s, y: (mu - y, slopes(mu, s, y)[1]),
         ["σ does not appear in your gradient of μ.", "e^{−s} stays a factor: (μ − y) e^{−s}."]),
        ("downhill", lambda mu, s, y: (-slopes(mu, s, y)[0], -slopes(mu, s, y)[1]),
         ["yours are the steps that lower the loss.", "the derivatives, without the minus of a descent."]),
        ("sign of μ's", lambda mu, s, y: (-slopes(mu, s, y)[0], slopes(mu, s, y)[1]),
         ["the inner derivative of y − μ is missing.", "it is −1: (μ − y) e^{−s}."]),
        ("no price", lambda mu, s, y: (slopes(mu, s, y)[0], slopes(mu, s, y)[1] - 0.5),
         ["in yours a large σ costs nothing, and s grows for ever.", "the derivative of ½ s is ½."]),
        ("by σ²", lambda mu, s, y: (slopes(mu, s, y)[0], slopes(mu, s, y)[1] * (-s).exp()),
         ["yours is the derivative by σ².", "by s = ln σ², with dσ²/ds = σ²."]),
        ("σ² upside down", lambda mu, s, y: slopes(mu, -s, y),
         ["an error should count less where σ is large.", "e^{−s}, not e^{s}."]),
        ("halves lost", lambda mu, s, y: (2 * slopes(mu, s, y)[0], 2 * slopes(mu, s, y)[1]),
         ["both are twice what they should be.", "the halves in front of both terms."]),
    ],
)


def dropout_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d, p in ((3, 6, 0.2), (5, 10, 0.35)):
        yield torch.rand(n, d, generator=g), 1 + torch.randn(d, generator=g), p


def moments(x: Tensor, w: Tensor, p: float) -> Pair:
    return x @ w, p / (1 - p) * (x.square() @ w.square())


exercise(
    "dropout-moments",
    "dropout_moments(x, w, p) -> (mean, variance), each (N,), of z = Σ_i w_i x_i m_i / (1 − p) for images x (N, d) and "
    "weights w (d,), where each m_i is 0 with probability p and else 1",
    moments, dropout_cases,
    [
        ("no-op", lambda x, w, p: (x @ w, torch.zeros(len(x))),
         ["nothing is left out, as if the network were asked in evaluation mode.", "Var m_i = p (1 − p)."]),
        ("not divided", lambda x, w, p: ((1 - p) * (x @ w), p * (1 - p) * (x.square() @ w.square())),
         ["yours are the moments of Σ w x m.", "divide by 1 − p: the mean once, the variance twice."]),
        ("variance not divided", lambda x, w, p: (x @ w, p * (1 - p) * (x.square() @ w.square())),
         ["the mean is right, the variance that of Σ w x m.", "Var(m / (1 − p)) = Var(m) / (1 − p)² = p / (1 − p)."]),
        ("divided once", lambda x, w, p: (x @ w, p * (x.square() @ w.square())),
         ["the mean is right, the variance a little too small.", "Var(m / (1 − p)) = Var(m) / (1 − p)²."]),
        ("kept for left out", lambda x, w, p: (x @ w, (1 - p) / p * (x.square() @ w.square())),
         ["p is the probability of being left out.", "p / (1 − p), not (1 − p) / p."]),
        ("square of the sum", lambda x, w, p: (x @ w, p / (1 - p) * (x @ w).square()),
         ["yours leaves out all inputs together or none.", "the m_i are independent: variances add, Σ (w_i x_i)²."]),
        ("standard deviation", lambda x, w, p: (moments(x, w, p)[0], moments(x, w, p)[1].sqrt()),
         ["yours is the standard deviation.", "its square."]),
    ],
)


def logit_cases(g: torch.Generator) -> Iterator[Case]:
    for n, k in ((4, 3), (6, 5)):
        z, s = 2 * torch.randn(n, k, generator=g), torch.randn(n, k, generator=g)
        yield z, s, torch.randint(k, (n,), generator=g), torch.randn(12, n, k, generator=g)


def each_draw(z: Tensor, s: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """ln p of the label in every draw, (T, N)."""
    return (z + (0.5 * s).exp() * eps).log_softmax(2)[:, range(len(y)), y]


def noisy(z: Tensor, s: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    return math.log(len(eps)) - each_draw(z, s, y, eps).logsumexp(0)


exercise(
    "noisy-logits",
    "noisy_logits(z, s, y, eps) -> (N,), −ln of the mean over t of softmax(z + σ ε_t)_y, for logits z and s = ln σ² "
    "(N, K), labels y (N,) and draws eps (T, N, K)",
    noisy, logit_cases,
    [
        ("no-op", lambda z, s, y, eps: F.cross_entropy(z, y, reduction="none"),
         ["that is the cross-entropy without noise.", "softmax of z + σ ε_t for each t, the mean, then −ln."]),
        ("mean of losses", lambda z, s, y, eps: -each_draw(z, s, y, eps).mean(0),
         ["yours averages after the logarithm.", "first the mean of the probabilities, then −ln of it."]),
        ("s for ln σ", lambda z, s, y, eps: noisy(z, 2 * s, y, eps),
         ["your noise has the standard deviation e^s = σ².", "σ = e^{s/2}."]),
        ("mean of logits", lambda z, s, y, eps: F.cross_entropy(z + (0.5 * s).exp() * eps.mean(0), y, reduction="none"),
         ["in the mean of the logits the noise cancels.", "softmax first, then the mean over t."]),
        ("sum for mean", lambda z, s, y, eps: -each_draw(z, s, y, eps).logsumexp(0),
         ["yours falls as more is drawn.", "a mean over t: divide by T within the logarithm."]),
        ("sign error", lambda z, s, y, eps: -noisy(z, s, y, eps),
         ["yours grows with the probability.", "−ln, as for any loss."]),
        ("a probability", lambda z, s, y, eps: each_draw(z, s, y, eps).exp().mean(0),
         ["yours is the mean probability itself.", "−ln of it."]),
    ],
)


def answer_cases(g: torch.Generator) -> Iterator[Case]:
    sure = 0.3 + 0.7 * torch.rand(300, generator=g)
    yield sure, torch.rand(300, generator=g) < 0.5, 15
    sure = 0.5 + 0.5 * torch.rand(200, generator=g)
    yield sure, torch.rand(200, generator=g) < 0.9, 10
    sure = 0.76 + 0.2 * torch.rand(80, generator=g) ** 3  # far from the middle of the bin
    right = torch.rand(80, generator=g) < 0.5
    sure[:3], right[:3] = torch.tensor([0.0, 0.2, 0.4]), torch.tensor([True, False, False])  # 0 is in the first bin
    yield sure, right, 4


def in_bins(sure: Tensor, right: Tensor, bins: int) -> list[tuple[float, float, float, float]]:
    """Share, confidence, accuracy and number of every bin that is not empty."""
    place = (sure * bins).ceil().clamp(1, bins)
    return [(float((place == k).float().mean()), float(sure[place == k].mean()),
             float(right[place == k].float().mean()), float(k)) for k in place.unique()]


def calibration(sure: Tensor, right: Tensor, bins: int) -> float:
    return sum(n * abs(a - c) for n, c, a, _ in in_bins(sure, right, bins))


exercise(
    "calibration-error",
    "calibration_error(sure, right, bins) -> a number from 0 to 1, Σ over equal bins of the confidence in [0, 1] of "
    "the bin's share of the answers times |accuracy − mean confidence|; sure (N,), right (N,) bool; empty bins count 0",
    calibration, answer_cases,
    [
        ("no-op", lambda sure, right, bins: 1 - float(right.float().mean()),
         ["that is the share of wrong answers.", "sort the answers into bins by `sure` and compare within each."]),
        ("one bin", lambda sure, right, bins: abs(float(right.float().mean() - sure.mean())),
         ["too sure here and too modest there cancel in yours.", "the absolute value bin by bin."]),
        ("signed", lambda sure, right, bins: float(right.float().mean() - sure.mean()),
         ["too sure here and too modest there cancel in yours, and it may be negative.",
          "the absolute value bin by bin."]),
        ("bins alike", lambda sure, right, bins: sum(
            abs(a - c) for _, c, a, _ in in_bins(sure, right, bins)) / len(in_bins(sure, right, bins)),
         ["a bin of three answers counts as much as one of a hundred in yours.", "weight each by its share."]),
        ("all bins alike", lambda sure, right, bins: sum(
            abs(a - c) for _, c, a, _ in in_bins(sure, right, bins)) / bins,
         ["yours divides by the number of bins, of which some are empty.", "weight each by its share of the answers."]),
        ("largest", lambda sure, right, bins: max(abs(a - c) for _, c, a, _ in in_bins(sure, right, bins)),
         ["yours is the worst bin.", "the mean over the bins, weighted by their answers."]),
        ("middle of the bin", lambda sure, right, bins: sum(
            n * abs(a - (k - 0.5) / bins) for n, _, a, k in in_bins(sure, right, bins)),
         ["answers of a bin do not lie around its middle.", "compare with sure[bin].mean()."]),
        ("squares", lambda sure, right, bins: sum(n * (a - c) ** 2 for n, c, a, _ in in_bins(sure, right, bins)),
         ["yours squares the distances.", "|accuracy − confidence|."]),
    ],
)
