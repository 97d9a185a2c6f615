"""The Wasserstein attack: x' holds the mass of x, moved; its size is how much mass went how far.

A pixel's value is its mass. A plan π says how much of the mass of pixel i goes to the pixel at the offset o from it, in
the same channel and within a window:

    π ≥ 0,    Σ_o π_io = x_i,    x'_j = Σ_{i+o=j} π_io ≤ 1,    Σ_io c_o π_io ≤ ε Σ_i x_i

so that ε is what the mass of the image pays on average. Its unit is that of c, and the literature has three:

    "squared"      c = |o|²             squared pixels: Wong et al.
    "euclidean"    c = |o|              pixels: Wu et al.; ART's code with its p = 2
    "city"         c = |o₁| + |o₂|      pixels along rows and columns: ART's code with its p = 1

Where mass moves by one pixel they agree. Beyond that, of any plan, euclidean ≤ city ≤ squared ≤ r · euclidean, r the
longest offset of the window; so a ball of ε pixels lies in one of r ε squared pixels, and holds that of ε.
Every step is a plan, so that mass, box and ball hold without a clamp, which would lose mass and leave the ball.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import Goal, Live, check_images, cross_entropy, leaf, per_image
from kit.core.goal import Loss

COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": lambda down, across: down**2 + across**2,
    "euclidean": lambda down, across: (down**2 + across**2).sqrt(),
    "city": lambda down, across: down.abs() + across.abs(),
}
HALVINGS = {torch.float32: 28, torch.float64: 50}  # of an interval by bisection: to its rounding
FULL = 1e-6  # by how much rounding may take a pixel above 1
ROOM = 0.01  # what a full pixel sends back beyond its excess, so that the returns come to an end
RETURNS = 100  # times that mass is sent back
PRICE = 1.0  # of mass above 1 in a pixel, in max |∇ℓ|: what Frank–Wolfe's next plan pays to send more there
TOLERANCE = 1e-4  # of the budget: where Sinkhorn's iterations stop (their code)


class Moves:
    """Where the mass of images x (N, C, H, W) can go: M pixels that hold mass, K offsets of cost c (K,).

    `mass` (M,), `of` (M,) the image that a pixel belongs to, `to` (M, K) where it leads in the flattened images, and
    `inside` (M, K) whether that lies in the image. A plan is (M, K), and zero where it would lead outside.
    """

    def __init__(self, x: Tensor, window: int, cost: str):
        if cost not in COSTS:
            raise ValueError(f"cost must be one of {', '.join(COSTS)}, not {cost!r}")
        if not isinstance(window, int) or window < 3 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of pixels from 3 on, not {window!r}")
        (h, w), radius = x.shape[2:], window // 2
        reach = torch.arange(-radius, radius + 1, device=x.device)
        down, across = (d.flatten() for d in torch.meshgrid(reach, reach, indexing="ij"))
        self.x, self.cost, self.here = x.contiguous(), COSTS[cost](down.to(x), across.to(x)), window**2 // 2
        at = self.x.flatten().nonzero()
        self.mass, self.of = self.x.flatten()[at[:, 0]], at[:, 0] // x[0].numel()
        row, column = at // w % h + down, at % w + across
        self.inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        self.to = torch.where(self.inside, at + down * w + across, at)
        self.stay = torch.zeros_like(self.to, dtype=x.dtype)
        self.stay[:, self.here] = self.mass

    def at(self, v: Tensor, outside: float = 0.0) -> Tensor:
        """v (N, C, H, W) where the offsets lead, (M, K)."""
        return torch.where(self.inside, v.flatten()[self.to], outside)

    def image(self, plan: Tensor) -> Tensor:
        """x', (N, C, H, W): the mass that arrives."""
        arrived = plan.new_zeros(self.x.numel()).index_add_(0, self.to.flatten(), plan.flatten())
        return arrived.view_as(self.x)

    def total(self, values: Tensor) -> Tensor:
        """The sum over each image's pixels, (M,) → (N,)."""
        return values.new_zeros(len(self.x)).index_add_(0, self.of, values)

    def paid(self, plan: Tensor) -> Tensor:
        """Σ_io c_o π_io, (N,)."""
        return self.total(plan @ self.cost)


