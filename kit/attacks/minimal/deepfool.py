"""Minimal attacks by the Jacobian: DeepFool steps onto a tangent plane, JSMA chooses features greedily.

    x' = argmin ‖x' − x‖_p   subject to   argmax f(x') ≠ y   (with `target` (N,): = target)   and   x' ∈ [0, 1]

Shared arguments of all minimal attacks:

    model    images (N, C, H, W) in [0, 1] → logits (N, K)     x, y    images and their labels (N,)
    target   labels (N,) to reach, or None                     norm    in which the distance is measured
    kappa    κ, by how much the winning logit must lead        c       where the search for the penalty's weight begins

Each returns x' (N, C, H, W), and raises ValueError or TypeError for images, labels, norms and numbers that make no
sense. An image that is misclassified already comes back as it was (to rounding), and so does, from the penalty attacks,
one for which nothing was found; `distance` tells them apart, as it measures both success and distance on the tensor
that was returned.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import L1, L2, Goal, Linf, Live, check_images, fooled, leaf, logits, per_image
from kit.core.balls import column
from kit.core.goal import slack


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
    check_images(x)
    check_images(x_adv)
    if x.shape != x_adv.shape or x.dtype != x_adv.dtype:
        raise ValueError(f"x and x_adv differ in shape or dtype: {tuple(x.shape)} of {x.dtype}, "
                         f"{tuple(x_adv.shape)} of {x_adv.dtype}")
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
    live, x_adv = Live(model, x, Goal(y)), x.clone()
    live.v = x
    for _ in range(steps):
        with torch.no_grad():
            live.drop(live.goal.reached(live.ask(live.v)))
        if not len(live):
            break
        v = leaf(live.v)
        live.v = (v + (1 + overshoot) * to_the_nearest_plane(live, v, norm, top)).detach().clamp_(0, 1)
        x_adv[live.rows] = live.v
    return x_adv


def to_the_nearest_plane(live: Live, v: Tensor, norm: str, top: int | None) -> Tensor:
    """r_k for the nearest plane k, (n, C, H, W): class after class, so that only one gradient is held at a time."""
    z, y = live.ask(v), live.goal.y
    others = z.detach().scatter(1, y[:, None], -torch.inf).topk(min(top or z.shape[1], z.shape[1] - 1), 1).indices
    gaps = (z.gather(1, y[:, None]) - z.gather(1, others)).clamp_min(0).detach() + 2 * slack(z)[:, None]
    nearest, length, w = torch.full_like(gaps[:, 0], torch.inf), torch.ones_like(gaps[:, 0]), torch.zeros_like(v)
    for k, gap in zip(others.T, gaps.T, strict=True):
        g = live.grad((z.gather(1, k[:, None]) - z.gather(1, y[:, None])).sum(1), v, keep_graph=True)
        size = L2.norm(g) if norm == "l2" else L1.norm(g)
        away = torch.where(size > 0, gap / size, torch.inf)
        at = (away < nearest).nonzero()[:, 0]  # the classes come in their order, so that few are nearer
        nearest[at], length[at], w[at] = away[at], size[at], g[at]
    nearest = torch.where(nearest.isinf(), 0, nearest)  # where no plane is seen, no step is made
    return column(nearest / length, w) * w if norm == "l2" else column(nearest, w) * w.sign()


@per_image
def jsma(
    model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, theta: float = 1.0, gamma: float = 0.145,
) -> Tensor:
    """Jacobian-based saliency map attack: change few features (channel values), two at a time, by θ each: the pair

        argmax_{p≠q} −α β   with   α = Σ_{i∈{p,q}} ∂z_t/∂x_i > 0,   β = Σ_{i∈{p,q}} Σ_{j≠t} ∂z_j/∂x_i < 0

    of those that are not at the edge of the box yet (θ < 0 darkens: both signs turn). It stops at success, when no pair
    is left, or when a share γ of the features has been used. Without a target any wrong class ends it; t is then the
    most likely wrong class at x, and where that one is out of reach, the next likely ones, each from x again. Where
    all are, the image comes back as the first attempt left it.
    Cost: per pair and image not yet fooled, one forward and two backward passes, as only two sums of the K gradients
    are read; without a target one forward pass more.
    Source: Papernot et al., The limitations of deep learning in adversarial settings, EuroS&P 2016, algorithms 2 and 3,
    on logits; θ and γ (14.5 % of the features) as there.
    """
    if not -1 <= theta <= 1 or theta == 0:
        raise ValueError(f"theta must lie in [-1, 1] and not be zero, not {theta:g}")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is a share of the features, in (0, 1], not {gamma:g}")
    best, live = x.clone(), Live(model, x, Goal(y, target))
    if target is not None:
        turns = target[None]
    else:
        with torch.no_grad():
            z = live.ask(x)
        turns = z.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1].T
        live.drop(live.goal.reached(z))
    for attempt, t in enumerate(turns):
        if not len(live):
            break
        x_adv, hit = _saturate(live.again(v=live.x, t=t[live.rows]), x.clone(), theta, gamma)
        kept = live.rows[hit[live.rows] | (attempt == 0)]
        best[kept] = x_adv[kept]
        live.drop(hit[live.rows])
    return best


def _saturate(live: Live, x_adv: Tensor, theta: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Saturate pairs of features towards the classes t: the images, and which of them reached their goal."""
    pairs = int(gamma * x_adv[0].numel() / 2)
    for pair_number in range(pairs + 1):
        v = leaf(live.v)
        z = live.ask(v)
        now = live.goal.reached(z.detach())
        live.lately.raised(live.rows, now)
        if pair_number == pairs or bool(now.all()):
            break
        toward = F.one_hot(live.t, z.shape[1]).to(z.dtype)
        up, others = live.slopes(z, v, torch.stack([toward, 1 - toward])).flatten(2) * (1 if theta > 0 else -1)
        flat = v.detach().flatten(1)
        movable = flat < 1 if theta > 0 else flat > 0
        pair, exists = _best_pair(torch.where(movable, up, -torch.inf), -others)
        live.v = flat.scatter_add(1, pair, torch.full_like(pair, theta, dtype=flat.dtype)).clamp_(0, 1).view_as(v)
        live.drop(now | ~exists)
        x_adv[live.rows] = live.v
        if not len(live):
            break
    return x_adv, live.lately.up


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
    a, b = a.where(few, -torch.inf).gather(1, at), b.gather(1, at)  # a = −∞ is in no pair
    m, best, where = a.shape[1], [], []
    apart = ~torch.eye(m, dtype=torch.bool, device=a.device)
    for p, q in zip(a.split(max(1, 2**22 // m**2)), b.split(max(1, 2**22 // m**2)), strict=True):
        alpha, beta = p[:, :, None] + p[:, None], q[:, :, None] + q[:, None]
        value, i = torch.where((alpha > 0) & (beta > 0) & apart, alpha * beta, 0).flatten(1).max(1)
        best.append(value)
        where.append(i)
    i = torch.cat(where)
    return order.gather(1, at.gather(1, torch.stack([i // m, i % m], 1))), torch.cat(best) > 0
