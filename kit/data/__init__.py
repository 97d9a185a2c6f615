"""Data sets, all from one function: `load("scenes", "test", n=100)`."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.data import corner_cases, digits, factors, folders, imagenet, photos, real
from kit.data.records import Records, records
from kit.data.scenes import frames, hues, labels, outline, render, scenes, with_every_shape
from kit.data.sets import SPLITS, Data, MissingData, check_split, choose, dev_size

__all__ = [
    "SPLITS", "Data", "Listing", "MissingData", "Records", "available", "corner_cases", "factors", "frames",
    "hues", "listing", "load", "names", "outline", "records", "render", "scenes", "with_every_shape",
]

SCENES_COUNTS = {"train": 6000, "dev": 1000, "test": 2000}
SCENES_SEEDS = {"train": 20_001, "dev": 20_002, "test": 20_003}
WHAT = {
    "digits": "handwritten digits",
    "scenes": "shapes, with masks and concepts",
    "factors": "shapes in every size and place once",
    "photos": "photographs, classes of ImageNet",
    "mnist": "handwritten digits",
    "cifar10": "animals and vehicles",
    "svhn": "house numbers, cropped digits",
    "imagenet": "photographs of 1000 classes",
    "folder": "any folder of class folders",
}

NOT_OWN = ("imagenet_sample", "MNIST", "cifar-10-batches-py")  # folders of sets that have a row of their own


@dataclass(frozen=True)
class Listing:
    """One row of `listing()`; splits maps a split to its number of images, or to None where counting would be dear."""

    name: str
    what: str
    splits: dict[str, int | None]
    shape: tuple[int, ...] | None
    where: str
    available: bool


def names() -> list[str]:
    """The sets that `load` knows by name. It also takes that of any `.npz` or folder of class folders in `KIT_DATA`."""
    return list(WHAT)


def load(name: str, split: str = "test", n: int | None = None, seed: int = 0, **options) -> Data:
    """A part of a data set: x (N, C, H, W) float32 in [0, 1], y (N,) int64, classes, and where known mask and concepts.

    `n` images are chosen by `seed`, balanced over the classes as far as n allows; the choice for n is the beginning of
    the choice for any larger n. `n=None` is the whole split, in stored order. Hyper-parameters are chosen on "dev".

    Options: scenes `size=32, spurious=0.0` · photos `size=224, which=None` · imagenet `size=224` · folder
    `root=…, size=None, grey=False`.
    Raises MissingData (a FileNotFoundError) for what is not there, ValueError for what is corrupt or not possible.
    """
    check_split(split)
    if name == "digits":
        return _call(name, digits.digits, split, n, seed, **options)
    if name == "scenes":
        rows = choose(labels(np.arange(SCENES_COUNTS[split]), SCENES_SEEDS[split]), n, seed, f"scenes/{split}")
        return _call(name, render, rows, seed=SCENES_SEEDS[split], **options)
    if name == "factors":
        return _call(name, factors.factors, split, n, seed, **options)
    if name == "photos":
        return _call(name, photos.photos, split, n, seed, **options)
    if name == "imagenet":
        return _call(name, imagenet.imagenet, split, n, seed, **options)
    if name == "folder":
        where = options.pop("root", None)
        if where is None:
            raise ValueError('load("folder", root=…) needs the folder that holds the class folders')
        return _call(name, folders.folder, where, split, n, seed, **options)
    plain = name not in ("", ".", "..") and Path(name).name == name
    if name in real.FILES or (plain and (real.root() / f"{name}.npz").is_file()):
        return _call(name, real.arrays, name, split, n, seed, **options)
    if plain and (real.root() / name).is_dir():
        return _call(name, folders.folder, real.root() / name, split, n, seed, **options)
    raise ValueError(f"no data set {name!r}: there are {', '.join(WHAT)}, and any NAME.npz or folder NAME of class "
                     f"folders under KIT_DATA ({real.root()})")


def _call(name: str, function, *args, **options) -> Data:
    import inspect

    parameters = list(inspect.signature(function).parameters)
    takes = [p for p in parameters[len(args) :] if p not in ("seed", "classes", "spellings")]
    unknown = [o for o in options if o not in takes and o != "seed"]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}: it takes {', '.join(takes) or 'none'}")
    return function(*args, **options)


def available(name: str) -> bool:
    """Whether the set is there without a download."""
    row = next((r for r in listing() if r.name == name), None)
    if row is None:
        raise ValueError(f"no data set {name!r}: there are {', '.join(r.name for r in listing())}")
    return row.available


def listing() -> list[Listing]:
    """Every set, with what is there of it. Reads headers and folders only; downloads nothing."""
    photographs: dict[str, int | None] = {"train": 0, "dev": 0, "test": len(photos.LABELLED)}
    rows = [
        Listing("digits", WHAT["digits"], dict(digits.COUNTS), (1, 28, 28), "embedded", True),
        Listing("scenes", WHAT["scenes"], dict(SCENES_COUNTS), (3, 32, 32), "embedded", True),
        Listing("factors", WHAT["factors"], dict.fromkeys(SPLITS, 768), (1, 16, 16), "embedded", True),
        Listing("photos", WHAT["photos"], photographs, (3, 224, 224), "embedded", True),
    ]
    rows += [_known(name) for name in real.FILES]
    rows.append(_imagenet_row())
    base = real.root()
    own = [_own(path) for path in (sorted(base.iterdir()) if base.is_dir() else [])]
    rows += [row for row in own if row is not None]
    rows.append(Listing("folder", WHAT["folder"], {}, None, "root=…", True))
    return rows


def _known(name: str) -> Listing:
    base, (train, test) = real.root(), real.PUBLISHED[name]
    npz, layout = base / f"{name}.npz", real.layout(name, "test")
    counts, where, there = _split_counts(train, test), npz, False
    if npz.is_file():
        if found := real.header(npz):
            counts, there = _split_counts(found[0]["train"], found[0]["test"]), True
    elif layout is not None:
        where, there = layout / Path(real.FILES[name]["test"]).parent, True
    elif folders.is_set(base / name):
        counts, where, there = _folder_counts(base / name), base / name, True
    return Listing(name, WHAT[name], counts, real.SHAPES[name], str(where), there)


def _split_counts(train: int, test: int) -> dict[str, int | None]:
    return {"train": train - dev_size(train), "dev": dev_size(train), "test": test}


def _own(path: Path) -> Listing | None:
    """What the user put under KIT_DATA, where it is a set that has no row yet."""
    name = path.stem if path.suffix == ".npz" else path.name
    if folders.hidden(name) or name in {*WHAT, *NOT_OWN}:
        return None
    if path.suffix == ".npz" and path.is_file() and (found := real.header(path)):
        size, shape = found
        counts, there = _split_counts(size["train"], size["test"]), True
        try:
            counts |= {s: len(real.rows_of(path, s)) for s in ("train", "dev")}
        except (*real.UNREADABLE, KeyError):
            there = False
        return Listing(name, "arrays", counts, shape, str(path), there)
    if folders.is_set(path) and not path.with_name(f"{name}.npz").is_file():
        return Listing(name, "folder of class folders", _folder_counts(path), None, str(path), True)
    return None


def _folder_counts(where: Path) -> dict[str, int | None]:
    counts: dict[str, int | None] = {}
    for split in SPLITS:
        try:
            counts[split] = len(folders.files(where, split, warn=False).paths)
        except (OSError, ValueError):
            counts[split] = 0
    return counts


def _imagenet_row() -> Listing:
    base = real.root()
    counts: dict[str, int | None] = dict.fromkeys(SPLITS, 0)
    found = next((r for r in ("imagenet", "imagenet_sample") if folders.is_set(base / r / "val")), None)
    if found:
        counts["test"] = len(folders.listed(base / found / "val", warn=False).paths)
    if found == "imagenet" and folders.is_set(base / "imagenet" / "train"):
        counts["train"] = counts["dev"] = None  # a million files: not counted
    where = str(base / (found or "imagenet"))
    return Listing("imagenet", WHAT["imagenet"], counts, (3, 224, 224), where, found is not None)
