"""`photos`: the photographs that scikit-image and scikit-learn carry, with their ImageNet classes."""
from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from kit.data import imagenet
from kit.data.pictures import decode
from kit.data.sets import Data, MissingData, choose

SKIMAGE, SKLEARN = "skimage/data", "sklearn/datasets/images"
# name → file, ImageNet's class number. The motorcycle, the rocket and the dahlia have no class of their own: theirs is
# the nearest. None is a photograph of nothing that ImageNet knows.
PHOTOS: dict[str, tuple[str, int | None]] = {
    "cat": (f"{SKIMAGE}/chelsea.png", 282),  # tiger cat
    "coffee": (f"{SKIMAGE}/coffee.png", 967),  # espresso
    "camera": (f"{SKIMAGE}/camera.png", 872),  # tripod; grey
    "rocket": (f"{SKIMAGE}/rocket.jpg", 657),  # missile
    "motorcycle": (f"{SKIMAGE}/motorcycle_left.png", 665),  # moped
    "palace": (f"{SKLEARN}/china.jpg", 698),  # palace
    "flower": (f"{SKLEARN}/flower.jpg", 985),  # daisy
    "astronaut": (f"{SKIMAGE}/astronaut.png", None),
    "coins": (f"{SKIMAGE}/coins.png", None),  # grey
    "moon": (f"{SKIMAGE}/moon.png", None),  # grey
    "grass": (f"{SKIMAGE}/grass.png", None),  # grey
    "brick": (f"{SKIMAGE}/brick.png", None),  # grey
    "gravel": (f"{SKIMAGE}/gravel.png", None),  # grey
}
LABELLED = tuple(name for name, (_, k) in PHOTOS.items() if k is not None)


def photos(
    split: str = "test", n: int | None = None, seed: int = 0, size: int = 224, which: Sequence[str] | None = None
) -> Data:
    """Photographs (N, 3, size, size), cut as ImageNet's are: y is the class number, classes the 1000 names.

    `which` names photographs, in the order they are given in; without it all come that show one of the classes. One
    that shows none has the label −1. `concepts["photo"]` says which photograph an image is. All are test images.
    """
    if split != "test":
        raise MissingData(f"photos has no {split} split: all of its {len(LABELLED)} photographs are test images")
    if isinstance(which, str):
        which = [which]
    names = list(LABELLED if which is None else which)
    for name in names:
        if name not in PHOTOS:
            raise ValueError(f"no photograph {name!r}: there are {', '.join(PHOTOS)}")
    if not names:
        raise ValueError("which=[] names no photograph: leave it out for all that show a class of ImageNet")
    y = np.array([-1 if PHOTOS[name][1] is None else PHOTOS[name][1] for name in names])
    rows = choose(y, n, seed, "photos/test")
    x = decode([path(names[i]) for i in rows], size)
    photo = torch.tensor([list(PHOTOS).index(names[i]) for i in rows])
    return Data(x, torch.from_numpy(y[rows]), imagenet.classes(), None, {"photo": photo}, {"photo": tuple(PHOTOS)})


def path(name: str) -> Path:
    """Where the photograph lies in the package that carries it. The package is not imported."""
    package, _, inside = PHOTOS[name][0].partition("/")
    found = find_spec(package)
    file = Path((found.submodule_search_locations or [""])[0] if found else "", inside)
    if not file.is_file():
        wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise MissingData(f"{wheel} is not installed with its picture {file.name}: install it from its wheel again "
                          f"(pip install --force-reinstall {wheel})")
    return file
