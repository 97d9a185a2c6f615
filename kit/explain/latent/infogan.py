"""InfoGAN: a generator that cannot ignore its code, since a second head has to read the code off what it draws.

    min_{G, Q} max_D  V(D, G) − λ L_I(G, Q),      L_I = H(c) + E_{c, x = G(n, c)}[ ln Q(c|x) ] ≤ I(c; x) ≤ H(c)

For a uniform category of K values L_I ≤ ln K, and only a Q that is always right and sure reaches it. For a value in
[−1, 1] that Q reads as the mean of a Gaussian of fixed variance, "ln Q" is a squared error, from which no nats can be
read.

Source: Chen et al., "InfoGAN" (NeurIPS 2016); the numbers (β₁ = 0.5, rates of 1e-3 for G and 2e-4 for D, λ = 1 in both
losses) are those of their code. The rates here are the recipe's `lr` and a fifth of it.
"""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import seeding
from kit.core.checks import check_images, check_settings
from kit.data.factors import read
from kit.explain.latent.metrics import mig
from kit.explain.latent.moves import check_coder
from kit.models.generative import InfoGAN
from kit.models.registry import build
from kit.models.training import Progress, Recipe


def information_bound(logits: Tensor, category: Tensor) -> float:
    """L_I = ln K + mean ln Q(c|x), in nats, of Q's logits (N, K) for images drawn with these uniform categories (N,).

    At most ln K. Below 0 where Q is surer than it is right. Raises ValueError for labels that are no categories of K.
    """
    K = logits.shape[1] if logits.dim() == 2 else 0
    if category.shape != logits.shape[:1] or not len(category) or category.dtype != torch.int64 or not K or bool(
            (category < 0).any() | (category >= K).any()):
        raise ValueError("logits are (N, K) and categories (N,) whole numbers below K, not "
                         f"{tuple(logits.shape)} and {tuple(category.shape)}")
    if not bool(logits.isfinite().all()):
        raise ValueError("Q's logits hold NaN or infinity")
    return math.log(K) - float(F.cross_entropy(logits.double(), category))


def draw_code(
    model: Any, n: int, *, category: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the generator is given (n, noise + K + numbers), its categories (n,) and its values (n, numbers).

    Noise and values are uniform in [−1, 1]; so are the categories among K where none are given.
    """
    check_coder(model, "categories", "numbers", "noise")
    check_settings({"generator": generator})
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n}: a whole number of codes, 1 or more")
    if category is not None and (category.shape != (n,) or category.dtype != torch.int64 or bool(
            (category < 0).any() | (category >= model.categories).any())):
        raise ValueError(f"category holds {n} class numbers 0 … {model.categories - 1} as int64, not {category.dtype} "
                         f"{tuple(category.shape)}")
    source = generator or seeding.generator()
    where = next(model.parameters()).device
    if category is None:
        category = torch.randint(model.categories, (n,), generator=source)
    values, noise = (2 * torch.rand(n, k, generator=source) - 1 for k in (model.numbers, model.noise))
    one_hot = F.one_hot(category.cpu(), model.categories).float()
    return torch.cat([noise, one_hot, values], 1).to(where), category.to(where), values.to(where)


def unread(model: Any, judged: Tensor, category: Tensor, values: Tensor) -> Tensor:
    """−E ln Q(c|x), without constants: cross-entropy of the category, ½ squared error of each value."""
    return F.cross_entropy(judged[:, : model.categories], category) + 0.5 * (
        judged[:, model.categories :] - values).square().sum(1).mean()


def infogan_training(
    r: Recipe, x: Tensor, y: Tensor, *, device: torch.device, lam: float = 1.0, half: bool = False, seed: int = 0,
    progress: Progress | None = None,
) -> nn.Module:
    """Turns of D and G: D tells real from drawn, G makes drawn look real, and λ L_I is in both losses.

    No label is looked at. Cost: a step is three passes of the trunk and two of the generator, forth and back.
    """
    check_images(x)
    with seeding.ambient_randomness_kept(device), torch.enable_grad():
        torch.manual_seed(seed)
        model = build(r)
        assert isinstance(model, InfoGAN)
        model = model.to(device)
        source = seeding.generator(seed)
        theirs = [*model.trunk.parameters(), *model.real.parameters(), *model.read.parameters()]
        ours = [*model.generator.parameters(), *model.read.parameters()]
        by_d = torch.optim.Adam(theirs, r.lr / 5, betas=(0.5, 0.999))
        by_g = torch.optim.Adam(ours, r.lr, betas=(0.5, 0.999))
        batch = min(r.batch, len(x))
        steps = r.epochs * (len(x) // batch)
        for step in range(steps):
            rows = torch.randint(len(x), (batch,), generator=source)
            z, category, values = draw_code(model, batch, generator=source)
            fake = model.decode(z)
            real, _ = model.judge(x[rows].to(device))
            drawn, judged = model.judge(fake.detach())
            loss = F.softplus(-real).mean() + F.softplus(drawn).mean() + lam * unread(model, judged, category, values)
            _step(by_d, loss, theirs)
            drawn, judged = model.judge(fake)
            loss = F.softplus(-drawn).mean() + lam * unread(model, judged, category, values)
            _step(by_g, loss, ours)
            if progress is not None:
                progress(step + 1, steps, loss.item())
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ValueError(f"the training has diverged: lower the recipe's lr={r.lr:g}")
    for p in model.parameters():
        p.grad = None
    return model


def infogan_figures(r: Recipe, network: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: how often Q reads the category off a drawn image ("accuracy"), L_I in nats, the root mean
    squared error of the values, and the MIG of what Q reads off the images of the factor set."""
    z, category, values = draw_code(network, 2000)
    with torch.no_grad():
        judged = network(network.decode(z))
        named, read_off = judged.split([network.categories, network.numbers], 1)
        code = codes(network, x)
    return {"accuracy": float((named.argmax(1) == category).float().mean()),
            "bound": information_bound(named, category), "error": float((read_off - values).square().mean().sqrt()),
            "mig": mig(code, read(x))}


def codes(model: Any, x: Tensor) -> Tensor:
    """What Q reads, as a code (N, 1 + numbers): the category's number, and the mean of each value."""
    with torch.no_grad():
        judged = model(x)
    return torch.cat([judged[:, : model.categories].argmax(1, keepdim=True).float(), judged[:, model.categories :]], 1)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, weights: list[nn.Parameter]) -> None:
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    optimiser.step()
