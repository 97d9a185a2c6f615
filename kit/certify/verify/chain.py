"""A network as the verifier reads it: affine maps with a ReLU after each but the last, in double precision.

    z_1 = W_1 x + b_1,    z_i = W_i relu(z_{i−1}) + b_i,    logits z_L

A convolution, an average pooling or a normalisation is written as its matrix.
"""
from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from kit.core.model import QueryCounter
from kit.core.network import Operation, operations

AFFINE = ("linear", "conv2d", "batch_norm", "avg_pool2d", "adaptive_avg_pool2d", "mean", "dropout", "flatten", "view",
          "reshape", "permute", "contiguous", "squeeze", "unsqueeze", "add", "sub", "rsub", "mul", "div", "truediv",
          "neg", "to")
LARGEST = 30_000_000  # entries of a matrix: 240 MB


@dataclass
class Chain:
    """The matrices W_i (n_i, n_{i−1}) and the biases b_i (n_i,), float64 and on one device."""

    W: list[Tensor]
    b: list[Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, d) → logits (B, K)."""
        return self.hidden(x)[-1]

    def hidden(self, x: Tensor) -> list[Tensor]:
        """z_1 … z_L, each (B, n_i)."""
        z = [x @ self.W[0].T + self.b[0]]
        for W, b in zip(self.W[1:], self.b[1:], strict=True):
            z.append(z[-1].relu() @ W.T + b)
        return z

    def to(self, device: str | torch.device) -> Chain:
        return Chain([W.to(device) for W in self.W], [b.to(device) for b in self.b])

    @property
    def relus(self) -> int:
        return sum(len(b) for b in self.b[:-1])

    def ended(self, C: Tensor, c: Tensor) -> Chain:
        """The same with C logits + c (m,) in place of the logits: its last layer folded into what is asked."""
        return Chain([*self.W[:-1], C @ self.W[-1]], [*self.b[:-1], C @ self.b[-1] + c])

    def rounding(self, low: Tensor, high: Tensor) -> list[Tensor]:
        """By how much a bound on z_i over the box [low, high] (d,) may be off through rounding: (n_i,) for each i.

        Every bound here is a sum of products of at most k = 2 Σ n_i + 4 L factors and terms, the absolute values of
        which sum to at most (i + 1) times what the network of |W_i| and |b_i| makes of |x|; each rounding is by
        u = 2⁻⁵³ at most. So k u/(1 − k u) times that is a bound (Higham, Accuracy and stability, section 3.1), doubled
        here.
        """
        a = torch.maximum(low.abs(), high.abs())
        k = 2 * sum(W.shape[1] for W in self.W) + 4 * len(self.W)
        unit = 2 * k * 2.0**-53 / (1 - k * 2.0**-53)
        found = []
        for i, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            a = W.abs() @ a + b.abs()
            found.append(unit * (i + 2) * a)
        return found


def chain(model: nn.Module, x: Tensor) -> Chain:
    """The chain of a model on images like x (N, C, H, W), flattened. The model is copied, and stays as it is.

    Raises ValueError for a network with branches, for an operation that is neither affine nor a ReLU (a max-pooling),
    and for one whose matrices would hold more than 30 million entries.
    """
    own = model.model if isinstance(model, QueryCounter) else model  # it is read, not asked
    twin = copy.deepcopy(own).double().eval().requires_grad_(False)
    start = x[:1].detach().double()
    with torch.no_grad():
        z, listed = operations(twin, start)
        parts: list[list[Operation]] = [[]]
        last = start
        shapes = [start]
        for op in listed:
            if not op.alone or op.inputs[0] is not last:
                raise ValueError(f"the operation {op.name} in {op.layer!r} joins branches: a network is verified that "
                                 "is one chain of affine layers and ReLUs")
            last = op.output
            if op.name == "relu":
                parts.append([])
                shapes.append(last)
            elif op.name in AFFINE:
                parts[-1].append(op)
            else:
                raise ValueError(f"the operation {op.name} in {op.layer!r} is neither affine nor a ReLU: a network is "
                                 "verified that is a chain of both (average pooling in place of max-pooling)")
        W, b = zip(*(_matrix(part, before) for part, before in zip(parts, shapes, strict=True)), strict=True)
        found = Chain(list(W), list(b))
        if not torch.allclose(found(start.flatten(1)), z, rtol=1e-9, atol=1e-9 * float(z.abs().max())):
            raise ValueError("the network is no chain of affine layers and ReLUs: its matrices give other logits")
    return found


def _matrix(part: list[Operation], like: Tensor) -> tuple[Tensor, Tensor]:
    """W (m, n) and b (m,) of affine operations one after another, on what has the shape of `like` (1, …)."""
    def run(v: Tensor) -> Tensor:
        return reduce(lambda value, op: op.of([value]), part, v)

    b = run(torch.zeros_like(like)).flatten()
    n = like.numel()
    if n * len(b) > LARGEST:
        raise ValueError(f"a layer of {n} inputs and {len(b)} outputs is too large for a matrix: verify a smaller "
                         "network")
    basis = torch.eye(n, dtype=like.dtype, device=like.device).view(n, *like.shape)
    return (torch.func.vmap(run)(basis).flatten(1) - b).T.contiguous(), b
