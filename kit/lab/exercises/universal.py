"""One change for many images: the best for a linear network, a step of it, shifts, inks, a patch at many places."""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kit.core import generator
from kit.lab.checks import Case, exercise
from kit.lab.exercises.gradient import waves


def line_cases(g: torch.Generator) -> Iterator[Case]:
    for shift in (0.4, -0.4):
        w = torch.randn(20, generator=g)
        yield w, torch.randn(200, generator=g) + shift, float(0.5 / w.abs().sum() + 0.01)


def shares(w: Tensor, f: Tensor, eps: float) -> tuple[float, float]:
    """What the steps down and up the function f fool."""
    reach = eps * w.abs().sum()
    return float(((f > 0) & (f < reach)).float().mean()), float(((f < 0) & (-f < reach)).float().mean())


def best(w: Tensor, f: Tensor, eps: float) -> tuple[Tensor, float]:
    down, up = shares(w, f, eps)
    return (-eps * w.sign(), down) if down > up else (eps * w.sign(), up)


exercise(
    "universal-linear", "best(w, f, eps) -> (δ, share), the δ (d,) of the l∞ ball of radius ε that turns the most of "
    "the values "
    "f (N,) = w·x + b of the images, and the share that it turns",
    best, line_cases,
    [
        ("no-op", lambda w, f, eps: (0 * w, 0.0),
         ["δ = 0 turns nothing.", "δ = ± ε sign w moves every f by ε Σ|w_i|."]),
        ("both signs", lambda w, f, eps: (best(w, f, eps)[0], sum(shares(w, f, eps))),
         ["one δ cannot move some values up and others down.", "count for + and for −, and take the larger."]),
        ("the other sign", lambda w, f, eps: (-best(w, f, eps)[0], min(shares(w, f, eps))),
         ["the other sign turns more.", "compute both shares, and take the larger."]),
        ("sign error", lambda w, f, eps: (-best(w, f, eps)[0], best(w, f, eps)[1]),
         ["the share is right, and δ points the other way.", "positive values are turned by going down: −ε sign w."]),
        ("l2 norm", lambda w, f, eps: (best(w, f, eps)[0] * 0 + eps * w / w.norm() * (best(w, f, eps)[0] @ w).sign(),
                                       best(w, f, eps)[1]),
         ["that δ has an l2 norm of ε; in l∞ every pixel may move by ε.", "sign w, not w/‖w‖."]),
    ],
)


def step_cases(g: torch.Generator) -> Iterator[Case]:
    for eps in (0.1, 0.3):
        x = torch.rand(1, 1, 6, 6, generator=g)
        x = x.where(torch.rand(x.shape, generator=g) > 0.4, x.round())
        yield waves(g, x.shape), x, (eps * (3 * torch.rand(x.shape, generator=g) - 1.5)).clamp(-eps, eps), eps


def stepped(gradient: Callable[[Tensor], Tensor], x: Tensor, d: Tensor, eps: float) -> Tensor:
    return (d + eps / 10 * gradient((x + d).clamp(0, 1)).sign()).clamp(-eps, eps)


def difference(gradient: Callable[[Tensor], Tensor], x: Tensor, d: Tensor, eps: float) -> Tensor:
    return ((x + stepped(gradient, x, d, eps)).clamp(0, 1) - x).clamp(-eps, eps)


exercise(
    "uap-step", "uap_step(gradient, x, d, eps) -> δ after one step of ε/10 up the sign of the gradient at the image x "
    "+ δ (cut to [0, 1]), kept within ε; gradient(v) is that of the loss",
    stepped, step_cases,
    [
        ("no-op", lambda gradient, x, d, eps: d, ["δ has not moved.", "plus ε/10 times the sign of the gradient."]),
        ("difference of images", difference,
         ["where this image is black or white, your δ has lost one of its signs.",
          "the box belongs to the image: cut x + δ for the network, and keep δ itself."]),
        ("no projection", lambda gradient, x, d, eps: d + eps / 10 * gradient((x + d).clamp(0, 1)).sign(),
         ["some values of δ are larger than ε.", "`.clamp(-eps, eps)` at the end."]),
        ("gradient at the image", lambda gradient, x, d, eps: (d + eps / 10 * gradient(x).sign()).clamp(-eps, eps),
         ["your gradient does not know δ.", "at the image that carries δ: (x + δ), cut to [0, 1]."]),
        ("sign error", lambda gradient, x, d, eps: stepped(lambda v: -gradient(v), x, d, eps),
         ["your step goes down.", "the loss is to grow: plus."]),
    ],
)


def dot_cases(g: torch.Generator) -> Iterator[Case]:
    x = torch.zeros(400, 1, 11, 11)
    x[:, :, 5, 5] = 1.0
    for _ in range(2):  # one shift for all may be by (0, 0)
        yield x, generator(int(torch.randint(2**31, (), generator=g)))


def rolled(x: Tensor, low: int, high: int, g: torch.Generator, rows: int | None = None) -> Tensor:
    shifts = torch.randint(low, high, (rows or len(x), 2), generator=g).expand(len(x), 2).tolist()
    return torch.stack([image.roll(tuple(s), (1, 2)) for image, s in zip(x, shifts, strict=True)])


