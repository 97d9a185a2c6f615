"""Feature Squeezing: an image that loses needless detail should keep its prediction; an adversarial one does not.

    s(x) = max_q ‖p(x) − p(q(x))‖₁ ∈ [0, 2],        p = softmax f,  q the squeezers

The squeezers are functions of images in [0, 1]. Source: Xu et al., Feature Squeezing: detecting adversarial examples in
deep neural networks, NDSS 2018.
"""
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import chunk_size, margin
from kit.detect.detector import Detector


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def bit_depth(x: Tensor, bits: int) -> Tensor:
    """round(x (2^b − 1)) / (2^b − 1): 2^b grey levels a channel.

    Rounding has no gradient; it is differentiated as the identity (backward pass differentiable approximation,
    Athalye et al. 2018), so that an attack can see through it.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 … 8, not {bits}")
    levels = 2**bits - 1
    return _Round.apply(x * levels) / levels


def median(x: Tensor, size: int) -> Tensor:
    """Each pixel becomes the median of the size × size window around it, mirrored at the border.

    An even window reaches one pixel further up and left, and of its two middle values the larger is taken: SciPy's
    convention, which the paper's squeezer has. The 3 × 3 median is found without sorting nine values: each column of
    three is sorted once for all windows that it is in, and then it is the median of three, the largest of the lowest,
    the median of the middle and the lowest of the largest. Where values are equal, they share the gradient. Memory: a
    few copies of the batch, size² for other sizes.
    """
    if size < 1 or size > min(x.shape[2:]):
        raise ValueError(f"the window must be 1 … {min(x.shape[2:])} pixels wide, not {size}")
    if size == 3:
        return torch.cat([_median_of_nine(part) for part in x.split(chunk_size(x))])  # a chunk stays in the cache
    wide = _mirrored(x, size // 2, (size - 1) // 2)
    windows = wide.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    return windows.kthvalue(size * size // 2 + 1, dim=4).values


def _median_of_nine(x: Tensor) -> Tensor:
    wide = _mirrored(x, 1, 1)
    upper, middle, lower = (wide[..., i:i + x.shape[2], :] for i in range(3))
    low, high = torch.minimum(upper, middle), torch.maximum(upper, middle)
    low, mid, high = torch.minimum(low, lower), _middle(low, high, lower), torch.maximum(high, lower)
    a, b, c = ([v[..., j:j + x.shape[3]] for j in range(3)] for v in (low, mid, high))
    lowest = torch.maximum(torch.maximum(a[0], a[1]), a[2])
    highest = torch.minimum(torch.minimum(c[0], c[1]), c[2])
    between = _middle(torch.minimum(b[0], b[1]), torch.maximum(b[0], b[1]), b[2])
    return _middle(torch.minimum(lowest, between), torch.maximum(lowest, between), highest)


def non_local_means(x: Tensor, search: int = 13, patch: int = 3, strength: float = 2.0) -> Tensor:
    """Σ_t w_t x(p + t) / Σ_t w_t over the search × search offsets t, w_t = exp(−d_t² / h²).

    d_t² is the mean squared difference, over channels and a patch × patch window, of the neighbourhoods of p and p + t;
    h = strength/255. The paper's three numbers are (search, patch, strength), 13-3-2 for CIFAR-10 and 11-3-4 for
    ImageNet; its squeezer weighs in OpenCV's Lab colours, this one in the image's own. Cost: search² box filters.
    """
    if search % 2 == 0 or patch % 2 == 0:
        raise ValueError(f"the search window and the patch must be odd, not {search} and {patch}")
    if strength <= 0:
        raise ValueError(f"strength must be positive, not {strength:g}")
    reach, h = search // 2, strength / 255
    wide = _mirrored(x, reach, reach)
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for row in range(search):
        for column in range(search):
            moved = wide[..., row:row + x.shape[2], column:column + x.shape[3]]
            apart = (moved - x).square().mean(1, keepdim=True)
            apart = F.avg_pool2d(_mirrored(apart, patch // 2, patch // 2), patch, stride=1)
            weight = (-apart / h**2).exp()
            total, weights = total + weight * moved, weights + weight
    return total / weights


def _middle(low: Tensor, high: Tensor, v: Tensor) -> Tensor:
    """The median of three, low ≤ high and v."""
    return torch.maximum(low, torch.minimum(high, v))


def _mirrored(x: Tensor, before: int, after: int) -> Tensor:
    """The image with its border mirrored, the edge pixel repeated (SciPy's "reflect")."""
    if before <= 1 and after <= 1:  # the edge alone, and ten times as fast
        return F.pad(x, (before, after, before, after), mode="replicate")
    for dim in (2, 3):
        n = x.shape[dim]
        index = torch.arange(-before, n + after, device=x.device)
        index = torch.where(index < 0, -1 - index, index)
        x = x.index_select(dim, torch.where(index >= n, 2 * n - 1 - index, index))
    return x


def _squeezed(x: Tensor, name: str, arguments: Sequence) -> Tensor:
    return SQUEEZERS[name](x, *arguments)


SQUEEZERS = {"bit_depth": bit_depth, "median": median, "non_local_means": non_local_means}
GREY_SQUEEZERS = (("bit_depth", 1), ("median", 2))
COLOUR_SQUEEZERS = (("bit_depth", 5), ("median", 2), ("non_local_means", 13, 3, 2.0))
GREY, COLOUR = GREY_SQUEEZERS, COLOUR_SQUEEZERS  # former names of `GREY_SQUEEZERS` and `COLOUR_SQUEEZERS`


class FeatureSqueezing(Detector):
    """s(x) = max over squeezers of ‖softmax f(x) − softmax f(q(x))‖₁; `fit` has nothing to learn.

    squeezers    (name, arguments…) each, of "bit_depth", "median", "non_local_means". The paper's joint sets are
                 GREY_SQUEEZERS (1 bit, median 2×2) for MNIST and COLOUR_SQUEEZERS (5 bits, median 2×2, non-local means
                 13-3-2) for CIFAR-10

    Cost: one forward pass and one per squeezer.
    """

    def __init__(self, model: nn.Module, squeezers: Sequence[Sequence] = GREY_SQUEEZERS):
        super().__init__(model)
        if not squeezers:
            raise ValueError("name at least one squeezer")
        for name, *_ in squeezers:
            if name not in SQUEEZERS:
                raise ValueError(f"there is no squeezer {name!r}: choose among {', '.join(SQUEEZERS)}")
        self.squeezers = tuple(tuple(s) for s in squeezers)

    @property
    def views(self) -> list[Callable[[Tensor], Tensor]]:
        """The squeezers with their arguments, as functions of images: what an attack must deceive too."""
        return [partial(_squeezed, name=name, arguments=arguments) for name, *arguments in self.squeezers]

    def changes(self, x: Tensor) -> Tensor:
        """‖p(x) − p(q(x))‖₁ (N, Q) of one chunk, a column per squeezer, differentiable by x."""
        p = self.model(x).softmax(1)
        return torch.stack([(p - self.model(view(x)).softmax(1)).abs().sum(1) for view in self.views], 1)

    def discrepancy(self, x: Tensor) -> Tensor:
        return self.changes(x).amax(1)

    def evasion(self, x: Tensor) -> Tensor:
        """max over x and its squeezed versions of max_{j≠k} z_j − z_k, k = argmax f(x): when all are sure of k, s is 0.

        Two sure and different answers have s = 2 and a softmax without gradient; their logits still have one.
        """
        z = self.model(x)
        k = z.argmax(1)
        return torch.stack([margin(z, k), *(margin(self.model(view(x)), k) for view in self.views)], 1).amax(1)

    def singles(self, x: Tensor) -> Tensor:
        """The scores of the single squeezers (N, Q), in chunks, without gradients; their maximum is `score`."""
        return self._in_chunks(self.changes, x)
