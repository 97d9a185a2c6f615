"""One occluder for a whole class: the smallest for a linear one, where it holds, MMD², and the channels it weighs."""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise

Kernel = Callable[[Tensor, Tensor], Tensor]


def linear_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d, sign in ((3, 4, -1.0), (6, 5, 1.0)):
        x, w = torch.rand(n, d, generator=g), 0.3 + torch.rand(d, generator=g)
        w[1], w[2] = 2.5 * sign, -0.7  # the largest is negative in the first case
        yield w, float(0.2 - (x @ w).min()), x


def one_value(w: Tensor, lead: Tensor, at: Tensor) -> Tensor:
    return torch.zeros_like(w).index_fill(0, at, 1.0) * lead / w[at]


def least_l1(w: Tensor, b: float, x: Tensor) -> Tensor:
    return one_value(w, (x @ w + b).max(), w.abs().argmax())


exercise(
    "linear-occluder",
    "linear_occluder(w, b, x) -> δ (d,), the smallest in l1 with w·(x_i − δ) + b ≤ 0 for all images x (n, d), which "
    "all have w·x_i + b > 0; x − δ may leave [0, 1]",
    least_l1, linear_cases,
    [
        ("no-op", lambda w, b, x: torch.zeros_like(w),
         ["the class is still seen.", "put all of the largest lead on the value with the largest |w|."]),
        ("mean lead", lambda w, b, x: one_value(w, (x @ w + b).mean(), w.abs().argmax()),
         ["some of the images still lead.", "one δ for all: the largest lead decides, not the mean."]),
        ("smallest lead", lambda w, b, x: one_value(w, (x @ w + b).min(), w.abs().argmax()),
         ["only one of the images is hidden.", "one δ for all: the largest lead decides."]),
        ("smallest in l2", lambda w, b, x: (x @ w + b).max() * w / w.square().sum(),
         ["yours lies along w: that is the smallest in l2.", "in l1 the value that pays most per unit takes it all."]),
        ("smallest in l∞", lambda w, b, x: (x @ w + b).max() * w.sign() / w.abs().sum(),
         ["yours changes all values alike: that is the smallest in l∞.",
          "in l1 the value that pays most per unit takes it all."]),
        ("w for |w|", lambda w, b, x: one_value(w, (x @ w + b).max(), w.argmax()),
         ["a negative weight can pay as well.", "the largest |w_j|, and δ_j with its sign."]),
        ("no bias", lambda w, b, x: least_l1(w, 0.0, x), ["b is part of the lead.", "(x @ w + b).max()."]),
        ("sign error", lambda w, b, x: -least_l1(w, b, x),
         ["yours raises the leads: δ is subtracted.", "δ_j = lead / w_j."]),
    ],
)


def met_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (60, 90):
        hard = torch.rand(n, generator=g)
        before, after = (torch.rand(3, n, generator=g) for _ in range(2))
        before, after = before > 0.4 * hard, after < 0.6 * hard
        before[:, :3] = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
        after[:, :3] = False
        yield before, after


def hidden(before: Tensor, after: Tensor) -> float:
    return float((~after).all(0)[before.all(0)].float().mean())


exercise(
    "hidden-share",
    "hidden_share(before, after) -> a number: of the images in which the class is seen in all three ways, before[k, "
    "i], the share in which it is seen in none once δ is subtracted, after[k, i]; both (3, N) bool",
    hidden, met_cases,
    [
        ("no-op", lambda before, after: float((~after).all(0).float().mean()),
         ["an image that the network never saw the class in counts as hidden.", "only those with before.all(0)."]),
        ("of all images", lambda before, after: float(((~after).all(0) & before.all(0)).float().mean()),
         ["yours divides by the number of all images.", "by that of the images with before.all(0)."]),
        ("as they are", lambda before, after: float((~after).all(0)[before[0]].float().mean()),
         ["a turn alone hid the class in some of yours.", "before.all(0): seen in all three ways."]),
        ("any for all", lambda before, after: float((~after).any(0)[before.all(0)].float().mean()),
         ["one of the three ways is enough in yours.", "(~after).all(0)."]),
        ("mean over the ways", lambda before, after: float((~after)[:, before.all(0)].float().mean()),
         ["yours is the mean of three shares.", "an image counts where all three hold: .all(0) first."]),
        ("plain alone", lambda before, after: float((~after)[0][before.all(0)].float().mean()),
         ["noise and the turn are not asked.", "(~after).all(0)."]),
        ("still seen", lambda before, after: 1 - hidden(before, after),
         ["yours is the share in which some way still shows the class.", "(~after).all(0), of those with premise."]),
    ],
)


def straight(u: Tensor, v: Tensor) -> Tensor:
    """u·v for all pairs."""
    return u @ v.T


