"""What would have to change? The nearest input that a model answers as wished.

Wachter's counterfactual of x for the answer y' solves

    min_{x'} max_λ  λ (y' − f(x'))₊² + d(x, x'),     d(x, x') = Σ_k |x_k − x'_k| / s_k,

with f the log-odds of the target class against the best other, f = z_t − max_{j≠t} z_j, the wish y' = log c/(1 − c) of
a confidence c, and s_k a feature's scale: its median absolute deviation over a table, 1 for pixels. The L1 distance
leaves most features as they were; without it (and in pixels) this is an adversarial example.
Source: Wachter, Mittelstadt and Russell, Counterfactual explanations without opening the black box, 2017, section III.
"""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kit.core import borrowed, check_images, check_labels, check_model, normal
from kit.core.checks import check_settings


def counterfactual(
    model: nn.Module, x: Tensor, target: Tensor, *, scale: Tensor | None = None, low: Tensor | float | None = None,
    high: Tensor | float | None = None, fixed: Tensor | None = None, confidence: float = 0.5, count: int = 1,
    diversity: float = 1.0, data: Tensor | None = None, plausibility: float = 0.0, bandwidth: float | None = None,
    lam: float = 1e-3, rounds: int = 30, steps: int = 50, prune: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs x' near x (N, …) that the model labels target (N,), with probability above `confidence` against the next.

        for λ = lam, 2 lam, …:  x' ← argmin λ (y' − f(x'))₊² + d(x, x') + plausibility · E(x') − diversity · log det K

    by proximal gradient steps with backtracking (ISTA), from the last λ's x', until f(x') ≥ log c/(1 − c);
    y' is a tenth above that. x is a table (N, d) or images (N, C, H, W), and the model maps it to logits (N, K).

    scale        s, one per feature; see `mad`. None is 1
    low, high    bounds per feature; [0, 1] for images
    fixed        bools, true for features that may not change
    data         rows like x of the target class, for plausibility: E(x') = −log Σ_j exp(−‖(x' − x_j)/s‖²/2h²), the
                 negative log-density up to a constant; h = `bandwidth`, by default the median distance of a row of data
                 to its nearest neighbour
    count        how many at once: (N, count, …) is returned when it is above 1. They start at random points, and K_ij =
                 1/(1 + d(x'_i, x'_j)) keeps them apart (Mothilal et al., DiCE, FAT* 2020, section 3.2)
    prune        undo the smallest changes again, as many as leave f(x') high enough

    Where no λ within `rounds` doublings does it, x itself is returned: look at the model's answer to what comes back.
    Cost: at most rounds · steps forward and backward passes and about as many forward ones, of those not yet done.
    Raises ValueError for a confidence outside [0.5, 1), scales that are not positive, x out of bounds, and a model that
    returns probabilities.
    """
    check_settings({"rounds": rounds, "steps": steps})
    x, image = x.detach(), x.dim() == 4
    if image:
        check_images(x)
    elif x.dim() != 2 or not x.is_floating_point() or not bool(x.isfinite().all()):
        raise ValueError(f"x must be a finite float table (N, d) or images (N, C, H, W), not {x.dtype} {[*x.shape]}")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), not {confidence}")
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count}")
    if plausibility and data is None:
        raise ValueError("plausibility is measured by examples of the target class: pass them as data=")
    s = torch.as_tensor(1.0 if scale is None else scale, dtype=x.dtype, device=x.device).expand(x[:1].shape)
    if not bool((s > 0).all()):
        raise ValueError("scales must be positive: a feature that never changes needs fixed=, or a scale of 1")
    low = (0.0 if image else -math.inf) if low is None else low
    high = (1.0 if image else math.inf) if high is None else high
    if bool((x < torch.as_tensor(low)).any()) or bool((x > torch.as_tensor(high)).any()):
        raise ValueError("x lies outside low … high")

    def flat(value: Any, like: Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(like.shape).flatten(1)[:, None]

    scales = flat(s, s)
    origin = flat(x, x) / scales
    bounds = [flat(low, s) / scales, flat(high, s) / scales]
    free = torch.ones_like(scales) if fixed is None else (~flat(fixed, s).bool()).to(x.dtype)
    near = None if data is None else data.detach().to(x.device, x.dtype).flatten(1)[None] / scales
    h = bandwidth or (1.0 if near is None else _spacing(near[0]))
    wish = math.log(confidence / (1 - confidence))

    with borrowed(model, x):
        check_labels(target, x, check_model(model, x), "target")

        def log_odds(u: Tensor, rows: Tensor) -> Tensor:
            z = model((u * scales).flatten(0, 1).view(-1, *x.shape[1:]))
            t = target[rows].repeat_interleave(u.shape[1])[:, None]
            return (z.gather(1, t)[:, 0] - z.scatter(1, t, -torch.inf).amax(1)).view(u.shape[:2])

        def smooth(u: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
            value = weight * (wish + 0.1 - log_odds(u, rows)).clamp_min(0).square().sum(1)
            if plausibility and near is not None:
                squared = torch.cdist(u, near.expand(len(u), -1, -1)).square()
                value = value - plausibility * torch.logsumexp(-squared / (2 * h**2), 2).sum(1)
            if count > 1 and diversity:
                K = 1 / (1 + (u[:, :, None] - u[:, None]).abs().sum(3))
                value = value - diversity * torch.logdet(K + 1e-4 * torch.eye(count, dtype=x.dtype, device=x.device))
            return value

        u = origin.expand(-1, count, -1).clone()
        if count > 1:
            u = torch.minimum(torch.maximum(u + 0.1 * free * normal(u, generator), bounds[0]), bounds[1])
        best = origin.expand(-1, count, -1).clone()
        weight = torch.full((len(x),), lam, dtype=x.dtype, device=x.device)
        open_ = torch.arange(len(x), device=x.device)
        for _ in range(rounds):
            def part(v: Tensor, live: Tensor, rows: Tensor = open_) -> Tensor:
                return smooth(v, rows[live], weight[rows[live]])

            u[open_] = _ista(part, u[open_], origin[open_], free, bounds, steps)
            with torch.no_grad():
                done = (log_odds(u[open_], open_) > wish).all(1)
            best[open_[done]] = u[open_[done]]
            open_ = open_[~done]
            if not len(open_):
                break
            weight[open_] *= 2
        if prune:
            everything = torch.arange(len(x), device=x.device)
            best = _pruned(lambda v: log_odds(v, everything) > wish, best, origin)
    found = (best * scales).clamp(flat(low, s), flat(high, s))
    found = torch.where(best == origin, flat(x, x), found).view(len(x), count, *x.shape[1:])  # x itself, not rounded
    return found[:, 0] if count == 1 else found


def mad(data: Tensor) -> Tensor:
    """The median absolute deviation of each feature (d,) of a table (n, d): median_i |x_ik − median_j x_jk|.

    Where more than half of a column is equal it is 0; then the mean absolute deviation stands in for it, and 1 for a
    column that never changes.
    """
    off = (data - data.median(0).values).abs()
    scale = off.median(0).values
    scale = torch.where(scale > 0, scale, off.mean(0))
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _spacing(rows: Tensor) -> float:
    distances = torch.cdist(rows, rows)
    distances.fill_diagonal_(torch.inf)
    return max(float(distances.amin(1).median()), 1e-6)


def _ista(smooth, u: Tensor, origin: Tensor, free: Tensor, bounds: list[Tensor], steps: int) -> Tensor:
    """argmin_u smooth(u) (N,) + ‖u − origin‖₁ within the bounds, with a step size 1/L for each input,
    which leaves the batch when it moves by less than 1e-5.

    Each step minimises the quadratic model of curvature L at u plus the L1 norm, which is a soft threshold; L doubles
    while the model lies below the function. Source: Beck and Teboulle, SIAM J. Imaging Sciences, 2009, section 3.
    """
    u, L = u.clone(), torch.ones(len(u), 1, 1, dtype=u.dtype, device=u.device)
    live, exact = torch.arange(len(u), device=u.device), 32 * torch.finfo(u.dtype).eps
    for _ in range(steps):
        here, start, height = u[live], origin[live], L[live] / 2
        v = here.detach().requires_grad_()
        value = smooth(v, live)
        g = torch.autograd.grad(value.sum(), v)[0] * free
        value = value.detach()
        for _ in range(30):
            step = here - g / height - start
            new = start + step.sign() * (step.abs() - 1 / height).clamp_min(0) * free
            new = torch.minimum(torch.maximum(new, bounds[0]), bounds[1])
            moved = new - here
            with torch.no_grad():
                model = value + (g * moved).sum((1, 2)) + height[:, 0, 0] / 2 * moved.square().sum((1, 2))
                waiting = (smooth(new, live) > model + exact * (1 + value.abs()))[:, None, None]
            if not bool(waiting.any()):
                break
            height = torch.where(waiting, 2 * height, height)
        new = torch.where(waiting, here, new)
        u[live], L[live] = new, height
        live = live[(new - here).abs().amax((1, 2)) > 1e-5]
        if not len(live):
            break
    return u


def _pruned(holds, u: Tensor, origin: Tensor) -> Tensor:
    """Undo the smallest changes, as many as leave `holds` (N, count) true, found by bisection on their number."""
    change = (u - origin).abs()
    rank = change.argsort(2).argsort(2)
    low = torch.zeros_like(rank[:, :, :1])
    high = torch.full_like(low, change.shape[2])
    with torch.no_grad():
        for _ in range(int(math.log2(change.shape[2])) + 1):
            middle = (low + high + 1) // 2
            good = holds(torch.where(rank < middle, origin, u))[:, :, None]
            low, high = torch.where(good, middle, low), torch.where(good, high, middle - 1)
    return torch.where(rank < low, origin, u)
