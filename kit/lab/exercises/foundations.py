"""Data and networks: how many images a difference takes, the interval of a share, and where images are normalised."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise
from kit.report import wilson


def share_cases(g: torch.Generator) -> Iterator[Case]:
    for _ in range(4):
        p1, p2 = (0.6 + 0.39 * torch.rand(2, generator=g)).tolist()
        yield p1, p2


def deviations(p1: float, p2: float) -> tuple[float, float]:
    return (p1 * (1 - p1)) ** 0.5, (p2 * (1 - p2)) ** 0.5


def needed(p1: float, p2: float) -> float:
    s1, s2 = deviations(p1, p2)
    return 1.96**2 * (s1**2 + s2**2) / (p1 - p2) ** 2


exercise(
    "images-needed", "images_needed(p1, p2) -> N, with which the difference of two accuracies, each measured on its "
    "own "
    "N images, is 1.96 of its standard errors",
    needed, share_cases,
    [
        ("no-op", lambda p1, p2: 0.0,
         ["no images tell nothing.", "solve |p₁ − p₂| = 1.96 √(p₁(1 − p₁)/N + p₂(1 − p₂)/N)."]),
        ("until the intervals part", lambda p1, p2: (1.96 * sum(deviations(p1, p2)) / (p1 - p2)) ** 2,
         ["that is where the two intervals part: up to twice too many.",
          "the errors of two samples add as squares, s₁² + s₂², not as s₁ + s₂."]),
        ("one sample", lambda p1, p2: 1.96**2 * p1 * (1 - p1) / (p1 - p2) ** 2,
         ["only one of the two accuracies has an error in yours.", "both are measured: add p₂(1 − p₂)."]),
        ("one standard error", lambda p1, p2: needed(p1, p2) / 1.96**2,
         ["that is where the difference is one standard error.", "1.96 of them: N grows with the square."]),
        ("not squared", lambda p1, p2: needed(p1, p2) ** 0.5,
         ["that is the root of it.", "the error falls with √N: square both sides before you solve for N."]),
    ],
)


def count_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (20, 100, 600):
        yield int(torch.randint(int(0.6 * n), n - 1, (), generator=g)), n


def wald(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    p = k / n
    half = z * (p * (1 - p) / n) ** 0.5
    return p - half, p + half


def score_interval(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return middle - half, middle + half


def centred(k: int, n: int) -> tuple[float, float]:
    low, high = wilson(k, n)
    return k / n - (high - low) / 2, k / n + (high - low) / 2


exercise(
    "wilson-interval", "wilson_interval(k, n) -> (low, high), the two p with |k/n − p| = 1.96 √(p(1 − p)/n)",
    wilson, count_cases,
    [
        ("no-op", lambda k, n: (k / n, k / n),
         ["your interval has no width.", "square the condition: it is quadratic in p."]),
        ("error at k/n", wald,
         ["the error is that at k/n: at k = n it would be zero.",
          "the error in the condition is √(p(1 − p)/n), at the end that is looked for: solve the quadratic for p."]),
        ("one standard error", lambda k, n: score_interval(k, n, 1.0),
         ["that is one standard error, which covers two of three.", "95 % takes 1.96 of them."]),
        ("centred at k/n", centred,
         ["the width is right, and the middle is not.",
          "the middle is (k/n + z²/2n)/(1 + z²/n): drawn towards one half."]),
        ("swapped", lambda k, n: wilson(k, n)[::-1], ["the lower end comes first.", "return (low, high)."]),
    ],
    rtol=1e-3, atol=2e-4,
)


def image_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (2, 3):
        mean, std = 0.3 + 0.3 * torch.rand(3, generator=g), 0.1 + 0.3 * torch.rand(3, generator=g)
        yield torch.rand(n, 3, 5, 5, generator=g), mean, std


def normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x - mean[:, None, None]) / std[:, None, None]


exercise(
    "normalised", "normalised(x, mean, std) -> images (N, C, H, W) as a network sees them inside: each channel less "
    "its "
    "mean (C,), in units of its standard deviation (C,)",
    normalised, image_cases,
    [
        ("no-op", lambda x, mean, std: x,
         ["these are the images as they came.", "(x − mean)/std, channel by channel."]),
        ("twice", lambda x, mean, std: normalised(normalised(x, mean, std), mean, std),
         ["they are normalised twice.", "once: no image in [0, 1] is left with values as far out as yours."]),
        ("divided first", lambda x, mean, std: x / std[:, None, None] - mean[:, None, None],
         ["the mean is in units of pixels: what do you take it from?", "first minus the mean, then divide by std."]),
        ("variance", lambda x, mean, std: normalised(x, mean, std**2),
         ["the spread is not one.", "divide by the standard deviation, not by its square."]),
        ("undone", lambda x, mean, std: x * std[:, None, None] + mean[:, None, None],
         ["that is the way back.", "to go in: minus the mean, divided by std."]),
        ("one mean for all", lambda x, mean, std: (x - mean.mean()) / std.mean(),
         ["each channel has numbers of its own.", "mean[:, None, None] gives each channel its own."]),
    ],
)
