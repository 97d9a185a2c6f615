"""Lower bounds of z_y − z_k over all that an attack may do: intervals, Fast-Lin, CROWN, and CROWN with fitted slopes.

    margin_k = min { z_y(x') − z_k(x') :  ‖x' − x‖ ≤ eps,  x' in [0, 1] }  ≥  what is returned at k

An image whose least margin over k ≠ y is above zero is classified y whatever is done to it within the ball: proved.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.certify.bounds.domains import ClippedBall
from kit.certify.bounds.layers import Layers
from kit.certify.bounds.relaxed import Lines, Relaxed, least_by_intervals
from kit.core import per_image


def margins(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """C (N, K, K) with C z = z_y − z_k in row k, which is zero for k = y."""
    own = F.one_hot(y, classes)[:, None]
    return (own - torch.eye(classes, dtype=own.dtype, device=y.device)).to(like)


def certified(bounds: Tensor, y: Tensor) -> Tensor:
    """Whether all bounds (N, K) of z_y − z_k, k ≠ y, are above zero, beyond what rounding may do: (N,) bool."""
    others = bounds.scatter(1, y[:, None], torch.inf).amin(1)
    return others > 100 * torch.finfo(bounds.dtype).eps * (1 + bounds.abs().amax(1))


@per_image
def _bounded(model, x, y, *, eps, norm, method, listed, intermediate=None, intervals="choose") -> Tensor:
    """The bounds of a chunk; `listed` is a call's own list, in which the first chunk leaves the network's `Layers`."""
    if not listed:
        listed.append(Layers(model, x))
    layers, ball = listed[0], ClippedBall(x, eps, norm)
    with torch.no_grad():
        C = margins(y, layers.classes, x)
        if method == "ibp":
            return least_by_intervals(layers, ball, C)
        return Relaxed(layers, ball, method, intermediate=intermediate, intervals=intervals).least(C)


def ibp(model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf") -> Tensor:
    """Interval bound propagation: lower bounds (N, K) of z_y − z_k.

    Middle and radius of every value go up through the layers, μ' = W μ + b, r' = |W| r; ReLU and poolings act on the
    ends μ ± r; the last layer is taken together with z_y − z_k. An l2 or l1 ball enters as the box around it.
    Cost: two forward passes, and K backward passes of the last layer.
    Source: Gowal et al., On the effectiveness of interval bound propagation, 2018.
    """
    return _bounded(model, x, y, eps=eps, norm=norm, method="ibp", listed=[])


def fast_lin(model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf") -> Tensor:
    """Fast-Lin: lower bounds (N, K) of z_y − z_k, by two parallel lines at every undecided ReLU.

    w h ≤ max(h, 0) ≤ w h + t with w = u/(u − l), pulled back to the input; so are the bounds l, u before each ReLU.
    The same number as the dual of Wong and Kolter (2018) and as DeepZ.
    Cost: K backward passes, and two for each ReLU, up to it.
    Source: Weng et al., Towards fast computation of certified robustness for ReLU networks, ICML 2018; max pooling and
    residual sums as Boopathy et al., CNN-Cert, AAAI 2019.
    """
    return _bounded(model, x, y, eps=eps, norm=norm, method="fast_lin", listed=[], intervals="unused")


def crown(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", intermediate: str = "crown",
) -> Tensor:
    """CROWN: lower bounds (N, K) of z_y − z_k. As `fast_lin`, but the line below a ReLU is 0 or h, the nearer one.

    intermediate="ibp" takes intervals before the ReLUs (CROWN-IBP, Zhang et al. 2020): cheaper, looser.
    Cost: K backward passes, and two for each ReLU that intervals leave undecided, up to it; with
    intermediate="ibp" two forward and K backward passes.
    Source: Zhang et al., Efficient neural network robustness certification with general activation functions, 2018.
    """
    return _bounded(model, x, y, eps=eps, norm=norm, method="crown", listed=[], intermediate=intermediate)


@per_image
def alpha_crown(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", steps: int = 20,
    lr: float = 0.1,
) -> Tensor:
    """CROWN with the slopes of the lines below fitted: max over s in [0, 1] of the bound, for each z_y − z_k its own.

    Any slope s in [0, 1] is sound, so that climbing is free: `steps` of Adam from CROWN's slopes, the best bound kept.
    The bounds before the ReLUs stay those of CROWN, as does the line above. Never looser than `crown`.
    Cost: as `crown`, and `steps` times K forward and backward passes.
    Source: Xu et al., Fast and complete, ICLR 2021 (α-CROWN).
    """
    layers = Layers(model, x)
    with torch.no_grad():
        net = Relaxed(layers, ClippedBall(x, eps, norm), "crown", intervals="choose")
        C = margins(y, layers.classes, x)
        first = net.least(C)
    undecided = {at: lines for at, lines in net.lines.items() if isinstance(lines, Lines)}
    parts = []
    for rows, start in zip(C.split(net._rows(), 1), first.split(net._rows(), 1), strict=True):
        alpha = [lines.s[:, None].repeat(1, rows.shape[1], *[1] * (lines.s.dim() - 1)).requires_grad_()
                 for lines in undecided.values()]
        optimiser, best = torch.optim.Adam(alpha, lr=lr, eps=max(1e-8, torch.finfo(x.dtype).tiny)), start
        for _ in range(steps):
            for slopes, (at, lines) in zip(alpha, undecided.items(), strict=True):
                open_ = ((lines.w > 0) & (lines.w < 1))[:, None]
                net.lines[at] = Lines(lines.w, lines.t, torch.where(open_, slopes, lines.s[:, None]))
            bound = net.least(rows)
            best = torch.maximum(best, bound.detach())
            for slopes, g in zip(alpha, torch.autograd.grad(-bound.sum(), alpha), strict=True):
                slopes.grad = g
            optimiser.step()
            with torch.no_grad():
                for slopes in alpha:
                    slopes.clamp_(0, 1)
        parts.append(best)
    return torch.cat(parts, 1)
