"""Kernel density: is the last hidden layer where it is for training images of that class? Bayesian uncertainty: does
the network agree with itself under dropout? And the energy: how little evidence is there for any class?

    density       s(x) = −log (1/n_k) Σ_j exp(−‖φ(x) − φ_j‖² / 2h²),   k = argmax f(x),  φ_j the training images of k
    uncertainty   s(x) = mean over classes of the variance of p(x) over T passes with dropout
    energy        s(x) = −log Σ_k exp z_k(x)

Source: Feinman et al., Detecting adversarial samples from artifacts, 2017, for the first two. They add them in a
logistic regression that is fitted on adversarial images; that needs to know the attack, so here each stands alone.
The third: Liu et al., Energy-based out-of-distribution detection, NeurIPS 2020.
"""
import math
from typing import Self

import torch
from torch import Tensor, nn

from kit.core import borrowed, chunks, features, generator, laid_out, replace
from kit.detect.detector import Detector, by_class, predicted, rightly_classified


class KernelDensity(Detector):
    """s(x) = −log density of φ(x) among the training features of the predicted class, up to a constant.

    layer        whose output is φ, the last hidden layer in the paper
    bandwidth    h, in the units of the features (the paper's: MNIST 1.20, CIFAR-10 0.26, SVHN 1.00, tied to its
                 networks); None takes, of 40 widths, the one likeliest for the fitted images, each left out in turn
    per_class    at most so many training images per class

    Cost: `fit` two forward passes over the fitted images; `score` one forward pass and per_class distances per image.
    """

    def __init__(self, model: nn.Module, layer: str, *, bandwidth: float | None = None, per_class: int = 500):
        super().__init__(model)
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError(f"bandwidth must be positive, not {bandwidth:g}")
        with features(model, [layer]):  # a name that the model does not have is refused here
            pass
        self.layer, self.bandwidth, self.per_class = layer, bandwidth, per_class
        self.given = bandwidth
        self.points: dict[str, Tensor] = {}

    def fit(self, x: Tensor, y: Tensor) -> Self:
        x, y = rightly_classified(self.model, x, y, self.per_class)
        with borrowed(self.model, x), torch.no_grad():
            phi = torch.cat([self._features(laid_out(x[rows]))[0] for rows in chunks(x)])
        points = {str(int(k)): phi[y == k] for k in y.unique()}
        self.bandwidth = self._likeliest(points) if self.given is None else self.given
        self.points = points
        return self

    def _likeliest(self, points: dict[str, Tensor]) -> float:
        """argmax_h Σ_i log (1/(n−1)) Σ_{j≠i} N(φ_i; φ_j, h² I), over h from 1/100 to 1 of the features' spread."""
        spread = math.sqrt(sum(float(p.var(0).sum()) for p in points.values()) / len(points))
        apart = [torch.cdist(p, p).square().fill_diagonal_(torch.inf) for p in points.values()]
        dims = next(iter(points.values())).shape[1]
        widths = [spread * 10 ** (-2 + 2 * i / 39) for i in range(40)]

        def likelihood(h: float) -> float:
            return sum(float(((-a / (2 * h * h)).logsumexp(1) - dims * math.log(h)).sum()) for a in apart)

        return max(widths, key=likelihood)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with features(self.model, [self.layer]) as found:
            z = self.model(x)
        return found[self.layer].flatten(1), z

    def discrepancy(self, x: Tensor) -> Tensor:
        if not self.points or self.bandwidth is None:
            raise ValueError("the density is not fitted yet: call fit(training images, labels) first")
        phi, z = self._features(x)
        width = 2 * self.bandwidth**2

        def value(rows: Tensor, k: int) -> Tensor:
            points = self.points[str(k)]
            squared = phi[rows].square().sum(1)[:, None] - 2 * phi[rows] @ points.T + points.square().sum(1)
            return math.log(len(points)) - (-squared / width).logsumexp(1)

        return by_class(predicted(z), {int(k) for k in self.points}, value)

    def tensors(self) -> dict[str, Tensor]:
        return self.points

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.points = tensors


class BayesianUncertainty(Detector):
    """s(x) = (1/K) Σ_k Var_t p_k(x; t): how much the softmax varies over `passes` passes with dropout.

    Dropout of the given rate is put on the outputs of `layers`, for the call alone, so that a network trained without
    dropout can be asked too. A mask is drawn once per pass and shared by all images, so that an image's score depends
    on that image alone. Cost: `passes` forward passes.
    """

    def __init__(self, model: nn.Module, layers: list[str], *, rate: float = 0.5, passes: int = 50, seed: int = 0):
        super().__init__(model)
        if not 0 < rate < 1:
            raise ValueError(f"rate is a share between 0 and 1, not {rate:g}")
        if passes < 2:
            raise ValueError(f"a variance needs 2 passes or more, not {passes}")
        with features(model, layers):
            pass
        self.layers, self.rate, self.passes, self.seed = list(layers), rate, passes, seed

    def discrepancy(self, x: Tensor) -> Tensor:
        draws = generator(self.seed)

        def drop(h: Tensor) -> Tensor:
            kept = torch.rand(h.shape[1:], generator=draws) >= self.rate
            return h * kept.to(h) / (1 - self.rate)

        with replace(self.model, dict.fromkeys(self.layers, drop)):
            return torch.stack([self.model(x).softmax(1) for _ in range(self.passes)]).var(0).mean(1)


class Energy(Detector):
    """s(x) = −log Σ_k exp z_k(x): high where no logit is. Nothing is fitted; the yardstick for what is.

    Cost: one forward pass.
    """

    def discrepancy(self, x: Tensor) -> Tensor:
        return -self.model(x).logsumexp(1)
