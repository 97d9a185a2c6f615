"""What is trained on top of a classifier's features: the decoder of RTS, which makes masks of its maps, and the
generators of InterpretGAN, which draw images."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.models.families import Add, Concat, conv


class Up(nn.Module):
    """Twice the size by pixel shuffling; then, with the encoder's maps of that size beside, a residual bottleneck."""

    def __init__(self, cin: int, passed: int, cout: int, norm: bool):
        super().__init__()
        inner = max(4, cout // 4)
        self.larger = nn.Sequential(conv(cin, 4 * cout, norm=norm), nn.PixelShuffle(2))
        self.concat, self.add, self.relu = Concat(), Add(), nn.ReLU()
        self.bottleneck = nn.Sequential(
            conv(cout + passed, inner, 1, norm=norm), conv(inner, inner, norm=norm),
            conv(inner, cout, 1, norm=norm, relu=False))
        self.shortcut = nn.Conv2d(cout + passed, cout, 1)

    def forward(self, h: Tensor, passed: Tensor) -> Tensor:
        h = self.larger(h)
        if h.shape[2:] != passed.shape[2:]:  # an odd number of places, or sizes that are not a factor 2 apart
            h = F.interpolate(h, passed.shape[2:])
        h = self.concat(h, passed)
        return self.relu(self.add(self.shortcut(h), self.bottleneck(h)))


class MaskDecoder(nn.Module):
    """m = |a| / (|a| + |b|), a and b by a U-Net from an encoder's maps A, of which a selector leaves what is one class.

        A ← A · σ(⟨A, e⟩ − confidence)      e the selector's vector of the class, ⟨·,·⟩ over the channels at a place

    maps          {layer: channels} of the encoder, the coarsest (A) first; each next is about twice as large
    width         channels at the finest scale, twice as many at each coarser one
    selector      e of each class (classes, channels of A); it is found before the rest is trained (`kit.explain.RTS`)
    fitted_on     32 numbers: the sha256 of the network that all was trained on

    Source: Dabkowski & Gal, Real time image saliency for black box classifiers, NeurIPS 2017, section 4; the layers are
    those of their code, where the width is 64.
    """

    selector: Tensor
    fitted_on: Tensor

    def __init__(self, maps: Mapping[str, int], classes: int = 10, width: int = 16, norm: bool = True):
        super().__init__()
        self.maps, self.width = dict(maps), width
        deepest, *passed = self.maps.values()
        widths = [deepest, *(width * 2**i for i in reversed(range(len(passed))))]
        self.register_buffer("selector", torch.zeros(classes, deepest))
        self.register_buffer("fitted_on", torch.zeros(32))
        self.ups = nn.ModuleList(
            Up(cin, beside, cout, norm) for cin, beside, cout in zip(widths, passed, widths[1:], strict=False))
        self.head = nn.Conv2d(widths[-1], 2, 1)

    def forward(self, maps: Sequence[Tensor], e: Tensor, confidence: float = 0.0) -> Tensor:
        """The masks (N, h, w) in [0, 1], as large as the finest maps, of maps (N, …) and class vectors e (N, …)."""
        A, *passed = maps
        h = A * (selected(A, e) - confidence).sigmoid()[:, None]
        for up, beside in zip(self.ups, passed, strict=True):
            h = up(h, beside)
        a, b = self.head(h).abs().unbind(1)
        return a / (a + b).clamp_min(torch.finfo(a.dtype).tiny)


def selected(A: Tensor, e: Tensor) -> Tensor:
    """⟨A, e⟩ at each place (N, h, w). Its mean over the places is the selector's logit of "the class is there"."""
    return torch.einsum("nkhw,nk->nhw", A, e)


class Drawer(nn.Module):
    """An image of features h, (N, d) or (N, C, h, w), and noise n (N, noise), in [0, 1].

    Features are brought to a quarter of the image's side, by a linear layer or by convolutions of stride 2; four maps
    made of the noise are put beside them, and both are enlarged twice, by convolutions between nearest neighbours.
    """

    def __init__(self, shape: Sequence[int], channels: int, size: int, width: int, noise: int):
        super().__init__()
        self.quarter, w = size // 4, width
        places = self.quarter**2
        if len(shape) == 1:
            self.read = nn.Sequential(nn.Linear(shape[0], 2 * w), nn.ReLU(), nn.Linear(2 * w, w * places), nn.ReLU(),
                                      nn.Unflatten(1, (w, self.quarter, self.quarter)))
        else:
            halvings = max(0, (shape[1] // self.quarter).bit_length() - 1)
            self.read = nn.Sequential(conv(shape[0], w, norm=False),
                                      *(conv(w, w, stride=2, norm=False) for _ in range(halvings)))
        self.noise = nn.Sequential(nn.Linear(noise, 4 * places), nn.Unflatten(1, (4, self.quarter, self.quarter)))
        self.concat = Concat()
        self.draw = nn.Sequential(
            conv(w + 4, w, norm=False), nn.Upsample(scale_factor=2), conv(w, w, norm=False),
            nn.Upsample(size=(size, size)), nn.Conv2d(w, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, h: Tensor, n: Tensor) -> Tensor:
        h = self.read(h)
        if h.shape[2] != self.quarter:
            h = F.interpolate(h, (self.quarter, self.quarter), mode="bilinear")
        return self.draw(self.concat(h, self.noise(n)))


class Drawers(nn.Module):
    """A `Drawer` for each layer of a classifier: {layer: shape of its features}. `kit.fire.InterpretGAN` trains them.

    `fitted_on` are 32 numbers: the sha256 of the classifier.
    """

    fitted_on: Tensor

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], channels: int = 1, size: int = 28, width: int = 12, noise: int = 8,
        norm: bool = True,
    ):
        super().__init__()
        if size < 4:
            raise ValueError(f"images of {size} pixels a side are too small to be drawn: 4 at least")
        self.shapes = {layer: tuple(shape) for layer, shape in shapes.items()}
        self.width, self.noise = width, noise
        self.register_buffer("fitted_on", torch.zeros(32))
        self.each = nn.ModuleList(Drawer(shape, channels, size, width, noise) for shape in self.shapes.values())

    def forward(self, layer: str, h: Tensor, n: Tensor) -> Tensor:
        return self.each[list(self.shapes).index(layer)](h, n)


class Critic(nn.Module):
    """A number (N,) for each image: how much it looks like those of the training set, not like drawn ones."""

    def __init__(self, channels: int = 1, size: int = 28, width: int = 16):
        super().__init__()
        w, eighth = width, -(-size // 8)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, w, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(w, 2 * w, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * w, 2 * w, 3, 2, 1), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(eighth), nn.Flatten(),
            nn.Linear(2 * w * eighth**2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(2 * x - 1)[:, 0]


DECODERS: dict[str, Callable[..., nn.Module]] = {"masks": MaskDecoder, "drawers": Drawers}
