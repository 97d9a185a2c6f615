"""Attacks that follow a gradient estimated along random directions. They differ in the directions and in the step.

    in a ball of radius eps      nes · spsa · zo_ngd · zo_admm               an image leaves when it reaches its goal
    nearest, by a penalty        zo_sign_sgd · zo_svrg · zo_adamm            as `zoo`, till the budget is spent

The first climb ℓ; the last three descend ZOO's ‖x' − x‖₂² + c · max(κ − lead(x'), 0), whose weight c changes as there.
Points outside the box are asked about as the box cuts them off: at its edge a slope counts by half.
Cost: one query an iteration for v itself, and one for each direction, or two where both its sides are asked about.
"""
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from kit.attacks.scores.descent import begin, penalised
from kit.attacks.scores.directions import estimate, follow
from kit.core import Goal, Live, Progress, ball, margin, per_image
from kit.core.balls import column
from kit.core.checks import check_start
from kit.core.goal import Loss
from kit.core.model import asking

TINY = 1e-7  # of ZO-AdaMM: what its v̂ begins with, in the authors' code
ENOUGH, SHRINK, LEAST_SHRINK = 0.2, 0.1, 2e-3  # of partial information: labsix's adv_thresh, delta_epsilon and its end
PLATEAU, LEAST_STEP = 5, 5e-5  # of NES: iterations without a gain after which the step is halved, and its end


def climbing(live: Live, eps: float | Tensor, q: int, loss: Loss) -> tuple[Any, Any]:
    """ℓ at points v and whose they are, and ask() at live.v, which begins as x; who reaches the goal is done."""
    live.v, live.eps = live.x, torch.zeros_like(live.x[:, 0, 0, 0]) + eps
    live.q, live.price = torch.full_like(live.rows, q), torch.full_like(live.rows, 2)

    def f(v, of):
        return live.goal[of].gain(live.answers(v.clamp(0, 1), of), loss).to(v)

    def ask():
        z = live.answers(live.v, torch.arange(len(live), device=live.v.device))
        value, reached = live.goal.gain(z, loss).to(live.v), live.goal.reached(z)
        live.best(live.v, value, reached)
        return value, reached

    return f, ask


