"""Two kinds of not knowing: what the sensor could not tell, and what the network has not learnt.

Sensing (aleatoric) uncertainty is in the data and stays with more of them; modelling (epistemic) uncertainty is in the
weights and goes. Both need several answers to the same images, (N, T, …): `mc_dropout` asks one network T times with
parts of it left out, `answers` asks T networks, a deep ensemble. `entropies` splits what T classifiers do not know,
`variances` what T regressions do not, and a *map* is nothing but that for each pixel of a network with a dense head.

Sources: Kendall & Gal, "What uncertainties do we need in Bayesian deep learning for computer vision?" (NeurIPS 2017);
Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles" (NeurIPS 2017);
Guo et al., "On calibration of modern neural networks" (ICML 2017).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.data
from kit.core import seeding
from kit.core.checks import check_counts, check_fits, check_images, check_settings
from kit.core.network import replace
from kit.core.passes import borrowed, chunks, laid_out
from kit.data.scenes import DARK_NOISE, LIGHT_NOISE, distances
from kit.data.sets import Data
from kit.models.training import Recipe, fit

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Uncertainty(NamedTuple):
    """What is not known (N, …), and its two parts: total = sensing + modelling."""

    total: Tensor
    sensing: Tensor
    modelling: Tensor


# --- several answers ------------------------------------------------------------------------------------------------


def mc_dropout(
    model: nn.Module, x: Tensor, *, passes: int = 50, generator: torch.Generator | None = None
) -> Tensor:
    """T answers (N, T, …) of one network to images (N, C, H, W), its dropouts at work and all else in evaluation mode.

    Each image has its own draws, so that they do not depend on its batch. Layers of `nn.Dropout2d` leave out whole
    channels. Raises ValueError for a network without dropout, or with one that leaves out all. Cost: T forward passes.
    """
    check_network(model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, DROPOUTS) and layer.p > 0}
    if not layers:
        raise ValueError("the network has no dropout (nn.Dropout, nn.Dropout2d with p > 0): train one that has, or ask "
                         "an ensemble (answers)")
    if any(layer.p >= 1 for layer in layers.values()):
        raise ValueError("a dropout of p = 1 leaves nothing: let p lie below 1")
    check_counts(passes=passes)
    check_settings({"generator": generator})
    check_images(x)
    check_fits(model, x)
    draws, found = seeding.Draws(len(x), generator), []

    def leaving_out(layer: Any, source: seeding.Draws) -> Any:
        whole = not isinstance(layer, nn.Dropout)

        def dropped(h: Tensor) -> Tensor:
            u = seeding.uniform(h[(slice(None), slice(None), *[slice(0, 1)] * (h.dim() - 2))] if whole else h, source)
            return h * (u >= layer.p) / (1 - layer.p)

        return dropped

    with borrowed(model, x), torch.no_grad():
        for rows in chunks(x):
            source = draws[rows]
            with replace(model, {name: leaving_out(layer, source) for name, layer in layers.items()}):
                found.append(torch.stack([model(laid_out(x[rows])) for _ in range(passes)], 1))
    return torch.cat(found)


def answers(models: Sequence[nn.Module] | nn.ModuleList, x: Tensor) -> Tensor:
    """The answers (N, T, …) of T networks to images (N, C, H, W), in evaluation mode. Cost: T forward passes.

    Raises ValueError for no networks, or for networks that answer in different shapes.
    """
    check_images(x)
    if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
        raise TypeError("models must be a list of networks, not one network: write [network]")
    models = list(models.values() if isinstance(models, dict) else models)
    if not models:
        raise ValueError("an ensemble has at least one network")
    each = []
    for model in models:
        check_network(model)
        check_fits(model, x)
        with borrowed(model, x), torch.no_grad():
            each.append(torch.cat([model(laid_out(x[rows])) for rows in chunks(x)]))
    if len({z.shape for z in each}) > 1:
        raise ValueError("the networks answer in the shapes " + ", ".join(str(tuple(z.shape)) for z in each)
                         + ": an ensemble answers one question")
    return torch.stack(each, 1)


# --- and what they leave open ---------------------------------------------------------------------------------------


def entropies(p: Tensor) -> Uncertainty:
    """H[p̄] = mean H[p_t] + I, in nats, from the probabilities (N, T, K, …) of T answers; results (N, …).

    The mean entropy is what each answer leaves open by itself (sensing); the rest, the information I between the answer
    and the class, is what they disagree about (modelling). Raises ValueError for what does not sum to 1 over K.
    """
    if not isinstance(p, Tensor) or not p.is_floating_point() or p.dim() < 3 or not p.numel() or not _sums_to_1(p, 2):
        raise ValueError("p must hold probabilities (N, T, K, …) that sum to 1 over K: use logits.softmax(2)")
    total, sensing = entropy(p.mean(1), 1), entropy(p, 2).mean(1)
    return Uncertainty(total, sensing, (total - sensing).clamp_min(0))


def entropy(p: Tensor, dim: int = -1) -> Tensor:
    """−Σ p ln p over `dim`, in nats, with 0 ln 0 = 0."""
    return torch.special.entr(p).sum(dim)


def variances(mu: Tensor, s: Tensor) -> Uncertainty:
    """Var = mean σ² + var μ, from T answers μ and s = ln σ² (N, T, …), in the square of their unit; results (N, …).

    The variance of the means is over T, not T − 1: that of the mixture. Raises ValueError for other shapes.
    """
    if mu.shape != s.shape or mu.dim() < 2 or not mu.numel() or not mu.is_floating_point():
        raise ValueError(f"μ and s are floats of one shape (N, T, …) of at least one answer, not {tuple(mu.shape)} "
                         f"and {tuple(s.shape)}")
    if not bool(mu.isfinite().all() & s.isfinite().all()):
        raise ValueError("μ or s hold NaN or infinity: what is not known cannot be split")
    sensing, modelling = s.exp().mean(1), mu.var(1, unbiased=False)
    return Uncertainty(sensing + modelling, sensing, modelling)


# --- losses under which a network says how much it does not know ----------------------------------------------------


def gaussian_nll(mu: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """½ e^{−s} (y − μ)² + ½ s for s = ln σ², elementwise: −ln N(y; μ, σ²) without its constant.

    Raises ValueError where the three have not one shape, but for numbers (): (N, 1) against (N,) would compare every
    pair.
    At its minimum σ² is the mean squared error. The gradient of μ is (μ − y) / σ²: where σ has grown, μ learns slowly.
    """
    if len({v.shape for v in (mu, s, y) if v.dim()}) > 1:
        raise ValueError(f"μ, s and y have one shape, not {tuple(mu.shape)}, {tuple(s.shape)} and {tuple(y.shape)}")
    return 0.5 * (-s).exp() * (y - mu).square() + 0.5 * s


def noisy_logits_nll(
    z: Tensor, s: Tensor, y: Tensor, *, draws: int = 50, generator: torch.Generator | None = None
) -> Tensor:
    """−ln (1/T) Σ_t softmax(z + σ ⊙ ε_t)_y (N, …), ε_t ~ N(0, I), from logits z and s = ln σ² (N, K, …), labels (N, …).

    The mean is over probabilities. A mean of losses would be least at σ = 0, since cross-entropy is convex in z.
    """
    if z.shape != s.shape or z.dim() < 2 or y.shape != (z.shape[0], *z.shape[2:]):
        raise ValueError(f"z and s have one shape (N, K, …) and y is (N, …), not {tuple(z.shape)}, {tuple(s.shape)} "
                         f"and {tuple(y.shape)}")
    check_counts(draws=draws)
    check_settings({"generator": generator})
    _check_classes(y, z.shape[1])
    source = generator or seeding.generator()
    noise = torch.randn((draws, *z.shape), generator=source, device=source.device, dtype=z.dtype).to(z.device)
    log_p = (z + (0.5 * s).exp() * noise).log_softmax(2)
    chosen = log_p.gather(2, y[None, :, None].expand(draws, -1, -1, *y.shape[1:])).squeeze(2)
    return math.log(draws) - chosen.logsumexp(0)


# --- does the number mean what it says? -----------------------------------------------------------------------------


class Reliability(NamedTuple):
    """For each bin of confidence: the share of answers in it, their mean confidence, and how many of them are right."""

    share: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error Σ share · |accuracy − confidence|."""
        return float((self.share * (self.accuracy - self.confidence).abs()).nansum())


