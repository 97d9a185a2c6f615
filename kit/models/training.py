"""How a network is fitted to images: cross-entropy or another loss, AdamW or SGD, one cycle of the learning rate.

`fit` stands below all that trains (poisoned sets, defences, ensembles); what is trained by name stands in `kit.train`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core.checks import check_fits, check_images
from kit.core.seeding import ambient_randomness_kept
from kit.models.decoders import DECODERS
from kit.models.registry import build

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
Gradients = tuple[Tensor, Sequence[Tensor | None]]
Oracle = Callable[[nn.Module, list[nn.Parameter], Tensor, Tensor, torch.Generator], Gradients]
Watch = Callable[[int, nn.Module], None]
Before = Callable[[int, int], None]
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained. `build` are the arguments of its family.

    `train(recipe, x, y, *, device, seed, progress, **options) -> Module` is `fit` where it is None, and
    `measure(recipe, model, x, y) -> dict` says what the manifest records of it on the test images, its "accuracy"
    among it; None is the share that it classifies rightly. Raises ValueError for numbers that no training can have.
    """

    data: str
    family: str
    build: dict[str, Any] = field(default_factory=dict)
    images: int | None = None  # of the training split; None is all
    epochs: int = 14
    batch: int = 64
    lr: float = 4e-3
    weight_decay: float = 1e-2
    shift: int = 0  # random translations by up to this many pixels
    flip: bool = False  # random left-right mirroring
    train: Callable[..., nn.Module] | None = None
    options: dict[str, Any] = field(default_factory=dict)  # the settings of `train`
    measure: Callable[..., dict[str, float]] | None = None

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("epochs", 1), ("batch", 1), ("shift", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: at least {least} is needed to train")
        if not 0 < self.lr < float("inf") or not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"lr must be positive and weight_decay 0 or more, not {self.lr:g}, {self.weight_decay:g}")

    def as_dict(self) -> dict[str, Any]:
        """For the manifest, where what a recipe does not use is left out."""
        values = asdict(self) | {"train": _dotted(self.train) or "fit", "measure": _dotted(self.measure)}
        return {k: v for k, v in values.items() if v or k not in ("options", "measure")}


def _dotted(function: Callable | None) -> str | None:
    return None if function is None else f"{function.__module__}.{function.__qualname__}"


