"""ACAS Xu: networks that advise an aircraft how to turn away from another, and four properties that they should have.

An input is (ρ, θ, ψ, v_own, v_int): distance in feet, two angles in radians, two speeds in feet a second. The five
outputs are costs of clear-of-conflict, weak left, weak right, strong left, strong right; the *least* is advised.
Source: Katz et al., Reluplex, CAV 2017 (the networks: CC BY 4.0); verdicts: those on which the tools of the 2021
competition agree.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.certify.verify.chain import Chain
from kit.data.real import root
from kit.data.sets import MissingData

ADVICE = ("clear of conflict", "weak left", "weak right", "strong left", "strong right")
FREE = (-math.inf, math.inf)


class Property(NamedTuple):
    """What must not happen in a region: `low` and `high` in raw units, C costs + c (m,) all at most zero there."""

    text: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    C: tuple[tuple[float, ...], ...]
    limit: float = 0.0  # of the raw cost, in one row


def _region(*sides: tuple[float, float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(s[0] for s in sides), tuple(s[1] for s in sides)


_FAR = _region((55947.691, math.inf), FREE, FREE, (1145, math.inf), (-math.inf, 60))
_AHEAD = _region((1500, 1800), (-0.06, 0.06), (3.10, math.inf), (980, math.inf), (960, math.inf))
_AWAY = _region((1500, 1800), (-0.06, 0.06), (0, 0), (1000, math.inf), (700, 800))
_LARGEST = tuple(tuple(-1.0 if i == 0 else float(i == j) for i in range(5)) for j in range(1, 5))  # y_j − y_0 ≤ 0
_SMALLEST = tuple(tuple(-v for v in row) for row in _LARGEST)
PROPERTIES = {
    1: Property("far and slow: clear of conflict never costs 1500 or more", *_FAR, ((-1.0, 0, 0, 0, 0),), 1500.0),
    2: Property("far and slow: clear of conflict is never the dearest", *_FAR, _LARGEST),
    3: Property("close ahead, coming on: clear of conflict is not advised", *_AHEAD, _SMALLEST),
    4: Property("close ahead, moving away slower: clear of conflict is not advised", *_AWAY, _SMALLEST),
}
_SAFE = {2: ("1_1", "1_7", "1_8", "1_9", "3_3", "4_2")}
_UNSAFE = {3: ("1_7", "1_8", "1_9"), 4: ("1_7", "1_8", "1_9")}


def published(prop: int, name: str) -> str:
    """The verdict of the 2021 competition: "safe" or "unsafe"."""
    if prop in _SAFE:
        return "safe" if name in _SAFE[prop] else "unsafe"
    return "unsafe" if name in _UNSAFE.get(prop, ()) else "safe"


class Network(NamedTuple):
    """A network on scaled inputs, with what its scale is: x = (clip(raw, min, max) − mean)/range."""

    chain: Chain
    low: Tensor
    high: Tensor
    mean: Tensor
    range: Tensor

    def scaled(self, raw: Tensor) -> Tensor:
        """(…, 5) in raw units → the network's inputs."""
        return (torch.clamp(raw, self.low, self.high) - self.mean[:5]) / self.range[:5]

    def raw(self, x: Tensor) -> Tensor:
        return x * self.range[:5] + self.mean[:5]

    def costs(self, raw: Tensor) -> Tensor:
        """(B, 5) raw inputs → the five costs (B, 5), in the units that they were trained on."""
        return self.chain(self.scaled(raw)) * self.range[5] + self.mean[5]

    def question(self, prop: int) -> tuple[Chain, Tensor, Tensor]:
        """The chain and the box whose outputs are all at most zero where the property is violated."""
        p = PROPERTIES[prop]
        low, high = (torch.tensor(side, dtype=torch.float64) for side in (p.low, p.high))
        C = torch.tensor(p.C, dtype=torch.float64)
        c = (p.limit - self.mean[5]).expand(1) / self.range[5] if p.limit else torch.zeros(len(C)).double()
        return self.chain.ended(C, c), self.scaled(low), self.scaled(high)


def networks() -> dict[str, Network]:
    """The networks of `acasxu.npz` under `KIT_DATA`, by name ("1_1").

    The file holds, for each, `<name>/W1` … `W7` (rows are outputs), `b1` … `b7`, `min`, `max` (5,), `mean` and `range`
    (6,: the last belongs to the outputs). Raises MissingData where it is not there.
    """
    path = root() / "acasxu.npz"
    if not path.is_file():
        raise MissingData(f"no {path}: put there acasxu.npz, with <network>/W1 … W7, b1 … b7, min, max, mean and range "
                          "of the ACAS Xu networks, or set KIT_DATA to the folder that has it")
    found: dict[str, Network] = {}
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        for name in sorted({key.split("/")[0] for key in file if "/" in key}):
            def get(part: str, name: str = name) -> Tensor:
                return torch.as_tensor(file[f"{name}/{part}"]).double()

            layers = range(1, 8)
            chain = Chain([get(f"W{i}") for i in layers], [get(f"b{i}") for i in layers])
            found[name] = Network(chain, *(get(part) for part in ("min", "max", "mean", "range")))
    return found