def within(moves: Moves, plan: Tensor, budget: Tensor) -> Tensor:
    """A plan near this one, which moves all of x, that pays at most `budget` (N,) and overfills no pixel.

    Where it pays too much it is mixed with the plan that moves nothing. What a pixel cannot hold goes back to where it
    came from, from all senders alike, which costs less and not more, until all are at 1 or below. An image where
    that does not end stays as it is.
    """
    share = (budget / moves.paid(plan).clamp_min(torch.finfo(plan.dtype).tiny)).clamp_max(1)[moves.of, None]
    plan = moves.stay + share * (plan - moves.stay)
    for _ in range(RETURNS):
        image = moves.image(plan)
        if float(image.amax()) <= 1 + FULL:
            return plan
        kept = torch.zeros_like(image).flatten().index_add_(0, moves.to[:, moves.here], plan[:, moves.here])
        arrived = (image - kept.view_as(image)).clamp_min(torch.finfo(plan.dtype).tiny)
        excess = torch.where(image > 1 + FULL, (image - 1 + ROOM) / arrived, 0.0).clamp_max(1)
        back = plan * moves.at(excess)
        back[:, moves.here] = 0
        plan = plan - back
        plan[:, moves.here] += back.sum(1)
    return torch.where((moves.image(plan).flatten(1).amax(1) > 1 + FULL)[moves.of, None], moves.stay, plan)


def best_plan(moves: Moves, g: Tensor, budget: Tensor) -> Tensor:
    """The plan that maximises ⟨g, x'⟩ among those that pay at most `budget` (N,), where pixels may hold any mass.

        max_π ⟨g, x'⟩ = min_{λ≥0}  λ · budget + Σ_i x_i max_o (g_{i+o} − λ c_o)

    λ is bisected. The plans on its two sides pay too much and too little, and their mixture pays the budget.
    """
    gain, costs = moves.at(g, outside=-torch.inf), moves.cost.unique()
    best = torch.stack([gain[:, moves.cost == c].amax(1) for c in costs], 1)  # of the offsets that cost the same

    def level(lam: Tensor) -> Tensor:
        return (best - lam[moves.of, None] * costs).argmax(1)

    low, high = torch.zeros_like(budget), 2 * (g.amax((1, 2, 3)) - g.amin((1, 2, 3))) / costs[1]
    for _ in range(HALVINGS.get(budget.dtype, 28)):
        lam = (low + high) / 2
        dear = moves.total(moves.mass * costs[level(lam)]) > budget
        low, high = torch.where(dear, lam, low), torch.where(dear, high, lam)
    more, less = level(low), level(high)
    paid, least = (moves.total(moves.mass * costs[k]) for k in (more, less))
    share = ((budget - least) / (paid - least).clamp_min(torch.finfo(budget.dtype).tiny)).clamp(0, 1)[moves.of]
    plan = torch.zeros_like(moves.stay)
    for k, part in ((more, share), (less, 1 - share)):
        offset = torch.where(moves.cost == costs[k][:, None], gain, -torch.inf).argmax(1, keepdim=True)
        plan.scatter_add_(1, offset, (part * moves.mass)[:, None])
    return plan


def project_plan(moves: Moves, plan: Tensor, budget: Tensor) -> Tensor:
    """The nearest plan to this one, by Σ (π − plan)², that moves x for at most `budget` (N,), where pixels may hold any
    mass: exactly, but for the bisection's rounding.

    For a given λ a pixel's row is the projection of plan_i − λ c onto {π ≥ 0, Σ_o π_io = x_i}, by sorting; λ is the
    least that fits the budget. Source: Wu et al. 2020, section 4 (dual projection).
    """
    given = torch.where(moves.inside, plan, -torch.inf)
    rank = torch.arange(1, len(moves.cost) + 1, device=plan.device)

    def rows(lam: Tensor) -> Tensor:
        v = given - lam[moves.of, None] * moves.cost
        ordered = v.sort(1, descending=True).values
        level = (ordered.cumsum(1) - moves.mass[:, None]) / rank
        last = (ordered > level).sum(1, keepdim=True).clamp_min(1) - 1
        return (v - level.gather(1, last)).clamp_min(0)

    low = torch.zeros_like(budget)
    ahead = (given - given[:, moves.here, None]).amax(1) + moves.mass  # where λ c is more, all of it stays: c ≥ 1
    high = torch.zeros_like(budget).scatter_reduce_(0, moves.of, ahead, "amax")
    dear = moves.paid(rows(low)) > budget
    high = torch.where(dear, high, low)
    for _ in range(HALVINGS.get(budget.dtype, 28) if bool(dear.any()) else 0):
        lam = (low + high) / 2
        dear = moves.paid(rows(lam)) > budget
        low, high = torch.where(dear, lam, low), torch.where(dear, high, lam)
    return rows(high)


