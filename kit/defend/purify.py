"""Defences that change the image before the classifier sees it: z(x) = f(q(x)), or the mean over random q.

Each is a module from images (N, C, H, W) in [0, 1] to logits (N, K) around a classifier, so that whatever attacks a
model attacks it, and gradients pass through all of them. `RandomResizePad` and `RandomEnsemble` draw transformations
for every batch and use them for all images of it, as the originals do. With generator=None the draws are the same at
every call, so that image i's result depends on nothing but image i; with a generator they are fresh.

Two of them are learned, `HGD` and `ComDefend`: their networks are `kit.models.load("hgd/scenes")` and
`kit.models.load("comdefend/scenes")`, and their trainers stand at the end of this file.
"""
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.models
from kit.attacks import bim
from kit.core import accuracy, seeding
from kit.defend.adversarial_training import Growing
from kit.models import Recipe, fit


def mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """log (1/D) Σ_d softmax(z_d): logits (N, K) whose softmax is the mean of the probabilities."""
    return torch.stack(list(logits)).log_softmax(-1).logsumexp(0) - math.log(len(logits))


class Wrapper(nn.Module):
    """A module around the caller's networks: in evaluation mode itself, while theirs stays what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False


class Purified(Wrapper, ABC):
    """f(q(x)); `purify` is q, from images to images, and all that a defence of this kind adds."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @abstractmethod
    def purify(self, x: Tensor) -> Tensor:
        """q(x) (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.purify(x))


# --- random transformations -----------------------------------------------------------------------------------------


class RandomResizePad(Wrapper):
    """R&P: resize to a random size, pad with zeros at a random place, mirror or not; the mean probability of `draws`.

    z(x) = log (1/D) Σ_d softmax f(q_d(x)). The paper goes from 299 to r ∈ {310, …, 330}, nearest neighbour, within 331
    pixels; here the same ratios: from 32 to r ∈ {33, 34, 35} within 36. The model must take images of another size.
    Each draw starts from the image itself (in the authors' code the mirrorings accumulate). They add 0.4 times the
    probabilities of an auxiliary head, which our networks do not have. Cost: `draws` forward passes.
    Source: Xie et al., Mitigating adversarial effects through randomization, ICLR 2018.
    """

    def __init__(self, model: nn.Module, draws: int = 30, generator: torch.Generator | None = None):
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws must be 1 or more, not {draws}")
        self.model, self.draws, self.generator = model, draws, generator

    def transforms(self, height: int, width: int) -> list[Callable[[Tensor], Tensor]]:
        """One function from images to images per draw."""
        u = torch.rand(self.draws, 4, generator=self.generator or seeding.generator()).tolist()
        return [_resize_pad(height, width, *numbers) for numbers in u]

    def forward(self, x: Tensor) -> Tensor:
        return mean_probability([self.model(q(x)) for q in self.transforms(*x.shape[2:])])


def _resize_pad(height: int, width: int, size: float, down: float, right: float, mirrored: float):
    """q for four numbers in [0, 1)."""
    shape, before, after = [], [], []
    for n, place in ((height, down), (width, right)):
        smallest, canvas = round(n * 310 / 299), math.ceil(n * 331 / 299)
        new = smallest + int(size * (canvas - smallest))
        start = int(place * (canvas - new + 1))
        shape.append(new)
        before.append(start)
        after.append(canvas - new - start)
    around = (before[1], after[1], before[0], after[0])

    def q(x: Tensor) -> Tensor:
        x = F.pad(F.interpolate(x, size=shape, mode="nearest"), around)
        return x.flip(3) if mirrored < 0.5 else x

    return q


class RandomEnsemble(Wrapper):
    """NIPS-r3: several adversarially trained networks, each behind random rotations, shears, shifts and zooms.

    z(x) = log (1/MD) Σ_m Σ_d softmax f_m(q_md(x)), q an affine map by bilinear interpolation, the edge repeated.
    The ranges: rotation ± `rotation` degrees, shear ± `shear`, shift ± `shift` of the image's side, zoom 1 ± `zoom`,
    all uniform; they are ours, as is `draws` per network. Cost: M × draws forward passes.
    Source: the third place of the defence track of the NIPS 2017 competition (Kurakin et al., 2018, section 5).
    """

    def __init__(
        self, models: Sequence[nn.Module], draws: int = 3, rotation: float = 8.0, shear: float = 0.1,
        shift: float = 0.06, zoom: float = 0.1, generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not models or draws < 1:
            raise ValueError("an ensemble needs at least one model and one draw")
        self.models, self.draws, self.generator = nn.ModuleList(models), draws, generator
        self.ranges = (math.radians(rotation), shear, shift, shift, zoom)

    def maps(self) -> Tensor:
        """The affine maps (M, D, 2, 3), from the output's coordinates in [−1, 1] to the input's."""
        u = torch.rand(len(self.models), self.draws, 5, generator=self.generator or seeding.generator()) * 2 - 1
        angle, shear, down, right, zoom = (u * torch.tensor(self.ranges)).unbind(-1)
        cos, sin, scale = angle.cos(), angle.sin(), 1 / (1 + zoom)
        rows = [scale * cos, scale * (shear * cos - sin), 2 * right, scale * sin, scale * (shear * sin + cos), 2 * down]
        return torch.stack(rows, -1).unflatten(-1, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        votes = []
        for model, own in zip(self.models, self.maps().to(x), strict=True):
            for theta in own:
                grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
                votes.append(model(F.grid_sample(x, grid, padding_mode="border", align_corners=False)))
        return mean_probability(votes)


# --- compression ----------------------------------------------------------------------------------------------------


class FeatureDistillation(Purified):
    """Quantise the cosine transform of 8 × 8 blocks: q(x) = DCT⁻¹(Q round(DCT(255 x) / Q)) / 255, per channel.

    Q is `low` for the 4 × 4 lowest frequencies and `high` elsewhere; RGB channels are treated separately, and the
    transform is orthonormal. Where height or width is no multiple of 8 the edge is repeated and cut off again. Rounding
    is differentiated as the identity. Cost: the model's pass, and two 8 × 8 products per block.
    Source: Liu et al., Feature distillation: DNN-oriented JPEG compression against adversarial examples, CVPR 2019.
    """

    table: Tensor
    dct: Tensor

    def __init__(self, model: nn.Module, low: float = 25.0, high: float = 30.0):
        super().__init__(model)
        table = torch.full((8, 8), float(high))
        table[:4, :4] = low
        i = torch.arange(8.0)
        dct = (math.pi / 8 * (i + 0.5) * i[:, None]).cos() / 2  # (frequency, pixel)
        dct[0] /= 2**0.5
        self.register_buffer("table", table[:, None], persistent=False)
        self.register_buffer("dct", dct, persistent=False)

    def purify(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        wide = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = 255 * wide.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # (N, C, rows, 8, columns, 8)
        dct, table = self.dct.to(x), self.table.to(x)
        levels = torch.einsum("ui,ncrisj,vj->ncrusv", dct, blocks, dct) / table
        levels = levels + (levels.round() - levels).detach()
        blocks = torch.einsum("ui,ncrusv,vj->ncrisj", dct, levels * table, dct)
        return (blocks.flatten(4).flatten(2, 3) / 255).clamp(0, 1)[..., :height, :width]


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
