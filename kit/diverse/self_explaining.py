"""Networks that explain themselves: an answer that is a sum of concepts, each with the weight that it is given.

    f_c(x) = Σ_i θ_ci(x) h_i(x)        h: what is there (concepts)        θ: how much it counts for class c (relevances)

Any function can be written so: h may be 1 and θ the logit. What makes θ an explanation is that it acts as the weights
of a linear model do, near x: if the concepts change, the logit changes by θ per unit. By the product rule

    ∇_x f_c = Σ_i θ_ci ∇_x h_i + Σ_i h_i ∇_x θ_ci ,

and the robustness loss is the size of the second part. It is trained away at a price, λ:

    E[ cross-entropy + λ ‖∇_x f − θᵀ J_h‖ + ρ (mean over values of (dec(h) − x)²) + ξ ‖h‖₁ ]

Where this differs from the authors' public code (dmelis/SENN), and why:

    the logits        θ belongs to the logits, and so does f here. There ∇f is taken of log_softmax, whose gradient is
                      that of the logit less the mean over classes, weighted by their probabilities: a linear model with
                      constant θ is penalised by its own mean weight. `of="log-probabilities"` computes that
    image by image    the norm and ‖h‖₁ are taken for each image, then averaged. There both run over the whole batch at
                      once, so that λ and ξ mean another thing for another batch size
    every class       the norm runs over the (K, C, H, W) values of all classes, as in the paper

Source: Alvarez-Melis & Jaakkola, Towards robust interpretability with self-explaining neural networks, NeurIPS 2018.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import (
    Draws,
    Linf,
    accuracy,
    alike,
    borrowed,
    check_images,
    chunk_size,
    chunks,
    laid_out,
    leaf,
    logits,
    margin,
    optimise,
    per_image,
    steepest,
)
from kit.explain.metrics import squares
from kit.models.training import Recipe, fit

KINDS = ("logits", "log-probabilities")


# --- the loss -------------------------------------------------------------------------------------------------------


def left_over(model: Any, x: Tensor, of: str = "logits") -> Tensor:
    """∇_x f_c − Σ_i θ_ci ∇_x h_i for every class, (N, K, C, H, W), with its graph to the weights of θ and of h.

    For the logits it is Σ_i h_i ∇_x θ_ci, by the product rule, and is computed so. For log-probabilities
    Σ_j p_j ∇_x f_j is taken off. Raises ValueError for another kind. Cost: a forward pass, K backward passes of θ at
    once (one more for log-probabilities).
    """
    if of not in KINDS:
        raise ValueError(f"of must be {' or '.join(map(repr, KINDS))}, not {of!r}")
    v = leaf(x)
    theta, h = model.theta(v), model.concepts(v)
    each = torch.eye(theta.shape[1]).to(x)[:, None, :, None] * h[:, None]
    slope = partial(torch.autograd.grad, inputs=v, create_graph=True)
    rest = x.new_zeros(len(each), *x.shape)
    if theta.requires_grad:  # else it is constant
        rest, = slope(theta, grad_outputs=each, is_grads_batched=True)
    if of == "log-probabilities":
        z = torch.einsum("nck,nk->nc", theta, h)
        rest = rest - slope(z, grad_outputs=z.softmax(1))[0]
    return rest.transpose(0, 1)


@per_image
def robustness(model: nn.Module, x: Tensor, *, of: str = "logits") -> Tensor:
    """‖∇_x f − θᵀ J_h‖₂ over all classes and values of an image, (N,): 0 where θ acts as the weights of a linear model.

    Arguments, cost and what raises as for `left_over`. Source: equation 7 of the paper.
    """
    return left_over(model, x, of).detach().flatten(1).norm(dim=1)


def self_explaining_training(
    r: Recipe, x: Tensor, y: Tensor, *, lam: float = 1e-2, rho: float = 1.0, xi: float = 1e-3, of: str = "logits",
    half: bool = False, **how: Any,
) -> nn.Module:
    """min E[cross-entropy + λ ‖∇f − θᵀJ_h‖ + ρ mean (dec(h) − x)² + ξ ‖h‖₁], each term image by image.

    `half`: stored in half precision. Raises ValueError for a weight below 0. Cost of a step, beside a usual one: K
    backward passes of θ that are differentiated again; none of them where λ = 0.
    """
    for name, weight in (("lam", lam), ("rho", rho), ("xi", xi)):
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"{name}={weight}: a weight is 0 or more")

    def loss(model: Any, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        h = model.concepts(xb)
        value = F.cross_entropy(torch.einsum("nck,nk->nc", model.theta(xb), h), yb)
        value = value + rho * F.mse_loss(model.decode(h), xb) + xi * h.abs().sum(1).mean()
        return value + lam * left_over(model, xb, of).flatten(1).norm(dim=1).mean() if lam else value

    return fit(r, x, y, loss=loss, **how)


def self_explaining_figures(r: Recipe | None, network: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: accuracy, the mean robustness loss, and the mean squared error of the images drawn from h."""
    with torch.no_grad():
        error = torch.cat([(network.decode(network.concepts(x[rows])) - x[rows]).square().mean((1, 2, 3))
                           for rows in chunks(x)])
    return {"accuracy": accuracy(network, x, y), "robustness": float(robustness(network, x).mean()),
            "mse": float(error.mean())}


