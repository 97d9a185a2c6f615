"""Small networks of nine families, and a family of ImageNet's, in a few lines each.

Every network is an `nn.Sequential` of named stages: `normalise`, `stem`, `block1`, `block2`, …, `head`, so that
`features(model, ["block2"])` means the same everywhere. Three habits make them easy to explain: the order is always
convolution, batch norm, ReLU, so that batch norm folds into the convolution (`norm=False` builds the folded network);
every ReLU, addition and concatenation is a module of its own, used once, so that a rule for it can be hooked; and all
but `cnn7`, `mlp`, `small` and `pooled` end in global average pooling and one linear layer, which class activation maps
need.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Normalize


class Add(nn.Module):
    """a + b, as a module."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Concat(nn.Module):
    """Channels of all inputs one after another, as a module."""

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=1)


def conv(
    cin: int, cout: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, norm: bool = True, relu: bool = True
) -> nn.Sequential:
    """Convolution (same padding), batch norm, ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=not norm)
    layers["bn"] = nn.BatchNorm2d(cout) if norm else nn.Identity()
    if relu:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _pooled_head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, classes))
    )


def _network(mean, std, **stages: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(normalise=Normalize(mean, std), **stages))


def cnn7(
    classes: int = 10, channels: int = 1, size: int = 28, width: int = 12, norm: bool = True, *, mean=(0.5,), std=(0.5,)
) -> nn.Sequential:
    """Seven layers, six hidden (`layer1` … `layer6`) and the logits: conv, conv, pool, conv, conv, pool, fc, fc, fc.

    The layout on which Deep Validation (Wu et al., DSN 2019) puts one validator per hidden layer.
    """
    w, hidden = width, 4 * width
    flat = 2 * w * (size // 4) ** 2
    return _network(
        mean,
        std,
        layer1=conv(channels, w, norm=norm),
        layer2=nn.Sequential(*conv(w, w, norm=norm), nn.MaxPool2d(2)),
        layer3=conv(w, 2 * w, norm=norm),
        layer4=nn.Sequential(*conv(2 * w, 2 * w, norm=norm), nn.MaxPool2d(2)),
        layer5=nn.Sequential(nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU()),
        layer6=nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()),
        head=nn.Linear(hidden, classes),
    )


def mlp(
    classes: int = 10, channels: int = 1, size: int = 28, width: int = 64, norm: bool = True, *, mean=(0.5,), std=(0.5,)
) -> nn.Sequential:
    """Two hidden layers of `width` units. It has no batch norm, so `norm` changes nothing."""
    return _network(
        mean,
        std,
        stem=nn.Flatten(),
        block1=nn.Sequential(nn.Linear(channels * size * size, width), nn.ReLU()),
        block2=nn.Sequential(nn.Linear(width, width), nn.ReLU()),
        head=nn.Linear(width, classes),
    )


def small(
    classes: int = 10, channels: int = 1, size: int = 28, width: int = 16, norm: bool = True, *, mean=(0.5,), std=(0.5,)
) -> nn.Sequential:
    """Two convolutions of stride 2 and a hidden linear layer, the network of Wong and Kolter (2018) for proofs.

    It has neither poolings nor batch norm, so `norm` changes nothing. `width` is that of the first convolution.
    """
    return _network(
        mean,
        std,
        block1=nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU()),
        block2=nn.Sequential(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU()),
        block3=nn.Sequential(nn.Flatten(), nn.Linear(2 * width * (size // 4) ** 2, 6 * width), nn.ReLU()),
        head=nn.Linear(6 * width, classes),
    )


def pooled(
    classes: int = 10, channels: int = 1, size: int = 28, width: int = 32, norm: bool = True, *, pool: str = "max",
    kernel: int = 2, side: int = 4, depth: int = 1, mean=(0.5,), std=(0.5,),
) -> nn.Sequential:
    """Convolution, ReLU and pooling over squares of `side`, `depth` times, and a linear layer: to compare poolings.

    `pool` is "max" or "average". Two networks that differ in nothing else have equally many parameters; from one seed
    they begin with equal ones. As it stands it has the layers and the 11 690 parameters of a pair that a contest of
    verifiers proposed for MNIST (verivital, VNN-COMP 2021), as far as these are known. Blocks are twice as wide as the
    one before. It has no batch norm, so `norm` changes nothing. Raises ValueError for another pooling.
    """
    if pool not in ("max", "average"):
        raise ValueError(f"pool must be 'max' or 'average', not {pool!r}")
    stages, cin, left = {}, channels, size
    for i in range(depth):
        cout, left = width * 2**i, (left + 2 * (kernel // 2 if kernel % 2 else 0) - kernel + 1) // side
        stages[f"block{i + 1}"] = nn.Sequential(OrderedDict(
            conv=nn.Conv2d(cin, cout, kernel, padding=kernel // 2 if kernel % 2 else 0), relu=nn.ReLU(),
            pool=nn.MaxPool2d(side) if pool == "max" else nn.AvgPool2d(side)))
        cin = cout
    return _network(mean, std, **stages, flatten=nn.Flatten(), head=nn.Linear(cin * left**2, classes))


def vgg(
    classes: int = 10, channels: int = 3, size: int = 32, width: int = 16, norm: bool = True, *, mean=(0.5,), std=(0.5,)
) -> nn.Sequential:
    """Stacks of 3×3 convolutions between max-poolings (Simonyan & Zisserman 2015)."""
    w = width
    return _network(
        mean,
        std,
        stem=conv(channels, w, norm=norm),
        block1=nn.Sequential(conv(w, w, norm=norm), nn.MaxPool2d(2)),
        block2=nn.Sequential(conv(w, 2 * w, norm=norm), conv(2 * w, 2 * w, norm=norm), nn.MaxPool2d(2)),
        block3=nn.Sequential(conv(2 * w, 4 * w, norm=norm), conv(4 * w, 4 * w, norm=norm)),
        head=_pooled_head(4 * w, classes),
    )


class Residual(nn.Module):
    """relu(shortcut(x) + conv(conv(x))); the shortcut is a 1×1 convolution where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int, norm: bool):
        super().__init__()
        self.conv1 = conv(cin, cout, stride=stride, norm=norm)
        self.conv2 = conv(cout, cout, norm=norm, relu=False)
        same = cin == cout and stride == 1
        self.shortcut = nn.Identity() if same else conv(cin, cout, 1, stride=stride, norm=norm, relu=False)
        self.add = Add()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.add(self.shortcut(x), self.conv2(self.conv1(x))))


