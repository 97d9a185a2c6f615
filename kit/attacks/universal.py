"""Universal perturbations: one δ that changes the model's answer on most images of a set, seen or not.

    δ = argmax Σ_i min(ℓ(f([x_i + δ]), ŷ_i), β)   subject to   ‖δ‖_p ≤ eps,   with ŷ_i = argmax f(x_i)

[·] cuts to the box [0, 1]. ŷ is what the model itself says of the clean image: true labels play no part, and an image
that is wrong already is not fooled for that. With a target t, −ℓ(f([x_i + δ]), t) is maximised instead. Arguments:

    model        images (N, C, H, W) in [0, 1] → logits (N, K); of `universal` and `targeted_universal` also several
    x            the images to learn from                       eps, norm    radius of the ball: "linf" or "l2"
    rounds       the most passes over all images                enough       the share of fooled images to stop at
    generator    where the order of the images and the draws of a transformation come from

Each returns δ (1, C, H, W), exactly in the ball. It is not cut by the box of any image: where x_i is black, a negative
δ does nothing to x_i and may do much to others, so it must not be lost there. `shifted(x, δ)` is what a model is shown.
Raises ValueError or TypeError for images, models, norms and numbers that make no sense.
"""
from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from kit.attacks.minimal.deepfool import to_the_nearest_plane
from kit.attacks.physical.camera import first_look
from kit.core import (
    L2,
    Goal,
    Live,
    QueryCounter,
    Trace,
    alike,
    asking,
    ball,
    borrowed,
    check_images,
    check_model,
    check_settings,
    chunk_size,
    cross_entropy,
    differentiate,
    laid_out,
    leaf,
    logits,
)
from kit.core.checks import check_gradient
from kit.core.goal import Loss
from kit.core.loop import check_differentiable

BETA = 9.0  # Shafahi et al.'s cap on the cross-entropy, in nats
STEP = 0.5  # the first step, as a share of eps: on digits and scenes 0.25 fools fewer in 48 steps or less
LONGEST = 10.0  # times its length is what a step of DeepFool may be that the box cuts
SEVERAL = (list, tuple, nn.ModuleList)
Transform = Callable[[Tensor, torch.Generator], Tensor]


def shifted(x: Tensor, delta: Tensor) -> Tensor:
    """[x + δ]: every image with δ (1, C, H, W) on it, cut to [0, 1]. No pass."""
    check_images(x)
    if not isinstance(delta, Tensor) or delta.shape != (1, *x.shape[1:]):
        raise ValueError(f"δ must be a tensor of the shape {(1, *x.shape[1:])} for these images, "
                         f"not {tuple(getattr(delta, 'shape', ())) or type(delta).__name__}")
    return (x + delta).clamp(0, 1)


# --- by the gradient of many images at once -------------------------------------------------------------------------


