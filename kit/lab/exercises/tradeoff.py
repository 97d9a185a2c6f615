"""Many networks on one line: slopes by chance, distances on common images, families drawn whole. NumPy arrays."""
from collections.abc import Iterator

import numpy as np
import torch

from kit.lab.checks import Case, exercise


def points(g: torch.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """log₁₀ errors and mean distances of n networks."""
    error = -2 + torch.rand(n, generator=g).double()
    reach = 0.3 + 0.1 * error + 0.05 * torch.rand(n, generator=g).double()
    return error.numpy(), reach.numpy()


def line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least-squares slopes of y over x, along the last axis."""
    dx = x - x.mean(-1, keepdims=True)
    return (dx * y).sum(-1) / (dx * dx).sum(-1)


def order_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (8, 18):
        orders = torch.stack([torch.randperm(n, generator=g) for _ in range(12)])
        yield *points(g, n), orders.numpy()


exercise(
    "shuffled-slopes",
    "shuffled_slopes(error, reach, orders) -> (T,), the least-squares slopes of the distances over the log errors when "
    "network i is given the error of network orders[t, i]; error and reach (M,), orders (T, M) int",
    lambda error, reach, orders: line(error[orders], reach), order_cases,
    [
        ("no-op", lambda error, reach, orders: np.repeat(line(error, reach), len(orders)),
         ["your slopes are all the one that is there.", "error[orders], (T, M): the distances stay where they are."]),
        ("one order", lambda error, reach, orders: np.repeat(line(error[orders[0]], reach), len(orders)),
         ["yours shuffles once.", "a slope for each row of orders."]),
        ("axes exchanged", lambda error, reach, orders: line(reach[None].repeat(len(orders), 0), error[orders]),
         ["yours is how the error grows with the distance.", "Σ dx dy / Σ dx², x the error."]),
        ("correlation", lambda error, reach, orders: line(error[orders], reach) * error.std() / reach.std(),
         ["yours lies between −1 and 1: a correlation.", "divide by Σ dx², not by the root of both."]),
        ("through the origin", lambda error, reach, orders: (error[orders] * reach).sum(1) / (error**2).sum(),
         ["your lines go through the origin.", "take the means off first."]),
        ("the way back", lambda error, reach, orders: line(error[orders.argsort(1)], reach),
         ["network orders[t, i] is given the error of network i in yours.", "error[orders[t]]: place i of it is i's."]),
    ],
)


def common_cases(g: torch.Generator) -> Iterator[Case]:
    for M, N in ((3, 30), (5, 60)):
        hard = torch.rand(N, generator=g)
        right = torch.rand(M, N, generator=g) > 0.7 * hard * torch.linspace(0.3, 1, M)[:, None]
        right[:, :3], right[0, 3], right[1, 3], right[:, 4] = True, False, True, False
        far = (0.3 * (1.2 - hard) * torch.rand(M, N, generator=g)).where(right, torch.tensor(0.0))
        yield right.numpy(), far.double().numpy()


exercise(
    "common-distance",
    "common_distance(right, far) -> (M,), the mean distance of each network over the images that all networks have "
    "right; right (M, N) bool, far (M, N)",
    lambda right, far: far[:, right.all(0)].mean(1), common_cases,
    [
        ("no-op", lambda right, far: far.mean(1),
         ["where a network is wrong the distance is 0: nothing is attacked.", "right.all(0) says which images."]),
        ("each on its own", lambda right, far: (far * right).sum(1) / right.sum(1),
         ["the weak network is judged on easy images in yours.", "the same images for all: right.all(0)."]),
        ("any for all", lambda right, far: far[:, right.any(0)].mean(1),
         ["yours takes images that one of the networks has right.", "all of them: right.all(0), not any."]),
        ("of all images", lambda right, far: (far * right.all(0)).mean(1),
         ["yours divides by the number of all images.", "by that of the common ones: far[:, common].mean(1)."]),
        ("median", lambda right, far: np.median(far[:, right.all(0)], 1),
         ["yours is the median.", "the line of the chapter is through means."]),
        ("the others", lambda right, far: far[:, ~right.all(0)].mean(1),
         ["those are the images that some network has wrong.", "right.all(0), without ~."]),
    ],
)


def family_cases(g: torch.Generator) -> Iterator[Case]:
    family = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3])
    for _ in range(2):
        error, reach = points(g, len(family))
        drawn = torch.randint(4, (10, 4), generator=g)
        drawn[:, 1] = (drawn[:, 0] + torch.randint(1, 4, (10,), generator=g)) % 4  # two families at least
        drawn[0] = torch.tensor([0, 2, 0, 2])
        yield error, reach + 0.1 * torch.rand(4, generator=g).numpy()[family], family.numpy(), drawn.numpy()


def members(family: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.concatenate([np.flatnonzero(family == f) for f in drawn])


def of_each(error: np.ndarray, reach: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    return np.array([line(error[r], reach[r]) for r in rows])


def within(error: np.ndarray, reach: np.ndarray, family: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    mean = [np.array([v[family == f].mean() for f in range(family.max() + 1)])[family] for v in (error, reach)]
    return of_each(error - mean[0], reach - mean[1], [members(family, d) for d in drawn])


exercise(
    "family-slopes",
    "family_slopes(error, reach, family, drawn) -> (B,), the least-squares slope of the distances over the log errors "
    "of the networks of each row of drawn families, a network as often as its family is drawn; error, reach and "
    "family (M,), drawn (B, F) int",
    lambda error, reach, family, drawn: of_each(error, reach, [members(family, d) for d in drawn]), family_cases,
    [
        ("no-op", lambda error, reach, family, drawn: np.repeat(line(error, reach), len(drawn)),
         ["yours is the slope over all networks, each time.", "the networks of the families in drawn[b]."]),
        ("repeats lost", lambda error, reach, family, drawn: of_each(
            error, reach, [np.flatnonzero(np.isin(family, d)) for d in drawn]),
         ["a family that is drawn twice counts once in yours.",
          "one family of drawn[b] after the other, joined by np.concatenate."]),
        ("networks drawn", lambda error, reach, family, drawn: of_each(error, reach, list(drawn)),
         ["yours takes drawn for numbers of networks.", "np.flatnonzero(family == f) for f of drawn[b]."]),
        ("two of them", lambda error, reach, family, drawn: of_each(
            error, reach, [np.concatenate([members(family, d[:1]), members(family, d[1:2])]) for d in drawn]),
         ["yours looks at two of the families drawn.", "all of drawn[b]."]),
        ("within families", within,
         ["yours takes each family's means off.", "the slope over all networks that are drawn."]),
        ("axes exchanged", lambda error, reach, family, drawn: of_each(
            reach, error, [members(family, d) for d in drawn]),
         ["yours is how the error grows with the distance.", "Σ dx dy / Σ dx², x the error."]),
    ],
)