def resnet(
    classes: int = 10, channels: int = 3, size: int = 32, width: int = 16, norm: bool = True, *, mean=(0.5,), std=(0.5,)
) -> nn.Sequential:
    """One residual block per scale (He et al. 2016): ResNet-8 at width 16."""
    w = width
    return _network(
        mean,
        std,
        stem=conv(channels, w, norm=norm),
        block1=Residual(w, w, 1, norm),
        block2=Residual(w, 2 * w, 2, norm),
        block3=Residual(2 * w, 4 * w, 2, norm),
        head=_pooled_head(4 * w, classes),
    )


class Dense(nn.Module):
    """x ← [x, conv(x)]."""

    def __init__(self, cin: int, growth: int, norm: bool):
        super().__init__()
        self.conv = conv(cin, growth, norm=norm)
        self.concat = Concat()

    def forward(self, x: Tensor) -> Tensor:
        return self.concat(x, self.conv(x))


def densenet(
    classes: int = 10, channels: int = 3, size: int = 32, width: int = 12, norm: bool = True, *, depth: int = 4,
    mean=(0.5,), std=(0.5,),
) -> nn.Sequential:
    """Every layer sees all before it (Huang et al. 2017); `width` is the growth rate, `depth` the layers of a block.

    A 1×1 convolution halves the channels between the blocks, to whole growths. The original puts batch norm and ReLU
    before the convolution, and pools by the mean; here they follow it, so that they fold, and the pooling is max.
    """
    g, before, between = width, 2, (2 + depth) // 2  # channels in growths
    after = (between + depth) // 2

    def block(cin: int) -> list[nn.Module]:
        return [Dense((cin + i) * g, g, norm) for i in range(depth)]

    return _network(
        mean,
        std,
        stem=nn.Sequential(conv(channels, before * g, norm=norm), nn.MaxPool2d(2)),
        block1=nn.Sequential(
            *block(before), conv((before + depth) * g, between * g, 1, norm=norm), nn.MaxPool2d(2)),
        block2=nn.Sequential(*block(between), conv((between + depth) * g, after * g, 1, norm=norm)),
        block3=nn.Sequential(*block(after)),
        head=_pooled_head((after + depth) * g, classes),
    )


