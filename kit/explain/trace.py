"""What a model does to a batch, step by step: each function that it calls, with what goes in and what comes out.

The model runs as it is, under a mode that notes the calls; so additions, concatenations and poolings need not be
modules. `weighted` turns a note of a convolution, a linear layer or an addition into z = W x + b with its two
directions; `pull` takes a tensor back through a step that moves or averages. A call that is neither raises a
ValueError that names it.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass
class Linear:
    """One weighted step z = W x + b of the model: a convolution, a linear layer, or an addition (all weights 1)."""

    x: Tensor
    z: Tensor
    weight: Tensor
    bias: Tensor | None
    up: Callable[..., Tensor]  # (x, W) -> W x, and (x, W, b) -> W x + b
    down: Callable[[Tensor, Tensor], Tensor]  # (s, W) -> Wᵀ s
    box: tuple[Tensor, Tensor] | None = None  # the least and the greatest x, where this step sees the pixels

    @cached_property
    def signed(self) -> bool:
        return bool(self.x.detach().amin() < 0)

    def shared(self, s: Tensor) -> Tensor:
        """x ∘ Wᵀ s."""
        return self.down(s, self.weight).mul_(self.x)


class Addition(Linear):
    """z = a + b. The summands are put into one x (2, N, …) only for a rule that asks for it."""

    def __init__(self, inputs: list[Tensor], z: Tensor):
        self.inputs, self.z, self.bias = inputs, z, None
        self.weight = torch.ones(2, *[1] * z.dim(), dtype=z.dtype, device=z.device)
        self.up, self.down = lambda x, W, b=None: (x * W).sum(0), lambda s, W: s * W

    @cached_property
    def x(self) -> Tensor:  # type: ignore[override]
        return torch.stack(self.inputs)

    def shared(self, s: Tensor) -> Any:
        return [x * s for x in self.inputs]


# What the book's networks and torchvision's plain and residual ones call, by the name of the function.
ACTIVATIONS = {"relu", "relu6", "hardtanh", "leaky_relu", "tanh", "dropout", "contiguous", "clone", "to", "float"}
MOVES = {"flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "pad", "cat", "concat",
         "max_pool2d", "adaptive_max_pool2d"}
AVERAGES = {"avg_pool2d", "adaptive_avg_pool2d", "mean"}
ADDITIONS, SHIFTS = {"add", "iadd", "radd"}, {"sub", "isub"}
SCALINGS = {"mul", "rmul", "imul", "div", "truediv", "itruediv"}
IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}
SUPPORTED = "convolution, linear, pooling, ReLU and its like, flatten, padding, addition, concatenation"


@dataclass
class Note:
    """One call: the function and its name, its arguments, those of them that come from the images, and what it gave."""

    name: str
    function: Callable
    args: tuple
    kwargs: dict
    inputs: list[Tensor]
    output: Tensor


class Notes(TorchFunctionMode):
    """Inside, notes every function that the model applies to what comes from `x`. None works in place there."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.notes: list[Note] = []
        self.known = {id(x)}
        self.box = {id(x): (torch.zeros_like(x[:1]), torch.ones_like(x[:1]))}  # of what still are pixels

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        inputs = [a for a in _tensors([*args, *kwargs.values()]) if id(a) in self.known]
        if not inputs:
            return func(*args, **kwargs)
        raw = getattr(func, "__name__", str(func))
        name = raw.strip("_")
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        if name in IN_PLACE or raw.endswith("_") and not raw.startswith("__"):
            func = getattr(torch, IN_PLACE.get(name, name), None)
            if func is None:
                raise ValueError(f"LRP has no rule for {raw}, which changes a tensor in place")
        output = func(*args, **kwargs)
        if name == "detach":  # what it gives is a constant; a hook may keep one
            return output
        if not isinstance(output, Tensor) or any(output is i for i in inputs):
            if isinstance(output, tuple | list) and any(isinstance(o, Tensor) for o in output):
                raise ValueError(f"LRP has no rule for {name}, which returns several tensors; its rules: {SUPPORTED}")
            return output
        note = Note(name, func, args, kwargs, inputs, output)
        self._check(note)
        self.notes.append(note)
        self.known.add(id(output))
        return output

    def _check(self, note: Note) -> None:
        """Refuse what has no rule, and follow the range of the pixels through the model's normalisation."""
        pixels = len(note.inputs) == 1 and id(note.inputs[0]) in self.box
        alone = len(note.inputs) == 1
        fine = (
            note.name in ACTIVATIONS | MOVES | AVERAGES
            or note.name in ("conv2d", "linear") and alone and note.inputs[0] is note.args[0]
            or note.name in ADDITIONS and (len(note.inputs) == 2 and note.inputs[0].shape == note.inputs[1].shape)
            or note.name in SCALINGS and alone and note.args[0] is note.inputs[0]
            or note.name in SHIFTS | ADDITIONS and pixels
        ) and note.kwargs.get("alpha", 1) == 1
        if not fine:
            hint = {"batch_norm": "; fold it with kit.core.fold_batch_norm"}.get(note.name, "")
            raise ValueError(f"LRP has no rule for {note.name} as this model uses it{hint}; its rules: {SUPPORTED}")
        if pixels and note.name in SHIFTS | ADDITIONS | SCALINGS | MOVES:
            ends = [note.function(*_swap(note.args, note.inputs, [end]), **note.kwargs)
                    for end in self.box[id(note.inputs[0])]]
            self.box[id(note.output)] = (torch.minimum(*ends), torch.maximum(*ends))


