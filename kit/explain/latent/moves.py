"""What a code is for: one number of it moved along, groups of it exchanged between images, a classifier watched.

Sources: traversals as in Higgins et al., "beta-VAE" (ICLR 2017); exchange of groups after Zhang et al.,
"Multi-attribute transfer via disentangled representation" (AAAI 2019), whose losses are not public to us.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kit.core import logits


def along(z: Tensor, number: int, values: Tensor) -> Tensor:
    """The codes (N, S, D) of z (N, D) with one number set to each of the values (S,), the others as they are."""
    check_codes(z)
    if not isinstance(number, int) or not 0 <= number < z.shape[1]:
        raise ValueError(f"number={number}: the code has the numbers 0 … {z.shape[1] - 1}")
    values = torch.as_tensor(values)
    moved = z[:, None].repeat(1, len(values), 1)
    moved[:, :, number] = values.to(z)
    return moved


def traverse(vae: Any, z: Tensor, *, numbers: Sequence[int] | None = None, span: float = 2.0, steps: int = 7) -> Tensor:
    """The images (N, numbers, steps, C, H, W) that a decoder draws as each number of z goes from −span to span.

    `vae` has `decode`. Under N(0, 1), 95 % of what was trained lies within ±2. Cost: a pass of the decoder for each.
    """
    if not isinstance(steps, int) or steps < 2 or not 0 < span < math.inf:
        raise ValueError(f"steps={steps}, span={span}: a traversal has at least two steps and a positive span")
    check_coder(vae, "decode")
    check_codes(z)
    if numbers is not None and (isinstance(numbers, int) or not len(numbers)):
        raise ValueError(f"numbers={numbers}: a list of one number of the code or more, or None for all")
    values = torch.linspace(-span, span, steps)
    codes = torch.stack([along(z, j, values) for j in (range(z.shape[1]) if numbers is None else numbers)], 1)
    with torch.no_grad():
        return vae.decode(codes.flatten(0, 2)).unflatten(0, codes.shape[:3])


def swap(a: Tensor, b: Tensor, group: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Codes a and b (N, D), the numbers of `group` exchanged row by row. Twice is the identity; with itself nothing."""
    numbers = list(group)
    check_codes(a)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"two codes of one shape (N, D) are exchanged, not {tuple(a.shape)} and {tuple(b.shape)}")
    if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(a.shape[1])):
        raise ValueError(f"a group holds different numbers among 0 … {a.shape[1] - 1}, not {numbers}")
    mine = torch.zeros(a.shape[1], dtype=torch.bool, device=a.device)
    mine[numbers] = True
    return torch.where(mine, b, a), torch.where(mine, a, b)


def check_codes(z: Tensor) -> None:
    """Raises ValueError for what are no codes (N, D): another shape, none, NaN."""
    if not isinstance(z, Tensor) or z.dim() != 2 or not z.numel():
        raise ValueError("codes are a tensor (N, D) of one row or more, not "
                         f"{tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__}")
    if not bool(z.isfinite().all()):
        raise ValueError("the codes hold NaN or infinity")


def check_coder(model: Any, *needs: str) -> None:
    """Raises TypeError for a network that lacks one of these methods."""
    if missing := [name for name in needs if not hasattr(model, name)]:
        raise TypeError(f"a network with {', '.join(needs)} is needed, such as kit.models.load('vae/factors'); this "
                        f"{type(model).__name__} has no {missing[0]}")


class Progression(NamedTuple):
    """Along one number of each code: the images (N, S, C, H, W) and what a classifier says of them (N, S, K)."""

    images: Tensor
    probabilities: Tensor

    @property
    def effect(self) -> Tensor:
        """How far the classifier is moved, (N,): the largest change of any class's probability over the walk."""
        return (self.probabilities.amax(1) - self.probabilities.amin(1)).amax(1)


def progression(
    model: nn.Module, vae: Any, z: Tensor, number: int, *, span: float = 2.0, steps: int = 7
) -> Progression:
    """An explanation by progressive change: walk along one number of z (N, D) and watch the classifier on the way.

    What it says is about the pair of them. A factor that the code does not carry cannot be seen to matter.
    Cost: `steps` passes of decoder and classifier for each code.
    """
    images = traverse(vae, z, numbers=[number], span=span, steps=steps)[:, 0]
    p = logits(model, images.flatten(0, 1)).softmax(1)
    return Progression(images, p.unflatten(0, images.shape[:2]))
