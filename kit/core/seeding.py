"""Randomness comes from a `generator=`; nothing here touches the ambient random state. And on what is computed."""
from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def generator(seed: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh random generator. One on the CPU gives the same draws whatever device the images are on."""
    return torch.Generator(device).manual_seed(seed)


class Draws:
    """A random stream for each image of a call. What an image draws depends on the seed and on its place in the batch
    alone: not on its mates, not on when they are done, not on how the batch is cut into chunks.

    `draws[rows]` are the streams of some of the images; they go on where they are, whoever draws from them.
    `draws.alike()` is a generator that is the same for all images and all chunks, for what they draw together.
    """

    def __init__(self, images: int, source: torch.Generator | None = None):
        source = source or generator()
        seeds = torch.randint(2**62, (images + 1,), generator=source, device=source.device).tolist()
        self._alike, self._streams = seeds[0], [generator(seed) for seed in seeds[1:]]

    def __getitem__(self, rows: slice | Tensor | list[int] | int) -> Draws:
        some = Draws.__new__(Draws)
        places = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        some._alike, some._streams = self._alike, [self._streams[i] for i in places.reshape(-1).tolist()]
        return some

    def __len__(self) -> int:
        return len(self._streams)

    def alike(self) -> torch.Generator:
        return generator(self._alike)

    def fill(self, like: Tensor, kind: str) -> Tensor:
        """U(0, 1) or N(0, 1) numbers of the shape (N, …), dtype and device of `like`, each row from its own stream."""
        if len(like) != len(self):
            raise ValueError(f"{len(like)} rows cannot be drawn from the streams of {len(self)} images")
        drawn = torch.empty(like.shape, dtype=like.dtype)
        for row, stream in zip(drawn.unbind(), self._streams, strict=True):
            getattr(row, kind)(generator=stream)
        return drawn.to(like.device)


Source = torch.Generator | Draws | None


def alike(source: Source) -> torch.Generator:
    """A generator for what all images draw together: the same in every chunk."""
    return source.alike() if isinstance(source, Draws) else source or generator()


def uniform(like: Tensor, source: Source, low: float = 0.0, high: float = 1.0) -> Tensor:
    """U(low, high) of the shape, dtype and device of `like`. No generator means seed 0, so that a call repeats."""
    return _draw("uniform_", like, source).mul_(high - low).add_(low)


def normal(like: Tensor, source: Source, sigma: float = 1.0) -> Tensor:
    """N(0, sigma²) of the shape, dtype and device of `like`."""
    return _draw("normal_", like, source).mul_(sigma)


def _draw(kind: str, like: Tensor, source: Source) -> Tensor:
    if isinstance(source, Draws):
        return source.fill(like, kind)
    source = source or generator()
    drawn = torch.empty(like.shape, dtype=like.dtype, device=source.device)
    return getattr(drawn, kind)(generator=source).to(like.device)


@contextmanager
def ambient_randomness_kept(device: torch.device) -> Iterator[None]:
    """Give the global random state back as it was: a randomised model may draw from it while it is attacked."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_everything(seed: int = 0) -> torch.Generator:
    """Seed Python, NumPy and torch for a notebook, and return a generator for what asks for one."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - scikit-learn and scikit-image read NumPy's global state
    torch.manual_seed(seed)
    return generator(seed)


def device(name: str = "auto") -> torch.device:
    """`"auto"` is the GPU where there is one, which then computes as a CPU does (`repeatable_cuda`). Raises ValueError
    for a GPU that is not there."""
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("this machine has no GPU that torch can use: choose device='cpu' or device='auto'")
        repeatable_cuda()
    return chosen


def repeatable_cuda() -> None:
    """Let a GPU give a CPU's figures as nearly as it can, and the same ones in every run. For the whole process.

    Convolutions keep float32's 24 bits, which cuDNN else rounds to the 11 of TF32, more than what many attacks change.
    cuDNN and cuBLAS choose algorithms that add in a fixed order; an operation that has none is computed all the same.
    How much goes to the GPU at once is `kit.core.passes.PIXELS`. Cost: convolutions without tensor cores.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    warnings.filterwarnings("ignore", ".*(does not have a deterministic implementation|control TF32 behavior)")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
