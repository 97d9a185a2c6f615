"""Deep Validation: ask of every hidden layer whether what it produced looks like what training images produced there.

    d_i(x) = −svm_{i,k}(φ_i(x)) / σ_i,   k = argmax f(x)            the discrepancy of layer i, a single validator
    s(x)   = Σ_i d_i(x)                                             the joint validator

svm_{i,k}(φ) = Σ_j α_j exp(−γ‖φ − φ_j‖²) − ρ is the signed distance to the boundary that a one-class SVM drew around
the features of training images of class k in layer i: positive inside, negative outside. With the linear kernel it is
⟨w, φ⟩/‖w‖ − ρ, the distance to a hyperplane that keeps these features away from the origin. The first asks whether φ
is like those of class k, the second whether there is enough of what they have in common.
Source: Wu et al., Deep Validation: toward detecting real-world corner cases for deep neural networks, DSN 2019;
one-class SVM: Schölkopf et al., Estimating the support of a high-dimensional distribution, 2001.
"""
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import borrowed, chunks, features, generator, laid_out, normal
from kit.detect.detector import Detector, by_class, predicted, rightly_classified


def one_class_svm(phi: Tensor, **settings: Any) -> Any:
    """scikit-learn's OneClassSVM, fitted on features (N, D), without a draw from NumPy's global random state."""
    from sklearn.svm import OneClassSVM

    svm = OneClassSVM(**settings)
    svm.random_state = 0  # not an argument of this class, but its base draws a seed where it is None
    return svm.fit(phi.cpu().numpy())


class OneClassSVMs(ABC):
    """One layer's boundaries, one per class k: g_k(φ) > 0 where φ is usual for the class, below 0 where it is not.

    `fit` fills `tensors`, and `distance` uses nothing else. With `unit`, distances are in units of their standard
    deviation over the fitted images. A kind of boundary says how features are reduced and what g is.
    """

    def __init__(self, nu: float, unit: bool):
        self.nu, self.unit = nu, unit
        self.tensors: dict[str, Tensor] = {}

    @abstractmethod
    def reduction(self, phi: Tensor) -> dict[str, Tensor]:
        """What `reduced` needs to know, from features (N, D) of all classes."""

    @abstractmethod
    def reduced(self, phi: Tensor) -> Tensor:
        """Features (N, D) as the SVMs see them."""

    @abstractmethod
    def boundary(self, phi: Tensor) -> dict[str, Any]:
        """What `g` needs to know of one class, from its reduced features; "rho" is part of it."""

    @abstractmethod
    def g(self, phi: Tensor, **boundary: Tensor) -> Tensor:
        """g of one class (N,) for reduced features: scikit-learn's decision function, in torch."""

    def fit(self, phi: Tensor, y: Tensor) -> Self:
        self.tensors = self.reduction(phi)
        z = self.reduced(phi)
        for k in y.unique():
            for name, value in self.boundary(z[y == k]).items():
                self.tensors[f"{int(k)}/{name}"] = torch.as_tensor(value).to(z).contiguous()
        self.tensors["sigma"] = torch.ones_like(z[0, 0])
        if self.unit:
            self.tensors["sigma"] = self.distance(phi, y).std().clamp_min(1e-12)
        return self

    def distance(self, phi: Tensor, classes: Tensor) -> Tensor:
        """g_k(φ) / σ (N,) for features (N, D), k being each row's class (N,)."""
        z = self.reduced(phi)

        def g(rows: Tensor, k: int) -> Tensor:
            own = {n.removeprefix(f"{k}/"): t for n, t in self.tensors.items() if n.startswith(f"{k}/")}
            return self.g(z[rows], **own)

        fitted = {int(n.removesuffix("/rho")) for n in self.tensors if n.endswith("/rho")}
        return by_class(classes, fitted, g) / self.tensors["sigma"]


