"""Adversarial training: the inner maximum of a linear network in the box, what free training meets, nine targets."""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise

Gradient = Callable[[Tensor], Tensor]


def margin_cases(g: torch.Generator) -> Iterator[Case]:
    for eps in (0.1, 0.3):
        y = torch.tensor([0, 1, 1, 0, 1, 0])
        yield torch.randn(2, 20, generator=g), torch.rand(6, 20, generator=g), y, eps


def towards(W: Tensor, y: Tensor) -> Tensor:
    """The weights of the margin z_y − z_other, (N, d)."""
    return W[y] - W[1 - y]


def margin_drop(W: Tensor, x: Tensor, y: Tensor, eps: float) -> Tensor:
    w = towards(W, y)
    return (w.abs() * torch.where(w > 0, x, 1 - x).clamp_max(eps)).sum(1)


exercise(
    "margin-drop",
    "margin_drop(W, x, y, eps) -> (N,), by how much the worst image with |x' − x| ≤ ε in every pixel, and in [0, 1], "
    "lowers the margin z_y − z_other of the linear network z = W x; W (2, d), x (N, d)",
    margin_drop, margin_cases,
    [
        ("no-op", lambda W, x, y, eps: eps * towards(W, y).abs().sum(1),
         ["that is the formula without the box.", "a pixel at x can go down by x at most, and up by 1 − x at most."]),
        ("room on the wrong side", lambda W, x, y, eps: margin_drop(W, 1 - x, y, eps),
         ["yours moves each pixel where there is room on its other side.",
          "where the margin's weight is positive the pixel goes down: min(ε, x)."]),
        ("room on both sides", lambda W, x, y, eps: (towards(W, y).abs() * torch.minimum(x, 1 - x).clamp_max(eps))
         .sum(1), ["a pixel moves one way: the other end does not matter.", "where(w > 0, x, 1 − x), cut at ε."]),
        ("one row for the difference", lambda W, x, y, eps: (
            W[y].abs() * torch.where(W[y] > 0, x, 1 - x).clamp_max(eps)).sum(1),
         ["that is how far z_y falls; the other logit moves, too.", "w = W[y] − W[1 − y]."]),
        ("class 1 always", lambda W, x, y, eps: margin_drop(W, x, torch.ones_like(y), eps),
         ["yours does not ask for the label.", "w = W[y] − W[1 − y]: for label 0 the signs turn."]),
        ("sign error", lambda W, x, y, eps: -margin_drop(W, x, y, eps),
         ["a drop is positive.", "what the margin loses: Σ |w| · room."]),
        ("mean for sum", lambda W, x, y, eps: margin_drop(W, x, y, eps) / x.shape[1],
         ["yours is the drop per pixel.", "a linear network adds up: ‖w‖₁ is a sum."]),
    ],
)


def batch_cases(g: torch.Generator) -> Iterator[Case]:
    for m, eps in ((1, 0.1), (3, 0.2)):
        A, b = torch.randn(6, 6, generator=g), torch.randn(6, generator=g)
        A[:, 0], b[0] = 0.0, 0.0  # of the first value nothing depends
        yield _slope(A, b), torch.rand(4, 3, 6, generator=g), eps, m


def _slope(A: Tensor, b: Tensor) -> Gradient:
    return lambda v: (3 * v @ A + b).sin()


def free_deltas(
    gradient: Gradient, batches: Tensor, eps: float, m: int, *, reset: bool = False, late: bool = False,
    step: Callable[[Tensor], Tensor] = torch.sign, most: float = 1.0, seen: bool = True,
) -> Tensor:
    """What each pass learns from; the options are the mistakes."""
    delta, met = batches.new_zeros(batches.shape[1:]), []
    for x in batches:
        delta = 0 * delta if reset else delta
        for _ in range(m):
            before = delta
            v = (x + delta).clamp(0, 1) if seen else x
            delta = (delta + eps * step(gradient(v))).clamp(-most * eps, most * eps)
            met.append(delta if late else before)
    return torch.stack(met)


