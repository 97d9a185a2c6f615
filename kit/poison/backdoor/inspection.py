"""Looking at the training set: what carries a trigger has other features than what honestly has its label.

    spectral signatures      s(x) = ⟨φ(x) − μ_y, v_y⟩²,  v_y the first right singular vector of the class's centred φ
    activation clustering    two clusters in each class; the smaller one is poison where it is small and stands apart

Sources: Tran, Li and Madry, Spectral signatures in backdoor attacks, NeurIPS 2018, algorithm 1; Chen et al., Detecting
backdoor attacks on deep neural networks by activation clustering, SafeAI 2019.
"""
from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kit.core import borrowed, check_images, check_labels, check_model, chunks, features, laid_out
from kit.core.fitted import Fitted
from kit.poison.backdoor.trigger import whole


class Inspection(Fitted, ABC):
    """What looks at a labelled training set through the features φ of `layer`, class by class.

    `fit(x, y)` takes the training set as it was given to the network, poison and all; `score(x, y)` says how suspicious
    each image is among those of its label, `suspects(x, y)` which are to be taken out. Cost: one forward pass each.
    """

    def __init__(self, model: nn.Module, layer: str):
        with features(model, [layer]):  # a name that the model does not have is refused here
            pass
        self.model, self.layer = model, layer
        self.parts: dict[str, Tensor] = {}

    def fit(self, x: Tensor, y: Tensor):
        phi = self.features(x, y)
        counts = y.bincount()
        if few := [k for k in y.unique().tolist() if counts[k] < 4]:
            raise ValueError(f"class {few[0]} has {counts[few[0]]} images: four or more of each class are needed")
        self.parts = {}
        for k in y.unique().tolist():
            self.parts |= {f"{k}/{name}": t for name, t in self.learn(phi[y == k]).items()}
        return self

    @abstractmethod
    def learn(self, phi: Tensor) -> dict[str, Tensor]:
        """What is kept of the features (n, d) of one class, by name."""

    @abstractmethod
    def suspicion(self, phi: Tensor, k: int) -> Tensor:
        """(n,) for features (n, d) of images labelled k."""

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,), higher = more suspicious; comparable within a class."""
        if not self.parts:
            raise ValueError(f"this {type(self).__name__} is not fitted yet: call fit(training images, labels) first")
        phi, scores = self.features(x, y), x.new_empty(len(x))
        for k in y.unique().tolist():
            if not any(name.startswith(f"{k}/") for name in self.parts):
                raise ValueError(f"an image is labelled {k}, a class of which nothing was fitted")
            scores[y == k] = self.suspicion(phi[y == k], k)
        return scores

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        """φ (N, d): the layer's output, the mean over places where it has any."""
        check_images(x)
        parts = []
        with borrowed(self.model, x), torch.no_grad():
            check_labels(y, x, check_model(self.model, x))
            for rows in chunks(x):
                with features(self.model, [self.layer]) as found:
                    self.model(laid_out(x[rows]))
                parts.append(pooled(found[self.layer]))
        return torch.cat(parts)

    def tensors(self) -> dict[str, Tensor]:
        return self.parts

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.parts = tensors


def pooled(h: Tensor) -> Tensor:
    """One number for each unit (N, d), or for each channel the mean over its places."""
    return h.flatten(2).mean(2) if h.dim() > 2 else h


