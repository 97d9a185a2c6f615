"""Networks for a vote under noise: trained under the noise that they will be asked under."""
import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import accuracy, device
from kit.defend.smoothing.pixeldp import PixelDP, private_loss
from kit.defend.smoothing.vote import Smoothed
from kit.models import Recipe, fit


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


def pixeldp_training(
    r: Recipe, x: Tensor, y: Tensor, *, layer: str | None = None, L: float = 0.1, eps: float = 1.0, delta: float = 0.05,
    **how: Any,
) -> nn.Module:
    """The noise of `PixelDP` after the layer, in every pass: what `PixelDP` asks of its network.

    Cost: a step of training. Source: Lecuyer et al., IEEE S&P 2019, section 4.2.
    """
    return fit(r, x, y, loss=private_loss(layer, L, eps, delta), **how)


def smoothed_figures(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: accuracy under the training's noise, as `Smoothed` asks, and of the bare network without it.

    On the GPU where there is one, whatever the network's device: 17 passes over the test images.
    """
    there = copy.deepcopy(model).to(device("auto"))
    x, y = x.to(device("auto")), y.to(device("auto"))
    return {"accuracy": accuracy(Smoothed(there, r.options["sigma"]), x, y), "without_noise": accuracy(there, x, y)}


def pixeldp_figures(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: accuracy under the training's noise, and of the bare network without it."""
    return {"accuracy": accuracy(PixelDP(model, **r.options), x, y), "without_noise": accuracy(model, x, y)}
