"""Networks that draw images from a few numbers, and read these numbers off images: what `kit.explain.latent` trains.

They are for images of 16 × 16 and small: fully connected, the widths are ours. In the papers two or four convolutions
stand in their place.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def layers(*widths: int) -> nn.Sequential:
    """Linear layers with leaky ReLUs between."""
    made: list[nn.Module] = []
    for cin, cout in zip(widths, widths[1:], strict=False):
        made += [nn.Linear(cin, cout), nn.LeakyReLU(0.2)]
    return nn.Sequential(*made[:-1])


class VAE(nn.Module):
    """q(z|x) = N(μ, e^s), s = ln σ², by an encoder; p(x|z) by a decoder of logits. The network itself is x ↦ dec(μ).

    codes    D, the numbers that stand for an image
    widths   of the hidden layers, from the image inwards
    """

    def __init__(
        self, channels: int = 1, size: int = 16, codes: int = 6, widths: Sequence[int] = (64, 64), norm: bool = True,
    ):
        super().__init__()
        self.codes, self.shape = codes, (channels, size, size)
        pixels = math.prod(self.shape)
        self.encoder = layers(pixels, *widths, 2 * codes)
        self.decoder = layers(codes, *reversed(widths), pixels)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and s (N, D)."""
        mu, s = self.encoder((2 * x - 1).flatten(1)).chunk(2, 1)
        return mu, s

    def logits(self, z: Tensor) -> Tensor:
        """What `decode` puts into a sigmoid: (N, C, H, W)."""
        return self.decoder(z).unflatten(1, self.shape)

    def decode(self, z: Tensor) -> Tensor:
        """The images (N, C, H, W) in [0, 1] of codes (N, D)."""
        return self.logits(z).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])


class InfoGAN(nn.Module):
    """A generator of images from noise and a code c, and one trunk that tells real from drawn (D) and reads c (Q).

    c is a category of K, one-hot, and `numbers` values in [−1, 1]; Q gives the K logits and the mean of each value.
    The network itself reads: x ↦ (N, K + numbers). Chen et al., InfoGAN, NeurIPS 2016, with linear layers.
    """

    def __init__(
        self, channels: int = 1, size: int = 16, categories: int = 3, numbers: int = 3, noise: int = 8,
        width: int = 64, norm: bool = True,
    ):
        super().__init__()
        self.categories, self.numbers, self.noise, self.shape = categories, numbers, noise, (channels, size, size)
        pixels = math.prod(self.shape)
        self.generator = layers(noise + categories + numbers, width, width, pixels)
        self.trunk = nn.Sequential(layers(pixels, width, width), nn.LeakyReLU(0.2))
        self.real = nn.Linear(width, 1)
        self.read = nn.Linear(width, categories + numbers)

    def decode(self, z: Tensor) -> Tensor:
        """The images in [0, 1] of (N, noise + K + numbers): the noise, the category one-hot, the values."""
        return self.generator(z).unflatten(1, self.shape).sigmoid()

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logit of "real" (N,) and what Q reads (N, K + numbers)."""
        h = self.trunk((2 * x - 1).flatten(1))
        return self.real(h)[:, 0], self.read(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(x)[1]


class Attributes(nn.Module):
    """An autoencoder whose code has a group of `each` numbers for every labelled attribute, and `rest` for the others.

    Images of another size are averaged to `size` first, and drawn again in that.

    own    reads each attribute off its own group              {attribute: logits}
    other  tries to read it off all the others: an adversary   {attribute: logits}

    labels  {attribute: how many values it has}. After Zhang et al., AAAI 2019, whose groups are channels.
    """

    def __init__(
        self, labels: Mapping[str, int], channels: int = 3, size: int = 16, each: int = 4, rest: int = 20,
        width: int = 12, norm: bool = True,
    ):
        super().__init__()
        if size % 4:
            raise ValueError(f"a side of {size} cannot be halved twice")
        self.labels, quarter = dict(labels), size // 4
        codes, flat = each * len(self.labels) + rest, 2 * width * quarter**2
        self.groups = {name: range(i * each, (i + 1) * each) for i, name in enumerate(self.labels)}
        self.encoder = nn.Sequential(
            nn.AdaptiveAvgPool2d(size), nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(flat, codes))
        self.decoder = nn.Sequential(
            nn.Linear(codes, flat), nn.LeakyReLU(0.2), nn.Unflatten(1, (2 * width, quarter, quarter)),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(width, channels, 4, 2, 1))
        self.own = nn.ModuleDict({name: nn.Linear(each, k) for name, k in self.labels.items()})
        self.other = nn.ModuleDict({name: layers(codes - each, 32, k) for name, k in self.labels.items()})

    def encode(self, x: Tensor) -> Tensor:
        """The code (N, each · attributes + rest)."""
        return self.encoder(2 * x - 1)

    def decode(self, h: Tensor) -> Tensor:
        """The images in [0, 1] of codes."""
        return self.decoder(h).sigmoid()

    def parts(self, h: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The numbers of an attribute's own group, and all the others."""
        mine = torch.zeros(h.shape[1], dtype=torch.bool, device=h.device)
        mine[list(self.groups[name])] = True
        return h[:, mine], h[:, ~mine]

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


GENERATIVE: dict[str, Callable[..., nn.Module]] = {"vae": VAE, "infogan": InfoGAN, "attributes": Attributes}
