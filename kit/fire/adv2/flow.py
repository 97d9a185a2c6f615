"""ADV² by flows: pixels are moved instead of changed. Symbols as in `kit.fire.adv2` and `kit.attacks.spatial`."""
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.spatial import START, unevenness, warp
from kit.core import Goal, Live, asking, leaf, per_image, smooth_relu, uniform
from kit.core.seeding import Source
from kit.explain.mask import Descent
from kit.fire.adv2.descent import EVERY, Explain, check_moves, keep, map_distance, wanted


@per_image
def adv2_flow(
    model: nn.Module, x: Tensor, target: Tensor, explain: Explain, *, map_target: Tensor | None = None,
    tau: float = 5e-4, lr: float = 0.02, warm: int = 60, steps: int = 150, lam: float = 100.0, ramp: float = 10.0,
    smoothing: float = 0.05, sure: float = 0.5, smooth: float | None = 1e-4, inner: int | None = None, solve: int = 100,
    every: int = EVERY, generator: Source = None,
) -> Tensor:
    """stAdv-based ADV²: x' = x(p + f(p)), and Adam on the flow f (N, 2, H, W), from U(−0.1, 0.1) pixels, minimises

        ℓ_prd(f(x'), t) + τ L_flow(f) + λ ℓ_int(g(x'), m),     L_flow the sum of `kit.attacks.spatial.unevenness`,

    without the last term in the first `warm` steps. No ball bounds x': no colour is new, and τ keeps the flow even. The
    other arguments are those of `adv2`, and so is what is kept, over both stages where the map allows it.

    every    the true map is looked at in so many steps of the second stage, and at the end
    inner    for `kit.explain.mask`, whose map is itself the end of a descent: in each step of the second stage the mask
             follows x' by `inner` steps of that, the last with its graph, and at each look it is solved anew, by
             `solve` steps, as in `adv2_mask`. None for all other explainers. Let every=15 and smooth=None with it

    Their code: lr 0.01, τ = 0.0005 and 200 and 600 steps, on images of 224 pixels.
    Cost: a forward and a backward pass a step, and one more; in the second stage also an explanation with its graph, a
    backward pass through that, and an explanation in every fifth step.
    Source: the paper (alternative attack framework), and the authors' code.
    """
    if warm < 0 or not tau >= 0 or not 0 <= smoothing < 1 or not 0 <= sure < 1 or not ramp > 0:
        raise ValueError("warm and tau must be 0 or more, smoothing and sure lie in [0, 1), and ramp be more than 0, "
                         f"not {warm}, {tau}, {smoothing}, {sure} and {ramp}")
    if every < 1:
        raise ValueError(f"every must be 1 or more, not {every}")
    live = Live(model, x, Goal(target, target), generator)

    follower, bent = Descent(x), partial(smooth_relu, smooth) if smooth else nullcontext

    def shown(v: Tensor, classes: Tensor) -> Tensor:
        nonlocal follower
        follower = Descent(v)
        with asking(model, live.rows):
            return explain(model, v, classes, **({"state": follower, "steps": solve} if inner else {}))

    def ahead(v: Tensor) -> Tensor:
        follows = {"state": follower, "steps": inner, "unroll": 1} if inner else {}
        with asking(model, live.rows):
            return explain(model, v, target, create_graph=True, **follows)

    m = wanted(live, map_target, shown)
    flow = uniform(x[:, :1].expand(-1, 2, -1, -1), live.draws, -START, START)
    for k in range(-warm, steps):
        flow = leaf(flow)
        with bent():
            v = warp(x, flow)
            z = live.ask(v)
            live.lead(z, flow)  # looks once whether the answer moves with the flow: the other terms would hide it
            loss = F.cross_entropy(z, target, reduction="none", label_smoothing=smoothing) + tau * unevenness(flow)
        if k >= 0 and k % every == 0:
            keep(live, v.detach(), z.detach()[None], map_distance(shown(v.detach(), target), m), sure)
        if k >= 0:
            with bent():
                off = map_distance(ahead(v), m)
            if k == 0:
                check_moves(off, v)
            loss = loss + lam * ramp ** ((k + 1) / steps - 1) * off
        flow = live.adam(flow, live.grad(loss, flow), lr)
    with torch.no_grad():
        v = warp(x, flow)
        z = live.ask(v)
    keep(live, v, z[None], map_distance(shown(v, target), m), sure)
    return live.found.x_adv
