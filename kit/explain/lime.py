"""A simple model nearby: LIME and KernelSHAP, one regression with two kernels, and exact Shapley values beside them.

With v(b) the model's answer to a coalition b of pieces (see `games`), both fit

    v(b) ≈ φ₀ + φ·b   by least squares over coalitions,  weighted by π(b),

and differ in the kernel π. LIME takes what is near the whole input, KernelSHAP the one weight that makes φ the Shapley
values. `surrogate` fits a game, `shapley` computes the values exactly; `lime` and `kernel_shap` are the maps (N, H, W)
that every explainer of images returns. `predict` is any model, as in `games`.

Sources: Ribeiro et al., "Why should I trust you?", KDD 2016; Lundberg and Lee, A unified approach to interpreting model
predictions, NeurIPS 2017, theorem 2.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import asking, borrowed, check_images, check_labels, check_model, normal, uniform
from kit.core import generator as fresh
from kit.explain.games import Game, asker, bare, image_game, superpixels, table_game

MOST_EXACT = 12  # players: 4096 coalitions


@dataclass(frozen=True)
class Surrogate:
    """The linear model φ₀ + φ·b: weights φ (M,), its intercept φ₀, how well it fits, and what it says of the input.

    r2 is 1 − Σπ(v − φ₀ − φ·b)² / Σπ(v − v̄)² over the sampled coalitions; `prediction` is the surrogate's answer to the
    whole input, `value` the model's, `game` what was explained.
    """

    weights: Tensor
    intercept: float
    r2: float
    prediction: float
    value: float
    game: Game | None = None


def surrogate(
    game: Game, *, kernel: str = "lime", samples: int = 1000, width: float = 0.25, ridge: float | None = None,
    keep: int | None = None, select: str = "weights", draw: str = "half", generator: torch.Generator | None = None,
) -> Surrogate:
    """φ = argmin Σ_b π(b) (v(b) − φ₀ − φ·b)² + ridge ‖φ‖², over `samples` coalitions.

    kernel="lime":  π(b) = exp(−D²/2·width²), D = 1 − √(|b|/M), the cosine distance of b to the whole input; the first
    coalition is the whole. (The paper has no 2; the authors' code takes the root of its kernel, and so widths agree.)
    ridge is 1 by default. draw="half" keeps each piece with probability ½, "sizes" first draws how many are hidden,
    uniformly from 1 … M (the authors' choices for images and for text). keep: fit anew on that many pieces, chosen by
    the largest |φ| ("weights"), greedily by R² ("forward"), or along the lasso's path ("lasso").
    kernel="shap":  π(b) = (M − 1) / (C(M, |b|) |b| (M − |b|)), which asks for φ₀ = v(∅) and Σφ = v(all) − v(∅) exactly.
    All 2^M − 2 other coalitions are used where samples ≥ 2^M, and φ are the Shapley values; else they are drawn from π
    in pairs of complements. ridge is 0 by default; keep is not for it.
    Coalitions are summed into an (M + 2)² table chunk by chunk, so that memory does not grow with `samples`.
    Cost: `samples` predictions. Raises ValueError for names or sizes that make no sense.
    """
    if kernel not in ("lime", "shap"):
        raise ValueError(f"kernel must be 'lime' or 'shap', not {kernel!r}")
    if select not in ("weights", "forward", "lasso") or draw not in ("half", "sizes"):
        raise ValueError("select must be 'weights', 'forward' or 'lasso', and draw 'half' or 'sizes'")
    M = game.players
    if keep is not None and (kernel == "shap" or not 1 <= keep <= M):
        raise ValueError(f"keep must lie in 1 … {M}, and is not for kernel='shap', whose sum over all pieces is fixed")
    if samples < 2:
        raise ValueError(f"samples must be 2 or more, not {samples}")
    if kernel == "shap":
        return _shap(game, samples, ridge or 0.0, generator)
    table, whole = near_table(game, samples, width, draw, generator)
    chosen = _selected(table, keep, select, samples) if keep is not None and keep < M else torch.arange(M)
    return _solved(table, 1.0 if ridge is None else ridge, chosen, whole, game)


def lime_table(
    predict: Any, row: Any, data: Any, target: int | None = None, *, names: Sequence[str] | None = None,
    samples: int = 1000, width: float | None = None, ridge: float = 1.0, generator: torch.Generator | None = None,
) -> Surrogate:
    """LIME around a row (d,) of a table: f(row + σ∘ξ) ≈ φ₀ + φ·ξ for ξ ~ N(0, I), weighted by exp(−‖ξ‖²/2·width²).

    σ are the standard deviations of the columns of `data` (n, d), so φ_k is the effect of one of them. width is ¾√d by
    default, as the authors have it. Cost: `samples` predictions.
    """
    row, data = np.asarray(row, dtype=np.float64).reshape(-1), np.asarray(data, dtype=np.float64)
    table, answer, chosen = around_table(predict, row, data, target, samples, width, generator)
    game = table_game(predict, row, data.mean(0), chosen, names)
    found = _solved(table, ridge, torch.arange(len(row)), answer, game)
    return replace(found, prediction=found.intercept)  # the row itself is ξ = 0


def shapley(game: Game) -> Tensor:
    """The Shapley values (M,), exactly: φ_j = Σ_{S∌j} |S|! (M − |S| − 1)!/M! · (v(S ∪ j) − v(S)).

    Cost: 2^M predictions. Raises ValueError for more than 12 players. Source: Shapley 1953.
    """
    M = game.players
    if M > MOST_EXACT:
        raise ValueError(f"{M} players have 2^{M} coalitions; the exact values are for up to {MOST_EXACT}: "
                         "use surrogate(game, kernel='shap')")
    b = _all_coalitions(M)
    v = torch.cat([game.value(part) for part in b.split(game.batch)])
    size, number = b.sum(1), torch.arange(2**M)
    weight = torch.tensor([math.factorial(s) * math.factorial(M - s - 1) / math.factorial(M) for s in range(M)],
                          dtype=torch.float64)
    values = []
    for j in range(M):
        without = number[~b[:, j]]
        values.append((weight[size[without]] * (v[without + 2**j] - v[without])).sum())
    return torch.stack(values)


def near_table(
    game: Game, samples: int, width: float, draw: str, source: torch.Generator | None,
) -> tuple[Tensor, float]:
    """The sums (M + 2)² that LIME's regression needs, of [b 1 v] weighted by π(b), and the answer to the whole."""
    M = game.players
    table, whole = torch.zeros(M + 2, M + 2, dtype=torch.float64), 0.0
    for k, b in enumerate(_near(M, samples, game.batch, draw, source)):
        v = game.value(b)
        whole = float(v[0]) if k == 0 else whole
        distance = 1 - (b.sum(1) / M).double().sqrt()
        add(table, b.double(), v, torch.exp(-distance.square() / (2 * width**2)))
    return table, whole


def around_table(
    predict: Any, row: np.ndarray, data: np.ndarray, target: int | None, samples: int, width: float | None,
    source: torch.Generator | None,
) -> tuple[Tensor, float, int]:
    """The same sums around a row of a table, of [ξ 1 v]; the answer to the row; and the class that is explained."""
    d, ask, scale, source = len(row), asker(predict), data.std(0), source or fresh()
    width = 0.75 * math.sqrt(d) if width is None else width
    answer = ask(row[None])[0]
    chosen = int(answer.argmax()) if target is None else int(target)
    table = torch.zeros(d + 2, d + 2, dtype=torch.float64)
    for start in range(0, samples, 1024):
        xi = normal(torch.zeros(min(1024, samples - start), d, dtype=torch.float64), source)
        xi[0] *= float(start > 0)
        v = ask(row + scale * xi.numpy())[:, chosen]
        add(table, xi, v, torch.exp(-xi.square().sum(1) / (2 * width**2)))
    return table, float(answer[chosen]), chosen


def shapley_mass(M: int) -> Tensor:
    """How likely the kernel of KernelSHAP makes a coalition of 1 … M − 1 pieces, but for a factor, (M − 1,)."""
    sizes = torch.arange(1, M, dtype=torch.float64)
    return (M - 1) / (sizes * (M - sizes))


def coalitions_of(size: Tensor, M: int, source: torch.Generator) -> Tensor:
    """One random coalition (B, M) of each size (B,)."""
    return uniform(torch.empty(len(size), M), source).argsort(1).argsort(1) < size[:, None]


def _all_coalitions(M: int) -> Tensor:
    return (torch.arange(2**M)[:, None] >> torch.arange(M)) % 2 == 1


def _near(M: int, samples: int, batch: int, draw: str, source: torch.Generator | None) -> Iterator[Tensor]:
    """LIME's coalitions (B, M), the whole input first."""
    source = source or fresh()
    for start in range(0, samples, batch):
        like = torch.empty(min(batch, samples - start), M)
        u = uniform(like, source)
        if draw == "sizes":
            hidden = 1 + (uniform(like[:, 0], source) * M).long().clamp(max=M - 1)
            b = u.argsort(1).argsort(1) >= hidden[:, None]
        else:
            b = u < 0.5
        b[0] |= start == 0
        yield b


def _shap(game: Game, samples: int, ridge: float, source: torch.Generator | None) -> Surrogate:
    M = game.players
    ends = game.value(torch.tensor([[False] * M, [True] * M]))
    empty, whole = float(ends[0]), float(ends[1])
    if M == 1:
        return Surrogate(ends[1:] - empty, empty, 1.0, whole, whole, game)
    table = torch.zeros(M + 2, M + 2, dtype=torch.float64)
    mass = shapley_mass(M)
    if samples >= 2**M:
        every = _all_coalitions(M)[1:-1]
        share = mass / torch.tensor([math.comb(M, k) for k in range(1, M)], dtype=torch.float64)
        for b in every.split(game.batch):
            add(table, b.double(), game.value(b) - empty, share[b.sum(1) - 1])
    else:
        source = source or fresh()
        for start in range(0, samples - 2, game.batch):
            half = (min(game.batch, samples - 2 - start) + 1) // 2
            size = 1 + torch.multinomial(mass, half, replacement=True, generator=source)
            b = coalitions_of(size, M, source)
            b = torch.cat([b, ~b])[: samples - 2 - start]
            add(table, b.double(), game.value(b) - empty, torch.ones(len(b), dtype=torch.float64))
    A, c = table[:M, :M], table[:M, -1]
    system = torch.ones(M + 1, M + 1, dtype=torch.float64)  # the sum of φ is fixed, with a Lagrange multiplier
    system[:M, :M], system[M, M] = A + ridge * torch.eye(M), 0
    right = torch.cat([c, torch.tensor([whole - empty], dtype=torch.float64)])
    phi = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:M, 0]
    total, mean = table[M, M], table[M, -1] / table[M, M]
    left = table[-1, -1] - 2 * phi @ c + phi @ A @ phi
    spread = table[-1, -1] - total * mean**2
    return Surrogate(phi, empty, _r2(left, spread), empty + float(phi.sum()), whole, game)


def add(table: Tensor, b: Tensor, v: Tensor, weight: Tensor) -> None:
    """Sum Σ π [b 1 v]ᵀ[b 1 v] into the table: all that least squares needs."""
    rows = torch.cat([b, torch.ones(len(b), 1, dtype=torch.float64), v[:, None]], 1)
    table += (rows * weight[:, None]).T @ rows


def centred(table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted covariances A of the pieces, c with the answer, s of the answer; and the means of both."""
    M = len(table) - 2
    total, mean_b, mean_v = table[M, M], table[:M, M] / table[M, M], table[M, -1] / table[M, M]
    A = table[:M, :M] - total * mean_b[:, None] * mean_b
    return A, table[:M, -1] - total * mean_b * mean_v, table[-1, -1] - total * mean_v**2, mean_b, mean_v


def _solved(table: Tensor, ridge: float, chosen: Tensor, whole: float, game: Game) -> Surrogate:
    A, c, s, mean_b, mean_v = centred(table)
    phi = torch.zeros_like(c)
    phi[chosen] = _ridge(A, c, chosen, ridge)
    left = s - 2 * phi @ c + phi @ A @ phi
    intercept = float(mean_v - phi @ mean_b)
    return Surrogate(phi, intercept, _r2(left, s), intercept + float(phi.sum()), whole, game)


def _ridge(A: Tensor, c: Tensor, chosen: Tensor, ridge: float) -> Tensor:
    part = A[chosen][:, chosen] + ridge * torch.eye(len(chosen), dtype=A.dtype)
    return torch.linalg.lstsq(part, c[chosen, None], driver="gelsd").solution[:, 0]


def _r2(left: Tensor, spread: Tensor) -> float:
    return float(1 - left / spread) if float(spread) > 1e-15 else 0.0


def _selected(table: Tensor, keep: int, select: str, samples: int) -> Tensor:
    A, c, _, _, _ = centred(table)
    if select == "weights":
        return _ridge(A, c, torch.arange(len(c)), 0.01).abs().topk(keep).indices.sort().values
    if select == "lasso":
        from sklearn.linear_model import lars_path_gram

        path = lars_path_gram(c.numpy(), A.numpy(), n_samples=samples, method="lasso")[2]
        few = [step for step in range(path.shape[1]) if 0 < (path[:, step] != 0).sum() <= keep]
        return torch.as_tensor(np.flatnonzero(path[:, few[-1]])) if few else torch.arange(keep)
    chosen: list[int] = []
    for _ in range(keep):
        gains = {}
        for j in set(range(len(c))) - set(chosen):
            trial = torch.tensor([*chosen, j])
            gains[j] = float(_ridge(A, c, trial, 1e-9) @ c[trial])
        chosen.append(max(gains, key=lambda j: gains[j]))
    return torch.tensor(sorted(chosen))


# --- explainers of images -------------------------------------------------------------------------------------------


def lime(
    predict: Any, x: Tensor, target: Tensor | None = None, *, fill: str | float | Tensor = "mean",
    segments: Tensor | Callable[[Tensor], Tensor] = superpixels, samples: int = 1000, width: float = 0.25,
    ridge: float | None = None, keep: int | None = None, select: str = "weights", kernel: str = "lime",
    generator: torch.Generator | None = None, create_graph: bool = False,
) -> Tensor:
    """LIME's weight of the superpixel of each pixel (N, H, W); see `image_game` and `surrogate`.

    segments: (N, H, W), or what computes them from images. target (N,): the classes explained, else the predicted.
    All images are asked about with the same random coalitions, so that none depends on the others.
    Cost: `samples` + 1 predictions an image. Raises ValueError for create_graph=True: superpixels have no derivative.
    """
    if create_graph:
        raise ValueError("LIME has no gradient with respect to the image, since its superpixels have none: "
                         "attack it with queries, or explain with a gradient method")
    check_images(x)
    if target is not None and isinstance(predict, nn.Module):
        with borrowed(predict, x):
            check_labels(target, x, check_model(bare(predict), x), "target")
    parts = segments if isinstance(segments, Tensor) else segments(x)
    if parts.shape != (len(x), *x.shape[2:]):
        raise ValueError(f"segments must have the shape {(len(x), *x.shape[2:])}, not {tuple(parts.shape)}")
    source = generator or fresh()
    seed = int(torch.randint(2**31, (1,), generator=source, device=source.device))
    maps = []
    for i in range(len(x)):
        with asking(predict, torch.tensor([i])):
            game = image_game(predict, x[i:i + 1], parts[i], None if target is None else int(target[i]), fill=fill)
            found = surrogate(game, kernel=kernel, samples=samples, width=width, ridge=ridge, keep=keep, select=select,
                              generator=torch.Generator().manual_seed(seed))
        maps.append(found.weights.to(x.device, x.dtype)[game.pieces])
    return torch.stack(maps)


def kernel_shap(
    predict: Any, x: Tensor, target: Tensor | None = None, *, fill: str | float | Tensor = "mean",
    segments: Tensor | Callable[[Tensor], Tensor] = superpixels, samples: int = 1000,
    generator: torch.Generator | None = None, create_graph: bool = False,
) -> Tensor:
    """The estimated Shapley value of the superpixel of each pixel (N, H, W): `lime` with kernel="shap".

    Cost: `samples` + 1 predictions an image. Source: Lundberg and Lee, NeurIPS 2017, section 4.1.
    """
    return lime(predict, x, target, segments=segments, fill=fill, samples=samples, kernel="shap", generator=generator,
                create_graph=create_graph)


# --- several explanations -------------------------------------------------------------------------------------------


def stability(
    explain: Callable[[torch.Generator], Surrogate], *, repeats: int = 10, top: int = 5,
    generator: torch.Generator | None = None,
) -> tuple[float, Tensor]:
    """How much of an explanation the draw of samples decides: `explain` is called with `repeats` generators.

    Returns the mean Jaccard overlap |A ∩ B| / |A ∪ B| of the `top` pieces of largest |φ| over all pairs of runs, which
    is 1 when all agree, and the standard deviation of each weight (M,).
    """
    if repeats < 2:
        raise ValueError(f"repeats must be 2 or more, not {repeats}")
    source = generator or fresh()
    seeds = torch.randint(2**31, (repeats,), generator=source, device=source.device)
    weights = torch.stack([explain(torch.Generator().manual_seed(int(seed))).weights for seed in seeds])
    tops = [set(row.abs().topk(min(top, len(row))).indices.tolist()) for row in weights]
    overlaps = [len(a & b) / len(a | b) for k, a in enumerate(tops) for b in tops[:k]]
    return sum(overlaps) / len(overlaps), weights.std(0)


def sp_lime(weights: Tensor, budget: int) -> Tensor:
    """Which of n explained inputs to show: indices (budget,), in the order they are chosen.

        argmax_V Σ_j 1[∃ i ∈ V: |W_ij| > 0] I_j   with   I_j = √Σ_i |W_ij|,   greedily

    weights W (n, d): the explanations, in features that mean the same in every row (columns, words, concepts), with
    zeros for the features that an explanation does not use. Source: Ribeiro et al. 2016, algorithm 2.
    """
    if not 1 <= budget <= len(weights):
        raise ValueError(f"budget must lie in 1 … {len(weights)}, the number of explanations, not {budget}")
    used, importance = weights != 0, weights.abs().sum(0).sqrt()
    covered, chosen = torch.zeros_like(used[0]), list[int]()
    for _ in range(budget):
        gain = ((used & ~covered) * importance).sum(1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        covered |= used[chosen[-1]]
    return torch.tensor(chosen)
