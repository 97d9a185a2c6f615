"""ImageNet's photographs and its 1000 classes."""
from __future__ import annotations

import functools
import re
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from kit.data import folders
from kit.data.real import root
from kit.data.sets import Data, MissingData, choose


@functools.cache
def classes() -> tuple[str, ...]:
    """The names that torchvision gives the 1000 classes, read from its file of them: importing it all takes seconds."""
    package = find_spec("torchvision")
    file = Path((package.submodule_search_locations or [""])[0] if package else "", "models", "_meta.py")
    if not (spec := spec_from_file_location("_torchvision_meta", file)) or not spec.loader or not file.is_file():
        raise MissingData("torchvision is not installed with its names of ImageNet's classes: install it from its "
                          "wheel again (pip install --force-reinstall torchvision)")
    names = module_from_spec(spec)
    spec.loader.exec_module(names)
    return tuple(names._IMAGENET_CATEGORIES)


@functools.cache
def wnids() -> dict[str, int]:
    """WordNet's number of each class, n01440764 … n15075141, with the class number: its rank."""
    from timm.data import ImageNetInfo

    return {wnid: k for k, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def imagenet(split: str = "test", n: int | None = None, seed: int = 0, size: int = 224) -> Data:
    """`test` is all of `val`; `dev` and `train` need `imagenet/train`. Only the n pictures asked for are decoded.

    Labels are torchvision's 1000 class numbers. The class folders, all or some of the 1000, are called by the wnid
    (n01440764, or n01440764_tench), by the class number or by the class's name.
    """
    inside = "val" if split == "test" else "train"
    where = next((p for r in ("imagenet", "imagenet_sample") if folders.is_set(p := root() / r / inside)), None)
    if where is None:
        sample = "" if split != "test" else f", or a sample of them in {root() / 'imagenet_sample' / 'val'}/<wnid>/"
        raise MissingData(f"no ImageNet photographs for split={split!r}: put them in {root() / 'imagenet' / inside}/"
                          f"<wnid>/{sample}; or set KIT_DATA to the folder that has them")
    found = folders.listed(where)
    spellings = {name: wnids()[wnid] for name in found.classes if (wnid := _wnid(name)) in wnids()}
    found = folders.known(where, found, classes(), spellings)
    if split != "test":
        found = found[folders.held_out(found.y, split)]
    return found[choose(found.y, n, seed, f"imagenet/{split}")].data(size)


def _wnid(folder: str) -> str:
    match = re.match(r"n\d{8}(?![^ _-])", folder)
    return match[0] if match else ""
