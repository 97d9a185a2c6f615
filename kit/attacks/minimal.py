"""Minimal attacks: find the nearest image that the model gets wrong.

    x' = argmin ‖x' − x‖_p   subject to   argmax f(x') ≠ y   and   x' ∈ [0, 1]

No radius is given: the distance is the answer, and it is a property of the image and the model. The constraint is as
hard as the network, so each method replaces it. Here are the two that read the Jacobian: DeepFool steps onto a tangent
plane, JSMA chooses features greedily. `kit.attacks.penalty` holds those that replace the constraint by a penalty whose
weight c is searched for image by image, Carlini–Wagner and EAD, and `kit.attacks.quasi_newton` Szegedy's, which did so
first. With `target` (N,) the constraint is argmax f(x') = target. Shared arguments:

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

from kit.core import L1, L2, Linf, asking, fooled, laid_out, logits, margin, per_image
from kit.core.checks import check_gradient


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
    if x.device.type == "cpu":
        return torch.stack([torch.autograd.grad((w * z).sum(), x, retain_graph=True)[0] for w in weights])
    return torch.func.vmap(lambda w: torch.autograd.grad(z, x, w, retain_graph=True)[0])(weights)


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
            open_ = open_[~_adversarial(model(laid_out(x_adv[open_])), y[open_], None)]
        if not len(open_):
            break
        v, y_ = laid_out(x_adv[open_]).requires_grad_(), y[open_]
        with asking(model, open_):
            z = model(v)
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
    best, open_ = x.clone(), torch.arange(len(x), device=x.device)
    if target is not None:
        goals = target[None]
    else:
        with torch.no_grad():
            z = model(x)
        goals = z.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1].T
        open_ = open_[~_adversarial(z, y, None)]
    for attempt, t in enumerate(goals):
        if not len(open_):
            break
        with asking(model, open_):
            x_adv, hit = _saturate(model, x[open_], y[open_], t[open_], target is not None, theta, gamma)
        kept = hit | (attempt == 0)
        best[open_[kept]] = x_adv[kept]
        open_ = open_[~hit]
    return best


def _saturate(model, x, y, t, targeted: bool, theta: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Saturate pairs of features towards class t: the images, and whether they got there (or, not targeted, away)."""
    x_adv, hit = x.clone(), torch.zeros_like(y, dtype=torch.bool)
    open_ = torch.arange(len(x), device=x.device)
    pairs = int(gamma * x[0].numel() / 2)
    for step in range(pairs + 1):
        v = laid_out(x_adv[open_]).requires_grad_()
        with asking(model, open_):
            z = model(v)
        now = _adversarial(z.detach(), y[open_], t[open_] if targeted else None)
        hit[open_[now]] = True
        if step == pairs or bool(now.all()):
            break
        toward = F.one_hot(t[open_], z.shape[1]).to(z.dtype)
        up, others = _gradients(z, v, torch.stack([toward, 1 - toward])).flatten(2) * (1 if theta > 0 else -1)
        v = v.detach().flatten(1)
        movable = v < 1 if theta > 0 else v > 0
        pair, exists = _best_pair(torch.where(movable, up, -torch.inf), torch.where(movable, -others, -torch.inf))
        v = v.scatter_add(1, pair, torch.full_like(pair, theta, dtype=v.dtype)).clamp_(0, 1).view(-1, *x.shape[1:])
        go_on = exists & ~now
        x_adv[open_[go_on]] = v[go_on]
        open_ = open_[go_on]
        if not len(open_):
            break
    return x_adv, hit


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
