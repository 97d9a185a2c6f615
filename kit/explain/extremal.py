"""Extremal perturbations: of all smooth masks of one area, the one that keeps the score of the class highest.

    m (N, h, w)    one number in [0, 1] for each node of a grid of `cell` pixels
    M (N, H, W)    its smooth max-convolution: M(u) = smax_i K(|u − u_i|/σ) m_i, over the nodes near u,
                   K(r) = exp(−2 (r − ½)₊²), smax_i w_i = Σ_i w_i e^(20 w_i) / Σ_i e^(20 w_i)
    Φ(M)           the logit z_c of the image where M = 1, of the strongest of `levels` blurs where M = 0, and of the
                   blurs between in between

The lecture's argmax Φ(m ⊗ x) over the masks of area(m) = a is that program.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Trace, check_images, laid_out, logits, per_image
from kit.core.loop import Memory, Rule
from kit.explain.gradient import score
from kit.explain.mask import climb, gaussian_blur, pixels

# TorchRay's, on 224 × 224 pixels: nodes every 7 pixels, σ = 21 and 20, 8 blurs, 800 steps.
SIDE, CELL, SIGMA, BLUR, LEVELS = 224, 7, 21, 20, 8
COLDNESS, MOMENTUM = 20.0, 0.9
EQUAL = 1e-5  # pixels of a mask that are no farther apart count as equal
LARGEST = 60.0  # of ln(growth^steps), in single precision
VARIANTS = ("preserve", "delete", "both")


@per_image
def extremal(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, area: float | Tensor = 0.1,
    variant: str = "preserve", reference: str = "blur", blur: float | None = None, cell: int | None = None,
    sigma: float | None = None, steps: int = 800, lr: float = 0.01, lam: float = 300.0, growth: float = 1.0035,
    flip: bool = True, spill: bool = False, unroll: int = 1, trace: Trace | None = None, create_graph: bool = False,
) -> Tensor:
    """Extremal perturbation: R = M of the given area (a share of the image, or one for each), in [0, 1].

        preserve    max_m  Φ(M) − λ_k mean_pixels (sort(M) − r_a)²,  r_a = 1 for the largest a of the pixels, else 0
        delete      the same of −Φ(1 − M)            both    of Φ(M) − Φ(1 − M)

    by `steps` steps of gradient ascent with momentum from m = 1, cut to [0, 1] after each; λ_k = `lam` · `growth`^k.

    reference    "blur", or "fade": between the image and black
    blur         σ of the strongest blur, pixels; None is 20 of 224, but at least 4
    cell, sigma    of the grid and of K, in pixels; None is 7 and 21 of 224, but at least 2 and 4
    flip         show every other image mirrored
    spill        as TorchRay: no m beyond the edge, and the area counts what M covers there too. Otherwise m is repeated
    create_graph    the graph goes through the last `unroll` steps and the blurs
    trace        gets the objective

    Cost: `steps` forward and backward passes ("both": twice as many). Memory does not grow with `steps`, but with
    `unroll` where create_graph asks for it.
    Source: Fong, Patrick and Vedaldi, Understanding deep networks via extremal perturbations and smooth masks, ICCV
    2019, section 3; constants as in their code (facebookresearch/TorchRay).
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, not {variant!r}")
    if sigma is not None and sigma <= 0:
        raise ValueError(f"sigma must be more than 0 pixels, not {sigma}")
    if steps * math.log(growth) > LARGEST:
        raise ValueError(f"growth={growth} makes the price of the area overflow in {steps} steps: lower one of them")
    areas = _checked_areas(area, x)
    side = min(x.shape[2:])
    cell = pixels("cell", min(side, round(_scaled(CELL, x, 2))) if cell is None else cell, 1, side)
    cover = SmoothMax(x, cell, _scaled(SIGMA, x, 4) if sigma is None else sigma, spill, create_graph)
    pyramid = blurs(x, reference, blur)
    if target is None:
        with torch.no_grad():
            target = model(x).argmax(1)
    wanted = target
    count = math.prod(cover.counted)
    left_out = (count * (1 - areas) + 0.01).long()  # rounding must not cost a pixel
    r = (torch.arange(count, device=x.device) >= left_out[:, None]).to(x.dtype)

    def objective(m: Tensor, k: int) -> Tensor:
        M, everywhere = cover(m)
        shown = {"preserve": [M], "delete": [1 - M], "both": [M, 1 - M]}[variant]
        image = torch.cat([at_level(pyramid, part) for part in shown])
        z = model(laid_out(image.flip(3) if flip and k % 2 == 0 else image))
        phi = score(z, wanted.repeat(len(shown))).unflatten(0, (len(shown), -1))
        gain = {"preserve": phi[0], "delete": -phi[0], "both": phi[0] - phi[-1]}[variant]
        return gain - lam * growth**k * missed_area(everywhere, r)

    m = climb(objective, x.new_ones(len(x), *cover.grid), damped(lr), {}, steps, unroll if create_graph else 0, trace)
    return cover(m)[0]


