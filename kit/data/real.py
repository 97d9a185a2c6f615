"""The real sets: where they are looked for, and how they are read.

Under `KIT_DATA` (`~/.cache/kit/data` where it is unset), in this order: `<name>.npz` with uint8 arrays `x_train`,
`y_train`, `x_test`, `y_test`; torchvision's own layout, there or in `<name>/`; a folder `<name>/` of class folders.
Then torchvision downloads. `dev` is the last tenth of the training file, at most 5000 images, and `train` is the rest.
"""
from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from kit.data.sets import Data, MissingData, choose

DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES = {"mnist": DIGITS, "cifar10": CIFAR10, "svhn": DIGITS}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "svhn": (3, 32, 32)}
FILES = {  # torchvision's layout: for each file of the set, one that is there when it is
    "mnist": {"train": "MNIST/raw/train-images-idx3-ubyte", "test": "MNIST/raw/t10k-images-idx3-ubyte"},
    "cifar10": {"train": "cifar-10-batches-py/data_batch_1", "test": "cifar-10-batches-py/test_batch"},
    "svhn": {"train": "train_32x32.mat", "test": "test_32x32.mat"},
}
PUBLISHED = {"mnist": (60_000, 10_000), "cifar10": (50_000, 10_000), "svhn": (73_257, 26_032)}
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp"}
ALIASES = {"train": ("train",), "dev": ("dev", "val", "valid", "validation"), "test": ("test",)}


def root() -> Path:
    """`KIT_DATA`, or `~/.cache/kit/data`."""
    return Path(os.environ.get("KIT_DATA") or Path.home() / ".cache" / "kit" / "data").expanduser()


