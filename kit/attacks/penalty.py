"""Minimal attacks by a penalty: Carlini and Wagner's three, and the elastic net.

    x' = argmin size(x' − x) + c · max(κ − lead(x'), 0),     lead = max_{j≠y} z_j − z_y,  or  z_t − max_{j≠t} z_j

The hinge stands in for the constraint of `kit.attacks.minimal`, whose arguments these attacks share. The weight c
decides: too small a c leaves the image where it is, too large a one drives it farther than it must go.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.minimal import _adversarial, _lead
from kit.core import L1, Linf, adam, asking, laid_out, per_image, take
from kit.core.loop import Memory


class _Nearest:
    """Per image, the nearest adversarial image seen so far, and its distance."""

    def __init__(self, x: Tensor):
        self.x_adv, self.distance = x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf)

    def see(self, rows: Tensor, x_adv: Tensor, size: Tensor, hit: Tensor) -> None:
        nearer = (hit & (size < self.distance[rows])).nonzero()[:, 0]
        if len(nearer):
            self.x_adv[rows[nearer]] = x_adv[nearer].detach()
            self.distance[rows[nearer]] = size[nearer].detach()


def _search_c(attempt: Callable[[Tensor], Tensor], c: Tensor, rounds: int) -> None:
    """Find, image by image, the smallest weight c at which attempt(c) -> (N,) bool succeeds: ×10 until it does, then
    halve the interval."""
    low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
    for _ in range(rounds):
        hit = attempt(c)
        low, high = torch.where(hit, low, c), torch.where(hit, c, high)
        c = torch.where(high.isinf(), 10 * c, (low + high) / 2)


EDGE = 0.1
STRETCH = 0.5 / (1 - 2 * EDGE)
INSIDE = (1 - 2 * EDGE) * (1 - 1e-6)  # by rounding's width inside the box
REACH = torch.tensor(INSIDE, dtype=torch.float64).atanh().item()


def _to_w(x: Tensor) -> Tensor:
    return ((2 * x - 1) * INSIDE).atanh()


def _to_x(w: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's change of variables x = ½ + ½ tanh w, stretched by 1/(1 − 2 EDGE), for |w| ≤ REACH, and ∂x/∂w.

    Unstretched it reaches 0 and 1 only at infinity, and a pixel that starts there never moves.
    """
    t = w.tanh()
    return (0.5 + STRETCH * t).clamp_(0, 1), STRETCH * (1 - t * t)


def _hinge(model, x_adv, y, target, kappa, c, rows) -> tuple[Tensor, Tensor, Tensor]:
    """c · max(κ − lead, 0) at x', its gradient, and whether x' is adversarial. Cost: a forward and a backward pass."""
    v = laid_out(x_adv).detach().requires_grad_()
    with asking(model, rows):
        z = model(v)
    hinge = c * (kappa - _lead(z, y, target)).clamp_min(0)
    g = torch.autograd.grad(hinge.sum(), v)[0]
    return hinge.detach(), g, _adversarial(z.detach(), y, target, kappa)


def _squared(delta: Tensor) -> Tensor:
    return delta.square().flatten(1).sum(1)


@per_image
def cw(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str = "l2", kappa: float = 0.0, c: float | None = None,
    rounds: int = 9, steps: int = 1000, lr: float | None = None, target: Tensor | None = None,
) -> Tensor:
    """Carlini and Wagner's attacks. In l2, Adam on w, with x' = ½ + ½ tanh w, minimises

        ‖x' − x‖₂² + c · max(κ − lead, 0),     lead = max_{j≠y} z_j − z_y,  or  z_t − max_{j≠t} z_j.

    l2    c is searched for, image by image, in `rounds` descents of at most `steps` steps each.
    linf  the first term is Σ_i max(|x'_i − x_i| − τ, 0): τ falls to 0.9 ‖x' − x‖_∞ whenever an adversarial image
          keeps it (to 5 %), and c is doubled, at most `rounds` times, when none does. lr is at most τ/10 here, which
          theirs is not: pixels that oscillate by more than the 5 % never come to rest at a small τ.
    l0    pixels: the l2 descent is repeated from its last solution while those that contribute least to the lead,
          Σ_channels ∂lead/∂x'_i (x'_i − x_i), are frozen, half of them first and a single one at last.

    A tenth of the steps that has not lowered an image's loss halves its lr (l2, linf), and the fourth such ends its
    descent, as does a solution (linf, l0). The nearest adversarial image met on the way is returned.
    Default c: 0.001, 0.1, 10⁴; lr: 0.01, 0.005, 0.1.
    Cost: at most rounds · steps forward and backward passes in l2. Source: Carlini and Wagner, Towards evaluating the
    robustness of neural networks, S&P 2017, sections V and VI; rounds, steps and lr (l2, linf) as in their code.
    """
    attacks: dict[str, tuple] = {"l2": (_cw_l2, 1e-3, 0.01), "linf": (_cw_linf, 0.1, 0.005), "l0": (_cw_l0, 1e4, 0.1)}
    if norm not in attacks:
        raise ValueError(f"the Carlini–Wagner norm must be 'l2', 'linf' or 'l0', not {norm!r}")
    attack, usual_c, usual_lr = attacks[norm]
    nearest = _Nearest(x)
    weight = torch.full_like(nearest.distance, usual_c if c is None else c)
    attack(model, x, y, target, kappa, weight, rounds, steps, usual_lr if lr is None else lr, nearest)
    return nearest.x_adv


