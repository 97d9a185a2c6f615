"""A trigger in pieces: each attacker teaches one of them, nobody shows the whole, and the model knows the whole."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kit.core import check_settings
from kit.poison.backdoor.trigger import Trigger


def pieces(
    shape: tuple[int, ...], *, length: int = 4, gap: tuple[int, int] = (2, 2), place: tuple[int, int] = (0, 0)
) -> list[Trigger]:
    """Four white bars of 1 × `length` pixels, two above two, `gap` (rows, columns) apart, the first one at `place`.

    Xie et al. use length 4 and gaps of 2 on MNIST, length 6 and gaps of 3 on CIFAR-10. Raises ValueError where the bars
    leave the image.
    """
    channels, height, width = shape
    (top, left), (down, right) = place, gap
    rows, columns = (top, top + down + 1), (left, left + length + right)
    if length < 1 or min(top, left, down, right) < 0 or rows[1] >= height or columns[1] + length > width:
        raise ValueError(f"four bars of length {length}, {gap} apart, do not fit at {place} into {height} × {width}")
    made = []
    for row in rows:
        for column in columns:
            mask = torch.zeros(1, height, width)
            mask[:, row, column : column + length] = 1
            made.append(Trigger(mask, torch.ones(tuple(shape))))
    return made


def union(parts: Sequence[Trigger]) -> Trigger:
    """The trigger that covers what any part covers, with that part's pattern.

    Raises ValueError where there is no part, where they differ in shape, and where two cover the same pixel: then they
    are not pieces.
    """
    if not parts or len({part.pattern.shape for part in parts}) > 1:
        raise ValueError("a union needs one part or more, all for images of one shape")
    masks = torch.stack([part.mask for part in parts])
    if bool((masks > 0).sum(0).max() > 1):
        raise ValueError("two parts of the trigger cover the same pixel: pieces are disjoint")
    return Trigger(masks.sum(0), sum((part.mask * part.pattern for part in parts), torch.zeros_like(parts[0].pattern)))


@dataclass(frozen=True)
class Attacker:
    """A client that follows the protocol with images of its own making, in the rounds in which it attacks.

    client     which client it is, whose images it has
    trigger    what it stamps on `share` of each batch, images of other classes than the target, labelled `target`
    rounds     when it attacks (and is among the chosen); None: in all. In others it is a client as any other
    scale      γ: its update is sent γ times as long. γ = n / η makes the global model its own (single shot)
    lr, steps  of its local training, in the place of the others' where given
    """

    client: int
    trigger: Trigger
    target: int = 0
    share: float = 0.3
    rounds: Sequence[int] | None = None
    scale: float = 1.0
    lr: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        check_settings({"lr": self.lr, "steps": self.steps})
        if not isinstance(self.trigger, Trigger):
            raise TypeError(f"trigger must be a Trigger, as Trigger.patch makes one, not {type(self.trigger).__name__}")
        if isinstance(self.rounds, int):
            raise TypeError(f"rounds are those in which it attacks, as in [{self.rounds}], or None for all")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is how much of each batch is poisoned, between 0 and 1, not {self.share:g}")
        if not math.isfinite(self.scale) or self.target < 0:
            raise ValueError(f"scale must be finite and target a class, not {self.scale:g} and {self.target}")

    def attacks(self, r: int) -> bool:
        return self.rounds is None or r in self.rounds

    def poisoned(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of it: its first ⌈share · B⌉ images that are not of the target class carry the trigger."""
        count = math.ceil(self.share * len(x) - 1e-9)  # 0.07 of 100 is 7, though the floats say a little more
        other = y != self.target
        chosen = other & (other.cumsum(0) <= count)
        return torch.where(chosen.view(-1, 1, 1, 1), self.trigger(x), x), torch.where(chosen, self.target, y)
