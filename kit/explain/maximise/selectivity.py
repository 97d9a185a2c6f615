"""Do units mean more than random directions? The top images of ⟨φ(x), e_i⟩ against those of ⟨φ(x), v⟩.

Szegedy et al. looked at such images and saw as much meaning in random directions as in units. Where the images have
labels it can be counted: a direction is pure as far as its top images agree in one of them.
Source: Szegedy et al., Intriguing properties of neural networks, ICLR 2014, section 3. The count, its null and the test
are ours.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kit.core import generator as fresh
from kit.core import normal


class Selectivity(NamedTuple):
    """Purities, in [0, 1]: of units (C,), of random directions (R,), and the mean of the units where the labels were
    dealt out anew (S,), which is what agreement by chance is. `p` is the share of random divisions of units and
    directions whose means differ by as much."""

    units: Tensor
    directions: Tensor
    chance: Tensor
    p: float


def purity(phi: Tensor, labels: Tensor, v: Tensor, top: int = 10) -> Tensor:
    """The largest share of one label among the `top` rows of φ (N, D) with the largest ⟨φ, v⟩, for each v (V, D).

    Returns (V,). Of equal answers the first come first. Raises ValueError for labels that are not (N,) or a `top`
    that is not 1 to N.
    """
    if labels.shape != (len(phi),) or v.dim() != 2 or v.shape[1:] != phi.shape[1:]:
        raise ValueError(f"φ (N, D) needs labels (N,) and directions (V, D), not {tuple(phi.shape)}, "
                         f"{tuple(labels.shape)} and {tuple(v.shape)}")
    if not 1 <= top <= len(phi):
        raise ValueError(f"top must be 1 to {len(phi)}, the number of images, not {top}")
    best = (phi @ v.T).sort(dim=0, descending=True, stable=True).indices[:top]
    return torch.stack([(labels[best] == k).double().mean(0) for k in labels.unique()]).amax(0)


def random_directions(n: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """n directions (n, D) of length 1, uniform on the sphere, for φ (N, D)."""
    v = normal(like.new_empty(n, like.shape[1]), generator)
    return v / v.norm(dim=1, keepdim=True)


def whitened(phi: Tensor) -> Tensor:
    """φ (N, D) in its principal components, each scaled to variance 1, turned back (ZCA): axes keep their names.

    Raw random directions all follow the components of largest variance; here none is larger. Components that hold less
    than a millionth of the largest are left out.
    """
    centred = phi.double() - phi.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(phi))
    kept = values > 1e-6 * values.amax()
    basis = vectors[:, kept]
    return (centred @ (basis / values[kept].sqrt()) @ basis.T).to(phi)


def selectivity(
    phi: Tensor, labels: Tensor, *, units: Tensor | None = None, top: int = 10, directions: int = 200,
    shuffles: int = 20, permutations: int = 1000, generator: torch.Generator | None = None,
) -> Selectivity:
    """Are `units` (V, D), by default the axes of φ (N, D), purer in `labels` (N,) than random directions?

    Axes that are the same for all images, as of channels that are always silent, order nothing and are left out.
    """
    source = generator or fresh()
    own = torch.eye(phi.shape[1]).to(phi) if units is None else units
    own = own[(phi @ own.T).std(0) > 0]
    if not len(own):
        raise ValueError("no unit answers differently to different images: name another layer, or give other images")
    pure = purity(phi, labels, own, top)
    other = purity(phi, labels, random_directions(directions, phi, source), top)
    chance = []
    for _ in range(shuffles):
        dealt = labels[torch.randperm(len(labels), generator=source).to(labels.device)]
        chance.append(purity(phi, dealt, own, top).mean())
    both, n = torch.cat([pure, other]), len(pure)
    gap, beyond = (pure.mean() - other.mean()).abs() - 1e-12, 0
    for _ in range(permutations):
        mixed = both[torch.randperm(len(both), generator=source).to(both.device)]
        beyond += int((mixed[:n].mean() - mixed[n:].mean()).abs() >= gap)
    return Selectivity(pure, other, torch.stack(chance), (1 + beyond) / (1 + permutations))