def where_dots(v: Tensor, x: Tensor, g: torch.Generator) -> Tensor:
    """What is read off the dots: their mass, the extremes of their places, how often row and column agree, and the mean
    and the spread over the images of each."""
    where = v.flatten(1).argmax(1)
    place = torch.stack([where // v.shape[3], where % v.shape[3]]).float()
    whole = torch.stack([v.sum(), place.amin(), place.amax(), (place[0] == place[1]).float().mean()])
    return torch.cat([whole, place.mean(1) / 2, place.std(1)])


def dimmed(x: Tensor, g: torch.Generator) -> Tensor:
    """Shifts that fill in nothing at the edges, of an image that was cut: half of the mass is gone."""
    return rolled(x, -3, 4, g) * 0.5


def diagonal(x: Tensor, g: torch.Generator) -> Tensor:
    shifts = torch.randint(-3, 4, (len(x),), generator=g).tolist()
    return torch.stack([image.roll((s, s), (1, 2)) for image, s in zip(x, shifts, strict=True)])


exercise(
    "moved", "moved(x, source) -> each image (C, H, W) of x shifted by −3 … 3 pixels down and −3 … 3 to the right, "
    "each drawn from the generator `source`",
    lambda x, source: rolled(x, -3, 4, source), dot_cases,
    [
        ("no-op", lambda x, source: x, ["no image has moved.", "draw two numbers for each image, and roll it."]),
        ("one shift for all", lambda x, source: rolled(x, -3, 4, source, rows=1),
         ["all images move together.", "draw a pair of numbers for each image: shape (N, 2)."]),
        ("one side", lambda x, source: rolled(x, 0, 4, source), ["no image goes up or left.", "from −3 to 3."]),
        ("never three", lambda x, source: rolled(x, -3, 3, source),
         ["no image moves by +3.", "`torch.randint(-3, 4, …)`: the upper end is not drawn."]),
        ("along the diagonal", diagonal, ["down and right are always the same.", "two numbers for each image."]),
        ("dimmed", dimmed, ["your images are darker than they came.", "a shift changes no values."]),
    ],
    reads=where_dots, rtol=0.0, atol=0.25,
)


def ink_cases(g: torch.Generator) -> Iterator[Case]:
    for n, m in ((30, 5), (50, 12)):
        yield torch.rand(n, 3, generator=g), torch.rand(m, 3, generator=g)


exercise(
    "nearest-ink", "nearest_ink(colours, inks) -> (n,), the l2 distance of each colour (n, 3) to the nearest of the "
    "inks (m, 3)",
    lambda colours, inks: torch.cdist(colours, inks).amin(1), ink_cases,
    [
        ("no-op", lambda colours, inks: 0 * colours[:, 0],
         ["no colour of a screen is an ink.", "the least of the distances."]),
        ("product", lambda colours, inks: torch.cdist(colours, inks).prod(1),
         ["a product of many numbers below one is nothing at all.", "the minimum over the inks, not the product."]),
        ("mean", lambda colours, inks: torch.cdist(colours, inks).mean(1),
         ["a printer uses one ink for a pixel.", "the minimum, not the mean."]),
        ("farthest", lambda colours, inks: torch.cdist(colours, inks).amax(1),
         ["that is the farthest ink.", "the minimum."]),
        ("squared", lambda colours, inks: torch.cdist(colours, inks).amin(1).square(),
         ["that is its square.", "take the root."]),
    ],
)


def patch_cases(g: torch.Generator) -> Iterator[Case]:
    for side, size in ((6, 3), (7, 2), (8, 4), (9, 5), (8, 3)):
        yield torch.randn(2, side, side, generator=g), size


def mean_patch(gap: Tensor, size: int) -> Tensor:
    return gap.unfold(0, size, 1).unfold(1, size, 1).mean((0, 1))


exercise(
    "best-patch", "best_patch(w, size) -> (size, size) of 0 and 1, the patch that is best for class 1 on average over "
    "all whole places of an image, for a linear network with weights w (2, side, side)",
    lambda w, size: (mean_patch(w[1] - w[0], size) > 0).float(), patch_cases,
    [
        ("no-op", lambda w, size: torch.full((size, size), 0.5),
         ["grey has no sign.", "black or white: the sign of the mean weight."]),
        ("sign error", lambda w, size: (mean_patch(w[1] - w[0], size) < 0).float(),
         ["that is the best patch for class 0.", "class 1 is to win: w₁ − w₀."]),
        ("one place", lambda w, size: ((w[1] - w[0])[:size, :size] > 0).float(),
         ["that is best at the first place alone.", "average the weights over the places before you take the sign."]),
        ("one class", lambda w, size: (mean_patch(w[1], size) > 0).float(),
         ["what raises both classes gains nothing.", "the difference w₁ − w₀."]),
        ("middle", lambda w, size: (mean_patch(w[1] - w[0], size) > mean_patch(w[1] - w[0], size).median()).float(),
         ["half of your pixels are white by force.", "compare with zero."]),
    ],
)
