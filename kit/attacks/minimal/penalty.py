"""Minimal attacks by a penalty: Carlini and Wagner's three, and the elastic net.

    x' = argmin size(x' − x) + c · max(κ − lead(x'), 0),     lead = max_{j≠y} z_j − z_y,  or  z_t − max_{j≠t} z_j

The hinge stands in for the constraint of `kit.attacks.minimal`, whose arguments these attacks share. The weight c
decides: too small a c leaves the image where it is, too large a one drives it farther than it must go.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import L1, Goal, Linf, Live, differentiate, leaf, per_image
from kit.core.balls import column

EDGE = 0.1
STRETCH = 0.5 / (1 - 2 * EDGE)
INSIDE = (1 - 2 * EDGE) * (1 - 1e-6)  # by rounding's width inside the box
REACH = torch.tensor(INSIDE, dtype=torch.float64).atanh().item()


def to_w(x: Tensor) -> Tensor:
    return ((2 * x - 1) * INSIDE).atanh()


def to_x(w: Tensor) -> Tensor:
    """The paper's change of variables x = ½ + ½ tanh w, stretched by 1/(1 − 2 EDGE), for |w| ≤ REACH.

    Unstretched it reaches 0 and 1 only at infinity, and a pixel that starts there never moves.
    """
    return (0.5 + STRETCH * w.tanh()).clamp(0, 1)


def squared(delta: Tensor) -> Tensor:
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
    attacks = {"l2": (_cw_l2, 1e-3, 0.01), "linf": (_cw_linf, 0.1, 0.005), "l0": (_cw_l0, 1e4, 0.1)}
    if norm not in attacks:
        raise ValueError(f"the Carlini–Wagner norm must be 'l2', 'linf' or 'l0', not {norm!r}")
    attack, usual_c, usual_lr = attacks[norm]
    live = Live(model, x, Goal(y, target))
    with torch.no_grad():  # w's image differs from x by rounding, and x may reach the goal as it is
        live.nearest(x, torch.zeros_like(live.found.score), live.goal.reached(live.ask(x), kappa))
    attack(live, kappa, usual_c if c is None else c, rounds, steps, usual_lr if lr is None else lr)
    return live.found.x_adv


def _cw_l2(live: Live, kappa: float, c: float, rounds: int, steps: int, lr: float) -> None:
    for run in live.search("c", c, rounds):
        run.w, run.rate, run.before = to_w(run.x), torch.full_like(run.c, lr), torch.full_like(run.c, torch.inf)
        for k in range(steps):
            w = leaf(run.w)
            x_adv = to_x(w)
            z = run.ask(x_adv)
            size = squared(x_adv - run.x)
            run.nearest(x_adv, size, run.goal.reached(z, kappa))
            loss = size + run.c * (kappa - run.lead(z, x_adv)).clamp_min(0)
            run.w = run.adam(w, run.grad(loss, w), run.rate).clamp_(-REACH, REACH)
            if k % max(steps // 10, 1) == 0:  # an image whose loss has not fallen takes shorter steps, and then leaves
                run.rate = torch.where(loss < 0.9999 * run.before, run.rate, run.rate / 2)
                run.before = loss.detach()
                run.drop(run.rate <= lr / 16)
                if not len(run):
                    break


def _cw_linf(live: Live, kappa: float, c: float, rounds: int, steps: int, lr: float) -> None:
    solution, tau = to_w(live.x), torch.ones_like(live.found.score)
    weight, largest = torch.full_like(tau, c), c * 2**rounds
    while len(live):
        run = live.again(w=solution[live.rows], tau=tau[live.rows], c=weight[live.rows], before=torch.inf)
        run.full = run.rate = (0.1 * run.tau).clamp_max(lr)
        solved = torch.zeros_like(live.found.reached)
        for k in range(steps):
            w = leaf(run.w)
            x_adv = to_x(w)
            z = run.ask(x_adv)
            size, hit = Linf.norm((x_adv - run.x).detach()), run.goal.reached(z, kappa)
            run.nearest(x_adv, size, hit)
            excess = ((x_adv - run.x).abs() - column(run.tau, w)).clamp_min(0).flatten(1).sum(1)
            loss = excess + run.c * (kappa - run.lead(z, x_adv)).clamp_min(0)
            done = hit & (size <= 1.05 * run.tau)
            at = run.rows[done]
            solution[at], solved[at], tau[at] = run.w[done], True, 0.9 * torch.minimum(size, run.tau)[done]
            run.w = run.adam(w, run.grad(loss, w), run.rate).clamp_(-REACH, REACH)
            if k % max(steps // 10, 1) == 0:
                run.rate = torch.where(loss < 0.9999 * run.before, run.rate, run.rate / 2)
                run.before, done = loss.detach(), done | (run.rate <= run.full / 16)
            run.drop(done)
            if not len(run):
                break
        never = ~live.found.reached[run.rows]
        solution[run.rows[never]] = run.w[never]  # on the way still: go on from here
        weight[~solved] *= 2
        live.drop(weight[live.rows] > largest)


def _cw_l0(live: Live, kappa: float, c: float, rounds: int, steps: int, lr: float) -> None:
    x = live.x
    solution, free = to_w(x), torch.ones_like(x[:, :1], dtype=torch.bool)  # the pixels that may change in this descent,
    good, worth = free.clone(), torch.zeros_like(x[:, :1])  # those that sufficed in the last one, and each one's worth
    group = torch.full_like(live.rows, free[0].numel())
    while len(live):
        run = live.again(w=solution[live.rows], c=c, free=free[live.rows])
        solved = torch.zeros_like(live.found.reached)
        for _ in range(steps):
            w = leaf(run.w)
            x_adv = torch.where(run.free, to_x(w), run.x)
            z = run.ask(x_adv)
            hit = run.goal.reached(z, kappa)
            run.lately.raised(run.rows, hit)
            lead = run.lead(z, x_adv)
            g = run.grad(squared(x_adv - run.x) + run.c * (kappa - lead).clamp_min(0), w, keep_graph=bool(hit.any()))
            if bool(hit.any()):
                rise, delta = differentiate(lead, x_adv)[hit], (x_adv - run.x).detach()[hit]
                changed = (delta != 0).any(1, keepdim=True)
                run.nearest(x_adv, (x_adv != run.x).any(1).flatten(1).sum(1).to(z.dtype), hit)
                at = run.rows[hit]
                solution[at], solved[at], good[at] = run.w[hit], True, changed
                worth[at] = (rise * delta).sum(1, keepdim=True)
            run.w = run.adam(w, g, lr).clamp_(-REACH, REACH)
            run.drop(hit)
            if not len(run):
                break
        size = good.flatten(1).sum(1)
        group = torch.where(solved, torch.minimum(group, size), group) // 2
        group = torch.where(solved, torch.where(size > 1, group.clamp_min(1), 0), group)
        order = torch.where(good, worth, torch.inf).flatten(1).argsort(1).argsort(1)  # the place of each pixel's worth
        free = good & (order >= group[:, None]).view_as(good)
        live.drop(~((group > 0) & live.found.reached)[live.rows])


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
    live = Live(model, x, Goal(y, target))
    for run in live.search("c", c, rounds):
        run.u, run.x_adv, run.before = run.x, run.x, torch.full_like(run.c, torch.inf)
        for k in range(steps):
            u, alpha = leaf(run.u), lr * (1 - k / steps) ** 0.5
            z = run.ask(u)
            if k == 0:  # u is x
                run.nearest(run.x, torch.zeros_like(run.c), run.goal.reached(z, kappa))
            loss = run.c * (kappa - run.lead(z, u)).clamp_min(0) + squared(u - run.x)
            delta = run.u - run.x - alpha * run.grad(loss, u)
            last, run.x_adv = run.x_adv, (run.x + F.softshrink(delta, alpha * beta)).clamp_(0, 1)
            run.u = run.x_adv + k / (k + 3) * (run.x_adv - last)
            with torch.no_grad():
                hit = run.goal.reached(run.ask(run.x_adv), kappa)
            l1 = L1.norm(run.x_adv - run.x)
            run.nearest(run.x_adv, l1 if decision == "l1" else squared(run.x_adv - run.x) + beta * l1, hit)
            if k % max(steps // 10, 1) == 0:
                fallen, run.before = loss < 0.9999 * run.before, loss.detach()
                run.drop(~fallen)
                if not len(run):
                    break
    return live.found.x_adv
