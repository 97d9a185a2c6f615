"""Carlini and Wagner's objective, descended without a gradient: ZOO and AutoZOOM.

    v = argmin ‖x' − x‖₂² + c · max(κ − lead(x'), 0),     x' = box(x, D(v)),     lead = max_{j≠y} z_j − z_y

D lays the attack space over the pixels: v may be as large as the image, or a small map that is enlarged, or a code
that a decoder turns into a picture. The box keeps x' in [0, 1]: by tanh, as `cw` has it, or by cutting off.
Logits differ as the logarithms of probabilities do, which these papers use.
"""
from collections.abc import Sequence
from itertools import count
from numbers import Integral
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.minimal.penalty import squared, to_w, to_x
from kit.attacks.scores.directions import estimate, follow
from kit.core import Goal, Live, Progress, per_image, uniform
from kit.core.checks import check_fits
from kit.core.passes import borrowed

BETAS, TINY = (0.9, 0.999), 1e-8  # Adam's
LEAST_CURVATURE = 0.1  # ZOO's Newton steps divide by no less; where the curvature is negative, by 1
RARE = 1e-3  # the weight of a place where nothing has changed, relative to that where most has
ROUNDINGS = 16  # of the objective, that a difference of two of its values must exceed
BOXES = ("tanh", "clip")


def begin(live: Live, v: Tensor, c: float, box: str, max_queries: int) -> None:
    """Ask about x as it is, let those go that reach their goal so, and give the others their state."""
    if box not in BOXES:
        raise ValueError(f"box must be 'tanh' or 'clip', not {box!r}")
    live.v, live.w = v, to_w(live.x) if box == "tanh" else live.x
    live.m, live.u, live.t = torch.zeros_like(v), torch.zeros_like(v), torch.zeros_like(v)
    live.c, live.low = torch.full_like(v[:, 0], c), torch.zeros_like(v[:, 0])
    live.high, live.hit = torch.full_like(live.c, torch.inf), torch.zeros_like(live.c, dtype=torch.bool)
    done = live.goal.reached(live.answers(live.x, torch.arange(len(v), device=v.device)))
    live.nearest(live.x, torch.zeros_like(live.c), done)
    live.drop(done | (live.asked >= max_queries))


def boxed(w: Tensor, delta: Tensor, box: str) -> Tensor:
    return to_x(w + delta) if box == "tanh" else (w + delta).clamp(0, 1)


