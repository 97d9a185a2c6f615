"""Seeing what a unit wants: what a picture costs, the picture of a linear unit, and what its top images agree in."""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.explain import purity
from kit.lab.checks import Case, exercise


def picture_cases(g: torch.Generator) -> Iterator[Case]:
    for n, h, w in ((2, 5, 7), (3, 8, 6)):
        yield (torch.rand(n, 3, h, w, generator=g),)


def steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """To the pixel below and to the one on the right, zero where there is none."""
    return F.pad(x.diff(dim=2), (0, 0, 0, 1)), F.pad(x.diff(dim=3), (0, 1))


def lengths(x: Tensor) -> Tensor:
    down, across = steps(x)
    return (down.square() + across.square()).sqrt()


def inner(x: Tensor) -> Tensor:
    """The lengths of the pixels that have both neighbours."""
    return lengths(x)[:, :, :-1, :-1]


def around(x: Tensor) -> Tensor:
    """The lengths where the image goes on at its other side."""
    return ((x.roll(-1, 2) - x).square() + (x.roll(-1, 3) - x).square()).sqrt()


exercise(
    "total-variation",
    "total_variation(x) -> (N,), Σ √(Δ₁² + Δ₂²) over the pixels and channels of images x (N, C, H, W), with Δ₁ and Δ₂ "
    "the steps to the pixel below and to the one on the right, 0 where there is none",
    lambda x: lengths(x).sum((1, 2, 3)), picture_cases,
    [
        ("no-op", lambda x: x.abs().sum((1, 2, 3)),
         ["yours does not look at neighbours.", "x.diff(dim=2) and x.diff(dim=3), padded with a zero."]),
        ("sum of sizes", lambda x: sum(v.abs().sum((1, 2, 3)) for v in steps(x)),
         ["yours is |Δ₁| + |Δ₂|: a slanted edge costs more than an upright one.", "the length, √(Δ₁² + Δ₂²)."]),
        ("squares", lambda x: lengths(x).square().sum((1, 2, 3)),
         ["yours are squares: a sharp edge costs more than a soft one as high.", "the root, pixel by pixel."]),
        ("root of the sum", lambda x: lengths(x).square().sum((1, 2, 3)).sqrt(),
         ["your root is taken once, of the whole image.", "the root pixel by pixel, then the sum."]),
        ("around the edge", lambda x: around(x).sum((1, 2, 3)),
         ["yours compares the last row with the first.", "no step beyond the last row and column: pad, do not roll."]),
        ("edges left out", lambda x: inner(x).sum((1, 2, 3)),
         ["the last row and the last column are missing.", "they have one neighbour each: the other step is 0."]),
        ("mean", lambda x: lengths(x).mean((1, 2, 3)), ["yours is a mean.", "the sum over pixels and channels."]),
        ("colours together", lambda x: lengths(x).square().sum(1).sqrt().sum((1, 2)),
         ["yours takes one length over all channels.", "each channel by itself, then the sum."]),
    ],
)


def direction_cases(g: torch.Generator) -> Iterator[Case]:
    for K, d in ((3, 8), (5, 12)):
        W, v = torch.randn(K, d, generator=g), torch.zeros(K)
        v[0], v[2] = 1.0, -1.0
        yield W, v, 0.5
        yield W, 2 * torch.randn(K, generator=g), 5.0


def best_picture(W: Tensor, v: Tensor, lam: float) -> Tensor:
    return (0.5 + v @ W / (2 * lam)).clamp(0, 1)


exercise(
    "linear-picture",
    "linear_picture(W, v, lam) -> (d,), the x in [0, 1] at which ⟨v, W x⟩ − λ‖x − ½‖² is largest, for weights W (K, d) "
    "of K classes and a direction v (K,)",
    best_picture, direction_cases,
    [
        ("no-op", lambda W, v, lam: torch.full_like(W[0], 0.5),
         ["that is grey: λ‖x − ½‖² alone.", "the weights of the direction are v @ W."]),
        ("not cut", lambda W, v, lam: 0.5 + v @ W / (2 * lam),
         ["some of your values are no pixels.", "`.clamp(0, 1)`: every pixel has an optimum of its own."]),
        ("from black", lambda W, v, lam: (v @ W / (2 * lam)).clamp(0, 1),
         ["yours stays near black, not near grey.", "½ + …, then cut."]),
        ("factor 2", lambda W, v, lam: (0.5 + v @ W / lam).clamp(0, 1),
         ["the derivative of the square is missing.", "w − 2λ (x − ½) = 0."]),
        ("sign error", lambda W, v, lam: best_picture(W, -v, lam),
         ["yours is what the direction wants least.", "½ + w / 2λ."]),
        ("one class", lambda W, v, lam: best_picture(W, F.one_hot(v.argmax(), len(v)).to(v), lam),
         ["yours is the picture of one class.", "the direction has parts at other classes: v @ W."]),
        ("black or white", lambda W, v, lam: (v @ W > 0).to(W),
         ["yours is the picture without λ.", "λ keeps it near grey: ½ + w / 2λ, cut to [0, 1]."]),
        ("unit length", lambda W, v, lam: best_picture(W, v / v.norm(), lam),
         ["v counts with its length.", "do not normalise it."]),
    ],
)


