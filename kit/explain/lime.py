"""A simple model nearby: LIME, KernelSHAP and exact Shapley values, for images, tables and text, of any model.

An input is cut into M interpretable pieces (superpixels, columns, words), and a coalition b ∈ {0, 1}^M says which of
them stay; the others are hidden. With v(b) = f(h(b)) the model's answer to what is left, both LIME and KernelSHAP fit

    v(b) ≈ φ₀ + φ·b   by least squares over coalitions,  weighted by π(b),

and differ in the kernel π. LIME takes what is near the whole input, KernelSHAP the one weight that makes φ the Shapley
values. `image_game`, `table_game` and `text_game` make v, `surrogate` fits it, `shapley` computes the values exactly;
`lime` and `kernel_shap` are the maps (N, H, W) that every explainer of images returns.

Throughout, `predict` is a torch module (logits; explained is the softmax), an object with predict_proba (scikit-learn;
images are flattened), or any function of a NumPy array, or of a list of texts, that returns (B, K) or (B,).
Sources: Ribeiro et al., "Why should I trust you?", KDD 2016; Lundberg and Lee, A unified approach to interpreting model
predictions, NeurIPS 2017, theorem 2.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import (
    QueryCounter,
    asking,
    borrowed,
    check_images,
    check_labels,
    check_model,
    chunk_size,
    generator,
    normal,
    uniform,
)

MOST_EXACT = 12  # players: 4096 coalitions


@dataclass(frozen=True)
class Game:
    """What can be hidden, and the answer to what is left: `value(b)` maps coalitions b (B, M), bool, to (B,), float64.

    It is asked about `batch` coalitions at a time. `pieces` names the M players or, for an image, labels its pixels.
    """

    players: int
    value: Callable[[Tensor], Tensor]
    batch: int
    pieces: Any
    target: int


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


# --- games ----------------------------------------------------------------------------------------------------------


def image_game(
    predict: Any, x: Tensor, segments: Tensor | None = None, target: int | None = None, *,
    fill: str | float | Tensor = "mean",
) -> Game:
    """Players: the superpixels `segments` (H, W), numbered from 0, of one image x (1, C, H, W). Cost: one pass.

    A hidden superpixel shows `fill`: its mean colour ("mean"), a number, or an image (C, H, W), such as a blurred x.
    target: the class that is explained, the predicted one by default.
    """
    check_images(x)
    if len(x) != 1:
        raise ValueError(f"a game is of one image, not {len(x)}: use x[:1]")
    segments = superpixels(x)[0] if segments is None else segments
    if segments.shape != x.shape[2:]:
        raise ValueError(f"segments must have the image's shape {tuple(x.shape[2:])}, not {tuple(segments.shape)}")
    flat, names = _numbered(segments.to(x.device).flatten())
    if names < 2:
        raise ValueError("the segments are one piece: choose another method or options in superpixels(x, method, …)")
    pixels = x[0].detach().permute(1, 2, 0).flatten(0, 1).contiguous()  # so that what is shown is channels last
    hidden = pixels
    if isinstance(fill, str):
        if fill != "mean":
            raise ValueError(f"fill must be 'mean', a number or an image, not {fill!r}")
        count = torch.bincount(flat).to(x.dtype)[:, None]
        hidden = (pixels.new_zeros(names, x.shape[1]).index_add_(0, flat, pixels) / count)[flat]
    else:
        image = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
        hidden = image.expand(x[0].shape).permute(1, 2, 0).flatten(0, 1).contiguous()
    ask = _asker(predict, x)
    answer = ask(x)[0]
    chosen = int(answer.argmax()) if target is None else int(target)

    def value(b: Tensor) -> Tensor:
        shown = torch.where(b.to(x.device).index_select(1, flat)[:, :, None], pixels, hidden)
        return ask(shown.view(len(b), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2))[:, chosen]

    return Game(names, value, chunk_size(x), flat.view(x.shape[2:]), chosen)


def table_game(
    predict: Any, row: Any, background: Any, target: int | None = None, names: Sequence[str] | None = None,
) -> Game:
    """Players: the columns of one row (d,). A hidden column takes its values from the rows of `background` (R, d).

    v(b) is the mean answer over the R rows, so that each coalition costs R predictions; R = 1 (a mean row) is cheap,
    more rows say what the model expects without the column. Hidden columns are taken as independent of the shown ones.
    """
    row, background = np.asarray(row, dtype=np.float64).reshape(1, -1), np.asarray(background, dtype=np.float64)
    background = background.reshape(-1, background.shape[-1])
    if row.shape[1] != background.shape[1]:
        raise ValueError(f"the row has {row.shape[1]} columns and the background {background.shape[1]}")
    ask = _asker(predict)
    chosen = int(ask(row)[0].argmax()) if target is None else int(target)

    def value(b: Tensor) -> Tensor:
        shown = np.where(b.cpu().numpy()[:, None], row, background[None])
        return ask(shown.reshape(-1, row.shape[1]))[:, chosen].view(len(b), -1).mean(1)

    pieces = tuple(names) if names is not None else tuple(f"column {k}" for k in range(row.shape[1]))
    return Game(row.shape[1], value, max(1, 4096 // len(background)), pieces, chosen)


def text_game(predict: Any, text: str, target: int | None = None) -> Game:
    """Players: the distinct words of a text. A hidden word is cut out wherever it stands. `predict` takes a list."""
    parts = re.split(r"(\w+)", text)
    words = tuple(dict.fromkeys(parts[1::2]))
    if not words:
        raise ValueError("the text holds no words")
    place = {word: k for k, word in enumerate(words)}
    ask = _asker(predict)
    chosen = int(ask([text])[0].argmax()) if target is None else int(target)

    def value(b: Tensor) -> Tensor:
        kept = b.tolist()
        return ask(["".join(p for k, p in enumerate(parts) if k % 2 == 0 or row[place[p]]) for row in kept])[:, chosen]

    return Game(len(words), value, 256, words, chosen)


def _asker(predict: Any, x: Tensor | None = None) -> Callable[[Any], Tensor]:
    """What takes inputs and returns answers (B, K) as float64 on the CPU."""
    if isinstance(predict, nn.Module):
        def answers(inputs: Any) -> Any:
            like = next((p for p in predict.parameters() if p.is_floating_point()), torch.empty(0))
            given = inputs if isinstance(inputs, Tensor) else torch.as_tensor(inputs).to(like)
            with borrowed(predict, given), torch.no_grad():
                return predict(given).softmax(1)
        if x is not None:
            with borrowed(predict, x):
                check_model(_bare(predict), x)
    elif hasattr(predict, "predict_proba"):
        def answers(inputs: Any) -> Any:
            given = inputs if isinstance(inputs, list) else _numpy(inputs).reshape(len(inputs), -1)
            return predict.predict_proba(given)
    elif callable(predict):
        def answers(inputs: Any) -> Any:
            return predict(inputs if isinstance(inputs, list) else _numpy(inputs))
    else:
        raise TypeError(f"predict must be a torch module, have predict_proba, or be a function, "
                        f"not {type(predict).__name__}")

    def ask(inputs: Any) -> Tensor:
        answer = torch.as_tensor(answers(inputs)).detach().to("cpu", torch.float64)
        answer = answer[:, None] if answer.dim() == 1 else answer
        if answer.dim() != 2 or len(answer) != len(inputs):
            raise ValueError(f"predict must return (B, K) or (B,): {len(inputs)} inputs gave {tuple(answer.shape)}")
        return answer

    return ask


def _numpy(inputs: Any) -> np.ndarray:
    return inputs.contiguous().cpu().numpy() if isinstance(inputs, Tensor) else np.asarray(inputs)


def _bare(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, QueryCounter) else model


def _numbered(labels: Tensor) -> tuple[Tensor, int]:
    names, flat = labels.unique(return_inverse=True)
    return flat, len(names)


def superpixels(x: Tensor, method: str = "slic", **options) -> Tensor:
    """Segments (N, H, W), numbered from 0, of images (N, C, H, W) by scikit-image's `method`, with its own options.

    "slic" (n_segments, compactness), "quickshift" (kernel_size, max_dist, ratio), "felzenszwalb" (scale, sigma,
    min_size), "watershed" (markers, compactness), or "grid" (side, in pixels), which looks at nothing.
    """
    from skimage import filters, segmentation

    check_images(x)
    if method not in ("slic", "quickshift", "felzenszwalb", "watershed", "grid"):
        raise ValueError(f"method must be 'slic', 'quickshift', 'felzenszwalb', 'watershed' or 'grid', not {method!r}")
    if method == "grid":
        side, (height, width) = options.get("side", 4), x.shape[2:]
        rows, columns = torch.arange(height) // side, torch.arange(width) // side
        return (rows[:, None] * (int(columns[-1]) + 1) + columns).expand(len(x), -1, -1).contiguous().to(x.device)
    found = []
    for image in x:
        pixels = image.detach().cpu().double().permute(1, 2, 0).numpy()
        pixels = np.repeat(pixels[:, :, :1], 3, 2) if pixels.shape[2] != 3 else pixels
        if method == "slic":
            options = {"n_segments": 30, "compactness": 10.0} | options
            labels = segmentation.slic(pixels, start_label=0, **options)
        elif method == "quickshift":
            options = {"kernel_size": 2, "max_dist": 6, "ratio": 0.5} | options
            labels = segmentation.quickshift(pixels, **options)
        elif method == "felzenszwalb":
            options = {"scale": 50, "min_size": 10} | options
            labels = segmentation.felzenszwalb(pixels, **options)
        else:
            options = {"markers": 30, "compactness": 0.001} | options
            labels = segmentation.watershed(filters.sobel(pixels.mean(2)), **options)
        found.append(_numbered(torch.as_tensor(np.asarray(labels).astype(np.int64)))[0])
    return torch.stack(found).to(x.device)


# --- regressions ----------------------------------------------------------------------------------------------------


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
    table = torch.zeros(M + 2, M + 2, dtype=torch.float64)
    whole = 0.0
    for k, b in enumerate(_near(M, samples, game.batch, draw, generator)):
        v = game.value(b)
        whole = float(v[0]) if k == 0 else whole
        distance = 1 - (b.sum(1) / M).double().sqrt()
        _add(table, b.double(), v, torch.exp(-distance.square() / (2 * width**2)))
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
    row, scale = np.asarray(row, dtype=np.float64).reshape(-1), np.asarray(data, dtype=np.float64).std(0)
    d, ask = len(row), _asker(predict)
    width = 0.75 * math.sqrt(d) if width is None else width
    answer = ask(row[None])[0]
    chosen = int(answer.argmax()) if target is None else int(target)
    table = torch.zeros(d + 2, d + 2, dtype=torch.float64)
    source = generator or _fresh()
    for start in range(0, samples, 1024):
        xi = normal(torch.zeros(min(1024, samples - start), d, dtype=torch.float64), source)
        xi[0] *= float(start > 0)
        v = ask(row + scale * xi.numpy())[:, chosen]
        _add(table, xi, v, torch.exp(-xi.square().sum(1) / (2 * width**2)))
    game = table_game(predict, row, np.asarray(data, dtype=np.float64).mean(0), chosen, names)
    found = _solved(table, ridge, torch.arange(d), float(answer[chosen]), game)
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


def _all_coalitions(M: int) -> Tensor:
    return (torch.arange(2**M)[:, None] >> torch.arange(M)) % 2 == 1


def _fresh() -> torch.Generator:
    return generator()


def _near(M: int, samples: int, batch: int, draw: str, source: torch.Generator | None) -> Iterator[Tensor]:
    """LIME's coalitions (B, M), the whole input first."""
    source = source or _fresh()
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
    sizes = torch.arange(1, M, dtype=torch.float64)
    mass = (M - 1) / (sizes * (M - sizes))
    if samples >= 2**M:
        every = _all_coalitions(M)[1:-1]
        share = mass / torch.tensor([math.comb(M, k) for k in range(1, M)], dtype=torch.float64)
        for b in every.split(game.batch):
            _add(table, b.double(), game.value(b) - empty, share[b.sum(1) - 1])
    else:
        source = source or _fresh()
        for start in range(0, samples - 2, game.batch):
            half = (min(game.batch, samples - 2 - start) + 1) // 2
            size = 1 + torch.multinomial(mass, half, replacement=True, generator=source)
            b = uniform(torch.empty(half, M), source).argsort(1).argsort(1) < size[:, None]
            b = torch.cat([b, ~b])[: samples - 2 - start]
            _add(table, b.double(), game.value(b) - empty, torch.ones(len(b), dtype=torch.float64))
    A, c = table[:M, :M], table[:M, -1]
    system = torch.ones(M + 1, M + 1, dtype=torch.float64)  # the sum of φ is fixed, with a Lagrange multiplier
    system[:M, :M], system[M, M] = A + ridge * torch.eye(M), 0
    right = torch.cat([c, torch.tensor([whole - empty], dtype=torch.float64)])
    phi = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:M, 0]
    total, mean = table[M, M], table[M, -1] / table[M, M]
    left = table[-1, -1] - 2 * phi @ c + phi @ A @ phi
    spread = table[-1, -1] - total * mean**2
    return Surrogate(phi, empty, _r2(left, spread), empty + float(phi.sum()), whole, game)


