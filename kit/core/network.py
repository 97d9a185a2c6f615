"""One way into a network: read its layers, put other tensors in, list what it computes, bend its ReLUs.

    features     the tensors at layers, with their graph        replace       other tensors in their place
    calls        which modules a pass calls, in order           operations    which functions it calls, on what
    relus        the ReLUs' backward pass

Each does what the plain forward pass does, or refuses by name. What reads a layer sees what the layer returned, also
where a later operation overwrites it; what lists or rewrites a network compares its logits with the plain ones.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from kit.core.model import asking

Visit = Callable[[str, Any, Tensor], Tensor]


def layers_named(model: nn.Module, layers: Iterable[str]) -> dict[str, nn.Module]:
    """The modules of these names. Raises ValueError for a name that the model lacks, and for a compiled model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"layers are named inside a torch module, and this model is a {type(model).__name__}: pass the "
                        "network itself")
    modules = dict(model.named_modules())
    for name, module in modules.items():
        compiled = type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None)
        if compiled or isinstance(module, torch.jit.ScriptModule):
            what = f"the layer {name!r}" if name else "the model"
            raise ValueError(f"{what} is compiled, so that nothing can be read or replaced inside: "
                             "pass the network that it was made from")
    if missing := [name for name in layers if name not in modules or not name]:
        known = ", ".join(name for name in modules if name)
        raise ValueError(f"the model has no layer {missing[0]!r}; it has {known}")
    return {name: modules[name] for name in layers}


