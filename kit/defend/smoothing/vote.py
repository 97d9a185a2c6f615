"""A network that is asked about many noisy copies of an image: how often it answers what, and what that proves.

    g(x) = argmax_c P(f(x + ε) = c),  ε ~ N(0, σ² I);      g is constant within R = σ Φ⁻¹(p_A) of x in the l2 norm,

p_A a lower bound on the probability of g(x). Noise is added in [0, 1] space, before the network normalises, and is not
clipped. Source: Cohen et al., Certified adversarial robustness via randomized smoothing, ICML 2019.
"""
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import borrowed, check_images, check_model, chunk_size, laid_out, seeding
from kit.defend.purify import Wrapper, mean_probability
from kit.defend.smoothing.binomial import (
    check_copies,
    clopper_pearson,
    enough_to_certify,
    enough_to_decide,
    hopeless,
    level,
    looks,
    with_no_answer,
)

ABSTAIN = -1


class Vote(Wrapper, ABC):
    """g(x) = argmax_c P(f answers c under noise), of a network f = `model` and noise that a subclass puts somewhere.

    As a victim, `forward` returns log (1/D) Σ_d softmax f_d(x) with D = `draws`: logits, finite, with a gradient (the
    soft version of g, Salman et al. 2019); `predict` counts votes. All images of a call share their noise: each image's
    result holds for itself and does not depend on the others, and noise is drawn once for all. With generator=None it
    is the same at every call.
    """

    def __init__(self, model: nn.Module, draws: int, generator: torch.Generator | None):
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws must be 1 or more, not {draws}")
        self.model, self.draws, self.generator = model, draws, generator

    @abstractmethod
    def place(self, x: Tensor) -> tuple[torch.Size, float]:
        """The shape of one copy's noise for images like x, and its standard deviation."""

    @abstractmethod
    def under(self, x: Tensor, e: Tensor) -> Tensor:
        """The logits (N · D, K) of every image x (N, C, H, W) under every draw e (D, …), image by image."""

    def forward(self, x: Tensor) -> Tensor:
        copies = self.noise(x, self.draws, self.generator or seeding.generator())
        return mean_probability([self.under(x, e[None]) for e in copies])

    def noise(self, x: Tensor, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        """n draws, each for all images alike. They are drawn one by one, so that they do not depend on the chunk."""
        shape, sigma = self.place(x)
        for _ in range(n):
            e = torch.randn(shape, generator=generator, device=generator.device, dtype=x.dtype)
            yield e.to(x.device).mul_(sigma)

    def counts(
        self, x: Tensor, n: int, generator: torch.Generator | None = None, *, progress: bool = False
    ) -> Tensor:
        """How often each class wins among n noisy copies of every image: (N, K). Cost: n forward passes.

        A copy whose logits are not all finite votes for no class, so that a row may sum to less than n. Never more
        than one chunk of copies is held. With `progress` a bar counts the copies.
        """
        check_copies(n)
        with self._asked(x), counted(n, progress) as bar:
            return self._counts(x, n, generator or seeding.generator(), bar)

    @contextmanager
    def _asked(self, x: Tensor) -> Iterator[None]:
        check_images(x)
        with borrowed(self.model, x), torch.no_grad():
            check_model(self.model, x)
            yield

    def _counts(self, x: Tensor, n: int, generator: torch.Generator, bar) -> Tensor:
        noise, size = self.noise(x, n, generator), chunk_size(x)
        images = min(len(x), max(1, int(size**0.5)))
        copies = max(1, size // images)
        total = torch.zeros((), dtype=torch.int64, device=x.device)
        for start in range(0, n, copies):
            e = torch.stack([next(noise) for _ in range(min(copies, n - start))])
            votes = [self._votes(rows, e) for rows in x.split(images)]
            total = total + torch.cat(votes)
            bar.update(len(e))
        return total

    def _votes(self, x: Tensor, e: Tensor) -> Tensor:
        """Votes (N, K) of all copies e (D, …) of each image x."""
        z = self.under(x, e)
        won = F.one_hot(z.argmax(1), z.shape[1]) * z.isfinite().all(1, keepdim=True)
        return won.unflatten(0, (len(x), -1)).sum(1)

    def predict(
        self, x: Tensor, n: int = 100, alpha: float = 0.001, generator: torch.Generator | None = None, *,
        progress: bool = False,
    ) -> Tensor:
        """g(x), or -1 where the two leading classes cannot be told apart: (N,).

        The answer is another than g(x) with probability at most alpha, for each image (a two-sided binomial test of
        the two largest counts). Raises ValueError where n is too small to be sure of anything. Cost: n forward passes.
        """
        from scipy import stats

        check_copies(n, enough_to_decide(alpha))
        top = with_no_answer(self.counts(x, n, generator, progress=progress), n).topk(2, dim=1)
        first, second = top.values.cpu().double().unbind(1)
        p = (2 * stats.binom.sf(first.numpy() - 1, (first + second).numpy(), 0.5)).clip(max=1)
        sure = torch.as_tensor(p <= alpha, device=x.device)
        return torch.where(sure, top.indices[:, 0] - 1, ABSTAIN)


class Smoothed(Vote):
    """Noise N(0, σ²) on the image itself; `model` is best one that was trained under the same noise (`noisy…/…`).

    `certify` gives the class and its radius in l2, by votes. `forward` and `predict` are those of a `Vote`.
    """

    def __init__(
        self, model: nn.Module, sigma: float = 0.25, draws: int = 32, generator: torch.Generator | None = None
    ):
        if not 0 < sigma < math.inf or draws < 1:
            raise ValueError(f"sigma must be positive and draws 1 or more, not {sigma:g} and {draws}")
        super().__init__(model, draws, generator)
        self.sigma = sigma

    def place(self, x: Tensor) -> tuple[torch.Size, float]:
        return x.shape[1:], self.sigma

    def under(self, x: Tensor, e: Tensor) -> Tensor:
        return self.model(laid_out((x[:, None] + e).flatten(0, 1)))

    def certify(
        self, x: Tensor, n0: int = 100, n: int = 1000, alpha: float = 0.001, generator: torch.Generator | None = None,
        *, early: bool = True, progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(class or -1 (N,), certified l2 radius (N,)): n0 copies choose the class, n others bound its probability.

        p_A is the one-sided Clopper–Pearson bound at level 1 − alpha; below one half the answer is -1, radius 0. For
        each image, class and radius hold with probability at least 1 − alpha. No radius exceeds `ceiling(n, alpha)`.

        With `early` an image is given up, answer -1, where after n/16, n/8, n/4 or n/2 copies its class is clearly in
        the minority (`hopeless`). That takes certificates away and makes none wrong; a class with a probability above
        one half loses its own so with probability at most alpha.

        Raises ValueError where n is too small to certify anything. Cost: n0 + n forward passes, for images that are
        given up n0 + n/16 or more.
        """
        from scipy import stats

        check_copies(n0)
        check_copies(n, enough_to_certify(alpha))
        source = generator or seeding.generator()
        with self._asked(x), counted(n0 + n, progress) as bar:
            chosen = with_no_answer(self._counts(x, n0, source, bar), n0).argmax(1)
            hits = self._hits(x, chosen, n, alpha, source, early, bar)
        lower = torch.as_tensor(clopper_pearson(hits.cpu().numpy(), n, alpha))
        radius = torch.as_tensor(self.sigma * stats.norm.ppf(lower.numpy())).to(x)
        sure = lower.to(x.device) > 0.5
        return torch.where(sure, chosen - 1, ABSTAIN), torch.where(sure, radius, torch.zeros_like(radius))

    def _hits(
        self, x: Tensor, chosen: Tensor, n: int, alpha: float, generator: torch.Generator, early: bool, bar
    ) -> Tensor:
        """How many of n copies vote for the class `chosen` − 1 (N,); 0 for an image that was given up."""
        hits, asked = torch.zeros_like(chosen), 0
        live = (chosen > 0).nonzero()[:, 0]
        for upto in looks(n) if early else [n]:
            if not len(live):
                break
            votes = self._counts(x[live], upto - asked, generator, bar)
            hits[live] += votes.gather(1, chosen[live, None] - 1)[:, 0]
            asked = upto
            if asked < n:
                lost = torch.as_tensor(hopeless(hits[live].cpu().numpy(), asked, n, alpha), device=x.device)
                hits[live[lost]] = 0
                live = live[~lost]
        return hits

    def ceiling(self, n: int, alpha: float = 0.001) -> float:
        """The radius when all n copies agree, σ Φ⁻¹(α^(1/n)): what n can certify at most; 0 where that is nothing."""
        from scipy import stats

        check_copies(n)
        return max(0.0, float(self.sigma * stats.norm.ppf(level(alpha) ** (1 / n))))


@contextmanager
def counted(copies: int, progress: bool) -> Iterator:
    """A bar that counts copies, shown where `progress` says so."""
    from tqdm import tqdm

    with tqdm(total=copies, unit="copy", disable=not progress, leave=False) as bar:
        yield bar