def _add(table: Tensor, b: Tensor, v: Tensor, weight: Tensor) -> None:
    """Sum Σ π [b 1 v]ᵀ[b 1 v] into the table: all that least squares needs."""
    rows = torch.cat([b, torch.ones(len(b), 1, dtype=torch.float64), v[:, None]], 1)
    table += (rows * weight[:, None]).T @ rows


def _centred(table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted covariances A of the pieces, c with the answer, s of the answer; and the means of both."""
    M = len(table) - 2
    total, mean_b, mean_v = table[M, M], table[:M, M] / table[M, M], table[M, -1] / table[M, M]
    A = table[:M, :M] - total * mean_b[:, None] * mean_b
    return A, table[:M, -1] - total * mean_b * mean_v, table[-1, -1] - total * mean_v**2, mean_b, mean_v


def _solved(table: Tensor, ridge: float, chosen: Tensor, whole: float, game: Game) -> Surrogate:
    A, c, s, mean_b, mean_v = _centred(table)
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
    A, c, _, _, _ = _centred(table)
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
            check_labels(target, x, check_model(_bare(predict), x), "target")
    parts = segments if isinstance(segments, Tensor) else segments(x)
    if parts.shape != (len(x), *x.shape[2:]):
        raise ValueError(f"segments must have the shape {(len(x), *x.shape[2:])}, not {tuple(parts.shape)}")
    source = generator or _fresh()
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
    source = generator or _fresh()
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