class SpectralSignatures(Inspection):
    """s(x) = ⟨φ(x) − μ_y, v_y⟩², and the `share` of each class with the largest s are suspects.

    share    1.5 times the share of the class that may be poisoned; the paper's is 0.15

    It does not say which class is poisoned: of every class the same share is taken out. μ is taken from what is
    projected as well; with features that are only centred for v the poison can hide next to the origin.
    """

    def __init__(self, model: nn.Module, layer: str, *, share: float = 0.15):
        super().__init__(model, layer)
        if not 0 < share < 1:
            raise ValueError(f"share is what is taken out of each class, between 0 and 1, not {share:g}")
        self.share = share

    def learn(self, phi: Tensor) -> dict[str, Tensor]:
        mean = phi.mean(0)
        return {"mean": mean, "direction": torch.linalg.svd(phi - mean, full_matrices=False).Vh[0].contiguous()}

    def suspicion(self, phi: Tensor, k: int) -> Tensor:
        return ((phi - self.parts[f"{k}/mean"]) @ self.parts[f"{k}/direction"]).square()

    def suspects(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) bool: in each class the ⌊share · n⌋ most suspicious."""
        scores, found = self.score(x, y), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for k in y.unique().tolist():
            rows = (y == k).nonzero()[:, 0]
            found[rows[scores[rows].argsort(descending=True)[: whole(self.share, len(rows))]]] = True
        return found


class ActivationClustering(Inspection):
    """2-means on the first `components` principal components of each class; s(x) = ‖φ − c_large‖ − ‖φ − c_small‖.

    A class is flagged where the smaller cluster has less than `smallest` of the class, and the silhouette says that
    there are two clusters at all (`silhouette`): one cloud is cut in halves. Suspects are the smaller clusters of the
    flagged classes. The paper reduces by independent components; 35 % and 0.1 are the limits of its implementation
    in ART.
    """

    def __init__(self, model: nn.Module, layer: str, *, components: int = 10, smallest: float = 0.35,
                 silhouette: float = 0.1, seed: int = 0):
        super().__init__(model, layer)
        if components < 1 or not 0 < smallest <= 0.5:
            raise ValueError("components must be 1 or more, and smallest a share up to 0.5, not "
                             f"{components} and {smallest:g}")
        self.components, self.smallest, self.silhouette, self.seed = components, smallest, silhouette, seed

    def learn(self, phi: Tensor) -> dict[str, Tensor]:
        from sklearn.cluster import KMeans
        from sklearn.metrics import silhouette_score

        mean = phi.mean(0)
        axes = torch.linalg.svd(phi - mean, full_matrices=False).Vh[: self.components]
        points = ((phi - mean) @ axes.T).double().cpu().numpy()
        found = KMeans(2, n_init=10, random_state=self.seed).fit(points)
        small = int(found.labels_.sum() * 2 < len(phi))
        centres = torch.as_tensor(found.cluster_centers_[[1 - small, small]]).to(phi)
        apart = silhouette_score(points, found.labels_, sample_size=min(2000, len(phi)), random_state=self.seed) \
            if 0 < found.labels_.sum() < len(phi) else 0.0
        smaller = float((found.labels_ == small).mean())
        return {"mean": mean, "axes": axes.contiguous(), "centres": centres,
                "about": torch.tensor([smaller, apart], dtype=phi.dtype, device=phi.device)}

    def suspicion(self, phi: Tensor, k: int) -> Tensor:
        points = (phi - self.parts[f"{k}/mean"]) @ self.parts[f"{k}/axes"].T
        large, small = torch.cdist(points, self.parts[f"{k}/centres"]).unbind(1)
        return large - small

    @property
    def about(self) -> dict[int, tuple[float, float]]:
        """For each class: the share of its smaller cluster, and the silhouette."""
        return {int(name.partition("/")[0]): tuple(t.tolist()) for name, t in self.parts.items() if "about" in name}

    @property
    def flagged(self) -> list[int]:
        """The classes with a small cluster that stands apart, the clearest first."""
        found = [k for k, (small, apart) in self.about.items() if small < self.smallest and apart > self.silhouette]
        return sorted(found, key=lambda k: -self.about[k][1])

    def suspects(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) bool: the smaller clusters of the flagged classes."""
        flagged = torch.isin(y, torch.tensor(self.flagged, dtype=y.dtype, device=y.device))
        return (self.score(x, y) > 0) & flagged
