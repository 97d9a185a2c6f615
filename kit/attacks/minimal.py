"""Minimal attacks: find the nearest image that the model gets wrong.

    x' = argmin ‖x' − x‖_p   subject to   argmax f(x') ≠ y   and   x' ∈ [0, 1]

No radius is given: the distance is the answer, and it is a property of the image and the model. The constraint is as
hard as the network, so each method replaces it: DeepFool by a tangent plane, Carlini–Wagner and EAD by a penalty whose
weight c is searched for image by image, JSMA by a greedy choice of features. With `target` (N,) the constraint is
argmax f(x') = target. Shared arguments:

    model    images (N, C, H, W) in [0, 1] → logits (N, K)     x, y    images and their labels (N,)
    target   labels (N,) to reach, or None                     norm    in which the distance is measured
    kappa    κ, by how much the winning logit must lead        c       where the search for the penalty's weight begins

Each returns x' (N, C, H, W), and raises ValueError or TypeError for images, labels, norms and numbers that make no
sense. An image that is misclassified already comes back as it was (to rounding), and so does one for which nothing was
found; `distance` tells them apart, as it measures both success and distance on the tensor that was returned.
"""
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import L1, L2, Linf, adam, asking, fooled, logits, margin, per_image, take
from kit.core.checks import check_gradient
from kit.core.loop import Memory, gradient


def distance(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, norm: str = "l2", target: Tensor | None = None,
) -> Tensor:
    """How far x_adv is from x, (N,), in pixel units: infinite for an image that does not fool the model.

    norm "l2", "linf" or "l1", or "l0": the number of pixels of which any channel has changed. Cost: one forward pass.
    """
    norms: dict[str, Callable] = {
        "l2": L2.norm, "linf": Linf.norm, "l1": L1.norm, "l0": lambda delta: (delta != 0).any(1).flatten(1).sum(1)}
    if norm not in norms:
        raise ValueError(f"norm must be 'l2', 'linf', 'l1' or 'l0', not {norm!r}")
    size = norms[norm](x_adv - x).to(x.dtype)
    return torch.where(fooled(model, x_adv, y, target), size, torch.inf)


def success_curve(distances: Tensor, eps: Tensor) -> Tensor:
    """The share of images fooled within each radius: |{i: distances_i ≤ eps_j}| / N, of the shape of `eps`.

    This is how a minimal attack is compared with one that is given a radius: from one run, for every radius at once.
    """
    return (distances <= eps[..., None]).to(eps.dtype).mean(-1)


def next_class(y: Tensor, classes: int) -> Tensor:
    """The target (y + 1) mod K."""
    return (y + 1) % classes


def least_likely(model: nn.Module, x: Tensor) -> Tensor:
    """The target argmin_j f(x)_j, (N,): the class that the model thinks least of. Cost: one forward pass."""
    return logits(model, x).argmin(1)


