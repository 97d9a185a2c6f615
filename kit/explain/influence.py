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

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Linf, Trace, borrowed, check_images, check_labels, check_model, chunks, fooled, generator, laid_out
from kit.core.passes import ordinary
from kit.core.solvers import conjugate_gradients
from kit.explain.risk import Network, backward, inner, kept_of, owners_of, risk_of, squared

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
            return self._on(risk_of(self.model, self.layers, x, y), x)

    def _on(self, risk: Network, x: Tensor) -> Influence:
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
        watch = None if trace is None else lambda h: trace.add(h.norm(dim=1), h)
        h, left, curvature = conjugate_gradients(
            self.hessian_product, v, tol=self.tol, steps=self.steps, watch=watch)
        if float(curvature.min()) <= 0:
            low = float(curvature.min())
            raise ValueError(f"the Hessian has a direction of curvature {low:.2g}: train on to a minimum, "
                             f"or use damping above {self.damping + max(-low, 1e-6):.2g}")
        if not float(left.max()) <= self.tol * (1 + 1e-6):
            raise RuntimeError(f"conjugate gradients left ‖Hh − v‖/‖v‖ at {float(left.max()):.1e} after {self.steps} "
                               "steps: use more steps, a larger damping, or tol above that")
        return h

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
    tol: the largest entry of ∇R at the end. Cost: per step a forward and a backward pass over the images, and for each
    conjugate gradient step, of which there are few at first and many at the end, two backward passes where the images
    fit into one chunk, else about four forward passes' time.
    Raises RuntimeError when tol is not met after `steps` steps, which in float32 a tol below 1e-6 may never be.
    Source: Nocedal and Wright, Numerical optimization, 2006, algorithm 7.1.
    """
    check_images(x)
    with borrowed(model, x):
        check_labels(y, x, check_model(model, x))
        risk = risk_of(model, layers, x, y)
        weight = torch.full((len(x),), 1 / len(x), dtype=x.dtype, device=x.device)
        weight[torch.as_tensor(without, dtype=torch.int64, device=x.device)] = 0
        return risk.with_parameters(_minimised(risk, weight, l2, tol, steps))


def _minimised(risk: Network, weight: Tensor, l2: float, tol: float, steps: int) -> Tensor:
    """argmin_θ Σ_i weight_i ℓ(z_i, θ) + l2/2 ‖θ‖², from the risk's θ, which it leaves there."""
    shares = weight.split([len(labels) for _, labels in risk.parts()])

    def value_and_gradient(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        value, g = l2 / 2 * theta.detach().square().sum(), l2 * theta.detach()
        for (inputs, labels), share in zip(risk.parts(), shares, strict=True):
            loss = share @ F.cross_entropy(risk.logits(theta, inputs), labels, reduction="none")
            value, g = value + loss.detach(), g + torch.autograd.grad(loss, theta)[0]
        return value, g

    def curvature() -> Callable[[Tensor], Tensor]:
        """p ↦ ∇²R p at θ. The graph of one chunk is kept from product to product; those of several are made anew."""
        if len(shares) == 1:
            ((a, labels),) = risk.parts()
            product = risk.curvature(a, labels, shares[0])
            return lambda p: product(p[None])[0] + l2 * p

        def anew(p: Tensor) -> Tensor:
            parts = zip(risk.parts(), shares, strict=True)
            return sum(risk.hessian_products(a, labels, p[None], share)[0] for (a, labels), share in parts) + l2 * p

        return anew

    value, g = value_and_gradient(risk.theta)
    for _ in range(steps):
        if float(g.abs().max()) <= tol:
            break
        p, s, done = _newton_direction(curvature(), g), 1.0, False
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
    tol = min(0.25, float(g.norm())) ** 0.5
    p, *_ = conjugate_gradients(lambda d: curvature(d[0])[None], -g[None], tol=tol, steps=250, flat=1e-12)
    return p[0] if bool(p.any()) else -g


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
        risk = risk_of(model, layers, x_poisoned, y)
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
    return sum(rate * _products(model, x, y, x_test, y_test, layers) for model, rate in zip(models, rates, strict=True))


def _products(model, x, y, x_test, y_test, layers) -> Any:
    """⟨∇ℓ(z_test), ∇ℓ(z_i)⟩ (T, n) for one checkpoint, or ‖∇ℓ(z_i)‖² (n,) without test images."""
    check_images(x)
    with borrowed(model, x):
        classes = check_model(model, x)
        check_labels(y, x, classes)
        owners = owners_of(model, layers)

        def kept(x: Tensor, y: Tensor) -> Iterator[list[Any]]:
            """For each chunk of images, what the products need of each layer."""
            for rows in chunks(x):
                seen = backward(model, owners, ordinary(x[rows]), ordinary(y[rows]))
                yield [kept_of(module, a, delta) for module, (a, delta) in zip(owners.values(), seen, strict=True)]

        if x_test is None or y_test is None:
            return torch.cat([sum(map(squared, owners.values(), own)) for own in kept(x, y)])
        check_images(x_test)
        check_labels(y_test, x_test, classes, "y_test")
        tests = list(kept(x_test, y_test))
        return torch.cat([torch.cat([sum(map(inner, owners.values(), theirs, own)) for theirs in tests])
                          for own in kept(x, y)], 1)
