"""Deflection: what a network saw must look like the image, or the image is refused.

A network with a reconstruction r_k(x) for every class k (`kit.models.purifiers.Capsules`) is asked three things about
its answer k = argmax z(x), and one no is enough:

    error     ‖x − r_k(x)‖₂                                is the drawing near the image?
    best      ‖x − r_k(x)‖₂ − min_{j≠k} ‖x − r_j(x)‖₂      is it nearer than the drawings of the other classes?
    cycle     max_{j≠k} z_j(r_k(x)) − z_k(r_k(x))          is the drawing seen as k again?

Attacks that pass are to look like the class that they are taken for: they are deflected, not detected.
Source: Qin, Frosst, Raffel, Cottrell and Hinton, Deflecting adversarial attacks, 2020; Frosst, Sabour and Hinton,
DARCCC: detecting adversaries by reconstruction from class conditional capsules, 2018, for the first of the three.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import accuracy, check_images, fooled, generator, laid_out, margin
from kit.detect import Detector, evade
from kit.models import Recipe, fit

SIGNS = ("error", "best", "cycle")


class Drawing(Protocol):
    """A network that reconstructs: a Capsules, or any other with these three."""

    def capsules(self, x: Tensor) -> Tensor: ...

    def answers(self, v: Tensor) -> Tensor: ...

    def draw(self, v: Tensor, k: Tensor) -> Tensor: ...


def check_draws(model: nn.Module) -> None:
    """The network reconstructs. Raises TypeError."""
    lacking = [name for name in ("capsules", "answers", "draw") if not callable(getattr(model, name, None))]
    if lacking:
        raise TypeError(f"a {type(model).__name__} draws no images, it has no method {lacking[0]!r}: deflection needs "
                        'a network like kit.models.load("deflect/digits"), of the class kit.models.purifiers.Capsules')


class Deflection(Detector):
    """s(x) = max over the signs of (sign(x) − μ) / σ, with each sign's mean μ and deviation σ on the images of `fit`.

    So all signs count alike, and one threshold, at a stated rate of false alarms, refuses by any of them. (The paper
    has a threshold for the error alone, and refuses by the other two where they are positive.) `signs` may be some of
    "error", "best", "cycle". Raises ValueError for others, and TypeError for a network that draws nothing. Cost: one
    pass, one drawing; with "best" K drawings, with "cycle" a pass more.
    """

    numbers: ClassVar[tuple[str, ...]] = ("tau",)

    def __init__(self, model: nn.Module, signs: Sequence[str] = SIGNS):
        super().__init__(model)
        check_draws(model)
        signs = (signs,) if isinstance(signs, str) else signs
        if not signs or any(sign not in SIGNS for sign in signs):
            raise ValueError(f"signs are some of {', '.join(SIGNS)}, not {signs!r}")
        self.signs = tuple(signs)
        self.mean: Tensor | None = None
        self.deviation: Tensor | None = None

    def fit(self, x: Tensor, y: Tensor | None = None) -> Self:
        """Learn how large each sign is on clean images x. Labels are not needed."""
        values = self.measured(x)
        self.mean, self.deviation = values.mean(0), values.std(0).clamp_min(torch.finfo(values.dtype).tiny)
        return self

    def of(self, x: Tensor) -> Tensor:
        """The signs (N, S) of one chunk, differentiable by x."""
        model: Any = self.model
        v = model.capsules(x)
        z = model.answers(v)
        k = z.argmax(1)
        drawn = model.draw(v, k)
        found = {"error": apart(x, drawn)}
        if "best" in self.signs:
            errors = every(model, x, v)
            others = errors.masked_fill(F.one_hot(k, z.shape[1]).bool(), torch.inf)
            found["best"] = found["error"] - others.amin(1)
        if "cycle" in self.signs:
            found["cycle"] = margin(model.answers(model.capsules(laid_out(drawn))), k)
        return torch.stack([found[sign] for sign in self.signs], 1)

    def measured(self, x: Tensor) -> Tensor:
        """The signs (N, S), in chunks, without gradients."""
        return self._in_chunks(self.of, x)

    def discrepancy(self, x: Tensor) -> Tensor:
        if self.mean is None or self.deviation is None:
            raise ValueError("the signs have no scale yet: call fit(clean images) first")
        return ((self.of(x) - self.mean.to(x)) / self.deviation.to(x)).amax(1)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.mean is None or self.deviation is None else {"mean": self.mean, "deviation": self.deviation}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.mean, self.deviation = tensors.get("mean"), tensors.get("deviation")


def apart(x: Tensor, drawn: Tensor) -> Tensor:
    """‖x − drawn‖₂ (N,); its gradient is finite at 0 too."""
    return ((x - drawn).flatten(1).square().sum(1) + 1e-12).sqrt()


def every(model: Drawing, x: Tensor, v: Tensor) -> Tensor:
    """‖x − r_k(x)‖₂ for every class (N, K). Cost: K drawings."""
    classes = range(v.shape[1])
    return torch.stack([apart(x, model.draw(v, torch.full((len(x),), k, device=x.device))) for k in classes], 1)


def drawings(model: nn.Module, x: Tensor, k: Tensor | None = None) -> Tensor:
    """r_k(x) (N, C, H, W), of the class that the network answers where k (N,) is None. Without gradients."""
    check_images(x)
    check_draws(model)
    drawing: Any = model
    with torch.no_grad():
        v = drawing.capsules(x)
        return drawing.draw(v, drawing.answers(v).argmax(1) if k is None else k)


# --- training -----------------------------------------------------------------------------------------------------


def deflection_training(
    r: Recipe, x: Tensor, y: Tensor, *, drawn: float = 20.0, cycle: float = 0.5, **how: Any
) -> nn.Module:
    """min E[CE(z(x), y) + `drawn` · mean (r_y(x) − x)² + `cycle` · CE(z(r_y(x)), y)], as `fit` does it.

    On clean images alone. Cost: a step of training, the decoder's pass, and one of the encoder's more.
    """
    def loss(model: Any, xb: Tensor, yb: Tensor, source: torch.Generator) -> Tensor:
        check_draws(model)
        v = model.capsules(xb)
        image = model.draw(v, yb)
        again = F.cross_entropy(model.answers(model.capsules(image)).float(), yb)
        return (F.cross_entropy(model.answers(v).float(), yb) + drawn * F.mse_loss(image.float(), xb)
                + cycle * again)

    return fit(r, x, y, loss=loss, **how)


def deflection_figures(r: Recipe, network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: the accuracy, the mean squared error of the drawings, and of 100 images at ε = 0.2 the share
    that a detector with 5 % false alarms lets through wrongly, against an attack that knows it."""
    half, few = len(x) // 2, slice(len(x) // 2, len(x) // 2 + 100)
    detector = Deflection(network).fit(x[: half // 2])
    detector.threshold(x[half // 2 : half])
    x_adv = evade(network, x[few], y[few], detector=detector, eps=0.2, steps=40, generator=generator())
    through = fooled(network, x_adv, y[few]) & ~detector.alarm(x_adv)
    error = (drawings(network, x, y) - x).square().mean()
    return {"accuracy": accuracy(network, x, y), "mse": float(error), "undetected_0.2": float(through.float().mean())}
