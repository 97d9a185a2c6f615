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
from kit.report import Estimate

RESAMPLES = 2000  # of the bootstrap


class Selectivity(NamedTuple):
    """Purities, in [0, 1]: of units (C,), of random directions (R,), and the mean of the units where the labels were
    dealt out anew (S,), which is what agreement by chance is. `p` is the share of random divisions of units and
    directions whose means differ by as much."""

    units: Tensor
    directions: Tensor
    chance: Tensor
    p: float

    @property
    def lead(self) -> Estimate:
        """By how much the units are purer, with a 95 % bootstrap interval over units and directions, not images."""
        source, means = fresh(), []
        for values in (self.units, self.directions):
            drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=source)
            means.append(values.cpu()[drawn].mean(1))
        low, high = (means[0] - means[1]).quantile(torch.tensor([0.025, 0.975], dtype=means[0].dtype)).tolist()
        return Estimate(float(self.units.mean() - self.directions.mean()), low, high, len(self.units))


def purity(phi: Tensor, labels: Tensor, v: Tensor, top: int = 10) -> Tensor:
    """The largest share of one label among the `top` rows of φ (N, D) with the largest ⟨φ, v⟩, for each v (V, D).

    Returns (V,). Of equal answers the first come first. Raises ValueError for labels that are not (N,) or a `top`
    that is not 1 to N.
    """
    _check(phi, labels, v)
    if not 1 <= top <= len(phi):
        raise ValueError(f"top must be 1 to {len(phi)}, the number of images, not {top}")
    return _agreeing(labels, _best(phi, v, top))


def _check(phi: Tensor, labels: Tensor, v: Tensor) -> None:
    if phi.dim() != 2 or labels.shape != (len(phi),) or v.dim() != 2 or v.shape[1:] != phi.shape[1:]:
        raise ValueError(f"φ (N, D) needs labels (N,) and directions (V, D), not {tuple(phi.shape)}, "
                         f"{tuple(labels.shape)} and {tuple(v.shape)}")
    if not bool(phi.isfinite().all()):
        raise ValueError("φ holds NaN or infinity: check the model and its images")


def _best(phi: Tensor, v: Tensor, top: int) -> Tensor:
    return (phi @ v.T).sort(dim=0, descending=True, stable=True).indices[:top]


def _agreeing(labels: Tensor, best: Tensor) -> Tensor:
    """The largest share of one label among the images `best` (top, V), (V,)."""
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
    if min(directions, shuffles) < 2 or permutations < 1:
        raise ValueError("an interval needs 2 or more directions and shuffles and 1 or more permutations, not "
                         f"{directions}, {shuffles}, {permutations}")
    source = generator or fresh()
    own = torch.eye(phi.shape[-1]).to(phi) if units is None else units.to(phi)
    _check(phi, labels, own)
    own = own[(phi @ own.T).std(0) > 0]
    if not len(own):
        raise ValueError("no unit answers differently to different images: name another layer, or give other images")
    pure = purity(phi, labels, own, top)
    other = purity(phi, labels, random_directions(directions, phi, source), top)
    best = _best(phi, own, top)
    chance = torch.stack([
        _agreeing(labels[torch.randperm(len(labels), generator=source).to(labels.device)], best).mean()
        for _ in range(shuffles)])
    both, n = torch.cat([pure, other]), len(pure)
    gap, beyond = (pure.mean() - other.mean()).abs() - 1e-12, 0
    for _ in range(permutations):
        mixed = both[torch.randperm(len(both), generator=source).to(both.device)]
        beyond += int((mixed[:n].mean() - mixed[n:].mean()).abs() >= gap)
    return Selectivity(pure, other, chance, (1 + beyond) / (1 + permutations))
