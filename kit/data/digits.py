"""`digits`: the 1797 handwritten digits that come with scikit-learn, at 28 × 28."""
from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.data.sets import Data, choose

COUNTS = {"train": 1100, "dev": 297, "test": 400}
CLASSES = tuple("0123456789")


@functools.cache
def _all() -> tuple[torch.Tensor, torch.Tensor]:
    """8 × 8 counts 0 to 16 → 24 × 24 in [0, 1], bilinear (bicubic would overshoot and be clipped), margin 2."""
    package = find_spec("sklearn")  # whose file is read without its import, which takes seconds
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the digits are scikit-learn's: install scikit-learn")
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    x = torch.from_numpy(rows[:, :-1]).float().view(-1, 1, 8, 8) / 16
    x = F.interpolate(x, size=24, mode="bilinear", align_corners=False).clamp(0, 1)
    return F.pad(x, [2, 2, 2, 2]), torch.from_numpy(rows[:, -1]).long()


@functools.cache
def _split() -> dict[str, np.ndarray]:
    order = choose(_all()[1].numpy(), 1797, seed=0)  # dealt class by class, so every split is balanced
    test, dev, train = np.split(order, [COUNTS["test"], COUNTS["test"] + COUNTS["dev"]])
    return {"train": train, "dev": dev, "test": test}


def digits(split: str = "test", n: int | None = None, seed: int = 0) -> Data:
    x, y = _all()
    rows = _split()[split]
    rows = rows[choose(y[rows].numpy(), n, seed, f"digits/{split}")]
    return Data(x[rows], y[rows].clone(), CLASSES)