def omega(v: Tensor) -> Tensor:
    """w with w + log w = v: Lambert's W of exp(v), by Newton, without the exponential that would overflow."""
    w = torch.where(v > 1, v - v.clamp_min(1).log(), v.clamp_max(1).exp() / (1 + v.clamp_max(1).exp()))
    tiny = torch.finfo(v.dtype).tiny
    for _ in range(6):
        w = (w * (1 + v - w.clamp_min(tiny).log()) / (1 + w)).clamp_min(tiny)
    return torch.where(v.isneginf(), 0.0, w)


def sinkhorn_plan(
    moves: Moves, y: Tensor, budget: Tensor, *, sharpness: float = 1000.0, inner: int = 400,
) -> Tensor:
    """The plan whose image x' is nearest to y, but for an entropy:

        min_π  λ/2 ‖x' − y‖² + Σ π log π,      Σ_o π_io = x_i,  Σ c π ≤ budget,  λ = `sharpness`

    with x, y and the budget divided by the mass of x, as in the paper. The larger λ, the nearer to the projection
    onto the ball, and the more iterations, `inner` at most. Rows are exact; the cost is within `TOLERANCE`.
    Source: Wong et al., Wasserstein adversarial examples via projected Sinkhorn iterations, ICML 2019, algorithm 2.
    """
    whole = moves.total(moves.mass).clamp_min(torch.finfo(y.dtype).tiny).double()
    mass, target, bound = moves.mass.double() / whole[moves.of], y.double() / whole[:, None, None, None], budget / whole
    psi, beta = torch.ones_like(whole), torch.zeros_like(target)
    cost, going = moves.cost.double(), torch.ones_like(whole, dtype=torch.bool)
    for k in range(inner + 1):
        kernel = (moves.at(-beta, -torch.inf) - psi[moves.of, None] * cost).softmax(1)
        plan = mass[:, None] * kernel
        if k == inner or not bool(going.any()):
            break
        paid = moves.total(plan @ cost)
        arrived = moves.image(plan)
        log_arrived = arrived.log() + beta
        new = omega(np.log(sharpness) + sharpness * target + log_arrived) - sharpness * target
        step = (paid - bound) / moves.total(plan @ cost**2).clamp_min(1e-30)
        after = (psi + step).clamp_min(0)
        done = ((paid - bound).abs() <= TOLERANCE * bound) | ((psi == 0) & (paid <= bound))
        reachable = arrived > 0
        gap = torch.where(reachable, arrived - beta / sharpness - target, 0.0).abs().flatten(1).sum(1)
        going = going & ~(done & (gap <= TOLERANCE))
        beta = torch.where(going[:, None, None, None] & reachable, new, beta)
        psi = torch.where(going, after, psi)
    return (plan * whole[moves.of, None]).to(y)


RULES = ("frank-wolfe", "projected", "sinkhorn")