def feature_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d, top in ((80, 6, 10), (60, 5, 8)):
        phi = torch.randn(n, d, generator=g)
        labels = (phi[:, :4] + 0.7 * torch.randn(n, 4, generator=g)).argmax(1)
        yield 1 + phi * (0.5 + 2 * torch.rand(n, 1, generator=g)), labels, torch.randn(9, d, generator=g), top


def counts(phi: Tensor, labels: Tensor, v: Tensor, top: int) -> Tensor:
    """How many of the top images have each label, (K, V)."""
    best = (phi @ v.T).topk(top, 0).indices
    return torch.stack([(labels[best] == k).float().sum(0) for k in labels.unique()])


exercise(
    "top-purity",
    "top_purity(phi, labels, v, top) -> (V,), for each direction v (V, D) the largest share of one label among the "
    "`top` rows of phi (N, D) with the largest ⟨φ, v⟩; labels (N,)",
    purity, feature_cases,
    [
        ("no-op", lambda phi, labels, v, top: (labels.bincount().max() / len(labels)).repeat(len(v)),
         ["that is how common the commonest label is in all images.", "look at the top images of each direction."]),
        ("lowest images", lambda phi, labels, v, top: purity(phi, labels, -v, top),
         ["those images answer least.", "(phi @ v.T).topk(top, 0)."]),
        ("largest in size", lambda phi, labels, v, top: purity((phi @ v.T).abs(), labels, torch.eye(len(v)), top),
         ["an image that answers −9 is no top image.", "no absolute value."]),
        ("by cosine", lambda phi, labels, v, top: purity(phi / phi.norm(dim=1, keepdim=True), labels, v, top),
         ["yours divides by the length of φ.", "the answer ⟨φ, v⟩ itself orders the images."]),
        ("count", lambda phi, labels, v, top: counts(phi, labels, v, top).amax(0),
         ["yours is a number of images.", "divide by top."]),
        ("agreeing pairs", lambda phi, labels, v, top: (counts(phi, labels, v, top) / top).square().sum(0),
         ["yours is the chance that two of the top images agree.", "the largest share of one label."]),
        ("the first's label", lambda phi, labels, v, top: (
            labels[(phi @ v.T).topk(top, 0).indices] == labels[(phi @ v.T).argmax(0)]).double().mean(0),
         ["the very first image decides in yours.", "the label that most of the top images have."]),
    ],
)


def code_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((12, 6), (20, 5)):
        u = 0.5 + torch.randn(n, d, generator=g)
        v = (u + 0.6 * torch.randn(n, d, generator=g)) * (0.3 + 3 * torch.rand(n, 1, generator=g))
        v[-1] = -2 * u[0]
        yield u[:-2], v


def cosines(u: Tensor, v: Tensor) -> Tensor:
    return F.normalize(u, dim=1) @ F.normalize(v, dim=1).T


exercise(
    "nearest-picture",
    "nearest_picture(u, v) -> (N,), for each row of u (N, D) the number of the row of v (M, D) that is nearest by "
    "cosine",
    lambda u, v: cosines(u, v).argmax(1), code_cases,
    [
        ("no-op", lambda u, v: torch.arange(len(u)),
         ["yours takes for granted what is to be found.", "argmax over the rows of v."]),
        ("not normalised", lambda u, v: (u @ v.T).argmax(1),
         ["a long row of v is near to everything in yours.", "divide each row by its length."]),
        ("Euclidean", lambda u, v: torch.cdist(u, v).argmin(1),
         ["yours is the distance: two pictures of unlike strength are far apart.",
          "the cosine: divide each row by its length, then the inner product."]),
        ("farthest", lambda u, v: cosines(u, v).argmin(1), ["a large cosine is near.", "argmax."]),
        ("by size", lambda u, v: cosines(u, v).abs().argmax(1),
         ["a row that points the other way is not near.", "no absolute value."]),
        ("u to zero mean", lambda u, v: cosines(u - u.mean(0), v - v.mean(0)).argmax(1),
         ["yours takes the mean row off first.", "the rows as they come."]),
        ("cosine itself", lambda u, v: cosines(u, v).amax(1), ["yours is how near.", "which one: argmax."]),
    ],
)