@per_image
def nes(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", q: int = 25, h: float = 1e-3,
    step: float | Tensor = 0.01, mu: float = 0.9, max_queries: int = 10_000, top: int | None = None,
    start: Tensor | None = None, target: Tensor | None = None, loss: Loss = margin, trace: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """NES: the gradient of ℓ smoothed by a normal density of deviation h, from q pairs u and −u; steepest steps with
    momentum, m ← μ m + (1 − μ) ĝ, halved where five iterations have not raised ℓ.

    top     partial information: the model tells the probabilities of its `top` likeliest classes only. The attack
            begins at `start` (N, C, H, W), images that it labels `target`, and climbs towards the target while the
            ball around x shrinks from there to eps: as long as the target stays among the top, else v goes back and
            the ball shrinks by half as much. What is returned lies within eps, or is x.
    Cost: 2 q + 1 forward passes an iteration, `max_queries` at most.
    Raises ValueError for `top` without `target` and `start`, and for a `start` that does not show its target.
    Source: Ilyas et al., Black-box adversarial attacks with limited queries and information, ICML 2018, sections 2.2
    and 2.3, algorithm 2; constants of their code. There ℓ is the cross-entropy.
    """
    if top is None and start is not None:
        raise ValueError("start= is where partial information begins: give top=, how many classes the model tells")
    live = Live(model if top is None else Top(model, top), x, Goal(y, target), generator, trace)
    f, ask = climbing(live, eps, q, loss)
    live.m, live.step, live.radius = torch.zeros_like(x), torch.zeros_like(live.eps) + step, live.eps
    live.before, steps = torch.full_like(live.eps, -torch.inf), count(1)
    if top is not None:
        ask = _shrinking(live, top, start, norm, loss, max_queries)

    def rule(g):
        if next(steps) % PLATEAU == 0:
            slower = (live.step / 2).clamp_min(LEAST_STEP).minimum(live.step)
            live.step, live.before = torch.where(live.value > live.before, live.step, slower), live.value
        live.m = mu * live.m + (1 - mu) * g
        within = ball(norm, live.radius)
        return within.project(within.step(live.v, live.m, live.step), live.x)

    return follow(live, ask, lambda: estimate(live, f, "gaussian", q, h), rule, max_queries)


def _shrinking(live: Live, top: int, start: Tensor | None, norm: str, loss: Loss, max_queries: int) -> Any:
    """ask() of partial information: v is taken, or the last that was, and live.radius is that of the next ball."""
    if live.goal.target is None or start is None:
        raise ValueError("top= needs target=, the class to reach, and start=, images (N, C, H, W) that it labels so")
    start, each = check_start(start, live.x), torch.arange(len(live), device=live.x.device)
    done = live.goal.reached(live.answers(live.x, each))
    live.v = live.kept = start.expand_as(live.x)
    live.radius = live.held = ball(norm, 1).norm(live.v - live.x).maximum(live.eps)
    live.shrink, live.first = torch.full_like(live.eps, SHRINK), torch.ones_like(done)
    live.nearest(live.x, torch.zeros_like(live.eps), done)
    live.drop(done | (live.asked >= max_queries))

    def ask():
        z = live.answers(live.v, torch.arange(len(live), device=live.v.device))
        seen = (z.topk(min(top, z.shape[1])).indices == live.goal.target[:, None]).any(1)
        if bool((live.first & ~seen).any()):
            raise ValueError(f"start= must show its target: {int((~seen).sum())} of these {len(seen)} images do not "
                             f"have it among their top {top}")
        value = live.goal.gain(z, loss).to(live.v)
        live.value = value if "value" not in vars(live) else torch.where(seen, value, live.value)
        live.kept = torch.where(column(seen, live.v), live.v, live.kept)
        live.v, live.first = live.kept, torch.zeros_like(live.first)
        done = seen & live.goal.reached(z) & (live.radius <= live.eps)
        live.nearest(live.v, live.eps, done)
        shrunk = live.radius < live.held
        live.held = torch.where(seen, live.radius, live.held)
        live.shrink = torch.where(seen & shrunk, live.shrink.clamp_min(SHRINK), torch.where(seen, 1, 0.5) * live.shrink)
        sure = z.gather(1, live.goal.target[:, None])[:, 0].exp() >= ENOUGH
        less = torch.where(sure & (live.shrink >= LEAST_SHRINK), live.shrink, 0)
        live.radius = (live.held - less).maximum(live.eps)
        return live.value, done

    return ask


class Top(nn.Module):
    """What a service tells that shows its k likeliest classes: their log-probabilities; the others share the rest."""

    def __init__(self, model: nn.Module, k: int):
        super().__init__()
        self.model, self.k = model, k

    def on(self, indices: Tensor) -> AbstractContextManager:
        return asking(self.model, indices)

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x).log_softmax(1)
        if self.k >= z.shape[1]:
            return z
        told, at = z.topk(self.k)
        rest = (1 - told.exp().sum(1, keepdim=True)).clamp_min(torch.finfo(z.dtype).tiny) / (z.shape[1] - self.k)
        return rest.log().minimum(told[:, -1:]).expand_as(z).scatter(1, at, told)


