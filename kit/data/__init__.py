"""Data sets, all from one function: `load("scenes", "test", n=100)`."""
from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.data import corner_cases, real
from kit.data.digits import COUNTS as DIGITS_COUNTS
from kit.data.digits import digits as _digits
from kit.data.scenes import labels as _scene_labels
from kit.data.scenes import render as _render
from kit.data.scenes import scenes
from kit.data.sets import SPLITS, Data, MissingData, check_split, choose

__all__ = [
    "SPLITS", "Data", "Listing", "MissingData", "available", "corner_cases", "listing", "load", "names", "scenes",
]

SCENES_COUNTS = {"train": 6000, "dev": 1000, "test": 2000}
SCENES_SEEDS = {"train": 20_001, "dev": 20_002, "test": 20_003}
WHAT = {
    "digits": "handwritten digits (scikit-learn), upsampled",
    "scenes": "procedural shapes with masks and concepts",
    "mnist": "handwritten digits",
    "cifar10": "ten kinds of animals and vehicles",
    "svhn": "house numbers, cropped digits",
    "imagenet": "photographs of 1000 classes",
    "folder": "any folder of class folders, root=…",
}


@dataclass(frozen=True)
class Listing:
    """One row of `listing()`: splits maps a split to its number of images, or to None where counting would be dear."""

    name: str
    what: str
    splits: dict[str, int | None]
    shape: tuple[int, ...] | None
    where: str
    available: bool


def names() -> list[str]:
    """The sets that `load` knows by name; it also takes the name of any folder of class folders under `KIT_DATA`."""
    return list(WHAT)


def load(name: str, split: str = "test", n: int | None = None, seed: int = 0, **options) -> Data:
    """A part of a data set: x (N, C, H, W) float32 in [0, 1], y (N,) int64, classes, and where known mask and concepts.

    `n` images are chosen by `seed`, balanced over the classes as far as n allows; the choice for n is the beginning of
    the choice for any larger n. `n=None` is the whole split, in stored order. Hyper-parameters are chosen on "dev".

    Options: scenes `size=32, spurious=0.0` · imagenet `size=224` · folder `root=…, size=None, grey=False`.
    Raises MissingData (a FileNotFoundError) for what is not there, ValueError for what is corrupt or not possible.
    """
    check_split(split)
    if name == "digits":
        return _call(name, _digits, split, n, seed, **options)
    if name == "scenes":
        rows = choose(_scene_labels(np.arange(SCENES_COUNTS[split]), SCENES_SEEDS[split]), n, seed, f"scenes/{split}")
        return _call(name, _render, rows, seed=SCENES_SEEDS[split], **options)
    if name in real.FILES:
        return _call(name, real.arrays, name, split, n, seed, **options)
    if name == "imagenet":
        return _call(name, real.imagenet, split, n, seed, **options)
    if name == "folder":
        where = options.pop("root", None)
        if where is None:
            raise ValueError('load("folder", root=…) needs the folder that holds the class folders')
        return _call(name, real.folder, where, split, n, seed, **options)
    if "/" not in name and name not in ("", ".", "..") and (real.root() / name).is_dir():
        return _call(name, real.folder, real.root() / name, split, n, seed, **options)
    raise ValueError(f"no data set {name!r}: there are {', '.join(WHAT)}, and any folder of class folders under "
                     f"KIT_DATA ({real.root()})")


def _call(name: str, function, *args, **options) -> Data:
    import inspect

    parameters = list(inspect.signature(function).parameters)
    takes = [p for p in parameters[len(args) :] if p not in ("seed", "classes")]
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
    rows = [
        Listing("digits", WHAT["digits"], dict(DIGITS_COUNTS), (1, 28, 28), "embedded", True),
        Listing("scenes", WHAT["scenes"], dict(SCENES_COUNTS), (3, 32, 32), "embedded", True),
    ]
    rows += [_real(name) for name in real.FILES]
    rows.append(_imagenet())
    base = real.root()
    known = {*WHAT, "imagenet_sample", "MNIST", "cifar-10-batches-py"}
    for where in sorted(base.iterdir()) if base.is_dir() else []:
        if where.name not in known and where.is_dir() and real._class_folders(real._any_split(where)):
            rows.append(Listing(where.name, "folder of class folders", _folder_counts(where), None, str(where), True))
    rows.append(Listing("folder", WHAT["folder"], {}, None, "root=…", True))
    return rows


def _split_counts(train: int | None, test: int | None) -> dict[str, int | None]:
    dev = None if train is None else real.dev_size(train)
    return {"train": None if train is None or dev is None else train - dev, "dev": dev, "test": test}


def _real(name: str) -> Listing:
    where, counts, there = real.root() / f"{name}.npz", real.PUBLISHED[name], False
    layout = real._layout(name, "test")
    if where.is_file():
        found = _npz_lengths(where)
        there = found is not None
        counts = found or counts
    elif layout is not None:
        where, there = layout / Path(real.FILES[name]["test"]).parent, True
    elif real._class_folders(real._any_split(real.root() / name)):
        where = real.root() / name
        return Listing(name, WHAT[name], _folder_counts(where), real.SHAPES[name], str(where), True)
    return Listing(name, WHAT[name], _split_counts(*counts), real.SHAPES[name], str(where), there)


def _npz_lengths(path: Path) -> tuple[int, int] | None:
    """The first axis of y_train and y_test from their headers."""
    lengths = []
    try:
        with zipfile.ZipFile(path) as archive:
            for half in ("train", "test"):
                with archive.open(f"y_{half}.npy") as file:
                    version = np.lib.format.read_magic(file)
                    read = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
                    lengths.append(getattr(np.lib.format, read)(file)[0][0])
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile):
        return None
    return lengths[0], lengths[1]


def _folder_counts(where: Path) -> dict[str, int | None]:
    counts: dict[str, int | None] = {}
    for split in SPLITS:
        try:
            counts[split] = len(real._files(where, split)[0])
        except (MissingData, ValueError):
            counts[split] = 0
    return counts


def _imagenet() -> Listing:
    counts: dict[str, int | None] = dict.fromkeys(SPLITS, 0)
    found = next((r for r in ("imagenet", "imagenet_sample") if real._class_folders(real.root() / r / "val")), None)
    if found:
        counts["test"] = len(real._listed(real.root() / found / "val")[0])
    if found == "imagenet" and real._class_folders(real.root() / "imagenet" / "train"):
        counts["train"] = counts["dev"] = None  # a million files: not counted
    where = str(real.root() / (found or "imagenet"))
    return Listing("imagenet", WHAT["imagenet"], counts, (3, 224, 224), where, found is not None)
