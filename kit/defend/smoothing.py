"""Randomised smoothing: answer what a network answers most often under Gaussian noise, and prove how far that holds.

    g(x) = argmax_c P(f(x + ε) = c),  ε ~ N(0, σ² I);      g is constant within R = σ Φ⁻¹(p_A) of x in the l2 norm,

p_A a lower bound on the probability of g(x). Noise is added in [0, 1] space, before the network normalises, and is not
clipped. Source: Cohen et al., Certified adversarial robustness via randomized smoothing, ICML 2019.
"""
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import accuracy, borrowed, check_images, check_model, chunk_size, laid_out, seeding
from kit.defend.purify import Wrapper, mean_probability
from kit.models import Recipe, fit

ABSTAIN = -1


class Smoothed(Wrapper):
    """g around a classifier `model`, best one that was trained under the same noise (`noisy/…`).

    As a victim, `forward` returns log (1/D) Σ_d softmax f(x + ε_d) with D = `draws`: logits, finite, with a gradient
    (the soft version of g, Salman et al. 2019); `predict` and `certify` count votes. All images of a call share their
    noise: each image's result holds for itself and does not depend on the others, and noise is drawn once for all.
    With generator=None it is the same at every call.
    """

    def __init__(
        self, model: nn.Module, sigma: float = 0.25, draws: int = 32, generator: torch.Generator | None = None
    ):
        super().__init__()
        if not 0 < sigma < math.inf or draws < 1:
            raise ValueError(f"sigma must be positive and draws 1 or more, not {sigma:g} and {draws}")
        self.model, self.sigma, self.draws, self.generator = model, sigma, draws, generator

    def forward(self, x: Tensor) -> Tensor:
        source = self.generator or seeding.generator()
        return mean_probability([self.model(x + e) for e in self._noise(x, self.draws, source)])

    def _noise(self, x: Tensor, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(n):
            e = torch.randn(x.shape[1:], generator=generator, device=generator.device, dtype=x.dtype)
            yield e.to(x.device).mul_(self.sigma)

    def counts(self, x: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """How often each class wins among n noisy copies of every image: (N, K). Cost: n forward passes.

        A copy whose logits are not all finite votes for no class, so that a row may sum to less than n.
        """
        _check_copies(n)
        check_images(x)
        noise = self._noise(x, n, generator or seeding.generator())
        side = max(1, int(chunk_size(x) ** 0.5))  # that many images with that many copies make one chunk
        total = torch.zeros((), dtype=torch.int64, device=x.device)
        with borrowed(self.model, x), torch.no_grad():
            check_model(self.model, x)
            for start in range(0, n, side):
                e = torch.stack([next(noise) for _ in range(min(side, n - start))])
                votes = []
                for rows in x.split(side):
                    z = self.model(laid_out((rows[:, None] + e).flatten(0, 1)))
                    won = F.one_hot(z.argmax(1), z.shape[1]) * z.isfinite().all(1, keepdim=True)
                    votes.append(won.unflatten(0, (len(rows), -1)).sum(1))
                total = total + torch.cat(votes)
        return total

    def predict(
        self, x: Tensor, n: int = 100, alpha: float = 0.001, generator: torch.Generator | None = None
    ) -> Tensor:
        """g(x), or -1 where the two leading classes cannot be told apart: (N,).

        The answer is another than g(x) with probability at most alpha, for each image (a two-sided binomial test of
        the two largest counts). Raises ValueError where n is too small to be sure of anything. Cost: n forward passes.
        """
        from scipy import stats

        _check_copies(n, enough_to_decide(alpha))
        top = with_no_answer(self.counts(x, n, generator), n).topk(2, dim=1)
        first, second = top.values.cpu().double().unbind(1)
        p = (2 * stats.binom.sf(first.numpy() - 1, (first + second).numpy(), 0.5)).clip(max=1)
        sure = torch.as_tensor(p <= alpha, device=x.device)
        return torch.where(sure, top.indices[:, 0] - 1, ABSTAIN)

    def certify(
        self, x: Tensor, n0: int = 100, n: int = 1000, alpha: float = 0.001, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(class or -1 (N,), certified l2 radius (N,)): n0 copies choose the class, n others bound its probability.

        p_A is the one-sided Clopper–Pearson bound at level 1 − alpha; below one half the answer is -1, radius 0. For
        each image, class and radius hold with probability at least 1 − alpha. No radius exceeds `ceiling(n, alpha)`.
        Raises ValueError where n is too small to certify anything. Cost: n0 + n forward passes.
        """
        from scipy import stats

        _check_copies(n0)
        _check_copies(n, enough_to_certify(alpha))
        source = generator or seeding.generator()
        chosen = with_no_answer(self.counts(x, n0, source), n0).argmax(1)
        hits = with_no_answer(self.counts(x, n, source), n).gather(1, chosen[:, None])[:, 0]
        lower = torch.as_tensor(clopper_pearson(hits.cpu().numpy(), n, alpha))
        radius = torch.as_tensor(self.sigma * stats.norm.ppf(lower.numpy())).to(x)
        sure = (lower.to(x.device) > 0.5) & (chosen > 0)
        return torch.where(sure, chosen - 1, ABSTAIN), torch.where(sure, radius, torch.zeros_like(radius))

    def ceiling(self, n: int, alpha: float = 0.001) -> float:
        """The radius when all n copies agree, σ Φ⁻¹(α^(1/n)): what n can certify at most; 0 where that is nothing."""
        from scipy import stats

        _check_copies(n)
        return max(0.0, float(self.sigma * stats.norm.ppf(_level(alpha) ** (1 / n))))


def with_no_answer(counts: Tensor, n: int) -> Tensor:
    """(N, 1 + K): before the classes, how many of the n copies voted for none. Where that leads, nothing is known."""
    return torch.cat([n - counts.sum(1, keepdim=True), counts], 1)


def enough_to_decide(alpha: float) -> int:
    """The fewest votes whose agreement has a two-sided p-value of alpha at most: 2 (1/2)ⁿ ≤ α."""
    return math.ceil(1 - math.log2(_level(alpha)))


def enough_to_certify(alpha: float) -> int:
    """The fewest votes whose agreement bounds a probability above one half: α^(1/n) > 1/2."""
    return math.floor(-math.log2(_level(alpha))) + 1


def _level(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, not {alpha:g}")
    return alpha


def _check_copies(n: int, least: int = 1) -> None:
    if n != int(n) or n < 1:
        raise ValueError(f"at least one noisy copy is needed, and a whole number of them, not {n}")
    if n < least:
        raise ValueError(f"n={n} noisy copies can be sure of nothing at this alpha, whatever the network says: give "
                         f"n={least} or more, or a larger alpha")


def clopper_pearson(k: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The p with P(Binomial(n, p) ≥ k) = alpha, 0 for k = 0: a lower bound, wrong with probability at most alpha."""
    from scipy import stats

    return np.where(k > 0, stats.beta.ppf(alpha, np.maximum(k, 1), n - k + 1), 0.0)


def noisy_training(r: Recipe, x: Tensor, y: Tensor, *, sigma: float = 0.25, **how: Any) -> nn.Module:
    """Every image gets noise N(0, σ²) in [0, 1] space, without clipping: what `Smoothed` asks of its network.

    Cost: a step of training. Source: Cohen et al., Certified adversarial robustness via randomized smoothing, 2019.
    """

    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be 0 or more, not {sigma:g}")

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(xb.shape, generator=generator).to(xb)
        return F.cross_entropy(model(xb + sigma * noise), yb)

    return fit(r, x, y, loss=loss, **how)


def smoothed_figures(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: accuracy under the training's noise, as `Smoothed` asks, and of the bare network without it."""
    smoothed = Smoothed(model, r.options["sigma"])
    return {"accuracy": accuracy(smoothed, x, y), "without_noise": accuracy(model, x, y)}
