"""Several versions of a network that vote: what the vote answers, and how often its versions fail together.

    votes              what each version says
    majority           the class that at least `quorum` versions name, or no answer
    NVersion           such a vote as a detector: it abstains, and scores by how far its versions disagree
    mutual_faults      how often two versions are wrong at once, beside what independent ones would be
    shared             the same image by image, so that two kinds of pairs can be compared on the same images
    independent_vote   how often a quorum is wrong where versions err independently

Source: Xu et al., NV-DNN: towards fault-tolerant DNN systems with N-version programming, DSN-W 2019. Its rule of voting
is not known to us: a majority that abstains is ours, and so is the score.
"""
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import Ensemble
from kit.detect import REFUSED, Detector
from kit.detect.detector import predicted
from kit.explain import answers
from kit.report import Estimate
from kit.report.intervals import as_array, resampled

Pairs = Iterable[tuple[int, int]]


def votes(models: Sequence[nn.Module] | nn.ModuleList, x: Tensor) -> Tensor:
    """The class that each of n networks names (N, n), REFUSED (−1) where it has no finite answer.

    Cost: one forward pass of each. Raises as `kit.explain.answers` does.
    """
    return torch.stack([predicted(z) for z in answers(models, x).unbind(1)], 1)


def majority(said: Tensor, quorum: int | None = None) -> Tensor:
    """The class that at least `quorum` of n versions name (N,), and REFUSED where none has so many; said (N, n).

    The default is more than half of them, ⌊n/2⌋ + 1, and no less is allowed, so that never two classes have it; n asks
    for all. A version without an answer votes for none. Raises ValueError for another shape or quorum.
    """
    if said.dim() != 2 or not said.shape[1]:
        raise ValueError(f"votes are (images, versions), not {tuple(said.shape)}")
    said = said if said.is_floating_point() else said.long()  # no unsigned type holds REFUSED
    quorum = _quorum(said.shape[1], quorum)
    same = (said[:, :, None] == said[:, None]).sum(2)  # (N, n): how many versions say what this one says
    most, first = same.masked_fill(said == REFUSED, 0).max(1)
    return torch.where(most >= quorum, said.gather(1, first[:, None])[:, 0], REFUSED)


def _quorum(n: int, quorum: int | None) -> int:
    least = n // 2 + 1
    quorum = least if quorum is None else quorum
    if quorum != int(quorum) or not least <= quorum <= n:
        raise ValueError(f"a quorum of {n} versions is {least} to {n}, not {quorum}: fewer may name two classes")
    return quorum


class NVersion(Detector):
    """n versions that vote: an answer where at least `quorum` of them give the same one, otherwise none.

        s(x) = 1 − mean_{i ≠ j} Σ_k p_i(k|x) p_j(k|x)

    The score is the probability that two versions, each drawing its answer from its softmax, name different classes:
    for versions that are sure, the share of pairs that disagree. It can be differentiated, and an attacker who knows
    the vote lowers it (`kit.detect.evade`).

    An alarm is raised where no class has the quorum, and, once `threshold` has set τ, where s(x) > τ as well. `predict`
    gives the answer of the quorum, and REFUSED, or what the fail-safe says, where there is an alarm. `model` is a
    `kit.core.Ensemble`, which is what an attacker of the whole differentiates. Raises TypeError for another model,
    ValueError for fewer than two versions and for a quorum that is no majority. Cost: one forward pass of each version
    for `score`, two for `alarm`, three for `predict`.
    """

    def __init__(self, model: Ensemble, *, quorum: int | None = None):
        if not isinstance(model, Ensemble):
            raise TypeError(f"NVersion asks the networks of a kit.core.Ensemble, not a {type(model).__name__}")
        if len(model.models) < 2:
            raise ValueError("a vote needs two versions or more")
        super().__init__(model)
        self.versions, self.quorum = model.models, _quorum(len(model.models), quorum)

    def votes(self, x: Tensor) -> Tensor:
        """What each version says (N, n), in chunks. Cost: one forward pass of each version."""
        return self._in_chunks(self._votes, x)

    def _votes(self, x: Tensor) -> Tensor:
        return torch.stack([predicted(version(x)) for version in self.versions], 1)

    def label(self, x: Tensor) -> Tensor:
        return majority(self._votes(x), self.quorum)

    def discrepancy(self, x: Tensor) -> Tensor:
        p = torch.stack([version(x).softmax(1) for version in self.versions])
        n = len(p)
        return 1 - (p.sum(0).square() - p.square().sum(0)).sum(1) / (n * (n - 1))

    def alarm(self, x: Tensor) -> Tensor:
        """Whether each image is refused (N,): no class has the quorum, or τ is set and s(x) is not at most τ."""
        split = self._in_chunks(self.label, x) == REFUSED
        return split if self.tau is None else split | super().alarm(x)


