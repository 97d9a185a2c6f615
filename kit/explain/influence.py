"""Which training points are responsible for a prediction? Influence functions, and TracIn beside them.

A model's parameters θ̂ minimise the regularised risk of its n training points z_i = (x_i, y_i),

    R(θ) = 1/n Σ_i ℓ(z_i, θ) + l2/2 ‖θ‖²,        ℓ = cross-entropy of the logits, in nats.

Give point z the extra weight ε, and the minimiser moves by dθ̂/dε = −H⁻¹ ∇ℓ(z), with H = ∇²R(θ̂) + damping · I, so that

    I(z, z_test) = −∇ℓ(z_test)ᵀ H⁻¹ ∇ℓ(z).

Removing z is ε = −1/n: `Influence.score` returns −I/n, the predicted change of the test loss (positive: z helped).
Moving z to z + δ changes the test loss by ⟨`Influence.perturbation`, δ⟩, and `training_set_attack` follows it.
Both hold to first order, at a minimum of R, for the parameters named by `layers` (all of them by default); `retrain`
is the truth they predict. Source: Koh and Liang, Understanding black-box predictions via influence functions, ICML
2017, sections 2, 3 and 5.2.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kit.core import Linf, Trace, borrowed, check_images, check_labels, check_model, chunks, fooled, generator, laid_out

LARGEST_HESSIAN = 12_000  # parameters; 12 000² numbers are 0.6 GB in float32


class Influence:
    """Influence of every training point on test losses: `Influence(model, l2=…).fit(x, y).score(x_test, y_test)`.

    model     images (N, C, H, W) in [0, 1] → logits (N, K), trained to a minimum of R
    layers    names of the layers whose parameters count; None is all. When they are the last linear layer alone,
              its inputs are computed once in `fit` and everything after it is in closed form
    l2        the weight decay the model was trained with (on all those parameters, biases too)
    damping   added to H's diagonal, for a model not at a minimum; about the size of H's most negative eigenvalue
    solver    how H h = v is solved: "exact" forms H; "cg" runs conjugate gradients until ‖H h − v‖ ≤ tol ‖v‖;
              "lissa" sums h ← v + h − H_b h / scale over random batches b, `depth` times, and averages `repeats` sums
    scale     of LiSSA, at least H_b's largest eigenvalue; None is twice the largest eigenvalue of H

    Cost, in passes over the n training images: fit, one forward pass (last layer) or none; score, one forward and one
    backward pass (last layer: none), and before it, for each solve: "cg" about 4 forward passes' time a step, "lissa"
    4 · depth · batch / n, "exact" once a number of them that grows with the number of parameters. Memory: a chunk, H
    for "exact", and for the last layer its inputs.
    Raises ValueError for H that is not positive definite, for a LiSSA sum that diverges and for parameters of layers
    other than Linear, Conv2d and BatchNorm2d, and RuntimeError for a solve that does not converge.
    """

    def __init__(
        self, model: nn.Module, *, layers: Sequence[str] | None = None, l2: float = 0.0, damping: float = 0.0,
        solver: str = "cg", tol: float = 1e-5, steps: int = 500, depth: int = 2000, scale: float | None = None,
        batch: int = 64, repeats: int = 1, generator: torch.Generator | None = None,
    ):
        if solver not in ("exact", "cg", "lissa"):
            raise ValueError(f"solver must be 'exact', 'cg' or 'lissa', not {solver!r}")
        self.model, self.layers, self.l2, self.damping, self.solver = model, layers, l2, damping, solver
        self.tol, self.steps, self.depth, self.scale = tol, steps, depth, scale
        self.batch, self.repeats, self.generator = batch, repeats, generator

    def fit(self, x: Tensor, y: Tensor) -> Influence:
        """Take the training images x (n, C, H, W) and labels y (n,)."""
        check_images(x)
        with borrowed(self.model, x):
            check_labels(y, x, check_model(self.model, x))
            return self._on(_risk(self.model, self.layers, x, y), x)

    def _on(self, risk: _Network, x: Tensor) -> Influence:
        self._risk, self.x, self.y = risk, x, risk.y
        self._factor = self._cholesky() if self.solver == "exact" else None
        return self

    def score(self, x: Tensor, y: Tensor, *, trace: Trace | None = None) -> Tensor:
        """−I/n (T, n): by how much the loss of each of T test images would rise if training point i were removed."""
        v = self.gradients(x, y)
        with borrowed(self.model, self.x):
            return self._risk.products(self.solve(v, trace=trace)) / self._risk.n

    def self_influence(self) -> Tensor:
        """−I(z_i, z_i)/n (n,): how much a point's own loss would rise without it; large where a label looks wrong.

        Cost: n solves in chunks; with "exact" that is two triangular solves, with the others n times a solve.
        """
        out = []
        with borrowed(self.model, self.x):
            for inputs, y in self._risk.parts():
                g = self._risk.gradients(inputs, y)
                out.append((g * self.solve(g)).sum(1) / self._risk.n)
        return torch.cat(out)

    def perturbation(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
        """−1/n · ∇_δ ∇ℓ_testᵀ H⁻¹ ∇ℓ(z_i + δ) at δ = 0, for training images `index` (all by default): (m, C, H, W).

        ⟨that, δ⟩ is the predicted change of the summed test loss when image i becomes x_i + δ. Cost: a solve, then a
        forward and two backward passes of the m images.
        """
        h = self.solve(self.gradients(x, y).sum(0, keepdim=True))[0]
        index = torch.arange(self._risk.n, device=self.x.device) if index is None else index
        xs, ys, out = self.x[index], self.y[index], []
        with borrowed(self.model, self.x):
            for rows in chunks(xs):
                z = laid_out(xs[rows]).detach().requires_grad_()
                theta = self._risk.theta.detach().requires_grad_()
                loss = F.cross_entropy(self._risk.logits(theta, self._risk.inputs(z)), ys[rows], reduction="sum")
                (g,) = torch.autograd.grad(loss, theta, create_graph=True)
                out.append(torch.autograd.grad(-(g @ h) / self._risk.n, z)[0])
        return torch.cat(out).contiguous()

    def solve(self, v: Tensor, *, trace: Trace | None = None) -> Tensor:
        """H⁻¹ v for vectors v (T, P) by the chosen solver; `trace.values` (steps, T) holds ‖h‖ after each step."""
        if self._factor is not None:
            return torch.cholesky_solve(v.T, self._factor).T
        with borrowed(self.model, self.x):
            h = self._conjugate_gradients(v, trace) if self.solver == "cg" else self._lissa(v, trace)
        if trace is not None:
            trace.close()
        return h

    def hessian_product(self, v: Tensor) -> Tensor:
        """H v for vectors v (T, P), by chunks. Cost: about four forward passes, and two for each vector more."""
        total = sum(self._risk.hessian_products(inputs, y, v) for inputs, y in self._risk.parts())
        return total / self._risk.n + (self.l2 + self.damping) * v

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """∇ℓ of each image (T, P), for the parameters in question. Cost: a forward and a backward pass."""
        check_images(x)
        check_labels(y, x, self._risk.classes)
        with borrowed(self.model, x):
            parts = [(self._risk.inputs(laid_out(x[rows])), y[rows]) for rows in chunks(x)]
            return torch.cat([self._risk.gradients(inputs, labels) for inputs, labels in parts])

    def _cholesky(self) -> Tensor:
        size = self._risk.theta.numel()
        if size > LARGEST_HESSIAN:
            raise ValueError(f"the Hessian of {size} parameters is too large to form: use solver='cg', or fewer layers")
        H: Any = sum(self._risk.hessian(inputs, y) for inputs, y in self._risk.parts()) / self._risk.n
        H.diagonal().add_(self.l2 + self.damping)
        factor, failed = torch.linalg.cholesky_ex(H)
        if failed:
            low = float(torch.linalg.eigvalsh(H)[0]) - self.damping
            raise ValueError(f"the Hessian is not positive definite, its smallest eigenvalue is {low:.2g}: "
                             f"train on to a minimum, or use damping above {max(-low, 1e-6):.2g}")
        return factor

    def _conjugate_gradients(self, v: Tensor, trace: Trace | None) -> Tensor:
        h, r, p = torch.zeros_like(v), v, v
        rr = r.square().sum(1)
        goal = self.tol**2 * rr
        for _ in range(self.steps):
            todo = rr > goal
            if not bool(todo.any()):
                return h
            Hp = self.hessian_product(p)
            curvature = (p * Hp).sum(1)
            if bool((curvature[todo] <= 0).any()):
                low = float((curvature / p.square().sum(1))[todo].min())
                raise ValueError(f"the Hessian has a direction of curvature {low:.2g}: train on to a minimum, "
                                 f"or use damping above {self.damping + max(-low, 1e-6):.2g}")
            alpha = torch.where(todo, rr / curvature.clamp_min(1e-30), 0)[:, None]
            h, r = h + alpha * p, r - alpha * Hp
            before, rr = rr, r.square().sum(1)
            p = r + torch.where(todo, rr / before.clamp_min(1e-30), 0)[:, None] * p
            if trace is not None:
                trace.add(h.norm(dim=1), h)
        if bool((rr <= goal).all()):
            return h
        raise RuntimeError(f"conjugate gradients left ‖Hh − v‖/‖v‖ at {float((rr / goal).max().sqrt()) * self.tol:.1e} "
                           f"after {self.steps} steps: use more steps, a larger damping, or tol above that")

    def _lissa(self, v: Tensor, trace: Trace | None) -> Tensor:
        source = self.generator or generator()
        scale = 2 * self._largest_eigenvalue() if self.scale is None else self.scale
        total, size = torch.zeros_like(v), v.norm(dim=1)
        for repeat in range(self.repeats):
            h = v
            for step in range(self.depth):
                rows = torch.randint(self._risk.n, (self.batch,), generator=source, device=source.device)
                inputs, y = self._risk.rows(rows.to(v.device))
                Hh = self._risk.hessian_products(inputs, y, h) / self.batch + (self.l2 + self.damping) * h
                h = v + h - Hh / scale
                norm = h.norm(dim=1)
                # A contraction adds at most ‖v‖ a step, so what has grown beyond that is diverging.
                if not bool((norm <= (step + 3) * size).all()):
                    raise ValueError(f"the LiSSA sum diverges at step {step + 1}: H has eigenvalues above scale = "
                                     f"{scale:.3g} or below zero; use a larger scale, a larger batch or more damping")
                if trace is not None and repeat == 0:
                    trace.add(norm / scale, h)
            total += h / scale
        return total / self.repeats

    def _largest_eigenvalue(self, rounds: int = 15) -> float:
        v = torch.ones_like(self._risk.theta)[None]
        for _ in range(rounds):
            v = self.hessian_product(v / v.norm())
        return float(v.norm())


def retrain(
    model: nn.Module, x: Tensor, y: Tensor, *, l2: float, layers: Sequence[str] | None = None,
    without: Sequence[int] | Tensor = (), tol: float = 1e-6, steps: int = 100,
) -> nn.Module:
    """A copy of the model whose parameters in `layers` minimise R, by truncated Newton steps from where they are.

        θ ← θ + s p,   H p ≈ −∇R by conjugate gradients, stopped at a negative curvature;   s halved until R falls

    Points in `without` are left out while the others keep their weight 1/n: this is what `Influence` predicts.
    tol: the largest entry of ∇R at the end. Cost: per step a forward and a backward pass over the images, and about
    four forward passes' time for each conjugate gradient step, of which there are few at first and many at the end.
    Raises RuntimeError when tol is not met after `steps` steps, which in float32 a tol below 1e-6 may never be.
    Source: Nocedal and Wright, Numerical optimization, 2006, algorithm 7.1.
    """
    check_images(x)
    with borrowed(model, x):
        check_labels(y, x, check_model(model, x))
        risk = _risk(model, layers, x, y)
        weight = torch.full((len(x),), 1 / len(x), dtype=x.dtype, device=x.device)
        weight[torch.as_tensor(without, dtype=torch.int64, device=x.device)] = 0
        return risk.with_parameters(_minimised(risk, weight, l2, tol, steps))


def _minimised(risk: _Network, weight: Tensor, l2: float, tol: float, steps: int) -> Tensor:
    """argmin_θ Σ_i weight_i ℓ(z_i, θ) + l2/2 ‖θ‖², from the risk's θ, which it leaves there."""
    shares = weight.split([len(labels) for _, labels in risk.parts()])

    def value_and_gradient(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        value, g = l2 / 2 * theta.detach().square().sum(), l2 * theta.detach()
        for (inputs, labels), share in zip(risk.parts(), shares, strict=True):
            loss = share @ F.cross_entropy(risk.logits(theta, inputs), labels, reduction="none")
            value, g = value + loss.detach(), g + torch.autograd.grad(loss, theta)[0]
        return value, g

    def curvature(p: Tensor) -> Tensor:
        parts = zip(risk.parts(), shares, strict=True)
        return sum(risk.hessian_products(a, labels, p[None], share)[0] for (a, labels), share in parts) + l2 * p

    value, g = value_and_gradient(risk.theta)
    for _ in range(steps):
        if float(g.abs().max()) <= tol:
            break
        p, s, done = _newton_direction(curvature, g), 1.0, False
        while not done and s > 1e-10:
            new_value, new_g = value_and_gradient(risk.theta + s * p)
            # Near the minimum R no longer resolves the descent, but its gradient does.
            done = bool(new_value <= value + 1e-4 * s * (g @ p)) or (s == 1 and bool(new_g.norm() < g.norm() / 2))
            s = s if done else s / 2
        if not done:
            break
        risk.theta, value, g = risk.theta + s * p, new_value, new_g
    if not float(g.abs().max()) <= tol:
        raise RuntimeError(f"training stopped with |∇R| = {float(g.abs().max()):.1e}, above tol = {tol:.0e}: "
                           "use more steps, a larger l2, float64, or a larger tol")
    return risk.theta


def _newton_direction(curvature: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """H p = −g by conjugate gradients, more exactly the smaller g is; p so far where the curvature turns negative."""
    p, r, d = torch.zeros_like(g), -g, -g
    rr = r @ r
    goal = float(rr) * min(0.25, float(g.norm()))
    for step in range(250):
        Hd = curvature(d)
        bend = d @ Hd
        if float(bend) <= 1e-12 * float(d @ d):
            return p if step else -g
        p, r = p + rr / bend * d, r - rr / bend * Hd
        before, rr = rr, r @ r
        if float(rr) <= goal:
            break
        d = r + rr / before * d
    return p


def training_set_attack(
    model: nn.Module, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, eps: float, count: int, l2: float,
    layers: Sequence[str] | None = None, step: float | None = None, steps: int = 20, damping: float = 0.0,
    solver: str = "exact", trace: Trace | None = None,
) -> tuple[Tensor, nn.Module]:
    """Change `count` training images by at most eps a pixel, so that the model retrained on them errs on test images.

        x'_i ← Π(x'_i + step · sign ∇_{x'_i} Σ_test ℓ(z_test, θ̂(x')))        Π: onto ‖x' − x‖∞ ≤ eps and [0, 1]

    The gradient is `Influence.perturbation`; after each step the layers are retrained on x' from the model's own
    parameters. The images are those whose first-order effect eps ‖∇‖₁ is largest; labels stay. It stops once every
    test image is misclassified. Returns the training images (n, C, H, W) and the model retrained on them.
    step is eps/4 by default; `trace.values` (steps, T) holds the test losses. Cost: a pass of all n images, then
    `steps` solves, retrainings, and forward and two backward passes of the `count` images.
    """
    check_images(x)
    if not 1 <= count <= len(x):
        raise ValueError(f"count must lie in 1 … {len(x)}, the number of training images, not {count}")
    step, x_poisoned, index = eps / 4 if step is None else step, x.clone(), None
    weight = torch.full((len(x),), 1 / len(x), dtype=x.dtype, device=x.device)
    with borrowed(model, x):
        check_labels(y, x, check_model(model, x))
        risk = _risk(model, layers, x_poisoned, y)
        for _ in range(steps):
            influence = Influence(model, layers=layers, l2=l2, damping=damping, solver=solver)._on(risk, x_poisoned)
            if index is None:
                effect = influence.perturbation(x_test, y_test).abs().flatten(1).sum(1)
                index = effect.topk(count).indices
            g = influence.perturbation(x_test, y_test, index)
            x_poisoned[index] = Linf(eps).project(x_poisoned[index] + step * g.sign(), x[index])
            risk.replace(index, x_poisoned[index])
            risk.load(_minimised(risk, weight, l2, 1e-6, 100))
            if trace is not None:
                with torch.no_grad():
                    trace.add(F.cross_entropy(risk.model(x_test), y_test, reduction="none"), x_test)
            if bool(fooled(risk.model, x_test, y_test).all()):
                break
    if trace is not None:
        trace.close()
    return x_poisoned, risk.model


def tracin(
    models: nn.Module | Sequence[nn.Module], x: Tensor, y: Tensor, x_test: Tensor | None = None,
    y_test: Tensor | None = None, *, rates: Sequence[float] | None = None, layers: Sequence[str] | None = None,
) -> Tensor:
    """TracInCP (T, n): Σ_c η_c ⟨∇ℓ(z_test, θ_c), ∇ℓ(z_i, θ_c)⟩ over checkpoints c with learning rates η_c (default 1).

    Positive: steps on z_i lowered the test loss. Without test images, the self-influence Σ_c η_c ‖∇ℓ(z_i, θ_c)‖² (n,).
    The products are taken layer by layer: for a linear layer with input a and output gradient δ, ∇ℓ = δ aᵀ and
    ⟨∇ℓ, ∇ℓ'⟩ = (a·a')(δ·δ'), so that no gradient is formed; a convolution sums its positions first. Nothing larger than
    a chunk of one layer is held. Cost: a forward and a backward pass of each image, for each checkpoint.
    Source: Pruthi et al., Estimating training data influence by tracing gradient descent, NeurIPS 2020, sections 3, 4.
    """
    models = [models] if isinstance(models, nn.Module) else list(models)
    rates = [1.0] * len(models) if rates is None else list(rates)
    if len(rates) != len(models):
        raise ValueError(f"{len(models)} checkpoints need as many rates, not {len(rates)}")
    total: Any = 0
    for model, rate in zip(models, rates, strict=True):
        check_images(x)
        with borrowed(model, x):
            classes = check_model(model, x)
            check_labels(y, x, classes)
            owners = _owners(model, layers)
            tests = None
            if x_test is not None and y_test is not None:
                check_images(x_test)
                check_labels(y_test, x_test, classes, "y_test")
                seen = [_backward(model, owners, x_test[rows], y_test[rows]) for rows in chunks(x_test)]
                tests = [[_kept(m, a, d) for m, (a, d) in zip(owners.values(), part, strict=True)] for part in seen]
            rows_of: list[Any] = []
            for rows in chunks(x):
                layer = zip(owners.values(), _backward(model, owners, x[rows], y[rows]), strict=True)
                mine = [(m, _kept(m, a, d)) for m, (a, d) in layer]
                if tests is None:
                    rows_of.append(sum(_squared(m, kept) for m, kept in mine))
                else:
                    blocks: list[Any] = [
                        sum(_inner(m, theirs, own) for theirs, (m, own) in zip(part, mine, strict=True))
                        for part in tests]
                    rows_of.append(torch.cat(blocks))
            total = total + rate * torch.cat(rows_of, -1)
    return total


# --- parameters whose risk is differentiated ------------------------------------------------------------------------


def _owners(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Any]:
    """The layers that hold the parameters in question, by name."""
    names = dict(model.named_modules())
    missing = [name for name in layers or () if name not in names or not name]
    if missing:
        raise ValueError(f"the model has no layer {missing[0]!r}; it has {', '.join(n for n in names if n)}")
    owners = {
        name: module for name, module in names.items() if next(module.parameters(recurse=False), None) is not None
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
    return owners


@contextmanager
def _watched(model: nn.Module, owners: dict[str, Any]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """The input and output of each layer at each forward pass inside."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    in_place = any(getattr(module, "inplace", False) for module in model.modules())

    def keep(name, inputs, output):
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        if in_place:
            seen[name] = (inputs[0], output)
            return output.clone()
        seen[name] = (inputs[0], output)
        return output

    hooks = [module.register_forward_hook(lambda m, inputs, output, name=name: keep(name, inputs, output))
             for name, module in owners.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _backward(model, owners, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each layer its input a and the gradient δ of every image's own loss with respect to its output."""
    with _watched(model, owners) as seen:
        loss = F.cross_entropy(model(laid_out(x)), y, reduction="sum")
        deltas = torch.autograd.grad(loss, [seen[name][1] for name in owners])
    return [(seen[name][0].detach(), delta) for name, delta in zip(owners, deltas, strict=True)]


def _gradient(module: Any, a: Tensor, delta: Tensor) -> Tensor:
    """Every image's gradient of one layer's parameters (B, p), in their order, from its input and output gradient."""
    if isinstance(module, nn.Linear):
        weight = delta[:, :, None] * a[:, None, :]
    elif isinstance(module, nn.Conv2d):
        padding: Any = module.padding
        patches = F.unfold(a, module.kernel_size, module.dilation, padding, module.stride)
        groups = module.groups
        weight = delta.reshape(len(a), groups, delta.shape[1] // groups, -1) @ patches.view(
            len(a), groups, patches.shape[1] // groups, -1).mT
    elif isinstance(module, nn.BatchNorm2d):
        weight = (delta * F.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)).sum((2, 3))
    parts = [weight.flatten(1)]
    if module.bias is not None:
        parts.append(delta.flatten(2).sum(2) if delta.dim() == 4 else delta)
    return torch.cat(parts, 1)


def _kept(module, a, delta):
    return (a, delta) if isinstance(module, nn.Linear) else _gradient(module, a, delta)


def _inner(module, kept, others) -> Any:
    """⟨∇ℓ, ∇ℓ'⟩ of one layer for all pairs (T, B)."""
    if not isinstance(module, nn.Linear):
        return kept @ others.T
    (a, d), (a_, d_) = kept, others
    return (a @ a_.T + (module.bias is not None)) * (d @ d_.T)


def _squared(module, kept) -> Any:
    if not isinstance(module, nn.Linear):
        return kept.square().sum(1)
    a, d = kept
    return (a.square().sum(1) + (module.bias is not None)) * d.square().sum(1)


class _Network:
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
        layers = zip(self.owners.values(), _backward(self.model, self.owners, x, y), strict=True)
        return torch.cat([_gradient(module, a, delta) for module, (a, delta) in layers], 1)

    def products(self, v: Tensor) -> Tensor:
        sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in self.owners.values()]
        out = []
        for x, y in self.parts():
            layers = zip(self.owners.values(), _backward(self.model, self.owners, x, y), v.split(sizes, 1), strict=True)
            out.append(sum(part @ _gradient(module, a, delta).T for module, (a, delta), part in layers))
        return torch.cat(out, 1)

    def hessian_products(self, x: Tensor, y: Tensor, v: Tensor, weight: Tensor | None = None) -> Tensor:
        theta = self.theta.detach().requires_grad_()
        losses = F.cross_entropy(self.logits(theta, x), y, reduction="none")
        loss = losses.sum() if weight is None else weight @ losses
        (g,) = torch.autograd.grad(loss, theta, create_graph=True)
        return torch.stack([torch.autograd.grad(g, theta, u, retain_graph=i < len(v) - 1)[0] for i, u in enumerate(v)])

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


class _Head(_Network):
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
        seen: dict[str, Tensor] = {}
        hook = self.layer.register_forward_pre_hook(lambda module, inputs: seen.__setitem__("a", inputs[0]))
        try:
            self.model(x)
        finally:
            hook.remove()
        a = seen["a"]
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

    def hessian_products(self, a: Tensor, y: Tensor, v: Tensor, weight: Tensor | None = None) -> Tensor:
        p = self.probabilities(a)[:, None]
        u = (a @ v.view(len(v) * self.classes, -1).T).view(len(a), len(v), -1)
        s = p * (u - (p * u).sum(2, keepdim=True))
        s = s if weight is None else weight[:, None, None] * s
        return (s.flatten(1).T @ a).view(len(v), -1)

    def hessian(self, a: Tensor, y: Tensor) -> Tensor:
        p, k, d = self.probabilities(a), self.classes, a.shape[1]
        H = a.new_zeros(k, d, k, d)
        for i in range(k):
            for j in range(i, k):
                curvature = p[:, i] * (float(i == j) - p[:, j])
                H[i, :, j] = (a * curvature[:, None]).T @ a
                H[j, :, i] = H[i, :, j]
        return H.view(k * d, k * d)


def _risk(model: nn.Module, layers: Sequence[str] | None, x: Tensor, y: Tensor) -> _Network:
    owners = _owners(model, layers)
    module = next(iter(owners.values()))
    if len(owners) == 1 and isinstance(module, nn.Linear):
        with _watched(model, owners) as seen, torch.no_grad():
            last = model(x[:1])
        ((a, output),) = seen.values()
        if a.dim() == 2 and last.shape == output.shape and torch.equal(last, output):
            return _Head(model, owners, x, y)
    return _Network(model, owners, x, y)