@contextmanager
def at_layers(model: nn.Module, layers: Iterable[str], visit: Visit, *, copying: bool = False) -> Iterator[None]:
    """Inside, each pass calls `visit(name, input, output)` at each layer, and goes on with what it returns.

    What `visit` was given or returned is not overwritten by later operations that work in place: where a layer of the
    model works so, or with `copying`, the pass goes on with a copy; where a function does, which is only seen
    afterwards, the pass is made once more with copies. Raises ValueError, in the pass, for a layer that takes no part,
    is called twice, or returns something else than a tensor, and for a model that overwrites its input.
    """
    modules = layers_named(model, layers)
    copying = copying or any(getattr(module, "inplace", False) for module in model.modules())
    inside, called = False, set[str]()
    kept: list[tuple[Tensor, int]] = []
    given: list[tuple[Tensor, int]] = []

    def begin(module, args, kwargs):
        nonlocal inside
        inside = True
        called.clear()
        kept.clear()
        given[:] = [(t, _version(t)) for t in _tensors([*args, *kwargs.values()])]

    def reached(name, module, args, kwargs, output):
        if not isinstance(output, Tensor) or output.is_quantized:
            kind = "a quantised tensor" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(f"the layer {name!r} returns {kind}, not a tensor of floats: name a layer that does")
        if inside and name in called:
            raise ValueError(f"the layer {name!r} is called more than once in a pass: name one that is called once")
        called.add(name)
        copied = copying or output.is_inference()
        entered = next(iter(_tensors([*args, *kwargs.values()])), None)
        entered = entered.clone() if copied and entered is not None else entered
        output = visit(name, entered, output)
        kept.extend((t, _version(t)) for t in (entered, output) if t is not None)
        return output.clone() if copied else output

    def end(module, args, kwargs, output):
        nonlocal inside, copying
        inside = False
        if any(_version(t) != version for t, version in given):
            raise ValueError("the model overwrites its input in place: let its forward begin with x = x.clone()")
        if idle := [name for name in modules if name not in called]:
            raise ValueError(f"the layer {idle[0]!r} takes no part in the model's answer: name one that does")
        if not copying and any(_version(t) != version for t, version in kept):
            copying = True
            return model(*args, **kwargs)
        return None

    hooks = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    for name, module in modules.items():
        hooks.append(module.register_forward_hook(
            lambda module, args, kwargs, output, name=name: reached(name, module, args, kwargs, output),
            with_kwargs=True))
    hooks.append(model.register_forward_hook(end, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def features(model: nn.Module, layers: Iterable[str], *, inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """Read hidden layers by their names: `with features(model, ["block2"]) as f: z = model(x); f["block2"]`.

    Each forward pass inside replaces the tensors, which keep their graph: `torch.autograd.grad(z[:, k].sum(),
    f["block2"])` is the gradient at a layer. With `inputs`, they are what goes into the layers instead. Raises
    ValueError for a name that the model does not have, and, in the pass, for what `at_layers` refuses.
    """
    found: dict[str, Tensor] = {}

    def read(name, entered, output):
        found[name] = entered if inputs else output
        return output

    with at_layers(model, layers, read):
        yield found


@contextmanager
def replace(model: nn.Module, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside, passes go on with function(h) in place of the output h of each named layer, of the same shape.

    `with replace(model, {"block2": lambda h: h * mask}): z = model(x)`. A tensor of one's own is put in by
    `lambda h: own`, and z has a gradient to it. Raises as `features` does, and for another shape.
    """
    def put(name, entered, output):
        other = functions[name](output)
        if other.shape != output.shape:
            raise ValueError(f"the layer {name!r} returns the shape {tuple(output.shape)}, and what replaces it has "
                             f"{tuple(other.shape)}")
        return other

    with at_layers(model, list(functions), put, copying=True):
        yield


def calls(model: nn.Module, x: Tensor) -> list[tuple[str, nn.Module, Any]]:
    """Each call of a module in a pass, in the order in which they return: (name, module, output)."""
    layers_named(model, [])
    names = {id(module): name for name, module in model.named_modules()}
    found: list[tuple[str, nn.Module, Any]] = []

    def note(module, args, output):
        if id(module) in names:
            found.append((names[id(module)], module, output))

    hook = register_module_forward_hook(note)
    try:
        model(x)
    finally:
        hook.remove()
    return found


@dataclass
class Operation:
    """One function that a network calls: output = function(*args, **kwargs), in the module `layer`.

    `inputs` are those of its arguments that come from the images, each once.
    """

    name: str
    layer: str
    function: Callable
    args: tuple
    kwargs: dict
    inputs: list[Tensor]
    output: Any

    @property
    def alone(self) -> bool:
        """Whether one argument alone comes from the images."""
        given = _tensors([*self.args, *self.kwargs.values()])
        return len(self.inputs) == 1 and sum(t is self.inputs[0] for t in given) == 1

    def of(self, inputs: list[Tensor]) -> Tensor:
        """The same function of other inputs."""
        args = _swapped(self.args, self.inputs, inputs)
        return self.function(*args, **{k: _swapped(v, self.inputs, inputs) for k, v in self.kwargs.items()})

    def pulled(self, s: Tensor) -> list[Tensor]:
        """Jᵀ s for each input, J the operation's Jacobian: s pulled back through what moves, copies or averages."""
        with torch.enable_grad():
            probes = [i.detach().requires_grad_() for i in self.inputs]
            return list(torch.autograd.grad(self.of(probes), probes, s, create_graph=s.requires_grad))

    def given(self, *names: str) -> dict[str, Any]:
        """Its arguments by these names, which are those of the function, in their order."""
        return dict(zip(names, self.args, strict=False)) | self.kwargs


def operations(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Operation]]:
    """The logits, and each function that the model applies to what comes from x, in order: a pass, and one of x[:1].

    The model runs as it is, so that additions and poolings need not be modules; what works in place works on a copy.
    Raises ValueError for a compiled or mixed-precision model, and for one whose logits are then others than those of
    the plain pass, or whose tensors are overwritten past the list.
    """
    layers_named(model, [])
    names, stack = {id(module): name for name, module in model.named_modules()}, [""]

    def enter(module, args):
        stack.append(names.get(id(module), stack[-1]))

    def leave(module, args, output):
        stack.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        with _Listing(x, stack) as listing:
            z = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    _check_versions(listing.versions)
    check_same(model, x, z, "listed operation by operation")
    return z, listing.operations


# Operators in place, and names of functions that Python's operators hide.
_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}


class _Listing(TorchFunctionMode):
    """Inside, lists every function that the model applies to what comes from `x`. None works in place there."""

    def __init__(self, x: Tensor, stack: list[str]):
        super().__init__()
        self.operations: list[Operation] = []
        self.known, self.stack, self.dtype = {id(x)}, stack, x.dtype
        self.versions = [(x, _version(x), "the model")]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        inputs = [t for t in _tensors([*args, *kwargs.values()]) if id(t) in self.known]
        if not inputs:
            return func(*args, **kwargs)
        raw = getattr(func, "__name__", str(func))
        raw = getattr(func.__self__, "__name__", raw) if raw == "__get__" else raw  # an attribute, such as x.T
        name = raw.strip("_")
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        if name in _IN_PLACE or raw.endswith("_") and not raw.startswith("__"):
            func = getattr(torch, _IN_PLACE.get(name, name), None)
        if func is None or raw == "__setitem__" or kwargs.get("out") is not None:
            raise ValueError(f"the layer {self.stack[-1]!r} writes into a tensor, by {raw}, which is not followed")
        output = func(*args, **kwargs)
        found = _tensors([output])
        if name == "detach" or not found or any(output is i for i in inputs):
            return output  # a constant (a hook may keep one), a number, or the input itself
        for t in found:
            if t.is_floating_point() and t.dtype != self.dtype:
                raise ValueError(f"{name} gives {t.dtype} for images of {self.dtype}: run the model in one precision, "
                                 "without autocast")
            self.known.add(id(t))
            self.versions.append((t, _version(t), f"the layer {self.stack[-1]!r}"))
        unique = list({id(t): t for t in inputs}.values())
        self.operations.append(Operation(name, self.stack[-1], func, args, kwargs, unique, output))
        return output


def check_same(model: nn.Module, x: Tensor, z: Tensor, how: str) -> None:
    """Raise ValueError unless z (N, K), found in another way, are the model's logits of x, to rounding.

    Asked is about x[:1]; where the logits differ, about all of x, since some models mix a batch, and once more, since a
    randomised one differs from itself.
    """
    with torch.no_grad():
        with asking(model, torch.arange(1)):
            if _close(model(x[:1]), z[:1]):
                return
        plain = model(x)
        if not _close(plain, z) and _close(plain, model(x)):
            off = float((plain - z).abs().max())
            raise ValueError(f"the model, {how}, gives other logits than its plain forward pass, by up to {off:.2g}: "
                             "it does something that is not followed, such as work in place for its effect alone")


def _close(z: Tensor, other: Tensor) -> bool:
    rough = max(torch.finfo(z.dtype).eps ** 0.5, 1e-4)
    return z.shape == other.shape and torch.allclose(z, other, rtol=rough, atol=rough * float(z.abs().max()))


def _check_versions(versions: list[tuple[Tensor, int, str]]) -> None:
    for t, version, where in versions:
        if _version(t) != version:
            raise ValueError(f"a tensor of {where} is overwritten in place later on, which is not followed")


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _tensors(values: Iterable) -> list[Tensor]:
    """The tensors among the values, also those in lists."""
    return [t for v in values for t in (_tensors(v) if isinstance(v, list | tuple) else [v]) if isinstance(t, Tensor)]


def _swapped(value: Any, old: list[Tensor], new: list[Tensor]) -> Any:
    """The same arguments with each old tensor replaced."""
    if isinstance(value, list | tuple):
        parts = [_swapped(v, old, new) for v in value]
        return parts if isinstance(value, list) else tuple(parts)
    return next((n for o, n in zip(old, new, strict=True) if value is o), value)


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, backward):
        ctx.save_for_backward(z)
        ctx.of, _ = backward, ctx.set_materialize_grads(False)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return None if grad is None else ctx.of(grad, z), None


class relus(TorchFunctionMode):
    """Inside, every ReLU keeps its value, and its backward pass is `backward(g, z)`, g the gradient of max(z, 0).

    `.seen` counts them. Nothing in the model is changed.
    """

    def __init__(self, backward: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.backward, self.seen = backward, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in (F.relu, torch.relu, F.relu_, torch.relu_, Tensor.relu, Tensor.relu_):
            return func(*args, **(kwargs or {}))
        self.seen += 1
        given = dict(zip(("input", "inplace"), args, strict=False)) | (kwargs or {})
        z = given["input"]
        if given.get("inplace") or func.__name__ == "relu_":
            return z.copy_(_ReLU.apply(z.clone(), self.backward))
        return _ReLU.apply(z, self.backward)


class smooth_relu(relus):
    """Inside, every ReLU keeps its value but differentiates as h(z) = z/√(z²+τ) for z ≥ 0 and 1 + z/√(z²+τ) for z < 0.

    A ReLU network's gradient is piecewise constant, so what depends on it (a saliency map) has no gradient of its own;
    with h it has one (Zhang et al. 2020, section 4.1; τ = 1e-4 as in their code). Nothing in the model is changed.
    """

    def __init__(self, tau: float = 1e-4):
        def backward(g: Tensor, z: Tensor) -> Tensor:
            h = z / (z * z + tau).sqrt()
            return g * torch.where(z < 0, 1 + h, h)

        super().__init__(backward)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """ReLU6, which mobile networks have, is max(z, 0) − max(z − 6, 0)."""
        relu = super().__torch_function__
        if func is F.relu6:
            func, args = F.hardtanh, (args[0], 0.0, 6.0, *args[1:])
        given = dict(zip(("input", "min_val", "max_val", "inplace"), args, strict=False)) | (kwargs or {})
        if func not in (F.hardtanh, F.hardtanh_) or given.get("min_val") != 0:
            return relu(func, types, args, kwargs)
        z = given["input"]
        inside = given.get("inplace") or func is F.hardtanh_
        bent = relu(F.relu, types, (z.clone() if inside else z,)) - relu(F.relu, types, (z - given["max_val"],))
        return z.copy_(bent) if inside else bent