class Faults(NamedTuple):
    """Rates over images, each a mean over pairs of versions, with 95 % intervals over images.

    `both` of the two are wrong; they are wrong and say the `same` (a version without an answer is wrong, and
    says nothing); `independent` ones would be wrong at once with q_i q_j, the product of their error rates; `ratio` =
    both / independent, 1 for independent faults.
    """

    both: Estimate
    same: Estimate
    independent: Estimate
    ratio: Estimate


def mutual_faults(
    said: Any, y: Any, pairs: Pairs | None = None, *, resamples: int = 2000, seed: int = 0,
) -> Faults:
    """How often two versions are wrong about the same image: said (N, n), what each says, and the labels y (N,).

    `pairs` are those to average over, all of them by default. The interval is a percentile bootstrap over images, the
    same ones for all versions; it takes the versions as they are. Raises ValueError for other shapes, versions that do
    not exist, and where no pair of them would ever be wrong at once, so that there is no ratio.
    """
    said, wrong, chosen = _checked(said, y, pairs)
    i, j = (np.array(column) for column in zip(*chosen, strict=True))
    both, same = (np.asarray(found(said, wrong, i, j)) for found in (_both, _same))
    N, n = wrong.shape
    some = wrong.any(1)
    rows, counts = np.unique(np.column_stack([wrong, both, same])[some], axis=0, return_counts=True)
    rows, counts = np.vstack([rows, 0 * rows[:1].sum(0)]), np.append(counts, N - some.sum())  # and those all have right
    draws = np.random.default_rng(seed).multinomial(N, counts / N, resamples)
    rates = np.vstack([counts, draws]) @ rows / N  # the sample itself, then the resamples
    q = rates[:, :n]
    independent = (q[:, i] * q[:, j]).mean(1)
    if independent[0] == 0:
        raise ValueError(f"no pair of these versions has an error each among {N} images: there is nothing to share")
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [*rates[:, n:].T, independent, rates[:, n] / independent]
    return Faults(*(resampled(v[0], v[1:], N) for v in found))


def shared(said: Any, y: Any, pairs: Pairs | None = None, *, same: bool = False) -> np.ndarray:
    """For each image (N,) the share of pairs of which both are wrong, or with `same` wrong and of one answer.

    Its mean is `mutual_faults(…).both` (or `.same`), and the mean of a difference of two such says which kind of pair
    shares more faults, on the same images. Raises as `mutual_faults` does.
    """
    said, wrong, chosen = _checked(said, y, pairs)
    i, j = (np.array(column) for column in zip(*chosen, strict=True))
    return (_same if same else _both)(said, wrong, i, j)


def _checked(said: Any, y: Any, pairs: Pairs | None) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    said, y = as_array(said), as_array(y)
    if said.ndim != 2 or y.shape != said.shape[:1] or not len(y):
        raise ValueError(f"votes are (images, versions) and labels (images,), not {said.shape} and {y.shape}")
    n = said.shape[1]
    chosen = list(combinations(range(n), 2) if pairs is None else pairs)
    if not chosen or any(i == j or not (0 <= i < n and 0 <= j < n) for i, j in chosen):
        raise ValueError(f"pairs are two different ones of {n} versions, by number, and at least one pair")
    return said, said != y[:, None], chosen


def _both(said: np.ndarray, wrong: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return (wrong[:, i] & wrong[:, j]).mean(1)


def _same(said: np.ndarray, wrong: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return (wrong[:, i] & (said[:, i] == said[:, j]) & (said[:, i] != REFUSED)).mean(1)


def independent_vote(errors: Sequence[float], quorum: int | None = None) -> float:
    """The probability that at least `quorum` of n versions are wrong, if they err independently with these rates.

    Three at p: 3p² − 2p³. It counts every such quorum as a wrong answer; where wrong versions differ in what they say,
    the vote abstains instead, so that this is the most that independent versions answer wrongly. Raises ValueError for
    what is no rate, and for a quorum that is no majority.
    """
    if not len(errors) or not all(0 <= q <= 1 for q in errors):
        raise ValueError(f"errors are rates between 0 and 1, one for each version, not {list(errors)}")
    count = np.ones(1)  # the distribution of how many are wrong
    for q in errors:
        count = np.convolve(count, [1 - q, q])
    return float(count[_quorum(len(errors), quorum):].sum())