class Bubbles(OneClassSVMs):
    """g(φ) = Σ_j α_j exp(−γ‖φ − φ_j‖²) − ρ on standardised principal components."""

    def __init__(self, nu: float, unit: bool, gamma: float, components: int | None, standardise: Sequence[str]):
        super().__init__(nu, unit)
        self.gamma, self.components, self.standardise = gamma, components, standardise

    def reduction(self, phi: Tensor) -> dict[str, Tensor]:
        mean = phi.mean(0)
        scale = phi.std(0).clamp_min(1e-6) if "features" in self.standardise else torch.ones_like(mean)
        z = (phi - mean) / scale
        count, whiten = min(self.components or z.shape[1], z.shape[1]), "components" in self.standardise
        axes = principal_axes(z, count) if whiten or count < z.shape[1] else torch.eye(count).to(z)
        if whiten:
            axes = axes / (z @ axes).std(0).clamp_min(1e-4)
        return {"mean": mean, "axes": (axes / scale[:, None]).contiguous()}

    def reduced(self, phi: Tensor) -> Tensor:
        return (phi - self.tensors["mean"]) @ self.tensors["axes"]

    def boundary(self, phi: Tensor) -> dict[str, Any]:
        gamma = self.gamma / (phi.shape[1] * max(float(phi.var()), 1e-12))
        svm = one_class_svm(phi, nu=self.nu, gamma=gamma)
        return {"vectors": svm.support_vectors_, "alpha": svm.dual_coef_[0], "rho": -svm.intercept_[0], "gamma": gamma}

    def g(self, phi: Tensor, **boundary: Tensor) -> Tensor:
        vectors, alpha, rho, gamma = (boundary[name] for name in ("vectors", "alpha", "rho", "gamma"))
        squared = phi.square().sum(1)[:, None] - 2 * phi @ vectors.T + vectors.square().sum(1)
        return (-gamma * squared.clamp_min(0)).exp() @ alpha - rho


class Hyperplanes(OneClassSVMs):
    """g(φ) = ⟨w, φ⟩/‖w‖ − ρ, on features as they are but for their unit: their mean length is 1."""

    def reduction(self, phi: Tensor) -> dict[str, Tensor]:
        return {"length": phi.norm(dim=1).mean()}

    def reduced(self, phi: Tensor) -> Tensor:
        return phi / self.tensors["length"]

    def boundary(self, phi: Tensor) -> dict[str, Any]:
        svm = one_class_svm(phi, nu=self.nu, kernel="linear")
        length = max(float((svm.coef_[0] ** 2).sum() ** 0.5), 1e-12)
        return {"w": svm.coef_[0] / length, "rho": -svm.intercept_[0] / length}

    def g(self, phi: Tensor, **boundary: Tensor) -> Tensor:
        return phi @ boundary["w"] - boundary["rho"]


