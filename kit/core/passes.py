"""How passes through a model are run, decided once: chunk size, memory layout, evaluation mode, nothing leaked."""
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kit.core.checks import check_fits, check_images, check_labels, check_model, check_settings
from kit.core.loop import Trace
from kit.core.model import QueryCounter, asking
from kit.core.seeding import Draws, ambient_randomness_kept

# Small chunks stay in the cache: on a CPU one batch of 1536 costs 2 to 3 times more per image than one of 64.
PIXELS = {"cpu": 64 * 32 * 32, "cuda": 2048 * 32 * 32}


def chunk_size(x: Tensor) -> int:
    """How many of these images go through a model together: 64 of 32×32 on a CPU, at least 8 of any size."""
    return max(8, PIXELS.get(x.device.type, PIXELS["cuda"]) // (x.shape[-1] * x.shape[-2]))


def chunks(x: Tensor) -> Iterator[slice]:
    """The slices of a batch that go through a model together."""
    size = chunk_size(x)
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


def laid_out(x: Tensor) -> Tensor:
    """Channels last on a CPU, where convolutions then need 0.5 to 0.8 of the time; convolutions pass the layout on.

    With one channel the two layouts hold the same numbers in the same order: only the strides say which is meant, and
    most operations on a tensor forget them, so that a loop asks again before each pass.
    """
    if x.device.type != "cpu":
        return x
    if x.shape[1] == 1:
        return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def borrowed(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Evaluation mode and gradients on inside; after it the modes and the ambient random state are as they were."""
    modes = [(m, m.training) for m in getattr(model, "modules", lambda: ())()]
    try:
        with ambient_randomness_kept(x.device), torch.inference_mode(False), torch.enable_grad():
            for module, _ in modes:
                module.training = False
            yield
    finally:
        for module, training in modes:
            module.training = training


class PerImage:
    """Something that is no tensor and has one row for each image, or one for all: `len` says how many, `[rows]` takes
    some of them."""


def per_image(function: Callable) -> Any:
    """Make `function(model, x, …)`, written for one chunk of images, a method that keeps the contracts on any batch.

    It checks the images, the labels (`y`, `target`), the model and the settings (`check_settings`); borrows the model;
    splits the batch into chunks; and joins the results, which are tensors (N, …), or tuples or dictionaries of them.
    Every tensor (and `PerImage`) among the arguments is split too: it must have one row for each image, or one for all.
    The function receives as `generator` the `Draws` of its images, whatever it was called with, and a `trace` and a
    `QueryCounter` see whose images they deal with.
    With `create_graph=True` the images enter with their graph and the results keep theirs, through every chunk.
    """
    signature = inspect.signature(function)
    if unnamed := [p.name for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]:
        raise TypeError(f"{function.__name__} takes {unnamed[0]!r} by its place: let every argument have a name")
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

    @functools.wraps(function)
    def method(*args, **kwargs):
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        values = dict(call.arguments)
        values.update(values.pop(rest, {}))
        model, x = values["model"], values["x"]
        check_images(x)
        values.update(check_settings(values, x))
        if not values.get("create_graph"):
            values["x"] = x = x.detach()
        with borrowed(model, x):
            classes = check_model(model.model if isinstance(model, QueryCounter) else model, x)
            several = {}
            for name, value in values.items():
                if name in ("y", "target") and (value is not None or name == "y"):
                    check_labels(value, x, classes, name)
                if isinstance(value, Tensor | PerImage) and getattr(value, "shape", True) != ():
                    several[name] = _rows_for(name, value, x)
            if "generator" in values and not isinstance(values["generator"], Draws):
                values["generator"] = Draws(len(x), values["generator"])
            draws = values.get("generator")
            trace = values.get("trace")
            if isinstance(trace, Trace):
                trace.clear()
            results = []
            for rows in chunks(x):
                for name, value in several.items():
                    part = value[rows] if len(value) == len(x) else value
                    values[name] = laid_out(part) if isinstance(part, Tensor) and part.dim() == 4 else part
                if isinstance(draws, Draws):
                    values["generator"] = draws[rows]
                with asking(model, torch.arange(rows.start, rows.stop)):
                    results.append(function(**values))
                if isinstance(trace, Trace):
                    trace.close()
        return _joined(results)

    return method


def _rows_for(name: str, value: Any, x: Tensor) -> Any:
    """The value, if it has one row for each image or one for all. Raises ValueError for another number of rows."""
    if len(value) not in (1, len(x)):
        raise ValueError(f"{name} has {len(value)} rows for {len(x)} images: give one for each, or one for all")
    return ordinary(value) if isinstance(value, Tensor) else value


def ordinary(value: Tensor) -> Tensor:
    """A copy of what was made under torch.inference_mode, which autograd refuses; else the tensor itself."""
    return value.clone() if value.is_inference() else value


def take(index: Tensor, *values: Any) -> list[Any]:
    """The rows `index` of each argument that is a tensor with one entry per image, and the others as they are."""
    return [v[index] if isinstance(v, Tensor) and v.dim() else v for v in values]


def _joined(results: list) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        return torch.cat([r.detach() if not r.requires_grad else r for r in results]).contiguous()
    if isinstance(first, dict):
        return {key: _joined([r[key] for r in results]) for key in first}
    return type(first)(_joined(list(parts)) for parts in zip(*results, strict=True))


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits (N, K), in chunks, in evaluation mode, without gradients. Cost: one forward pass.

    Raises ValueError or TypeError for images and models that make no sense, and where a logit is NaN or infinite.
    """
    check_images(x)
    with borrowed(model, x), torch.no_grad():
        check_fits(model, x)
        parts = []
        for rows in chunks(x):
            with asking(model, torch.arange(rows.start, rows.stop)):
                parts.append(model(laid_out(x[rows].clone())))  # its own: a model may change what it is given
    z = torch.cat(parts)
    if z.dim() != 2:
        raise ValueError(f"the model must return logits (N, K), not {tuple(z.shape)}")
    if not bool(z.isfinite().all()):
        bad = int((~z.isfinite()).any(1).sum())
        raise ValueError(f"the model returned NaN or infinity for {bad} of {len(x)} images: check its weights")
    return z


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that the model labels y. Cost: one forward pass."""
    z = logits(model, x)
    check_labels(y, x, z.shape[1])
    return float((z.argmax(1) == y).float().mean())


def fooled(model: nn.Module, x_adv: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Whether each returned image is classified as something else than y, or as its target: (N,) bool.

    Success is always measured so, on the tensor that an attack returned. Cost: one forward pass.
    """
    z = logits(model, x_adv)
    check_labels(y, x_adv, z.shape[1])
    if target is None:
        return z.argmax(1) != y
    check_labels(target, x_adv, z.shape[1], "target")
    return z.argmax(1) == target
