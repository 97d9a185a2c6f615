"""Where an attack takes hold: what a pooling keeps, whether a drawing follows its features, what each layer adds."""
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kit.fire.diagnosis.drawing import other_answers
from kit.lab.checks import Case, exercise

Draw = Callable[[Tensor, Tensor], Tensor]


def side_cases(g: torch.Generator) -> Iterator[Case]:
    for k in torch.randperm(3, generator=g).tolist():
        yield (k + 2,)


def entropy(p: list[float], log: Callable[[float], float] = math.log2) -> float:
    return -sum(q * log(q) for q in p)


def maximum(n: int) -> list[float]:
    return [2.0**-n, 1 - 2.0**-n]


def number(n: int) -> list[float]:
    """The probabilities of 0, 1, …, n ones among n fair bits."""
    return [math.comb(n, j) / 2**n for j in range(n + 1)]


def bits_of_pooling(k: int) -> tuple[float, float]:
    return entropy(maximum(k * k)), entropy(number(k * k))


exercise(
    "bits-of-pooling",
    "bits_of_pooling(k) -> (bits of the maximum, bits of the mean), the entropy in bits of each of k × k fair bits",
    bits_of_pooling, side_cases,
    [
        ("no-op", lambda k: (float(k * k), float(k * k)),
         ["that is what comes in.", "−Σ p log₂ p over the values that come out."]),
        ("nats", lambda k: (entropy(maximum(k * k), math.log), entropy(number(k * k), math.log)),
         ["yours is in nats.", "the logarithm to the base 2."]),
        ("k for k²", lambda k: (entropy(maximum(k)), entropy(number(k))),
         ["a square of side k has more than k bits.", "n = k²."]),
        ("all values alike", lambda k: (1.0, math.log2(k * k + 1)),
         ["yours takes all values for equally likely.",
          "the maximum is 0 once in 2ⁿ; the number of ones is binomial: math.comb(n, j) / 2ⁿ."]),
        ("one outcome", lambda k: (2.0 ** -(k * k) * k * k, bits_of_pooling(k)[1]),
         ["the maximum has two values, and yours adds up one.", "p = 2⁻ⁿ and 1 − p."]),
        ("per bit", lambda k: tuple(b / k**2 for b in bits_of_pooling(k)),
         ["yours is per bit that comes in.", "of all k² bits together."]),
        ("exchanged", lambda k: bits_of_pooling(k)[::-1],
         ["yours has the two in the other order.", "the maximum first: the smaller of the two."]),
    ],
)


def drawer_cases(g: torch.Generator) -> Iterator[Case]:
    for reads in (1.0, 0.0):  # a generator that reads its features, and one that is deaf
        y = torch.cat([torch.arange(5), torch.randint(5, (55,), generator=g)])
        h = torch.nn.functional.one_hot(y, 5) + 0.1 * torch.randn(60, 5, generator=g)
        yield _drawer(reads), _largest, h, torch.randn(60, 5, generator=g), y, other_answers(y)


def _drawer(reads: float) -> Draw:
    return lambda h, n: 2 * reads * h + n


def _largest(v: Tensor) -> Tensor:
    return v.argmax(1)


def compared(said: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    return tuple((said == w).double().mean() for w in wanted)


def follows(
    draw: Draw, answer: Callable[[Tensor], Tensor], h: Tensor, n: Tensor, y: Tensor, order: Tensor
) -> tuple[Tensor, ...]:
    return compared(answer(draw(h[order], n)), y[order], y)


exercise(
    "follows",
    "follows(draw, answer, h, n, y, order) -> (follows, stays), shares of the images: image i is drawn from the "
    "features of image order[i] and its own noise, and answered as the image of the features, or as image i; "
    "draw(h, n) gives images, answer(images) their classes, and y the classes of the images",
    follows, drawer_cases,
    [
        ("no-op", lambda draw, answer, h, n, y, order: compared(answer(draw(h, n)), y[order], y),
         ["yours draws each image from its own features, where nothing can be told apart.", "draw(h[order], n)."]),
        ("noise permuted too", lambda draw, answer, h, n, y, order: compared(answer(draw(h[order], n[order])),
                                                                            y[order], y),
         ["the noise goes along with the features in yours.", "features of another, noise of one's own."]),
        ("exchanged", lambda *a: follows(*a)[::-1],
         ["yours has the two in the other order.", "first: does it follow the features, y[order]?"]),
        ("whatever does not stay", lambda *a: (1 - follows(*a)[1], follows(*a)[1]),
         ["a drawing of a third class does not follow.", "compare with y[order]."]),
        ("the way back", lambda draw, answer, h, n, y, order: compared(
            answer(draw(h[order], n)), y[order.argsort()], y),
         ["yours asks for the class of the image that took this one's features.", "y[order], as h[order]."]),
        ("counts for shares", lambda *a: tuple(len(a[4]) * s for s in follows(*a)),
         ["yours are numbers of images.", "divide by N."]),
    ],
)


def flip_cases(g: torch.Generator) -> Iterator[Case]:
    for layers in (3, 6):
        said = torch.randint(4, (layers + 1, 50), generator=g)
        flip = torch.rand(layers + 1, 50, generator=g) < torch.rand(layers + 1, 1, generator=g)
        flip[0] &= torch.rand(50, generator=g) < 0.2
        yield said, torch.where(flip, (said + 1) % 4, said)


def share_flipped(said: Tensor, said_adv: Tensor) -> Tensor:
    return (said != said_adv).double().mean(1)


exercise(
    "vulnerability",
    "vulnerability(said, said_adv) -> (L,), V of each layer: the share flipped at it less the share flipped before it; "
    "said and said_adv (L + 1, N), the judge's classes of the image (row 0) and of its drawings from layers 1, …, L",
    lambda said, said_adv: share_flipped(said, said_adv).diff(), flip_cases,
    [
        ("no-op", lambda said, said_adv: share_flipped(said, said_adv)[1:],
         ["those are the shares flipped.", "each less that of the layer before."]),
        ("sign error", lambda said, said_adv: -share_flipped(said, said_adv).diff(),
         ["yours is positive where drawings return.", "e_l − e_{l−1}."]),
        ("against the image", lambda said, said_adv: share_flipped(said[:1], said_adv).diff(),
         ["yours counts what the generators lose by themselves, too.",
          "compare with the drawing of the clean image from the same layer, with the same noise."]),
        ("first flips", lambda said, said_adv: (said != said_adv).double().cummax(0).values.mean(1).diff(),
         ["yours counts an image once, where it flips first.", "a share at each layer: it may fall again."]),
        ("no return", lambda said, said_adv: share_flipped(said, said_adv).diff().clamp_min(0),
         ["yours leaves out the layers whose drawings return.", "V may be negative: it adds up to e_L − e_0."]),
        ("less the image's share", lambda said, said_adv: (e := share_flipped(said, said_adv))[1:] - e[0],
         ["yours compares every layer with the image.", "each with the layer before: e.diff()."]),
        ("counts for shares", lambda said, said_adv: share_flipped(said, said_adv).diff() * said.shape[1],
         ["yours are numbers of images.", "the mean over N."]),
    ],
)
