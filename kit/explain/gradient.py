"""Sensitivity: how the score of a class changes when the image does, a little (gradients) or much (occlusion).

    score z_c(x): the logit of class c = `target` (N,), or of the predicted class where target is None

Each method returns one map (N, H, W), so it must reduce the channels; each says how, and whether its map has a sign.
Shared arguments:

    model     images (N, C, H, W) in [0, 1] → logits (N, K)     target    class numbers (N,), or None
    create_graph    keep the graph of the map to x, so that an attack can differentiate it

Each raises ValueError or TypeError for images, labels and models that make no sense.
"""
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kit.core import MisleadingModel, alike, chunk_size, differentiate, laid_out, normal, per_image, relus

PATH_STEPS = 50  # as in the published comparisons; Sundararajan et al. 2017, section 5: 20 to 300
SAMPLES, SIGMA = 50, 0.15  # Smilkov et al. 2017, section 4: 10 to 20 % noise, little gain beyond 50 samples


def score(z: Tensor, target: Tensor | None) -> Tensor:
    """The logits of the target classes, or the largest ones: (N,)."""
    target = z.detach().argmax(1) if target is None else target
    return z.gather(1, target[:, None])[:, 0]


def variable(x: Tensor, create_graph: bool) -> Tensor:
    """The images as something to differentiate by: themselves where their graph is wanted, else a leaf of their own."""
    return x if create_graph and x.requires_grad else x.detach().requires_grad_()


def _gradient(model: nn.Module, v: Tensor, target: Tensor | None, create_graph: bool) -> Tensor:
    """∇_x z_c(x), (N, C, H, W); of the sum over images, since each score depends on its own image alone."""
    return differentiate(score(model(v), target), v, create_graph=create_graph)


@per_image
def sensitivity(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False,
) -> Tensor:
    """Sensitivity analysis: R = Σ_channels (∂z_c/∂x)². No sign.

    Its sum is ‖∇z_c‖², so it divides the local slope among the pixels, not the score itself.
    Cost: one forward and one backward pass. Source: Zurada et al. 1994; Baehrens et al., JMLR 2010.
    """
    return _gradient(model, variable(x, create_graph), target, create_graph).square().sum(1)


@per_image
def saliency(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False,
) -> Tensor:
    """Saliency: R = max_channels |∂z_c/∂x|. No sign.

    Cost: one forward and one backward pass.
    Source: Simonyan et al., Deep inside convolutional networks, ICLR workshop 2014, section 3.1.
    """
    return _gradient(model, variable(x, create_graph), target, create_graph).abs().amax(1)


@per_image
def gradient_times_input(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False,
) -> Tensor:
    """Gradient × input: R = Σ_channels x · ∂z_c/∂x. Signed.

    The first-order estimate of z_c(x) − z_c(0): exact when the model is linear. Black pixels get nothing.
    Cost: one forward and one backward pass. Source: Shrikumar et al., Not just a black box, 2016, section 3.
    """
    return (x * _gradient(model, variable(x, create_graph), target, create_graph)).sum(1)


@per_image
def smoothgrad(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, samples: int = SAMPLES, sigma: float = SIGMA,
    squared: bool = False, generator: torch.Generator | None = None, create_graph: bool = False,
) -> Tensor:
    """SmoothGrad: R = max_channels |E_n ∇z_c(x + n)|, n ~ N(0, σ²). No sign.

    With `squared`, R = Σ_channels E_n (∂z_c/∂x)²(x + n), the average of `sensitivity`. σ is in pixel units, and the
    noisy images are not cut to [0, 1]. All images see the same noise. The class is the one predicted without noise.
    Cost: `samples` forward and backward passes, and a forward pass where target is None; never more than a chunk in
    memory, unless create_graph. Source: Smilkov et al., SmoothGrad, 2017, section 3; squared: their appendix, and
    Hooker et al., A benchmark for interpretability methods, NeurIPS 2019.
    """
    noise = normal(x[:1].detach().expand(samples, *x.shape[1:]), alike(generator), sigma)
    if target is None:
        with torch.no_grad():
            target = model(x).argmax(1)
    mean = torch.zeros_like(x)
    for part in noise.split(together(x)):
        g = _gradients(model, x[:, None] + part, target, create_graph)
        mean = mean + (g.square() if squared else g).sum(1) / len(noise)
    return mean.sum(1) if squared else mean.abs().amax(1)


@per_image
def integrated_gradients(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, steps: int = PATH_STEPS,
    baseline: float | Tensor = 0.0, complete: bool = True, create_graph: bool = False,
) -> Tensor:
    """Integrated Gradients: R = Σ_channels (x − b) ∫₀¹ g(t) dt, g(t) = ∂z_c/∂x at b + t (x − b). Signed.

    Completeness: Σ_pixels R = z_c(x) − z_c(b). b is a number, or images (1 or N, C, H, W); the default is black.

    The integral is a midpoint sum of `steps` terms, and with `complete` one correction. The slope along the path,
    a(t) = g(t)·(x − b), has a known integral, z_c(x) − z_c(b); the gap that the sum leaves is handed out by regression
    of g on a: ∫g ≈ mean g + cov(g, a)/var(a) · (z_c(x) − z_c(b) − mean a). The map is then complete; its single pixels
    are as exact as before. A gap above 10 % of mean |a| is reported by a warning (MisleadingModel): raise `steps`.

    Cost: `steps` forward and backward passes and two forward passes; never more than a chunk in memory, unless
    create_graph. Source: Sundararajan et al., Axiomatic attribution for deep networks, ICML 2017, equation 1.
    """
    if steps < 2:
        raise ValueError(f"steps must be 2 or more, not {steps}")
    b = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
    if b.dim() not in (0, 4):
        raise ValueError(f"the baseline must be a number or images (1 or N, C, H, W), not {tuple(b.shape)}")
    b = b.expand_as(x)
    path = x - b
    with torch.set_grad_enabled(create_graph):
        z = model(x)
        target = z.detach().argmax(1) if target is None else target
        rise = score(z, target) - score(model(b), target)
    t = (torch.arange(steps, device=x.device, dtype=x.dtype) + 0.5) / steps
    along = (_gradients(model, b[:, None] + part.view(1, -1, 1, 1, 1) * path[:, None], target, create_graph)
             for part in t.split(together(x)))
    mean_g, correction, gap, size = _regressed(along, path, rise, steps)
    if (coarse := int((gap.abs() > 0.1 * size).sum())) and not create_graph:
        warnings.warn(
            f"{steps} steps are few for {coarse} of {len(x)} images: the sum of their gradients misses the change of "
            f"the score by up to {float(gap.abs().max()):.2g}, so that its pixels are uncertain; raise steps",
            MisleadingModel, stacklevel=3)
    return (path * (mean_g + correction if complete else mean_g)).sum(1)


