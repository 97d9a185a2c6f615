"""What users get wrong, said once and in one sentence. Errors for what is wrong, warnings for what misleads."""
import math
import operator
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class MisleadingModel(UserWarning):
    """The call goes on, but its result says less than it seems to."""


def warn(message: str) -> None:
    """Warn (MisleadingModel) at the line outside of this package that made the call, however deep it is."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("kit", "torch", "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, MisleadingModel, stacklevel=level)


def check_images(x: Tensor) -> None:
    """Images are a float tensor (N, C, H, W) in [0, 1], not empty, without NaN. Raises TypeError or ValueError."""
    if not isinstance(x, Tensor):
        raise TypeError(f"images must be a torch tensor, not {type(x).__name__}: use torch.as_tensor(x)")
    if x.dim() != 4:
        hint = ": add the batch axis with x[None]" if x.dim() == 3 else ""
        raise ValueError(f"images must have the shape (N, C, H, W), not {tuple(x.shape)}{hint}")
    if x.numel() == 0:
        raise ValueError(f"the batch is empty: its shape is {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"images must be floats in [0, 1], not {x.dtype}: use x.float() / 255")
    if x.shape[1] > 4 and x.shape[3] in (1, 3):
        raise ValueError(f"images of shape {tuple(x.shape)} have the channels last: use x.permute(0, 3, 1, 2)")
    low, high = (float(v) for v in x.detach().aminmax())
    if not (low == low and high == high):
        raise ValueError(f"images hold NaN, {int(x.isnan().flatten(1).any(1).sum())} of {len(x)} of them")
    if low < -1e-6 or high > 1 + 1e-6:
        hint = (
            "divide them by 255" if low >= 0 and high <= 255
            else "if they are normalised, undo that and let the model begin with kit.core.Normalize(mean, std)"
        )
        raise ValueError(f"images must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]: {hint}")


def check_start(start: Tensor, x: Tensor, several: bool = False) -> Tensor:
    """`start`, the images that an attack begins from, in the dtype of x: one for each of x (N, C, H, W), or for all;
    where `several` may be given for each, also (N, S, C, H, W). Raises TypeError or ValueError."""
    if not isinstance(start, Tensor):
        raise TypeError(f"start must be a torch tensor, not {type(start).__name__}: use torch.as_tensor(start)")
    if start.dim() not in (4, 5)[:1 + several] or start.shape[-3:] != x.shape[1:]:
        raise ValueError(f"start must have the images' shape, (N, C, H, W){' or (N, S, C, H, W)' if several else ''}, "
                         f"not {tuple(start.shape)}")
    try:
        check_images(start.flatten(0, -4))
    except (TypeError, ValueError) as error:
        raise type(error)(f"start is of no use: {error}") from None
    return start.to(x)


def check_labels(y: Tensor, x: Tensor, classes: int, name: str = "y") -> None:
    """Labels are one class number per image, in 0 … K−1, on the images' device. Raises TypeError or ValueError."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must be a torch tensor of class numbers, one for each image, not {type(y).__name__}")
    if y.dim() == 2 and y.shape == (len(x), classes):
        raise ValueError(f"{name} is one-hot: use {name}.argmax(1)")
    if y.shape != (len(x),):
        raise ValueError(f"{name} must have the shape ({len(x)},), one label per image, not {tuple(y.shape)}")
    if y.dtype != torch.int64:
        raise TypeError(f"{name} must hold class numbers as int64, not {y.dtype}: use {name}.long()")
    if y.device != x.device:
        raise ValueError(f"{name} is on {y.device} and the images on {x.device}: use {name}.to(x.device)")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"{name} holds {int(y.min())} … {int(y.max())}, the model has the classes 0 … {classes - 1}")


def check_fits(model: nn.Module, x: Tensor) -> None:
    """The model's parameters are on the images' device and of their dtype. Raises ValueError or TypeError."""
    for parameter in getattr(model, "parameters", lambda: ())():
        if parameter.device != x.device:
            raise ValueError(f"the images are on {x.device} and the model on {parameter.device}: move one with .to()")
        if parameter.is_floating_point() and parameter.dtype != x.dtype:
            raise TypeError(f"the images are {x.dtype} and the model {parameter.dtype}: use x.to({parameter.dtype})")
        break


def check_model(model: nn.Module, x: Tensor) -> int:
    """Ask the model twice about two images, and return its number of classes K.

    Raises for another device or dtype than the images', an output that is not finite logits (N, K), probabilities, or
    a model that changes the images it is given. Warns (MisleadingModel) when the two answers differ.
    Cost: two forward passes of at most two images.
    """
    check_fits(model, x)
    few = x[:2].detach().clone()
    with torch.no_grad():
        z, again = model(few), model(x[:2].detach().clone())
    if not isinstance(z, Tensor):
        raise TypeError(f"the model must return logits (N, K), not a {type(z).__name__}: wrap it to return the tensor")
    if not torch.equal(few, x[:2]):
        raise ValueError("the model changes the images it is given in place: let it compute new ones (x - mean, not "
                         "x.sub_(mean); ReLU(inplace=False) as the first layer)")
    if z.dim() != 2 or len(z) != len(x[:2]) or z.shape[1] < 2:
        raise ValueError(f"the model must return logits (N, K) with K ≥ 2: {len(x[:2])} images gave {tuple(z.shape)}")
    if not bool(z.isfinite().all()):
        raise ValueError("the model returned NaN or infinity for these images: check its weights and its input range")
    if bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError("the model returns probabilities: remove its softmax, so that it returns logits")
    if not torch.allclose(z, again, rtol=1e-3, atol=1e-4):
        warn("the model answers differently when asked twice: one gradient of a randomised model misleads an attack; "
             "average several (expectation over transformation)")
    return z.shape[1]


