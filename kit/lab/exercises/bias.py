"""A planted bias: what a map shows of it, what an experiment proves, and which groups pay for it."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.explain import energy_inside
from kit.lab.checks import Case, exercise


def heat_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (3, 6):
        mask = torch.zeros(n, 8, 8, dtype=torch.bool)
        mask[:, 2:6, 3:7] = True
        yield torch.randn(n, 8, 8, generator=g) + 2 * mask, mask


exercise(
    "energy-inside",
    "energy(R, mask) -> (N,), the share of the positive relevance of a map (N, H, W) that lies on the object",
    energy_inside, heat_cases,
    [
        ("no-op", lambda R, mask: mask.flatten(1).float().mean(1),
         ["that is the share of the image that the object covers.", "weigh the pixels by their positive relevance."]),
        ("|R| for R", lambda R, mask: energy_inside(R.abs(), mask),
         ["what speaks against the class counts as if it spoke for it.", "clamp(min=0), not abs()."]),
        ("signs cancel", lambda R, mask: (R * mask).flatten(1).sum(1) / R.flatten(1).sum(1),
         ["some of your shares are above 1.", "only the positive relevance counts: clamp(min=0)."]),
        ("mean for sum", lambda R, mask: energy_inside(R, mask) / mask.flatten(1).float().mean(1),
         ["yours is above 1: it compares the mean on the object with the mean of the image.",
          "sums, above and below the line."]),
        ("of the background", lambda R, mask: 1 - energy_inside(R, mask),
         ["that is what lies beside the object.", "multiply by mask, not by ~mask."]),
        ("over the batch", lambda R, mask: energy_inside(R, mask) * R.clamp(min=0).flatten(1).sum(1)
         / R.clamp(min=0).sum(), ["an image's share depends on the others in the batch.", "flatten(1).sum(1)."]),
    ],
)


def swap_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (12, 20):
        y = torch.randint(5, (n,), generator=g)
        z = torch.randn(n, 5, generator=g)
        z[torch.arange(n), y] += 2
        yield z, z + 3 * torch.randn(n, 5, generator=g), y


def of(z: Tensor, y: Tensor) -> Tensor:
    return z.gather(1, y[:, None])[:, 0]


exercise(
    "background-effect",
    "background_effect(z, z_swapped, y) -> the mean, over the images, of what the logit of y loses when "
    "the background alone is exchanged",
    lambda z, z_swapped, y: (of(z, y) - of(z_swapped, y)).mean(), swap_cases,
    [
        ("no-op", lambda z, z_swapped, y: 0.0,
         ["you say that the background does nothing.", "compare the two logits of y."]),
        ("sign error", lambda z, z_swapped, y: (of(z_swapped, y) - of(z, y)).mean(),
         ["yours is negative where the background helped.", "what is *lost*: before minus after."]),
        ("all logits", lambda z, z_swapped, y: (z - z_swapped).mean(),
         ["yours is a mean over all classes.", "only the logit of the image's own class: gather."]),
        ("the winner's logit", lambda z, z_swapped, y: (z.amax(1) - z_swapped.amax(1)).mean(),
         ["after the exchange another class may have won.", "follow y: z[i, y_i]."]),
        ("absolute value", lambda z, z_swapped, y: (of(z, y) - of(z_swapped, y)).abs().mean(),
         ["yours is large also where gains and losses cancel.", "no abs() before the mean."]),
        ("sum for mean", lambda z, z_swapped, y: (of(z, y) - of(z_swapped, y)).sum(),
         ["yours grows with the number of images.", "the mean."]),
    ],
)


def group_cases(g: torch.Generator) -> Iterator[Case]:
    for n, k in ((121, 3), (233, 4)):
        group = torch.randint(k, (n,), generator=g)
        yield torch.rand(n, generator=g) > 0.15 + 0.15 * group, group


def accuracies(right: Tensor, group: Tensor) -> Tensor:
    return torch.stack([right[group == k].float().mean() for k in group.unique()])


exercise(
    "worst-group", "worst_group(right, group) -> the accuracy of the group that fares worst",
    lambda right, group: accuracies(right, group).min(), group_cases,
    [
        ("no-op", lambda right, group: right.float().mean(),
         ["that is the accuracy of all: a large group hides a small one.",
          "one accuracy for each group, then the least."]),
        ("mean of the groups", lambda right, group: accuracies(right, group).mean(),
         ["that is the mean of the groups.", "the least of them."]),
        ("best group", lambda right, group: accuracies(right, group).max(),
         ["that is the best group.", "min, not max."]),
        ("which group", lambda right, group: accuracies(right, group).argmin(),
         ["that is which group it is.", "asked is its accuracy: min, not argmin."]),
        ("share of the errors", lambda right, group: 1 - accuracies(right, group).min(),
         ["that is the error of the worst group.", "asked is its accuracy."]),
    ],
)


def paired_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (30, 60):
        before = torch.rand(n, generator=g) > 0.2
        yield before, before & (torch.rand(n, generator=g) > 0.5) | (torch.rand(n, generator=g) > 0.95)


exercise(
    "paired-interval",
    "paired_interval(before, after) -> (low, high), mean ∓ 1.96 standard errors of before − after, paired "
    "image by image (standard deviation with n − 1)",
    lambda before, after: _interval(before.float() - after.float()), paired_cases,
    [
        ("no-op", lambda before, after: ((before.float() - after.float()).mean(),) * 2,
         ["your interval has no width.", "1.96 · s/√n on both sides."]),
        ("not paired", lambda before, after: _unpaired(before.float(), after.float()),
         ["your interval is that of two independent samples.",
          "the same images were asked twice: take the difference image by image, then its standard error."]),
        ("deviation for error", lambda before, after: _interval(before.float() - after.float(), power=0.0),
         ["your interval does not shrink with n.", "the standard error is s/√n."]),
        ("sign error", lambda before, after: _interval(after.float() - before.float()),
         ["what is lost is positive.", "before − after."]),
        ("divided by n", lambda before, after: _interval((before.float() - after.float()), correction=0),
         ["almost: which standard deviation?", "n − 1 below the line: .std()."]),
    ],
    rtol=1e-5, atol=1e-6,
)


def _interval(d: Tensor, power: float = 0.5, correction: int = 1) -> tuple[Tensor, Tensor]:
    half = 1.96 * d.std(correction=correction) / len(d) ** power
    return d.mean() - half, d.mean() + half


def _unpaired(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    half = 1.96 * ((a.var() + b.var()) / len(a)).sqrt()
    return (a - b).mean() - half, (a - b).mean() + half
