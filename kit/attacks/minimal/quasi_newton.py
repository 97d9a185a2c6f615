"""Attacks by a quasi-Newton method in a box: Szegedy's minimal attack, and feature adversaries.

Both minimise a smooth objective over pixels with bounds, for which their authors took L-BFGS-B. Here it runs on a
batch: every image has its own curvature, its own step length and its own end, and images that are done leave. A line
search does not fit the slots of `kit.core.optimise`, so that `minimise` is a loop of its own.
"""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kit.attacks.minimal.penalty import squared
from kit.core import Goal, Live, ball, cross_entropy, features, leaf, per_image
from kit.core.balls import column

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def minimise(
    f: Function, x: Tensor, low: Tensor, high: Tensor, *, steps: int = 100, pairs: int = 10, tolerance: float = 1e-6,
) -> Tensor:
    """argmin_v f(v), image by image, over low ≤ v ≤ high, from x (N, C, H, W), by projected L-BFGS.

    f(v, rows) -> values (n,) and gradients of the images `rows`. Pixels held by a bound are left out; the others follow
    d = −H ∇f, with H from the last `pairs` changes s of v and t of ∇f (Nocedal and Wright, Numerical optimization,
    algorithm 7.4), and the step along d is halved until f falls by 10⁻⁴ of what its slope promises (Armijo). An image
    is done when that promise is less than `tolerance` of f, or when no step keeps it.
    Cost: one call of f for a step, and one for each halving.
    """
    open_ = torch.arange(len(x), device=x.device)
    v = x.clone()
    value, g = f(v, open_)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(steps):
        held = ((v <= low) & (g > 0)) | ((v >= high) & (g < 0))
        slope = g.masked_fill(held, 0)
        d = _descent(slope, history).masked_fill_(held, 0)
        open_ = open_[(-_dot(slope, d) > tolerance * value.abs())[open_]]
        if not len(open_):
            break
        before_v, before_g = v.clone(), g.clone()
        todo, size = open_, torch.ones_like(value)
        for _ in range(20):
            trial = torch.clamp(v[todo] + column(size[todo], v) * d[todo], low[todo], high[todo])
            new_value, new_g = f(trial, todo)
            falls = new_value <= value[todo] + 1e-4 * _dot(g[todo], trial - v[todo])
            at = todo[falls]
            v[at], value[at], g[at] = trial[falls], new_value[falls], new_g[falls]
            todo = todo[~falls]
            size[todo] /= 2
            if not len(todo):
                break
        stuck = torch.zeros_like(value, dtype=torch.bool).index_fill_(0, todo, True)
        open_ = open_[~stuck[open_]]
        s, t = v - before_v, g - before_g
        curved = _dot(s, t)
        history = [*history[1 - pairs:], (s, t, torch.where(curved > 1e-12, 1 / curved.clamp_min(1e-12), 0))]
    return v


def _descent(g: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """−H g by the two loops of L-BFGS; a pair without positive curvature (ρ = 0) counts for nothing.

    H begins as the curvature of the last useful pair, and before there is one as a step of at most 0.1 for any pixel.
    """
    q, alphas = g.clone(), []
    scale = 0.1 / g.flatten(1).abs().amax(1).clamp_min(0.1)
    for s, t, rho in reversed(history):
        alpha = rho * _dot(s, q)
        q -= column(alpha, t) * t
        alphas.append(alpha)
    for s, t, rho in history:
        scale = torch.where(rho > 0, _dot(s, t) / _dot(t, t).clamp_min(1e-30), scale)
    q *= column(scale, q)
    for (s, t, rho), alpha in zip(history, reversed(alphas), strict=True):
        q += column(alpha - rho * _dot(t, q), s) * s
    return -q


@per_image
def lbfgs(
    model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, c: float = 1e-2, rounds: int = 10,
    steps: int = 50,
) -> Tensor:
    """Szegedy's attack: the box-constrained minimum, for the smallest weight c (searched for as in `cw`) that fools, of

        ‖x' − x‖₂² + c · ℓ(x'),     ℓ = −log p_t,  or without a target  −log(1 − p_y),     p = softmax f(x').

    (The paper divides by c, and attacks with a target only.) The nearest adversarial image met is returned.
    Cost: about rounds · steps forward and backward passes at most.
    Source: Szegedy et al., Intriguing properties of neural networks, ICLR 2014, section 4.1.
    """
    live = Live(model, x, Goal(y, target))
    for run in live.search("c", c, rounds):

        def f(v: Tensor, rows: Tensor, run: Live = run) -> tuple[Tensor, Tensor]:
            part = run.among(rows)
            v = leaf(v)
            z = part.ask(v)
            size = squared(v - part.x)
            value = size + part.c * _nats(z, part.goal)
            part.nearest(v, size, part.goal.reached(z))
            part.lead(z, v)
            return value.detach(), part.grad(value, v)

        minimise(f, x, torch.zeros_like(x), torch.ones_like(x), steps=steps)
    return live.found.x_adv


def _nats(z: Tensor, goal: Goal) -> Tensor:
    """−log p_t, or −log(1 − p_y) = logsumexp(z) − logsumexp of the other classes."""
    if goal.target is not None:
        return cross_entropy(z, goal.target)
    return z.logsumexp(1) - z.scatter(1, goal.y[:, None], -torch.inf).logsumexp(1)


@per_image
def feature_adversary(
    model: nn.Module, x: Tensor, guide: Tensor, *, layers: str | Sequence[str], eps: float | Tensor = 10 / 255,
    steps: int = 100,
) -> Tensor:
    """An image that looks like x and is represented like the guide: with φ the hidden layers of these names,

        x' = argmin ‖φ(x') − φ(guide)‖₂²   subject to   ‖x' − x‖_∞ ≤ eps   and   x' ∈ [0, 1].

    It needs no label: where φ is deep, the class follows. guide: (N, C, H, W), one for each image, or one for all.
    Cost: about `steps` forward and backward passes, and one forward pass of the guide.
    Source: Sabour et al., Adversarial manipulation of deep representations, ICLR 2016, section 2.
    """
    if guide.shape[1:] != x.shape[1:]:
        raise ValueError(f"guide must have the shape {tuple(x.shape)}, like the images, not {tuple(guide.shape)}")
    names, radius = [layers] if isinstance(layers, str) else list(layers), column(ball("linf", eps).eps, x)
    live = Live(model, x)
    with features(model, names) as hidden:
        with torch.no_grad():
            live.ask(guide.expand_as(x))
        wanted = [hidden[name].clone() for name in names]

        def f(v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            part, v = live.among(rows), leaf(v)
            part.ask(v)
            value = torch.stack([squared(hidden[name] - w[rows]) for name, w in zip(names, wanted, strict=True)]).sum(0)
            part.lately.raised(part.rows, value == 0)  # an image that is its own guide need not move
            return value.detach(), part.grad(value, v)

        return minimise(f, x, (x - radius).clamp(0, 1), (x + radius).clamp(0, 1), steps=steps)