def extremal_curve(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, areas: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    **options,
) -> tuple[Tensor, Tensor]:
    """The family of areas: the masks M_a (N, A, H, W), and the logits z_c (N, A) of the images that show M_a alone.

    The smallest area whose logit is that of the image is the paper's extremal area a*. `options` are those of
    `extremal`. Cost: that of `extremal` for each area, and a forward pass.
    """
    check_images(x)
    if not isinstance(areas, Iterable) or len(areas) == 0:
        raise ValueError(f"areas must be several shares of the image, such as (0.05, 0.1), not {areas!r}")
    if "area" in options:
        raise TypeError("extremal_curve takes areas=(0.05, 0.1), several of them, and no area")
    wanted = logits(model, x).argmax(1) if target is None else target
    masks = [extremal(model, x, wanted, area=area, **options) for area in areas]
    look = {name: options[name] for name in ("reference", "blur") if name in options}
    scores = [score(logits(model, perturbed(x, M, **look)), wanted) for M in masks]
    return torch.stack(masks, 1), torch.stack(scores, 1)


def perturbed(x: Tensor, M: Tensor, reference: str = "blur", blur: float | None = None) -> Tensor:
    """The images x (N, C, H, W) where M (N, H, W) is 1, blurred or faded where it is 0: what `extremal` shows."""
    check_images(x)
    if M.dim() != 3 or len(M) not in (1, len(x)) or M.shape[1:] != x.shape[2:]:
        raise ValueError(f"M must be masks {(len(x), *x.shape[2:])}, one for each image, not {tuple(M.shape)}")
    M = M.expand(len(x), -1, -1).to(x)
    if not bool(((M >= 0) & (M <= 1)).all()):
        raise ValueError("M must lie in [0, 1]")
    return at_level(blurs(x, reference, blur), M)


def _checked_areas(area: Any, x: Tensor) -> Tensor:
    """The areas of the images (N,), in double precision. Raises ValueError or TypeError."""
    if isinstance(area, bool) or not isinstance(area, Real | Tensor):
        raise TypeError("area must be a number, or a tensor of one for each image, such as torch.tensor([0.1, 0.2]), "
                        f"not a {type(area).__name__}")
    areas = torch.as_tensor(area, dtype=torch.float64, device=x.device)
    if areas.shape not in ((), (1,), (len(x),)):
        raise ValueError(f"area must be a number, or a tensor (N,) of one for each image, not {tuple(areas.shape)}")
    if not bool(((areas > 0) & (areas < 1)).all()):
        raise ValueError(f"area must lie between 0 and 1, a share of the image, not {area}")
    return areas.expand(len(x))


def blurs(x: Tensor, reference: str, strongest: float | None) -> Tensor:
    """x under `LEVELS` blurs, or shades to black, from the strongest to none, (N, LEVELS, C, H, W)."""
    if reference not in ("blur", "fade"):
        raise ValueError(f"reference must be 'blur' or 'fade', not {reference!r}")
    strongest = _scaled(BLUR, x, 4) if strongest is None else strongest
    levels = torch.linspace(0, 1, LEVELS).tolist()
    return torch.stack([
        gaussian_blur(x, (1 - level) * strongest) if reference == "blur" else x * level for level in levels], 1)


def at_level(pyramid: Tensor, M: Tensor) -> Tensor:
    """Each pixel between the two levels of the pyramid (N, L, C, H, W) that its M in [0, 1] names, (N, C, H, W)."""
    place = M[:, None, None] * (pyramid.shape[1] - 1)
    below = place.detach().floor().long().clamp_max(pyramid.shape[1] - 2).expand(-1, -1, *pyramid.shape[2:])
    lower, upper = pyramid.gather(1, below), pyramid.gather(1, below + 1)
    return (lower + (place - below) * (upper - lower))[:, 0]


def missed_area(M: Tensor, r: Tensor) -> Tensor:
    """mean_pixels (sort(M) − r)², (N,). Which of equal pixels are kept is not decided by their place: each has the mean
    r of its equals as its aim, and a constant makes up for the difference. At m = 1 all of them are equal."""
    ordered = M.flatten(1).sort(1).values
    with torch.no_grad():
        new = F.pad(ordered.diff(dim=1) > EQUAL, (1, 0), value=True)
        first = ordered.where(new, 0).cummax(1).values  # in a chain of close pixels the last is not equal to the first
        new[:, 1:] |= ((ordered - first) / EQUAL).long().diff(dim=1) != 0
        group = new.long().cumsum(1) - 1
        size, total = (torch.zeros_like(r).scatter_add(1, group, v) for v in (torch.ones_like(r), r))
        aim = (total / size.clamp_min(1)).gather(1, group)
    return ((ordered - aim).square() + (r - aim).square()).mean(1)


