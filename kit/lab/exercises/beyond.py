"""Moved mass, lost words, uneven flows; a program for another's network; corner cases on a grid and back again."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.attacks.spatial import unevenness
from kit.lab.checks import Case, exercise


def mass_cases(g: torch.Generator) -> Iterator[Case]:
    for unit in ("squared", "euclidean"):
        for eps, distance in ((0.2, 2.0), (0.4, 3.0), (12.0, 1.5)):
            yield eps * (1 + 0.2 * float(torch.rand((), generator=g))), distance, unit


def mass_moved(eps: float, distance: float, unit: str) -> float:
    return min(1.0, eps / (distance**2 if unit == "squared" else distance))


exercise(
    "mass-moved",
    'goes(eps, distance, unit) -> the share of a pixel\'s mass that reaches a pixel `distance` away, if all its mass '
    'together may pay `eps`; a unit of mass pays the distance, squared where unit is "squared" and not "euclidean"',
    mass_moved, mass_cases,
    [
        ("no-op", lambda eps, distance, unit: min(1.0, eps),
         ["the way does not matter to yours.", "divide what may be paid by what a unit of mass pays."]),
        ("more than all", lambda eps, distance, unit: eps / (distance**2 if unit == "squared" else distance),
         ["a pixel cannot give more than it has.", "1 at most."]),
        ("always squared", lambda eps, distance, unit: mass_moved(eps, distance, "squared"),
         ["yours pays the squared distance in both units.", "where unit is \"euclidean\", the distance itself."]),
        ("never squared", lambda eps, distance, unit: mass_moved(eps, distance, "euclidean"),
         ["yours pays the distance in both units.", "where unit is \"squared\", its square."]),
        ("units exchanged",
         lambda eps, distance, unit: mass_moved(eps, distance, "euclidean" if unit == "squared" else "squared"),
         ["each unit has the other's price.", "the square belongs to \"squared\"."]),
        ("upside down", lambda eps, distance, unit: min(1.0, (distance**2 if unit == "squared" else distance) / eps),
         ["with yours more mass goes farther.", "eps over the price."]),
    ],
)


def word_cases(g: torch.Generator) -> Iterator[Case]:
    for label in (0, 1):
        for n, k in ((8, 2), (9, 3)):
            yield torch.randn(n, generator=g), label, k
        yield torch.tensor([0.7, -0.4, 0.9, -0.2]) * (1 + torch.rand((), generator=g)), label, 3


def worst_words(w: Tensor, label: int, k: int) -> Tensor:
    return (w if label else -w).clamp_min(0).topk(k).values.sum()


exercise(
    "worst-words",
    "worst_words(w, label, k) -> by how much the loss of k words can move the sum of a report's weights w (n,), "
    "positive for class 1, towards the class that is not `label`",
    worst_words, word_cases,
    [
        ("no-op", lambda w, label, k: (w if label else -w)[:k].clamp_min(0).sum(),
         ["yours takes the first k words.", "sort the gains, and take the largest."]),
        ("sign error", lambda w, label, k: worst_words(w, 1 - label, k),
         ["yours loses the words that speak for the other class.", "for class 1 a lost word costs its weight w."]),
        ("class 1 always", lambda w, label, k: worst_words(w, 1, k),
         ["yours moves every report towards class 0.", "where the label is 0, the gain of a word is −w."]),
        ("all that can be lost", lambda w, label, k: (w if label else -w).clamp_min(0).sum(),
         ["yours loses as many words as help.", "k of them."]),
        ("lost at a loss", lambda w, label, k: (w if label else -w).topk(k).values.sum(),
         ["yours misspells words even where that helps the report.", "a word with a negative gain is left alone."]),
        ("size for gain", lambda w, label, k: w.abs().topk(k).values.sum(),
         ["half of the heavy words speak for the other class.", "a gain has a sign: it depends on the label."]),
        ("mean for sum", lambda w, label, k: worst_words(w, label, k) / k,
         ["yours is the mean gain of a word.", "the words add up."]),
    ],
)


def flow_cases(g: torch.Generator) -> Iterator[Case]:
    for size in (0.1, 0.6):
        yield torch.tensor([1.0, 3.0])[:, None, None, None] * torch.randn(2, 2, 6, 5, generator=g), size


def pairs(f: Tensor) -> int:
    h, w = f.shape[2:]
    return 2 * (h * (w - 1) + w * (h - 1))


def scaled_flow(f: Tensor, size: float) -> Tensor:
    return f * (size * pairs(f) / unevenness(f))[:, None, None, None]


exercise(
    "flow-of-size",
    "scaled_flow(f, size) -> the flow f (N, 2, H, W) of each image times a number, so that ‖f(p) − f(q)‖₂ of pixels p, "
    "q side by side or one above the other is `size` on average",
    scaled_flow, flow_cases,
    [
        ("no-op", lambda f, size: size * f,
         ["yours never asks how uneven f is.", "divide by the mean length of the difference of neighbours."]),
        ("length for difference", lambda f, size: f * (size / f.norm(dim=1).mean((1, 2)))[:, None, None, None],
         ["a flow that moves all pixels alike is even.", "the differences of neighbours, not the flow itself."]),
        ("pairs counted once", lambda f, size: scaled_flow(f, size) / 2,
         ["`unevenness` counts each pair twice.", "2(h(w − 1) + w(h − 1)) ordered pairs."]),
        ("sum for mean", lambda f, size: f * (size / unevenness(f))[:, None, None, None],
         ["yours makes the sum over all pairs `size`.", "times the number of pairs."]),
        ("one number for all", lambda f, size: f * size * pairs(f) / unevenness(f).mean(),
         ["the second image's flow decides about the first's.", "a number for each image."]),
        ("upside down", lambda f, size: f * (unevenness(f) / (size * pairs(f)))[:, None, None, None],
         ["an uneven flow becomes more uneven.", "what is wanted over what is there."]),
    ],
)


def bill_cases(g: torch.Generator) -> Iterator[Case]:
    for steps, every in ((80, 20), (76, 15)):
        draw = torch.randint(3, 20, (4,), generator=g).tolist()
        yield steps, draw[0], draw[1], 10 * draw[2], 5 * draw[3], every


def bill(steps: int, q: int, batch: int, n: int, n_dev: int, every: int) -> int:
    return n + steps * (q + 1) * batch + (len(range(0, steps, every)) + 1) * n_dev


exercise(
    "bar-bill",
    "bill(steps, q, batch, n, n_dev, every) -> all questions of a fit: each of n images once for the mapping, q + 1 "
    "for each image of a step's batch, all n_dev before the steps 0, every, 2 · every, … and at the end",
    bill, bill_cases,
    [
        ("no-op", lambda steps, q, batch, n, n_dev, every: steps * (q + 1) * batch,
         ["the steps are not all.", "add the mapping, n, and the looks at the development images."]),
        ("q for q + 1", lambda steps, q, batch, n, n_dev, every: bill(steps, q - 1, batch, n, n_dev, every),
         ["a difference needs the value at the program itself, too.", "q + 1 questions for each image."]),
        ("no look at the end", lambda steps, q, batch, n, n_dev, every: bill(steps, q, batch, n, n_dev, every) - n_dev,
         ["one look is missing.", "the last one is after the last step."]),
        ("mapping forgotten", lambda steps, q, batch, n, n_dev, every: bill(steps, q, batch, 0, n_dev, every),
         ["which answers stand for which digit?", "n questions for the mapping."]),
        ("a look at every step", lambda steps, q, batch, n, n_dev, every: bill(steps, q, batch, n, n_dev, 1),
         ["yours looks at the development images at every step.", "only before every `every`-th."]),
        ("one image a step", lambda steps, q, batch, n, n_dev, every: bill(steps, q, 1, n, n_dev, every),
         ["every probe is asked about every image of the batch.", "(q + 1) · batch for a step."]),
    ],
)


def linear_cases(g: torch.Generator) -> Iterator[Case]:
    for _ in range(2):
        mask = (torch.arange(30) % 10 > 4).float()
        yield torch.randn(3, 30, generator=g), 2 * torch.randn(30, generator=g), mask


exercise(
    "program-shift",
    "program_shift(A, W, M) -> (K,), by how much the program ½ tanh(W ⊙ M) shifts all answers of the linear network "
    "A x; A (K, d), W and M (d,)",
    lambda A, W, M: A @ torch.tanh(W * M) / 2, linear_cases,
    [
        ("no-op", lambda A, W, M: torch.zeros(len(A)),
         ["yours says that a program does nothing.", "A times what is added to the image."]),
        ("no tanh", lambda A, W, M: A @ (W * M) / 2,
         ["W may be large; pixels may not.", "½ tanh(W ⊙ M) is what is added."]),
        ("no half", lambda A, W, M: A @ torch.tanh(W * M),
         ["around the image is mid-grey: there is ½ to go either way.", "½ tanh."]),
        ("the image's place", lambda A, W, M: A @ torch.tanh(W * (1 - M)) / 2,
         ["yours writes on the image.", "M is 1 on the frame, and 0 where the image lies."]),
        ("no mask", lambda A, W, M: A @ torch.tanh(W) / 2,
         ["yours writes on the image, too.", "W ⊙ M, so that nothing is added where M = 0."]),
        ("sign error", lambda A, W, M: -(A @ torch.tanh(W * M)) / 2,
         ["the program is added.", "A (x + p) = A x + A p."]),
        ("mean for sum", lambda A, W, M: (A * torch.tanh(W * M)).mean(1) / 2,
         ["yours divides by the number of pixels.", "a linear network adds up."]),
    ],
)


def window_cases(g: torch.Generator) -> Iterator[Case]:
    for below in (0.05, 0.1):
        frame = torch.rand(3, 8, 8, generator=g)
        moves = torch.where(torch.rand(3, 8, 8, generator=g) < 0.6, 0.06, 0.6)
        level = torch.where(torch.rand(3, 8, 8, generator=g) < 0.1, 0.02, 1.0)
        yield (frame * level + moves * (torch.rand(20, 3, 8, 8, generator=g) - 0.5)).clamp(0, 1), below


def still(window: Tensor, below: float) -> Tensor:
    return (window.std(0) < below).float().mean()


exercise(
    "still-pixels",
    "still_pixels(window, below) -> the share of the values of an image whose standard deviation over the questions of "
    "a window (n, C, H, W) is less than `below`",
    still, window_cases,
    [
        ("no-op", lambda window, below: window.std(0).mean(),
         ["yours is a mean deviation; compare it with `below` first.", "the mean of a truth value is a share."]),
        ("sign error", lambda window, below: 1 - still(window, below),
         ["yours counts what changes.", "less than `below`."]),
        ("within one question", lambda window, below: (window.flatten(1).std(1) < below).float().mean(),
         ["yours looks for flat images.", "the deviation over the questions: axis 0."]),
        ("dark for still", lambda window, below: (window.mean(0) < below).float().mean(),
         ["yours counts dark pixels.", "std, not mean."]),
        ("variance for deviation", lambda window, below: (window.var(0) < below).float().mean(),
         ["yours compares a square with `below`.", "the standard deviation is its root."]),
        ("range for deviation",
         lambda window, below: ((window.amax(0) - window.amin(0)) < below).float().mean(),
         ["one odd question spoils yours.", "window.std(0)."]),
        ("sum for mean", lambda window, below: (window.std(0) < below).float().sum(),
         ["yours is a number of pixels.", "a share: the mean."]),
    ],
)


def grid_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (5, 9, 6, 8):
        yield torch.randn(n, 12, generator=g), torch.linspace(-20, 20, n) + torch.rand(n, generator=g)


exercise(
    "worst-on-grid",
    "worst_on_grid(loss, values) -> (N,), for each image the value of the parameter with the largest loss; loss (k, N) "
    "at the k values (k,)",
    lambda loss, values: values[loss.argmax(0)], grid_cases,
    [
        ("no-op", lambda loss, values: values[:1].expand(loss.shape[1]),
         ["yours is the first value for all.", "argmax over the first axis, for each image."]),
        ("sign error", lambda loss, values: values[loss.argmin(0)],
         ["yours finds the mildest value.", "the largest loss."]),
        ("one for all", lambda loss, values: values[loss.mean(1).argmax()].expand(loss.shape[1]),
         ["yours is the worst value on average.", "each image has its own."]),
        ("place for value", lambda loss, values: loss.argmax(0),
         ["yours says where on the grid, not which value.", "values[…] at that place."]),
        ("loss for value", lambda loss, values: loss.amax(0),
         ["that is the largest loss itself.", "the value at which it is reached: argmax."]),
        ("mean of the worse half",
         lambda loss, values: values[loss.topk((len(loss) + 1) // 2, dim=0).indices].mean(0),
         ["yours averages several values.", "one: where the loss is largest."]),
    ],
)


def back_cases(g: torch.Generator) -> Iterator[Case]:
    for rate in (0.6, 0.8, 0.7):
        small = torch.rand(60, generator=g) < rate
        back = torch.rand(60, generator=g) < 0.1 + 0.3 * small
        small[:4], back[:4] = torch.tensor([0, 0, 1, 1]).bool(), torch.tensor([1, 1, 0, 0]).bool()
        small[4:8], back[4:8] = True, True
        yield small, back


exercise(
    "there-and-back",
    "there_and_back(small, back) -> (detail, size), shares of all images: wrong when small and still when enlarged "
    "again; wrong only when small. small and back (N,) are true where the network is wrong",
    lambda small, back: ((small & back).float().mean(), (small & ~back).float().mean()), back_cases,
    [
        ("no-op", lambda small, back: (back.float().mean(), small.float().mean()),
         ["yours are the two error rates; an image can be in both.", "small & back, and small & ~back."]),
        ("difference of rates", lambda small, back: (back.float().mean(), small.float().mean() - back.float().mean()),
         ["images that are wrong only after enlarging again hide in yours.", "image by image: `&`, not a difference."]),
        ("exchanged", lambda small, back: ((small & ~back).float().mean(), (small & back).float().mean()),
         ["yours has the two in the other order.", "detail is what enlarging does not give back."]),
        ("shares of the errors", lambda small, back: ((small & back).sum() / small.sum(),
                                                      (small & ~back).sum() / small.sum()),
         ["yours are shares of the wrong ones.", "of all images: the mean over N."]),
        ("counts for shares", lambda small, back: ((small & back).sum(), (small & ~back).sum()),
         ["yours are numbers of images.", "divide by N."]),
        ("either", lambda small, back: ((small | back).float().mean(), (small & ~back).float().mean()),
         ["your detail counts images that are wrong in one of the two.", "`&` for both."]),
    ],
)
