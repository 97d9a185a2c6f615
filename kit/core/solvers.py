"""Solvers that know nothing of images or networks."""
from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], v: Tensor, *, tol: float, steps: int, flat: float = 0.0,
    watch: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """h with H h = v for each row of v (T, P), H symmetric and positive, given by `product(p)` = H p.

    Rows are solved until ‖H h − v‖ ≤ tol ‖v‖. All stop where one that is not yet solved meets a direction p of
    curvature pᵀH p / pᵀp ≤ flat, before following it: H is then not positive. `watch` sees h after each step. Returns
    h; ‖H h − v‖/‖v‖ (T,); and the last curvature (T,), infinite in rows that are solved.
    Cost: at most `steps` products. Source: Nocedal and Wright, Numerical optimization, 2006, algorithm 5.2.
    """
    h, r, p = torch.zeros_like(v), v, v
    rr = r.square().sum(1)
    size = rr
    curvature = torch.full_like(rr, torch.inf)
    for _ in range(steps):
        todo = rr > tol**2 * size
        if not bool(todo.any()):
            break
        Hp = product(p)
        pHp = (p * Hp).sum(1)
        curvature = torch.where(todo, pHp / p.square().sum(1), torch.inf)
        if bool((curvature <= flat).any()):
            break
        alpha = torch.where(todo, rr / pHp, 0)[:, None]
        h, r = h + alpha * p, r - alpha * Hp
        before, rr = rr, r.square().sum(1)
        p = r + torch.where(todo, rr / before, 0)[:, None] * p
        if watch is not None:
            watch(h)
    return h, (rr / size.clamp_min(torch.finfo(v.dtype).tiny)).sqrt(), curvature
