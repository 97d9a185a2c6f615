"""Coverage and a search without labels: which neurons count as activated, a step of light, the parts of a range."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def layer_cases(g: torch.Generator) -> Iterator[Case]:
    for n, c in ((6, 5), (8, 7)):
        brightness = 0.2 + 3 * torch.rand(n, 1, 1, 1, generator=g)
        yield (torch.rand(n, c, 4, 3, generator=g) * torch.rand(1, c, 1, 1, generator=g) + 0.1) * brightness, 0.3


def scaled(a: Tensor) -> Tensor:
    low, high = a.amin((1, 2, 3), keepdim=True), a.amax((1, 2, 3), keepdim=True)
    return (a - low) / (high - low)


def activated(a: Tensor, t: float) -> Tensor:
    return scaled(a).mean((2, 3)) > t


def own_range(a: Tensor, t: float) -> Tensor:
    low, high = a.amin((2, 3), keepdim=True), a.amax((2, 3), keepdim=True)
    return ((a - low) / (high - low)).mean((2, 3)) > t


exercise(
    "activated-neurons",
    "activated(a, t) -> (N, C) of truth values: the outputs a (N, C, H, W) of a layer, scaled to [0, 1] over the whole "
    "layer for each image apart, have a mean over the channel above t",
    activated, layer_cases,
    [
        ("no-op", lambda a, t: torch.zeros(a.shape[:2], dtype=torch.bool),
         ["nothing is ever activated for yours.", "scale, take the mean over each channel, compare with t."]),
        ("not scaled", lambda a, t: a.mean((2, 3)) > t,
         ["a brighter image activates more for yours.", "(a − min)/(max − min) first, for each image."]),
        ("scaled over the batch", lambda a, t: ((a - a.min()) / (a.max() - a.min())).mean((2, 3)) > t,
         ["what one image activates depends on its mates.", "least and largest value of each image's own layer."]),
        ("scaled in each channel", own_range,
         ["a channel that is weak everywhere is stretched to [0, 1].", "one range for the layer, not one each."]),
        ("largest for mean", lambda a, t: scaled(a).amax((2, 3)) > t,
         ["one bright place is enough for yours.", "the mean over the channel."]),
        ("sign error", lambda a, t: scaled(a).mean((2, 3)) <= t,
         ["yours names the neurons that are not activated.", "above t, not below."]),
    ],
)


def step_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (5, 9):
        x = torch.rand(n, 3, 4, 4, generator=g)
        yield x, torch.randn(n, 3, 4, 4, generator=g), 0.2


def light_step(x: Tensor, g: Tensor, step: float) -> Tensor:
    return (x + step * g.mean((1, 2, 3), keepdim=True).sign()).clamp(0, 1)


exercise(
    "light-step",
    "light_step(x, g, step) -> images after one step of DeepXplore's light: g (N, C, H, W) replaced by its mean over "
    "the image, divided by its own root mean square, and the image kept in [0, 1]",
    light_step, step_cases,
    [
        ("no-op", lambda x, g, step: x, ["nothing moves.", "x + step · (mean of g)/RMS, then clamp."]),
        ("sign error", lambda x, g, step: light_step(x, -g, step),
         ["yours goes down the gradient.", "the objective is maximised: plus."]),
        ("not clipped", lambda x, g, step: x + step * g.mean((1, 2, 3), keepdim=True).sign(),
         ["your images leave [0, 1].", "the authors' code never clips either; then what it finds is no image."]),
        ("every pixel its own", lambda x, g, step: (x + step * g.sign()).clamp(0, 1),
         ["your change is not the same at all pixels.", "take the mean of g first."]),
        ("not divided", lambda x, g, step: (x + step * g.mean((1, 2, 3), keepdim=True)).clamp(0, 1),
         ["your steps are as small as the mean of g.", "a constant has a root mean square of its absolute value."]),
        ("divided by the RMS of all of g",
         lambda x, g, step: (x + step * g.mean((1, 2, 3), keepdim=True)
                             / g.square().mean((1, 2, 3), keepdim=True).sqrt()).clamp(0, 1),
         ["your steps are smaller than step.", "first the mean, then its own root mean square: a sign is left."]),
        ("mean over the batch", lambda x, g, step: (x + step * g.mean().sign()).clamp(0, 1),
         ["all your images become brighter together.", "the mean over each image: dim (1, 2, 3)."]),
    ],
)


def range_cases(g: torch.Generator) -> Iterator[Case]:
    for n, width in ((5, 6), (9, 4), (7, 12)):
        train = torch.rand(30, width, generator=g)
        a, low, high = 1.4 * torch.rand(n, width, generator=g) - 0.2, train.amin(0), train.amax(0)
        a[:, 0], a[0, 0] = low[0], high[0]  # its ends belong to a range
        yield a, low, high, 4


def parts(a: Tensor, low: Tensor, high: Tensor, k: int) -> Tensor:
    part = ((a - low) / (high - low) * k).floor().clamp(0, k - 1)
    inside = (a >= low) & (a <= high)
    return inside[..., None] & (part[..., None] == torch.arange(k))


def multisection(a: Tensor, low: Tensor, high: Tensor, k: int) -> Tensor:
    return parts(a, low, high, k).any(0).float().mean()


def pressed(a: Tensor, low: Tensor, high: Tensor, k: int) -> Tensor:
    return multisection(a.maximum(low).minimum(high), low, high, k)


exercise(
    "multisection",
    "multisection(a, low, high, k) -> the share of all K · k parts that the images hit together: a (N, K) values of K "
    "neurons, [low, high] (K,) their ranges in k equal parts; a value outside its range hits none",
    multisection, range_cases,
    [
        ("no-op", lambda a, low, high, k: torch.tensor(0.0), ["yours is always 0.", "count the parts that are hit."]),
        ("pressed into the range", pressed,
         ["values outside the range hit a part of yours.", "mask them: (a ≥ low) & (a ≤ high)."]),
        ("mean over images", lambda a, low, high, k: parts(a, low, high, k).float().mean(),
         ["yours is what one image covers on average.", "a part counts where any image hits it: any(0)."]),
        ("neurons for parts", lambda a, low, high, k: parts(a, low, high, k).any(0).any(1).float().mean(),
         ["yours counts neurons that were in their range at all.", "divide by K · k."]),
        ("the parts left", lambda a, low, high, k: 1 - multisection(a, low, high, k),
         ["the more images, the less yours covers.", "the share that is hit, not that which is left."]),
    ],
)