@per_image
def wasserstein(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, steps: int = 30, step: float = 0.1, window: int = 5,
    cost: str = "squared", by: str = "frank-wolfe", sharpness: float = 1000.0, inner: int = 400,
    target: Tensor | None = None, loss: Loss = cross_entropy,
) -> Tensor:
    """Maximises ℓ over the images that the mass of x can become for `eps` on average, in the unit of `cost`.

        "frank-wolfe"   π ← π + 2/(t+2) (s − π), s the plan that gains most along ∇ℓ less a price on full pixels
        "projected"     π ← nearest plan to π + step ∇_π ℓ / max |∇ℓ|, exactly (`project_plan`)
        "sinkhorn"      x' ← near x' + step sign ∇ℓ, but for an entropy (`sinkhorn_plan`, with `sharpness` and `inner`)

    After each step a pixel that would be brighter than 1 sends back what it cannot hold (`within`): with that the plan
    fits, and is no longer exactly the nearest or the best. The returned image has the mass of x in each channel, and
    lies in box and ball.
    `window` is the side of the square that a pixel's mass stays in. `step` is in the values of pixels. The best image
    on the way is kept: one that reaches the goal first, then the one of the greatest ℓ.
    Cost: `steps` forward and backward passes and a forward pass, and of memory window² numbers for each pixel.
    Source: Wong et al., ICML 2019 (Sinkhorn; their code clamps, and so loses mass); Wu et al., Stronger and faster
    Wasserstein adversarial attacks, ICML 2020 (projection and Frank–Wolfe over plans; they solve Frank–Wolfe's step
    with an entropy, here it is solved by bisection).
    """
    if by not in RULES:
        raise ValueError(f"by must be one of {', '.join(RULES)}, not {by!r}")
    live, moves = Live(model, x, Goal(y, target)), Moves(x, window, cost)
    budget = eps * moves.total(moves.mass)
    wanted, plan, x_adv = moves.stay, moves.stay, x
    for t in range(steps):
        v = leaf(x_adv)
        z = live.ask(v)
        value = live.goal.gain(z, loss)
        live.best(x_adv, value, live.goal.reached(z))
        g = live.grad(value, v)
        size = g.abs().amax((1, 2, 3), keepdim=True)
        if by == "frank-wolfe":
            price = PRICE * size * (moves.image(wanted) - 1).clamp_min(0)
            plan = wanted = wanted + 2 / (t + 2) * (best_plan(moves, g - price, budget) - wanted)
        elif by == "projected":
            g = g / size.clamp_min(torch.finfo(x.dtype).tiny)
            plan = project_plan(moves, plan + step * moves.at(g), budget)
        else:
            plan = sinkhorn_plan(moves, x_adv + step * g.sign(), budget, sharpness=sharpness, inner=inner)
        plan = within(moves, plan, budget)
        x_adv = moves.image(plan).clamp(0, 1)  # of rounding: no more than FULL
    with torch.no_grad():
        z = live.ask(x_adv)
    live.best(x_adv, live.goal.gain(z, loss), live.goal.reached(z))
    return live.found.x_adv


def transport(x: Tensor, x_adv: Tensor, *, window: int | None = None, cost: str = "squared") -> Tensor:
    """W(x, x'), (N,): the least that the mass of x must pay on average to become x', by linear programming.

    Each channel of x' is scaled to the mass of that of x first, since a plan moves mass and makes none: an attack that
    changes the mass itself has a size that W does not see. `window` None lets mass go anywhere; a plan that needs more
    than a window has, or a channel without mass, gives inf. A measure: one programme for each image, window² variables
    for each pixel that holds mass, seconds at 28 × 28.
    """
    check_images(x)
    check_images(x_adv)
    if x.shape != x_adv.shape:
        raise ValueError(f"the images must have the same shape, not {tuple(x.shape)} and {tuple(x_adv.shape)}")
    window = max(3, 2 * max(x.shape[2:]) - 1) if window is None else window
    pairs = zip(x.detach().cpu().double(), x_adv.detach().cpu().double(), strict=True)
    found = [_programme(Moves(one[None], window, cost), other[None]) for one, other in pairs]
    return torch.tensor(found, dtype=x.dtype, device=x.device)


def _programme(moves: Moves, end: Tensor) -> float:
    """W of one image. What arrives may miss x' by rounding, at a price above any way's."""
    from scipy import sparse
    from scipy.optimize import linprog

    before, after = moves.x.sum((2, 3), keepdim=True), end.sum((2, 3), keepdim=True)
    if bool(((before == 0) != (after == 0)).any()):
        return float("inf")
    if not len(moves.mass):
        return 0.0
    end = (end * before / after.clamp_min(1e-30)).flatten()
    pixel, offset = (moves.inside & (end[moves.to] > 0)).nonzero(as_tuple=True)
    goes, variables, cost = moves.to[pixel, offset].numpy(), np.arange(len(pixel)), moves.cost[offset].numpy()
    ones, used = np.ones(len(pixel)), (end > 0).numpy()
    left = sparse.csr_array((ones, (pixel.numpy(), variables)), shape=(len(moves.mass), len(pixel)))
    arrives = sparse.csr_array((ones, (goes, variables)), shape=(len(end), len(pixel)))[used]
    miss = sparse.identity(int(used.sum()))
    none = sparse.csr_array((len(moves.mass), 2 * int(used.sum())))
    equal = sparse.block_array([[left, none], [arrives, sparse.hstack([miss, -miss])]])
    price = np.concatenate([cost, np.full(none.shape[1], 1e3 * float(moves.cost.max()))])
    solved = linprog(price, A_eq=equal, b_eq=np.concatenate([moves.mass.numpy(), end.numpy()[used]]), method="highs")
    whole = float(moves.mass.sum())
    if not solved.success or solved.x[len(pixel):].sum() > 1e-4 * whole:
        return float("inf")
    return float(cost @ solved.x[:len(pixel)]) / whole
