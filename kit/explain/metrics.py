"""How good is a map? By what the model does without the pixels it names, by where the object is, by what it promises.

    relevance R (N, H, W), one map per image      mask (N, H, W), true on the object

Each measure gives one number per image (N,); its docstring says what a good one is, and what it cannot see.
"""
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.core
from kit.core import alike, check_images, chunk_size, laid_out, logits, per_image, uniform
from kit.explain.gradient import score

STEPS = 32  # points of an insertion or deletion curve
BLUR = 11  # side of the blur that stands for "removed" in insertion curves; Petsiuk et al. 2018 use 11 on 224 pixels


def _maps(relevance: Tensor, x: Tensor | None = None, name: str = "relevance") -> Tensor:
    if relevance.dim() != 3 or x is not None and relevance.shape != (len(x), *x.shape[2:]):
        wanted = "(N, H, W)" if x is None else f"({len(x)}, {x.shape[2]}, {x.shape[3]})"
        raise ValueError(f"{name} must have the shape {wanted}, not {tuple(relevance.shape)}")
    return relevance


def _rank(relevance: Tensor) -> Tensor:
    """0 for the most relevant pixel of each map, then 1, …: (N, H, W). Equal pixels keep their order."""
    order = relevance.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(relevance)


def blurred(x: Tensor, size: int = BLUR, sigma: float | None = None) -> Tensor:
    """The images under a Gaussian blur of `size` × `size` pixels, σ = size/4 where none is given: no detail is left."""
    at = torch.arange(size, device=x.device, dtype=x.dtype) - size // 2
    line = torch.exp(-at.square() / (2 * (sigma or size / 4) ** 2))
    line = (line / line.sum()).expand(x.shape[1], 1, -1)
    mirrored = min(x.shape[-2:]) > size // 2
    x = F.pad(x, [size // 2] * 4, mode="reflect" if mirrored else "replicate")
    return F.conv2d(F.conv2d(x, line[..., None], groups=x.shape[1]), line[:, :, None], groups=x.shape[1])


@per_image
def deletion(
    model: nn.Module, x: Tensor, relevance: Tensor, target: Tensor | None = None, *, fill: float | None = 0.0,
    steps: int = STEPS, curve: bool = False,
) -> Tensor:
    """Deletion: the area under p_c(x with its most relevant pixels removed), over the share removed. Low is good.

    p is the softmax. Removed pixels are set to `fill`, or blurred where it is None. With `curve` it returns the curves
    (N, steps + 1). An image without pixels is unlike any that the model was trained on: read it with `insertion`.
    Cost: `steps` + 1 forward passes. Source: Petsiuk et al., RISE, BMVC 2018, section 4.1.
    """
    gone = blurred(x) if fill is None else torch.full_like(x, fill)
    return _replaced(model, x, x, gone, relevance, target, steps, curve)


@per_image
def insertion(
    model: nn.Module, x: Tensor, relevance: Tensor, target: Tensor | None = None, *, fill: float | None = None,
    steps: int = STEPS, curve: bool = False,
) -> Tensor:
    """Insertion: the area under p_c(blurred x with its most relevant pixels put back), over the share. High is good.

    Arguments, cost and source as for `deletion`; with fill = 0 the pixels are put on black.
    """
    gone = blurred(x) if fill is None else torch.full_like(x, fill)
    return _replaced(model, x, gone, x, relevance, target, steps, curve)


def _replaced(model, x, before, after, relevance, target, steps, curve):
    """p_c as the pixels of `before` become those of `after`, the most relevant first: area or curve."""
    n, pixels = len(before), before[0, 0].numel()
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps must be between 1 and the number of pixels, {pixels}, not {steps}")
    rank = _rank(_maps(relevance, before))
    counts = torch.linspace(0, pixels, steps + 1, device=before.device).round()
    with torch.no_grad():
        if target is None:
            target = model(x).argmax(1)
        values = []
        for part in counts.split(max(1, chunk_size(before) // n)):
            there = (rank[:, None] < part.view(1, -1, 1, 1))[:, :, None]
            mixed = torch.where(there, after[:, None], before[:, None]).flatten(0, 1)
            p = model(laid_out(mixed)).softmax(1)
            values.append(score(p, target.repeat_interleave(len(part))).unflatten(0, (n, -1)))
    curves = torch.cat(values, 1)
    return curves if curve else ((curves[:, 1:] + curves[:, :-1]) / 2).mean(1)


def pointing_game(relevance: Tensor, mask: Tensor, *, tolerance: int = 0) -> Tensor:
    """Whether the most relevant pixel lies on the object, or within `tolerance` pixels of it: (N,) bool.

    It reads one pixel of the map; a constant map has none, and misses. Chance is the share of the image that the
    object covers. Source: Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016, section 4.2
    (tolerance 15 on 224 pixels).
    """
    mask = _mask(mask, relevance)
    if tolerance:
        mask = F.max_pool2d(mask[:, None].float(), 2 * tolerance + 1, 1, tolerance)[:, 0] > 0
    flat = relevance.flatten(1)
    hit = mask.flatten(1).gather(1, flat.argmax(1, keepdim=True))[:, 0]
    return hit & (flat.amax(1) > flat.amin(1))


def energy_inside(relevance: Tensor, mask: Tensor) -> Tensor:
    """Σ_{mask} R⁺ / Σ R⁺: the share of the positive relevance that lies on the object, 0 where there is none.

    A constant map gets the share of the image that the object covers: compare with that. With `~mask` it is what lies
    on the background. Source: Wang et al., Score-CAM, CVPR workshop 2020, section 4.3 (energy-based pointing game).
    """
    mask, positive = _mask(mask, relevance), relevance.clamp(min=0)
    total = positive.flatten(1).sum(1)
    return (positive * mask).flatten(1).sum(1) / total.clamp_min(1e-30)


def iou(a: Tensor, b: Tensor, *, share: float = 0.2) -> Tensor:
    """|A ∩ B| / |A ∪ B|, of the pixels chosen by two maps: 1 where they agree, (N,).

    A map of numbers chooses its most relevant pixels: as many as the other's mask has where that is a mask (bool), else
    the given share of the image.
    """
    _same_shape(_maps(a), b)
    if not 0 < share <= 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    pixels = a[0].numel()
    sizes = [m.flatten(1).sum(1) for m in (a, b) if m.dtype == torch.bool]
    size = sizes[0] if len(sizes) == 1 else torch.full((len(a),), round(share * pixels), device=a.device)
    A, B = (m if m.dtype == torch.bool else _rank(m) < size.view(-1, 1, 1) for m in (a, b))
    return (A & B).flatten(1).sum(1) / (A | B).flatten(1).sum(1).clamp_min(1)


def unit_range(relevance: Tensor) -> Tensor:
    """Each map scaled to [0, 1] by its least and greatest pixel; a constant map becomes 0."""
    low, high = relevance.amin((1, 2), keepdim=True), relevance.amax((1, 2), keepdim=True)
    return (relevance - low) / (high - low).clamp_min(1e-30)


def l1_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the pixels of |a − b|, each map first scaled to [0, 1]: 0 where they agree, (N,).

    Source: Zhang et al., Interpretable deep learning under fire, 2020, section 4.3 (their L1 measure).
    """
    _same_shape(_maps(a), b)
    return (unit_range(a) - unit_range(b)).abs().mean((1, 2))


def sparsity(relevance: Tensor) -> Tensor:
    """The Gini index of |R|: 0 for a constant map, 1 − 1/pixels where one pixel has it all.

    A sparse map is easy to read; it need not be right. Source: Hurley & Rickard 2009; Chalasani et al., ICML 2020.
    """
    ordered = _maps(relevance).abs().flatten(1).sort(1).values
    n = ordered.shape[1]
    weight = (n - torch.arange(n, device=ordered.device, dtype=ordered.dtype) - 0.5) / n
    return 1 - 2 * (ordered * weight).sum(1) / ordered.sum(1).clamp_min(1e-30)


@per_image
def completeness(
    model: nn.Module, x: Tensor, relevance: Tensor, target: Tensor | None = None, *,
    baseline: float | Tensor | None = 0.0,
) -> Tensor:
    """|Σ_pixels R − Δ| / |Δ|, Δ = z_c(x) − z_c(baseline): 0 where the map shares out all of the change.

    With baseline=None, Δ = z_c(x): what LRP conserves. Cost: two forward passes.
    Source: Sundararajan et al., ICML 2017, section 3 (completeness).
    """
    _maps(relevance, x)
    with torch.no_grad():
        z = model(x)
        target = z.argmax(1) if target is None else target
        change = score(z, target)
        if baseline is not None:
            b = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x)
            change = change - score(model(b), target)
    return (relevance.detach().flatten(1).sum(1) - change).abs() / change.abs().clamp_min(1e-30)


def squares(samples: int, size: Sequence[int], source: torch.Generator) -> Tensor:
    """`samples` random squares (samples, H, W), true inside, with sides from 1 pixel to half of an image of that size.
    """
    h, w = size
    draws = uniform(torch.empty(samples, 3), source)
    side = (1 + draws[:, 0] * (min(h, w) // 2)).floor()
    top, left = (draws[:, 1] * (h - side + 1)).floor(), (draws[:, 2] * (w - side + 1)).floor()
    rows, columns = torch.arange(h), torch.arange(w)
    down = (rows >= top[:, None]) & (rows < (top + side)[:, None])
    across = (columns >= left[:, None]) & (columns < (left + side)[:, None])
    return down[:, :, None] & across[:, None]


@per_image
def infidelity(
    model: nn.Module, x: Tensor, relevance: Tensor, target: Tensor | None = None, *, samples: int = 64,
    fill: float = 0.0, generator: torch.Generator | None = None,
) -> Tensor:
    """E_S (β Σ_S R − d_S)² / E_S d_S², d_S = z_c(x) − z_c(x with the square S filled): 0 is good, 1 says nothing.

    The squares have sides from 1 pixel to half the image. β ≥ 0 is each map's best scale, so that maps of any unit
    compare: the measure is 1 minus the squared cosine of promise and drop, and 1 where they point apart. All images
    see the same squares. `relevance` is (N, H, W), or M maps of each image (N, M, H, W), which share the passes; then
    (N, M) is returned. Cost: `samples` + 1 forward passes.
    Source: Yeh et al., On the (in)fidelity and sensitivity of explanations, NeurIPS 2019, section 2.
    """
    maps = relevance if relevance.dim() == 4 else relevance[:, None]
    _maps(maps[:, 0], x)
    places = squares(samples, x.shape[2:], alike(generator)).to(x.device)
    with torch.no_grad():
        z = model(x)
        target = z.argmax(1) if target is None else target
        drops = []
        for part in places.split(max(1, chunk_size(x) // len(x))):
            hidden = model(laid_out(torch.where(part[None, :, None], fill, x[:, None]).flatten(0, 1)))
            kept = score(hidden, target.repeat_interleave(len(part))).view(len(x), -1)
            drops.append(score(z, target)[:, None] - kept)
        drop = torch.cat(drops, 1)
        promised = maps.flatten(2).to(x.dtype) @ places.flatten(1).to(x.dtype).T
        both = (promised * drop[:, None]).sum(2).clamp(min=0).square()
        broken = 1 - both / (promised.square().sum(2) * drop.square().sum(1, keepdim=True)).clamp_min(1e-30)
        return broken if relevance.dim() == 4 else broken[:, 0]


def max_sensitivity(
    explain: Callable[..., Tensor], model: nn.Module, x: Tensor, target: Tensor | None = None, *, radius: float = 0.02,
    samples: int = 10, generator: torch.Generator | None = None,
) -> Tensor:
    """max over n ~ U(−radius, radius) of ‖R(x + n) − R(x)‖₂ / ‖R(x)‖₂: how far a map moves for a change nobody sees.

    Low is stable, and stable need not be right: a constant map scores 0. The class stays the one of x; noisy images are
    cut to [0, 1]. Cost: `samples` + 1 explanations. Source: Yeh et al., NeurIPS 2019, definition 3.1 (SENS_MAX).
    """
    check_images(x)
    generator = generator or kit.core.generator()
    if target is None:
        target = logits(model, x).argmax(1)
    before = explain(model, x, target)
    worst = torch.zeros_like(x[:, 0, 0, 0])
    for _ in range(samples):
        noise = uniform(x[:1], generator, -radius, radius)
        after = explain(model, (x + noise).clamp(0, 1), target)
        worst = torch.maximum(worst, (after - before).flatten(1).norm(dim=1))
    return worst / before.flatten(1).norm(dim=1).clamp_min(1e-30)


def _mask(mask: Tensor, relevance: Tensor) -> Tensor:
    _maps(relevance)
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask must be bool, not {mask.dtype}: use mask > 0.5")
    _same_shape(relevance, mask)
    return mask


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"the two maps must have one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
