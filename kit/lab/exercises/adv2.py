"""ADV²: how far two maps are apart, the loss with two aims, why ReLUs must be smoothed, and where two maps overlap."""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.explain import iou
from kit.fire.adv2.descent import map_distance, unit
from kit.lab.checks import Case, exercise


def pair_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (3, 5):
        yield 4 * torch.rand(n, 6, 5, generator=g) - 1, 2 * torch.rand(n, 6, 5, generator=g)


def ranged(R: Tensor) -> Tensor:
    """Scaled by the batch's range instead of each map's own."""
    return (R - R.min()) / (R.max() - R.min())


exercise(
    "map-distance",
    "map_distance(a, b) -> (N,), the mean square of the difference of two maps (N, H, W), each map first "
    "scaled to [0, 1]",
    map_distance, pair_cases,
    [
        ("no-op", lambda a, b: torch.zeros(len(a)),
         ["any two maps agree for yours.", "scale each, subtract, square, mean."]),
        ("not scaled", lambda a, b: (a - b).square().mean((1, 2)),
         ["maps of two methods have two scales.", "(R − min R) / (max R − min R) first, for each map."]),
        ("scaled over the batch", lambda a, b: (ranged(a) - ranged(b)).square().mean((1, 2)),
         ["an image's distance depends on the others in the batch.",
          "each map by its own range: amin((1, 2), keepdim=True)."]),
        ("sum for mean", lambda a, b: (unit(a) - unit(b)).square().sum((1, 2)),
         ["yours grows with the number of pixels.", "λ was chosen for the mean over the pixels."]),
        ("absolute value for square", lambda a, b: (unit(a) - unit(b)).abs().mean((1, 2)),
         ["that is the l1 measure of the evaluation.", "the loss takes the square."]),
        ("divided by the maximum", lambda a, b: (a / a.amax((1, 2), keepdim=True) - b / b.amax((1, 2), keepdim=True))
         .square().mean((1, 2)), ["your maps do not begin at 0.", "subtract the least pixel first."]),
    ],
)


def loss_cases(g: torch.Generator) -> Iterator[Case]:
    for k, lam in ((2, 10.0), (3, 1.0)):
        yield torch.randn(4, 5, generator=g), torch.randint(5, (4,), generator=g), torch.rand(k, 4, generator=g), lam


def joint(z: Tensor, target: Tensor, distances: Tensor, lam: float) -> Tensor:
    return F.cross_entropy(z, target, reduction="none") + lam * distances.sum(0)


exercise(
    "joint-loss",
    "joint_loss(z, target, distances, lam) -> (N,), to be minimised: the cross-entropy of the target plus λ "
    "times the sum of the distances (E, N) of E interpreters' maps",
    joint, loss_cases,
    [
        ("maps ignored", lambda z, target, distances, lam: joint(z, target, 0 * distances, lam),
         ["yours attacks the classifier alone.", "add λ Σ_e distances_e."]),
        ("sign error", lambda z, target, distances, lam: -F.cross_entropy(z, target, reduction="none")
         + lam * distances.sum(0), ["yours flees from the target.", "targeted and minimised: plus the cross-entropy."]),
        ("maps pushed away", lambda z, target, distances, lam: joint(z, target, -distances, lam),
         ["yours pushes the maps away from those wanted.", "plus λ: the distances are to be small."]),
        ("mean for sum", lambda z, target, distances, lam: joint(z, target, distances / len(distances), lam),
         ["yours pays less for each interpreter the more there are.", "the sum over the interpreters."]),
        ("one interpreter", lambda z, target, distances, lam: joint(z, target, distances[:1], lam),
         ["yours looks at the first interpreter alone.", "sum over all of them: distances.sum(0)."]),
        ("mean over the batch", lambda z, target, distances, lam: F.cross_entropy(z, target) + lam * distances.sum(0),
         ["an image's loss depends on the others in the batch.", 'cross_entropy(…, reduction="none").']),
    ],
)


def relu_cases(g: torch.Generator) -> Iterator[Case]:
    for tau in (0.01, 1.0):
        yield 2 * torch.randn(20, generator=g), tau


def smooth_slope(z: Tensor, tau: float) -> Tensor:
    return (1 + z / (z.square() + tau).sqrt()) / 2