def dev_size(n: int) -> int:
    return min(5000, max(1, n // 10))


def part(split: str, n: int) -> slice:
    """Which rows of the training or the test file a split is."""
    return {"train": slice(0, n - dev_size(n)), "dev": slice(n - dev_size(n), n), "test": slice(0, n)}[split]


# --- sets of equal images: mnist, cifar10, svhn ---------------------------------------------------------------------


def arrays(name: str, split: str, n: int | None, seed: int) -> Data:
    half = "test" if split == "test" else "train"
    npz, layout = root() / f"{name}.npz", _layout(name, half)
    if npz.is_file():
        x, y = _from_npz(npz, half, name)
    elif layout is not None:
        x, y = _from_torchvision(name, half, layout)
    elif (root() / name).is_dir() and _class_folders(_any_split(root() / name)):
        return folder(root() / name, split, n, seed, grey=name == "mnist", classes=CLASSES[name])
    else:
        x, y = _download(name, half)
    own = part(split, len(y))
    x, y = x[own], y[own].astype(np.int64)
    rows = choose(y, n, seed, f"{name}/{split}")
    return Data(_images(x[rows]), torch.from_numpy(y[rows]), CLASSES[name])


def _images(x: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W) or (N, H, W, C) → float32 (N, C, H, W) in [0, 1]."""
    t = torch.from_numpy(np.ascontiguousarray(x))
    t = t.unsqueeze(1) if t.ndim == 3 else t.permute(0, 3, 1, 2).contiguous()
    return t.float().div_(255)


def _from_npz(path: Path, half: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            x, y = file[f"x_{half}"], file[f"y_{half}"]
    except (KeyError, ValueError, EOFError, OSError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): it must hold the uint8 arrays x_train, y_train, x_test and "
                         "y_test, saved by numpy.savez; replace it or delete it") from None
    y = y.reshape(-1)
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        raise ValueError(f"{path}: x_{half} is {x.dtype} {x.shape}; it must be uint8 (N, H, W) or (N, H, W, C)")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"{path}: {len(x)} images and {len(y)} labels in its {half} half: one label each is needed")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(CLASSES[name]):
        raise ValueError(f"{path}: y_{half} must hold whole numbers from 0 to {len(CLASSES[name]) - 1}")
    return x, y


def _layout(name: str, half: str) -> Path | None:
    """The folder that torchvision would be given, where its files are there."""
    return next((r for r in (root(), root() / name) if (r / FILES[name][half]).is_file()), None)


def _from_torchvision(name: str, half: str, where: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        if name == "svhn":
            return _svhn(where / FILES[name][half])
        kind = {"mnist": torchvision.datasets.MNIST, "cifar10": torchvision.datasets.CIFAR10}[name]
        data = kind(str(where), train=half == "train", download=False)
        return np.asarray(data.data), np.asarray(data.targets)
    except Exception as error:  # whatever a broken file provokes in the readers
        path = where / FILES[name][half]
        raise ValueError(f"{path} or a file beside it is corrupt or incomplete ({first_line(error)}): delete it, "
                         "and it will be downloaded again") from None


def _svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The cropped digits' MATLAB file: X (32, 32, 3, N), y (N, 1) in which 10 stands for the digit 0."""
    from scipy.io import loadmat

    file = loadmat(path)
    return np.ascontiguousarray(file["X"].transpose(3, 0, 1, 2)), file["y"].reshape(-1).astype(np.int64) % 10


def _download(name: str, half: str) -> tuple[np.ndarray, np.ndarray]:
    kinds = {"mnist": torchvision.datasets.MNIST, "cifar10": torchvision.datasets.CIFAR10}
    try:
        root().mkdir(parents=True, exist_ok=True)
        with patience(20):
            if name == "svhn":
                torchvision.datasets.SVHN(str(root()), split=half, download=True)
            else:
                kinds[name](str(root()), train=half == "train", download=True)
    except Exception as error:  # no network, no mirror, no right to write: one clear sentence for all of them
        raise MissingData(missing(name, first_line(error))) from None
    return _from_torchvision(name, half, root())


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """A server that does not answer is an error after this long."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def missing(name: str, why: str) -> str:
    return (f"no {name} under {root()}, and it could not be downloaded ({why}). Put there {name}.npz (uint8 arrays "
            f"x_train, y_train, x_test, y_test), or torchvision's files ({FILES[name]['train']}, …), or a folder "
            f"{name}/ of class folders; or set KIT_DATA to the folder that has them")


# --- folders of class folders ---------------------------------------------------------------------------------------


def _class_folders(where: Path) -> list[Path]:
    """The sub-folders that hold pictures, sorted by name."""
    if not where.is_dir():
        return []
    return sorted((d for d in where.iterdir() if d.is_dir() and next(_pictures(d), None)), key=lambda d: d.name)


def _pictures(where: Path) -> Iterator[Path]:
    return (p for p in where.iterdir() if p.suffix.lower() in PICTURES)


def _any_split(where: Path) -> Path:
    """The folder whose sub-folders are the classes: its own, or that of one of its splits."""
    inside = [where / a for names in ALIASES.values() for a in names if _class_folders(where / a)]
    return inside[0] if inside else where


def _listed(where: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    classes = _class_folders(where)
    files = [sorted(_pictures(d)) for d in classes]
    y = np.repeat(np.arange(len(classes)), [len(f) for f in files])
    return [p for f in files for p in f], y, tuple(d.name for d in classes)


def _files(where: Path, split: str) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """The pictures of one split, with their classes.

    With `train`, `dev` (or `val`) and `test` inside, those. A `val` without `test` is the test split. A missing dev is
    held out of train: a tenth, at most 5000. Without any of them: a tenth dev, a fifth test, the rest train.
    """
    have = {s: next((where / a for a in names if _class_folders(where / a)), None) for s, names in ALIASES.items()}
    if have["test"] is None:
        have["test"], have["dev"] = have["dev"], None
    if not any(have.values()):
        files, y, classes = _listed(where)
        order = choose(y, len(y), seed=0)
        dev, test = max(1, len(y) // 10), max(1, len(y) // 5)
        rows = {"test": order[:test], "dev": order[test : test + dev], "train": order[test + dev :]}[split]
    else:
        source = have[split] or (have["train"] if split == "dev" else None)
        if source is None:
            raise MissingData(f"{where} has no {split} split: put class folders in {where / ALIASES[split][0]}")
        files, y, classes = _listed(source)
        names = [_listed_names(d) for d in have.values() if d]
        if any(n != list(classes) for n in names):
            raise ValueError(f"the splits of {where} do not have the same class folders, so that their labels would "
                             "differ: make them the same")
        order = np.arange(len(y))
        if have["dev"] is None and split != "test":
            order = choose(y, len(y), seed=0)
            order = order[: dev_size(len(y))] if split == "dev" else order[dev_size(len(y)) :]
        rows = order
    rows = np.sort(rows)
    return [files[i] for i in rows], y[rows], classes


def _listed_names(where: Path) -> list[str]:
    return [d.name for d in _class_folders(where)]


def _decode(files: list[Path], size: int | None, grey: bool) -> torch.Tensor:
    """Pictures → (N, C, H, W). With `size`: the short side to size · 256/224, then the centre size × size."""
    out: list[np.ndarray] = []
    for path in files:
        try:
            with Image.open(path) as picture:
                image = picture.convert("L" if grey else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            why = first_line(error)
            raise ValueError(f"{path} is not a picture that can be read ({why}): replace it or delete it") from None
        if size is not None:
            w, h = image.size
            k = round(size * 256 / 224) / min(w, h)
            image = image.resize((max(size, round(w * k)), max(size, round(h * k))), Image.Resampling.BILINEAR)
            left, top = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        out.append(np.array(image))
        if out[-1].shape != out[0].shape:
            raise ValueError(f"{path} is {image.width}×{image.height} and {files[0]} is {out[0].shape[1]}×"
                             f"{out[0].shape[0]}: give size=, and all are resized and cropped to it")
    return _images(np.stack(out))


def folder(
    where: str | Path,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    size: int | None = None,
    grey: bool = False,
    classes: tuple[str, ...] | None = None,
) -> Data:
    """Pictures in class folders; the labels are the sorted folders' numbers."""
    where = Path(where).expanduser()
    if not _class_folders(_any_split(where)):
        raise MissingData(f"{where} is no folder of class folders: put pictures in {where / 'CLASS'}, one folder for "
                          f"each class, or in {where / 'train' / 'CLASS'} and {where / 'test' / 'CLASS'}")
    files, y, names = _files(where, split)
    if classes is not None and len(names) != len(classes):
        raise ValueError(f"{where} has {len(names)} class folders; {len(classes)} are expected: {', '.join(classes)}")
    rows = choose(y, n, seed, f"{where.name}/{split}")
    return Data(_decode([files[i] for i in rows], size, grey), torch.from_numpy(y[rows].copy()), classes or names)


# --- ImageNet -------------------------------------------------------------------------------------------------------


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    return tuple(torchvision.models.SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"])


def imagenet(split: str = "test", n: int | None = None, seed: int = 0, size: int = 224) -> Data:
    """`test` is all of `val`; `dev` and `train` need `imagenet/train`. Only the n pictures asked for are decoded.

    Labels are torchvision's 1000 class numbers: the rank of the wnid where all 1000 folders are there, else the number
    at the end of the file's name (`<wnid>_<number>.jpg`).
    """
    inside = "val" if split == "test" else "train"
    where = next((p for r in ("imagenet", "imagenet_sample") if _class_folders(p := root() / r / inside)), None)
    if where is None:
        sample = "" if split != "test" else (
            f", or a sample of them as {root() / 'imagenet_sample' / 'val'}/<wnid>/<wnid>_<class number>.jpg")
        raise MissingData(f"no ImageNet photographs for split={split!r}: put them in {root() / 'imagenet' / inside}/"
                          f"<wnid>/{sample}; or set KIT_DATA to the folder that has them")
    files, y, wnids = _listed(where)
    if len(wnids) != 1000:
        y = _numbered(where, files, y, wnids)
    if split != "test":
        order = choose(y, len(y), seed=0)
        order = np.sort(order[: dev_size(len(y))] if split == "dev" else order[dev_size(len(y)) :])
        files, y = [files[i] for i in order], y[order]
    rows = choose(y, n, seed, f"imagenet/{split}")
    return Data(_decode([files[i] for i in rows], size, False), torch.from_numpy(y[rows].copy()), imagenet_classes())


def _numbered(where: Path, files: list[Path], y: np.ndarray, wnids: tuple[str, ...]) -> np.ndarray:
    number = np.full(len(wnids), -1)
    for path, k in zip(files, y, strict=True):
        found = re.fullmatch(rf"{re.escape(wnids[k])}_(\d{{4}})", path.stem)
        if not found or int(found[1]) > 999 or number[k] not in (-1, int(found[1])):
            break
        number[k] = int(found[1])
    else:
        if (np.diff(number) > 0).all():  # class numbers go by the sorted wnids
            return number[y]
    raise ValueError(f"{where} has {len(wnids)} of ImageNet's 1000 class folders, so that their order does not "
                     "give the class numbers: name the files <wnid>_<class number, 4 digits>.jpg, or bring all 1000")
