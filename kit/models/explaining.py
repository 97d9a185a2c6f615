"""Networks whose answer is a sum that they show: `kit.diverse.self_explaining` trains and measures them."""
from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kit.core import Normalize


class SelfExplaining(nn.Module):
    """f_c(x) = Σ_i θ_ci(x) h_i(x): concepts h in (0, 1), and their relevances θ in (−1, 1), each by a network of x.

        concepts(x)  h (N, k)        theta(x)  θ (N, K, k)        decode(h)  an image of the concepts, linear in h
        forward(x)   f (N, K), the logits

    concepts   k
    width      of the first convolution of both trunks; the second has twice as many maps
    hidden     units between the trunk of θ and θ

    Nothing has a kink: training differentiates a gradient of θ, and a ReLU's second derivative is zero where it exists.
    Source: Alvarez-Melis & Jaakkola, NeurIPS 2018, whose θ is bounded by tanh too; the widths are ours.
    """

    def __init__(
        self, classes: int = 10, channels: int = 1, size: int = 28, concepts: int = 12, width: int = 6,
        hidden: int = 24, norm: bool = True, *, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        self.k, self.classes, self.shape = concepts, classes, (channels, size, size)

        def trunk() -> OrderedDict[str, nn.Module]:
            return OrderedDict(
                normalise=Normalize(mean, std), conv1=nn.Conv2d(channels, width, 4, 2, 1), act1=nn.SiLU(),
                conv2=nn.Conv2d(width, 2 * width, 4, 2, 1), act2=nn.SiLU(), flatten=nn.Flatten())

        flat = 2 * width * (size // 4) ** 2
        self.encoder = nn.Sequential(OrderedDict(**trunk(), linear=nn.Linear(flat, concepts), act=nn.Sigmoid()))
        self.parametriser = nn.Sequential(OrderedDict(
            **trunk(), linear1=nn.Linear(flat, hidden), act3=nn.SiLU(),
            linear2=nn.Linear(hidden, classes * concepts), act=nn.Tanh()))
        self.decoder = nn.Linear(concepts, math.prod(self.shape))

    def concepts(self, x: Tensor) -> Tensor:
        """h (N, k) in (0, 1)."""
        return self.encoder(x)

    def theta(self, x: Tensor) -> Tensor:
        """θ (N, K, k) in (−1, 1)."""
        return self.parametriser(x).unflatten(1, (self.classes, self.k))

    def decode(self, h: Tensor) -> Tensor:
        """The image (N, C, H, W) that the concepts stand for. It may leave [0, 1]."""
        return self.decoder(h).unflatten(1, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nck,nk->nc", self.theta(x), self.concepts(x))


EXPLAINING: dict[str, Callable[..., nn.Module]] = {"self_explaining": SelfExplaining}
