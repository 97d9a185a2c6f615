"""PixelDP: noise inside the network, and differential privacy as the proof that the answer holds.

How often a network answers k, when noise N(0, s² I) is added to the output h of one of its layers, is (ε, δ)-private in
the image: P(f(x) = k) ≤ e^ε P(f(x + r) = k) + δ for every ‖r‖₂ ≤ L, if

    s = L Δ √(2 ln(1.25/δ)) / ε,   0 < ε ≤ 1,   Δ a bound on ‖h(x) − h(x + r)‖₂ / ‖r‖₂ (its sensitivity).

Source: Lecuyer et al., Certified robustness to adversarial examples with differential privacy, IEEE S&P 2019.
"""
import copy
import math
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Normalize, features, laid_out, seeding
from kit.core.network import replace
from kit.defend.smoothing.binomial import at_most, check_copies, clopper_pearson, level, with_no_answer
from kit.defend.smoothing.vote import ABSTAIN, Vote, counted
from kit.models import Recipe, fit
from kit.models.training import Loss, Progress

LARGEST_DELTA = 0.3  # the range that the authors' code searches


class PixelDP(Vote):
    """Noise after `layer`, by default the first convolution or linear layer, in proportion to L and the sensitivity Δ.

    s = L Δ √(2 ln(1.25/δ)) / ε: at the radius L the network is (eps, delta)-private. The defaults are the authors'. Δ
    is computed from the weights whenever noise is drawn. Only a chain of convolutions, linear layers, batch norms and
    ReLUs may lie before the noise; all that follows is without constraint. The authors' Laplace noise, for l1, is not
    here. Raises ValueError for a layer behind anything else, and for numbers without a guarantee.
    """

    def __init__(
        self, model: nn.Module, layer: str | None = None, L: float = 0.1, eps: float = 1.0, delta: float = 0.05,
        draws: int = 32, generator: torch.Generator | None = None,
    ):
        super().__init__(model, draws, generator)
        self.layer = noisy_layer(model, layer)
        self.L, self.eps, self.delta = L, eps, delta
        deviation(sensitivity(model, self.layer), L, eps, delta)

    def sigma(self) -> float:
        """The noise in units of the image: its deviation s after the layer over the layer's sensitivity Δ."""
        return deviation(1.0, self.L, self.eps, self.delta)

    def place(self, x: Tensor) -> tuple[torch.Size, float]:
        with torch.no_grad(), features(self.model, [self.layer]) as found:
            self.model(laid_out(x[:1].detach().clone()))
        s = deviation(sensitivity(self.model, self.layer), self.L, self.eps, self.delta)
        return found[self.layer].shape[1:], s

    def under(self, x: Tensor, e: Tensor) -> Tensor:
        def noisy(h: Tensor) -> Tensor:
            return (h.unflatten(0, (len(x), len(e))) + e).flatten(0, 1)

        with replace(self.model, {self.layer: noisy}):
            return self.model(laid_out(x.repeat_interleave(len(e), 0)))

    def fit(
        self, x: Tensor, y: Tensor, *, epochs: int = 40, batch: int = 64, lr: float = 4e-3, weight_decay: float = 1e-2,
        shift: int = 0, seed: int = 0, progress: Progress | None = None,
    ) -> Self:
        """Train a copy of the network under this noise, as `kit.models.fit` does; it takes the place of `model`.

        Cost: `epochs` forward and backward passes over x.
        """
        how = Recipe("own", "own", epochs=epochs, batch=batch, lr=lr, weight_decay=weight_decay, shift=shift)
        loss = private_loss(self.layer, self.L, self.eps, self.delta)
        start = copy.deepcopy(self.model)
        self.model = fit(how, x, y, device=x.device, seed=seed, progress=progress, loss=loss, start=start).eval()
        return self

    def certify(
        self, x: Tensor, n0: int = 100, n: int = 1000, alpha: float = 0.001, generator: torch.Generator | None = None,
        *, progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(class or -1 (N,), certified l2 radius (N,)): n0 copies choose the class, n others bound all probabilities.

        By Clopper–Pearson, the class from below with α/2 and each other from above with α/2(K − 1), so that all hold
        with probability at least 1 − alpha; then `private_radius`. Cost: n0 + n forward passes.
        """
        check_copies(n0)
        check_copies(n)
        source = generator or seeding.generator()
        with self._asked(x), counted(n0 + n, progress) as bar:
            chosen = with_no_answer(self._counts(x, n0, source, bar), n0).argmax(1)
            votes = with_no_answer(self._counts(x, n, source, bar), n)
        p, q = bounds(votes.cpu().numpy(), chosen.cpu().numpy(), n, alpha)
        radius = torch.as_tensor(private_radius(p, q, self.sigma())).to(x)
        sure = (radius > 0) & (chosen > 0)
        return torch.where(sure, chosen - 1, ABSTAIN), torch.where(sure, radius, torch.zeros_like(radius))


def private_radius(p: np.ndarray, q: np.ndarray, sigma: float) -> np.ndarray:
    """The largest L at which a class of probability p at least leads all others, of q at most each: (N,).

        max L = σ ε / √(2 ln(1.25/δ))  over 0 < ε ≤ 1, 0 < δ < 0.3  with  p > e^{2ε} q + (1 + e^ε) δ,

    0 where there is none; σ the noise in units of the image. It never exceeds σ/2 (Φ⁻¹(p) − Φ⁻¹(q)), and with p = 1 it
    ends at 0.57 σ.
    """
    p, q = np.asarray(p, dtype=float)[:, None], np.asarray(q, dtype=float)[:, None]
    eps = np.arange(1, 513) / 512
    delta = np.minimum((p - np.exp(2 * eps) * q) / (1 + np.exp(eps)) * (1 - 1e-9), LARGEST_DELTA)
    held = delta > 0
    found = sigma * eps / np.sqrt(2 * np.log(1.25 / np.where(held, delta, LARGEST_DELTA)))
    return np.where(held, found, 0.0).max(1)


def bounds(votes: np.ndarray, chosen: np.ndarray, n: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """(p, q) (N,): the chosen column has a probability of p at least, every other of q at most, all at 1 − alpha."""
    half, others = level(alpha) / 2, votes.shape[1] - 1
    p = clopper_pearson(np.take_along_axis(votes, chosen[:, None], 1)[:, 0], n, half)
    rest = votes.copy()
    np.put_along_axis(rest, chosen[:, None], 0, 1)
    return p, np.minimum(1 - p, at_most(rest.max(1), n, half / others))


def deviation(sensitivity: float, L: float, eps: float, delta: float) -> float:
    """s = L Δ √(2 ln(1.25/δ)) / ε. Raises ValueError where the Gaussian mechanism guarantees nothing."""
    if not 0 < L < math.inf:
        raise ValueError(f"L must be positive, not {L:g}: without noise there is no certificate")
    if not 0 < eps <= 1 or not 0 < delta < 1:
        raise ValueError(f"the Gaussian mechanism holds for 0 < eps ≤ 1 and 0 < delta < 1, not {eps:g} and {delta:g}")
    return L * sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / eps


def sensitivity(model: nn.Module, layer: str) -> float:
    """Δ: what one unit of l2 at the image can do at most at the layer's output, the product of its layers' bounds.

    A convolution with kernel k and stride s: ⌈k/s⌉ per axis, the root of how often a pixel is read, times the largest
    singular value of its weights as a matrix (C_out, C_in k k). It is a bound, exact where k = s.
    """
    bound = 1.0
    for name, module in leaves_up_to(model, layer):
        if isinstance(module, Normalize):
            bound /= float(module.std.min())
        elif isinstance(module, nn.Linear):
            bound *= largest_singular_value(module.weight)
        elif isinstance(module, nn.Conv2d) and _plain(module):
            reads = [math.ceil(k / s) for k, s in zip(module.kernel_size, module.stride, strict=True)]
            bound *= math.sqrt(math.prod(reads)) * largest_singular_value(module.weight)
        elif isinstance(module, nn.BatchNorm2d) and module.affine and module.running_var is not None:
            bound *= float((module.weight.detach().abs() / (module.running_var + module.eps).sqrt()).max())
        elif not isinstance(module, nn.Identity | nn.Flatten | nn.ReLU):
            raise ValueError(f"no bound is known for the layer {name!r} ({type(module).__name__}) before the noise: "
                             "add the noise after an earlier layer")
    return bound


def _plain(module: nn.Conv2d) -> bool:
    return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"


def largest_singular_value(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1).double(), 2))


def leaves_up_to(model: nn.Module, layer: str) -> list[tuple[str, nn.Module]]:
    """The modules of a chain of nn.Sequential, by name, from the image to the end of `layer`."""
    leaves = list(_leaves(model))
    inside = [i for i, (name, _) in enumerate(leaves) if f"{name}.".startswith(f"{layer}.")]
    if not inside:
        raise ValueError(f"the model has no layer {layer!r} in its chain; it has {', '.join(n for n, _ in leaves)}")
    return leaves[: inside[-1] + 1]


def _leaves(module: nn.Module, prefix: str = ""):
    if not isinstance(module, nn.Sequential):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _leaves(child, f"{prefix}.{name}" if prefix else name)


def noisy_layer(model: nn.Module, layer: str | None) -> str:
    """The layer, or the first convolution or linear layer where none is named."""
    if layer is not None:
        return layer
    found = [name for name, module in _leaves(model) if isinstance(module, nn.Conv2d | nn.Linear)]
    if not found:
        raise ValueError("the model is no chain with a convolution or a linear layer: name the layer for the noise")
    return found[0]


def private_loss(layer: str | None, L: float, eps: float, delta: float) -> Loss:
    """Cross-entropy of one pass with fresh noise after the layer, of the deviation that its weights ask for now."""

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        at = noisy_layer(model, layer)
        s = deviation(sensitivity(model, at), L, eps, delta)
        noisy: Callable[[Tensor], Tensor] = lambda h: h + s * torch.randn(h.shape, generator=generator).to(h)  # noqa: E731
        with replace(model, {at: noisy}):
            return F.cross_entropy(model(xb), yb)

    return loss
