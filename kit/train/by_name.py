"""A network of the catalogue, trained again by its recipe."""
from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import kit.data
from kit.core import accuracy, fold_batch_norm
from kit.core import device as pick_device
from kit.core.seeding import ambient_randomness_kept
from kit.models import user_folder
from kit.models.training import Progress, Recipe, fit
from kit.train.checkpoints import Checkpoint
from kit.train.recipes import recipe


def train(
    name: str,
    *,
    device: str = "auto",
    seed: int = 0,
    epochs: int | None = None,
    n: int | None = None,
    progress: Progress | None = None,
    resume: bool = True,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a network by its recipe; returns it (folded, in eval mode, on the CPU) and its manifest entry.

    `epochs` and `n` (training images) replace the recipe's, for a quick try. `progress(step, steps, loss)` is called
    after every step. The same seed gives the same weights on one machine with one number of threads, and the same
    accuracy (± 1 point) elsewhere. The ambient random state is left as it was. `kit.models.save` stores the result.

    With `resume` the state is kept after every epoch in `checkpoints` of the user's folder until the training is
    done, so that the same call goes on where one was stopped, and gives the same weights.
    """
    r = recipe(name)
    if epochs is not None:
        r = replace(r, epochs=epochs)
    data = kit.data.load(r.data, "train", n=r.images if n is None else n, seed=seed)
    where = pick_device(device)
    started = time.perf_counter()
    trainer = r.train or fit
    how: dict[str, Any] = {"device": where, "seed": seed, "progress": progress, **r.options}
    checkpoint = None
    if resume and _takes(trainer, "checkpoint"):
        about = {"recipe": r.as_dict(), "seed": seed, "device": where.type, "torch": torch.__version__,
                 "x": data.x, "y": data.y}
        how["checkpoint"] = checkpoint = Checkpoint(user_folder() / "checkpoints", name, about)
    with ambient_randomness_kept(where):
        model = trainer(r, data.x, data.y, **how)
    if checkpoint is not None:
        checkpoint.delete()
    model = fold_batch_norm(model.eval().cpu(), data.x[:2])
    if r.options.get("half"):  # stored so too: what is measured is what is loaded
        model = model.half().float()
    test = kit.data.load(r.data, "test")
    figures = (r.measure or clean_accuracy)(r, model, test.x, test.y)
    entry = {
        "name": name,
        "family": r.family,
        **{k: round(v, 4) for k, v in figures.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": len(data),
        "seed": seed,
        "seconds": round(time.perf_counter() - started),
        "torch": torch.__version__.partition("+")[0],
        "recipe": r.as_dict(),
    }
    return model, entry


def _takes(function: Callable, argument: str) -> bool:
    """Whether a function has this argument, or any: a trainer of one's own need not know of checkpoints."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


def clean_accuracy(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """What the manifest records where the recipe names nothing else."""
    return {"accuracy": accuracy(model, x, y)}
