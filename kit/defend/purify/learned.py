"""Networks from images to images, trained to wash attacks off: HGD and ComDefend, and their trainers.

The shipped ones are `kit.models.load("hgd/scenes")` and `kit.models.load("comdefend/scenes")`.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.models
from kit.attacks import bim
from kit.core import accuracy, seeding
from kit.defend.adversarial_training import Growing
from kit.defend.purify.wrapper import Purified
from kit.models import Recipe, fit


class ComDefend(Purified):
    """q(x) = decode(code(x)): an image passes through 12 bits per pixel, and small perturbations do not.

    `codec` is the network or its name (kit.models.purifiers.Codec). The authors' test code still adds the noise that
    training adds to the code; here the code is rounded and nothing else. Cost: the codec's and the model's pass.
    Source: Jia et al., ComDefend: an efficient image compression model to defend adversarial examples, CVPR 2019.
    """

    def __init__(self, model: nn.Module, codec: str | nn.Module = "comdefend/scenes"):
        super().__init__(model)
        self.codec = _network(codec)

    def purify(self, x: Tensor) -> Tensor:
        return self.codec(x)


class HGD(Purified):
    """q(x) = x + dx(x), dx by a U-Net that was trained until a classifier's logits forgot the perturbation.

    `denoiser` is the network or its name (kit.models.purifiers.UNet). The model may be another classifier than the one
    that guided it. Cost: the denoiser's and the model's pass.
    Source: Liao et al., Defense against adversarial attacks using high-level representation guided denoiser, CVPR 2018.
    """

    def __init__(self, model: nn.Module, denoiser: str | nn.Module = "hgd/scenes"):
        super().__init__(model)
        self.denoiser = _network(denoiser)

    def purify(self, x: Tensor) -> Tensor:
        return self.denoiser(x).clamp(0, 1)


def _network(network: str | nn.Module) -> nn.Module:
    return kit.models.load(network) if isinstance(network, str) else network


# --- training the two that are learned ------------------------------------------------------------------------------


def denoiser_training(
    r: Recipe, x: Tensor, y: Tensor, *, guide: str, sources: Sequence[str], eps: float = 16 / 255, copies: int = 2,
    seed: int = 0, **how: Any,
) -> nn.Module:
    """min over D of E[|f(D(x')) − f(x)|₁ / K], f the logits of `guide` (the paper's LGD), x' made before training.

    Each image has `copies` adversarial versions: by FGSM, or BIM with 2, 4 or 8 steps, against one of `sources`, of a
    radius uniform in [0, eps]; or it stays clean. All five are equally likely. Labels serve the attacks only.
    Cost: 3 forward and backward passes per version to make them; a step of training, a forward and backward pass of
    the guide and a forward pass more.
    """
    clean, y = x.repeat(copies, 1, 1, 1), y.repeat(copies)
    x_adv = adversarial_versions(
        clean, y, [kit.models.load(name) for name in sources], eps, seeding.generator(seed))
    f = kit.models.load(guide, how.get("device"))

    def loss(model: nn.Module, pair: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        channels = pair.shape[1] // 2
        with torch.no_grad():
            wanted = f(pair[:, :channels])
        return F.l1_loss(f(model(pair[:, channels:])), wanted)

    return fit(r, torch.cat([clean, x_adv], 1), y, loss=loss, seed=seed, **how)


def adversarial_versions(
    x: Tensor, y: Tensor, sources: Sequence[nn.Module], eps: float, generator: torch.Generator
) -> Tensor:
    """x' (N, C, H, W): every image by a source, a number of steps (0, 1, 2, 4 or 8) and a radius of its own."""
    plans = [(source, steps) for source in sources for steps in (0, 1, 2, 4, 8)]
    plan = torch.randint(len(plans), (len(x),), generator=generator)
    radius = eps * torch.rand(len(x), generator=generator)
    x_adv = x.clone()
    for i, (source, steps) in enumerate(plans):
        rows = (plan == i).nonzero()[:, 0]
        if steps and len(rows):
            x_adv[rows] = bim(source, x[rows], y[rows], eps=radius[rows], steps=steps)
    return x_adv


def codec_training(
    r: Recipe, x: Tensor, y: Tensor, *, noise: float = 20.0, ramp: float = 0.5, sparse: float = 1e-4, **how: Any
) -> nn.Module:
    """min E[mean (dec(b) − x)² + sparse · mean b²], b = σ(enc(x) − noise · N(0, 1)), or enc(x) rounded.

    Only a code far from ½ survives the noise, and rounding loses little of it: so the paper, where every image meets
    the noise. But noise also dithers: the share of ones in a neighbourhood can carry a grey level that one bit cannot,
    and is lost when nothing but rounding is left. Therefore half of each batch is rounded already in training. The
    noise grows from zero over the share `ramp` of the steps. On clean images alone. Cost: a step of training.
    """
    grown = Growing(ramp)

    def loss(model: Any, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        n = len(xb) // 2
        z = model.logits(xb[:n])
        noisy = (z - grown.share * noise * torch.randn(z.shape, generator=generator).to(z)).sigmoid()
        b = torch.cat([noisy, model.code(xb[n:])])
        return F.mse_loss(model.decode(b), xb) + sparse * b.square().mean()

    return fit(r, x, y, loss=loss, before=grown, **how)


def denoiser_figures(r: Recipe, network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: the guide's accuracy behind the denoiser, on clean images and on 500 after BIM at 16/255
    against a network that made no training image, with the denoiser and without."""
    guide, held_out = kit.models.load(r.options["guide"]), kit.models.load("scenes/mobilenet")
    few = slice(0, 500)
    x_adv = bim(held_out, x[few], y[few], eps=16 / 255)
    return {
        "accuracy": accuracy(HGD(guide, network), x, y),
        "transfer_16_255": accuracy(HGD(guide, network), x_adv, y[few]),
        "undefended_16_255": accuracy(guide, x_adv, y[few]),
    }


def codec_figures(r: Recipe, network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: the accuracy of scenes/inception behind the codec, and the mean squared error in pixels."""
    model = ComDefend(kit.models.load("scenes/inception"), network)
    with torch.no_grad():
        error = (model.purify(x[:500]) - x[:500]).square().mean()
    return {"accuracy": accuracy(model, x, y), "mse": float(error)}
