"""How a network is fitted to images: cross-entropy or another loss, AdamW or SGD, one cycle of the learning rate.

`fit` stands below all that trains (poisoned sets, defences, ensembles); what is trained by name stands in `kit.train`.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core.seeding import ambient_randomness_kept
from kit.models.registry import build

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
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
) -> nn.Module:
    """min over θ of E[loss(f_θ, t(x), y)], t a random translation and mirroring where the recipe says so.

    The loss of a batch may draw random numbers from the generator that it is given: adversarial training perturbs the
    images there. AdamW, or SGD with Nesterov's `momentum` where one is given; the learning rate rises to `lr` over 30 %
    of the steps and falls to zero along a cosine. `cutout` blanks a square of that side in every image; `half`
    multiplies in bfloat16, twice as fast on processors that know it (and `train` rounds the weights to half precision).
    `before(step, steps)` is called before every step, `progress(step, steps, loss)` after it. With a `checkpoint` a
    training that was stopped goes on at its last whole epoch, and ends in the same weights. `start` is trained itself,
    from the weights that it has, in place of a fresh network of the recipe's family.
    Nothing of the caller's is changed, the ambient random state included. Raises ValueError where the loss is NaN.
    Cost: `epochs` times the loss's forward and backward passes over x.
    """
    if len(x) != len(y) or not len(x):
        raise ValueError(f"every image needs one label: there are {len(x)} images and {len(y)} labels")
    with ambient_randomness_kept(device):
        torch.manual_seed(seed)
        model = build(r, norm=True) if start is None else start.train()
        model = model.to(device).to(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(seed)
        batch = min(r.batch, len(x))
        per_epoch = len(x) // batch
        steps = r.epochs * per_epoch
        weights = list(model.parameters())
        optimiser: torch.optim.Optimizer = (
            torch.optim.AdamW(weights, lr=r.lr, weight_decay=r.weight_decay) if momentum is None
            else torch.optim.SGD(weights, lr=r.lr, weight_decay=r.weight_decay, momentum=momentum, nesterov=True))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, r.lr, total_steps=max(2, steps), cycle_momentum=momentum is None)
        state = State(model, optimiser, schedule, generator, device)
        first = state.restore(None if checkpoint is None else checkpoint.load())
        for epoch in range(first, r.epochs):
            order = torch.randperm(len(x), generator=generator)
            for i in range(per_epoch):
                step, rows = epoch * per_epoch + i, order[i * batch : (i + 1) * batch]
                xb = blank(augment(x[rows], r.shift, r.flip, generator), cutout, generator)
                xb = xb.to(device).contiguous(memory_format=torch.channels_last)
                if before is not None:
                    before(step, steps)
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    value = loss(model, xb, y[rows].to(device), generator)
                gradients = torch.autograd.grad(value, weights, allow_unused=True)
                for weight, gradient in zip(weights, gradients, strict=True):  # others that the loss asks get none
                    weight.grad = gradient
                optimiser.step()
                schedule.step()
                if progress is not None:
                    progress(step + 1, steps, value.item())
            if not bool(value.isfinite()):
                raise ValueError(f"the loss is {value.item()} after epoch {epoch + 1}: lower the recipe's lr={r.lr:g}")
            if checkpoint is not None and epoch + 1 < r.epochs:
                checkpoint.save(state.kept(epoch + 1))
    for weight in weights:
        weight.grad = None
    return model


class State:
    """All that a training changes as it goes on, to be kept and restored: after it, the next step is the same one."""

    def __init__(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator, device: torch.device,
    ):
        self.parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
        self.generator, self.device = generator, device

    def kept(self, epoch: int) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"epoch": epoch, "generator": self.generator.get_state(), "ambient": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, state: dict[str, Any] | None) -> int:
        """The number of epochs that lie behind."""
        if state is None:
            return 0
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
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
        rows, columns = top[:, None] + torch.arange(h), left[:, None] + torch.arange(w)
        x = x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
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
    return x.masked_fill(inside, 0.5)