# --- explanations ---------------------------------------------------------------------------------------------------


@per_image
def relevances(model: Any, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
    """θ_c(x), (N, k), of class c = target, or of the answer: the weights that the network says it has used.

    Cost: two forward passes, one where a target is given.
    """
    return _of_class(model, x, target, create_graph)[0]


@per_image
def contributions(model: Any, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
    """θ_ci(x) h_i(x), (N, k), of class c = target, or of the answer: their sum is its logit. Cost as `relevances`."""
    theta, h = _of_class(model, x, target, create_graph)
    return theta * h


def _of_class(model: Any, x: Tensor, target: Tensor | None, create_graph: bool) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(create_graph):
        target = model(x).argmax(1) if target is None else target
        return model.theta(x)[torch.arange(len(x), device=x.device), target], model.concepts(x)


# --- what they are worth --------------------------------------------------------------------------------------------

Explain = Callable[..., Tensor]


def local_lipschitz(
    explain: Explain, model: nn.Module, x: Tensor, target: Tensor | None = None, *, eps: float = 0.1, samples: int = 8,
    steps: int = 20, by: Callable[[Tensor], Tensor] | None = None, relative: bool = True, generator: Any = None,
) -> Tensor:
    """max over ‖x' − x‖∞ ≤ eps, x' in [0, 1], of ‖E(x') − E(x)‖₂ / ‖x' − x‖₂, over ‖E(x)‖₂ where `relative`: (N,).

    The largest of `samples` random points, climbed from by `steps` steps of the gradient's sign: a lower bound, as good
    as the search. An explainer without gradients (LIME) takes steps=0; compare explanations by one search only. The
    class stays that of x. `explain` is any function (model, x, target, create_graph=…) -> (N, …), which gives the same
    for the same image.

    It warns (MisleadingModel) where an explanation does not move at all, as a constant one.

    by    measures the change of the input otherwise: `model.concepts` for ‖ΔE‖/‖Δh‖, the paper's definition

    Raises ValueError for an eps outside (0, 1], and for no samples. Cost: samples + steps + 2 explanations, and as many
    backward passes through an explanation as steps.
    Source: section 3.2 of the paper, and 5.2, where the search is Bayesian, with few calls.
    """
    check_images(x)
    if not 0 < eps <= 1 or samples < 1 or steps < 0:
        raise ValueError(f"eps must be in (0, 1], samples 1 or more, steps 0 or more: not {eps}, {samples}, {steps}")
    by = by or (lambda v: v)
    within, draws = Linf(eps), Draws(len(x), generator)
    target = logits(model, x).argmax(1) if target is None else target
    with torch.no_grad():
        here, place = explain(model, x, target), by(x)
    scale = here.flatten(1).norm(dim=1).clamp_min(1e-30) if relative else 1.0

    def ratio(v: Tensor, k: int = 0) -> Tensor:
        wanted = {"create_graph": True} if v.requires_grad else {}
        moved = (explain(model, v, target, **wanted) - here).flatten(1).norm(dim=1)
        return moved / (by(v) - place).flatten(1).norm(dim=1).clamp_min(1e-12) / scale

    best_v, best = x, torch.zeros_like(x[:, 0, 0, 0])
    for _ in range(samples):
        v = within.random(x, draws)
        with torch.no_grad():
            found = ratio(v)
        wins = found > best
        best_v, best = torch.where(wins[:, None, None, None], v, best_v), torch.where(wins, found, best)
    if not steps:
        return best
    with borrowed(model, x):
        best_v = optimise(ratio, best_v, steps=steps, rule=steepest(within, 2 * eps / steps), keep="best",
                          project=lambda v: within.project(v, x))
        with torch.no_grad():
            return torch.maximum(best, ratio(best_v))


@per_image
def broken_promise(
    model: Any, x: Tensor, target: Tensor | None = None, *, samples: int = 64, fill: float = 0.0, generator: Any = None,
) -> Tensor:
    """E_S (β p_S − d_S)² / E_S d_S²: how far θ is from foretelling what the logit loses when a square S is filled.

        d_S = f_c(x) − f_c(x_S)            p_S = θ_c(x) · (h(x) − h(x_S))            β ≥ 0 the best scale of each image

    Returns (N,): 0 is a promise that is kept, 1 says nothing. It is `kit.explain.infidelity`, with the same
    squares of one generator, and with the promise of a linear model of concepts in the place of one of pixels.
    Cost: `samples` + 1 forward passes.
    """
    hidden = squares(samples, x.shape[2:], alike(generator)).to(x.device)
    with torch.no_grad():
        z = model(x)
        target = z.argmax(1) if target is None else target
        theta, h = _of_class(model, x, target, False)
        rows, promised, drops = torch.arange(len(x), device=x.device), [], []
        for part in hidden.split(max(1, chunk_size(x) // len(x))):
            v = laid_out(torch.where(part[None, :, None], fill, x[:, None]).flatten(0, 1))
            lost = h[:, None] - model.concepts(v).unflatten(0, (len(x), -1))
            promised.append(torch.einsum("nk,nsk->ns", theta, lost))
            drops.append((z[:, None] - model(v).unflatten(0, (len(x), -1)))[rows, :, target])
        p, d = torch.cat(promised, 1), torch.cat(drops, 1)
        both = (p * d).sum(1).clamp(min=0).square()
        return (1 - both / (p.square().sum(1) * d.square().sum(1)).clamp_min(1e-30)).clamp(min=0)  # rounding


@per_image
def pull_apart(
    model: Any, x: Tensor, y: Tensor, *, eps: float | Tensor, keep: str = "answer", lam: float = 10.0, steps: int = 40,
    step: float | Tensor | None = None, generator: Any = None,
) -> Tensor:
    """The image in ‖x' − x‖∞ ≤ eps whose answer and whose relevances part company:

        keep="answer"       max  ‖θ_y(x') − θ_y(x)‖²/‖θ_y(x)‖² − λ ‖f(x') − f(x)‖²/‖f(x)‖²
        keep="relevances"   max  max_{c≠y} f_c(x') − f_y(x') − λ ‖θ(x') − θ(x)‖²/‖θ(x)‖², of all classes

    by signed steps (0.1 eps) from a random point. Whether the other was kept is for the caller to measure on what is
    returned. Raises ValueError for another word. Cost: `steps` + 1 forward and `steps` backward passes.
    """
    if keep not in ("answer", "relevances"):
        raise ValueError(f"keep must be 'answer' or 'relevances', not {keep!r}")
    within, rows = Linf(eps), torch.arange(len(x), device=x.device)
    with torch.no_grad():
        theta, z = model.theta(x), model(x)

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).square().sum(1) / b.flatten(1).square().sum(1).clamp_min(1e-30)

    def objective(v: Tensor, k: int) -> Tensor:
        now = model.theta(v)
        answer = torch.einsum("nck,nk->nc", now, model.concepts(v))
        if keep == "answer":
            return apart(now[rows, y], theta[rows, y]) - lam * apart(answer, z)
        return margin(answer, y) - lam * apart(now, theta)

    size = 0.1 * torch.as_tensor(eps) if step is None else step
    return optimise(objective, within.random(x, generator), steps=steps, rule=steepest(within, size), keep="best",
                    project=lambda v: within.project(v, x))
