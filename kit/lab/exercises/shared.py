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
        near[1] += 0.0015  # nearly an input: one value is off
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


def private_cases(g: torch.Generator) -> Iterator[Case]:
    for sigma in (0.7, 1.5):
        for rows, norm in clip_cases(g):
            yield rows, norm, sigma, torch.randn(6, generator=g)


def private_mean(g: Tensor, norm: float, sigma: float, noise: Tensor) -> Tensor:
    return (clipped(g, norm).sum(0) + sigma * norm * noise) / len(g)


exercise(
    "private-mean",
    "private_mean(g, norm, sigma, noise) -> (P,), the mean over N clients' gradients g (N, P), each clipped to `norm`, "
    "with Gaussian noise of standard deviation sigma · norm on their sum; noise (P,) are standard normal draws",
    private_mean, private_cases,
    [
        ("no noise", lambda g, norm, sigma, noise: clipped(g, norm).mean(0),
         ["who knows the others' gradients reads the last one off yours.", "add sigma · norm · noise to the sum."]),
        ("not clipped", lambda g, norm, sigma, noise: (g.sum(0) + sigma * norm * noise) / len(g),
         ["one long gradient stands out of your noise.", "clip each row before the sum."]),
        ("the sum clipped", lambda g, norm, sigma, noise: (clipped(g.sum(0)[None], norm)[0] + sigma * norm * noise)
         / len(g), ["one client may still turn your sum wherever he likes.", "clip each row, then sum."]),
        ("noise, then the clip",
         lambda g, norm, sigma, noise: clipped(g + sigma * norm * noise, norm).mean(0),
         ["yours clips the noise as well.", "clip, sum, and add the noise last."]),
        ("noise on the mean", lambda g, norm, sigma, noise: clipped(g, norm).mean(0) + sigma * norm * noise,
         ["your noise is N times too loud.", "on the sum, before you divide by N."]),
        ("sigma alone", lambda g, norm, sigma, noise: (clipped(g, norm).sum(0) + sigma * noise) / len(g),
         ["your noise does not grow with what one client may add.", "sigma times norm."]),
        ("noise as long as the gradient",
         lambda g, norm, sigma, noise: (clipped(g, norm).sum(0) + sigma * noise
                                        * clipped(g, norm).sum(0).norm() / len(noise) ** 0.5) / len(g),
         ["your noise depends on the gradients, and so tells of them.", "sigma · norm, known before any gradient."]),
    ],
)


def boost_cases(g: torch.Generator) -> Iterator[Case]:
    for n, eta in ((10, 0.5), (5, 0.1)):
        yield torch.randn(6, generator=g), 0.3 * torch.randn(n - 1, 6, generator=g), eta


def to_send(own: Tensor, others: Tensor, eta: float) -> Tensor:
    return (len(others) + 1) / eta * own - others.sum(0)


exercise(
    "model-replacement",
    "to_send(own, others, eta) -> (P,), what an attacker sends so that θ + η/n Σ Δ becomes θ + own, his own model, "
    "though the other n − 1 clients send others (n − 1, P)",
    to_send, boost_cases,
    [
        ("no-op", lambda own, others, eta: own,
         ["yours is one update among n.", "set η/n (sent + Σ others) = own, and solve for sent."]),
        ("the others forgotten", lambda own, others, eta: (len(others) + 1) / eta * own,
         ["that is γ = n/η: it holds where the others send nothing.", "take their sum off."]),
        ("η forgotten", lambda own, others, eta: (len(others) + 1) * own - others.sum(0),
         ["the server goes only η of the way.", "n/η times own."]),
        ("n − 1 clients", lambda own, others, eta: len(others) / eta * own - others.sum(0),
         ["the attacker is one of the n.", "n = len(others) + 1."]),
        ("mean for sum", lambda own, others, eta: (len(others) + 1) / eta * own - others.mean(0),
         ["n times their mean is in the server's sum.", "the sum of the others, not the mean."]),
        ("the others boosted", lambda own, others, eta: (len(others) + 1) / eta * (own - others.sum(0)),
         ["the others' sum is in the server's already, with the same factor as yours.", "n/η goes with own alone."]),
        ("sign error", lambda own, others, eta: (len(others) + 1) / eta * own + others.sum(0),
         ["with yours the others count twice.", "minus their sum."]),
    ],
)


