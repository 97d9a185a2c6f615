"""The inner maximisation of a training step: a few steps uphill, and no more care than a training can pay for."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kit.core import ball, borrowed, laid_out, leaf
from kit.core.checks import check_settings
from kit.core.seeding import generator as seeded


def ascend(
    model: nn.Module, objective: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, *, eps: float, step: float,
    steps: int, norm: str = "linf",
) -> Tensor:
    """From `start`, `steps` times x' ← Π(x' + the longest climb of objective(x') -> () within `step`); the last x'.

    `pgd` of `kit.attacks` keeps the best of all steps, checks its input and draws for each image apart; here a batch is
    one thing, since only its sum is learnt from. The model is in evaluation mode meanwhile.
    Cost: `steps` forward and backward passes.
    """
    within, v = ball(norm, eps), start
    with borrowed(model, x):
        for _ in range(steps):
            v = leaf(v)
            (g,) = torch.autograd.grad(objective(laid_out(v)), v)
            v = within.project(within.step(v.detach(), g, step), x)
    return v


def nearby(generator: torch.Generator, x: Tensor) -> torch.Generator:
    """A generator on the device of x, seeded by the training's: a million numbers a step are drawn where they are used.
    """
    if x.device.type == "cpu":
        return generator
    return seeded(int(torch.randint(2**62, (), generator=generator)), x.device)


class Growing:
    """The `share` of ε (or of another disturbance): from 0 to 1 over the first `ramp` of the steps, then 1.

    `fit` says before each step where it is: `fit(…, before=grown)`.
    """

    def __init__(self, ramp: float):
        if not 0 <= ramp <= 1:
            raise ValueError(f"ramp is a share of the steps between 0 and 1, not {ramp:g}")
        self.ramp, self.share = ramp, 0.0

    def __call__(self, step: int, steps: int) -> None:
        rising = int(self.ramp * steps)
        self.share = step / rising if step < rising else 1.0


def check(**settings: Any) -> None:
    """Refuse settings that make no sense, before the first step. None stands for a default."""
    check_settings(settings)
    for name in ("m", "n"):
        if (value := settings.get(name, 1)) != int(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, not {value}")
    if not 0 <= (clean := settings.get("clean", 0.0)) <= 1:
        raise ValueError(f"clean is a share of the loss between 0 and 1, not {clean:g}")