def _regressed(
    along: Iterable[Tensor], path: Tensor, rise: Tensor, steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean of the gradients g along the path, given in parts (N, k, C, H, W); what regression on a = g·path adds:

    cov(g, a)/var(a) · (rise − mean a); that gap rise − mean a; and the mean of |a|. One part is held at a time.
    """
    mean_g = mean_ag = torch.zeros_like(path)
    mean_a = mean_aa = size = torch.zeros_like(rise)
    for g in along:
        a = torch.einsum("nkchw,nchw->nk", g, path)
        mean_g, mean_ag = mean_g + g.sum(1) / steps, mean_ag + torch.einsum("nk,nkchw->nchw", a, g) / steps
        mean_a, mean_aa = mean_a + a.sum(1) / steps, mean_aa + a.square().sum(1) / steps
        size = size + a.detach().abs().sum(1) / steps
    gap = rise - mean_a
    variance = torch.maximum(mean_aa - mean_a.square(), 1e-5 * mean_aa)  # below that it is rounding
    slope = gap / variance.clamp_min(torch.finfo(path.dtype).tiny)
    covariance = mean_ag - mean_a.view(-1, 1, 1, 1) * mean_g
    return mean_g, slope.view(-1, 1, 1, 1) * covariance, gap, size


def together(x: Tensor) -> int:
    """How many variants of each of these images go through the model at once, so that a chunk is never exceeded."""
    return max(1, chunk_size(x) // len(x))


def _gradients(model, points, target, create_graph):
    """∇z_c at the k points (N, k, C, H, W) of each image: the same shape, with their graph where it is wanted."""
    n, k = points.shape[:2]
    points = variable(laid_out(points.flatten(0, 1)), create_graph)
    return _gradient(model, points, target.repeat_interleave(k), create_graph).unflatten(0, (n, k))


@per_image
def guided_backpropagation(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False,
) -> Tensor:
    """Guided backpropagation: R = max_channels |ĝ|, where ĝ is ∇z_c with ReLU's backward pass h ↦ max(h, 0) · [z > 0].

    No sign. ĝ is the gradient of no function, and depends little on the class: *Can we trust a heatmap?* shows it.
    Cost: one forward and one backward pass. Raises ValueError for a model without a ReLU.
    Source: Springenberg et al., Striving for simplicity, ICLR workshop 2015, section 3.4.
    """
    v = variable(x, create_graph)
    with relus(lambda g, z: g.clamp(min=0) * (z > 0)) as mode:
        z = model(v)
    if not mode.seen:
        raise ValueError("guided backpropagation changes the ReLUs of a model, and this model has none: use saliency")
    return differentiate(score(z, target), v, create_graph=create_graph).abs().amax(1)


@per_image
def occlusion(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, size: int = 6, stride: int = 2,
    fill: float = 0.5, create_graph: bool = False,
) -> Tensor:
    """Occlusion: R(i, j) = the mean of z_c(x) − z_c(x with a patch set to `fill`) over the patches that cover (i, j).

    Signed. Patches of `size` × `size` pixels stand every `stride` pixels, also at the far edges. Cost: one forward
    pass per patch and one; never more than a chunk in memory, unless create_graph. Raises ValueError for a patch larger
    than the image, or a stride larger than the patch, which would leave gaps.
    Source: Zeiler & Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.2.
    """
    n, h, w = len(x), *x.shape[2:]
    if not 1 <= stride <= size <= min(h, w):
        raise ValueError(f"size {size} and stride {stride} do not tile {h}×{w} images: 1 ≤ stride ≤ size ≤ {min(h, w)}")
    tops, lefts = ([*range(0, side - size, stride), side - size] for side in (h, w))
    corners = torch.tensor([(i, j) for i in tops for j in lefts], device=x.device)
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    down = (rows >= corners[:, :1]) & (rows < corners[:, :1] + size)
    across = (columns >= corners[:, 1:]) & (columns < corners[:, 1:] + size)
    patches = down[:, :, None] & across[:, None, :]  # (patches, H, W)
    with torch.set_grad_enabled(create_graph):
        z = model(x)
        target = z.detach().argmax(1) if target is None else target
        before, drops = score(z, target), []
        for part in patches.split(together(x)):
            z = model(laid_out(torch.where(part[None, :, None], fill, x[:, None]).flatten(0, 1)))
            drops.append(before[:, None] - score(z, target.repeat_interleave(len(part))).unflatten(0, (n, -1)))
        covered = patches.flatten(1).to(x.dtype)
        return (torch.cat(drops, 1) @ covered / covered.sum(0)).unflatten(1, (h, w))
