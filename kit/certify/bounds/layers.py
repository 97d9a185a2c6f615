"""A network as what bounds need of it: affine steps with both directions, and the steps that bend.

    up       the ends of a step's output from those of its inputs         (interval arithmetic)
    down     Wᵀ A and ⟨A, b⟩ of an affine step W h + b, for rows A         (back-substitution)

The steps are the functions that the model calls (`kit.core.operations`), so that residual sums, concatenations and
poolings need not be modules. They are listed once, on two inputs, and hold for batches of any size.
"""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import asking, borrowed, laid_out, operations
from kit.core.network import Operation
from kit.core.steps import ADDITIONS, Convolution, Linear, weighted

Ends = tuple[Tensor, Tensor]
RESHAPES = {"flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze"}
SAME = {"contiguous", "clone", "to", "float", "double", "dropout", "dropout2d", "identity", "alias"}
SELECTIONS = {"permute", "transpose", "movedim", "pad", "getitem", "narrow", "select", "flip", "roll", "pixel_shuffle",
              "pixel_unshuffle", "cat", "concat", "concatenate"}
AVERAGES = {"avg_pool2d", "adaptive_avg_pool2d", "mean"}
ELEMENTWISE = ADDITIONS | {"sub", "rsub", "mul", "rmul", "div", "truediv", "neg", "batch_norm"}
SUPPORTED = ("convolution, linear, ReLU, average and max pooling, flatten and other moves, normalisation, batch norm, "
             "concatenation, sums")


class Step:
    """One function of a network. `inputs` and `output` are the places of its tensors among the network's (0 is x)."""

    def __init__(self, op: Operation, inputs: list[int], output: int):
        self.op, self.layer, self.inputs, self.output = op, op.layer, inputs, output
        self.shapes, self.shape = [i.shape[1:] for i in op.inputs], op.output.shape[1:]

    def up(self, ends: list[Ends]) -> Ends:
        """What never falls as its inputs grow acts on the ends."""
        lower, upper = zip(*ends, strict=True)
        return self.of(list(lower)), self.of(list(upper))

    def of(self, inputs: list[Tensor]) -> Tensor:
        return self.op.of(inputs)


class Affine(Step, ABC):
    """W h + b."""

    @abstractmethod
    def down(self, A: Tensor) -> tuple[list[Tensor], Tensor | float]:
        """Wᵀ A for each input, and ⟨A, b⟩ (N, S), for rows A (N, S, …)."""


class Weighted(Affine):
    """W h + b, a convolution or a linear layer: W m + b ± |W| r for the middle m and the radius r of the ends."""

    def __init__(self, op: Operation, inputs: list[int], output: int, step: Linear):
        super().__init__(op, inputs, output)
        self.step = step

    def up(self, ends: list[Ends]) -> Ends:
        (lower, upper), = ends
        middle = (lower + upper) / 2
        radius = upper - middle
        if isinstance(self.step, Convolution):
            middle, radius = laid_out(middle), laid_out(radius)
        middle = self.step.up(middle, self.step.weight, self.step.bias)
        radius = self.step.up(radius, self.step.weight.abs())
        return middle - radius, middle.add_(radius)

    def down(self, A: Tensor) -> tuple[list[Tensor], Tensor | float]:
        step = self.step
        below = step.down(A.flatten(0, 1), step.weight)[0].unflatten(0, A.shape[:2])
        if step.bias is None:
            return [below], 0.0
        rows = A.flatten(3).sum(3) if isinstance(step, Convolution) else A
        return [below], (rows * step.bias).flatten(2).sum(2)


class Elementwise(Affine):
    """w ∘ h + b: normalisation, batch norm in evaluation mode, sums and products with constants."""

    def __init__(self, op: Operation, inputs: list[int], output: int):
        super().__init__(op, inputs, output)
        if op.name == "batch_norm":
            a = op.given("input", "running_mean", "running_var", "weight", "bias", "training")
            if a.get("training") or a["running_var"] is None:
                raise ValueError(f"the batch norm {op.layer!r} uses the statistics of the batch, so that no image "
                                 "has bounds of its own")

    def weights(self) -> Ends:
        """w and b, (1, …)."""
        with torch.enable_grad():
            zero = torch.zeros_like(self.op.inputs[0][:1]).requires_grad_()
            b = self.of([zero])
            w = torch.autograd.grad(b.sum(), zero, create_graph=torch.is_grad_enabled())[0]
        return w.detach(), b.detach()

    def up(self, ends: list[Ends]) -> Ends:
        one, other = super().up(ends)
        return torch.minimum(one, other), torch.maximum(one, other)

    def down(self, A: Tensor) -> tuple[list[Tensor], Tensor | float]:
        w, b = self.weights()
        return [A * w], (A * b).flatten(2).sum(2)


class Reshape(Affine):
    """The same numbers in another shape."""

    def of(self, inputs: list[Tensor]) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *self.shape)

    def down(self, A: Tensor) -> tuple[list[Tensor], Tensor | float]:
        return [A.reshape(*A.shape[:2], *self.shapes[0])], 0.0


