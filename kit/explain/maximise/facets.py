"""Multifaceted visualisation: a class is seen in several ways, so let each of them start a search of its own.

Source: Nguyen, Yosinski and Clune, Multifaceted feature visualization, 2016, algorithm 1, with their 15 images a centre
and 10 centres. They put t-SNE between the principal components and k-means and denoise by TV-Bregman in four phases; we
leave both out: start and regularisers are those of `maximise`.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import check_images
from kit.explain.maximise.ascent import maximise
from kit.explain.maximise.units import Unit
from kit.explain.tcav import activations

COMPONENTS = 50


class Facets(NamedTuple):
    """The mean of the images nearest each centre (k, C, H, W), and the cluster (N,) of each image."""

    means: Tensor
    cluster: Tensor


def facets(
    model: nn.Module, layer: str, x: Tensor, *, k: int = 10, nearest: int = 15, seed: int = 0,
) -> Facets:
    """Images x (N, C, H, W) that look alike to a layer: its answer, 50 principal components, k-means.

    Raises ValueError for fewer images than clusters. Cost: one forward pass.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    check_images(x)
    if not 1 <= k <= len(x) or nearest < 1:
        raise ValueError(f"k must be 1 to {len(x)}, the number of images, and nearest 1 or more, not {k}, {nearest}")
    codes = activations(model, layer, x).flatten(1).double().cpu().numpy()
    codes = PCA(min(COMPONENTS, *codes.shape), random_state=seed).fit_transform(codes)
    groups = KMeans(k, n_init=10, random_state=seed).fit(codes)
    means = []
    for c, centre in enumerate(groups.cluster_centers_):
        own = np.flatnonzero(groups.labels_ == c)
        order = own[np.linalg.norm(codes[own] - centre, axis=1).argsort(kind="stable")][:nearest]
        means.append(x[torch.from_numpy(order).to(x.device)].mean(0))
    return Facets(torch.stack(means), torch.from_numpy(groups.labels_).long().to(x.device))


def multifaceted(
    model: nn.Module, unit: Unit | int | Sequence[int] | Tensor, x: Tensor, *, layer: str, k: int = 10,
    nearest: int = 15, seed: int = 0, **options: Any,
) -> tuple[Tensor, Facets]:
    """One picture of the unit for each facet of images x of one class (k, C, H, W), and the facets they start from.

    `layer` is what the images are compared by, `options` are those of `maximise`. Cost: `maximise` from k images.
    """
    found = facets(model, layer, x, k=k, nearest=nearest, seed=seed)
    return maximise(model, unit, start=found.means, **options), found