def reliability(p: Tensor, y: Tensor, bins: int = 15) -> Reliability:
    """Confidence against accuracy in equal bins (lo, hi] of the largest of the probabilities p (N, K), labels y (N,).

    An empty bin has share 0 and NaN. The error is biased upwards for few answers, since chance alone moves a bin.
    """
    if p.dim() != 2 or y.shape != p.shape[:1] or not len(p):
        raise ValueError(f"one label is needed for each row of p (N, K), which is {tuple(p.shape)} for y "
                         f"{tuple(y.shape)}")
    check_counts(bins=bins)
    if not _sums_to_1(p, 1):
        raise ValueError("p must hold probabilities (N, K) that sum to 1 over K: use logits.softmax(1)")
    _check_classes(y, p.shape[1])
    sure, answer = p.double().max(1)
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    number = torch.zeros(bins, dtype=torch.float64, device=p.device).index_add_(0, place, torch.ones_like(sure))
    means = [torch.zeros_like(number).index_add_(0, place, v.double()) / number for v in (sure, answer == y)]
    return Reliability(number / len(p), *means)


def temperature(z: Tensor, y: Tensor) -> float:
    """T > 0 that minimises the mean cross-entropy of softmax(z / T), on logits (N, K) and labels (N,) kept for it.

    A bounded search over ln T in [ln 0.05, ln 20]: the loss is convex in 1 / T, so that it has one minimum.
    Raises ValueError where it has none there: where every answer is right it falls for ever as T → 0, and where logits
    say nothing about the labels as T → ∞.
    """
    if z.dim() != 2 or y.shape != z.shape[:1] or not len(z):
        raise ValueError(f"one label is needed for each row of z (N, K), which is {tuple(z.shape)} for y "
                         f"{tuple(y.shape)}")
    if not bool(z.isfinite().all()):
        raise ValueError("the logits hold NaN or infinity")
    _check_classes(y, z.shape[1])
    if bool((z.argmax(1) == y).all()):
        raise ValueError(f"all {len(z)} answers are right, so that no temperature is best: keep more labels for it")
    z = z.double()
    from scipy.optimize import minimize_scalar

    least = minimize_scalar(lambda log_t: float(F.cross_entropy(z / math.exp(log_t), y)), method="bounded",
                            bounds=(math.log(0.05), math.log(20.0)), options={"xatol": 1e-6})
    found = math.exp(least.x)
    if not 0.0501 < found < 19.99:
        raise ValueError("no temperature between 0.05 and 20 is best: the logits say nothing about these labels, or "
                         "are of another scale")
    return found