def losses(live: Live, x_adv: Tensor, of: Tensor, kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    """The objective at x'_i, an image of[i]; ‖x'_i − x‖₂²; and whether it reaches the goal. Cost: one query each."""
    z, goal = live.answers(x_adv, of), live.goal[of]
    size = squared(x_adv - live.x[of])
    return size + live.c[of] * (kappa - goal.lead(z).to(size)).clamp_min(0), size, goal.reached(z, kappa)


def at_v(live: Live, x_adv: Tensor, kappa: float) -> Tensor:
    """The objective at v itself (n,). The image is kept where it is the nearest that reaches the goal."""
    value, size, hit = losses(live, x_adv, torch.arange(len(live), device=x_adv.device), kappa)
    live.nearest(x_adv, size, hit)
    live.hit = live.hit | hit
    return value


def reweigh(live: Live) -> None:
    """c: halfway down to the largest that failed where v reached the goal since the last time; else ten times larger,
    or halfway up to the smallest that did not. Adam begins anew."""
    live.high = torch.where(live.hit, torch.minimum(live.high, live.c), live.high)
    live.low = torch.where(live.hit, live.low, torch.maximum(live.low, live.c))
    live.c = torch.where(live.high.isinf(), 10 * live.c, (live.low + live.high) / 2)
    live.hit = torch.zeros_like(live.hit)
    live.m, live.u, live.t = (torch.zeros_like(s) for s in (live.m, live.u, live.t))


def adam_step(live: Live, g: Tensor, at: Tensor, lr: float) -> Tensor:
    """Adam's step at the coordinates `at` (n, B), each of which counts its own steps."""
    t = live.t.gather(1, at) + 1
    m = BETAS[0] * live.m.gather(1, at) + (1 - BETAS[0]) * g
    u = BETAS[1] * live.u.gather(1, at) + (1 - BETAS[1]) * g * g
    live.t, live.m, live.u = (s.scatter(1, at, new) for s, new in ((live.t, t), (live.m, m), (live.u, u)))
    return lr * m / (1 - BETAS[0] ** t) / ((u / (1 - BETAS[1] ** t)).sqrt() + TINY)


def enlarged(v: Tensor, space: tuple[int, int], x: Tensor) -> Tensor:
    """Maps v (n, C·h·w) as changes of the images: bilinear, corner on corner."""
    maps = v.view(len(v), x.shape[1], *space)
    return maps if space == x.shape[2:] else F.interpolate(maps, x.shape[2:], mode="bilinear", align_corners=True)


def sides(side: int | None, x: Tensor) -> tuple[int, int]:
    """A map of `side` rows, and of columns as the image has them; of the image's own size where side is None."""
    h, w = x.shape[2:]
    if side is not None and not (isinstance(side, Integral) and 1 <= side <= h):
        raise ValueError(f"the side of the attack space must be a whole number from 1 to the image's {h} "
                         f"rows, not {side!r}")
    return (h, w) if side is None else (side, max(1, round(side * w / h)))


def penalised(live: Live, delta: Any, box: str, kappa: float, switch: int) -> tuple[Any, Any]:
    """The objective for `follow`: f(points, whose), and ask() at v, which changes c after every `switch` times."""
    steps = count()

    def f(v, of):
        return losses(live, boxed(live.w[of], delta(v), box), of, kappa)[0]

    def ask():
        if (k := next(steps)) and k % switch == 0:
            reweigh(live)
        value = at_v(live, boxed(live.w, delta(live.v), box), kappa)
        return value, torch.zeros_like(live.hit)

    return f, ask


@per_image
def zoo(
    model: nn.Module, x: Tensor, y: Tensor, *, solver: str = "adam", max_queries: int = 50_000, batch: int = 128,
    h: float = 1e-4, lr: float = 0.01, c: float = 1.0, switch: int = 100, kappa: float = 0.0,
    space: Sequence[tuple[int, int]] = (), importance: bool = False, box: str = "tanh", target: Tensor | None = None,
    trace: Progress | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """ZOO: coordinate descent on the objective, `batch` random coordinates of v at a time, with

        ĝ_i = (f(v + h e_i) − f(v − h e_i)) / 2h,     ĥ_i = (f(v + h e_i) − 2 f(v) + f(v − h e_i)) / h²

    adam    each coordinate by Adam, with its own moments and count     newton    v_i ← v_i − lr ĝ_i / ĥ_i

    space       ((k, side), …): from iteration k on, v is a map of `side` rows that is enlarged to the image; larger
                ones begin where the smaller has come to. Without it v has the image's size.
    importance  choose coordinates by the largest change so far in the eighth of the side around them, looked at anew
                in each iteration (in the authors' code, only when the space grows)
    c           is changed after every `switch` iterations (`reweigh`). The authors start again from x with each c.
    Returned is the nearest adversarial v that was asked about, not counting the probes around it.
    Cost: 2 · batch + 1 forward passes an iteration, `max_queries` at most.
    Source: Chen et al., ZOO, AISec 2017, algorithms 1 to 3, and section 3.4 to 3.6.
    """
    if solver not in ("adam", "newton"):
        raise ValueError(f"solver must be 'adam' or 'newton', not {solver!r}")
    schedule = dict(space)
    live, now = Live(model, x, Goal(y, target), generator, trace), sides(schedule.get(0), x)
    begin(live, x.new_zeros(len(x), x.shape[1] * now[0] * now[1]), c, box, max_queries)
    k = 0
    while len(live):
        if k and k in schedule:
            now, before = sides(schedule[k], x), now
            live.v = _grown(live.v, before, now, x.shape[1])
            live.m, live.u, live.t = (torch.zeros_like(live.v) for _ in range(3))
        value = at_v(live, boxed(live.w, enlarged(live.v, now, x), box), kappa)
        pairs = min(batch, live.v.shape[1], (max_queries - int(live.asked.max()) - 1) // 2)
        if pairs < 1:
            break
        at = _chosen(live, pairs, now, x.shape[1], importance)
        g, curvature = _differences(live, value, at, h, lambda v, w, now=now: boxed(w, enlarged(v, now, x), box), kappa)
        if solver == "newton":
            curvature = torch.where(curvature < 0, 1.0, curvature.clamp_min(LEAST_CURVATURE))
        move = adam_step(live, g, at, lr) if solver == "adam" else lr * g / curvature
        live.v = live.v.scatter_add(1, at, -move)
        if box == "clip" and now == x.shape[2:]:
            live.v = torch.minimum(torch.maximum(live.v, -live.x.flatten(1)), 1 - live.x.flatten(1))
        k += 1
        if k % switch == 0:
            reweigh(live)
    return live.found.x_adv


def _chosen(live: Live, count: int, space: tuple[int, int], channels: int, importance: bool) -> Tensor:
    """`count` different coordinates for each image, (n, count): the largest of log p_i + Gumbel noise are a draw of so
    many, one after the other, with probabilities ∝ p."""
    keys = -(-uniform(live.v, live.draws, TINY, 1 - TINY).log()).log()
    if importance:
        change = live.v.view(len(live), channels, *space).abs()
        size = max(1, max(space) // 8)
        near = F.max_pool2d(change, size, 1, size // 2)[..., :space[0], :space[1]].flatten(1)
        most = near.amax(1, keepdim=True)
        keys = keys + torch.where(most > 0, near.maximum(RARE * most) / most.clamp_min(TINY), 1.0).log()
    return keys.topk(count, 1).indices


def _differences(live: Live, value: Tensor, at: Tensor, h: float, image: Any, kappa: float) -> tuple[Tensor, Tensor]:
    """The first and second differences along the coordinates `at`, (n, B) each, a few coordinates at a time."""
    n, found = len(live), []
    each = torch.arange(n, device=at.device)
    for part in at.split(max(1, 128 // n), 1):
        many = part.shape[1]
        of, where = each.repeat_interleave(2 * many), torch.cat([part, part], 1).flatten()[:, None]
        shift = torch.tensor([h] * many + [-h] * many, dtype=value.dtype, device=value.device).repeat(n)[:, None]
        points = live.v[of].scatter_add_(1, where, shift)
        found.append(losses(live, image(points, live.w[of]), of, kappa)[0].view(n, 2, many))
    up, down = torch.cat(found, 2).unbind(1)
    rise, bend = up - down, up - 2 * value[:, None] + down
    # A difference that rounding could make is none: Adam would make a whole step of it.
    rounding = ROUNDINGS * torch.finfo(value.dtype).eps * value.abs()[:, None]
    return torch.where(rise.abs() > rounding, rise, 0) / (2 * h), torch.where(bend.abs() > rounding, bend, 0) / h**2


def _grown(v: Tensor, before: tuple[int, int], now: tuple[int, int], channels: int) -> Tensor:
    maps = v.view(len(v), channels, *before)
    return F.interpolate(maps, now, mode="bilinear", align_corners=True).flatten(1)


@per_image
def autozoom(
    model: nn.Module, x: Tensor, y: Tensor, *, space: int | nn.Module | None = None, q: int = 4,
    max_queries: int = 5000, lr: float = 0.01, c: float = 1.0, switch: int = 100, kappa: float = 0.0,
    box: str = "tanh", target: Tensor | None = None, trace: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """AutoZOOM: all coordinates at once, along random directions u of the unit sphere in a small attack space,

        ĝ = (d/q) Σ_j (f(v + β u_j) − f(v)) / β · u_j,     β = 1/d,     d = dim v,

    by Adam; with a single direction until the first success of an image, and with `q` from then on, for its distance.

    space   the side of a map v that is enlarged bilinearly (AutoZOOM-BiLIN; None: half the image's), or a decoder: a
            module from codes (n, *decoder.shape) to images, as `kit.models.load("autozoom/digits").decoder` is
            (AutoZOOM-AE), in evaluation mode. The change is decoder(v) − decoder(0), and so begins at x; in the
            authors' code it does not.
    c       is changed after every `switch` iterations (`reweigh`); Adam begins anew then and at the first success.
    Returned is the nearest adversarial v that was asked about, not counting the probes around it.
    Cost: 2 forward passes an iteration, q + 1 after the first success, `max_queries` at most.
    Source: Tu et al., AutoZOOM, AAAI 2019, algorithm 1, equations 4 to 6; β as in their code, where the scale of ĝ is
    another, which Adam does not see.
    """
    live = Live(model, x, Goal(y, target), generator, trace)
    delta, dimensions = _space(space, x)
    begin(live, x.new_zeros(len(x), dimensions), c, box, max_queries)
    f, at = penalised(live, delta, box, kappa, switch)
    live.q, live.price, live.succeeded = torch.ones_like(live.rows), torch.ones_like(live.rows), live.hit
    h, everywhere = dimensions**-1.5, torch.arange(dimensions, device=x.device)  # β u, for a u as long as √d

    def ask():
        value, done = at()
        first = live.hit & ~live.succeeded
        live.succeeded = live.succeeded | first
        live.q = torch.where(first, q, live.q)
        live.m, live.u, live.t = (torch.where(first[:, None], 0, s) for s in (live.m, live.u, live.t))
        return value, done

    def rule(g):
        return live.v - adam_step(live, g, everywhere.expand_as(live.v), lr)

    with borrowed(cast(Any, space), x):
        return follow(live, ask, lambda: estimate(live, f, "sphere", q, h, live.value), rule, max_queries)


def _space(space: int | nn.Module | None, x: Tensor) -> tuple[Any, int]:
    """The change D(v) of the image, and the dimension of v."""
    if not isinstance(space, nn.Module):
        size = sides(max(1, x.shape[2] // 2) if space is None else space, x)
        return lambda v: enlarged(v, size, x), x.shape[1] * size[0] * size[1]
    if not hasattr(space, "shape"):
        raise TypeError("a decoder must say in `shape` what its codes are like, without the batch axis: set it")
    check_fits(space, x)
    shape: tuple[int, ...] = tuple(cast(Any, space.shape))
    with borrowed(space, x), torch.no_grad():
        still = space(x.new_zeros(1, *shape))
    if still.shape[1:] != x.shape[1:]:
        raise ValueError(f"the decoder makes images of {tuple(still.shape[1:])}, and these are {tuple(x.shape[1:])}")

    def delta(v: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([space(part.view(-1, *shape)) for part in v.split(256)]) - still

    return delta, int(torch.tensor(shape).prod())