class Inception(nn.Module):
    """1×1, 3×3, 5×5 (as two 3×3) and pooled 1×1 convolutions side by side."""

    def __init__(self, cin: int, w: int, norm: bool):
        super().__init__()
        self.one = conv(cin, w, 1, norm=norm)
        self.three = nn.Sequential(conv(cin, w, 1, norm=norm), conv(w, w, norm=norm))
        self.five = nn.Sequential(conv(cin, w // 2, 1, norm=norm), conv(w // 2, w, norm=norm), conv(w, w, norm=norm))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(cin, w, 1, norm=norm))
        self.concat = Concat()

    def forward(self, x: Tensor) -> Tensor:
        return self.concat(self.one(x), self.three(x), self.five(x), self.pool(x))


def inception(
    classes: int = 10, channels: int = 3, size: int = 32, width: int = 16, norm: bool = True, *, mean=(0.5,), std=(0.5,)
) -> nn.Sequential:
    """Kernels of several sizes at every scale (Szegedy et al. 2015); `width` is that of one branch."""
    w = width
    return _network(
        mean,
        std,
        stem=nn.Sequential(conv(channels, w, norm=norm), nn.MaxPool2d(2)),
        block1=Inception(w, w, norm),
        block2=nn.Sequential(Inception(4 * w, w, norm), nn.MaxPool2d(2)),
        block3=Inception(4 * w, 3 * w // 2, norm),
        head=_pooled_head(6 * w, classes),
    )


class InvertedResidual(nn.Module):
    """1×1 up, 3×3 per channel, 1×1 down without ReLU, added to the input where the shape is kept."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int, norm: bool):
        super().__init__()
        inner = expand * cin
        self.up = conv(cin, inner, 1, norm=norm)
        self.depth = conv(inner, inner, stride=stride, groups=inner, norm=norm)
        self.down = conv(inner, cout, 1, norm=norm, relu=False)
        self.add = Add() if cin == cout and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.down(self.depth(self.up(x)))
        return out if self.add is None else self.add(x, out)


def mobilenet(
    classes: int = 10, channels: int = 3, size: int = 32, width: int = 16, norm: bool = True, *, mean=(0.5,), std=(0.5,)
) -> nn.Sequential:
    """Depthwise-separable inverted residuals (Sandler et al. 2018)."""
    w = width
    return _network(
        mean,
        std,
        stem=conv(channels, w, norm=norm),
        block1=InvertedResidual(w, w, 2, 3, norm),
        block2=nn.Sequential(InvertedResidual(w, 2 * w, 1, 3, norm), InvertedResidual(2 * w, 2 * w, 1, 3, norm)),
        block3=nn.Sequential(
            InvertedResidual(2 * w, 3 * w, 2, 3, norm),
            InvertedResidual(3 * w, 3 * w, 1, 3, norm),
            conv(3 * w, 6 * w, 1, norm=norm),
        ),
        head=_pooled_head(6 * w, classes),
    )


class Halving(nn.Conv2d):
    """A convolution of stride 2 that is padded as TensorFlow does: for ⌈h/2⌉ places, and what is odd at the end."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel_size[0]
        left, top = (max(kernel - 2 + size % 2, 0) for size in (x.shape[3], x.shape[2]))
        x = F.pad(x, (left // 2, left - left // 2, top // 2, top - top // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def efficientnet_lite(
    classes: int = 1000, *, wide: float = 1.0, deep: float = 1.0, mean=(0.5,) * 3, std=(0.5,) * 3
) -> nn.Sequential:
    """EfficientNet-Lite (Liu, 2020, after Tan & Le, 2019): inverted residuals with ReLU6, for 224×224 pixels and more.

    Lite0 is `wide` = `deep` = 1, Lite1 deep = 1.1, Lite2 wide = 1.1 and deep = 1.2: the channels of the stages are
    multiplied, to multiples of 8, and how often a block is repeated, but for the first and last; stem and head stay.
    Its tensors are those of timm's tf_efficientnet_lite0 (1, 2), in the same order, and so are its logits.
    """

    def layer(cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True):
        kind, padding = (Halving, 0) if stride == 2 else (nn.Conv2d, kernel // 2)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = kind(cin, cout, kernel, stride, padding, groups=groups, bias=False)
        layers["bn"] = nn.BatchNorm2d(cout, eps=1e-3)
        if relu:
            layers["relu"] = nn.ReLU6()
        return nn.Sequential(layers)

    class Block(InvertedResidual):
        def __init__(self, cin: int, cout: int, kernel: int, stride: int, expand: int):
            nn.Module.__init__(self)
            inner = expand * cin
            self.up = layer(cin, inner) if expand > 1 else nn.Sequential()
            self.depth = layer(inner, inner, kernel, stride, groups=inner)
            self.down = layer(inner, cout, relu=False)
            self.add = Add() if cin == cout and stride == 1 else None

    def channels(c: int) -> int:
        """The nearest multiple of 8, or the next where that would take more than a tenth away."""
        near = max(8, int(wide * c + 4) // 8 * 8)
        return near + 8 if near < 0.9 * wide * c else near

    stages, cin = {}, 32
    for i, (cout, kernel, stride, expand, times) in enumerate((
        (16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3), (112, 5, 1, 6, 3), (192, 5, 2, 6, 4),
        (320, 3, 1, 6, 1),
    ), 1):
        cout, times = channels(cout), ceil(deep * times) if 1 < i < 7 else times
        blocks = [Block(cin, cout, kernel, stride, expand)]
        blocks += [Block(cout, cout, kernel, 1, expand) for _ in range(times - 1)]
        stages[f"block{i}"], cin = nn.Sequential(*blocks), cout
    head = nn.Sequential(OrderedDict(maps=layer(cin, 1280), **dict(_pooled_head(1280, classes).named_children())))
    return _network(mean, std, stem=layer(3, 32, 3, 2), **stages, head=head)


FAMILIES: dict[str, Callable[..., nn.Sequential]] = {
    "cnn7": cnn7,
    "mlp": mlp,
    "small": small,
    "pooled": pooled,
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
    "inception": inception,
    "mobilenet": mobilenet,
}