exercise(
    "smooth-relu", "smooth_relu_slope(z, tau) -> the derivative of h(z) = (z + √(z² + τ)) / 2 by z",
    smooth_slope, relu_cases,
    [
        ("no-op", lambda z, tau: (z > 0).to(z.dtype),
         ["that is the ReLU's own slope: a step, whose derivative is zero almost everywhere.",
          "differentiate the root: (1 + z/√(z² + τ)) / 2."]),
        ("the function itself", lambda z, tau: (z + (z.square() + tau).sqrt()) / 2,
         ["that is h, not its derivative.", "d/dz √(z² + τ) = z/√(z² + τ)."]),
        ("no half", lambda z, tau: 2 * smooth_slope(z, tau), ["your slope ends at 2.", "the half stays."]),
        ("sign error", lambda z, tau: 1 - smooth_slope(z, tau), ["yours falls where h bends upwards.", "plus z/√(…)."]),
        ("root forgotten", lambda z, tau: (1 + z / (z.square() + tau)) / 2,
         ["yours is not bounded by 0 and 1.", "divide by the root of z² + τ."]),
    ],
)


def chosen_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (3, 4):
        a = torch.rand(n, 8, 8, generator=g)
        yield a, (a + 0.6 * torch.rand(n, 8, 8, generator=g)), 0.25


def overlap(a: Tensor, b: Tensor, share: float) -> tuple[Tensor, int]:
    """|A ∩ B|, and the size of A and of B."""
    k = round(share * a[0].numel())
    A, B = (torch.zeros_like(m.flatten(1)).scatter(1, m.flatten(1).topk(k).indices, 1.0).bool() for m in (a, b))
    return (A & B).sum(1), k


exercise(
    "top-overlap", "top_overlap(a, b, share) -> (N,), |A ∩ B| / |A ∪ B| of the top `share` of the pixels of two maps",
    lambda a, b, share: iou(a, b, share=share), chosen_cases,
    [
        ("no-op", lambda a, b, share: torch.ones(len(a)),
         ["any two maps agree for yours.", "choose the top pixels of each."]),
        ("Dice", lambda a, b, share: overlap(a, b, share)[0] / overlap(a, b, share)[1],
         ["yours divides by the size of one of the sets: that is Dice's coefficient.",
          "the union is larger: |A ∪ B|."]),
        ("least pixels", lambda a, b, share: iou(-a, -b, share=share),
         ["you chose the least relevant pixels.", "the largest values: topk, not its opposite."]),
        ("of the image", lambda a, b, share: overlap(a, b, share)[0] / a[0].numel(),
         ["yours divides by the whole image.", "divide by the union."]),
        ("union for intersection", lambda a, b, share: 1 - iou(a, b, share=share),
         ["that is the share that is not common.", "the intersection above the line."]),
    ],
)


def run_cases(g: torch.Generator) -> Iterator[Case]:
    for steps, n in ((8, 12), (15, 20)):
        p = torch.rand(steps, n, generator=g)
        p[:, :3] *= 0.4  # never sure
        yield p, torch.rand(steps, n, generator=g), 0.5


def kept(p: Tensor, distance: Tensor, sure: float) -> Tensor:
    nearest = torch.where(p >= sure, distance, torch.inf).argmin(0)
    return torch.where((p >= sure).any(0), nearest, p.argmax(0))


exercise(
    "kept-iterate", "kept_iterate(p, distance, sure) -> (N,), the step at which the map is nearest among those with p "
    "≥ sure, and "
    "the step of most p where there is none; p and distance (steps, N)",
    kept, run_cases,
    [
        ("no-op", lambda p, distance, sure: torch.zeros(p.shape[1], dtype=torch.int64),
         ["the first step is seldom the best.", "argmin over the steps, where p ≥ sure."]),
        ("last step", lambda p, distance, sure: torch.full((p.shape[1],), len(p) - 1),
         ["a descent does not end at its best point.", "look back over all steps."]),
        ("nearest map", lambda p, distance, sure: distance.argmin(0),
         ["some of those images are not of the target class at all.", "only steps with p ≥ sure count."]),
        ("most likely", lambda p, distance, sure: p.argmax(0),
         ["the map plays no part.", "p has to be large enough, no more: then the nearest map."]),
        ("never sure forgotten", lambda p, distance, sure: torch.where(p >= sure, distance, torch.inf).argmin(0),
         ["where no step is sure, yours takes the first.", "there the step of most p."]),
        ("first that is sure", lambda p, distance, sure: torch.where(
            (p >= sure).any(0), (p >= sure).int().argmax(0), p.argmax(0)),
         ["the first that is sure is not the nearest.", "argmin of the distance among them."]),
    ],
)
