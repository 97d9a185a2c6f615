"""The recipes' training of the generators that are shipped, and the figures of their manifest."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import kit.models
from kit.core import generator
from kit.fire.diagnosis.drawing import InterpretGAN, answered
from kit.models import Recipe, fit


def interpretgan_training(
    r: Recipe, x: Tensor, y: Tensor, *, classifier: str, device: torch.device, lam: float = 3.0, half: bool = True,
    **how: Any,
) -> nn.Module:
    """The generators of an `InterpretGAN` of the catalogue's network `classifier`. Cost: that of `fit`.

    `half` says that their weights are stored in half precision; they are trained in single.
    """
    gan = InterpretGAN(kit.models.load(classifier, device), list(r.build["shapes"]), noise=r.build["noise"],
                       width=r.build["width"], lam=lam)
    gan.fit(x, epochs=r.epochs, batch=r.batch, lr=r.lr, weight_decay=r.weight_decay, shift=r.shift, flip=r.flip, **how)
    return gan.fitted()


def pooled_training(r: Recipe, x: Tensor, y: Tensor, *, half: bool = True, **how: Any) -> nn.Module:
    """As `fit`. `half` says that the weights are stored in half precision; they are trained in single."""
    return fit(r, x, y, **how)


def interpretgan_figures(r: Recipe, drawers: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest, means over the layers: how many drawings of test images the classifier answers as the images
    ("accuracy"), and of features permuted among the images, how many as the image of the features ("follows")."""
    gan = InterpretGAN(kit.models.load(r.options["classifier"]), list(drawers.shapes), noise=drawers.noise,
                       width=drawers.width)
    gan.drawers = drawers
    x = x[:500]
    own = answered(gan.model, x)
    same = [answered(gan.model, drawn) == own for drawn in gan.explain(x, generator=generator()).values()]
    follows = [share for share, _ in gan.follows(x, generator=generator()).values()]
    return {"accuracy": float(torch.stack(same).float().mean()), "follows": sum(follows) / len(follows)}