def trim_cases(g: torch.Generator) -> Iterator[Case]:
    for n, cut in ((5, 1), (11, 3)):
        updates = torch.randn(n, 4, generator=g)
        updates[1] += torch.tensor([60.0, -40.0, 50.0, 90.0])
        yield updates, cut


def trimmed_mean(updates: Tensor, cut: int) -> Tensor:
    return updates.sort(0).values[cut : len(updates) - cut].mean(0)


def shortest(updates: Tensor, cut: int) -> Tensor:
    """The mean of the updates that are neither among the `cut` longest nor among the `cut` shortest."""
    return updates[updates.norm(dim=1).argsort()[cut : len(updates) - cut]].mean(0)


exercise(
    "trimmed-mean",
    "trimmed_mean(updates, cut) -> (P,), of each weight the mean without its `cut` smallest and its `cut` largest "
    "values; updates (n, P), a row for each client",
    trimmed_mean, trim_cases,
    [
        ("no-op", lambda updates, cut: updates.mean(0),
         ["one client moves yours as far as he likes.", "sort the values of each weight, and leave out both ends."]),
        ("one end", lambda updates, cut: updates.sort(0).values[: len(updates) - cut].mean(0),
         ["yours leaves the smallest in.", "from `cut` to n − `cut`."]),
        ("whole clients", shortest,
         ["a client may be usual in one weight and strange in another.", "sort each weight by itself: sort(0)."]),
        ("sorted within a client", lambda updates, cut: updates.sort(1).values[cut : len(updates) - cut].mean(0),
         ["yours mixes the weights.", "over the clients: sort(0), not sort(1)."]),
        ("not sorted", lambda updates, cut: updates[cut : len(updates) - cut].mean(0),
         ["yours leaves out the first and the last client.", "sort before you cut."]),
        ("divided by n", lambda updates, cut: trimmed_mean(updates, cut) * (1 - 2 * cut / len(updates)),
         ["what is left out counts as 0 in yours.", "divide by the number that is kept, n − 2 · cut."]),
        ("the ends for the middle", lambda updates, cut: torch.cat(
            [updates.sort(0).values[:cut], updates.sort(0).values[len(updates) - cut:]]).mean(0),
         ["yours is the mean of what should go.", "keep the middle."]),
    ],
)


def disguise_cases(g: torch.Generator) -> Iterator[Case]:
    for c in (2.0, 0.5):
        size = torch.tensor([[0.1], [1.0], [5.0]])
        yield size * torch.randn(3, 8, generator=g), 3 * torch.randn(3, 8, generator=g), c


def disguised(updates: Tensor, noise: Tensor, c: float) -> Tensor:
    return updates + c * updates.norm(dim=1, keepdim=True) * noise / noise.norm(dim=1, keepdim=True)


exercise(
    "disguised",
    "disguised(updates, noise, c) -> (n, P), each update with noise added whose length is c times the update's own; "
    "noise (n, P) are Gaussian draws",
    disguised, disguise_cases,
    [
        ("no-op", lambda updates, noise, c: updates, ["nothing is hidden.", "add c · ‖Δ‖ / ‖noise‖ times the noise."]),
        ("any length", lambda updates, noise, c: updates + c * noise,
         ["a short update drowns in your noise.", "scale each row of noise to the length of its update first."]),
        ("the noise's own length left in",
         lambda updates, noise, c: updates + c * updates.norm(dim=1, keepdim=True) * noise,
         ["your noise is longer than c times the update.", "divide it by its own length."]),
        ("one length for all", lambda updates, noise, c: updates + c * updates.norm() * noise / noise.norm(),
         ["a long update decides about the others' noise.", "a length for each row: norm(dim=1, keepdim=True)."]),
        ("noise alone", lambda updates, noise, c: disguised(updates, noise, c) - updates,
         ["your update is gone.", "updates plus the noise."]),
        ("weight by weight", lambda updates, noise, c: updates + c * updates.abs() * noise,
         ["where an update is 0 yours stays 0, and the pattern shows.", "one length for a whole row."]),
        ("squared length", lambda updates, noise, c: updates
         + c * updates.square().sum(1, keepdim=True) * noise / noise.square().sum(1, keepdim=True),
         ["yours takes the squares of the lengths.", "the norm, with the root."]),
    ],
)
