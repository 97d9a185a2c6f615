"""Networks from images to images of the same size: a U-Net and a binary codec, which stand before a classifier, an
autoencoder, whose codes an attack searches, and a classifier that draws what it saw.

They are small like the classifiers: the widths are ours, the layout is the papers'. `kit.defend` trains them.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from kit.models.families import Add, Concat, conv


class UNet(nn.Module):
    """x̂ = x + dx(x), dx by an encoder and a decoder that sees the encoder's maps of its own scale.

    Liao et al. (CVPR 2018) call it DUNET, since it predicts the negative noise and not the image: what it need not
    change passes by. Three scales and about 80 000 parameters; theirs has five. Height and width are multiples of 4.
    """

    def __init__(self, channels: int = 3, width: int = 16, norm: bool = True):
        super().__init__()
        w = width
        self.scale1 = nn.Sequential(conv(channels, w, norm=norm), conv(w, w, norm=norm))
        self.scale2 = nn.Sequential(conv(w, 2 * w, stride=2, norm=norm), conv(2 * w, 2 * w, norm=norm))
        self.scale3 = nn.Sequential(conv(2 * w, 3 * w, stride=2, norm=norm), conv(3 * w, 3 * w, norm=norm))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.concat2, self.concat1, self.add = Concat(), Concat(), Add()
        self.fuse2 = conv(5 * w, 2 * w, norm=norm)
        self.fuse1 = conv(3 * w, w, norm=norm)
        self.dx = nn.Conv2d(w, channels, 1)
        for parameter in self.dx.parameters():
            nn.init.zeros_(parameter)  # training starts from the identity

    def maps(self, x: Tensor) -> Tensor:
        one = self.scale1(2 * x - 1)
        two = self.scale2(one)
        three = self.scale3(two)
        two = self.fuse2(self.concat2(self.up(three), two))
        return self.fuse1(self.concat1(self.up(two), one))

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.dx(self.maps(x)))


class Sensing(UNet):
    """(N, 2, H, W): for each pixel a value μ and ln σ² of its noise, by the maps of a `UNet` with dropout of channels.

    Dropout of probability p follows the smallest scale and the middle one on its way up, where the paper (Kendall &
    Gal, 2017) has it in the deep half of its network.
    """

    def __init__(self, channels: int = 3, width: int = 8, p: float = 0.2, norm: bool = True):
        super().__init__(channels, width, norm)
        self.scale3.append(nn.Dropout2d(p))
        self.fuse2.append(nn.Dropout2d(p))
        self.dx = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dx(self.maps(x))


class Codec(nn.Module):
    """x̂ = dec(b), b = [σ(enc(x)) > ½] a binary code of `bits` maps as large as the image.

    Encoder and decoder have nine 3×3 convolutions each, with ELU between, and the decoder ends in a sigmoid (Jia et
    al., ComDefend, CVPR 2019). Their widths are 16, 32, 64, 128, 256, 128, 64, 32 and 12 maps for the code; the middle
    is narrower here, to go with images of 32 × 32. Rounding is differentiated as the identity.
    """

    def __init__(
        self, channels: int = 3, widths: Sequence[int] = (8, 12, 16, 24, 24, 24, 16, 12), bits: int = 12,
        norm: bool = True,
    ):
        super().__init__()
        there = (channels, *widths, bits)
        self.encoder = _elus(there)
        self.decoder = _elus((bits, *reversed(widths), channels))

    def logits(self, x: Tensor) -> Tensor:
        """What the code rounds: (N, bits, H, W)."""
        return self.encoder(2 * x - 1)

    def code(self, x: Tensor) -> Tensor:
        """The code b in {0, 1}: (N, bits, H, W)."""
        soft = self.logits(x).sigmoid()
        return soft + (soft.round() - soft).detach()

    def decode(self, b: Tensor) -> Tensor:
        return self.decoder(b).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.code(x))


class AutoEncoder(nn.Module):
    """x̂ = dec(enc(x)), with a code of `maps` maps of size/2^levels, after AutoZOOM's (Tu et al., AAAI 2019): at each
    level one 3×3 convolution, ReLU, and pooling or enlarging by two.

    `decoder.shape` is the shape of a code, for `kit.attacks.autozoom(space=autoencoder.decoder)`.
    """

    def __init__(
        self, channels: int = 1, size: int = 28, maps: int = 1, levels: int = 1, width: int = 16, norm: bool = True,
    ):
        super().__init__()
        if size % 2**levels:
            raise ValueError(f"a side of {size} cannot be halved {levels} times")
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for level in range(levels):
            down += [nn.Conv2d(width if level else channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            up += [nn.Conv2d(width if level else maps, width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, maps, 3, padding=1))
        self.decoder = Decoder(*up, nn.Conv2d(width, channels, 3, padding=1))
        self.decoder.shape = (maps, size // 2**levels, size // 2**levels)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Decoder(nn.Sequential):
    """From codes (N, *shape) to images."""

    shape: tuple[int, ...]


class Capsules(nn.Module):
    """A classifier that can draw what it saw: `numbers` for each class, whose length decides and whose value is drawn.

        v = enc(x) (N, K, numbers)      z_k = mean v_k²      r_k(x) = dec(v_k in the place of class k, else zeros)

    All that one class says about the image is in its own numbers, and the decoder sees those of one class at a time, so
    that every class has a reconstruction of its own. Without routing: it is the class-conditional network of Frosst,
    Sabour and Hinton (DARCCC, 2018) with capsules for the groups. Grey images whose side is a multiple of 4.
    """

    def __init__(
        self, channels: int = 1, size: int = 28, classes: int = 10, numbers: int = 8, width: int = 16,
        norm: bool = True,
    ):
        super().__init__()
        self.classes, self.numbers, quarter = classes, numbers, size // 4
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(width * ((quarter + 1) // 2) ** 2, classes * numbers))
        self.decoder = nn.Sequential(
            nn.Linear(classes * numbers, 64), nn.ReLU(), nn.Linear(64, 8 * quarter**2), nn.ReLU(),
            nn.Unflatten(1, (8, quarter, quarter)), nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, channels, 3, padding=1))

    def capsules(self, x: Tensor) -> Tensor:
        """v (N, K, numbers)."""
        return self.encoder(2 * x - 1).unflatten(1, (self.classes, self.numbers))

    def answers(self, v: Tensor) -> Tensor:
        """The logits (N, K) of capsules v: the mean square of each class's numbers."""
        return v.square().mean(2)

    def draw(self, v: Tensor, k: Tensor) -> Tensor:
        """The images (N, C, H, W) of class k (N,) that the capsules v stand for."""
        own = nn.functional.one_hot(k, self.classes).to(v)[:, :, None]
        return self.decoder((v * own).flatten(1)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.answers(self.capsules(x))


def _elus(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for cin, cout in zip(widths, widths[1:], strict=False):
        layer = nn.Conv2d(cin, cout, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight)  # torch's own start fades to nothing over nine layers without batch norm
        layers += [layer, nn.ELU()]
    return nn.Sequential(*layers[:-1])


PURIFIERS: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "codec": Codec, "autoencoder": AutoEncoder,
                                              "capsules": Capsules, "sensing": Sensing}