def error_kept(error: Tensor, uncertainty: Tensor, keep: Sequence[float]) -> Tensor:
    """The mean error of the `keep` least uncertain shares, one number each: falling as less is kept, if it knows."""
    if error.shape != uncertainty.shape:
        raise ValueError(f"error and uncertainty have one shape, not {tuple(error.shape)} and "
                         f"{tuple(uncertainty.shape)}")
    order = error.flatten()[uncertainty.flatten().argsort(stable=True)].double()
    if not bool(error.isfinite().all() & uncertainty.isfinite().all()):
        raise ValueError("error or uncertainty hold NaN or infinity, which have no place in an order")
    if order.numel() == 0 or not isinstance(keep, Sequence) or not keep or any(not 0 < share <= 1 for share in keep):
        raise ValueError("keep holds shares above 0 and up to 1, of at least one error")
    means = order.cumsum(0) / torch.arange(1, order.numel() + 1, device=order.device)
    return means[[max(1, round(share * order.numel())) - 1 for share in keep]]


def _sums_to_1(p: Tensor, dim: int) -> bool:
    sums = p.sum(dim)
    return not bool((p < 0).any()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def check_network(model: Any) -> None:
    """Raises TypeError for what is no network."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a network is needed, not {model!r}: kit.models.load(name) gives one of the catalogue")


def _check_classes(y: Tensor, classes: int) -> None:
    if not y.numel():
        raise ValueError("there are no labels: one at least is needed")
    if y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"y must hold class numbers 0 … {classes - 1} as int64, not {y.dtype} {int(y.min())} … "
                         f"{int(y.max())}")


# --- the network of the chapter -------------------------------------------------------------------------------------


def measurements(n: int, without: Sequence[str] = (), seed: int = 0) -> tuple[Data, Tensor]:
    """Those of n training scenes that show none of the shapes `without`, and one measurement d + σ ε of each pixel of
    theirs, (N, H, W), as the range finder of `kit.data.scenes.distances` makes it. Raises ValueError for other shapes,
    or for all of them."""
    data = kit.data.load("scenes", "train", n=n, seed=seed)
    if isinstance(without, str) or not set(without) < set(data.classes):
        raise ValueError(f"without={without!r}: a list of some of the shapes {', '.join(data.classes)}")
    data = data[~torch.isin(data.y, torch.tensor([data.classes.index(shape) for shape in without], dtype=torch.int64))]
    d, sigma = distances(data)
    return data, d + seeding.normal(d, seeding.generator(seed)) * sigma


def sensing_training(
    r: Recipe, x: Tensor, y: Tensor, *, without: Sequence[str] = (), member: int = 0, seed: int = 0, **how: Any
) -> nn.Module:
    """min E[½ e^{−s} (d + σ ε − μ)² + ½ s]: a network that reads distances d off a scene, and how noisy they are.

    It sees, as the range finder of `kit.data.scenes.distances` does, one noisy measurement for each pixel of `len(x)`
    scenes, of which those of the shapes `without` are left out. It knows neither d nor σ. The members of an ensemble
    see the same measurements, and begin with other weights. Cost: a step of training.
    """
    data, measured = measurements(len(x), without, seed)

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        mu, s = model(xb).float().unbind(1)
        return gaussian_nll(mu, s, yb).mean()

    return fit(r, data.x, measured, loss=loss, seed=seed + member, **how)


def sensing_figures(r: Recipe, network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: the share of pixels whose distance is read to 0.2 ("accuracy"), the root mean squared error of
    μ, and the mean σ̂ on light and on dark surfaces."""
    d, sigma = distances(data := kit.data.load("scenes", "test", n=len(x)))
    mu, s = answers([network], data.x)[:, 0].unbind(1)
    guessed = (0.5 * s).exp()
    return {"accuracy": float(((mu - d).abs() < 0.2).float().mean()), "rmse": float((mu - d).square().mean().sqrt()),
            "light": float(guessed[sigma == LIGHT_NOISE].mean()), "dark": float(guessed[sigma == DARK_NOISE].mean())}
