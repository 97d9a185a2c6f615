"""RTS^A, adversarial interpretation training: an RTS that has seen forged images, and gives other maps for them.

    min over g of E[ℓ_map(g; x) − γ ‖g(x; y) − g(x'; t)‖₁],     x' = ADV² on g as it is then, t the runner-up for x

so that the map of the wrong answer is not the one of the right answer: the attack shows. ℓ_map is the objective of RTS,
‖·‖₁ the mean over the pixels, and x' has no gradient of its own. Source: Zhang et al. 2020.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import kit.models
from kit.core import borrowed, logits
from kit.explain.metrics import l1_distance
from kit.explain.rts import RTS, rts_figures
from kit.explain.rts.explainer import as_large
from kit.fire.adv2 import adv2
from kit.models import Recipe
from kit.models.decoders import MaskDecoder


class RTSA(RTS):
    """An `RTS` in all, but for what it was trained on: `RTSA.shipped("scenes/resnet")`.

    gamma           γ, the weight of the distance
    eps             the ball of the forged images, in l∞
    warm, steps     of ADV² in training, as of `kit.fire.adv2`; its step is eps/4

    The terms of ℓ_map have the weights that `RTS` has by default. Cost: a step of training is one of RTS's, an attack,
    and a forward pass of two images.
    """

    shelf = "rtsa"

    def __init__(
        self, model: nn.Module, *, layers: list[str] | None = None, width: int = 16, confidence: float = 6.0,
        gamma: float = 10.0, eps: float = 8 / 255, warm: int = 5, steps: int = 10,
    ):
        super().__init__(model, layers=layers, width=width, confidence=confidence)
        if not gamma >= 0 or not eps > 0 or warm < 0 or steps < 1:
            raise ValueError("gamma and warm must be 0 or more, eps more than 0 and steps 1 or more, not "
                             f"{gamma}, {warm}, {eps} and {steps}")
        self.gamma, self.eps, self.warm, self.steps = gamma, eps, warm, steps

    def objective(
        self, decoder: MaskDecoder, selector: Tensor, x: Tensor, y: Tensor, generator: torch.Generator,
    ) -> Tensor:
        """ℓ_map(g; x) − γ ‖g(x; y) − g(x'; t)‖₁, (N,). The distance is that of the masks as they are shown."""
        plain = super().objective(decoder, selector, x, y, generator)
        target = runner_up(self.model, x, y)

        def shown(model: nn.Module, v: Tensor, c: Tensor, *, create_graph: bool = False) -> Tensor:
            with torch.set_grad_enabled(create_graph):
                maps, _ = self._encoded(v, model)
                return as_large(decoder([A.to(selector.dtype) for A in maps], selector[c], self.confidence), v)

        with borrowed(decoder, x):  # the norms are those of clean images
            forged = adv2(self.model, x, target, shown, eps=self.eps, step=self.eps / 4, warm=self.warm,
                          steps=self.steps, smooth=None)
            benign, lie = (shown(self.model, v, c, create_graph=True) for v, c in ((x, y), (forged, target)))
        return plain - self.gamma * (benign - lie).abs().mean((1, 2))


def runner_up(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The class of the largest logit but that of y, (N,)."""
    z = logits(model, x)
    return z.scatter(1, y[:, None], -torch.inf).argmax(1)


def rtsa_training(
    r: Recipe, x: Tensor, y: Tensor, *, classifier: str, device: torch.device, half: bool = True, gamma: float = 10.0,
    **how: Any,
) -> nn.Module:
    """The decoder of an `RTSA` of the catalogue's network `classifier`: as `kit.explain.rts.rts_training`."""
    rtsa = RTSA(kit.models.load(classifier, device), layers=list(r.build["maps"]), gamma=gamma)
    rtsa.fit(x, y, epochs=r.epochs, batch=r.batch, lr=r.lr, weight_decay=r.weight_decay, shift=r.shift, flip=r.flip,
             **how)
    return rtsa.fitted()


def rtsa_figures(r: Recipe, decoder: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """What `rts_figures` says of an RTS, and the L1 distance, of the first 32 test images, of the map under ADV² on it
    to the benign map (`apart`)."""
    rtsa = RTSA(kit.models.load(r.options["classifier"]), layers=list(decoder.maps))
    rtsa.decoder = decoder
    few = slice(0, 32)
    target = runner_up(rtsa.model, x[few], y[few])
    forged = adv2(rtsa.model, x[few], target, rtsa, eps=rtsa.eps, steps=50, smooth=None)
    off = l1_distance(rtsa.explain(forged, target), rtsa.explain(x[few], y[few]))
    return rts_figures(r, decoder, x, y) | {"apart": float(off.mean())}