def _cw_l2(model, x, y, target, kappa, c, rounds, steps, lr, nearest) -> None:
    def attempt(c: Tensor) -> Tensor:
        memory: Memory = {}
        lately, before = torch.zeros_like(y, dtype=torch.bool), torch.full_like(c, torch.inf)
        rate = torch.full_like(c, lr)
        rows, w, x_, y_, target_ = torch.arange(len(x), device=x.device), _to_w(x), x, y, target
        for k in range(steps):
            x_adv, slope = _to_x(w)
            hinge, g, hit = _hinge(model, x_adv, y_, target_, kappa, c, rows)
            delta = x_adv - x_
            size = _squared(delta)
            nearest.see(rows, x_adv, size, hit)
            lately[rows] |= hit
            w = adam(rate)(w, -(g + 2 * delta) * slope, memory).clamp_(-REACH, REACH)
            if k % max(steps // 10, 1) == 0:
                loss = size + hinge
                rate = torch.where(loss < 0.9999 * before, rate, rate / 2)
                stays, before = rate > lr / 16, loss
                rows, w, before, rate, c, x_, y_, target_ = take(stays, rows, w, before, rate, c, x_, y_, target_)
                memory = _of(stays, memory)
                lately[rows] = False
                if not len(rows):
                    break
        return lately  # what Adam's first, long steps run across says nothing about c

    _search_c(attempt, c, rounds)


def _of(keep: Tensor, memory: Memory) -> Memory:
    """What a rule remembers of the images that stay."""
    return dict(zip(memory, take(keep, *memory.values()), strict=True))


def _cw_linf(model, x, y, target, kappa, c, rounds, steps, lr, nearest) -> None:
    solution, tau, largest_c = _to_w(x), torch.ones_like(c), c * 2**rounds
    open_ = torch.arange(len(x), device=x.device)
    while len(open_):
        rows, (w, x_, y_, target_, c_, tau_) = open_, take(open_, solution, x, y, target, c, tau)
        memory: Memory = {}
        full = (0.1 * tau_).clamp_max(lr)
        before, rate = torch.full_like(c_, torch.inf), full
        solved = torch.zeros_like(y, dtype=torch.bool)
        for k in range(steps):
            x_adv, slope = _to_x(w)
            hinge, g, hit = _hinge(model, x_adv, y_, target_, kappa, c_, rows)
            delta = x_adv - x_
            size, excess = Linf.norm(delta), (delta.abs() - tau_.view(-1, 1, 1, 1)).clamp_min(0)
            nearest.see(rows, x_adv, size, hit)
            done = hit & (size <= 1.05 * tau_)
            solution[rows[done]], solved[rows[done]] = w[done], True
            tau[rows[done]] = 0.9 * torch.minimum(size, tau_)[done]
            w = adam(rate)(w, -(g + delta.sign() * (excess > 0)) * slope, memory).clamp_(-REACH, REACH)
            stays = ~done
            if k % max(steps // 10, 1) == 0:
                loss = excess.flatten(1).sum(1) + hinge
                rate = torch.where(loss < 0.9999 * before, rate, rate / 2)
                before, stays = loss, stays & (rate > full / 16)
            if not bool(stays.all()):
                rows, w, before, rate, full, x_, y_, target_, c_, tau_ = take(
                    stays, rows, w, before, rate, full, x_, y_, target_, c_, tau_)
                memory = _of(stays, memory)
            if not len(rows):
                break
        never = nearest.distance[rows].isinf()
        solution[rows[never]] = w[never]  # on the way still: go on from here
        c[~solved] *= 2
        open_ = open_[c[open_] <= largest_c[open_]]


def _cw_l0(model, x, y, target, kappa, c, rounds, steps, lr, nearest) -> None:
    solution, n = _to_w(x), len(x)
    open_ = torch.arange(n, device=x.device)
    free = torch.ones_like(x[:, :1], dtype=torch.bool)  # the pixels that may change in this descent,
    good, worth = free.clone(), torch.zeros_like(x[:, :1])  # those that sufficed in the last one, and each one's worth
    group = torch.full_like(y, free[0].numel())
    while len(open_):
        rows, (w, x_, y_, target_, c_, free_) = open_, take(open_, solution, x, y, target, c, free)
        memory: Memory = {}
        solved = torch.zeros_like(y, dtype=torch.bool)
        for _ in range(steps):
            x_adv, slope = _to_x(w)
            x_adv = torch.where(free_, x_adv, x_)
            _, g, hit = _hinge(model, x_adv, y_, target_, kappa, c_, rows)
            g = (g + 2 * (x_adv - x_)) * slope * free_
            if bool(hit.any()):
                at, x_at, y_at, target_at, x_adv = take(hit, rows, x_, y_, target_, x_adv)
                delta = x_adv - x_at
                nearest.see(at, x_adv, (delta != 0).any(1).flatten(1).sum(1).to(x.dtype), torch.ones_like(hit[hit]))
                solution[at], solved[at] = w[hit], True
                v = laid_out(x_adv).requires_grad_()
                with asking(model, at):
                    rise = torch.autograd.grad(_lead(model(v), y_at, target_at).sum(), v)[0]
                good[at], worth[at] = (delta != 0).any(1, keepdim=True), (rise * delta).sum(1, keepdim=True)
            w = adam(lr)(w, -g, memory).clamp_(-REACH, REACH)
            rows, w, x_, y_, target_, c_, free_ = take(~hit, rows, w, x_, y_, target_, c_, free_)
            memory = _of(~hit, memory)
            if not len(rows):
                break
        size = good.flatten(1).sum(1)
        group = torch.where(solved, torch.minimum(group, size), group) // 2
        group = torch.where(solved, torch.where(size > 1, group.clamp_min(1), 0), group)
        order = torch.where(good, worth, torch.inf).flatten(1).argsort(1).argsort(1)  # the place of each pixel's worth
        free = good & (order >= group[:, None]).view_as(good)
        open_ = open_[(group[open_] > 0) & nearest.distance[open_].isfinite()]


@per_image
def ead(
    model: nn.Module, x: Tensor, y: Tensor, *, beta: float = 0.1, kappa: float = 0.0, c: float = 1e-3,
    rounds: int = 9, steps: int = 1000, lr: float = 0.01, decision: str = "elastic", target: Tensor | None = None,
) -> Tensor:
    """Elastic-net attack: the objective of `cw` in l2 with an l1 term, minimised by shrinkage and thresholding (FISTA):

        c · max(κ − lead, 0) + ‖x' − x‖₂² + β ‖x' − x‖₁
        x'_{k+1} = S(u_k − α_k ∇[c · max(κ − lead, 0) + ‖u − x‖₂²](u_k)),     α_k = lr √(1 − k/steps),
        u_{k+1} = x'_{k+1} + k/(k+3) (x'_{k+1} − x'_k).

    S takes α_k β off every |u_i − x_i|, returns x_i where that leaves nothing, and cuts to [0, 1]. (The paper's takes β
    off, which weighs the l1 term with β/α_k: its β = 0.001 is about 0.1 here.) Among the adversarial images met, the
    nearest is returned: by `decision` in "elastic" (‖·‖₂² + β ‖·‖₁) or in "l1". c is searched for as in `cw`.
    Cost: rounds · steps times two forward and one backward pass at most. Source: Chen et al., EAD: elastic-net attacks
    to deep neural networks via adversarial examples, AAAI 2018, section 4; the other constants as in their code.
    """
    if decision not in ("elastic", "l1"):
        raise ValueError(f"decision must be 'elastic' or 'l1', not {decision!r}")
    nearest = _Nearest(x)

    def attempt(c: Tensor) -> Tensor:
        ever, before = torch.zeros_like(y, dtype=torch.bool), torch.full_like(c, torch.inf)
        rows, u, x_adv, x_, y_, target_ = torch.arange(len(x), device=x.device), x, x, x, y, target
        for k in range(steps):
            hinge, g, _ = _hinge(model, u, y_, target_, kappa, c, rows)
            delta, alpha = u - x_, lr * (1 - k / steps) ** 0.5
            loss = hinge + _squared(delta)
            last, x_adv = x_adv, (x_ + F.softshrink(delta - alpha * (g + 2 * delta), alpha * beta)).clamp_(0, 1)
            u = x_adv + k / (k + 3) * (x_adv - last)
            with torch.no_grad(), asking(model, rows):
                hit = _adversarial(model(laid_out(x_adv)), y_, target_, kappa)
            l1 = L1.norm(x_adv - x_)
            nearest.see(rows, x_adv, l1 if decision == "l1" else _squared(x_adv - x_) + beta * l1, hit)
            ever[rows] |= hit
            if k % max(steps // 10, 1) == 0:
                falls = loss < 0.9999 * before
                rows, u, x_adv, before, c, x_, y_, target_ = take(falls, rows, u, x_adv, loss, c, x_, y_, target_)
                if not len(rows):
                    break
        return ever

    _search_c(attempt, torch.full_like(nearest.distance, c), rounds)
    return nearest.x_adv
