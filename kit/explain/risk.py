"""The risk of a network as a function of some layers' parameters: its gradients and Hessian products, image by image.

`influence` asks for them. A network differentiates by itself (`Network`), a last linear layer in closed form (`Head`).
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kit.core import chunks, features, laid_out
from kit.core.network import at_layers, layers_named


def owners_of(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Any]:
    """The layers that hold the parameters in question, by name."""
    layers_named(model, layers or ())
    owners = {
        name: module for name, module in model.named_modules() if [*module.parameters(recurse=False)]
        and (layers is None or any(name == layer or name.startswith(layer + ".") for layer in layers))
    }
    for name, module in owners.items():
        known = isinstance(module, nn.Linear | nn.BatchNorm2d) or (
            isinstance(module, nn.Conv2d) and not isinstance(module.padding, str) and module.padding_mode == "zeros")
        if not known:
            raise ValueError(f"gradients of single images are not known for {name!r}, {module}: "
                             "use layers= to name linear, convolution (zero-padded by numbers) and batch-norm layers")
    if not owners:
        raise ValueError("these layers have no parameters: name others in layers=")
    whose: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            other = whose.setdefault(id(parameter), name)
            if other != name and (name in owners or other in owners):
                raise ValueError(f"the layers {other!r} and {name!r} share a parameter, so that neither has a gradient "
                                 "of its own: use layers= to name others")
    return owners


def backward(model, owners, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each layer its input a and the gradient δ of every image's own loss with respect to its output."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name, a, output):
        output = output if output.requires_grad else output.detach().requires_grad_()
        if len(a) != len(x) or a.dtype != x.dtype or output.dtype != x.dtype:
            raise ValueError(f"gradients of single images are not known for {name!r}, whose input is {tuple(a.shape)}, "
                             f"{a.dtype}, for {len(x)} images, {x.dtype}: use layers= to name others, without autocast")
        seen[name] = (a, output)
        return output

    with at_layers(model, list(owners), keep):
        loss = F.cross_entropy(model(laid_out(x)), y, reduction="sum")
    deltas = torch.autograd.grad(loss, [seen[name][1] for name in owners], allow_unused=True)
    for name, delta in zip(owners, deltas, strict=True):
        if delta is None:
            raise ValueError(f"the loss has no gradient at the layer {name!r}: use layers= to name others")
    return [(seen[name][0].detach(), delta) for name, delta in zip(owners, deltas, strict=True)]


def _gradient(module: Any, a: Tensor, delta: Tensor) -> Tensor:
    """Every image's gradient of one layer's parameters (B, p), in their order, from its input and output gradient."""
    if isinstance(module, nn.Linear):  # of single vectors, or of tokens (B, …, d)
        a, delta = a.reshape(len(a), -1, a.shape[-1]), delta.reshape(len(a), -1, delta.shape[-1])
        weight, delta = torch.einsum("blo,bli->boi", delta, a), delta.sum(1)
    elif isinstance(module, nn.Conv2d):
        weight = _of_filters(module, a, delta)
    elif isinstance(module, nn.BatchNorm2d):
        weight = (delta * F.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)).sum((2, 3))
    parts = [weight.flatten(1)]
    if module.bias is not None:
        parts.append(delta.flatten(2).sum(2) if delta.dim() == 4 else delta)
    return torch.cat(parts, 1)


def _of_filters(module: Any, a: Tensor, delta: Tensor) -> Tensor:
    """Σ_positions δ · patch for every image, (B, out, in/groups, height, width) as the filters are.

    The patches are copied for a few images at a time, so that the copies stay in the cache: copying all at once takes
    several times as long as the passes.
    """
    n, groups, (height, width), (down, right) = len(a), module.groups, module.kernel_size, module.padding
    reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    a = F.pad(a, (right, right, down, down)).permute(0, 2, 3, 1).contiguous()
    patches = a.unfold(1, reach[0], module.stride[0]).unfold(2, reach[1], module.stride[1])
    patches = patches[..., ::module.dilation[0], ::module.dilation[1]].unflatten(3, (groups, -1))
    patches = patches.permute(0, 3, 1, 2, 5, 6, 4)  # (B, groups, rows, columns, height, width, in/groups)
    delta = delta.permute(0, 2, 3, 1).reshape(n, -1, groups, delta.shape[1] // groups).permute(0, 2, 3, 1)
    few = max(1, 2**19 // patches[0].numel())
    parts = [d @ p.reshape(len(p), groups, delta.shape[3], -1)
             for d, p in zip(delta.split(few), patches.split(few), strict=True)]
    return torch.cat(parts).view(n, module.out_channels, height, width, -1).permute(0, 1, 4, 2, 3)


def kept_of(module, a, delta):
    """What products of gradients need: of a linear layer of single vectors its two factors, else the gradient."""
    return (a, delta) if isinstance(module, nn.Linear) and a.dim() == 2 else _gradient(module, a, delta)


def inner(module, kept, others) -> Any:
    """⟨∇ℓ, ∇ℓ'⟩ of one layer for all pairs (T, B)."""
    if isinstance(kept, Tensor):
        return kept @ others.T
    (a, d), (a_, d_) = kept, others
    return (a @ a_.T + (module.bias is not None)) * (d @ d_.T)


