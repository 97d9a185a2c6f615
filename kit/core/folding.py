"""Batch norms folded into the layers before them: in the list of a network's operations, and in a copy of the network.

    z = W x + b,   (z − mean)/√variance · gain + shift   =   W' x + b'
"""
from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kit.core.network import Operation, check_same, layers_named


def without_norms(operations: list[Operation]) -> list[Operation]:
    """The same with each batch norm folded into the weights of the convolution or linear layer before it.

    Raises ValueError for a batch norm that no such layer precedes alone, or that uses the statistics of the batch.
    """
    made = {id(op.output): op for op in operations}
    uses: dict[int, int] = {}
    for op in operations:
        for i in op.inputs:
            uses[id(i)] = uses.get(id(i), 0) + 1
    folded: dict[int, Operation | None] = {}
    for op in operations:
        if op.name == "batch_norm":
            before = made.get(id(op.inputs[0]))
            if before is None or before.name not in ("conv2d", "linear") or uses[id(before.output)] > 1:
                raise ValueError(f"the batch norm {op.layer!r} cannot be folded: no convolution precedes it alone")
            folded[id(op)], folded[id(before)] = _folded(before, op), None
    return [new for op in operations if (new := folded.get(id(op), op)) is not None]


def _folded(layer: Operation, norm: Operation) -> Operation:
    n = norm.given("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    if n.get("training") or n["running_var"] is None:
        raise ValueError(f"the batch norm {norm.layer!r} cannot be folded: it uses the statistics of the batch")
    a = layer.given("input", "weight", "bias")
    weight, bias = _into(a["weight"], a.get("bias"), n["running_mean"], n["running_var"] + n.get("eps", 1e-5),
                         n.get("weight"), n.get("bias"))
    kwargs = {k: v for k, v in layer.kwargs.items() if k not in ("input", "weight", "bias")}
    args = (a["input"], weight, bias, *layer.args[3:])
    return Operation(layer.name, layer.layer, layer.function, args, kwargs, layer.inputs, norm.output)


def _into(weight, bias, mean, variance, gain, shift) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer with the batch norm (its output − mean)/√variance · gain + shift in them."""
    scale = variance.rsqrt() if gain is None else variance.rsqrt() * gain
    bias = (-mean if bias is None else bias - mean) * scale + (0 if shift is None else shift)
    return (weight * scale.view(-1, *[1] * (weight.dim() - 1))).detach(), bias.detach()


def fold_batch_norm(model: nn.Module, x: Tensor | None = None) -> nn.Module:
    """A copy in which every batch norm that follows a convolution or linear layer is folded into its weights.

    In eval mode it computes the same function; with images x that is checked (two forward passes of one of them).
    Raises ValueError, by its name, for a batch norm that cannot be folded: another layer is before it, one of the two
    is used more than once, or it has no running statistics; and for a model whose forward cannot be traced.
    """
    folded = copy.deepcopy(model).eval()
    modules = layers_named(folded, [name for name, _ in folded.named_modules() if name])
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    if not any(isinstance(m, norms) for m in modules.values()):
        return folded
    try:
        nodes = list(torch.fx.symbolic_trace(folded).graph.nodes)
    except Exception as error:
        raise ValueError(f"batch norms cannot be folded in a model whose forward cannot be traced: {error}") from error
    for node in nodes:
        if node.op != "call_module" or not isinstance(norm := modules[node.target], norms):
            continue
        why, before = None, node.args[0] if node.args else node
        layer = modules.get(before.target) if before.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or len(before.users) > 1:
            why = "no convolution precedes it alone"
        elif sum(str(n.target).startswith((f"{node.target}.", f"{before.target}.")) or n.target in (
                node.target, before.target) for n in nodes) > 2:
            why = f"it or {before.target!r} is used more than once"
        elif norm.running_var is None:
            why = "it uses the statistics of the batch"
        if why or not isinstance(layer, nn.Conv2d | nn.Linear) or norm.running_var is None:
            raise ValueError(f"the batch norm {node.target!r} cannot be folded: {why}")
        weight, bias = _into(
            layer.weight, layer.bias, norm.running_mean, norm.running_var + norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        parent, _, name = node.target.rpartition(".")
        setattr(folded.get_submodule(parent), name, nn.Identity())
    if x is not None:
        with torch.no_grad():
            check_same(folded, x[:1], copy.deepcopy(model).eval()(x[:1]), "before its batch norms are folded")
    return folded