class DeepValidation(Detector):
    """One-class SVMs per layer and class; the sum of the layers' signed distances is the score.

    layers       names of the hidden layers to validate
    grid         a feature map is averaged to at most grid × grid places a channel (None keeps all places), or with
                 "rim" to two: its outer eighth, where what comes from outside the image is seen, and the rest
    spread       adds each channel's standard deviation over the places that are averaged
    linear       those of the layers whose SVM is linear; their features are not standardised nor reduced, since the
                 origin has a meaning
    components   then reduced to at most so many principal components (None: no reduction)
    nu           the share of training images that may fall outside (and the least share of support vectors)
    gamma        γ in units of 1/(dimensions × variance) of the class's features: 1 is what scikit-learn calls "scale"
    standardise  "features": to unit variance before the reduction; "components": the principal components too, so that
                 directions in which training images hardly differ count as much as the others; "layers": distances
                 divided by σ_i, their standard deviation on the fitted images, since layers have different units
    per_class    at most so many training images per class (a one-class SVM needs time and memory quadratic in them)

    Cost: `fit` two forward passes over the fitted images, one of them to see which are classified rightly; `score`
    one forward pass and, per layer, one kernel value per support vector. Memory: the pooled features of the fitted
    images, all layers.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], *, grid: int | Literal["rim"] | None = 2,
        components: int | None = 64, nu: float = 0.1, gamma: float = 1.0,
        standardise: Sequence[str] = ("features", "layers"), per_class: int = 500, spread: bool = False,
        linear: Sequence[str] = (),
    ):
        super().__init__(model)
        if not layers:
            raise ValueError("name at least one layer to validate")
        unknown = set(standardise) - {"features", "components", "layers"}
        if unknown:
            raise ValueError(f"standardise takes 'features', 'components' and 'layers', not {unknown.pop()!r}")
        if set(linear) - set(layers):
            raise ValueError(f"linear names some of the layers, and {(set(linear) - set(layers)).pop()!r} is not one")
        if isinstance(grid, str) and grid != "rim":
            raise ValueError(f"grid is a number of places, 'rim' or None, not {grid!r}")
        if not 0 < nu <= 1:
            raise ValueError(f"nu is a share above 0 and at most 1, not {nu:g}")
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, not {gamma:g}")
        with features(model, layers):  # a name that the model does not have is refused here
            pass
        self.layers, self.grid, self.components, self.nu, self.gamma = tuple(layers), grid, components, nu, gamma
        self.standardise, self.per_class, self.spread = tuple(standardise), per_class, spread
        self.linear = tuple(linear)
        self.svms: dict[str, OneClassSVMs] = {layer: self._svms(layer) for layer in layers}

    def _svms(self, layer: str) -> OneClassSVMs:
        unit = "layers" in self.standardise
        if layer in self.linear:
            return Hyperplanes(self.nu, unit)
        return Bubbles(self.nu, unit, self.gamma, self.components, self.standardise)

    def fit(self, x: Tensor, y: Tensor) -> Self:
        """Fit on training images that the model classifies rightly, at most `per_class` of each class."""
        x, y = rightly_classified(self.model, x, y, self.per_class)
        pooled: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        with borrowed(self.model, x), torch.no_grad(), features(self.model, self.layers) as found:
            for rows in chunks(x):
                self.model(laid_out(x[rows]))
                for layer in self.layers:
                    pooled[layer].append(self._pooled(found[layer]))
        self.svms = {layer: self._svms(layer).fit(torch.cat(pooled.pop(layer)), y) for layer in self.layers}
        return self

    def _pooled(self, activation: Tensor) -> Tensor:
        if activation.dim() != 4:
            return activation.flatten(1)
        mean = self._averaged(activation)
        if not self.spread:
            return mean.flatten(1)
        variance = (self._averaged(activation.square()) - mean.square()).clamp_min(0)
        return torch.cat([mean, (variance + 1e-12).sqrt()], 1).flatten(1)  # a constant map has a slope, too

    def _averaged(self, a: Tensor) -> Tensor:
        """The average over each of the places (N, C, …)."""
        h, w = a.shape[2:]
        if self.grid == "rim":
            edge = max(1, min(h, w) // 8)
            inside = a[:, :, edge : h - edge, edge : w - edge]
            n, total = inside[0, 0].numel(), inside.sum((2, 3))  # none, in a map of two places or fewer a side
            return torch.stack([(a.sum((2, 3)) - total) / (h * w - n), total / max(n, 1)], 2)
        return a if self.grid is None or max(h, w) <= self.grid else F.adaptive_avg_pool2d(a, self.grid)

    def discrepancies(self, x: Tensor) -> Tensor:
        """d_i(x) (N, L) of one chunk, a column per layer, differentiable by x.

        Raises ValueError when the model predicts a class that no fitted image had.
        """
        if not all(svms.tensors for svms in self.svms.values()):
            raise ValueError("the validators are not fitted yet: call fit(training images, labels) first")
        with features(self.model, self.layers) as found:
            classes = predicted(self.model(x))
        return torch.stack([-self.svms[i].distance(self._pooled(found[i]), classes) for i in self.layers], 1)

    def discrepancy(self, x: Tensor) -> Tensor:
        return self.discrepancies(x).sum(1)

    def singles(self, x: Tensor) -> Tensor:
        """The scores of the single validators (N, L), in chunks, without gradients; their sum is `score`."""
        return self._in_chunks(self.discrepancies, x)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{layer}/{name}": t for layer, svms in self.svms.items() for name, t in svms.tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for layer, svms in self.svms.items():
            svms.tensors = {n.removeprefix(f"{layer}/"): t for n, t in tensors.items() if n.startswith(f"{layer}/")}


def principal_axes(z: Tensor, count: int, rounds: int = 6) -> Tensor:
    """The `count` leading eigenvectors of Zᵀ Z (D, count), largest first, for centred features Z (N, D).

    Subspace iteration with 16 directions to spare, so that D may be thousands: 2 · rounds products with Z.
    """
    directions = normal(z.new_empty(z.shape[1], min(count + 16, z.shape[1])), generator())
    for _ in range(rounds):
        directions = torch.linalg.qr(z.T @ (z @ directions)).Q
    inner = z @ directions
    return directions @ torch.linalg.eigh(inner.T @ inner).eigenvectors.flip(1)[:, :count]