exercise(
    "free-deltas",
    "free_deltas(gradient, batches, eps, m) -> (B·m, N, d), the δ of each pass of free training before that pass steps "
    "it by ε sign(gradient((x + δ) cut to [0, 1])) and cuts it to ± ε; batches (B, N, d), each taken m times, first δ "
    "zero",
    free_deltas, batch_cases,
    [
        ("no-op", lambda gradient, batches, eps, m: torch.zeros(len(batches) * m, *batches.shape[1:]),
         ["only the first pass meets δ = 0.", "δ is stepped in every pass, and kept."]),
        ("reset", lambda *a: free_deltas(*a, reset=True),
         ["yours begins anew with each batch: with m = 1 that is plain training.",
          "one δ for all batches, set to zero once, before the first."]),
        ("after the step", lambda *a: free_deltas(*a, late=True),
         ["yours is what the *next* pass meets.", "keep δ first, then step it."]),
        ("no cut", lambda *a: free_deltas(*a, most=99.0),
         ["your δ leaves the ball.", "clamp(−ε, ε) after each step."]),
        ("sign error", lambda *a: free_deltas(*a, step=lambda g: -g.sign()),
         ["yours goes down the loss.", "δ + ε sign g."]),
        ("no sign", lambda *a: free_deltas(*a, step=lambda g: g),
         ["yours follows the gradient's size.", "ε times its sign."]),
        ("gradient at the image", lambda *a: free_deltas(*a, seen=False),
         ["the pass that gives the gradient sees the perturbed image.", "gradient((x + δ).clamp(0, 1))."]),
    ],
)


def target_cases(g: torch.Generator) -> Iterator[Case]:
    for K in (4, 6):
        W, x = torch.randn(K, 12, generator=g), torch.rand(40, 12, generator=g)
        yield *_game(W, 0.06), x, (x @ W.T).argmax(1), K


def _game(W: Tensor, eps: float) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The strongest targeted attack on a linear network, and whether images are answered wrongly."""
    return (lambda x, y, target: x + eps * (W[target] - W[y]).sign()), lambda v, y: (v @ W.T).argmax(1) != y


def first_that_fools(
    attack: Callable[..., Tensor], wrong: Callable[..., Tensor], x: Tensor, y: Tensor, K: int, *, last: bool = False,
    onward: bool = False, keep: bool = False, ways: int = 99,
) -> Tensor:
    """One target after the other, and what fools is kept; the options are the mistakes."""
    best = x.clone()
    for k in range(1, min(K, ways + 1)):
        v = attack(best if onward else x, y, (y + k) % K)
        taken = (wrong(v, y) | keep) & (~wrong(best, y) | last)
        best = torch.where(taken[:, None], v, best)
    return best


exercise(
    "nine-ways",
    "nine_ways(attack, wrong, x, y, K) -> (N, d), for each image the first of attack(x, y, target) that is wrong, for "
    "the targets y + 1, y + 2, …, y + K − 1 modulo K in this order, and x where none is; wrong(v, y) -> (N,) bool",
    first_that_fools, target_cases,
    [
        ("no-op", lambda attack, wrong, x, y, K: x,
         ["it gives x back.", "try one target after the other, and keep what fools."]),
        ("one target", lambda *a: first_that_fools(*a, ways=1),
         ["yours tries one target.", "K − 1 of them: (y + k) % K for k from 1 to K − 1."]),
        ("last that fools", lambda *a: first_that_fools(*a, last=True),
         ["yours replaces an image that fools already.", "ask about those only that are still right."]),
        ("whatever came last", lambda *a: first_that_fools(*a, last=True, keep=True),
         ["the last target overwrites what the others found.", "keep v only where wrong(v, y)."]),
        ("kept though it fools nobody", lambda *a: first_that_fools(*a, keep=True),
         ["some of your images are neither x nor wrong.", "where no target is reached, x itself."]),
        ("out of the ball", lambda *a: first_that_fools(*a, keep=True, onward=True),
         ["yours begins where the last attack ended: it leaves the ball around x.", "attack(x, …) every time."]),
    ],
)
