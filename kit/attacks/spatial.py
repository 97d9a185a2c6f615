"""Attacks that move pixels instead of changing them: x' shows at each place what x shows nearby.

    x'(p) = x(p + f(p)),     f a flow (N, 2, H, W) in pixels, down and across; between the pixels x is bilinear

No colour is new, so that no norm of x' − x says how far x' is from x; how uneven the flow is says it better.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Goal, Live, leaf, per_image, uniform

FLAT = 1e-8  # under the root, which has no slope at 0 (their code)
START = 0.1  # in pixels: at f = 0 the bilinear image has a kink (the code of ADV²)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """x(p + f(p)), (N, C, H, W), bilinear; beyond the edge x goes on as it ends. A flow of whole pixels is exact."""
    h, w = x.shape[2:]
    rows = torch.arange(h, device=x.device, dtype=x.dtype)[:, None] + flow[:, 0]
    columns = torch.arange(w, device=x.device, dtype=x.dtype) + flow[:, 1]
    place = torch.stack([2 * columns / max(w - 1, 1) - 1, 2 * rows / max(h - 1, 1) - 1], 3)
    return F.grid_sample(x, place, mode="bilinear", padding_mode="border", align_corners=True).clamp(0, 1)


def unevenness(flow: Tensor) -> Tensor:
    """L_flow = Σ_p Σ_{q next to p} ‖f(p) − f(q)‖₂, over the four neighbours of each pixel, (N,): 0 for a translation.

    Each pair counts twice. Source: Xiao et al. 2018, equation 4. (The code of ADV² takes the diagonal neighbours.)
    """
    down, across = flow[:, :, 1:] - flow[:, :, :-1], flow[:, :, :, 1:] - flow[:, :, :, :-1]
    lengths = [(d.square().sum(1) + FLAT).sqrt().flatten(1).sum(1) for d in (down, across)]
    return 2 * (lengths[0] + lengths[1])


@per_image
def stadv(
    model: nn.Module, x: Tensor, y: Tensor, *, lam: float = 0.05, kappa: float = 0.0, steps: int = 200,
    lr: float = 0.05, target: Tensor | None = None, with_flow: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Spatially transformed adversarial examples: Adam on the flow, from U(−0.1, 0.1) pixels, minimises

        max(κ − lead, 0) + λ L_flow(f),     lead = max_{j≠y} z_j − z_y,  or  z_t − max_{j≠t} z_j,

    L_flow the sum of `unevenness`. Of the images met on the way that lead by more than κ, the one of the most even
    flow is returned, and x where there is none; `with_flow` also returns the flow (N, 2, H, W). (The paper's λ, its τ,
    is 0.05; it minimises by L-BFGS.)
    Cost: `steps` forward and backward passes, and a forward pass.
    Source: Xiao et al., Spatially transformed adversarial examples, ICLR 2018, section 3.
    """
    live = Live(model, x, Goal(y, target), generator)
    with torch.no_grad():
        live.nearest(x, torch.zeros_like(live.found.score), live.goal.reached(live.ask(x), kappa))
    live.drop(live.found.reached[live.rows])
    flow = uniform(live.x[:, :1].expand(-1, 2, -1, -1), live.draws, -START, START)
    kept, least = x.new_zeros(len(x), 2, *x.shape[2:]), x.new_full((len(live),), torch.inf)
    for _ in range(steps if len(live) else 0):
        flow = leaf(flow)
        x_adv = warp(live.x, flow)
        z, uneven = live.ask(x_adv), unevenness(flow)
        reached = live.goal.reached(z, kappa)
        live.nearest(x_adv, uneven, reached)
        evener = reached & (uneven.detach() < least)
        least[evener] = uneven.detach()[evener]
        kept[live.rows[evener]] = flow.detach()[evener]
        loss = (kappa - live.lead(z, x_adv)).clamp_min(0) + lam * uneven
        flow = live.adam(flow, live.grad(loss, flow), lr)
    return (live.found.x_adv, kept) if with_flow else live.found.x_adv  # type: ignore[return-value]
