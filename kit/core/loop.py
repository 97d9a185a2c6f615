"""The one loop. Half the course optimises something, often not the image itself; methods fill its slots:

    ℓ(v)  = objective(v, k)          what to maximise, one number per image (N,); v may be a mask, a patch, a code
    ℓ, g  = oracle(ℓ, v, memory)     autograd · an average over transforms · a look-ahead · finite differences
    v     ← project(rule(v, g, memory))
    keep                             the last v, or per image the best
"""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kit.core.balls import L1, L2, Linf, column
from kit.core.checks import check_gradient

Memory = dict[str, Any]
Rule = Callable[[Tensor, Tensor, Memory], Tensor]
Oracle = Callable[[Callable[[Tensor], Tensor], Tensor, Memory], tuple[Tensor, Tensor]]


class Trace:
    """What an optimisation did. Pass `trace=Trace()`; afterwards `.values` (steps, N) holds the objective at each step,
    and with `images=True` `.images` (steps, N, C, H, W) the image it was read at."""

    def __init__(self, images: bool = False):
        self.values, self.images = torch.empty(0), torch.empty(0)
        self._wants_images = images
        self._values: list[Tensor] = []
        self._images: list[Tensor] = []

    def add(self, value: Tensor, x: Tensor) -> None:
        self._values.append(value.detach().cpu())
        if self._wants_images:
            self._images.append(x.detach().cpu().contiguous())

    def clear(self) -> None:
        """Forget what an earlier call left, also one that was interrupted."""
        self.values, self.images = torch.empty(0), torch.empty(0)
        self._values.clear()
        self._images.clear()

    def close(self) -> None:
        """Put the chunk of images whose steps are all in beside those before it."""
        for name, steps in (("values", self._values), ("images", self._images)):
            if steps:
                done, new = getattr(self, name), torch.stack(steps)
                setattr(self, name, torch.cat([done, new], 1) if len(done) else new)
                steps.clear()


def optimise(
    objective: Callable[[Tensor, int], Tensor],
    v: Tensor,
    *,
    steps: int,
    rule: Rule,
    oracle: Oracle | None = None,
    project: Callable[[Tensor], Tensor] = lambda v: v,
    keep: str = "last",
    memory: Memory | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """argmax_v objective(v), by `steps` steps from v. Returns the v that `keep` names; v itself is not changed.

    objective(v, k) -> (N,) may read the step k (schedules); oracle(f, v, memory) -> (f(v), ascent direction) and
    rule(v, g, memory) -> v share a memory, so that a look-ahead can read the momentum. keep="best" compares the values
    that the oracle reports, image by image, and evaluates the last v too (one forward pass more).
    Cost: `steps` calls of the oracle; the default one is a forward and a backward pass to the input alone.
    Raises ValueError when the objective is not (N,) or NaN at the first step; warns when a gradient is zero there.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}")
    if keep not in ("last", "best"):
        raise ValueError(f"keep must be 'last' or 'best', not {keep!r}")
    oracle = oracle or gradient
    v = v.detach()
    memory = {} if memory is None else memory
    best_v, best = v, None
    for k in range(steps):

        def f(u: Tensor, k: int = k) -> Tensor:
            return objective(u, k)

        value, g = oracle(f, v, memory)
        if k == 0:
            if value.shape != (len(v),):
                raise ValueError(f"the objective must return one number per image, not the shape {tuple(value.shape)}")
            check_gradient(value, g)
        if trace is not None:
            trace.add(value, v)
        if keep == "best":
            best_v, best = _better(best_v, best, v, value)
        v = project(rule(v, g, memory))
    if keep == "last":
        return v
    with torch.no_grad():
        return _better(best_v, best, v, objective(v, steps))[0]


def _better(best_v, best, v, value):
    value = value.detach()
    if best is None:
        return v, value
    wins = value > best
    return torch.where(wins.view(-1, *[1] * (v.dim() - 1)), v, best_v), torch.where(wins, value, best)


def check_differentiable(value: Tensor | None) -> None:
    """Raise ValueError for what has no graph to the images."""
    if value is None or not value.requires_grad:
        raise ValueError("the model's answer has no gradient, since it is quantised, detached or made under no_grad: "
                         "use a method that needs answers alone, such as square, occlusion or lime")


def differentiate(value: Tensor, v: Tensor, *, create_graph: bool = False, keep_graph: bool = False) -> Tensor:
    """∇_v Σ value. Raises ValueError where the model gives no gradient at all. Cost: one backward pass."""
    check_differentiable(value)
    (g,) = torch.autograd.grad(
        value.sum(), v, create_graph=create_graph, retain_graph=keep_graph or create_graph, allow_unused=True)
    if g is None:
        check_differentiable(g)
    return g


def leaf(v: Tensor) -> Tensor:
    """v as something of its own to differentiate by."""
    return v.detach().requires_grad_()


def gradient(f: Callable[[Tensor], Tensor], v: Tensor, memory: Memory | None = None) -> tuple[Tensor, Tensor]:
    """The oracle that differentiates: (f(v), ∇_v f). Of the sum, since each f_i depends on its own image alone."""
    v = leaf(v)
    value = f(v)
    return value.detach(), differentiate(value, v)


def gradients(z: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """∇_x Σ_k weights_vk z_k for every v: (V, N, K) → (V, N, C, H, W), all from one forward pass.

    One vectorised backward pass; on a CPU one per v, as a vectorised one loses the memory layout there and costs 1.2
    to 3 times as much.
    """
    if x.device.type == "cpu":
        return torch.stack([torch.autograd.grad((w * z).sum(), x, retain_graph=True)[0] for w in weights])
    return torch.func.vmap(lambda w: torch.autograd.grad(z, x, w, retain_graph=True)[0])(weights)


def steepest(ball: Linf | L2 | L1, step: float | Tensor) -> Rule:
    """The longest climb within a step of that norm: the sign (l∞), the normalised gradient (l2), few pixels (l1)."""
    return lambda v, g, memory: ball.step(v, g, step)


def adam(lr: float | Tensor, betas: tuple[float, float] = (0.9, 0.999), tiny: float = 1e-8) -> Rule:
    """Adam, climbing (Kingma and Ba 2015, algorithm 1). lr is one number, or one per image (N,)."""

    def rule(v: Tensor, g: Tensor, memory: Memory) -> Tensor:
        (b1, b2), least = betas, max(tiny, torch.finfo(v.dtype).tiny)
        t = memory["t"] = memory.get("t", torch.zeros(())) + 1
        m = memory["m"] = b1 * memory.get("m", torch.zeros_like(v)) + (1 - b1) * g
        u = memory["u"] = b2 * memory.get("u", torch.zeros_like(v)) + (1 - b2) * g * g
        return v + column(lr, v) * (m / (1 - b1 ** float(t))) / ((u / (1 - b2 ** float(t))).sqrt() + least)

    return rule
