"""What a class is made of: from its occluder to features, channels, a meta-detector, and concepts."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import (
    Draws,
    Goal,
    adam,
    borrowed,
    check_images,
    check_labels,
    check_model,
    check_settings,
    chunks,
    features,
    generator,
    laid_out,
    normal,
    optimise,
)
from kit.core.fitted import Fitted
from kit.explain.afi.concepts import KERNELS, mmd
from kit.explain.afi.occluder import occluded, occluder, shuffled, transformed


class Checked(NamedTuple):
    """For each image (N,), bool: whether f(x) = f(t(x)) = y for every t, and whether y is gone from x − δ, and from it
    after noise and after rotation."""

    premise: Tensor
    plain: Tensor
    noise: Tensor
    rotation: Tensor

    @property
    def shares(self) -> dict[str, float]:
        """The shares of the images with the premise for which each constraint holds, and all three."""
        if not bool(self.premise.any()):
            raise ValueError("the model sees the class in none of these images and their transforms: give others")
        named = self._asdict()
        named["all"] = self.plain & self.noise & self.rotation
        return {name: float(v[self.premise].double().mean()) for name, v in named.items() if name != "premise"}


class Importance(NamedTuple):
    """How the meta-detector tells a concept from random images.

    `score` is √MMD² with the sign of the difference of the mean answers (positive: the concept excites it), `p` the
    share of random divisions of the same images with as large an MMD².
    """

    score: float
    p: float


class Afi(Fitted):
    """`Afi(model, layer).fit(images of one class, y)`, then `concepts`, `generate`, `explain`, `check`.

    layer      whose output (N, C, h, w) the feature maps A are
    noise      t adds U(−noise, noise) to each value        degrees    t rotates by U(−degrees, degrees)
    kappa      by how much another logit has to lead where a constraint is to count as met, in the fit
    share      of the fitted images for which all constraints shall hold
    steps, step, batch    of `occluder`
    kernel     of the MMD: "gaussian", its width the median distance, or "linear"
    controls   R: so many occluders with the values of δ at random places (`shuffled`) say what any disturbance of that
               size takes, and w_c = max(0, Σ_j (s_j − s̄_j)) counts what δ takes beyond their mean s̄. The source has 0

    Cost of `fit`: 3 · batch · steps forward and backward passes of one image, and per 10 steps a forward pass of the
    fitted images and their transforms; 2 + `controls` forward passes for s. Raises ValueError for images of several
    classes, for fewer than 2 that the model sees as y before and after t, and where δ lowers no feature of the layer.
    """

    numbers: ClassVar[tuple[str, ...]] = ("label",)

    def __init__(
        self, model: nn.Module, layer: str, *, noise: float = 0.1, degrees: float = 15.0, kappa: float = 1.0,
        share: float = 0.95, steps: int = 100, step: float = 0.02, batch: int = 24, kernel: str = "gaussian",
        controls: int = 0, seed: int = 0,
    ):
        with features(model, [layer]):  # a name that the model does not have is refused here
            pass
        check_settings({"kappa": kappa, "steps": steps, "step": step, "batch": batch})
        if not 0 <= noise <= 1 or not 0 <= degrees <= 180 or not 0 < share <= 1:
            raise ValueError(f"noise and share lie in [0, 1] and degrees in [0, 180], not {noise}, {share}, {degrees}")
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be 'gaussian' or 'linear', not {kernel!r}")
        if not isinstance(controls, int) or controls < 0:
            raise ValueError(f"controls is a number of shuffled occluders, 0 or more, not {controls!r}")
        self.model, self.layer, self.noise, self.degrees, self.kappa = model, layer, noise, degrees, kappa
        self.share, self.steps, self.step, self.batch = share, steps, step, batch
        self.kernel, self.controls, self.seed = kernel, controls, seed
        self.label: int | None = None
        self.delta = self.importance = self.channels = torch.empty(0)

    def fit(self, x: Tensor, y: Tensor, *, delta: Tensor | None = None) -> Self:
        """Find δ* on images x (N, C, H, W) of one class y (N,), or take `delta` (1, C, H, W); then s, w and f'.

        Another occluder, such as `shuffled(delta)`, is the control: all else stays. `delta` (1, C, H, W), `importance`
        s − s̄ (C, h, w) and `channels` (C,) are kept.
        """
        check_images(x)
        with borrowed(self.model, x):
            check_labels(y, x, check_model(self.model, x))
            if bool((y != y[0]).any()):
                raise ValueError("Afi explains one class: give images of one label, such as x[y == 3], y[y == 3]")
            self.label = int(y[0])
            seen = self._met(x, torch.zeros_like(x[:1]))
            x = x[~seen.any(0)]
            if len(x) < 2:
                raise ValueError(f"the model sees class {self.label} in {len(x)} of these images before and after "
                                 "noise and rotation: give more images, or less noise and fewer degrees")
            if delta is None:
                delta = occluder(
                    self.model, x, self.label, noise=self.noise, degrees=self.degrees, kappa=self.kappa,
                    share=self.share, steps=self.steps, step=self.step, batch=self.batch, source=generator(self.seed))
            elif delta.shape != x[:1].shape:
                raise ValueError(f"delta has the shape {tuple(x[:1].shape)}, one for all images, "
                                 f"not {tuple(delta.shape)}")
            self.delta = delta
            whole, draws = self._maps(x).mean(0), generator(self.seed + 2)

            def lost(delta: Tensor) -> Tensor:
                return (whole - self._maps(occluded(x, delta)).mean(0)).clamp_min(0)

            self.importance = lost(delta)
            if self.controls:
                self.importance = self.importance - sum(
                    lost(shuffled(delta, draws)) for _ in range(self.controls)) / self.controls
        self._weigh()
        return self

    def _weigh(self) -> None:
        w = self.importance.sum((1, 2)).clamp_min(0)
        if not bool(w.sum() > 0):
            raise ValueError(f"the occluder lowers no feature of {self.layer!r}: name another layer, or an occluder "
                             "that takes the class away")
        self.channels = w / w.sum()

    def check(self, x: Tensor) -> Checked:
        """The constraints, image by image, for images x (N, C, H, W) of the class that need not be the fitted ones.

        Cost: five forward passes.
        """
        self._fitted()
        check_images(x)
        with borrowed(self.model, x):
            before = self._met(x, torch.zeros_like(self.delta))
            return Checked(~before.any(0), *self._met(x, self.delta))

    def _met(self, x: Tensor, delta: Tensor) -> Tensor:
        """Whether y is gone from x − δ, with noise, and rotated, (3, N): no draw depends on the image's mates."""
        draws = Draws(len(x), generator(self.seed + 1))
        met = []
        with torch.no_grad():
            for rows in chunks(x):
                o = occluded(x[rows], delta)
                y = torch.full((len(o),), int(self.label or 0), device=x.device)
                versions = transformed(o, self.noise, self.degrees, draws[rows], all_three=True)
                met.append(torch.stack([Goal(y).reached(self.model(laid_out(v))) for v in versions]))
        return torch.cat(met, 1)

    def _fitted(self) -> None:
        if self.label is None:
            raise ValueError("there is no occluder yet: call fit(images of one class, labels) first")

    def _maps(self, x: Tensor) -> Tensor:
        """A (N, C, h, w), in chunks, without gradients."""
        maps = []
        with torch.no_grad(), features(self.model, [self.layer]) as found:
            for rows in chunks(x):
                self.model(laid_out(x[rows]))
                maps.append(found[self.layer])
        if maps[0].dim() != 4:
            raise ValueError(f"the layer {self.layer!r} has no feature maps (N, C, h, w) but {tuple(maps[0].shape)}: "
                             "name a convolution's")
        return torch.cat(maps)

    def detect(self, x: Tensor) -> Tensor:
        """f'(x) (N, h, w), the meta-detector's answer. Cost: one forward pass."""
        self._fitted()
        check_images(x)
        with borrowed(self.model, x):
            return torch.einsum("c,nchw->nhw", self.channels, self._maps(x))

    def explain(self, x: Tensor) -> Tensor:
        """f'(x), resized bilinearly to the image, (N, H, W)."""
        return F.interpolate(self.detect(x)[:, None], x.shape[2:], mode="bilinear", align_corners=False)[:, 0]

    def concepts(
        self, concepts: Mapping[str, Tensor], random: Tensor, *, permutations: int = 200,
    ) -> dict[str, Importance]:
        """How far f' tells the images of each concept (n, C, H, W) from random ones: {name: Importance}, largest first.

        The answers that are compared are the mean and the maximum of f'(x) over its places, so that it does not matter
        where in the image the concept is, each divided by its standard deviation over the random images.
        Cost: one forward pass of all images, and the Gram matrix of each concept with the random images.
        """
        base = self._answers(random)
        spread = base.std(0).clamp_min(1e-12)
        found = {}
        for name, images in concepts.items():
            a, b = self._answers(images) / spread, base / spread
            value, p = mmd(a, b, kernel=self.kernel, permutations=permutations, source=generator(self.seed))
            sign = math.copysign(1.0, float((a.mean(0) - b.mean(0)).sum()))
            found[name] = Importance(sign * math.sqrt(max(value, 0.0)), p)
        return dict(sorted(found.items(), key=lambda item: -item[1].score))

    def _answers(self, x: Tensor) -> Tensor:
        f = self.detect(x).flatten(1).double()
        return torch.stack([f.mean(1), f.amax(1)], 1)

    def generate(
        self, n: int = 1, *, steps: int = 128, lr: float = 0.05, lam: float = 0.1, jitter: int = 4,
    ) -> Tensor:
        """Images (n, C, H, W) that excite the meta-detector: argmax_v mean f'(x) / f'₀ − λ TV(x), x = sigmoid(v).

        f'₀ is the mean answer to the first, nearly grey image, TV the sum over colours of the mean |difference| of
        neighbours; in each step x is shifted by up to `jitter` pixels. Each image starts from its own noise.
        Cost: `steps` forward and backward passes.
        """
        self._fitted()
        check_settings({"steps": steps, "lr": lr, "lam": lam})
        like = self.delta.expand(n, -1, -1, -1)
        v, shifts = normal(like, Draws(n, generator(self.seed)), 0.1), generator(self.seed)
        with borrowed(self.model, self.delta), features(self.model, [self.layer]) as found:

            def answer(x: Tensor) -> Tensor:
                self.model(laid_out(x))
                return torch.einsum("c,nchw->n", self.channels, found[self.layer]) / found[self.layer][0, 0].numel()

            with torch.no_grad():
                first = answer(torch.sigmoid(v)).mean().clamp_min(1e-12)

            def objective(v: Tensor, k: int) -> Tensor:
                x = torch.sigmoid(v)
                by = torch.randint(-jitter, jitter + 1, (2,), generator=shifts).tolist()
                return answer(x.roll(by, (2, 3))) / first - lam * total_variation(x)

            return torch.sigmoid(optimise(objective, v, steps=steps, rule=adam(lr)))

    def tensors(self) -> dict[str, Tensor]:
        return {"delta": self.delta, "importance": self.importance}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.delta, self.importance = tensors["delta"], tensors["importance"]
        if self.importance.numel():
            self._weigh()


def total_variation(x: Tensor) -> Tensor:
    """The mean |difference| of neighbours, down and across, summed over the colours: (N,)."""
    down, across = (x[:, :, 1:] - x[:, :, :-1]).abs(), (x[:, :, :, 1:] - x[:, :, :, :-1]).abs()
    return down.mean((2, 3)).sum(1) + across.mean((2, 3)).sum(1)