def bell(u: Tensor, v: Tensor) -> Tensor:
    """exp(−‖u − v‖² / 2) for all pairs."""
    return torch.exp(-torch.cdist(u, v).square() / 2)


def sample_cases(g: torch.Generator) -> Iterator[Case]:
    for n, m, kernel in ((5, 8, straight), (7, 4, bell), (12, 9, bell)):
        yield torch.randn(n, 2, generator=g), 1.5 + 2 * torch.randn(m, 2, generator=g), kernel


def distinct(K: Tensor) -> Tensor:
    return (K.sum() - K.trace()) / (len(K) * (len(K) - 1))


def discrepancy(a: Tensor, b: Tensor, k: Kernel, across: float = 2.0) -> Tensor:
    return distinct(k(a, a)) + distinct(k(b, b)) - across * k(a, b).mean()


exercise(
    "mmd-squared",
    "mmd_squared(a, b, k) -> a number, E k(a, a') + E k(b, b') − 2 E k(a, b) as means over pairs of different rows of "
    "a (n, d) and b (m, d); k(u, v) is a function that gives the kernel of all pairs, (len(u), len(v))",
    discrepancy, sample_cases,
    [
        ("no-op", lambda a, b, k: k(a, b).mean(),
         ["that is how alike the two samples are.", "compare with how alike each is to itself."]),
        ("with itself", lambda a, b, k: k(a, a).mean() + k(b, b).mean() - 2 * k(a, b).mean(),
         ["yours pairs a row with itself as well, and is above zero for two halves of one sample.",
          "take the diagonal off: (K.sum() − K.trace()) / (n (n − 1))."]),
        ("diagonal counted", lambda a, b, k: sum(
            (k(v, v).sum() - k(v, v).trace()) / len(v) ** 2 for v in (a, b)) - 2 * k(a, b).mean(),
         ["without the diagonal there are fewer pairs.", "divide by n (n − 1), not n²."]),
        ("once across", lambda a, b, k: discrepancy(a, b, k, 1.0),
         ["for two samples of one kind yours is not near zero.", "−2 E k(a, b)."]),
        ("added", lambda a, b, k: discrepancy(a, b, k, -2.0),
         ["yours grows where the samples are alike.", "the pairs across are subtracted."]),
        ("sign error", lambda a, b, k: -discrepancy(a, b, k),
         ["yours is the negative.", "within the samples plus, across minus."]),
        ("root", lambda a, b, k: discrepancy(a, b, k).clamp_min(0).sqrt(), ["yours is MMD.", "its square: no root."]),
    ],
)


def map_cases(g: torch.Generator) -> Iterator[Case]:
    for n, c in ((4, 5), (6, 8)):
        before = torch.randn(n, c, 3, 3, generator=g).clamp_min(0)
        kept = torch.linspace(0.0, 1.3, c)[:, None, None]
        yield before, (kept * before + 0.5 * torch.randn(n, c, 3, 3, generator=g)).clamp_min(0)


def shares(w: Tensor) -> Tensor:
    return w / w.sum()


def fall(before: Tensor, after: Tensor) -> Tensor:
    return before.mean(0) - after.mean(0)


exercise(
    "channel-weights",
    "channel_weights(before, after) -> (C,), the importance w_c of each channel: s_j of every unit from its mean "
    "before and after, summed over the places of the channel, as shares of the total; before and after (N, C, h, w)",
    lambda before, after: shares(fall(before, after).clamp_min(0).sum((1, 2))), map_cases,
    [
        ("no-op", lambda before, after: shares(before.mean(0).sum((1, 2))),
         ["yours weighs channels by how active they are.", "by what they lose: before − after."]),
        ("image by image", lambda before, after: shares((before - after).clamp_min(0).mean(0).sum((1, 2))),
         ["what a unit gains in one image cannot make up for what it loses in another in yours.",
          "the mean over the images first, then cut at zero."]),
        ("channel by channel", lambda before, after: shares(fall(before, after).sum((1, 2)).clamp_min(0)),
         ["what one place gains makes up for what another loses in yours.",
          "cut every unit at zero, then sum over the places."]),
        ("not cut", lambda before, after: shares(fall(before, after).sum((1, 2))),
         ["units that gain count against those that lose.", "`.clamp_min(0)` before the sum over the places."]),
        ("absolute value", lambda before, after: shares(fall(before, after).abs().sum((1, 2))),
         ["units that gain count as if they had lost.", "[·]₊, not |·|."]),
        ("sign error", lambda before, after: shares((-fall(before, after)).clamp_min(0).sum((1, 2))),
         ["yours are the channels that gain.", "before − after."]),
        ("not shares", lambda before, after: fall(before, after).clamp_min(0).sum((1, 2)),
         ["yours do not add up to 1.", "divide by the sum over the channels."]),
    ],
)
