"""Testing with concept activation vectors: does the logit of a class grow towards a concept?

    v = the unit normal of a hyperplane between A(concept images) and A(random images), towards the concept    the CAV
    S_i = ⟨∇_A z_y(x_i), v⟩                  the directional derivative at image x_i of the class y
    TCAV = the share of the images with S_i > 0

Where the derivative points the same way in all images, as on top of a linear head, the share is 0 or 1 and says nothing
of how much. Source: Kim et al., Interpretability beyond feature attribution, ICML 2018, sections 3.2 to 3.4.
"""
from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import borrowed, check_images, check_labels, check_model, chunks, features, laid_out, leaf
from kit.core.loop import differentiate


class TCAV:
    """`TCAV(model, layer).fit(concept images, random images).score(x, y)`.

    layer      whose output, flattened, is A
    alpha      the l2 penalty of the hinge-loss classifier (the authors': 0.01)

    `fit` keeps `cav`, of the shape of the layer's output for one image, and `accuracy` (in [0, 1]), on a third of both
    kinds that was held out: near a half, the concept is not in the layer and the score means nothing. The larger kind
    is cut to the size of the smaller. Raises ValueError for fewer than 6 of either. Cost: one forward pass of both.
    `score` and `derivatives` cost a forward pass and a backward pass from the logits to the layer.
    """

    def __init__(self, model: nn.Module, layer: str, *, alpha: float = 0.01, seed: int = 0):
        with features(model, [layer]):
            pass
        self.model, self.layer, self.alpha, self.seed = model, layer, alpha, seed
        self.cav, self.accuracy = torch.empty(0), float("nan")

    def fit(self, concept: Tensor, random: Tensor) -> Self:
        from sklearn.linear_model import SGDClassifier

        n = min(len(concept), len(random))
        if n < 6:
            raise ValueError(f"a concept vector needs 6 images of the concept and 6 random ones, not {n}")
        A = torch.cat([self._activations(images[:n]) for images in (concept, random)])
        points, kind = A.flatten(1).double().cpu().numpy(), np.repeat([1, 0], n)
        held = np.random.default_rng(self.seed).permutation(n) < n // 3
        held = np.concatenate([held, held])
        plane = SGDClassifier(alpha=self.alpha, max_iter=1000, tol=1e-3, random_state=self.seed)
        plane.fit(points[~held], kind[~held])
        self.accuracy = float(plane.score(points[held], kind[held]))
        v = torch.from_numpy(plane.coef_[0]).to(A)
        self.cav = (v / v.norm().clamp_min(1e-12)).view(A.shape[1:])
        return self

    def _activations(self, x: Tensor) -> Tensor:
        check_images(x)
        found = []
        with borrowed(self.model, x), torch.no_grad(), features(self.model, [self.layer]) as A:
            for rows in chunks(x):
                self.model(laid_out(x[rows]))
                found.append(A[self.layer])
        return torch.cat(found)

    def derivatives(self, x: Tensor, y: Tensor) -> Tensor:
        """S (N,), for images x (N, C, H, W) and the classes y (N,) whose logits are asked about."""
        if not self.cav.numel():
            raise ValueError("there is no concept vector yet: call fit(concept images, random images) first")
        check_images(x)
        found = []
        with borrowed(self.model, x), features(self.model, [self.layer]) as A:
            check_labels(y, x, check_model(self.model, x))
            for rows in chunks(x):
                z = self.model(laid_out(leaf(x[rows])))
                g = differentiate(z.gather(1, y[rows, None])[:, 0], A[self.layer])
                found.append((g * self.cav).flatten(1).sum(1))
        return torch.cat(found)

    def score(self, x: Tensor, y: Tensor) -> float:
        """The share of the images with S > 0."""
        return float((self.derivatives(x, y) > 0).double().mean())