@per_image
def spsa(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", q: int = 64, h: float = 0.01,
    lr: float = 0.01, max_queries: int = 10_000, target: Tensor | None = None, loss: Loss = margin,
    trace: Progress | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """SPSA: q pairs along directions of ± 1, and a step of Adam, projected onto the ball.

    Cost: 2 q + 1 forward passes an iteration, `max_queries` at most.
    Source: Uesato et al., Adversarial risk and the dangers of evaluating against weak attacks, ICML 2018, section 4 and
    appendix; the estimate is Spall's, 1992. They take thousands of pairs.
    """
    live = Live(model, x, Goal(y, target), generator, trace)
    f, ask = climbing(live, eps, q, loss)

    def rule(g):
        within = ball(norm, live.eps)
        return within.project(live.adam(live.v, -g, lr), live.x)

    return follow(live, ask, lambda: estimate(live, f, "signs", q, h), rule, max_queries)


@per_image
def zo_ngd(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", q: int = 30, h: float = 0.01,
    lr: float = 10.0, damping: float = 0.01, max_queries: int = 10_000, target: Tensor | None = None,
    loss: Loss = margin, trace: Progress | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """ZO-NGD: natural gradient steps, v ← P(v + lr F⁻¹ ĝ), with Fisher's matrix of the one answer at v, of rank 1 and
    damped, F = ĝ ĝᵀ + damping · 1. By Sherman and Morrison F⁻¹ ĝ = ĝ/(damping + ‖ĝ‖²): a step that changes ℓ by about
    lr · q/(d + q − 1), however steep ℓ is.

    Cost: 2 q + 1 forward passes an iteration, `max_queries` at most.
    Source: Zhao et al., Towards query-efficient black-box adversary with zeroth-order natural gradient descent, AAAI
    2020, algorithm 1. There ℓ is −log p_y, of which F is Fisher's matrix.
    """
    live = Live(model, x, Goal(y, target), generator, trace)
    f, ask = climbing(live, eps, q, loss)

    def rule(g):
        step = column(lr / (damping + g.flatten(1).square().sum(1)), g) * g
        return ball(norm, live.eps).project(live.v + step, live.x)

    return follow(live, ask, lambda: estimate(live, f, "sphere", q, h), rule, max_queries)


@per_image
def zo_admm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", q: int = 20, h: float = 0.01,
    c: float = 1.0, rho: float = 10.0, gamma: float = 1.0, alpha: float = 10.0, max_queries: int = 10_000,
    target: Tensor | None = None, loss: Loss = margin, trace: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """ZO-ADMM: min −c ℓ(x + δ) + γ‖z‖₂² with z = δ in the ball, which splits what is asked about from what is known,

        z ← P(ρ/(ρ + 2γ) (δ − s/ρ)),     δ ← (α√k δ + ρ z + s − ĝ)/(α√k + ρ),     s ← s + ρ (z − δ),

    where P projects onto ball and box, and ĝ is the estimate of ∇(−c ℓ) at δ. Only x + z is feasible: it is what is
    returned, and what is asked about for success.
    Cost: 2 q + 1 forward passes an iteration, `max_queries` at most.
    Source: Zhao et al., On the design of black-box adversarial examples by leveraging gradient-free optimization and
    operator splitting method, ICCV 2019, section 4; ρ, γ and α of their MNIST settings.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, not {alpha}")
    live = Live(model, x, Goal(y, target), generator, trace)
    f, at = climbing(live, eps, q, loss)
    live.z, live.s, steps = torch.zeros_like(x), torch.zeros_like(x), count(1)

    def ask():
        delta, live.v = live.v, live.x + live.z
        answer = at()
        live.v = delta
        return answer

    def rule(g):
        delta, inertia = live.v - live.x, alpha * next(steps) ** 0.5
        delta = (inertia * delta + rho * live.z + live.s + c * g) / (inertia + rho)
        live.s = live.s + rho * (live.z - delta)
        z = rho / (rho + 2 * gamma) * (delta - live.s / rho)
        live.z = ball(norm, live.eps).project(live.x + z, live.x) - live.x
        return live.x + delta

    return follow(live, ask, lambda: estimate(live, f, "sphere", q, h), rule, max_queries)


def nearing(live: Live, q: int, c: float, box: str, kappa: float, switch: int, max_queries: int) -> tuple[Any, Any]:
    """The objective and ask() of ZOO, where v (n, d) is a change of every pixel."""
    begin(live, torch.zeros_like(live.x.flatten(1)), c, box, max_queries)
    live.q, live.price, shape = torch.full_like(live.rows, q), torch.ones_like(live.rows), live.x.shape[1:]
    return penalised(live, lambda v: v.view(-1, *shape), box, kappa, switch)


@per_image
def zo_sign_sgd(
    model: nn.Module, x: Tensor, y: Tensor, *, q: int = 10, h: float = 1e-3, lr: float = 0.01, c: float = 1.0,
    switch: int = 100, kappa: float = 0.0, box: str = "tanh", max_queries: int = 10_000, target: Tensor | None = None,
    trace: Progress | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """ZO-signSGD: v ← v − lr/√t sign ĝ, t the step since c was changed.

    Cost: q + 1 forward passes an iteration, `max_queries` at most.
    Source: Liu et al., signSGD via zeroth-order oracle, ICLR 2019, algorithm 1.
    """
    live = Live(model, x, Goal(y, target), generator, trace)
    (f, ask), steps = nearing(live, q, c, box, kappa, switch, max_queries), count()

    def rule(g):
        return live.v - lr / (1 + next(steps) % switch) ** 0.5 * g.sign()

    return follow(live, ask, lambda: estimate(live, f, "sphere", q, h, live.value), rule, max_queries)


@per_image
def zo_adamm(
    model: nn.Module, x: Tensor, y: Tensor, *, q: int = 10, h: float = 1e-3, lr: float = 0.03,
    betas: tuple[float, float] = (0.9, 0.3), c: float = 1.0, switch: int = 100, kappa: float = 0.0, box: str = "clip",
    max_queries: int = 10_000, target: Tensor | None = None, trace: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """ZO-AdaMM, or AMSGrad on answers: a second moment û that never falls, and a projection in its metric,

        m ← β₁ m + (1 − β₁) ĝ,     u ← β₂ u + (1 − β₂) ĝ²,     û ← max(û, u),     v ← P(v − lr/√t m/√û).

    On the box the projection in the metric √û is the ordinary one: each pixel is cut off. t counts as in `zo_sign_sgd`.
    Cost: q + 1 forward passes an iteration, `max_queries` at most.
    Source: Chen et al., ZO-AdaMM, NeurIPS 2019, algorithm 1.
    """
    if not (isinstance(betas, Sequence) and len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise ValueError(f"betas must be two numbers, each at least 0 and less than 1, not {betas!r}")
    live = Live(model, x, Goal(y, target), generator, trace)
    (f, ask), steps = nearing(live, q, c, box, kappa, switch, max_queries), count()

    def rule(g):
        t = next(steps) % switch
        if t == 0:
            live.most = torch.full_like(g, TINY)
        live.m, live.u = betas[0] * live.m + (1 - betas[0]) * g, betas[1] * live.u + (1 - betas[1]) * g * g
        live.most = torch.maximum(live.most, live.u)
        v = live.v - lr / (1 + t) ** 0.5 * live.m / live.most.sqrt()
        return v if box == "tanh" else torch.minimum(torch.maximum(v, -live.w.flatten(1)), 1 - live.w.flatten(1))

    return follow(live, ask, lambda: estimate(live, f, "sphere", q, h, live.value), rule, max_queries)


@per_image
def zo_svrg(
    model: nn.Module, x: Tensor, y: Tensor, *, q: int = 10, many: int = 100, inner: int = 10, h: float = 1e-3,
    lr: float = 0.01, c: float = 1.0, switch: int = 100, kappa: float = 0.0, box: str = "tanh",
    max_queries: int = 10_000, target: Tensor | None = None, trace: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """ZO-SVRG: a good estimate ĝ₀ at v₀, from `many` directions, and `inner` steps v ← v − lr (ĝ(v) − ĝ(v₀) + ĝ₀). The
    difference has q directions, the same in both: it is 0 at v₀, and small near it, however rough ĝ is.

    The paper's sum, and its batches, are over images that share one change; here each image has its own, and the
    sum is over directions. ĝ(v) − ĝ(v₀) is the estimate of the gradient of f(v) − f(v + v₀ − v): 2 queries a direction.
    Where c changes, and f with it, v₀ and ĝ₀ are taken anew.
    Cost: many + 1 forward passes, then `inner` − 1 times 2 q + 1, and so on; `max_queries` at most.
    Source: Liu et al., Zeroth-order stochastic variance reduction for nonconvex optimization, NeurIPS 2018,
    algorithm 2, ZO-SVRG-Ave.
    """
    live = Live(model, x, Goal(y, target), generator, trace)
    (f, at), steps = nearing(live, q, c, box, kappa, switch, max_queries), count()
    full = False

    def ask():
        nonlocal full
        full = next(steps) % switch % inner == 0
        live.q, live.price = (torch.full_like(live.q, n) for n in ((many, 1) if full else (q, 2)))
        return at()

    def changed(v, of):
        return f(v, of) - f(v + (live.v0 - live.v)[of], of)

    def gradient():
        if full:
            live.v0, live.value0, live.g0 = live.v, live.value, estimate(live, f, "sphere", many, h, live.value)
            return live.g0
        return live.g0 + estimate(live, changed, "sphere", q, h, live.value - live.value0)

    return follow(live, ask, gradient, lambda g: live.v - lr * g, max_queries)
