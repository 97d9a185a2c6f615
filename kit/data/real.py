"""The real sets of equal images: where they are looked for, and how they are read.

Under `KIT_DATA` (`~/.cache/kit/data` where it is unset), in this order: `<name>.npz` with uint8 arrays `x_train`,
`y_train`, `x_test`, `y_test`; torchvision's own layout, there or in `<name>/`; a folder `<name>/` of class folders.
Then torchvision downloads. `dev` is the last tenth of the training file, at most 5000 images, and `train` is the rest.

Any other `<name>.npz` of that form is a set, too. Its classes are named by its array `classes`, where it has one. Its
`dev` is a tenth of the training images, at most 5000, balanced over the classes; where an array of `GROUPS` says which
images of a class belong together (frames of one track, pictures of one lesion), a group is not divided.
"""
from __future__ import annotations

import contextlib
import os
import socket
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kit.data import folders
from kit.data.sets import Data, MissingData, choose, dev_size

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
SPELLINGS = {"cifar10": {"plane": 0, "aeroplane": 0, "car": 1}}  # how others call the class folders
GROUPS = ("group_train", "track_train", "lesion_train", "picture_train")
UNREADABLE = (ValueError, EOFError, OSError, TypeError, zipfile.BadZipFile, zlib.error)
ARRAYS = "the uint8 arrays x_train, y_train, x_test and y_test"


def root() -> Path:
    """`KIT_DATA`, or `~/.cache/kit/data`."""
    return Path(os.environ.get("KIT_DATA") or Path.home() / ".cache" / "kit" / "data").expanduser()


def part(split: str, n: int) -> slice:
    """Which rows of the training or the test file a split is."""
    return {"train": slice(0, n - dev_size(n)), "dev": slice(n - dev_size(n), n), "test": slice(0, n)}[split]


def arrays(name: str, split: str, n: int | None, seed: int) -> Data:
    """mnist, cifar10 or svhn, or the set of any `<name>.npz`."""
    half = "test" if split == "test" else "train"
    npz, where, classes = root() / f"{name}.npz", root() / name, CLASSES.get(name)
    if npz.is_file():
        x, y, rows, classes = _from_npz(npz, split, classes)
    else:
        found = layout(name, half)
        if found is None and folders.is_set(where):
            return folders.folder(where, split, n, seed, None, name == "mnist", classes, SPELLINGS.get(name))
        x, y = _from_torchvision(name, half, found) if found else _download(name, half)
        rows = part(split, len(y))
    x, y = x[rows], y[rows].astype(np.int64)
    rows = choose(y, n, seed, f"{name}/{split}")
    return Data(_images(x[rows]), torch.from_numpy(y[rows]), classes or ())


def _images(x: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W) or (N, H, W, C) → float32 (N, C, H, W) in [0, 1]."""
    t = torch.from_numpy(np.ascontiguousarray(x))
    t = t.unsqueeze(1) if t.ndim == 3 else t.permute(0, 3, 1, 2).contiguous()
    return t.float().div_(255)


# --- <name>.npz -----------------------------------------------------------------------------------------------------


def _from_npz(path: Path, split: str, classes: tuple[str, ...] | None):
    """Images, labels, the rows of the split, and the names of the classes."""
    half = "test" if split == "test" else "train"
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            x, y = file[f"x_{half}"], file[f"y_{half}"].reshape(-1)
            labels = np.concatenate([file[f"y_{h}"].reshape(-1) for h in ("train", "test")])
            names = file["classes"].tolist() if classes is None and "classes" in file else None
    except KeyError as error:
        raise ValueError(f"{path} is no set of images ({error.args[0]}): it must hold {ARRAYS}") from None
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}): it must hold {ARRAYS}, saved by numpy.savez; "
                         "replace it or delete it") from None
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        raise ValueError(f"{path}: x_{half} is {x.dtype} {x.shape}; it must be uint8 (N, H, W) or (N, H, W, C)")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"{path}: {len(x)} images and {len(y)} labels in its {half} half: one label each is needed")
    known = classes or names
    last = len(known) - 1 if known else len(labels) - 1  # more classes than images are a mistake
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > last:
        raise ValueError(f"{path}: y_train and y_test must hold whole numbers from 0 to {last}")
    rows = part(split, len(y)) if split == "test" or classes else rows_of(path, split)
    return x, y, rows, tuple(map(str, known or range(labels.max() + 1)))


def rows_of(path: Path, split: str) -> np.ndarray:
    """The rows of dev or of train among the training images. Those of one class and group stay together."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        y = file["y_train"].reshape(-1)
        name = next((g for g in GROUPS if g in file), None)
        group = file[name].reshape(-1) if name else None
    if group is None:
        return folders.held_out(y, split)
    if len(group) != len(y):
        raise ValueError(f"{path}: {name} must hold {len(y)} numbers, one for each training image, not {len(group)}")
    first, member = np.unique(np.stack([y, group]), axis=1, return_index=True, return_inverse=True)[1:]
    order = choose(y[first], len(first), seed=0)
    size = np.bincount(member.reshape(-1))[order]
    dev = order[: max(1, int((size.cumsum() <= dev_size(len(y))).sum()))]
    inside = np.isin(member.reshape(-1), dev)
    return np.flatnonzero(inside if split == "dev" else ~inside)


def header(path: Path) -> tuple[dict[str, int], tuple[int, ...]] | None:
    """The lengths of train and test, and the shape (C, H, W), from the arrays' headers; None for other files."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("x_train", "y_train", "x_test", "y_test"):
                with archive.open(f"{name}.npy") as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else (
                        np.lib.format.read_array_header_2_0)
                    shapes[name], _, kind = read(file)
                    if name[0] == "x" and (kind != np.uint8 or len(shapes[name]) not in (3, 4)):
                        return None
            size = {half: shapes[f"y_{half}"][0] for half in ("train", "test")}
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile):
        return None
    x = shapes["x_test"]
    return size, ((1, *x[1:]) if len(x) == 3 else (x[3], *x[1:3]))


# --- torchvision's files --------------------------------------------------------------------------------------------


def layout(name: str, half: str) -> Path | None:
    """The folder that torchvision would be given, where its files are there."""
    return next((r for r in (root(), root() / name) if (r / FILES[name][half]).is_file()), None)


def _from_torchvision(name: str, half: str, where: Path) -> tuple[np.ndarray, np.ndarray]:
    import torchvision

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
    import torchvision

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