def check_gradient(value: Tensor, g: Tensor, done: Tensor | None = None) -> None:
    """Raise for a NaN objective or gradient; warn (MisleadingModel) for images whose gradient is exactly zero, but for
    those that are `done` (N,) and need none."""
    if not bool(value.isfinite().all()) or not bool(g.isfinite().all()):
        raise ValueError("the objective or its gradient is NaN or infinite: check the model and the objective")
    zero = (g.flatten(1) == 0).all(1)
    still = int((zero if done is None else zero & ~done).sum())
    if still:
        warn(f"the gradient is exactly zero for {still} of {len(g)} images, which cannot move: the model may hide it "
             "(rounding, a saturated output), so that failure here says nothing about robustness")


# --- hyper-parameters -----------------------------------------------------------------------------------------------

# A word means the same in every method, so that its range is said once. A count is a whole number.
COUNTS = ("steps", "rounds", "restarts", "samples", "batches", "copies", "outer", "inner", "epochs", "batch", "top",
          "max_queries", "candidates", "many", "probes", "q", "switch", "tries", "unroll", "each")
RANGES: dict[str, tuple[float, float, bool]] = {  # lowest, highest, and whether the lowest itself is allowed
    **dict.fromkeys(("step", "lr", "c", "tiny", "h", "rho", "growth", "sharpness"), (0.0, math.inf, False)),
    **dict.fromkeys(
        ("eps", "mu", "eta", "kappa", "beta", "overshoot", "sigma", "damping", "blur"), (0.0, math.inf, True)),
    **dict.fromkeys(  # a sign may be turned
        ("lam", "lam_tap", "lam_tv", "lam_print", "lam_style", "lam_content", "gamma", "alpha"),
        (-math.inf, math.inf, True)),
    "p": (0.0, 1.0, True),
}
PER_IMAGE = ("eps", "step")  # may be given as one number for each image


def check_settings(values: Mapping[str, Any], x: Tensor | None = None) -> dict[str, Any]:
    """The values whose names this package knows, checked; with images x, `eps` and `step` in their dtype and device.

    Raises ValueError or TypeError for a count that is no whole number or below 1, for NaN, and for what is out of
    range or has another length than the images. None passes: it stands for a default.
    """
    checked = dict(values)
    for name, value in values.items():
        if value is None and name != "eps":
            continue
        if name in COUNTS:
            checked[name] = _count(name, value)
        elif name in PER_IMAGE and x is not None:
            checked[name] = _per_image(name, value, x)
        elif name in RANGES and not isinstance(value, Tensor | bool):
            _in_range(name, value, value)
        elif name == "generator" and not hasattr(value, "manual_seed") and not hasattr(value, "alike"):
            raise TypeError(f"generator must be a torch.Generator such as kit.core.generator(0), not {value!r}")
    return checked


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raises ValueError for what is no whole number, True and False among them, or below `least`."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: a whole number, {least} at least, is needed")


def _count(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be 1 or more, not {number}")
    return number


def _per_image(name: str, value: Any, x: Tensor) -> float | Tensor:
    """A number, or one for each image (N,), in the dtype of the images."""
    try:
        numbers = torch.as_tensor(value)
        if numbers.dtype == torch.bool or numbers.is_complex():
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, or a tensor of one number for each image, not {value!r}") from None
    if numbers.dim() and numbers.shape != (len(x),):
        raise ValueError(f"{name} must be a number or have the shape ({len(x)},), one for each image, "
                         f"not {tuple(numbers.shape)}")
    _in_range(name, float(numbers.min()), float(numbers.max()))
    return numbers.detach().to(x) if numbers.dim() else float(torch.as_tensor(value, dtype=x.dtype))


def _in_range(name: str, low: Any, high: Any) -> None:
    least, most, allowed = RANGES[name]
    try:
        fits = math.isfinite(low) and math.isfinite(high) and least <= low and high <= most
        fits = fits and (allowed or low > least)
    except TypeError:
        raise TypeError(f"{name} must be a number, not {low!r}") from None
    if not fits:
        bound = f"{'at least' if allowed else 'more than'} {least:g}" + f" and at most {most:g}" * (most < math.inf)
        if not math.isfinite(high):
            bound = f"finite and {bound}"
        bound = "finite" if least == -math.inf else bound
        value = f"{low:g}" if low == high or math.isnan(low) else f"{low:g} to {high:g}"
        raise ValueError(f"{name} must be {bound}, not {value}")
