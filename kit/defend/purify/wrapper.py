"""A network behind something that changes its images: z(x) = f(q(x)), or the mean over random q."""
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """log (1/D) Σ_d softmax(z_d): logits (N, K) whose softmax is the mean of the probabilities."""
    return torch.stack(list(logits)).log_softmax(-1).logsumexp(0) - math.log(len(logits))


class Wrapper(nn.Module):
    """A module around the caller's networks: in evaluation mode itself, while theirs stays what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False


class Purified(Wrapper, ABC):
    """f(q(x)); `purify` is q, from images to images, and all that a defence of this kind adds."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @abstractmethod
    def purify(self, x: Tensor) -> Tensor:
        """q(x) (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.purify(x))


class Through(Purified):
    """f(q(x)) for any function q from images to images: a cleaner of one's own, or what an attacker takes for one."""

    def __init__(self, model: nn.Module, q: Callable[[Tensor], Tensor]):
        super().__init__(model)
        self.q = q

    def purify(self, x: Tensor) -> Tensor:
        return self.q(x)


def straight_through(q: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """q with the identity for its gradient (BPDA): the value is q(x), the Jacobian I. q itself is not differentiated.

    For q(x) ≈ x, of the same shape. An attack sees through `Through(model, straight_through(q))` what q hides.
    Source: Athalye et al., Obfuscated gradients give a false sense of security, ICML 2018, section 4.1.
    """
    def through(x: Tensor) -> Tensor:
        with torch.no_grad():
            cleaned = q(x)
        if cleaned.shape != x.shape:
            raise ValueError(f"q must keep the images' shape {tuple(x.shape)}, not make it {tuple(cleaned.shape)}")
        return cleaned + (x - x.detach())

    return through