def universal(
    model: nn.Module | Sequence[nn.Module], x: Tensor, *, eps: float, norm: str = "linf", steps: int = 100,
    step: float | None = None, batch: int = 64, beta: float = BETA, loss: Loss = cross_entropy,
    transform: Transform | None = None, generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """Stochastic ascent on δ: δ ← Π(δ + step · the steepest direction of Σ_{i in a batch} min(ℓ_i, β)).

    The steepest direction is the sign of the gradient (linf) or the gradient over its length (l2). Batches come in a
    new order at each pass over the images; the step falls linearly to 0. Without the cap β the sum would grow most by
    making the worst images worse. With several models the terms of all are added, each about its own ŷ. With
    `transform(x, generator)`, x with δ goes through a new draw of it at each step (EOT).
    The trace holds the mean of min(ℓ, β) over each batch, (steps, 1), with δ as its image.
    Cost: `steps` forward and backward passes of `batch` images through each model, and one forward pass of all.
    Source: Shafahi et al., Universal adversarial training, AAAI 2020, algorithm 1; EOT: Athalye et al., ICML 2018.
    """
    return _ascent(model, x, None, eps=eps, norm=norm, steps=steps, step=step, batch=batch, beta=beta, loss=loss,
                   transform=transform, generator=generator, trace=trace)


def targeted_universal(
    model: nn.Module | Sequence[nn.Module], x: Tensor, target: int, *, eps: float, norm: str = "linf",
    steps: int = 100, step: float | None = None, batch: int = 64, loss: Loss = cross_entropy,
    transform: Transform | None = None, generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """`universal` towards one class: maximises Σ −ℓ(f([x_i + δ]), target). It has no β, since −ℓ ends at 0.

    Count success on images of other answers than `target` alone. Cost and the other arguments: those of `universal`.
    """
    return _ascent(model, x, _class(target), eps=eps, norm=norm, steps=steps, step=step, batch=batch, beta=None,
                   loss=loss, transform=transform, generator=generator, trace=trace)


def _ascent(
    model, x: Tensor, target: int | None, *, eps, norm, steps, step, batch, beta, loss, transform, generator, trace,
) -> Tensor:
    models = list(model) if isinstance(model, SEVERAL) else [model]
    if not models:
        raise ValueError("universal needs at least one model")
    eps = _checked(x, norm, eps, steps=steps, step=step, batch=batch, beta=beta, generator=generator)
    step = STEP * eps if step is None else float(step)
    x, source, within = x.detach(), alike(generator), ball(norm, eps)
    if trace is not None:
        trace.clear()
    with ExitStack() as stack:
        for each in models:
            stack.enter_context(borrowed(each, x))
        if transform is not None:
            first_look(transform, x[:2], "transform")
        goals = [_goal(each, x, target) for each in models]
        delta = torch.zeros_like(x[:1])
        for k, rows in zip(range(steps), _batches(len(x), batch, source), strict=False):
            value, g = torch.zeros_like(delta[:, 0, 0, 0]), torch.zeros_like(delta)
            for part in rows.to(x.device).split(chunk_size(x)):
                v = leaf(delta)
                seen = in_box(x[part] + v)
                seen = seen if transform is None else transform(seen, source)
                gains = [_gain(m, seen, goal[part], part, loss, beta) for m, goal in zip(models, goals, strict=True)]
                total = torch.stack(gains).sum()
                value, g = value + total.detach() / len(rows), g + differentiate(total, v)
            if k == 0:
                check_gradient(value, g)
            if trace is not None:
                trace.add(value, delta)
            delta = _within(within.step(delta, g, step * (1 - k / steps)), norm, eps)
    if trace is not None:
        trace.close()
    return delta


def _gain(model: nn.Module, seen: Tensor, goal: Goal, rows: Tensor, loss: Loss, beta: float | None) -> Tensor:
    """min(ℓ, β), (n,)."""
    with asking(model, rows):
        z = model(laid_out(seen))
    check_differentiable(z)
    gain = goal.gain(z, loss)
    return gain if beta is None else gain.clamp(max=beta)


def _batches(n: int, batch: int, source: torch.Generator) -> Iterator[Tensor]:
    """Rows without end: in a new order at each pass, `batch` at a time."""
    while True:
        yield from torch.randperm(n, generator=source, device=source.device).split(batch)


# --- image after image ----------------------------------------------------------------------------------------------


def uap(
    model: nn.Module, x: Tensor, *, eps: float, norm: str = "linf", rounds: int = 10, enough: float = 0.8,
    steps: int = 10, overshoot: float = 0.02, top: int | None = 10, generator: torch.Generator | None = None,
) -> Tensor:
    """The first algorithm: for each image that δ does not fool, add DeepFool's shortest step over its boundary.

        if f([x_i + δ]) = ŷ_i:   r ← DeepFool(x_i + δ),   δ ← Π(δ + r)

    in a new order in each round, until the share `enough` of the images is fooled. DeepFool (l2, `steps` steps, `top`
    classes) walks through [x_i + δ + r], what the model is shown: a step is so long that what the box leaves of it
    reaches the plane, ten times as long at most, and what it adds to a saturated pixel stays in r. A walk that has not
    crossed the boundary by its last step but two is left out, as in the original, which knows no box.
    Cost, image by image: one forward pass, and for one that is not fooled up to 2 · `steps` forward and
    `steps` · (top − 1) backward passes; per round one forward pass of all.
    Source: Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017, algorithm 1; constants of its code.
    """
    def walk(live: Live) -> Tensor | None:
        live.v = live.x
        for _ in range(max(1, steps - 2)):
            r = to_the_nearest_plane(live, leaf(live.v.clamp(0, 1)), "l2", top and top - 1).detach()
            live.v = live.v + (1 + overshoot) * _as_shown(r, live.v)
            with torch.no_grad():
                if bool(live.goal.reached(live.ask(live.v.clamp(0, 1)))):
                    return live.v - live.x
        return None

    return _in_turn(model, x, None, walk, eps=eps, norm=norm, rounds=rounds, enough=enough, generator=generator,
                    steps=steps, overshoot=overshoot, top=top)


def targeted_uap(
    model: nn.Module, x: Tensor, target: int, *, eps: float, norm: str = "linf", rounds: int = 10,
    enough: float = 1.0, step: float | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """For each image that δ does not bring to the target, one targeted step: δ ← Π(δ + step · steepest of −ℓ(·, t)).

    Every step is kept. The original keeps only those that reach the target at once; where none does, as on most
    networks at first, its δ stays zero for ever. The default step is eps/10.
    Cost, image by image: one forward pass, and one more with a backward pass for one that is not there; per round one
    forward pass of all.
    Source: Hirano and Takemoto, Simple iterative method for generating targeted universal adversarial perturbations,
    Algorithms 2020, algorithm 1.
    """
    def push(live: Live) -> Tensor:
        v = leaf(live.x)
        g = live.grad(live.goal.gain(live.ask(in_box(v))), v)
        return ball(norm, eps).step(torch.zeros_like(g), g, eps / 10 if step is None else step)

    return _in_turn(model, x, _class(target), push, eps=eps, norm=norm, rounds=rounds, enough=enough,
                    generator=generator, step=step)


def _in_turn(
    model: nn.Module, x: Tensor, target: int | None, push: Callable[[Live], Tensor | None], *, eps, norm, rounds,
    enough, generator, **settings,
) -> Tensor:
    """δ ← Π(δ + push(x_i + δ)) for the images that are not fooled, until enough are."""
    if isinstance(model, SEVERAL):
        raise TypeError("this algorithm takes one model: universal and targeted_universal take several")
    eps = _checked(x, norm, eps, rounds=rounds, generator=generator, **settings)
    if not 0 < enough <= 1:
        raise ValueError(f"enough is a share of the images, in (0, 1], not {enough!r}")
    x, source = x.detach(), alike(generator)
    with borrowed(model, x):
        goal = _goal(model, x, target)
        delta = torch.zeros_like(x[:1])
        for _ in range(rounds):
            for row in torch.randperm(len(x), generator=source, device=source.device).to(x.device).split(1):
                with asking(model, row):
                    live = Live(model, x[row] + delta, goal[row])
                    with torch.no_grad():
                        there = bool(live.goal.reached(live.ask(shifted(x[row], delta))))
                    r = None if there else push(live)
                if r is not None:
                    delta = _within(delta + r, norm, eps)
            if float(goal.reached(logits(model, shifted(x, delta))).double().mean()) >= enough:
                break
    return delta


# --- what both stand on ---------------------------------------------------------------------------------------------


def in_box(v: Tensor) -> Tensor:
    """v cut to [0, 1]; gradients pass as if it were not cut, so that δ is learnt where an image is saturated, too."""
    return v + (v.detach().clamp(0, 1) - v.detach())


def _as_shown(r: Tensor, v: Tensor) -> Tensor:
    """The step r from v, lengthened so that [v + r] is where v + r would be without a box, measured along r; at most
    `LONGEST` times, and as it is where the box leaves nothing of it."""
    kept = float((r * ((v + r).clamp(0, 1) - v.clamp(0, 1))).sum())
    return r * min(float(r.square().sum()) / kept, LONGEST) if kept > 0 else r


def _goal(model: nn.Module, x: Tensor, target: int | None) -> Goal:
    """Away from what the model says of x, or towards the target for all images. Cost: one forward pass."""
    classes = check_model(model.model if isinstance(model, QueryCounter) else model, x)
    y = logits(model, x).argmax(1)
    if target is None:
        return Goal(y)
    if not 0 <= target < classes:
        raise ValueError(f"target is {target}, the model has the classes 0 … {classes - 1}")
    if bool((y == target).all()):
        raise ValueError(f"the model answers {target}, the target, for all of these images as they are: give it images "
                         "of other classes")
    return Goal(y, torch.full_like(y, target))


def _class(target: int) -> int:
    """The target as a whole number."""
    try:
        if not isinstance(target, bool):
            return operator.index(target)
    except TypeError:
        pass
    said = f"a tensor of {tuple(target.shape)}" if isinstance(target, Tensor) else repr(target)
    raise TypeError(f"target must be one class number for all images, not {said}")


def _checked(x: Tensor, norm: str, eps: float, **settings) -> float:
    """eps as a number in the precision of x, once everything is checked."""
    check_images(x)
    checked = check_settings({"eps": eps, **settings}, x)
    eps = checked["eps"]
    if isinstance(eps, Tensor) or isinstance(checked.get("step"), Tensor):
        raise ValueError("eps and step must be one number each: there is one δ for all images")
    if norm not in ("linf", "l2"):
        raise ValueError(f"the norm of a universal perturbation must be 'linf' or 'l2', not {norm!r}")
    ball(norm, eps)
    return eps


def _within(delta: Tensor, norm: str, eps: float) -> Tensor:
    """The nearest δ in the ball alone; in l2 a few roundings further in, so that it is in it whoever adds it up."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    length = float(L2.norm(delta.double()))
    return delta * (eps / length * (1 - 4 * torch.finfo(delta.dtype).eps)) if length > eps else delta
