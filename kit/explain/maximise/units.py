"""What activation maximisation maximises, and the real images that do it best."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kit.core import borrowed, check_images, check_model, chunks, features, laid_out
from kit.core.passes import PerImage

Place = tuple[int, int] | str | None


class Unit(PerImage):
    """One unit or several: h(x) = ⟨v, A(x)⟩, A the answer of a layer, (N, C) or, as maps, (N, C, h, w).

        Unit(k)                      class k: its logit z_k, and not its probability, which the other logits lower
        Unit(k, "block3")            channel k of a layer, the mean over its places
        Unit(k, "block3", (4, 4))    the neuron of channel k at one place; "centre" is (h // 2, w // 2)
        Unit(v, "block3")            a direction v (C,) of the layer, or several (n, C), as long as they are given

    k is a number or several. `len` says how many units there are, `[rows]` takes some. Raises TypeError or ValueError
    for what is neither numbers nor directions; in the pass for what the layer does not have.
    """

    def __init__(self, unit: int | Sequence[int] | Tensor, layer: str | None = None, place: Place = None):
        try:
            rows = torch.as_tensor(unit)
        except (RuntimeError, TypeError, ValueError):
            raise TypeError("a unit is a number, several numbers, or directions (n, C) of floats, not "
                            f"{unit!r}") from None
        rows = rows[None] if rows.is_floating_point() and rows.dim() == 1 else rows
        rows = rows if rows.is_floating_point() else rows.reshape(-1)
        if rows.dtype == torch.bool or rows.is_complex() or not rows.numel() or (
                rows.is_floating_point() and rows.dim() != 2):
            raise TypeError("a unit is a number, several numbers, or directions (n, C) of floats, not "
                            f"{rows.dtype} {tuple(rows.shape)}")
        if not bool(rows.isfinite().all()) or (not rows.is_floating_point() and int(rows.min()) < 0):
            raise ValueError(f"a unit's number is 0 or more and a direction is finite, not {unit}")
        if place is not None and place != "centre" and (
                layer is None or not isinstance(place, tuple | list) or [type(i) for i in place] != [int, int]):
            raise ValueError(f"place must be (row, column) of a layer's maps, 'centre' or None, not {place!r}")
        self.rows, self.layer, self.place = rows, layer, place

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Unit:
        return Unit(self.rows[rows], self.layer, self.place)

    def each(self, times: int) -> Unit:
        """Every unit several times: 0, 0, …, 1, 1, …"""
        return Unit(self.rows.repeat_interleave(times, 0), self.layer, self.place)

    def answers(self, model: nn.Module, x: Tensor) -> Tensor:
        """A at the place, or its mean over the places: (N, C). Cost: one forward pass."""
        if self.layer is None:
            return model(x)
        with features(model, [self.layer]) as found:
            model(x)
        A = found[self.layer]
        if A.dim() == 2 and self.place is None:
            return A
        if A.dim() != 4:
            raise ValueError(f"the layer {self.layer!r} returns {tuple(A.shape)}: name one that returns maps "
                             "(N, C, h, w), or one that returns (N, C) and no place")
        if self.place is None:
            return A.mean((2, 3))
        i, j = (A.shape[2] // 2, A.shape[3] // 2) if isinstance(self.place, str) else self.place
        if not (0 <= i < A.shape[2] and 0 <= j < A.shape[3]):
            raise ValueError(f"the maps of {self.layer!r} have {A.shape[2]} × {A.shape[3]} places, none at {i}, {j}")
        return A[:, :, i, j]

    def of(self, model: nn.Module, x: Tensor) -> Tensor:
        """h (N,), of one unit for each image, or of one for all."""
        A = self.answers(model, x)
        rows = self._fitting(A).expand(len(x), *self.rows.shape[1:])
        return (A * rows).sum(1) if rows.is_floating_point() else A.gather(1, rows[:, None])[:, 0]

    def table(self, model: nn.Module, x: Tensor) -> Tensor:
        """h (N, n) of all units on all images."""
        A = self.answers(model, x)
        rows = self._fitting(A)
        return A @ rows.T if rows.is_floating_point() else A[:, rows]

    def _fitting(self, A: Tensor) -> Tensor:
        where = "the logits have" if self.layer is None else f"the layer {self.layer!r} has"
        if self.rows.is_floating_point() and self.rows.shape[1] != A.shape[1]:
            raise ValueError(f"{where} {A.shape[1]} units, and the direction {self.rows.shape[1]} entries")
        if not self.rows.is_floating_point() and int(self.rows.max()) >= A.shape[1]:
            raise ValueError(f"{where} {A.shape[1]} units, 0 … {A.shape[1] - 1}, and no unit {int(self.rows.max())}")
        return self.rows.to(A) if self.rows.is_floating_point() else self.rows.to(A.device)


def as_unit(unit: Unit | int | Sequence[int] | Tensor) -> Unit:
    """The unit itself, or the classes of these numbers."""
    return unit if isinstance(unit, Unit) else Unit(unit)


def responses(model: nn.Module, unit: Unit | int | Sequence[int] | Tensor, x: Tensor) -> Tensor:
    """h (N, n): how strongly each unit answers to each image. Cost: one forward pass."""
    unit = as_unit(unit)
    check_images(x)
    with borrowed(model, x), torch.no_grad():
        check_model(model, x)
        return torch.cat([unit.table(model, laid_out(x[rows])) for rows in chunks(x)])


def top_images(
    model: nn.Module, unit: Unit | int | Sequence[int] | Tensor, x: Tensor, top: int = 9,
) -> tuple[Tensor, Tensor]:
    """The real prototypes: the values (n, top) and the places in x of the images to which each unit answers most.

    Of equal answers the first comes first. Raises ValueError for fewer images than `top`. Cost: one forward pass.
    """
    if not 1 <= top <= len(x):
        raise ValueError(f"top must be 1 to {len(x)}, the number of images, not {top}")
    values, order = responses(model, unit, x).sort(dim=0, descending=True, stable=True)
    return values[:top].T, order[:top].T
