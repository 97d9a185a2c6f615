"""What users get wrong, said once and in one sentence. Errors for what is wrong, warnings for what misleads."""
import warnings

import torch
from torch import Tensor, nn


class MisleadingModel(UserWarning):
    """The call goes on, but its result says less than it seems to."""


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


def check_labels(y: Tensor, x: Tensor, classes: int, name: str = "y") -> None:
    """Labels are one class number per image, in 0 … K−1, on the images' device. Raises TypeError or ValueError."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must be a torch tensor of class numbers, not {type(y).__name__}")
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


def check_model(model: nn.Module, x: Tensor) -> int:
    """Ask the model twice about two images, and return its number of classes K.

    Raises for another device or dtype than the images', an output that is not finite logits (N, K), or probabilities.
    Warns (MisleadingModel) when the two answers differ. Cost: two forward passes of at most two images.
    """
    for parameter in getattr(model, "parameters", lambda: ())():
        if parameter.device != x.device:
            raise ValueError(f"the images are on {x.device} and the model on {parameter.device}: move one with .to()")
        if parameter.is_floating_point() and parameter.dtype != x.dtype:
            raise TypeError(f"the images are {x.dtype} and the model {parameter.dtype}: use x.to({parameter.dtype})")
        break
    with torch.no_grad():
        z, again = model(x[:2]), model(x[:2])
    if not isinstance(z, Tensor):
        raise TypeError(f"the model must return logits (N, K), not a {type(z).__name__}: wrap it to return the tensor")
    if z.dim() != 2 or len(z) != len(x[:2]) or z.shape[1] < 2:
        raise ValueError(f"the model must return logits (N, K) with K ≥ 2: {len(x[:2])} images gave {tuple(z.shape)}")
    if not bool(z.isfinite().all()):
        raise ValueError("the model returned NaN or infinity for these images: check its weights and its input range")
    if bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError("the model returns probabilities: remove its softmax, so that it returns logits")
    if not torch.allclose(z, again, rtol=1e-3, atol=1e-4):
        warnings.warn(
            "the model answers differently when asked twice: one gradient of a randomised model misleads an attack; "
            "average several (expectation over transformation)", MisleadingModel, stacklevel=4)
    return z.shape[1]


def check_gradient(value: Tensor, g: Tensor) -> None:
    """Raise for a NaN objective or gradient; warn (MisleadingModel) for images whose gradient is exactly zero."""
    if not bool(value.isfinite().all()) or not bool(g.isfinite().all()):
        raise ValueError("the objective or its gradient is NaN or infinite: check the model and the objective")
    still = int((g.flatten(1) == 0).all(1).sum())
    if still:
        warnings.warn(
            f"the gradient is exactly zero for {still} of {len(g)} images, which cannot move: the model may hide it "
            "(rounding, a saturated output), so that failure here says nothing about robustness",
            MisleadingModel, stacklevel=5)