def squared(module, kept) -> Any:
    if isinstance(kept, Tensor):
        return kept.square().sum(1)
    a, d = kept
    return (a.square().sum(1) + (module.bias is not None)) * d.square().sum(1)


class Network:
    """The risk as a function of any layers' parameters, by automatic differentiation."""

    def __init__(self, model: nn.Module, owners: dict[str, Any], x: Tensor, y: Tensor):
        self.model, self.owners, self.y, self.n = model, owners, y, len(y)
        self.names = [f"{name}.{own}" for name, module in owners.items()
                      for own, _ in module.named_parameters(recurse=False)]
        parameters = dict(model.named_parameters())
        self.shapes = [parameters[name].shape for name in self.names]
        self.theta = torch.cat([parameters[name].detach().flatten() for name in self.names])
        with torch.no_grad():
            self.classes = model(x[:1]).shape[1]
        self.data = x

    def inputs(self, x: Tensor) -> Tensor:
        return x

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in chunks(self.data):
            yield laid_out(self.data[rows]), self.y[rows]

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.data[index], self.y[index]

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([shape.numel() for shape in self.shapes])
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        return functional_call(self.model, self.named(theta), (x,))

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        layers = zip(self.owners.values(), backward(self.model, self.owners, x, y), strict=True)
        return torch.cat([_gradient(module, a, delta) for module, (a, delta) in layers], 1)

    def products(self, v: Tensor) -> Tensor:
        sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in self.owners.values()]
        out = []
        for x, y in self.parts():
            layers = zip(self.owners.values(), backward(self.model, self.owners, x, y), v.split(sizes, 1), strict=True)
            out.append(sum(part @ _gradient(module, a, delta).T for module, (a, delta), part in layers))
        return torch.cat(out, 1)

    def curvature(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """v (T, P) ↦ Σ_i weight_i ∇²ℓ_i v for each vector: a forward and a backward pass now, two backward for each."""
        theta = self.theta.detach().requires_grad_()
        losses = F.cross_entropy(self.logits(theta, x), y, reduction="none")
        loss = losses.sum() if weight is None else weight @ losses
        (g,) = torch.autograd.grad(loss, theta, create_graph=True)
        return lambda v: torch.stack([torch.autograd.grad(g, theta, u, retain_graph=True)[0] for u in v])

    def hessian_products(self, x: Tensor, y: Tensor, v: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.curvature(x, y, weight)(v)

    def hessian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.hessian_products(x, y, torch.eye(len(self.theta), dtype=x.dtype, device=x.device))

    def replace(self, index: Tensor, x: Tensor) -> None:
        """Put other images in the places `index`."""
        with torch.no_grad():
            self.data = self.data.index_copy(0, index, self.inputs(x))

    def load(self, theta: Tensor) -> None:
        """Go on with the model that has these parameters."""
        self.theta, self.model = theta, self.with_parameters(theta)
        self.owners = {name: self.model.get_submodule(name) for name in self.owners}

    def with_parameters(self, theta: Tensor) -> nn.Module:
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, value in self.named(theta).items():
                model.get_parameter(name).copy_(value)
        return model


class Head(Network):
    """The same for a last linear layer, on its inputs a (n, d) and a column of ones: z = Θ a, r = softmax z − e_y,

    ∇ℓ = r aᵀ   and   ∇²ℓ = (diag p − p pᵀ) ⊗ a aᵀ.   Θ is (K, d + 1), its last column the bias.
    """

    def __init__(self, model: nn.Module, owners: dict[str, Any], x: Tensor, y: Tensor):
        super().__init__(model, owners, x, y)
        weight = self.layer.weight.detach()
        columns = [weight] if self.layer.bias is None else [weight, self.layer.bias.detach()[:, None]]
        self.theta = torch.cat(columns, 1).flatten()
        with torch.no_grad():
            self.data = torch.cat([self.inputs(laid_out(x[rows])) for rows in chunks(x)])

    @property
    def layer(self) -> Any:
        return next(iter(self.owners.values()))

    def inputs(self, x: Tensor) -> Tensor:
        (name,) = self.owners
        with features(self.model, [name], inputs=True) as entered:
            self.model(x)
        a = entered[name]
        return a if self.layer.bias is None else torch.cat([a, torch.ones_like(a[:, :1])], 1)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.data.split(2048), self.y.split(2048), strict=True)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        (name,) = self.owners
        table, d = theta.view(self.classes, -1), self.layer.in_features
        return {f"{name}.weight": table[:, :d]} | ({} if self.layer.bias is None else {f"{name}.bias": table[:, d]})

    def logits(self, theta: Tensor, a: Tensor) -> Tensor:
        return a @ theta.view(self.classes, -1).T

    def probabilities(self, a: Tensor) -> Tensor:
        return self.logits(self.theta, a).softmax(1)

    def residuals(self, a: Tensor, y: Tensor) -> Tensor:
        return self.probabilities(a) - F.one_hot(y, self.classes)

    def gradients(self, a: Tensor, y: Tensor) -> Tensor:
        return (self.residuals(a, y)[:, :, None] * a.detach()[:, None, :]).flatten(1).detach()

    def products(self, v: Tensor) -> Tensor:
        table = v.view(len(v) * self.classes, -1).T
        return torch.cat([
            ((a @ table).view(len(a), len(v), -1) * self.residuals(a, y)[:, None]).sum(2) for a, y in self.parts()]).T

    def curvature(self, a: Tensor, y: Tensor, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        p = self.probabilities(a)[:, None]
        weighted = p if weight is None else weight[:, None, None] * p

        def product(v: Tensor) -> Tensor:
            u = (a @ v.view(len(v) * self.classes, -1).T).view(len(a), len(v), -1)
            s = weighted * (u - (p * u).sum(2, keepdim=True))
            return (s.flatten(1).T @ a).view(len(v), -1)

        return product

    def hessian(self, a: Tensor, y: Tensor) -> Tensor:
        p, k, d = self.probabilities(a), self.classes, a.shape[1]
        H = a.new_zeros(k, d, k, d)
        for i in range(k):
            for j in range(i, k):
                curvature = p[:, i] * (float(i == j) - p[:, j])
                H[i, :, j] = (a * curvature[:, None]).T @ a
                H[j, :, i] = H[i, :, j]
        return H.view(k * d, k * d)


def risk_of(model: nn.Module, layers: Sequence[str] | None, x: Tensor, y: Tensor) -> Network:
    owners = owners_of(model, layers)
    module = next(iter(owners.values()))
    if len(owners) == 1 and isinstance(module, nn.Linear):
        with torch.no_grad(), features(model, owners, inputs=True) as entered, features(model, owners) as left:
            last = model(x[:1])
        ((a,), (output,)) = entered.values(), left.values()
        if a.dim() == 2 and last.shape == output.shape and torch.equal(last, output):
            return Head(model, owners, x, y)
    return Network(model, owners, x, y)
