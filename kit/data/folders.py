"""Folders of class folders. A picture's class is the name of its folder, wherever that name sorts."""
from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kit.data.pictures import decode, is_picture
from kit.data.sets import Data, MissingData, choose, dev_size

SPLIT_FOLDERS = {"train": ("train",), "dev": ("dev", "val", "valid", "validation"), "test": ("test",)}
# What systems leave behind, besides names that begin with a dot.
LITTER = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def hidden(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def subfolders(where: Path) -> list[Path]:
    """The visible folders in `where`, by name; by number where every name is a whole number."""
    if not where.is_dir():
        return []
    return in_order(d for d in where.iterdir() if not hidden(d.name) and d.is_dir())


def in_order(folders) -> list[Path]:
    found = sorted(folders, key=lambda d: d.name)
    if all(d.name.isdecimal() for d in found):
        found.sort(key=lambda d: int(d.name))
    return found


def walk(where: Path) -> Iterator[Path]:
    """The visible files in `where` and in its folders, at any depth, in a fixed order."""
    for place, folders, files in os.walk(where, onerror=_unreadable):
        folders[:] = sorted(f for f in folders if not hidden(f))
        yield from (Path(place, f) for f in sorted(files) if not hidden(f))


def _unreadable(error: OSError) -> None:
    raise error


def has_pictures(where: Path) -> bool:
    return any(is_picture(p) for p in walk(where))


def is_set(where: Path) -> bool:
    """Whether there are class folders in `where`, or in one of its splits. What may not be read is none."""
    try:
        return any(has_pictures(d) for d in subfolders(where))
    except PermissionError:
        return False


def splits(where: Path) -> dict[str, Path]:
    """The splits that `where` has as folders of class folders. A `val` without a `test` is the test split."""
    have = {}
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            if split not in have and _is_split(where / name):
                have[split] = where / name
    if "test" not in have and "dev" in have:
        have["test"] = have.pop("dev")
    beside = [d.name for d in subfolders(where)
              if have and not any(d.name in names for names in SPLIT_FOLDERS.values()) and _holds_pictures(d)]
    if beside:
        raise ValueError(f"{where} has {', '.join(d.name for d in have.values())} as a split and pictures in "
                         f"{beside[0]}, as if that were a class beside it: move one of them elsewhere")
    return have


def _is_split(where: Path) -> bool:
    return not _holds_pictures(where) and any(has_pictures(d) for d in subfolders(where))


def _holds_pictures(where: Path) -> bool:
    """Directly, not in a folder within."""
    return where.is_dir() and any(is_picture(p) and not hidden(p.name) for p in where.iterdir())


@dataclass(frozen=True)
class Files:
    """Picture files, with the class of each: a place in `classes`, the names of the class folders."""

    paths: list[Path]
    y: np.ndarray
    classes: tuple[str, ...]

    def __getitem__(self, rows: np.ndarray) -> Files:
        return Files([self.paths[i] for i in rows], self.y[rows], self.classes)

    def data(self, size: int | None = None, grey: bool = False) -> Data:
        return Data(decode(self.paths, size, grey), torch.from_numpy(self.y.copy()), self.classes)


def listed(where: Path, warn: bool = True) -> Files:
    """Every picture of the class folders in `where`; an empty class folder is a class, too.

    Warns of files that are left out since they are no pictures.
    """
    folders = subfolders(where)
    files = [list(walk(d)) for d in folders]
    pictures = [[p for p in inside if is_picture(p)] for inside in files]
    others = [p for inside in files for p in inside if not is_picture(p)]
    if others and warn:
        warnings.warn(f"{len(others)} files in {where} are no pictures that can be read and are left out: "
                      f"{others[0].relative_to(where)}{', …' if len(others) > 1 else ''}", stacklevel=2)
    y = np.repeat(np.arange(len(folders)), [len(p) for p in pictures])
    return Files([p for inside in pictures for p in inside], y, tuple(d.name for d in folders))


def files(where: Path, split: str, warn: bool = True) -> Files:
    """The pictures of one split.

    With `train`, `dev` (or `val`) and `test` inside, those. A `val` without `test` is the test split. A missing dev is
    held out of train: a tenth, at most 5000. Without any of them: a tenth dev, a fifth test, the rest train.
    """
    have = splits(where)
    if not have:
        all_of_it = listed(where, warn)
        order = choose(all_of_it.y, len(all_of_it.y), seed=0)
        dev, test = max(1, len(order) // 10), max(1, len(order) // 5)
        rows = {"test": order[:test], "dev": order[test : test + dev], "train": order[test + dev :]}[split]
        return all_of_it[np.sort(rows)]
    source = have.get(split) or (have.get("train") if split == "dev" else None)
    if source is None:
        raise MissingData(f"{where} has no {split} split: put class folders in {where / SPLIT_FOLDERS[split][0]}")
    found = listed(source, warn)
    for other in have.values():
        differ = set(found.classes) ^ {d.name for d in subfolders(other)}
        if differ:
            raise ValueError(f"the splits of {where} do not have the same class folders, so that their labels would "
                             f"differ: make {min(differ)} in {source.name} and in {other.name}, or in neither")
    if "dev" in have or split == "test":
        return found
    return found[held_out(found.y, split)]


def held_out(y: np.ndarray, split: str) -> np.ndarray:
    """The rows of a training set that are its dev split, balanced over the classes, or its train split."""
    order = choose(y, len(y), seed=0)
    return np.sort(order[: dev_size(len(y))] if split == "dev" else order[dev_size(len(y)) :])


def folder(
    where: str | Path,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    size: int | None = None,
    grey: bool = False,
    classes: Sequence[str] | None = None,
    spellings: Mapping[str, int] | None = None,
) -> Data:
    """Pictures in class folders. The labels are the folders' places by name, or their numbers among `classes`."""
    where = Path(where).expanduser()
    if not is_set(where):
        raise MissingData(f"{where} is no folder of class folders: put pictures in {where / 'CLASS'}, one folder for "
                          f"each class, or in {where / 'train' / 'CLASS'} and {where / 'test' / 'CLASS'}")
    found = files(where, split)
    if classes is not None:
        found = known(where, found, classes, spellings or {})
    return found[choose(found.y, n, seed, f"{where.name}/{split}")].data(size, grey)


def known(where: Path, found: Files, classes: Sequence[str], spellings: Mapping[str, int]) -> Files:
    """The same pictures with their numbers among `classes`, which the names of their folders say.

    A folder is called by the number of its class, by its name, or as `spellings` says. Raises for any other name.
    """
    numbers = np.full(len(found.classes), -1)
    meant = meanings(classes, spellings)
    for k, name in enumerate(found.classes):
        number = int(name) if name.isdecimal() and int(name) < len(classes) else meant.get(_plain(name), -1)
        if number < 0:
            raise ValueError(f"{where} has a class folder {name}, which is no class of this set: call each by its "
                             f"number, 0 to {len(classes) - 1}, or by its name ({', '.join(classes[:3])}, …)")
        if number in numbers:
            both = found.classes[int((numbers == number).argmax())], name
            raise ValueError(f"{where} has two folders of the class {classes[number]}, {both[0]} and {both[1]}: "
                             "make them one")
        numbers[k] = number
    return Files(found.paths, numbers[found.y], tuple(classes))


def meanings(classes: Sequence[str], spellings: Mapping[str, int]) -> dict[str, int]:
    """Plain spelling → class, without those that two classes share."""
    plain = [_plain(c) for c in classes]
    return {p: k for k, p in enumerate(plain) if plain.count(p) == 1} | {_plain(s): k for s, k in spellings.items()}


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ")