def _tensors(values) -> list[Tensor]:
    """The tensors among the values, also those in lists."""
    return [t for v in values for t in (_tensors(v) if isinstance(v, list | tuple) else [v]) if isinstance(t, Tensor)]


def _swap(values, old: list[Tensor], new: list[Tensor]):
    """The same arguments with each old tensor replaced."""
    def swap(v):
        if isinstance(v, list | tuple):
            return [swap(u) for u in v] if isinstance(v, list) else tuple(swap(u) for u in v)
        return next((n for o, n in zip(old, new, strict=True) if v is o), v)

    return tuple(swap(v) for v in values)


def pull(note: Note, s: Tensor) -> list[Tensor]:
    """s pulled back through a step that moves or averages its inputs: Jᵀ s for each."""
    with torch.enable_grad():
        probes = [i.detach().requires_grad_() for i in note.inputs]
        output = note.function(*_swap(note.args, note.inputs, probes), **note.kwargs)
        return list(torch.autograd.grad(output, probes, s, create_graph=s.requires_grad))


def _convolution(note: Note) -> Linear:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, note.args, strict=False)) | note.kwargs
    x, weight, groups = given["input"], given["weight"], given.get("groups", 1)
    stride, dilation = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        padding = [d * (k - 1) / 2 if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(p % 1 for p in padding):
            raise ValueError("LRP has no rule for a convolution with padding='same' and an even kernel")
    padding = [int(p) for p in _pair(padding)]

    def up(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        return F.conv2d(x, W, b, stride, padding, dilation, groups)

    def down(s: Tensor, W: Tensor) -> Tensor:
        like = x if len(W[0]) * groups == x.shape[1] else torch.cat([x, x], 1)  # its shape alone counts
        return torch.ops.aten.convolution_backward(
            s, like, W, None, stride, padding, dilation, False, [0, 0], groups, (True, False, False))[0]

    return Linear(x, note.output, weight, given.get("bias"), up, down)


def _pair(value) -> list:
    return [value, value] if isinstance(value, int | float) else list(value) * (2 // len(value))


def _linear(note: Note) -> Linear:
    given = dict(zip(("input", "weight", "bias"), note.args, strict=False)) | note.kwargs
    return Linear(given["input"], note.output, given["weight"], given.get("bias"), F.linear, lambda s, W: s @ W)


def weighted(note: Note) -> tuple[str, Linear] | None:
    """The kind ("conv", "linear" or "add") and the step z = W x + b of a note, or None where it is no such step."""
    if note.name == "conv2d":
        return "conv", _convolution(note)
    if note.name == "linear":
        return "linear", _linear(note)
    if note.name in ADDITIONS and len(note.inputs) == 2:
        return "add", Addition(note.inputs, note.output)
    return None
