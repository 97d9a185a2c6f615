"""Corner cases made by metamorphic synthesis: change an image in a way that keeps its label, and watch the model's.

    x' = T(x; v)        v: one number, in the unit of T        T(x; v₀) = x exactly, at the identity v₀

A transformation has one parameter. `search` walks it from the identity to its extreme and stops where the model's
error passes a threshold; the images so transformed that the model gets wrong are the successful corner cases (SCCs).
Every transformation takes a batch (N, C, H, W) and a number, or one number per image (N,); it is differentiable in
both, and image i's result depends on image i alone. What comes from outside an image is black.

Source: Wu et al., Deep Validation, DSN 2019. That T leaves the label alone is the metamorphic relation (Zhang et al.,
DeepRoad, ASE 2018): it says what the right answer is without asking a person.
"""
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kit.core import check_images, check_labels, fooled, logits


def warp(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """x'(p) = x(A (p − c) + c − t): p a pixel (column, row), c the centre; bilinear, black outside.

    matrix (N, 2, 2) maps an output pixel back to its source, shift (N, 2) is in pixels to the right and down. Sources
    at whole pixels are read exactly, so that A = I, t = 0 gives back x bit by bit.
    """
    n, _, height, width = x.shape
    centre = x.new_tensor([(width - 1) / 2, (height - 1) / 2])
    rows, columns = torch.meshgrid(
        torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij")
    offset = torch.stack([columns, rows], -1).view(-1, 2).to(x.dtype) - centre
    source = (matrix[:, None] * offset[None, :, None]).sum(-1) + centre - shift[:, None]
    corner = source.detach().floor()
    weight = source - corner
    flat, out = x.flatten(2), torch.zeros_like(x.flatten(2))
    for right in (0, 1):
        for down in (0, 1):
            column, row = corner[..., 0] + right, corner[..., 1] + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            value = flat.gather(2, index[:, None].expand(-1, x.shape[1], -1))
            share = (weight[..., 0] if right else 1 - weight[..., 0]) * (weight[..., 1] if down else 1 - weight[..., 1])
            out = out + value * (share * inside)[:, None]
    return out.view_as(x)


def rotate(x: Tensor, degrees: float | Tensor) -> Tensor:
    """Turn counter-clockwise about the centre, by an angle in degrees."""
    angle = torch.deg2rad(_column(degrees, x))
    cos, sin = angle.cos(), angle.sin()
    return warp(x, _matrix(cos, -sin, sin, cos), x.new_zeros(len(x), 2))


def shear(x: Tensor, factor: float | Tensor) -> Tensor:
    """Slant to the right: the pixel v rows below the centre is read s v columns further right, s in pixels per row."""
    s = _column(factor, x)
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return warp(x, _matrix(one, s, zero, one), x.new_zeros(len(x), 2))


def scale(x: Tensor, factor: float | Tensor) -> Tensor:
    """Shrink (factor < 1) or enlarge about the centre; the factor is the ratio of lengths and must not be zero."""
    s = 1 / _column(factor, x)
    return warp(x, _matrix(s, torch.zeros_like(s), torch.zeros_like(s), s), x.new_zeros(len(x), 2))


def translate(x: Tensor, pixels: float | Tensor) -> Tensor:
    """Move to the right and down by the same number of pixels."""
    t = _column(pixels, x)
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    return warp(x, _matrix(one, zero, zero, one), torch.stack([t, t], 1))


def brightness(x: Tensor, shift: float | Tensor) -> Tensor:
    """clamp(x + b, 0, 1), b in pixel units (the range of a pixel is 1)."""
    return (x + _column(shift, x).view(-1, 1, 1, 1)).clamp(0, 1)


def contrast(x: Tensor, gain: float | Tensor) -> Tensor:
    """clamp(½ + a (x − ½), 0, 1): a gain about mid-grey; 0 is a grey image, a large gain a black and white one."""
    return (x + (_column(gain, x).view(-1, 1, 1, 1) - 1) * (x - 0.5)).clamp(0, 1)


def complement(x: Tensor, amount: float | Tensor = 1.0) -> Tensor:
    """(1 − a) x + a (1 − x): the negative at amount a = 1, the image at 0."""
    return x + _column(amount, x).view(-1, 1, 1, 1) * (1 - 2 * x)


def _column(value: float | Tensor, x: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if value.dim() > 1 or (value.dim() and len(value) != len(x)):
        raise ValueError(f"a parameter is one number or ({len(x)},), one per image, not {tuple(value.shape)}")
    return value.expand(len(x))


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


@dataclass(frozen=True)
class Transformation:
    """A family of label-keeping changes: `transformation(x, value)`, value in `unit`, from `identity` to `extreme`.

    A transformation that is not `graded` is there or not: the search tries its extreme alone.
    """

    name: str
    function: Callable[[Tensor, float | Tensor], Tensor]
    unit: str
    identity: float
    extreme: float
    graded: bool = True

    def __call__(self, x: Tensor, value: float | Tensor) -> Tensor:
        return self.function(x, value)

    def at(self, fraction: float) -> float:
        """The parameter at this fraction of the way from the identity to the extreme."""
        return self.identity + (fraction if self.graded else 1.0) * (self.extreme - self.identity)


TRANSFORMATIONS = {
    t.name: t for t in (
        Transformation("rotation", rotate, "degrees counter-clockwise", 0.0, 90.0),
        Transformation("shear", shear, "pixels to the right per row", 0.0, 1.6),
        Transformation("scale", scale, "ratio of lengths", 1.0, 0.3),
        Transformation("translation", translate, "pixels right and down", 0.0, 10.0),
        Transformation("complement", complement, "share of the negative", 0.0, 1.0, graded=False),
        Transformation("brightness", brightness, "added, pixel range 1", 0.0, 0.95),
        Transformation("contrast", contrast, "gain about mid-grey", 1.0, 0.05),
    )
}


def transform(x: Tensor, parameters: Mapping[str, float | Tensor]) -> Tensor:
    """Apply several transformations in the order of the mapping: `transform(x, {"complement": 1.0, "scale": 0.6})`."""
    check_images(x)
    for name, value in parameters.items():
        x = _named(name)(x, value)
    return x.clamp(0, 1)


def _named(name: str) -> Transformation:
    if name not in TRANSFORMATIONS:
        raise ValueError(f"there is no transformation {name!r}: choose among {', '.join(TRANSFORMATIONS)}")
    return TRANSFORMATIONS[name]


@dataclass(frozen=True)
class Found:
    """What `search` found: the parameters, the model's error there, and the error along the way.

    `reached` says whether the error passed the threshold; where it did not, the parameters are those of largest error.
    """

    name: str
    parameters: dict[str, float]
    error: float
    reached: bool
    fractions: tuple[float, ...]
    errors: tuple[float, ...]

    def describe(self) -> str:
        """The parameters with their units, in one line."""
        return "; ".join(f"{n} {v:.3g} ({TRANSFORMATIONS[n].unit})" for n, v in self.parameters.items())


def search(
    model: nn.Module, x: Tensor, y: Tensor, names: str | Iterable[str], *, error: float = 0.6, steps: int = 40,
) -> Found:
    """The mildest parameters at which the model gets a share `error` of the images wrong.

        t* = min { t ∈ {1/steps, 2/steps, …, 1} : mean 1[argmax f(T(x; v(t))) ≠ y] ≥ error },   v(t) = v₀ + t (v₁ − v₀)

    Several names make a combination, whose graded parameters go together from identity to extreme. To be run on
    development images that the model classifies rightly. Cost: at most `steps` forward passes.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    chosen = [_named(name) for name in names]
    if not chosen:
        raise ValueError("name at least one transformation")
    if not 0 < error <= 1:
        raise ValueError(f"error is a share above 0 and at most 1, not {error:g}")
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}")
    check_images(x)
    check_labels(y, x, logits(model, x[:1]).shape[1])
    tried = [k / steps for k in range(1, steps + 1)] if any(t.graded for t in chosen) else [1.0]
    errors: list[float] = []
    for fraction in tried:
        wrong = fooled(model, transform(x, {t.name: t.at(fraction) for t in chosen}), y)
        errors.append(float(wrong.float().mean()))
        if errors[-1] >= error:
            break
    best = max(range(len(errors)), key=errors.__getitem__)
    parameters = {t.name: t.at(tried[best]) for t in chosen}
    return Found(" + ".join(names), parameters, errors[best], errors[best] >= error, tuple(tried[:len(errors)]),
                 tuple(errors))


@dataclass(frozen=True)
class CornerCases:
    """Transformed images of one kind: x (N, C, H, W), their labels y, and `success`, where the model is wrong (N,)."""

    name: str
    x: Tensor
    y: Tensor
    success: Tensor

    @property
    def rate(self) -> float:
        return float(self.success.float().mean())

    @property
    def successful(self) -> Tensor:
        """The SCCs alone (n, C, H, W)."""
        return self.x[self.success]


def synthesise(model: nn.Module, x: Tensor, y: Tensor, found: Found) -> CornerCases:
    """The corner cases of these seeds at the parameters found. Cost: two forward passes.

    Seeds that the model gets wrong as they are, are left out: their failure would not be the transformation's.
    """
    check_images(x)
    z = logits(model, x)
    check_labels(y, x, z.shape[1])
    right = z.argmax(1) == y
    if not bool(right.any()):
        raise ValueError("the model gets every seed wrong: corner cases start from images that it classifies rightly")
    x, y = transform(x[right], found.parameters), y[right]
    return CornerCases(found.name, x, y, fooled(model, x, y))
