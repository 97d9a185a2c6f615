"""What clients share: images in plain sight, the length of a gradient, and what a server makes of many updates."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise
from kit.poison.leakage.shared import clipped_gradient


def sight_cases(g: torch.Generator) -> Iterator[Case]:
    for d in (9, 14):
        h = 2 * torch.rand(5, d, generator=g) - 1
        h[:, 0] = -1.0  # a dark corner: all inputs agree there
        alone = torch.diag(torch.tensor([30.0, 1.0, -0.4, 0.0, 0.0]))  # the last two inputs, and two units, are not
        delta = torch.cat([alone, torch.randn(3, 5, generator=g)])  # of a mixed unit no image can be read
        near = h[3].clone()
        near[1] += 0.004  # nearly an input: one value is off
        order = torch.randperm(9, generator=g)
        weight, bias = torch.cat([delta @ h, near[None]]), torch.cat([delta.sum(1), torch.ones(1)])
        yield h, weight[order], bias[order]


def apart(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """|h − row / bias| of each input, unit that is on, and value: (B, M, d)."""
    on = bias != 0
    return (h[:, None] - weight[on] / bias[on, None]).abs()


def in_plain_sight(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (apart(h, weight, bias).amax(2) < 1e-3).any(1)


exercise(
    "in-plain-sight",
    "in_plain_sight(h, weight, bias) -> (B,) bool, which of a batch's inputs h (B, d) can be read, to within 0.001 in "
    "every value, from a unit of a linear layer with the gradients weight (units, d) and bias (units,)",
    in_plain_sight, sight_cases,
    [
        ("dead units", lambda h, weight, bias: torch.zeros(len(h), dtype=torch.bool),
         ["you find none: is a row divided by 0?",
          "0/0 is NaN, and a minimum over NaN is NaN: leave out the units whose ∇b is 0."]),
        ("not divided", lambda h, weight, bias: (torch.cdist(h, weight, p=torch.inf) < 1e-3).any(1),
         ["a row of the gradient is δ times the input.", "divide each row by its ∇b."]),
        ("positive units alone", lambda h, weight, bias: in_plain_sight(h, weight[bias > 0], bias[bias > 0]),
         ["a unit may pull either way.", "every unit with ∇b ≠ 0."]),
        ("any value", lambda h, weight, bias: (apart(h, weight, bias).amin(2) < 1e-3).any(1),
         ["one value that agrees is not an image.", "the largest difference of a row, not the smallest."]),
        ("mean for max", lambda h, weight, bias: (apart(h, weight, bias).mean(2) < 1e-3).any(1),
         ["a row may be right on average and wrong in one value.", "every value: the largest difference."]),
        ("the largest unit alone", lambda h, weight, bias: in_plain_sight(
            h, weight[bias.abs().argmax()][None], bias[bias.abs().argmax()][None]),
         ["of a batch, other units show other images.", "ask all units, not the one with the largest |∇b|."]),
    ],
)


def clip_cases(g: torch.Generator) -> Iterator[Case]:
    for norm in (1.0, 0.3):
        yield norm * torch.tensor([[0.5], [3.0], [1.5], [0.2]]) * torch.randn(4, 6, generator=g) / 6**0.5, norm


def clipped(g: Tensor, norm: float) -> Tensor:
    return clipped_gradient({"all": g}, norm)["all"]


exercise(
    "clipped", "clipped(g, norm) -> (N, P), each row of g with its direction, and its l2 length at most `norm`",
    clipped, clip_cases,
    [
        ("no-op", lambda g, norm: g, ["nothing is clipped.", "times min(1, norm / ‖g‖), a number for each row."]),
        ("one length for all", lambda g, norm: g * min(1.0, norm / float(g.norm())),
         ["how long a row may be depends on its mates in yours.", "one length a row: g.norm(dim=1, keepdim=True)."]),
        ("short ones lengthened", lambda g, norm: norm * g / g.norm(dim=1, keepdim=True),
         ["your short gradients grow.", "at most 1: .clamp(max=1) on the factor."]),
        ("value by value", lambda g, norm: g.clamp(-norm, norm),
         ["yours cuts single values, and so turns the direction.", "one factor for the whole row."]),
        ("largest value for length", lambda g, norm: g * (norm / g.abs().amax(1, keepdim=True)).clamp(max=1),
         ["yours bounds the largest value.", "the l2 length of the row."]),
        ("squared length", lambda g, norm: g * (norm / g.square().sum(1, keepdim=True)).clamp(max=1),
         ["you divide by the square of the length.", "‖g‖, with the root."]),
        ("min for max", lambda g, norm: g * (norm / g.norm(dim=1, keepdim=True)).clamp(min=1),
         ["your long gradients stay, and the short ones grow.", "the factor is at most 1, not at least."]),
    ],
)
