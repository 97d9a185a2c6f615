"""`factors`: 768 small grey images, every combination of four factors once, so that every expectation is a plain mean.

3 shapes × 4 sizes × 8 columns × 8 rows at 16 × 16, white on black, made by code like dSprites (Matthey et al., 2017),
whose fifth factor is left out: a square repeats every 90°, so that its orientation cannot be read from the image.
"""
from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from torch import Tensor

from kit.data.scenes import distance
from kit.data.sets import Data, choose

SIZE = 16
SHAPES = ("square", "triangle", "cross")
RADII = (0.26, 0.34, 0.42, 0.50)  # half the image is 1
PLACES = tuple(0.5 * (2 * i / 7 - 1) for i in range(8))  # the middle of the object, from left to right or top to bottom
NAMES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES, "size": ("0", "1", "2", "3"), "column": tuple("01234567"), "row": tuple("01234567"),
}
LEVELS = {name: len(values) for name, values in NAMES.items()}


@functools.cache
def _all() -> tuple[Tensor, Tensor]:
    """The images (768, 1, 16, 16) and their factors (768, 4), in the order of `itertools.product`."""
    f = torch.tensor(list(itertools.product(*(range(k) for k in LEVELS.values()))))
    return draw(f), f


def draw(f: Tensor) -> Tensor:
    """The images (N, 1, 16, 16) of factors (N, 4) int64: shape, size, column, row. Raises ValueError for others."""
    top = torch.tensor(list(LEVELS.values()), device=f.device)
    if f.dim() != 2 or f.shape[1] != len(LEVELS) or f.dtype != torch.int64 or bool(((f < 0) | (f >= top)).any()):
        raise ValueError(f"factors are whole numbers (N, 4): {', '.join(f'{n} below {k}' for n, k in LEVELS.items())}")
    axis = (torch.arange(SIZE, device=f.device) + 0.5) * 2 / SIZE - 1
    radius, column, row = (torch.tensor(v, device=f.device)[f[:, k]].view(-1, 1, 1)
                           for k, v in ((1, RADII), (2, PLACES), (3, PLACES)))
    px, py = (axis[None, None, :] - column) / radius, (axis[None, :, None] - row) / radius
    away = torch.stack([distance(shape, px, py).expand(-1, SIZE, SIZE) for shape in SHAPES], 1)
    own = away[torch.arange(len(f)), f[:, 0]]
    return (0.5 - own * radius * SIZE / 2).clamp(0, 1)[:, None]


def read(x: Tensor) -> Tensor:
    """The factors (N, 4) of the image of the set that is nearest, in l2, to each of x (N, 1, 16, 16).

    Of the images of the set themselves it reads all four without an error; of others it says what they resemble most.
    """
    images, f = _all()
    if x.shape[1:] != images.shape[1:]:
        raise ValueError(f"the reader knows images (N, 1, {SIZE}, {SIZE}), not {tuple(x.shape)}")
    return f.to(x.device)[torch.cdist(x.flatten(1), images.to(x).flatten(1)).argmin(1)]


def table(data: Data) -> Tensor:
    """The factors of a part of the set as one table (N, 4), the columns in the order of `LEVELS`."""
    if data.concepts is None or not LEVELS.keys() <= data.concepts.keys():
        raise ValueError("these images have no such factors: take kit.data.load('factors')")
    return torch.stack([data.concepts[name] for name in LEVELS], 1)


def factors(split: str = "test", n: int | None = None, seed: int = 0) -> Data:
    """The set, the shape for its label, the factors for its concepts. Each split is all of it: what holds every
    combination once has nothing to hold out."""
    x, f = _all()
    rows = torch.from_numpy(np.asarray(choose(f[:, 0].numpy(), n, seed, "factors")))
    x, f = x[rows], f[rows]
    return Data(x, f[:, 0].clone(), SHAPES, x[:, 0] >= 0.5, {k: f[:, i].clone() for i, k in enumerate(LEVELS)}, NAMES)
