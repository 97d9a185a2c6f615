"""Adversarial camouflage: an image takes the style of another within a mask, and a style that is misread at that.

Nothing here is printed or photographed: what comes out is an image, and a claim about stickers would need both.
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Goal, Live, borrowed, check_images, features, laid_out, leaf, per_image

TINY = 1e-12


def gram(A: Tensor, mask: Tensor | None = None) -> Tensor:
    """G_kl = Σ_p m_p A_kp A_lp / Σ_p m_p, (N, K, K), of feature maps A (N, K, h, w) and a mask (N or 1, 1, H, W), which
    is averaged to their size: what stands together in the maps, and not where."""
    m = torch.ones_like(A[:1, :1]) if mask is None else F.adaptive_avg_pool2d(mask, (A.shape[2], A.shape[3]))
    G = torch.einsum("nkij,nlij->nkl", A * m, A)
    return G / m.sum((1, 2, 3))[:, None, None].clamp_min(TINY)


def style_loss(maps: Sequence[Tensor], grams: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Mean over the layers of ‖G(A) − G_s‖² / ‖G_s‖², (N,): 0 for the style's own image, about 1 for a grey one."""
    parts = [_far(gram(A, mask), G) for A, G in zip(maps, grams, strict=True)]
    return torch.stack(parts).mean(0)


def smoothness(x: Tensor, mask: Tensor) -> Tensor:
    """Σ ½ (squared difference to the next pixel, down and across) in the mask, over Σ m C, (N,)."""
    down, across = (x[:, :, 1:] - x[:, :, :-1]).square(), (x[:, :, :, 1:] - x[:, :, :, :-1]).square()
    total = (down * mask[:, :, 1:]).sum((1, 2, 3)) + (across * mask[:, :, :, 1:]).sum((1, 2, 3))
    return total / 2 / (mask.sum((1, 2, 3)) * x.shape[1]).clamp_min(TINY)


@per_image
def advcam(
    model: nn.Module, x: Tensor, y: Tensor, *, style: Tensor, layers: Sequence[str], content: str | None = None,
    mask: Tensor | None = None, style_mask: Tensor | None = None, reader: nn.Module | None = None,
    lam: float = 1.0, lam_style: float = 1.0, lam_content: float = 0.5, lam_tv: float = 0.1, kappa: float = 1.0,
    steps: int = 100, lr: float = 0.02, target: Tensor | None = None,
) -> Tensor:
    """Adam on v, x' = x + m (v − x), from v = x, minimises

        lam_style · style + lam_content · content + lam_tv · smoothness + lam · max(κ − lead, 0)

    style      `style_loss` of x' in the mask, to the image `style` (in `style_mask`), at `layers`
    content    ‖A(x') − A(x)‖² / ‖A(x)‖² at the layer `content`; by default the last of `layers`
    lead       max_{j≠y} z_j − z_y, or z_t − max_{j≠t} z_j

    `mask` m (N or 1, 1, H, W) in [0, 1]: where it is 0, x' is x to the last bit; None is everywhere. Features are read
    in `reader`, or in the attacked model. Of the images met on the way that reach the goal, the one with the least of
    the three terms is returned; of none that does, the one with the least of them. With lam = 0 it is a transfer of
    style that knows nothing of the answer, which is the control.
    The weights belong to losses that are shares of the style's and the content's own size; the paper's belong to sums
    on [0, 255] of VGG-19 (100 style, 5 content, 0.001 smoothness, 5000 attack).
    Cost: `steps` forward and backward passes (two forward with a `reader`), and three forward passes.
    Source: Duan et al., Adversarial camouflage: hiding physical-world attacks with natural styles, CVPR 2020, eq. 5.
    """
    names = [] if isinstance(layers, str) else list(layers)
    if not names:
        raise ValueError("layers must be a list that names at least one layer, whose feature maps are the style")
    deep = names[-1] if content is None else content
    _check(style, mask, style_mask, x)
    m = torch.ones_like(x[:1, :1]) if mask is None else mask.to(x)
    live, network = Live(model, x, Goal(y, target)), model if reader is None else reader
    wanted = list(dict.fromkeys([*names, deep]))
    with nullcontext() if reader is None else borrowed(reader, x):
        with torch.no_grad(), features(network, wanted) as maps:
            network(laid_out(style.to(x)))
        where = None if style_mask is None else style_mask.to(x)
        grams = [gram(_maps(maps[name], name), where) for name in names]
        with torch.no_grad(), features(network, wanted) as maps:
            network(laid_out(x))
        before, v = maps[deep], x
        for k in range(steps + 1):
            v = leaf(v)
            x_adv = (x + m * (v - x)).clamp(0, 1)
            with _reading(network, reader, wanted, x_adv) as maps:
                z = live.ask(x_adv)
            camouflage = (lam_style * style_loss([maps[name] for name in names], grams, m)
                          + lam_content * _far(maps[deep], before) + lam_tv * smoothness(x_adv, m))
            live.best(x_adv, -camouflage, live.goal.reached(z, kappa))
            if k < steps:
                loss = camouflage + lam * (kappa - live.lead(z, x_adv)).clamp_min(0)
                v = live.adam(v, live.grad(loss, v), lr).clamp(0, 1)
    return live.found.x_adv


@contextmanager
def _reading(network: nn.Module, reader: nn.Module | None, names: list[str], x_adv: Tensor) -> Iterator[dict]:
    """The feature maps of x_adv: those that the model's own pass leaves, or a pass of the reader's."""
    with features(network, names) as maps:
        if reader is not None:
            reader(laid_out(x_adv))
        yield maps


def _far(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² / ‖b‖² of each row, (N,)."""
    return (a - b).square().flatten(1).sum(1) / b.square().flatten(1).sum(1).clamp_min(TINY)


def _maps(A: Tensor, name: str) -> Tensor:
    if A.dim() != 4:
        raise ValueError(f"the layer {name!r} has no feature maps (N, K, h, w): name a convolution's, or a block's")
    return A


def _check(style: Tensor, mask: Tensor | None, style_mask: Tensor | None, x: Tensor) -> None:
    if not isinstance(style, Tensor) or style.dim() != 4 or style.shape[1] != x.shape[1]:
        raise ValueError(f"style must be images (N or 1, {x.shape[1]}, H, W) in [0, 1]")
    try:
        check_images(style)
    except (TypeError, ValueError) as error:
        raise type(error)(f"style is of no use: {error}") from None
    for name, value, like in (("mask", mask, x), ("style_mask", style_mask, style)):
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[1:] != (1, *like.shape[2:]):
            raise ValueError(f"{name} must have the shape (N or 1, 1, {like.shape[2]}, {like.shape[3]})")
        low, high = float(value.min()), float(value.flatten(1).amax(1).min())
        if not (low >= 0 and high > 0 and float(value.max()) <= 1):  # as NaN is not
            raise ValueError(f"{name} must lie in [0, 1], and be above 0 somewhere")
