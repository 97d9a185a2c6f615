"""Attacking for Interpretability: what must go from all images of a class before the network no longer sees it?

    δ* = argmin ‖δ‖₁  so that f(x_i − δ) ≠ y and f(t(x_i − δ)) ≠ y  for all images x_i of the class y    the occluder

with t uniform noise and random rotation, and images with f(x_i) = f(t(x_i)) = y alone. One δ (1, C, H, W) in [−1, 1]
serves all of them; x − δ is cut to [0, 1]. What the units j of a layer lose by it says what they have to do with y:

    s_j = max(0, mean_i (f_l(x_i)_j − f_l(x_i − δ*)_j))                      the importance of feature j
    w_c = 1/B Σ_j s_j over the places j of channel c, so that Σ_c w_c = 1    that of a channel
    f'(x) = Σ_c w_c A_c(x)                                                   the meta-detector, a map (h, w)

A concept is a set of images. It matters for the class as far as f' answers to it otherwise than to random images.

The source gives δ*, s, w and f', and names MMD and segments. The relaxation of the constraints, its weights, the kernel
and how segments become concepts are ours. Source: Wu et al., Towards global explanations of convolutional neural
networks with concept attribution, CVPR 2020, as in W. Wu's thesis, topic 4.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
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
    gradient,
    laid_out,
    logits,
    normal,
    optimise,
    uniform,
    warn,
)
from kit.core.fitted import Fitted
from kit.core.seeding import Source

KERNELS = ("gaussian", "linear")
GROWTH = 0.1  # by which log c grows or falls in a step of the occluder


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

    Cost of `fit`: 3 · batch · steps forward and backward passes of one image, and per 10 steps a forward pass of the
    fitted images and their transforms. Raises ValueError for images of several classes, for fewer than 2 that the model
    sees as y before and after t, and where δ lowers no feature of the layer.
    """

    numbers: ClassVar[tuple[str, ...]] = ("label",)

    def __init__(
        self, model: nn.Module, layer: str, *, noise: float = 0.1, degrees: float = 15.0, kappa: float = 1.0,
        share: float = 0.95, steps: int = 100, step: float = 0.02, batch: int = 24, kernel: str = "gaussian",
        seed: int = 0,
    ):
        with features(model, [layer]):  # a name that the model does not have is refused here
            pass
        check_settings({"kappa": kappa, "steps": steps, "step": step, "batch": batch})
        if not 0 <= noise <= 1 or not 0 <= degrees <= 180 or not 0 < share <= 1:
            raise ValueError(f"noise and share lie in [0, 1] and degrees in [0, 180], not {noise}, {share}, {degrees}")
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be 'gaussian' or 'linear', not {kernel!r}")
        self.model, self.layer, self.noise, self.degrees, self.kappa = model, layer, noise, degrees, kappa
        self.share, self.steps, self.step, self.batch = share, steps, step, batch
        self.kernel, self.seed = kernel, seed
        self.label: int | None = None
        self.delta = self.importance = self.channels = torch.empty(0)

    def fit(self, x: Tensor, y: Tensor, *, delta: Tensor | None = None) -> Self:
        """Find δ* on images x (N, C, H, W) of one class y (N,), or take `delta` (1, C, H, W); then s, w and f'.

        Another occluder, such as `shuffled(delta)`, is the control: all else stays. `delta` (1, C, H, W), `importance`
        (C, h, w) and `channels` (C,) are kept.
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
            lost = self._maps(x).mean(0) - self._maps(occluded(x, delta)).mean(0)
        self.importance = lost.clamp_min(0)
        self._weigh()
        return self

    def _weigh(self) -> None:
        w = self.importance.sum((1, 2))
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


def occluder(
    model: nn.Module, x: Tensor, y: int, *, noise: float = 0.1, degrees: float = 15.0, kappa: float = 1.0,
    share: float = 0.95, steps: int = 100, step: float = 0.02, batch: int = 24, source: torch.Generator | None = None,
) -> Tensor:
    """δ* (1, C, H, W) for images x (N, C, H, W) of the class y, by proximal steps with a weight c that learns.

        min_δ ‖δ‖₁ + c · mean_{i,t} max(0, κ − lead(t(x_i − δ))),     lead = max_{j≠y} z_j − z_y,   t: none, noise, turn

        m ← (m + g)/2,   δ ← soft(δ − η c m, η),   |δ| ≤ 1,   g the gradient of the mean over `batch` random images

    soft shrinks every |δ_j| by η, which is the step of ‖δ‖₁, and leaves zeros. c begins where the largest |g| just
    outweighs it, and is multiplied by e^{±0.1} in each step: up while the constraints hold for less than `share` of the
    batch, else down. η falls linearly from `step` to a tenth. Every tenth step of the second half, and at the end, all
    N images are asked; returned is the smallest δ with which the share holds, or, with a warning, the nearest to it.
    The model is used as it is: wrap the call in `borrowed`.
    """
    draws = source or generator()
    v, m, c = torch.zeros_like(x[:1]), torch.zeros_like(x[:1]), 0.0
    held = torch.empty(0)

    def hinge(v: Tensor, images: Tensor) -> Tensor:
        nonlocal held
        versions = transformed(occluded(images, v), noise, degrees, draws)
        goal = Goal(torch.full((len(versions) * len(images),), y, device=x.device))
        z = model(laid_out(torch.cat(versions)))
        held = goal.reached(z.detach()).view(len(versions), -1).all(0)
        return -F.relu(kappa - goal.lead(z)).mean()[None]

    best: tuple[bool, float, Tensor] | None = None
    for k in range(steps):
        rows = torch.randperm(len(x), generator=draws, device=draws.device)[:batch].to(x.device)
        _, g = gradient(partial(hinge, images=x[rows]), v)
        if k == 0:
            if not bool(g.any()):
                raise ValueError("the model's answer does not change with the images of this class: its gradient is 0")
            c = 1 / float(g.abs().max())
        c *= math.exp(GROWTH if float(held.double().mean()) < share else -GROWTH)
        m = (m + g) / 2
        eta = step * (1 - 0.9 * k / steps)
        v = v + eta * c * m
        v = (v.sign() * (v.abs() - eta).clamp_min(0)).clamp(-1, 1)
        if k == steps - 1 or (k >= steps // 2 and k % 10 == 0):
            with torch.no_grad():
                everywhere = []
                for part in chunks(x):
                    hinge(v, x[part])
                    everywhere.append(held)
            reached = float(torch.cat(everywhere).double().mean())
            enough = reached >= share
            rank = -float(v.abs().sum()) if enough else reached
            if best is None or (enough, rank) > best[:2]:
                best = enough, rank, v
    assert best is not None
    if not best[0]:
        warn(f"the constraints hold for {best[1]:.0%} of the fitted images, not for {share:.0%}: use more steps, a "
             "larger step, or a smaller share")
    return best[2]


def occluded(x: Tensor, delta: Tensor) -> Tensor:
    """x − δ, cut to [0, 1]: one δ (1, C, H, W) for all images."""
    return (x - delta).clamp(0, 1)


def shuffled(delta: Tensor, source: torch.Generator | None = None) -> Tensor:
    """The control: the values of δ at random places, each with a random sign, so that every norm is the same."""
    source = source or generator()
    order = torch.randperm(delta.numel(), generator=source, device=source.device).to(delta.device)
    signs = uniform(delta, source, -1, 1).sign()
    return delta.flatten()[order].view_as(delta) * signs


def transformed(x: Tensor, noise: float, degrees: float, source: Source, all_three: bool = False) -> list[Tensor]:
    """x, x + U(−noise, noise) cut to [0, 1], and x turned by U(−degrees, degrees); those of size 0 only if all_three.

    What a rotation brings in from outside repeats the edge.
    """
    versions = [x]
    if noise or all_three:
        versions.append((x + uniform(x, source, -noise, noise)).clamp(0, 1))
    if degrees or all_three:
        angle = math.radians(degrees)
        versions.append(rotated(x, uniform(x[:, 0, 0, 0], source, -angle, angle)))
    return versions


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Each image turned about its centre by its angle (N,), in radians, bilinearly."""
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    aspect = x.shape[2] / x.shape[3]
    rows = [torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def total_variation(x: Tensor) -> Tensor:
    """The mean |difference| of neighbours, down and across, summed over the colours: (N,)."""
    down, across = (x[:, :, 1:] - x[:, :, :-1]).abs(), (x[:, :, :, 1:] - x[:, :, :, :-1]).abs()
    return down.mean((2, 3)).sum(1) + across.mean((2, 3)).sum(1)


def mmd(
    a: Tensor, b: Tensor, *, kernel: str = "gaussian", permutations: int = 0, source: torch.Generator | None = None,
) -> tuple[float, float]:
    """MMD² between samples a (n, d) and b (m, d), and its p: E k(a, a') + E k(b, b') − 2 E k(a, b) over distinct pairs.

    k(u, v) = exp(−‖u − v‖² / 2h²), h the median distance between two of all points ("gaussian"), or ⟨u, v⟩ ("linear",
    then MMD² estimates the squared distance of the means). Unbiased, so that it may be below zero. p is the share of
    random divisions of the n + m points, the given one among them, whose value is at least as large; 1 without any.
    Raises ValueError for samples of fewer than 2 points. Cost: a (n + m)² Gram matrix.
    Source: Gretton et al., A kernel two-sample test, JMLR 13, 2012, lemma 6 and section 2.
    """
    n, m = len(a), len(b)
    if n < 2 or m < 2:
        raise ValueError(f"MMD compares samples of 2 points or more, not {n} and {m}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be 'gaussian' or 'linear', not {kernel!r}")
    points = torch.cat([a, b]).double()
    if kernel == "linear":
        K = points @ points.T
    else:
        apart = torch.cdist(points, points)
        width = float(apart[~torch.eye(n + m, dtype=torch.bool, device=a.device)].median())
        K = torch.exp(-apart.square() / (2 * max(width, 1e-12) ** 2))
    K.fill_diagonal_(0)
    splits = [torch.arange(n + m, device=a.device)]
    source = source or generator()
    splits += [torch.randperm(n + m, generator=source, device=source.device).to(a.device) for _ in range(permutations)]
    first = torch.zeros(len(splits), n + m, dtype=K.dtype, device=a.device)
    first[torch.arange(len(splits))[:, None], torch.stack(splits)[:, :n]] = 1
    second, each = 1 - first, first @ K
    within, across = (each * first).sum(1), (each * second).sum(1)
    others = (second @ K * second).sum(1)
    values = within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * across / (n * m)
    return float(values[0]), float((values >= values[0] - 1e-12).double().mean())


def pieces(x: Tensor, segments: Tensor, fill: float = 0.5) -> tuple[Tensor, Tensor]:
    """Each segment alone, all else `fill`: images (P, C, H, W), and whose each is (P,). segments: (N, H, W)."""
    shown, owner = [], []
    for i, labels in enumerate(segments):
        masks = torch.stack([labels == k for k in labels.unique()])[:, None]
        shown.append(torch.where(masks, x[i], fill))
        owner += [i] * len(masks)
    return torch.cat(shown), torch.tensor(owner, device=x.device)


def segment_concepts(
    model: nn.Module, layer: str, x: Tensor, segments: Tensor, *, k: int = 12, fill: float = 0.5, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments that look alike to a layer make a concept: k-means of the layer's pooled maps of the pieces.

    Returns the pieces (P, C, H, W), their concepts (P,) in 0 … k − 1, and the images' maps of concepts (N, H, W).
    Cost: one forward pass of each piece. Source: Ghorbani et al., Towards automatic concept-based explanations, NeurIPS
    2019, section 3, without its outlier removal.
    """
    from sklearn.cluster import KMeans

    check_images(x)
    shown, owner = pieces(x, segments, fill)
    with borrowed(model, x), torch.no_grad(), features(model, [layer]) as found:
        pooled = []
        for rows in chunks(shown):
            model(laid_out(shown[rows]))
            pooled.append(found[layer].mean((2, 3)))
    groups = KMeans(k, n_init=3, random_state=seed).fit_predict(torch.cat(pooled).double().cpu().numpy())
    concept = torch.from_numpy(groups).long().to(x.device)
    maps = torch.empty_like(segments, dtype=torch.int64)
    for i, labels in enumerate(segments):
        own = concept[owner == i]
        maps[i] = own[torch.unique(labels, return_inverse=True)[1]]
    return shown, concept, maps


def concept_curves(
    model: nn.Module, x: Tensor, y: Tensor, maps: Tensor, order: Sequence[int], *, fill: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Is the class seen with the first j concepts of `order` alone, and is it still seen without them? (K + 1, N) bool
    each, j = 0 … K: the curves of the smallest sufficient and of the smallest destroying concepts.

    A good order makes the first rise early and the second fall early. What is hidden shows `fill`. An image that has
    none of the first j concepts counts as it stands: all hidden, or whole. Cost: 2 (K + 1) forward passes.
    """
    check_images(x)
    rank = torch.empty(int(maps.max()) + 1, dtype=torch.int64, device=maps.device)
    if sorted(order) != list(range(len(rank))):
        raise ValueError(f"order must name each of the concepts 0 … {len(rank) - 1} once, not {list(order)}")
    rank[torch.tensor(list(order), device=maps.device)] = torch.arange(len(rank), device=maps.device)
    place = rank[maps][:, None]
    alone = [logits(model, torch.where(place < j, x, fill)).argmax(1) == y for j in range(len(rank) + 1)]
    without = [logits(model, torch.where(place < j, fill, x)).argmax(1) == y for j in range(len(rank) + 1)]
    return torch.stack(alone), torch.stack(without)
