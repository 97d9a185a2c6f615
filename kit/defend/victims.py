"""The six defences of the thesis's table, ready to be attacked: `load("R&P")`."""
from collections.abc import Callable

import torch
from torch import nn

import kit.models
from kit.core import device as pick_device
from kit.defend.purify import HGD, ComDefend, FeatureDistillation, RandomEnsemble, RandomResizePad
from kit.defend.smoothing import Smoothed

VICTIMS: dict[str, Callable[[], nn.Module]] = {
    "HGD": lambda: HGD(kit.models.load("scenes/inception")),
    "R&P": lambda: RandomResizePad(kit.models.load("ens3/inception")),
    "NIPS-r3": lambda: RandomEnsemble([kit.models.load(n) for n in ("ens3/inception", "ens4/inception", "adv/resnet")]),
    "FD": lambda: FeatureDistillation(kit.models.load("ens3/inception")),
    "ComDefend": lambda: ComDefend(kit.models.load("ens3/inception")),
    "RS": lambda: Smoothed(kit.models.load("noisy/inception")),
}


def names() -> list[str]:
    """The defences that `load` knows."""
    return list(VICTIMS)


def load(name: str, device: str | torch.device | None = None) -> nn.Module:
    """A defence around a network of scenes: images (N, 3, 32, 32) in [0, 1] → logits (N, 10), in eval mode.

    `device` is as in `kit.models.load`. Raises ValueError for a name that does not exist.
    """
    if name not in VICTIMS:
        raise ValueError(f"no defence {name!r}: there are {', '.join(VICTIMS)}")
    return VICTIMS[name]().to("cpu" if device is None else pick_device(str(device)))