class SmoothMax:
    """m (N, h, w) → M (N, H, W), and with the margin over which the area is counted (N, H', W')."""

    def __init__(self, x: Tensor, cell: int, sigma: float, spill: bool, twice: bool = False):
        self.size, self.cell, self.reach = x.shape[2:], cell, 1 + math.ceil(sigma / cell)
        self.grid = [math.ceil(n / cell) for n in self.size]
        self.margin = math.ceil(sigma / cell) if spill else 0  # in nodes
        self.counted = [(n + 2 * self.margin) * cell - cell + 1 for n in self.grid] if spill else list(self.size)
        node = torch.arange(-self.reach, self.reach + 1, device=x.device, dtype=x.dtype) * cell
        away = (torch.arange(cell, device=x.device, dtype=x.dtype) - node[:, None]).square()  # (nodes, pixels)
        distance = (away[:, None, :, None] + away[None, :, None, :]).sqrt() / sigma
        self.K = torch.exp(-2 * (distance - 0.5).clamp_min(0).square())  # (nodes, nodes, pixels, pixels)
        self.smax = smax if twice else _Smax.apply

    def __call__(self, m: Tensor) -> tuple[Tensor, Tensor]:
        # Without a margin the edge is repeated: zeros there would make M larger at the edge than inside for equal m.
        near = F.pad(m[:, None], [self.reach + self.margin] * 4, mode="constant" if self.margin else "replicate")[:, 0]
        M = self.smax(near, self.K)
        M = M.permute(2, 3, 0, 4, 1).flatten(3).flatten(1, 2).clamp(0, 1)
        at, (H, W), (high, wide) = self.margin * self.cell, self.size, self.counted
        return M[:, at:at + H, at:at + W], M[:, :high, :wide]


def smax(m: Tensor, K: Tensor) -> Tensor:
    """smax_ij K_ijuv m(a + i, b + j) for the pixels (u, v) of each cell (a, b), (u, v, N, h, w)."""
    near = m.unfold(1, len(K), 1).unfold(2, len(K), 1).permute(3, 4, 0, 1, 2)  # (i, j, N, h, w)
    v = (near[:, :, None, None] * K[..., None, None, None]).flatten(0, 1)
    return (v * (COLDNESS * v).softmax(0)).sum(0)


class _Smax(torch.autograd.Function):
    """`smax` in a third of the time, a neighbour at a time; it can be differentiated once."""

    @staticmethod
    def forward(ctx, m, K):
        h, w = (n - len(K) + 1 for n in m.shape[1:])
        total, weighted = m.new_zeros(2, *K.shape[2:], len(m), h, w)
        for v, _ in _neighbours(m, K):
            e = v.exp()
            total.add_(e)
            weighted.addcmul_(v, e)
        M = weighted / total
        ctx.save_for_backward(m, K, total, M)
        return M / COLDNESS

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        m, K, total, M = ctx.saved_tensors
        found, share, rest = torch.zeros_like(m), grad / total, 1 - M
        for v, (i, j) in _neighbours(m, K):
            pulled = v.exp().mul_(share).mul_(v.add_(rest))  # e (1 + v − M) / Σ e
            h, w = v.shape[3:]
            found[:, i:i + h, j:j + w] += (K[i, j].flatten() @ pulled.flatten(0, 1).flatten(1)).view(-1, h, w)
        return found, None


def _neighbours(m: Tensor, K: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """20 K_ij m(a + i, b + j) for each neighbour (i, j)."""
    h, w = (n - len(K) + 1 for n in m.shape[1:])
    for i, row in enumerate(COLDNESS * K):
        for j, k in enumerate(row):
            yield k[..., None, None, None] * m[:, i:i + h, j:j + w], (i, j)


def damped(lr: float) -> Rule:
    """Gradient ascent with momentum 0.9 and as much damping: b ← 0.9 b + 0.1 g (b = g at first), m ← m + lr b."""
    def rule(m: Tensor, g: Tensor, memory: Memory) -> Tensor:
        b = memory["b"] = MOMENTUM * memory["b"] + (1 - MOMENTUM) * g if "b" in memory else g
        return m + lr * b

    return rule


def _scaled(pixels: float, x: Tensor, least: float) -> float:
    """So many of 224 pixels, but at least so many."""
    return max(least, pixels * min(x.shape[2:]) / SIDE)
