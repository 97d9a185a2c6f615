"""The weighted steps z = W x + b of a network, from its list of operations, with both of their directions.

What goes up or down through a network with other weights than its own (relevance, bounds) asks a step for it, and
reads as the formula; what makes it fast stands here. On a CPU a torch.where or a bool mask costs as much as a
convolution, and so does memory that was not used before: so there are no masks, nothing is computed that is zero, and
a tensor of one's own is overwritten.
"""
from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.network import Operation

ADDITIONS = {"add", "iadd", "radd"}


def tiny(z: Tensor) -> float:
    """What makes 0/0 zero in this precision."""
    return torch.finfo(z.dtype).tiny


def where_positive(R: Tensor, z: Tensor) -> Tensor:
    """R where z > 0, else 0."""
    return torch.ops.aten.threshold_backward(R, z, 0)


class Linear:
    """One weighted step z = W x + b: a convolution, a linear layer, or an addition (all weights 1)."""

    def __init__(self, kind: str, op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None):
        self.kind, self.layer, self.inputs = kind, op.layer, [x]
        self.x, self.z, self.weight, self.bias = x, op.output, weight, bias
        self.range: tuple[Tensor, Tensor] | None = None  # the least and the greatest x, where they are known

    def up(self, x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        """W x + b."""
        return F.linear(x, W, b)

    def down(self, s: Tensor, *weights: Tensor) -> list[Tensor]:
        """Wᵀ s for each W."""
        return [s @ W for W in weights]

    def shared(self, s: Tensor) -> Any:
        """x ∘ Wᵀ s."""
        return self.down(s, self.weight)[0].mul_(self.x)

    @cached_property
    def signed(self) -> bool:
        return bool(self.x.detach().amin() < 0)

    def parts(self, a: float, b: float) -> tuple[Part, Part]:
        """The products z_jk = x_j w_jk and the bias weighted by their sign: a z⁺ + b z⁻, and b z⁺ + a z⁻."""
        first = Part(self, a, b)
        return first, Part(self, b, a, first)

    def hand_down(self, *shares: tuple[Part, Tensor]) -> Tensor:
        """Σ_parts Σ_k z_jk / z_k R_k, z the part's and R what it gets, which is overwritten."""
        handed = [part.shared(R) for part, R in shares if bool(R.detach().amin() != 0) or bool(R.detach().amax() != 0)]
        for other in handed[1:]:
            handed[0].add_(other)
        return handed[0] if handed else torch.zeros_like(self.x)


class Part:
    """The products of a step with other weights on the positive than on the negative ones: z_k = Σ_j a z_jk⁺ + b z_jk⁻.

    `other` is the part with a and b exchanged: the two z make (a + b) z.
    """

    def __init__(self, step: Linear, a: float, b: float, other: Part | None = None):
        self.step, self.total, self.other, self.sign = step, a + b, other, 1 if other is None else -1
        plus, minus = step.weight.clamp(min=0), step.weight.clamp(max=0)
        self.weights = [a * plus + b * minus, b * plus + a * minus]  # of the x ≥ 0, and of the x < 0
        self.bias = None if step.bias is None else a * step.bias.clamp(min=0) + b * step.bias.clamp(max=0)

    @cached_property
    def z(self) -> Tensor:
        step = self.step
        if self.other is not None:
            return (self.total * step.z).sub_(self.other.z)
        if not step.signed:
            return step.up(step.x, self.weights[0], self.bias)
        return step.up(step.x.clamp(min=0), self.weights[0], self.bias) + step.up(step.x.clamp(max=0), self.weights[1])

    def shared(self, R: Tensor) -> Tensor:
        """Σ_k z_jk / z_k R_k, where z_k has the sign of what the part favours."""
        step, s = self.step, R.div_(self.z + self.sign * tiny(R))
        if not step.signed:
            return step.down(s, self.weights[0])[0].mul_(step.x)
        return step.down(s, self.weights[0])[0].mul_(step.x.clamp(min=0)).add_(
            step.down(s, self.weights[1])[0].mul_(step.x.clamp(max=0)))


class Convolution(Linear):
    def __init__(self, op: Operation):
        a = op.given("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        super().__init__("conv", op, a["input"], a["weight"], a.get("bias"))
        self.stride, self.dilation = _pair(a.get("stride", 1)), _pair(a.get("dilation", 1))
        self.groups, padding = a.get("groups", 1), a.get("padding", 0)
        if isinstance(padding, str):
            reach = [d * (k - 1) / 2 for d, k in zip(self.dilation, self.weight.shape[2:], strict=True)]
            padding = reach if padding == "same" else [0, 0]
            if any(p % 1 for p in padding):
                raise ValueError(f"the convolution {op.layer!r} has padding='same' and an even kernel, which is padded "
                                 "unevenly: pad by numbers")
        self.padding = [int(p) for p in _pair(padding)]

    def up(self, x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        return F.conv2d(x, W, b, self.stride, self.padding, self.dilation, self.groups)

    def down(self, s: Tensor, *weights: Tensor) -> list[Tensor]:
        if len(weights) > 1 and self.groups > 1:
            return [self.down(s, W)[0] for W in weights]
        like, W = self.x, weights[0]
        if len(s) != len(like):  # other rows than the images
            like = like[:1].expand(len(s), *like.shape[1:])
        if len(weights) > 1:  # in one go, since a convolution to few channels is slow; of `like` the shape alone counts
            like, W = torch.cat([like] * len(weights), 1), torch.cat(weights, 1)
        found = torch.ops.aten.convolution_backward(
            s, like, W, None, self.stride, self.padding, self.dilation, False, [0, 0], self.groups,
            (True, False, False))[0]
        return list(found.chunk(len(weights), 1)) if len(weights) > 1 else [found]


class Addition(Linear):
    """z = a + b. The summands are put into one x (2, N, …) only for a rule that asks for it."""

    def __init__(self, op: Operation):
        self.kind, self.layer, self.range = "add", op.layer, None
        self.inputs, self.z, self.bias = list(op.args[:2]), op.output, None
        self.weight = torch.ones(2, *[1] * self.z.dim(), dtype=self.z.dtype, device=self.z.device)

    @cached_property
    def x(self) -> Tensor:  # type: ignore[override]
        return torch.stack(self.inputs)

    def up(self, x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        return (x * W).sum(0)

    def down(self, s: Tensor, *weights: Tensor) -> list[Tensor]:
        return [s * W for W in weights]

    def shared(self, s: Tensor) -> Any:
        return [x * s for x in self.inputs]


def _pair(value: Any) -> list:
    return [value, value] if isinstance(value, int | float) else list(value) * (2 // len(value))


def weighted(op: Operation) -> Linear | None:
    """The step z = W x + b that an operation is, or None where it is none or takes more than x from the images."""
    if op.name == "conv2d" and op.alone and op.given("input")["input"] is op.inputs[0]:
        return Convolution(op)
    if op.name == "linear" and op.alone and op.given("input")["input"] is op.inputs[0]:
        a = op.given("input", "weight", "bias")
        return Linear("linear", op, a["input"], a["weight"], a.get("bias"))
    if op.name in ADDITIONS and op.kwargs.get("alpha", 1) == 1 and all(
            any(a is i for i in op.inputs) for a in op.args[:2]) and op.args[0].shape == op.args[1].shape:
        return Addition(op)
    return None


