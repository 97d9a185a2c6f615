"""DeepCloak: the features that an attack moves most are not needed for much else, so take them away.

    s_j = Σ_n |h_j(x'_n) − h_j(x_n)|,        z(x) = g(m ⊙ h(x)),  m_j = 0 for the largest s_j, else 1

h is one layer's output and g what follows it; nothing is trained again. Source: Gao et al., DeepCloak: masking deep
neural network models for robustness against adversarial samples, ICLR 2017 workshop.
"""
from typing import Self

import torch
from torch import Tensor, nn

from kit.core import borrowed, check_images, chunks, features, replace
from kit.core.checks import check_fits
from kit.core.fitted import Fitted
from kit.core.network import layers_named
from kit.defend.purify import Wrapper


class DeepCloak(Wrapper, Fitted):
    """A network without those features of `layer` that change most under attack.

        cloak = DeepCloak(model, "head.flatten", share=0.05).fit(x, x_adv)        cloak(x), pgd(cloak, x, y, eps=8/255)

    `share` of the features are masked, in [0, 1]; it may be set anew afterwards, `cloak.share = 0.1`, since `fit` only
    ranks them: `scores` (one for each feature of one image, in the layer's shape). With share = 0 it is the model.
    The pairs are usually made by an attack on the model itself; an attack that knows the mask attacks the cloak.
    Cost: `fit`, two forward passes; each pass, one of the model's.
    """

    def __init__(self, model: nn.Module, layer: str, share: float = 0.01):
        super().__init__()
        layers_named(model, [layer])
        if not 0 <= share <= 1:
            raise ValueError(f"share must be 0 … 1, not {share}")
        self.model, self.layer, self.share = model, layer, share
        self.scores: Tensor | None = None

    def fit(self, x: Tensor, x_adv: Tensor) -> Self:
        """Rank the features by how far the pairs (x, x_adv), each (N, C, H, W), are apart in them."""
        check_images(x)
        check_images(x_adv)
        if x.shape != x_adv.shape:
            raise ValueError(f"each image needs its attacked version: {tuple(x.shape)} and {tuple(x_adv.shape)}")
        check_fits(self.model, x)
        scores: Tensor | None = None
        with borrowed(self.model, x), torch.no_grad(), features(self.model, [self.layer]) as found:
            for rows in chunks(x):
                self.model(x[rows])
                clean = found[self.layer]
                self.model(x_adv[rows])
                moved = (found[self.layer] - clean).abs().sum(0)
                scores = moved if scores is None else scores + moved
        self.scores = scores
        return self

    def mask(self) -> Tensor:
        """m, in the layer's shape: 0 for the `share` of features that moved most, 1 for the others."""
        if self.scores is None:
            raise RuntimeError("this DeepCloak does not know what to mask: call fit(x, x_adv) first")
        m = torch.ones_like(self.scores).flatten()
        m[self.scores.flatten().argsort(descending=True, stable=True)[: round(self.share * len(m))]] = 0
        return m.view_as(self.scores)

    def forward(self, x: Tensor) -> Tensor:
        m = self.mask().to(x)
        with replace(self.model, {self.layer: lambda h: h * m}):
            return self.model(x)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.scores is None else {"scores": self.scores}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.scores = tensors.get("scores")
