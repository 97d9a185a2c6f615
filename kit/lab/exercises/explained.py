"""Self-explaining networks: what θ leaves over of the gradient, and how far an explanation moves."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise


def parts(g: torch.Generator) -> Iterator[Case]:
    for n in (3, 5):
        yield (torch.randn(n, 4, 6, generator=g), torch.randn(n, 4, 3, generator=g), torch.randn(n, 3, 6, generator=g))


def rest(df: Tensor, theta: Tensor, dh: Tensor) -> Tensor:
    return df - torch.einsum("nck,nkd->ncd", theta, dh)


exercise(
    "left-over",
    "left_over_loss(df, theta, dh) -> (N,): the norm of ∇f − θᵀJ_h over all classes and values of an image, from ∇f "
    "(N, K, D), θ (N, K, k) and J_h (N, k, D)",
    lambda df, theta, dh: rest(df, theta, dh).flatten(1).norm(dim=1), parts,
    [
        ("no-op", lambda df, theta, dh: df.new_zeros(len(df)),
         ["no network would pay anything.", "subtract the product θJ_h (K × D) of each image, then the norm."]),
        ("sign error", lambda df, theta, dh: rest(df, -theta, dh).flatten(1).norm(dim=1),
         ["a linear model pays twice its weights for yours, and should pay nothing.", "∇f minus θᵀJ_h."]),
        ("θ left out", lambda df, theta, dh: df.flatten(1).norm(dim=1),
         ["that is a penalty on the gradient: it wants f flat, whatever θ says.", "subtract θᵀJ_h first."]),
        ("over the batch", lambda df, theta, dh: rest(df, theta, dh).norm().expand(len(df)),
         ["an image's loss depends on the others in the batch.", "flatten(1), then norm(dim=1)."]),
        ("squared", lambda df, theta, dh: rest(df, theta, dh).flatten(1).square().sum(1),
         ["yours is the square of what is asked for.", "the norm, not its square."]),
        ("class by class", lambda df, theta, dh: rest(df, theta, dh).norm(dim=2).mean(1),
         ["you take the norm of each class, and then the mean.", "one norm over classes and values together."]),
    ],
)


def moved(g: torch.Generator) -> Iterator[Case]:
    for n, shape in ((3, (5,)), (4, (6, 6))):
        e, x = torch.randn(n, *shape, generator=g), torch.rand(n, 1, 6, 6, generator=g)
        yield e, e + 0.3 * torch.randn(n, *shape, generator=g), x, x + 0.1 * torch.randn(n, 1, 6, 6, generator=g)


def size(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1)


exercise(
    "relative-change",
    "relative_change(e, e2, x, x2) -> (N,): the change of the explanation over its length, for each unit of ‖x2 − x‖₂",
    lambda e, e2, x, x2: size(e2 - e) / size(e) / size(x2 - x), moved,
    [
        ("no-op", lambda e, e2, x, x2: torch.zeros(len(x)),
         ["no explanation ever moves for yours.", "‖e2 − e‖ / ‖e‖ / ‖x2 − x‖."]),
        ("not relative", lambda e, e2, x, x2: size(e2 - e) / size(x2 - x),
         ["multiply an explanation by ten, and your number grows tenfold.", "divide by ‖e‖."]),
        ("over the batch", lambda e, e2, x, x2: ((e2 - e).norm() / e.norm() / (x2 - x).norm()).expand(len(x)),
         ["an image's number depends on the others.", "flatten(1), then norm(dim=1), three times."]),
        ("over the moved one", lambda e, e2, x, x2: size(e2 - e) / size(e2) / size(x2 - x),
         ["you divide by the length of the explanation after the change.", "by ‖E(x)‖, where it began."]),
        ("largest pixel", lambda e, e2, x, x2: size(e2 - e) / size(e) / (x2 - x).flatten(1).abs().amax(1),
         ["l∞ bounds the search; the ratio has another norm.", "‖x2 − x‖₂ in the denominator."]),
        ("difference of lengths", lambda e, e2, x, x2: (size(e2) - size(e)).abs() / size(e) / size(x2 - x),
         ["an explanation that turns and keeps its length has not moved for you.", "the length of the difference."]),
    ],
)
