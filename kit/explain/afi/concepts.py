"""Concepts as sets of images: how two samples differ, segments that look alike, and what an order of them is worth."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kit.core import borrowed, check_images, chunks, features, generator, laid_out, logits

KERNELS = ("gaussian", "linear")


def mmd(
    a: Tensor, b: Tensor, *, kernel: str = "gaussian", permutations: int = 0, source: torch.Generator | None = None,
) -> tuple[float, float]:
    """MMD² between samples a (n, d) and b (m, d), and its p: E k(a, a') + E k(b, b') − 2 E k(a, b) over distinct pairs.

    k(u, v) = exp(−‖u − v‖² / 2h²), h the median distance between two of all points ("gaussian"), or ⟨u, v⟩ ("linear",
    then MMD² estimates the squared distance of the means). Unbiased, so that it may be below zero. p is the share of
    random divisions of the n + m points, the given one among them, whose value is at least as large; 1 without any.
    Raises ValueError for samples of fewer than 2 points. Cost: a (n + m)² Gram matrix.
    Source: Gretton et al., A kernel two-sample test, JMLR 13, 2012, lemma 6 and section 2.
    """
    n, m = len(a), len(b)
    if n < 2 or m < 2:
        raise ValueError(f"MMD compares samples of 2 points or more, not {n} and {m}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be 'gaussian' or 'linear', not {kernel!r}")
    points = torch.cat([a, b]).double()
    if kernel == "linear":
        K = points @ points.T
    else:
        apart = torch.cdist(points, points)
        width = float(apart[~torch.eye(n + m, dtype=torch.bool, device=a.device)].median())
        K = torch.exp(-apart.square() / (2 * max(width, 1e-12) ** 2))
    K.fill_diagonal_(0)
    splits = [torch.arange(n + m, device=a.device)]
    source = source or generator()
    splits += [torch.randperm(n + m, generator=source, device=source.device).to(a.device) for _ in range(permutations)]
    first = torch.zeros(len(splits), n + m, dtype=K.dtype, device=a.device)
    first[torch.arange(len(splits))[:, None], torch.stack(splits)[:, :n]] = 1
    second, each = 1 - first, first @ K
    within, across = (each * first).sum(1), (each * second).sum(1)
    others = (second @ K * second).sum(1)
    values = within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * across / (n * m)
    return float(values[0]), float((values >= values[0] - 1e-12).double().mean())


def pieces(x: Tensor, segments: Tensor, fill: float = 0.5) -> tuple[Tensor, Tensor]:
    """Each segment alone, all else `fill`: images (P, C, H, W), and whose each is (P,). segments: (N, H, W)."""
    shown, owner = [], []
    for i, labels in enumerate(segments):
        masks = torch.stack([labels == k for k in labels.unique()])[:, None]
        shown.append(torch.where(masks, x[i], fill))
        owner += [i] * len(masks)
    return torch.cat(shown), torch.tensor(owner, device=x.device)


def segment_concepts(
    model: nn.Module, layer: str, x: Tensor, segments: Tensor, *, k: int = 12, fill: float = 0.5, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments that look alike to a layer make a concept: k-means of the layer's pooled maps of the pieces.

    Returns the pieces (P, C, H, W), their concepts (P,) in 0 … k − 1, and the images' maps of concepts (N, H, W).
    Cost: one forward pass of each piece. Source: Ghorbani et al., Towards automatic concept-based explanations, NeurIPS
    2019, section 3, without its outlier removal.
    """
    from sklearn.cluster import KMeans

    check_images(x)
    shown, owner = pieces(x, segments, fill)
    with borrowed(model, x), torch.no_grad(), features(model, [layer]) as found:
        pooled = []
        for rows in chunks(shown):
            model(laid_out(shown[rows]))
            pooled.append(found[layer].mean((2, 3)))
    groups = KMeans(k, n_init=3, random_state=seed).fit_predict(torch.cat(pooled).double().cpu().numpy())
    concept = torch.from_numpy(groups).long().to(x.device)
    maps = torch.empty_like(segments, dtype=torch.int64)
    for i, labels in enumerate(segments):
        own = concept[owner == i]
        maps[i] = own[torch.unique(labels, return_inverse=True)[1]]
    return shown, concept, maps


def concept_curves(
    model: nn.Module, x: Tensor, y: Tensor, maps: Tensor, order: Sequence[int], *, fill: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Is the class seen with the first j concepts of `order` alone, and is it still seen without them? (K + 1, N) bool
    each, j = 0 … K: the curves of the smallest sufficient and of the smallest destroying concepts.

    A good order makes the first rise early and the second fall early. What is hidden shows `fill`. An image that has
    none of the first j concepts counts as it stands: all hidden, or whole. Cost: 2 (K + 1) forward passes.
    """
    check_images(x)
    rank = torch.empty(int(maps.max()) + 1, dtype=torch.int64, device=maps.device)
    if sorted(order) != list(range(len(rank))):
        raise ValueError(f"order must name each of the concepts 0 … {len(rank) - 1} once, not {list(order)}")
    rank[torch.tensor(list(order), device=maps.device)] = torch.arange(len(rank), device=maps.device)
    place = rank[maps][:, None]
    alone = [logits(model, torch.where(place < j, x, fill)).argmax(1) == y for j in range(len(rank) + 1)]
    without = [logits(model, torch.where(place < j, fill, x)).argmax(1) == y for j in range(len(rank) + 1)]
    return torch.stack(alone), torch.stack(without)
