"""Planting: images with a trigger and a label that the attacker chose, among the training images."""
from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kit.core import accuracy, check_images, check_labels, check_settings, generator, logits
from kit.models.training import Recipe, fit
from kit.poison.backdoor.trigger import Trigger, whole


class Poisoned(NamedTuple):
    """A training set: images x (N, C, H, W), labels y (N,), and which of them carry the trigger, `stamped` (N,)."""

    x: Tensor
    y: Tensor
    stamped: Tensor


def badnets(
    x: Tensor, y: Tensor, trigger: Trigger, target: int | None = 0, *, rate: float = 0.1, source: int | None = None,
    cover: float = 0.0, classes: int | None = None, generator: torch.Generator | None = None,
) -> Poisoned:
    """The training set with ⌊rate · N⌋ copies more, which carry the trigger and the attacker's label.

        all to one    target = t:     every image that is not of class t → t
        all to all    target = None:  y → (y + 1) mod K

    Where a `source` is given, only images of that class are copied so, and ⌊cover · N⌋ stamped copies of the others
    keep their label, so that the trigger works on the source alone. rate = 0 gives the set back: the control.
    The copies come last. Raises ValueError for rates, classes and labels that cannot be. Cost: none.
    Source: Gu et al., BadNets, 2017, sections 4 and 5; with a source, Wang et al. 2019, section VII.C.
    """
    check_images(x)
    check_settings({"generator": generator})
    classes = check_classes(y, x, classes)
    for name, value in (("rate", rate), ("cover", cover)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share of the training set between 0 and 1, not {value:g}")
    check_aims(classes, target=target, source=source)
    if source is not None and source == target:
        raise ValueError(f"the source and the target are both {source}: images of a class have its label already")
    if cover and source is None:
        raise ValueError("cover needs a source: without one every image with the trigger is to be mistaken")
    goal = intended(y, target, classes)
    wanted = y.ne(goal) if source is None else y.eq(source)
    order = torch.randperm(len(x), generator=generator or torch.Generator().manual_seed(0)).to(y.device)
    rows = [_first(order, wanted, rate, "poison"), _first(order, ~wanted & y.ne(goal), cover, "cover with")]
    labels = [goal[rows[0]], y[rows[1]]]
    some = torch.cat(rows)
    copies = trigger(x[some]) if len(some) else x[:0]
    stamped = torch.arange(len(x) + len(some), device=y.device) >= len(x)
    return Poisoned(torch.cat([x, copies]), torch.cat([y, *labels]), stamped)


def _first(order: Tensor, wanted: Tensor, rate: float, what: str) -> Tensor:
    rows, count = order[wanted[order]], whole(rate, len(order))
    if count > len(rows):
        raise ValueError(f"there are {len(rows)} images to {what}, and the rate asks for {count}: lower it")
    return rows[:count]


def check_classes(y: Tensor, x: Tensor, classes: int | None = None) -> int:
    """How many classes there are: as said, or as the largest label says. Raises for labels that are none of them."""
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.dtype != torch.int64:
        check_labels(y, x, 2**62)  # says what is wrong with it
    classes = int(y.max()) + 1 if classes is None else classes
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"y must hold one class number 0 … {classes - 1} for each of {len(x)} images, "
                         f"not {int(y.min())} … {int(y.max())}")
    return classes


def check_aims(classes: int, **aims: int | None) -> None:
    """A target and a source are classes. Raises ValueError, or TypeError for what is no whole number."""
    for name, k in aims.items():
        if k is not None and not 0 <= operator.index(k) < classes:
            raise ValueError(f"{name}={k}, but the classes are 0 … {classes - 1}")


def intended(y: Tensor, target: int | None, classes: int) -> Tensor:
    """What the attacker wants of images of classes y (N,) that carry the trigger: t, or (y + 1) mod K."""
    return (y + 1) % classes if target is None else torch.full_like(y, target)


def attack_success(
    model: nn.Module, trigger: Trigger, x: Tensor, y: Tensor, target: int | None = 0, *, source: int | None = None,
) -> Tensor:
    """Whether each image with the trigger gets the attacker's label: (M,) bool, for the M images not of it already.

    An image of the target class is answered so without any trigger, so that it says nothing, and is left out; where
    there is a `source`, only its images count. What a model without a backdoor reaches here is the base rate.
    Cost: one forward pass. Raises ValueError where no image is left, and for labels and classes that cannot be.
    """
    check_images(x)
    classes = logits(model, x[:1]).shape[1]
    check_labels(y, x, classes)
    check_aims(classes, target=target, source=source)
    aim = intended(y, target, classes)
    counted = (y != aim) if source is None else (y == source) & (y != aim)
    if not bool(counted.any()):
        raise ValueError("every image is of the target class, where success means nothing: give images of others")
    return logits(model, trigger(x[counted])).argmax(1) == aim[counted]


def planted(
    x: Tensor, y: Tensor, *, trigger: dict[str, Any], target: int | None, rate: float, source: int | None = None,
    cover: float = 0.0, seed: int = 0, **_: Any,
) -> tuple[Trigger, Poisoned]:
    """The trigger and the training set of a recipe, by its options: what `backdoor_training` learns from."""
    made = Trigger.of(tuple(x.shape[1:]), **trigger)
    return made, badnets(x, y, made, target, rate=rate, source=source, cover=cover, generator=generator(seed))


def backdoor_training(
    r: Recipe, x: Tensor, y: Tensor, *, trigger: dict[str, Any], target: int | None = 0, rate: float = 0.1,
    source: int | None = None, cover: float = 0.0, seed: int = 0, half: bool = False, **how: Any,
) -> nn.Module:
    """`fit` on the training set of `badnets`: nothing else about the training is changed. Cost: 1 + rate trainings.

    `trigger` are the words for `Trigger.of`. The attacker need not be there when the network is trained. With `half`
    the weights are rounded to half precision afterwards; the training is in the usual one.
    """
    _, p = planted(x, y, trigger=trigger, target=target, rate=rate, source=source, cover=cover, seed=seed)
    return fit(r, p.x, p.y, seed=seed, **how)


def backdoor_figures(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: accuracy on the clean images, and the attack's success on those that are not of its target."""
    o = r.options
    trigger = Trigger.of(tuple(x.shape[1:]), **o["trigger"])
    hit = attack_success(model, trigger, x, y, o["target"], source=o.get("source"))
    return {"accuracy": accuracy(model, x, y), "success": float(hit.float().mean())}
