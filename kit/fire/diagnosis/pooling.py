"""Two networks that differ in their pooling alone, compared where they are equally accurate."""
from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from kit.core import accuracy
from kit.data import Data
from kit.models import Recipe, fit


def equally_accurate(
    recipes: Mapping[str, Recipe], train: Data, dev: Data, *, seed: int = 0, **how: Any,
) -> dict[str, tuple[nn.Module, nn.Module]]:
    """{name: (the network at the end, the same as it was when all were nearest in accuracy)}, one for each recipe.

    All begin from one seed and see the same batches. Each is measured on `dev` after each epoch, and of all pairs of
    epochs the one with the least difference is taken, the latest where several have it: the better network is taken
    earlier, the worse one at its best. Raises ValueError for other than two recipes. Cost: two trainings.
    """
    if len(recipes) != 2:
        raise ValueError(f"two recipes are compared, not {len(recipes)}")
    ends: dict[str, nn.Module] = {}
    then: dict[str, list[tuple[float, nn.Module]]] = {name: [] for name in recipes}
    for name, r in recipes.items():
        def watch(epoch: int, network: nn.Module, name: str = name) -> None:
            network.eval()
            then[name].append((accuracy(network, dev.x, dev.y), copy.deepcopy(network)))
            network.train()

        ends[name] = fit(r, train.x, train.y, seed=seed, watch=watch, **how).eval()
    a, b = then.values()
    pairs = [(abs(left[0] - right[0]), -i - j, i, j) for i, left in enumerate(a) for j, right in enumerate(b)]
    _, _, i, j = min(pairs)
    return {name: (ends[name], then[name][at][1].eval()) for name, at in zip(recipes, (i, j), strict=True)}
