"""Images whose gradient is the one that was sent: by L-BFGS on its squared distance, or signed Adam on its angle."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.minimal.quasi_newton import minimise
from kit.core import adam, borrowed, check_images, check_model, check_settings, chunk_size, leaf, optimise, uniform
from kit.core.loop import Memory, Rule, differentiate
from kit.core.seeding import Draws
from kit.poison.leakage.closed import check_known, check_shared, leak_labels
from kit.poison.leakage.shared import Shared, gradients, norms

# Where L-BFGS begins: it takes what is below 1e-12 for no curvature, and gradients fall by many orders of magnitude.
LARGE = 1e6


def leak(
    model: nn.Module, shared: Shared, shape: tuple[int, int, int], *, batch: int = 1, y: Tensor | None = None,
    steps: int = 300, restarts: int = 1, pairs: int = 20, nonzero: bool = False, start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Deep leakage from gradients: argmin over x in [0, 1] of ‖g(x, y) − g*‖² / ‖g*‖², by L-BFGS in the box.

    y          labels (clients · batch,), or None: each image then has a soft label softmax(u) of its own, found with it
    pairs      how many changes L-BFGS remembers
    nonzero    compare only entries of g* that are not zero, as whoever sees that a client prunes will do
    start      images (clients · batch, C, H, W) to begin from; None: U(0, 1)

    Second derivatives of the network are needed: with ReLU they are zero, and the descent stalls. Returns images
    (clients · batch, C, H, W). Cost: about restarts · steps forward and backward passes, differentiated twice.
    Source: Zhu et al., algorithm 1, from N(0, 1) and without the box; their batches share one soft label.
    """
    def solve(match: _Match, v: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.zeros(len(v), batch * match.classes if y is None else 0).to(v)
        low, high = (torch.cat([torch.full_like(v, a), torch.full_like(u, b)], 1)
                     for a, b in ((0.0, -torch.inf), (1.0, torch.inf)))

        def f(w: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            w = leaf(w)
            images, free = w.split([v.shape[1], u.shape[1]], 1)
            value = match.squared(images, free if y is None else None, rows) / scale[rows] * LARGE
            return value.detach(), differentiate(value, w)

        w, everyone = torch.cat([v, u], 1), torch.arange(len(v), device=v.device)
        scale = torch.ones_like(v[:, 0])
        scale = f(w, everyone)[0].clamp_min(torch.finfo(v.dtype).tiny) / LARGE
        w = minimise(f, w, low, high, steps=steps, pairs=pairs, tolerance=1e-9)
        return w[:, :v.shape[1]], f(w, everyone)[0] * scale / LARGE

    return _solved(model, shared, shape, batch, y, restarts, nonzero, start, generator, solve,
                   {"steps": steps, "restarts": restarts})


def leak_cosine(
    model: nn.Module, shared: Shared, shape: tuple[int, int, int], *, batch: int = 1, y: Tensor | None = None,
    steps: int = 1000, restarts: int = 1, lr: float = 0.05, lam_tv: float = 1e-3, nonzero: bool = False,
    start: Tensor | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """Inverting gradients: argmin over x in [0, 1] of 1 − cos(g(x, y), g*) + λ TV(x), by Adam on the gradient's sign.

    The cosine is over all parameters together; TV is the mean of |differences| of neighbours. The rate falls by ten
    after 3/8, 5/8 and 7/8 of the steps. Without y the labels are those of `leak_labels`. The rest as for `leak`.
    A gradient that was scaled or clipped has the same angle. The sign moves where a small gradient would not, so that
    ReLU is less of a hindrance. Cost: restarts · steps forward and backward passes, differentiated twice.
    Source: Geiping et al., equation 4 and section 6; there lr 0.1 in units of the pixels' standard deviation.
    """
    if y is None:
        y = leak_labels(model, shared, shape, batch=batch)

    def solve(match: _Match, v: Tensor) -> tuple[Tensor, Tensor]:
        def objective(v: Tensor, k: int) -> Tensor:
            return -match.angle(v) - lam_tv * total_variation(v.view(-1, *shape)).view(len(v), batch).mean(1)

        v = optimise(objective, v, steps=steps, rule=signed_adam(lr, steps), project=lambda v: v.clamp(0, 1),
                     keep="best")
        with torch.no_grad():
            return v, -objective(v, steps)

    return _solved(model, shared, shape, batch, y, restarts, nonzero, start, generator, solve,
                   {"steps": steps, "restarts": restarts, "lr": lr, "lam_tv": lam_tv})


def total_variation(x: Tensor) -> Tensor:
    """The mean |difference| of pixels one below and one beside the other, (N,)."""
    return x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))


def signed_adam(lr: float, steps: int) -> Rule:
    """Adam that sees the sign of the gradient, its rate a tenth after 3/8, 5/8 and 7/8 of the steps."""

    def rule(v: Tensor, g: Tensor, memory: Memory) -> Tensor:
        done = float(memory.get("t", 0))
        return adam(lr * 0.1 ** sum(done >= part * steps for part in (3 / 8, 5 / 8, 7 / 8)))(v, g.sign(), memory)

    return rule


class _Match:
    """How far the gradients of images v (M, B·C·H·W), flat, are from those that were sent, one row for each start."""

    def __init__(self, model: nn.Module, wanted: Shared, shape: tuple[int, int, int], classes: int, y: Tensor | None,
                 nonzero: bool):
        self.model, self.wanted, self.shape, self.classes = model, wanted, shape, classes
        self.labels = torch.empty(0) if y is None else F.one_hot(y, classes)  # (M, B, K)
        self.seen = {name: (w != 0).to(w) for name, w in wanted.items()} if nonzero else None
        self.size = _dot(wanted, wanted)

    def gradients(self, v: Tensor, free: Tensor | None, rows: Tensor | slice) -> tuple[Shared, Shared]:
        images = v.view(len(v), -1, *self.shape)
        p = self.labels[rows].to(v) if free is None else free.view(len(v), -1, self.classes).softmax(2)
        g = gradients(self.model, images, p, list(self.wanted))
        if self.seen is not None:
            g = {name: part * self.seen[name][rows] for name, part in g.items()}
        return g, {name: w[rows] for name, w in self.wanted.items()}

    def squared(self, v: Tensor, free: Tensor | None, rows: Tensor) -> Tensor:
        g, wanted = self.gradients(v, free, rows)
        off = {name: g[name] - wanted[name] for name in g}
        return _dot(off, off) / self.size[rows]

    def angle(self, v: Tensor) -> Tensor:
        g, wanted = self.gradients(v, None, slice(None))
        tiny = torch.finfo(v.dtype).tiny
        return 1 - _dot(g, wanted) / (_dot(g, g).clamp_min(tiny) * self.size).sqrt()


def _dot(a: Shared, b: Shared) -> Tensor:
    return torch.stack([(a[name] * b[name]).flatten(1).sum(1) for name in a]).sum(0)


def _solved(
    model: nn.Module, shared: Shared, shape: tuple[int, int, int], batch: int, y: Tensor | None, restarts: int,
    nonzero: bool, start: Tensor | None, generator: torch.Generator | None,
    solve: Callable[[_Match, Tensor], tuple[Tensor, Tensor]], settings: dict[str, Any],
) -> Tensor:
    """The images of every client, some clients at a time: for each its starts, solved, and the best of them."""
    like, clients = check_shared(model, shared, shape, batch)
    check_settings(settings | {"generator": generator})
    if start is not None:
        check_images(start)
    if start is not None and start.shape != (clients * batch, *shape):
        raise ValueError(f"start must have the shape {(clients * batch, *shape)}, not {tuple(start.shape)}")
    if bool((silent := norms(shared) == 0).any()):
        raise ValueError(f"the gradient of client {int(silent.nonzero()[0])} is zero: nothing of its images is in it")
    draws, found = Draws(clients, generator), []
    with borrowed(model, like):
        classes = check_model(model, like)
        check_known(y, like, clients * batch, classes)
        few = max(1, chunk_size(like) // (batch * restarts))
        for rows in torch.arange(clients).split(few):
            if start is None:
                v = uniform(like.new_empty(len(rows), restarts, batch * like.numel()), draws[rows]).flatten(0, 1)
            else:
                v = start.detach().to(like).view(clients, -1)[rows].repeat_interleave(restarts, 0)
            at = rows.to(like.device)
            known = None if y is None else y.view(clients, batch)[at].repeat_interleave(restarts, 0)
            wanted = {name: g.detach().to(like)[at].repeat_interleave(restarts, 0) for name, g in shared.items()}
            v, value = solve(_Match(model, wanted, shape, classes, known, nonzero), v)
            best = value.view(-1, restarts).argmin(1)
            found.append(v.view(len(rows), restarts, -1)[torch.arange(len(rows)).to(best), best])
    return torch.cat(found).view(clients * batch, *shape).detach()
