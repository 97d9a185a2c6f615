"""Answers without numbers: what a vote is worth, a normal out of votes, and a step that keeps its distance."""
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.balls import column
from kit.lab.checks import Case, exercise


def cosine_cases(g: torch.Generator) -> Iterator[Case]:
    for d in (200, 3072, 150_528):
        yield d, float(0.05 + 0.7 * torch.rand((), generator=g))


def votes_needed(d: int, cosine: float) -> float:
    return math.pi / 2 * (d - 1) * cosine**2 / (1 - cosine**2)


exercise(
    "votes-needed", "votes_needed(d, cosine) -> B, from cosine = (1 + π/2 · (d − 1)/B)^(−1/2), with which B votes in d "
    "dimensions give a normal",
    votes_needed, cosine_cases,
    [
        ("no-op", lambda d, c: float(d),
         ["as many votes as pixels, whatever the cosine.", "square the equation and solve it for B."]),
        ("cosine for its square", lambda d, c: math.pi / 2 * (d - 1) * c / (1 - c),
         ["is the root gone?", "cos² = 1/(1 + π/2 (d − 1)/B)."]),
        ("upside down", lambda d, c: math.pi / 2 * (d - 1) * (1 - c**2) / c**2,
         ["the better the normal, the fewer votes yours takes.", "B = π/2 (d − 1) cos²/(1 − cos²)."]),
        ("without the signs", lambda d, c: (d - 1) * c**2 / (1 - c**2),
         ["that would do if each answer were a number.", "a sign says less than a number: the factor is π/2."]),
        ("of the whole", lambda d, c: math.pi / 2 * (d - 1) * c**2,
         ["for a cosine of 1 no number of votes is enough: what does yours say?", "divide by 1 − cos²."]),
    ],
)


def vote_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((50, 4), (200, 12)):
        u = F.normalize(torch.randn(n, d, generator=g), dim=1)
        yield u, ((u @ torch.randn(d, generator=g)) + 0.3 > 0).float() * 2 - 1


def centred(u: Tensor, phi: Tensor) -> Tensor:
    return (phi - phi.mean()) @ u / len(u)


exercise(
    "centred-votes", "centred_votes(u, phi) -> (d,), the mean over the votes of (φ − mean φ) u, for directions u (B, "
    "d) and "
    "answers φ (B,), 1 or −1",
    centred, vote_cases,
    [
        ("no-op", lambda u, phi: u.mean(0), ["the answers do not appear.", "each direction counts by its vote."]),
        ("plain", lambda u, phi: phi @ u / len(u),
         ["where most votes agree, yours is mostly the mean of the directions.", "take the mean of φ off first."]),
        ("sum for mean", lambda u, phi: centred(u, phi) * len(u), ["yours grows with the votes.", "divide by B."]),
        ("sign error", lambda u, phi: -centred(u, phi),
         ["it points to where the answer is −1.", "φ minus its mean, times u."]),
        ("yes alone", lambda u, phi: u[phi > 0].mean(0),
         ["the votes against say as much as those for.", "keep all: (φ − mean φ) times u."]),
        ("added", lambda u, phi: (phi + phi.mean()) @ u / len(u),
         ["the mean counts twice.", "take it off: φ − mean φ."]),
    ],
)


def sphere_cases(g: torch.Generator) -> Iterator[Case]:
    for n, r in ((4, 2.0), (6, 0.7)):
        delta = torch.randn(n, 1, 4, 4, generator=g)
        step = torch.rand(n, 1, 1, 1, generator=g) * torch.randn(n, 1, 4, 4, generator=g)
        delta = r * delta / column(delta.flatten(1).norm(dim=1), delta)
        step[: n // 2] = -0.5 * delta[: n // 2]  # straight inwards
        yield delta, step, r


def onto_sphere(delta: Tensor, step: Tensor, r: float) -> Tensor:
    v = delta + step
    return r * v / column(v.flatten(1).norm(dim=1), v)


def into_ball(delta: Tensor, step: Tensor, r: float) -> Tensor:
    v = delta + step
    return v * column((r / v.flatten(1).norm(dim=1)).clamp_max(1), v)


exercise(
    "sphere-step", "sphere_step(delta, step, r) -> δ + step, brought back to the sphere of radius r, image by image",
    onto_sphere, sphere_cases,
    [
        ("no-op", lambda delta, step, r: delta,
         ["no step was taken.", "add it, then divide by the norm and multiply by r."]),
        ("not brought back", lambda delta, step, r: delta + step,
         ["it has left the sphere.", "r (δ + step)/‖δ + step‖."]),
        ("one norm for the batch", lambda delta, step, r: r * (delta + step) / (delta + step).norm(),
         ["the images share one radius.", "the norm of each image: flatten(1).norm(dim=1)."]),
        ("into the ball", into_ball,
         ["what falls inside the sphere stays there.", "keep the norm at r, also from inside."]),
        ("step alone", lambda delta, step, r: onto_sphere(0 * delta, step, r),
         ["where it was is forgotten.", "δ + step."]),
    ],
)