class Checkpoint(Protocol):
    """Where `fit` keeps its state after each epoch: `kit.train.Checkpoint`."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any]) -> None: ...


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return F.cross_entropy(model(x).float(), y)


def fit(
    r: Recipe, x: Tensor, y: Tensor, *, device: torch.device, seed: int = 0, progress: Progress | None = None,
    loss: Loss = cross_entropy, momentum: float | None = None, cutout: int = 0, half: bool = False,
    before: Before | None = None, checkpoint: Checkpoint | None = None, start: nn.Module | None = None,
    oracle: Oracle | None = None, replays: int = 1, memory: dict[str, Tensor] | None = None, watch: Watch | None = None,
) -> nn.Module:
    """min over θ of E[loss(f_θ, t(x), y)], t a random translation and mirroring where the recipe says so.

    The loss of a batch may draw random numbers from the generator that it is given: adversarial training perturbs the
    images there. AdamW, or SGD with Nesterov's `momentum` where one is given; the learning rate rises to `lr` over 30 %
    of the steps and falls to zero along a cosine. `cutout` blanks a square of that side in every image; `half`
    multiplies in bfloat16, twice as fast on processors that know it (and `train` rounds the weights to half precision).
    `before(step, steps)` is called before every step, `progress(step, steps, loss)` after it, `watch(epochs done,
    model)` after every epoch. With a `checkpoint` a training that was stopped goes on at its last whole epoch, and ends
    in the same weights. `start` is trained itself, from the weights that it has, in place of a fresh network of the
    recipe's family.

    Who needs more than the gradient of a loss gives an `oracle(model, weights, x, y, generator) -> (loss, gradient of
    each weight)` in its place. Each batch is learnt from `replays` times in a row, and what an oracle carries from step
    to step is in `memory`, which the checkpoint keeps.
    Nothing of the caller's is changed, the ambient random state included. Raises for images that are none
    (`check_images`) or of another dtype than the network, and ValueError where the loss is NaN or infinite, and names
    the step. Cost: `epochs` times `replays` times the passes of the loss (or oracle) over x.
    """
    oracle = oracle or differentiated(loss)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"every image needs one label: there are {len(x)} images and {len(y)} labels")
    check_images(x)
    if y.dim() == 1 and y.dtype != torch.int64:
        raise TypeError(f"y must hold class numbers as int64, not {y.dtype}: use y.long()")
    with ambient_randomness_kept(device), torch.enable_grad():
        torch.manual_seed(seed)
        model = build(r, norm=True) if start is None else start.train()
        model = model.to(device).to(memory_format=torch.channels_last)
        if r.family not in DECODERS:  # which are given features, not images
            check_fits(model, x[:1].to(device))
        generator = torch.Generator().manual_seed(seed)
        batch = min(r.batch, len(x))
        per_epoch = len(x) // batch
        steps = r.epochs * per_epoch * replays
        weights = list(model.parameters())
        optimiser: torch.optim.Optimizer = (
            torch.optim.AdamW(weights, lr=r.lr, weight_decay=r.weight_decay) if momentum is None
            else torch.optim.SGD(weights, lr=r.lr, weight_decay=r.weight_decay, momentum=momentum, nesterov=True))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, r.lr, total_steps=max(2, steps), cycle_momentum=momentum is None)
        state = State(model, optimiser, schedule, generator, device, {} if memory is None else memory)
        first = state.restore(None if checkpoint is None else checkpoint.load())
        for epoch in range(first, r.epochs):
            order = torch.randperm(len(x), generator=generator)
            values = []
            for i in range(per_epoch * replays):
                step, batch_of = epoch * per_epoch * replays + i, i // replays
                if i % replays == 0:
                    rows = order[batch_of * batch : (batch_of + 1) * batch]
                    xb = blank(augment(x[rows].to(device), r.shift, r.flip, generator), cutout, generator)
                    xb, yb = xb.contiguous(memory_format=torch.channels_last), y[rows].to(device)
                if before is not None:
                    before(step, steps)
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    value, gradients = oracle(model, weights, xb, yb, generator)
                for weight, gradient in zip(weights, gradients, strict=True):  # others that the loss asks get none
                    weight.grad = gradient
                optimiser.step()
                schedule.step()
                values.append(value.detach())
                if progress is not None:
                    progress(step + 1, steps, value.item())
            check_finite(torch.stack(values), epoch, r)
            if watch is not None:
                watch(epoch + 1, model)
            if checkpoint is not None and epoch + 1 < r.epochs:
                checkpoint.save(state.kept(epoch + 1))
    for weight in weights:
        weight.grad = None
    return model


def differentiated(loss: Loss) -> Oracle:
    """The oracle that asks the loss for its value, and autograd for the gradient. Cost: one backward pass."""

    def oracle(
        model: nn.Module, weights: list[nn.Parameter], x: Tensor, y: Tensor, generator: torch.Generator
    ) -> Gradients:
        value = loss(model, x, y, generator)
        with torch.autocast(x.device.type, enabled=False):  # a backward pass follows its forward pass
            return value, torch.autograd.grad(value, weights, allow_unused=True)

    return oracle


def check_finite(values: Tensor, epoch: int, r: Recipe) -> None:
    """Raise for the first step of an epoch whose loss is NaN or infinite. Read once an epoch, so that none waits."""
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        i = int(bad[0])
        raise ValueError(f"the loss is {values[i].item()} at step {epoch * len(values) + i + 1}, in epoch {epoch + 1}: "
                         f"lower the recipe's lr={r.lr:g}")


class State:
    """All that a training changes as it goes on, to be kept and restored: after it, the next step is the same one."""

    def __init__(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator, device: torch.device, memory: dict[str, Tensor],
    ):
        self.parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
        self.generator, self.device, self.memory = generator, device, memory

    def kept(self, epoch: int) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"epoch": epoch, "generator": self.generator.get_state(), "ambient": torch.get_rng_state()}
        state["memory"] = {name: value.cpu() for name, value in self.memory.items()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, state: dict[str, Any] | None) -> int:
        """The number of epochs that lie behind."""
        if state is None:
            return 0
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.memory.update({name: value.to(self.device) for name, value in state["memory"].items()})
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["ambient"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        return state["epoch"]


def augment(x: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image translated by up to `shift` pixels both ways (its edge repeated), and mirrored half the time."""
    n, _, h, w = x.shape
    if shift:
        x = F.pad(x, [shift] * 4, mode="replicate")
        top, left = torch.randint(0, 2 * shift + 1, (2, n), generator=generator)
        rows, columns = (top[:, None] + torch.arange(h)).to(x.device), (left[:, None] + torch.arange(w)).to(x.device)
        image = torch.arange(n, device=x.device)[:, None, None]
        x = x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = (torch.rand(n, generator=generator) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


def blank(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Each image with a mid-grey square of `side` pixels at a random place within it; 0 changes nothing."""
    if not side:
        return x
    n, _, h, w = x.shape
    top, left = (torch.randint(0, size - side + 1, (n, 1), generator=generator) for size in (h, w))
    rows, columns = torch.arange(h), torch.arange(w)
    inside = ((rows >= top) & (rows < top + side))[:, None, :, None] & (
        (columns >= left) & (columns < left + side))[:, None, None, :]
    return x.masked_fill(inside.to(x.device), 0.5)