def _lead(z: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """By how much the attack leads: max_{j≠y} z_j − z_y, or z_t − max_{j≠t} z_j."""
    return margin(z, y) if target is None else -margin(z, target)


def _slack(z: Tensor) -> Tensor:
    """What rounding may do to a lead: the same image in a batch of another size gives slightly other logits."""
    return 1e-5 * (z.amax(1) - z.amin(1))


def _adversarial(z: Tensor, y: Tensor, target: Tensor | None, kappa: float = 0.0) -> Tensor:
    """Whether the lead is beyond κ, and beyond what rounding could take back."""
    return _lead(z, y, target) > _slack(z).clamp_min(kappa)


def _gradients(z: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """∇_x Σ_k weights_vk z_k for every v: (V, N, K) → (V, N, C, H, W), all from one forward pass.

    One vectorised backward pass; on a CPU one per v, as a vectorised one loses the memory layout there and costs 1.2
    to 3 times as much.
    """

    def pull(weight: Tensor) -> Tensor:
        return torch.autograd.grad((weight * z).sum(), x, retain_graph=True)[0]

    return torch.stack([pull(w) for w in weights]) if x.device.type == "cpu" else torch.func.vmap(pull)(weights)


@per_image
def deepfool(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str = "l2", steps: int = 50, overshoot: float = 0.02,
    top: int | None = None,
) -> Tensor:
    """Step onto the nearest of the linearised class boundaries, again and again until one has been crossed:

        k = argmin_{j≠y} |z_j − z_y| / ‖∇(z_j − z_y)‖_q,     x' ← x' + (1 + overshoot) · r_k,

    where r_k is the shortest step to the plane of class k: |z_k − z_y| w/‖w‖₂² with w = ∇(z_k − z_y) in l2 (q = 2), and
    |z_k − z_y| sign(w)/‖w‖₁ in linf (q = 1). With two classes this is the paper's algorithm 1, else its algorithm 2.
    `top` looks only at the most likely other classes. Cost: per step and image not yet fooled, two forward passes and
    K − 1 (or `top`) backward passes. Source: Moosavi-Dezfooli et al., DeepFool, CVPR 2016, sections 2 and 3.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"DeepFool's norm must be 'l2' or 'linf', not {norm!r}")
    x_adv, open_ = x.clone(), torch.arange(len(x), device=x.device)
    for step in range(steps):
        with torch.no_grad(), asking(model, open_):
            open_ = open_[~_adversarial(model(x_adv[open_]), y[open_], None)]
        if not len(open_):
            break
        v, y_ = take(open_, x_adv, y)
        with asking(model, open_):
            z = model(v.requires_grad_())
        classes = z.shape[1]
        others = z.detach().scatter(1, y_[:, None], -torch.inf).topk(min(top or classes, classes - 1), 1).indices
        weights = F.one_hot(others.T, classes) - F.one_hot(y_, classes)
        w = _gradients(z, v, weights.to(z.dtype)).flatten(2)
        if step == 0:
            check_gradient(z, w.transpose(0, 1))
        gap = (z.gather(1, y_[:, None]) - z.gather(1, others)).clamp_min(0) + 2 * _slack(z)[:, None]
        length = w.norm(dim=2) if norm == "l2" else w.abs().sum(2)
        away = gap.detach().T / length.clamp_min(1e-12)
        nearest = away.argmin(0)
        away, length, w = away.amin(0)[:, None], length.amin(0)[:, None], w[nearest, torch.arange(len(open_))]
        unit = w / w.norm(dim=1, keepdim=True).clamp_min(1e-12) if norm == "l2" else w.sign()
        x_adv[open_] = (v.detach() + (1 + overshoot) * (away * unit).view_as(v)).clamp_(0, 1)
    return x_adv


class _Nearest:
    """Per image, the nearest adversarial image seen so far, and its distance."""

    def __init__(self, x: Tensor):
        self.x_adv, self.distance = x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf)

    def see(self, rows: Tensor, x_adv: Tensor, size: Tensor, hit: Tensor) -> None:
        nearer = hit & (size < self.distance[rows])
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


EDGE = 0.01
REACH = torch.tensor(1 - 2 * EDGE).atanh().item()


def _to_w(x: Tensor) -> Tensor:
    return ((2 * x - 1) * (1 - 2 * EDGE)).atanh()


def _to_x(w: Tensor) -> Tensor:
    """The paper's change of variables x = ½ + ½ tanh w, stretched by 1/(1 − 2 EDGE), for |w| ≤ REACH.

    Unstretched it reaches 0 and 1 only at infinity, and a pixel that starts there never moves.
    """
    return (0.5 + 0.5 / (1 - 2 * EDGE) * w.tanh()).clamp(0, 1)


def _penalised(model, x_adv, v, x, y, target, kappa, c, size, rows):
    """size(x' − x) + c · max(κ − lead, 0), where x' is a function of v: what it is made of, and its gradient in v."""
    with asking(model, rows):
        z = model(x_adv)
    sizes = size(x_adv - x)
    loss = sizes + c * (kappa - _lead(z, y, target)).clamp_min(0)
    g = torch.autograd.grad(loss.sum(), v)[0]
    return x_adv.detach(), sizes.detach(), loss.detach(), g, _adversarial(z.detach(), y, target, kappa)


def _squared(delta: Tensor) -> Tensor:
    return delta.square().flatten(1).sum(1)


def _excess(delta: Tensor, tau: Tensor) -> Tensor:
    return (delta.abs().flatten(1) - tau[:, None]).clamp_min(0).sum(1)


@per_image
def cw(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str = "l2", kappa: float = 0.0, c: float | None = None,
    rounds: int = 9, steps: int = 1000, lr: float | None = None, target: Tensor | None = None,
) -> Tensor:
    """Carlini and Wagner's attacks. In l2, Adam on w, with x' = ½ + ½ tanh w, minimises

        ‖x' − x‖₂² + c · max(κ − lead, 0),     lead = max_{j≠y} z_j − z_y,  or  z_t − max_{j≠t} z_j.

    l2    c is searched for, image by image, in `rounds` descents of at most `steps` steps each.
    linf  the first term is Σ_i max(|x'_i − x_i| − τ, 0): τ falls to 0.9 ‖x' − x‖_∞ whenever that solves it, and c is
          doubled, at most `rounds` times, when it does not.
    l0    pixels: the l2 descent is repeated from its last solution while those that contribute least to the lead,
          Σ_channels ∂lead/∂x'_i (x'_i − x_i), are frozen, half of them first and a single one at last.

    An image leaves a descent when it is solved (linf, l0), or when a tenth of the steps has not lowered its loss; the
    nearest adversarial image met on the way is returned. Default c: 0.001, 0.1, 10⁴; lr: 0.01, 0.005, 0.1.
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
        ever, before = torch.zeros_like(y, dtype=torch.bool), torch.full_like(c, torch.inf)
        rows, w, x_, y_, target_ = torch.arange(len(x), device=x.device), _to_w(x), x, y, target
        for k in range(steps):
            w.requires_grad_()
            x_adv, size, loss, g, hit = _penalised(model, _to_x(w), w, x_, y_, target_, kappa, c, _squared, rows)
            nearest.see(rows, x_adv, size, hit)
            ever[rows] |= hit
            w = adam(lr)(w.detach(), -g, memory).clamp_(-REACH, REACH)
            if k % max(steps // 10, 1) == 0:
                falls = loss < 0.9999 * before
                rows, w, before, c, x_, y_, target_ = take(falls, rows, w, loss, c, x_, y_, target_)
                memory = _of(falls, memory)
                if not len(rows):
                    break
        return ever

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
        before, solved = torch.full_like(c_, torch.inf), torch.zeros_like(y, dtype=torch.bool)
        for k in range(steps):
            w.requires_grad_()
            x_adv, excess, loss, g, hit = _penalised(
                model, _to_x(w), w, x_, y_, target_, kappa, c_, partial(_excess, tau=tau_), rows)
            size, w = Linf.norm(x_adv - x_), w.detach()
            nearest.see(rows, x_adv, size, hit)
            done = hit & (excess <= 1e-4 * c_)
            solution[rows[done]], solved[rows[done]] = w[done], True
            tau[rows[done]] = 0.9 * torch.minimum(size, tau_)[done]
            w = adam(lr)(w, -g, memory).clamp_(-REACH, REACH)
            stays = ~done
            if k % max(steps // 10, 1) == 0:
                stays &= loss < 0.9999 * before
                before = loss
            if not bool(stays.all()):
                rows, w, before, x_, y_, target_, c_, tau_ = take(
                    stays, rows, w, before, x_, y_, target_, c_, tau_)
                memory = _of(stays, memory)
            if not len(rows):
                break
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
            w.requires_grad_()
            x_adv, _, _, g, hit = _penalised(
                model, torch.where(free_, _to_x(w), x_), w, x_, y_, target_, kappa, c_, _squared, rows)
            w = w.detach()
            if bool(hit.any()):
                at, x_at, y_at, target_at, x_adv = take(hit, rows, x_, y_, target_, x_adv)
                delta = x_adv - x_at
                nearest.see(at, x_adv, (delta != 0).any(1).flatten(1).sum(1).to(x.dtype), torch.ones_like(hit[hit]))
                solution[at], solved[at] = w[hit], True
                with asking(model, at):
                    slope = gradient(lambda u, y=y_at, t=target_at: _lead(model(u), y, t), x_adv)[1]
                good[at], worth[at] = (delta != 0).any(1, keepdim=True), (slope * delta).sum(1, keepdim=True)
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
            v = u.detach().requires_grad_()
            _, _, loss, g, _ = _penalised(model, v, v, x_, y_, target_, kappa, c, _squared, rows)
            alpha = lr * (1 - k / steps) ** 0.5
            last, x_adv = x_adv, (x_ + F.softshrink(v.detach() - alpha * g - x_, alpha * beta)).clamp_(0, 1)
            u = x_adv + k / (k + 3) * (x_adv - last)
            with torch.no_grad(), asking(model, rows):
                hit = _adversarial(model(x_adv), y_, target_, kappa)
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


@per_image
def jsma(
    model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, theta: float = 1.0, gamma: float = 0.145,
) -> Tensor:
    """Jacobian-based saliency map attack: change few features (channel values), two at a time, by θ each: the pair

        argmax_{p≠q} −α β   with   α = Σ_{i∈{p,q}} ∂z_t/∂x_i > 0,   β = Σ_{i∈{p,q}} Σ_{j≠t} ∂z_j/∂x_i < 0

    of those that are not at the edge of the box yet (θ < 0 darkens: both signs turn). It stops at success, when no pair
    is left, or when a share γ of the features has been used. Without a target, t is the second most likely class at x,
    and any wrong class ends it. Cost: per pair and image not yet fooled, one forward and two backward passes, as only
    two sums of the K gradients are read. Source: Papernot et al., The limitations of deep learning in adversarial settings, EuroS&P 2016, algorithms 2
    and 3, on logits; θ and γ (14.5 % of the features) as there.
    """
    if not -1 <= theta <= 1 or theta == 0:
        raise ValueError(f"theta must lie in [-1, 1] and not be zero, not {theta:g}")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is a share of the features, in (0, 1], not {gamma:g}")
    x_adv, t = x.clone(), target
    open_ = torch.arange(len(x), device=x.device)
    for step in range(int(gamma * x[0].numel() / 2) + 1):
        v, y_, target_ = take(open_, x_adv, y, target)
        with asking(model, open_):
            z = model(v.requires_grad_())
        if t is None:
            t = z.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        toward = F.one_hot(t[open_], z.shape[1]).to(z.dtype)
        left = ~_adversarial(z.detach(), y_, target_)
        if not bool(left.any()) or step == int(gamma * x[0].numel() / 2):
            break
        up, others = _gradients(z, v, torch.stack([toward, 1 - toward])).flatten(2) * (1 if theta > 0 else -1)
        v = v.detach().flatten(1)
        movable = v < 1 if theta > 0 else v > 0
        pair, found = _best_pair(torch.where(movable, up, -torch.inf), torch.where(movable, -others, -torch.inf))
        v = v.scatter_add(1, pair, torch.full_like(pair, theta, dtype=v.dtype)).clamp_(0, 1).view(-1, *x.shape[1:])
        x_adv[open_[left & found]] = v[left & found]
        open_ = open_[left & found]
        if not len(open_):
            break
    return x_adv


def _best_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """argmax_{p≠q} (a_p + a_q)(b_p + b_q) with both sums positive, (N, 2), and whether there is such a pair, (N,).

    A feature that two others match in a and in b is in no better pair than one of these, so only those with at most one
    such rival (few, found by sorting a and keeping the two largest b so far) are paired with each other.
    """
    a, order = a.sort(1, descending=True)
    b = b.gather(1, order)
    none = torch.full_like(b[:, :1], -torch.inf)
    largest = torch.cat([none, b.cummax(1).values[:, :-1]], 1)
    second = torch.cat([none, torch.minimum(b, largest).cummax(1).values[:, :-1]], 1)
    few = b > second
    at = few.byte().sort(dim=1, descending=True, stable=True).indices[:, : max(2, int(few.sum(1).max()))]
    a, b = a.where(few, -torch.inf).gather(1, at), b.where(few, -torch.inf).gather(1, at)
    m, best, where = a.shape[1], [], []
    apart = ~torch.eye(m, dtype=torch.bool, device=a.device)
    for p, q in zip(a.split(max(1, 2**22 // m**2)), b.split(max(1, 2**22 // m**2)), strict=True):
        alpha, beta = p[:, :, None] + p[:, None], q[:, :, None] + q[:, None]
        value, i = torch.where((alpha > 0) & (beta > 0) & apart, alpha * beta, 0).flatten(1).max(1)
        best.append(value)
        where.append(i)
    i = torch.cat(where)
    return order.gather(1, at.gather(1, torch.stack([i // m, i % m], 1))), torch.cat(best) > 0
