"""ADV² on a map that a pass or two through the network makes, and what both stand on: symbols as in `kit.fire.adv2`."""
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Goal, Linf, Live, asking, check_labels, leaf, per_image, smooth_relu, uniform, warn
from kit.core.seeding import Source

Explain = Callable[..., Tensor]
Term = Callable[[Tensor, Tensor], Tensor]
View = Callable[[Tensor], Tensor]

EVERY = 5  # the true network's map is looked at so often; their code: every 10 steps (GRAD) or 50


def unit(R: Tensor) -> Tensor:
    """Each map scaled to [0, 1] as `kit.explain.l1_distance` does it; a constant map has no gradient."""
    low, high = R.amin((1, 2), keepdim=True), R.amax((1, 2), keepdim=True)
    return (R - low) / torch.where(high > low, high - low, 1)


def map_distance(a: Tensor, b: Tensor) -> Tensor:
    """ℓ_int: the mean over the pixels of the squared difference of two maps, each scaled to [0, 1], (N,).

    Raises ValueError for maps of two sizes.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"the maps shown are {tuple(a.shape[1:])} and those wanted {tuple(b.shape[1:])}: give them "
                         "in the size that the explainer's have")
    return (unit(a) - unit(b)).square().mean((1, 2))


@per_image
def adv2(
    model: nn.Module, x: Tensor, target: Tensor, explain: Explain, *, map_target: Tensor | None = None,
    eps: float | Tensor, step: float | Tensor | None = None, warm: int = 20, steps: int = 200, lam: float = 1000.0,
    ramp: float = 100.0, smoothing: float = 0.05, sure: float = 0.5, smooth: float | None = 1e-4,
    extra: Term | None = None, views: Sequence[View] = (),
) -> Tensor:
    """Two stages of projected steps of the gradient's sign: `warm` steps down ℓ_prd alone, then `steps` down the sum.

    explain      any explainer of `kit.explain` that takes create_graph; settings by `functools.partial`
    map_target   m (N, H, W); None is the benign map, which `explain` gives for x and the class predicted there
    lam, ramp    λ rises from lam/ramp to lam, by the same factor in each step
    smoothing    ℓ_prd is the cross-entropy of t with this label smoothing, so that it never has no gradient
    smooth       τ of `kit.core.smooth_relu` in the attack's own passes: a map made of gradients does not move without
                 it; None leaves the ReLUs as they are, which CAM and masks allow
    extra        one more term, (x', target) -> (N,), to be minimised: the loss of an interpreter with an encoder of its
                 own (theirs, for RTS: 0.1 times its cross-entropy). Of `kit.explain.RTS` the encoder is the classifier,
                 and ℓ_prd is that loss already
    views        functions of images whose results must be answered t too, by which a detector compares: ℓ_prd is the
                 mean over x' and its views, and their least probability counts. `FeatureSqueezing.views` are such

    The default step is eps/8 (their 1/255 at 8/255), and falls to 0 in the second stage. Of the iterates of that stage
    each image keeps the one with the least ℓ_int, read on the true network, among those that are answered t with a
    probability over `sure` (0.8 in their code, on networks that are easier to fool); where there is none, the one of
    greatest probability. Warns (MisleadingModel) of images whose map does not move.
    Cost: a forward and a backward pass a step; in the second stage also an explanation with its graph, a backward pass
    through that, and an explanation in every fifth step; each view adds a pass of each kind to a step.
    Raises ValueError or TypeError for what makes no sense.
    """
    if warm < 0 or not 0 <= smoothing < 1 or not 0 <= sure < 1 or not ramp > 0:
        raise ValueError("warm must be 0 or more, smoothing and sure lie in [0, 1), and ramp be more than 0, not "
                         f"{warm}, {smoothing}, {sure} and {ramp}")
    live, within = Live(model, x, Goal(target, target)), Linf(eps)
    step = eps / 8 if step is None else step

    def shown(v: Tensor, classes: Tensor, create_graph: bool = False) -> Tensor:
        with asking(model, live.rows):
            return explain(model, v, classes, create_graph=create_graph)

    def answers(v: Tensor) -> Tensor:
        return torch.stack([live.ask(w) for w in (v, *(view(v) for view in views))])

    m = wanted(live, map_target, shown)
    v = x
    for k in range(-warm, steps):
        v = leaf(v)
        with smooth_relu(smooth) if smooth else nullcontext():
            z = answers(v)
            loss = prediction_loss(z, target, smoothing)
            if k >= 0:
                off = map_distance(shown(v, target, create_graph=True), m)
                if k == 0:
                    check_moves(off, v)
                loss = loss + lam * ramp ** ((k + 1) / steps - 1) * off
                if extra is not None:
                    loss = loss + extra(v, target)
        g = live.grad(loss, v)
        if k >= 0 and k % EVERY == 0:
            keep(live, v.detach(), z.detach(), map_distance(shown(v.detach(), target), m), sure)
        v = within.project(within.step(v.detach(), -g, step * min(1, 1 - k / steps)), x)
    with torch.no_grad():
        z = answers(v)
    keep(live, v, z, map_distance(shown(v, target), m), sure)
    return live.found.x_adv


def prediction_loss(z: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """ℓ_prd (N,) of logits (V, N, K): the mean over the views of the cross-entropy of t with this label smoothing."""
    losses = F.cross_entropy(z.flatten(0, 1), target.repeat(len(z)), reduction="none", label_smoothing=smoothing)
    return losses.view(len(z), -1).mean(0)


def wanted(live: Live, map_target: Tensor | None, shown: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """m: the map given, or the benign one. Raises ValueError or TypeError for targets or maps that do not fit."""
    x, target = live.x, live.goal.target
    with torch.no_grad():
        z = live.ask(x)
    check_labels(target, x, z.shape[1], "target")
    m = shown(x, z.argmax(1)) if map_target is None else map_target
    if map_target is not None and (m.shape[:2] != (len(x), x.shape[2]) or m.dim() != 3 or m.shape[2] % x.shape[3]):
        raise ValueError(f"map_target must be maps ({len(x)}, {x.shape[2]}, {x.shape[3]}), not {tuple(m.shape)}")
    return m


def keep(live: Live, v: Tensor, z: Tensor, off: Tensor, sure: float) -> None:
    """Keep, image by image, v where it is answered t with p_t > sure, and of those the one of least ℓ_int = off.

    Of logits z (V, N, K) of several views, all must be so.
    """
    p = z.softmax(2)[:, torch.arange(z.shape[1], device=z.device), live.goal.target].amin(0)
    good = torch.stack([live.goal.reached(own) for own in z]).all(0) & (p > sure)
    live.best(v, torch.where(good, -off, p), good)


def check_moves(off: Tensor, v: Tensor) -> None:
    """Warn (MisleadingModel) of images whose map is not the one that is wanted, and has no gradient. Cost: a backward
    pass."""
    g = torch.autograd.grad(off.sum(), v, retain_graph=True, allow_unused=True)[0] if off.requires_grad else None
    still = off > 0 if g is None else (off > 0) & (g == 0).flatten(1).all(1)
    if bool(still.any()):
        warn(f"the map does not move with the image for {int(still.sum())} of {len(v)} images, so that the attack "
             "reaches their class alone: the explainer is piecewise constant (let smooth=1e-4), or gives no gradient")


def random_patches(x: Tensor, *, generator: Source = None) -> Tensor:
    """Maps (N, H, W) to be shown that have nothing to do with the image: one disc or one box each, anywhere inside.

    The radius, or half the side, is 30/224 to 60/224 of the image's shorter side; a box is turned by up to 30°. Inside
    the map is U(0.9, 1), outside U(0, 0.1). Source: the paper (random patch interpretations); the sizes
    are those of the authors' code.
    """
    (n, _, h, w), short = x.shape, min(x.shape[2:])
    kind, size, down, across, turn = uniform(x.new_empty(n, 5), generator).unbind(1)
    size = (30 + 30 * size) / 224 * short
    reach = (size * 2**0.5).clamp_max((short - 1) / 2)  # a turned box stays inside
    rows = torch.arange(h, device=x.device).view(1, h, 1) - (reach + down * (h - 1 - 2 * reach)).view(n, 1, 1)
    columns = torch.arange(w, device=x.device).view(1, 1, w) - (reach + across * (w - 1 - 2 * reach)).view(n, 1, 1)
    angle = ((2 * turn - 1) * torch.pi / 6).view(n, 1, 1)
    a, b = rows * angle.cos() + columns * angle.sin(), columns * angle.cos() - rows * angle.sin()
    disc = (rows.square() + columns.square()).sqrt()
    away = torch.where((kind < 0.5).view(n, 1, 1), disc, torch.maximum(a.abs(), b.abs()))
    noise = uniform(x[:, 0], generator)
    return torch.where(away <= size.view(n, 1, 1), 0.9 + 0.1 * noise, 0.1 * noise)
