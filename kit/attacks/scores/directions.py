"""A gradient from answers along random directions, and the loop of all that follow one.

    ĝ = 1/q Σ_j D_j u_j,     D_j = (f(v + h u_j) − f(v − h u_j)) / 2h,     or, with f(v), (f(v + h u_j) − f(v)) / h

Directions u are drawn with E u uᵀ = 1, so that h is what a probe moves a coordinate by, in the mean square:

    gaussian   N(0, 1): E ĝ is the gradient of f smoothed by a normal density of deviation h
    signs      ± 1, each coordinate by itself
    sphere     uniform on the sphere of radius √d; E ĝ is the gradient of f's mean over the ball of radius h √d

Where f is linear, E ĝ = ∇f and E‖ĝ‖² = ‖∇f‖² (d + q − 1)/q for signs and sphere, (d + q + 1)/q for Gaussians, whatever
the difference. The cosine of ĝ and ∇f is therefore about √(q / (q + d − 1)): for q = 1 the root of its mean square.
"""
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core import Live, normal, uniform
from kit.core.balls import column

TOGETHER = 16  # directions of an image that are drawn and asked about at once, whoever else is there
KINDS = ("gaussian", "signs", "sphere")
Objective = Callable[[Tensor, Tensor], Tensor]  # points (m, …) and whose they are (m,) -> f (m,); one query each


def directions(live: Live, count: int, kind: str) -> Tensor:
    """`count` directions for each image, (n, count, …) as v is (n, …), each image from its own stream."""
    like = live.v[:, None].expand(-1, count, *live.v.shape[1:])
    if kind == "signs":
        return uniform(like, live.draws, -1, 1).sign_()
    u = normal(like, live.draws)
    return u if kind == "gaussian" else F.normalize(u.flatten(2), dim=2).mul_(live.v[0].numel() ** 0.5).view_as(u)


def random_gradient(f: Objective, v: Tensor, u: Tensor, many: Tensor, h: float, value: Tensor | None = None) -> Tensor:
    """Σ_j D_ij u_ij over the first many[i] directions of u (n, q, …), of the shape of v (n, …).

    Two-sided without `value`, which is f(v). Cost: 2 · many queries; `many` with it.
    """
    of = torch.arange(len(v), device=v.device).repeat_interleave(many)
    along = u[torch.arange(u.shape[1], device=v.device) < many[:, None]]
    if value is None:
        up, down = f(torch.cat([v[of] + h * along, v[of] - h * along]), of.repeat(2)).chunk(2)
        slope = (up - down) / (2 * h)
    else:
        slope = (f(v[of] + h * along, of) - value[of]) / h
    return torch.zeros_like(v).index_add_(0, of, column(slope.to(v), along) * along)


def estimate(live: Live, f: Objective, kind: str, q: int, h: float, value: Tensor | None = None) -> Tensor:
    """ĝ at v from the first live.many of q directions."""
    sums: list[Tensor] = []
    for start in range(0, q, TOGETHER):
        u = directions(live, min(TOGETHER, q - start), kind)
        if bool((live.many > start).any()):
            sums.append(random_gradient(f, live.v, u, (live.many - start).clamp(0, u.shape[1]), h, value))
    total = functools.reduce(torch.add, sums)
    return total / column(live.many.to(live.v), total)


def follow(
    live: Live, ask: Callable[[], tuple[Tensor, Tensor]], gradient: Callable[[], Tensor],
    rule: Callable[[Tensor], Tensor], max_queries: int,
) -> Tensor:
    """v ← rule(gradient()), until an image is done or its queries are spent; returns the best that `ask` has kept.

    ask() -> f(v) and who is done, (n,) each, for one query each. `live.q` is how many directions an image wants and
    `live.price` what each of them costs; live.many, which the gradient may use, is how many of them it can pay, with
    one query left for the v that they lead to.
    """
    while len(live):
        live.value, done = ask()
        live.many = ((max_queries - live.asked - 1) // live.price).minimum(live.q)
        live.drop(done | (live.many < 1))
        if len(live):
            live.v = rule(gradient())
    return live.found.x_adv