class Rising(Affine):
    """An affine step whose weights are all zero or more: averages, sums, selections, concatenation, padding."""

    @property
    def spreads(self) -> bool:
        """Whether it averages over windows that do not overlap: a row that is pulled through it becomes longer, and
        says no more about intervals than before."""
        old, new = self.shapes[0], self.shape
        even = len(old) == len(new) and all(a % b == 0 for a, b in zip(old, new, strict=True))
        return self.op.name == "mean" or self.op.name == "adaptive_avg_pool2d" and even

    def down(self, A: Tensor) -> tuple[list[Tensor], Tensor | float]:
        rows = A.flatten(0, 1)
        with torch.enable_grad():
            probes = [rows.new_zeros(1, *shape).expand(len(rows), *shape).requires_grad_() for shape in self.shapes]
            h = self.of(probes)
            below = torch.autograd.grad(h, probes, rows, create_graph=rows.requires_grad)
        b = h[:1].detach()
        return [t.unflatten(0, A.shape[:2]) for t in below], (A * b).flatten(2).sum(2) if bool(b.any()) else 0.0


class ReLU(Step):
    """max(h, 0)."""

    def of(self, inputs: list[Tensor]) -> Tensor:
        return inputs[0].clamp(min=0)


class MaxPool(Step):
    """The greatest of each window. `windows` and `gathered` go between the tensor and its windows' entries."""

    def __init__(self, op: Operation, inputs: list[int], output: int):
        super().__init__(op, inputs, output)
        a = op.given("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        if a.get("ceil_mode"):
            raise ValueError(f"bounds have no rule for ceil_mode in the max pooling {op.layer!r}")
        self.padding = _pair(a.get("padding", 0))
        kernel = _pair(a["kernel_size"])
        self.unfolding: dict[str, Any] = {"kernel_size": kernel, "stride": _pair(a.get("stride") or kernel),
                          "dilation": _pair(a.get("dilation", 1))}
        self.size = math.prod(kernel)

    def windows(self, h: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, entries of a window, h', w'), −∞ where a window reaches over the edge."""
        (top, left), c = self.padding, h.shape[1]
        h = F.pad(h, (left, left, top, top), value=-math.inf)
        return F.unfold(h, **self.unfolding).view(len(h), c, self.size, *self.shape[1:])

    def gathered(self, A: Tensor) -> Tensor:
        """The adjoint: (M, C, entries, h', w') → (M, C, H, W), each place the sum of its entries."""
        (top, left), (height, width) = self.padding, self.shapes[0][1:]
        whole = F.fold(A.flatten(3).flatten(1, 2), (height + 2 * top, width + 2 * left), **self.unfolding)
        return whole[:, :, top : top + height, left : left + width]


def _pair(value) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


class Layers:
    """The steps of a network, listed on inputs like x (N, …); `model` itself is not kept, its weights are.

    `stops` are the tensors at which the rows of an interval method end: bent steps, and averages. A list follows the
    weights as they are trained. Raises ValueError for a step that bounds have no rule for, or whose
    rows are not the inputs'. Cost: a forward pass of two inputs, and of one.
    """

    def __init__(self, model: nn.Module, x: Tensor):
        two = x[:1].detach().repeat(2, *[1] * (x.dim() - 1))
        with borrowed(model, x), torch.no_grad(), asking(model, torch.zeros(2, dtype=torch.int64)):
            z, listed = operations(model, two)
        places = {id(two): 0}
        self.shapes = [two.shape[1:]]
        self.steps: list[Step] = []
        for op in listed:
            if not isinstance(op.output, Tensor) or op.output.dim() < 2 or len(op.output) != 2:
                raise ValueError(f"bounds need one row for each input, and {op.name} gives something else")
            step = _step(op, [places[id(i)] for i in op.inputs], len(self.shapes))
            places[id(op.output)] = step.output
            self.shapes.append(op.output.shape[1:])
            self.steps.append(step)
        if id(z) not in places or z.dim() != 2:
            raise ValueError(f"the model must return outputs (N, K) that depend on its inputs, not {tuple(z.shape)}")
        self.output, self.classes = places[id(z)], z.shape[1]
        self.bent = [step for step in self.steps if not isinstance(step, Affine)]
        self.stops = [step.output for step in self.steps
                      if not isinstance(step, Affine) or isinstance(step, Rising) and step.spreads]

    def widest(self) -> int:
        """The greatest number of values that one tensor holds for an input."""
        return max(math.prod(shape) for shape in self.shapes)


def _step(op: Operation, inputs: list[int], output: int) -> Step:
    step = weighted(op)
    if step is not None and step.kind != "add":
        return Weighted(op, inputs, output, step)
    one = len(inputs) == 1
    kind: Callable[..., Step] | None = None
    if op.name == "relu":
        kind = ReLU
    elif op.name == "max_pool2d":
        kind = MaxPool
    elif one and (op.name in RESHAPES or op.name in SAME and op.output.shape == op.inputs[0].shape):
        kind = Reshape
    elif op.name in SELECTIONS | AVERAGES or op.name in ADDITIONS and not op.alone and op.kwargs.get("alpha", 1) > 0:
        kind = Rising
    elif op.name in ELEMENTWISE and op.alone and op.output.shape == op.inputs[0].shape and (
            op.name not in ("div", "truediv") or op.args[0] is op.inputs[0]):
        kind = Elementwise
    if kind is None:
        raise ValueError(f"bounds have no rule for {op.name} as this model uses it; their rules: {SUPPORTED}")
    return kind(op, inputs, output)
