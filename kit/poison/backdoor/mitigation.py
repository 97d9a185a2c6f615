"""Taking a backdoor out, once its trigger is known or guessed: prune the units that it excites, or unlearn it.

Source: Wang et al., Neural Cleanse, IEEE S&P 2019, section VI.
"""
from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kit.core import accuracy, borrowed, check_images, chunks, features, laid_out
from kit.models.training import Recipe, fit
from kit.poison.backdoor.inspection import pooled
from kit.poison.backdoor.planting import attack_success
from kit.poison.backdoor.trigger import Trigger, whole


class Kept(nn.Module):
    """Some channels or units, the others set to zero."""

    kept: Tensor

    def __init__(self, units: int):
        super().__init__()
        self.register_buffer("kept", torch.ones(units))

    def forward(self, h: Tensor) -> Tensor:
        return h * self.kept.to(h).view(-1, *[1] * (h.dim() - 2))


class Pruned(NamedTuple):
    """The network without `units`, in the order they went; after each number of them, from none on, the `success` of
    the trigger that was given, and the `accuracy`."""

    model: nn.Module
    units: list[int]
    success: list[float]
    accuracy: list[float]


def excitement(model: nn.Module, layer: str, trigger: Trigger, x: Tensor) -> Tensor:
    """mean φ(A(x)) − mean φ(x) of each unit or channel of the layer (U,). Cost: two forward passes."""
    total: Any = 0.0
    with borrowed(model, x), torch.no_grad():
        for rows in chunks(x):
            for sign, images in ((1, trigger(x[rows])), (-1, x[rows])):
                with features(model, [layer]) as found:
                    model(laid_out(images))
                total = total + sign * pooled(found[layer]).sum(0)
    return total / len(x)


def prune(
    model: nn.Module, layer: str, trigger: Trigger, x: Tensor, y: Tensor, target: int, *, until: float = 0.05,
    most: float = 0.5,
) -> Pruned:
    """A copy whose units of `layer` are zeroed, the most excited by the trigger first, until it works no more.

    Stops at a success of at most `until`, measured as `attack_success` does with the trigger that was given, or after
    the share `most` of the units. x, y are clean images. Where the trigger is one that `reverse_triggers` found, the
    planted one may outlive it: look at both. Cost: two forward passes of x for each unit.
    """
    check_images(x)
    if not 0 <= until < 1 or not 0 < most <= 1:
        raise ValueError(f"until and most are shares, not {until:g} and {most:g}")
    order = excitement(model, layer, trigger, x).argsort(descending=True).tolist()
    pruned = copy.deepcopy(model)
    parent, _, name = layer.rpartition(".")
    gate = Kept(len(order)).to(x.device)
    setattr(pruned.get_submodule(parent), name, nn.Sequential(pruned.get_submodule(layer), gate))
    units, success, right = [], [], []
    for unit in [None, *order[: whole(most, len(order))]]:
        if unit is not None:
            gate.kept[unit] = 0
            units.append(unit)
        success.append(float(attack_success(pruned, trigger, x, y, target).float().mean()))
        right.append(accuracy(pruned, x, y))
        if success[-1] <= until:
            break
    return Pruned(pruned, units, success, right)


def unlearn(
    model: nn.Module, trigger: Trigger, x: Tensor, y: Tensor, *, share: float = 0.2, epochs: int = 1, batch: int = 32,
    lr: float = 1e-3, seed: int = 0,
) -> nn.Module:
    """A copy that learns on from clean images x, y, a `share` of which carry the trigger and their *true* label.

    The paper: one epoch on a tenth of the training set, a fifth of it with the trigger. Images of the target class
    carry it too, with the same right label. share = 0 is plain fine-tuning: the control. Cost: `epochs` forward and
    backward passes.
    """
    check_images(x)
    if not 0 <= share <= 1:
        raise ValueError(f"share is how many images carry the trigger, between 0 and 1, not {share:g}")
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: whole(share, len(x))].to(x.device)
    images = x.clone()
    if len(rows):
        images[rows] = trigger(x[rows])
    r = Recipe("clean images", "none", epochs=epochs, batch=batch, lr=lr)
    return fit(r, images, y, device=x.device, seed=seed, start=copy.deepcopy(model).requires_grad_()).eval()
