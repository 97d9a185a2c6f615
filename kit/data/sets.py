"""What every data set is given as, and how a part of one is chosen."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "dev", "test")


class MissingData(FileNotFoundError):
    """A data set is not where it is looked for; the message says what to put where."""


@dataclass(frozen=True, repr=False)
class Data:
    """Images and what is known about them.

    x: (N, C, H, W) float32 in [0, 1] · y: (N,) int64 · classes: the name of each label · mask: (N, H, W) bool, true on
    the object · concepts: factor -> (N,), int64 where `concept_names` lists the names of its values, float32 where the
    factor is a quantity. `data[idx]` takes an int (kept as a batch of one), a slice, a list, an index or a bool tensor.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    mask: Tensor | None = None
    concepts: dict[str, Tensor] | None = None
    concept_names: dict[str, tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, idx: Any) -> Data:
        if isinstance(idx, (int, np.integer)):
            if not -len(self) <= idx < len(self):
                raise IndexError(f"image {idx} of {len(self)}")
            idx = slice(int(idx), int(idx) + 1 or None)
        elif not isinstance(idx, (slice, Tensor)):
            idx = torch.as_tensor(idx)
        return self._each(lambda t: t[idx.to(t.device) if isinstance(idx, Tensor) else idx])

    def __iter__(self):
        raise TypeError("a Data is not a sequence of pairs: use data.x and data.y, or data[i]")

    def to(self, device: str | torch.device) -> Data:
        """The same data on `device`."""
        return self._each(lambda t: t.to(device))

    def _each(self, f) -> Data:
        return replace(
            self,
            x=f(self.x),
            y=f(self.y),
            mask=None if self.mask is None else f(self.mask),
            concepts=None if self.concepts is None else {k: f(v) for k, v in self.concepts.items()},
        )

    def __repr__(self) -> str:
        extra = ["mask"] if self.mask is not None else []
        extra += [f"{len(self.concepts)} concepts"] if self.concepts else []
        shape = "×".join(map(str, self.x.shape[1:]))
        return f"Data({len(self)} images {shape}, {len(self.classes)} classes{''.join(', ' + e for e in extra)})"


def choose(y: np.ndarray, n: int | None, seed: int, name: str = "this split") -> np.ndarray:
    """Indices of `n` images, as balanced over the classes as `n` allows.

    A permutation drawn from `seed` is dealt out class by class: every class once, then every class a second time, and
    so on. So the choice for n is the beginning of the choice for any larger n. `None` keeps all, in stored order.
    """
    y = np.asarray(y)
    if n is None:
        return np.arange(len(y))
    if not 1 <= n <= len(y):
        raise ValueError(f"n={n}, but {name} has {len(y)} images: ask for 1 to {len(y)}, or n=None for all")
    shuffled = np.random.default_rng(seed).permutation(len(y))
    by_class = np.argsort(y[shuffled], kind="stable")
    sizes = np.unique(y, return_counts=True)[1]
    turn = np.empty(len(y), dtype=np.int64)
    turn[by_class] = np.arange(len(y)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return shuffled[np.argsort(turn, kind="stable")][:n]


def dev_size(n: int) -> int:
    """How many of n training images are held out where a set brings no dev split."""
    return min(5000, max(1, n // 10))


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f'split is "train", "dev" or "test", not {split!r}')
