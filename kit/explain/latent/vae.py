"""Variational autoencoders: a code from which the image can be drawn again, and a price for what the code says.

    −ELBO(x) = E_{z ~ N(μ, σ²)}[ −ln p(x|z) ] + KL( N(μ, σ²) ‖ N(0, I) )       reconstruction + price, in nats

The reconstruction is a *sum* over pixels: with a mean in its place β would mean another thing for each size of image.
β-VAE multiplies the price by β. The annealed form γ |KL − C| asks for C nats, from 0 up to a capacity. FactorVAE adds
γ TC(z): how far the code's numbers are from independent, which a discriminator learns to see.

Sources: Kingma & Welling, "Auto-encoding variational Bayes" (ICLR 2014); Higgins et al., "beta-VAE" (ICLR 2017);
Burgess et al., "Understanding disentangling in β-VAE" (2018); Kim & Mnih, "Disentangling by factorising" (ICML 2018).
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
from kit.explain.latent.moves import check_coder, check_codes
from kit.models.generative import layers
from kit.models.training import Recipe, fit


def kl(mu: Tensor, s: Tensor) -> Tensor:
    """KL(N(μ, e^s) ‖ N(0, 1)) = ½ (μ² + e^s − s − 1), number by number, in nats."""
    return 0.5 * (mu.square() + s.exp() - s - 1)


def sample(mu: Tensor, s: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """z = μ + σ ε, ε ~ N(0, I): differentiable in μ and s."""
    return mu + (0.5 * s).exp() * seeding.normal(mu, generator)


def vae_terms(
    model: Any, x: Tensor, *, sigma: float | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The reconstruction −ln p(x|z) (N,), the KL of each number (N, D), and the z (N, D) that was drawn.

    p(x|z) is Bernoulli in each pixel with the decoder's logits; with `sigma` it is N(dec(z), σ²) without its constant,
    and the decoder's logits are its means. `model` has `encode` and `logits`. Raises ValueError for σ that is not
    positive. Cost: a pass of the encoder and one of the decoder.
    """
    check_coder(model, "encode", "logits")
    check_settings({"generator": generator})
    if sigma is None:
        check_images(x)
    mu, s = model.encode(x)
    z = sample(mu, s, generator)
    if sigma is None:
        pixels = F.binary_cross_entropy_with_logits(model.logits(z), x, reduction="none")
    elif 0 < sigma < math.inf:
        pixels = (model.logits(z) - x).square() / (2 * sigma**2)
    else:
        raise ValueError(f"sigma={sigma}: the noise of a pixel is positive")
    return pixels.flatten(1).sum(1), kl(mu, s), z


def vae_training(
    r: Recipe, x: Tensor, y: Tensor, *, beta: float = 1.0, capacity: float | None = None, gamma: float = 100.0,
    half: bool = False, **how: Any,
) -> nn.Module:
    """min E[reconstruction + β KL], or with a `capacity` in nats E[reconstruction] + γ |E KL − C|, C rising to it in
    a line over the first half of the steps. No label is looked at. `half`: stored in half precision.

    Cost: a step of training.
    """
    _positive(beta=beta, gamma=gamma)
    share = [0.0]

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        reconstruction, price, _ = vae_terms(model, xb, generator=generator)
        nats = price.sum(1).mean()
        if capacity is None:
            return reconstruction.mean() + beta * nats
        return reconstruction.mean() + gamma * (nats - capacity * share[0]).abs()

    def before(step: int, steps: int) -> None:
        share[0] = min(1.0, 2 * step / steps)

    return fit(r, x, y, loss=loss, before=before, **how)


def vae_figures(r: Recipe, network: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest, on the factor set: how often a factor is read off a reconstruction as it is in the image, mean
    over the four ("accuracy"), the reconstruction and the KL in nats, and the MIG."""
    v = read(x)
    with torch.no_grad():
        reconstruction, price, _ = vae_terms(network, x)
        mu = network.encode(x)[0]
        kept = (read(network(x)) == v).float().mean()
    return {"accuracy": float(kept), "reconstruction": float(reconstruction.mean()),
            "kl": float(price.sum(1).mean()), "mig": mig(mu, v)}


# --- FactorVAE ------------------------------------------------------------------------------------------------------


def permuted(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each column of z (N, D) in an order of its own: the same marginals, independent of each other."""
    check_codes(z)
    check_settings({"generator": generator})
    source = generator or seeding.generator()
    orders = torch.rand(z.shape, generator=source, device=source.device).argsort(0).to(z.device)
    return z.gather(0, orders)


class Discriminator(nn.Module):
    """Tells codes as they come, q(z), from codes whose numbers are independent, Π q(z_j): the density ratio's logit.

    TC = KL(q(z) ‖ Π q(z_j)) = E_q[D(z)] for the best D. `step` is one of its own optimiser, on codes that it detaches.
    """

    def __init__(self, codes: int, width: int = 64, lr: float = 1e-3):
        super().__init__()
        self.net = layers(codes, width, width, 1)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr, betas=(0.5, 0.9))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)[:, 0]

    def step(self, z: Tensor, generator: torch.Generator | None = None) -> None:
        z = z.detach()
        real, drawn = self(z), self(permuted(z, generator))
        loss = F.softplus(-real).mean() + F.softplus(drawn).mean()
        self.optimiser.zero_grad()
        with torch.enable_grad():
            loss.backward()
        self.optimiser.step()


def factor_vae_training(
    r: Recipe, x: Tensor, y: Tensor, *, gamma: float = 10.0, half: bool = False, seed: int = 0, **how: Any
) -> nn.Module:
    """min E[reconstruction + KL] + γ E[D(z)], D trained beside it on the codes of the same batch.

    D steps first, on detached codes, and only then does the VAE's loss ask it. The ports that go the other way round
    change D's weights in place between the VAE's loss and its gradient, which torch refuses, or let D's loss reach the
    encoder. With γ = 0 it is the VAE, weight for weight. Cost: a step of training, and three passes of D.
    """
    _positive(least=0.0, gamma=gamma)
    with seeding.ambient_randomness_kept(torch.device("cpu")):
        torch.manual_seed(seed)
        codes = r.build.get("codes", 6)
        D = Discriminator(codes).to(how["device"])
    draws = seeding.generator(seed)

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        reconstruction, price, z = vae_terms(model, xb, generator=generator)
        D.step(z, draws)
        return (reconstruction + price.sum(1) + gamma * D(z)).mean()

    how.pop("checkpoint", None)  # which does not know of D: a training of seconds begins anew
    return fit(r, x, y, loss=loss, seed=seed, **how)


def _positive(least: float | None = None, **settings: float) -> None:
    for name, value in settings.items():
        if not (value > 0 if least is None else value >= least) or not math.isfinite(value):
            raise ValueError(f"{name}={value}: a weight is {'positive' if least is None else '0 or more'}")
