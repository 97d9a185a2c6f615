"""Randomness comes from a `generator=`; nothing here touches the ambient random state."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def generator(seed: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh random generator. One on the CPU gives the same draws whatever device the images are on."""
    return torch.Generator(device).manual_seed(seed)


def uniform(like: Tensor, generator: torch.Generator | None, low: float = 0.0, high: float = 1.0) -> Tensor:
    """U(low, high) of the shape, dtype and device of `like`. No generator means seed 0, so that a call repeats."""
    return _draw(torch.rand, like, generator).mul_(high - low).add_(low)


def normal(like: Tensor, generator: torch.Generator | None, sigma: float = 1.0) -> Tensor:
    """N(0, sigma²) of the shape, dtype and device of `like`."""
    return _draw(torch.randn, like, generator).mul_(sigma)


def _draw(sampler, like, source):
    source = source or generator()
    return sampler(like.shape, generator=source, device=source.device, dtype=like.dtype).to(like.device)


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
    """`"auto"` is the GPU where there is one. Raises ValueError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(name)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no GPU that torch can use: choose device='cpu' or device='auto'")
    return chosen
