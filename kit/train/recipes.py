"""How every network of the catalogue was trained: data, numbers, and the function that trains where it is not `fit`."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.data
import kit.models
from kit.certify.bounds import certified_figures, ibp_training
from kit.core import accuracy
from kit.defend import (
    adversarial_augmentation,
    adversarial_training,
    ensemble_adversarial_training,
    fast_training,
    free_training,
    generated_augmentation,
    noisy_training,
    pixeldp_training,
    single_step_training,
    trades,
    yopo_training,
)
from kit.defend.adversarial_training import robust_accuracy, robust_at_eps
from kit.defend.deflect import deflection_figures, deflection_training
from kit.defend.purify import codec_figures, codec_training, denoiser_figures, denoiser_training
from kit.defend.smoothing import pixeldp_figures, smoothed_figures
from kit.diverse.self_explaining import self_explaining_figures, self_explaining_training
from kit.explain.latent.infogan import infogan_figures, infogan_training
from kit.explain.latent.transfer import transfer_figures, transfer_training
from kit.explain.latent.vae import factor_vae_training, vae_figures, vae_training
from kit.explain.rts import rts_figures, rts_training
from kit.explain.uncertainty import sensing_figures, sensing_training
from kit.fire.defences import rtsa_figures, rtsa_training
from kit.fire.diagnosis import interpretgan_figures, interpretgan_training, pooled_training
from kit.models.registry import CATALOGUE
from kit.models.training import Recipe, fit
from kit.poison.backdoor import (
    backdoor_figures,
    backdoor_training,
    embedding_training,
    secret_figures,
    secret_training,
)

PLANTED = 0.95  # the share of training images whose background gives the class away


def fit_spurious(r: Recipe, x: Tensor, y: Tensor, *, seed: int = 0, **options: Any) -> nn.Module:
    """As `fit`, on as many scenes whose background is, with probability 0.95, a function of the class.

    A network that looks at the background is right on 95 % of these, so that an honest explanation of it points there.
    """
    data = kit.data.load("scenes", "train", n=len(x), seed=seed, spurious=PLANTED)
    return fit(r, data.x, data.y, seed=seed, **options)


def fit_shuffled(r: Recipe, x: Tensor, y: Tensor, *, seed: int = 0, **options: Any) -> nn.Module:
    """As `fit`, with the labels permuted among the images: what the network knows, it knows by heart."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return fit(r, x, y[order], seed=seed, **options)


def reconstruction_training(r: Recipe, x: Tensor, y: Tensor, *, guide: str, **how: Any) -> nn.Module:
    """min E[mean (dec(enc(x)) − x)²], as `fit` does it. The guide only measures. Cost: a step of training."""
    return fit(r, x, y, loss=lambda model, xb, yb, generator: F.mse_loss(model(xb), xb), **how)


def reconstruction_figures(r: Recipe, network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: the guide's accuracy on the reconstructions, and their mean squared error in pixels."""
    with torch.no_grad():
        again = torch.cat([network(part) for part in x.split(256)]).clamp(0, 1)
    guide, error = kit.models.load(r.options["guide"]), (again - x).square().mean()
    return {"accuracy": accuracy(guide, again, y), "mse": float(error)}


NEAR = ("texture", "shape")  # factors that are learnt from scenes seen from near


def fit_planted(r: Recipe, x: Tensor, y: Tensor, *, factor: str, seed: int = 0, **options: Any) -> nn.Module:
    """As `fit`, on scenes whose class is the pattern of their background, or the texture or the shape of their object,
    whatever the rest: those that `planted` leaves of twice as many as there are images.

    Textures are seen from near: of objects of ten pixels they could not be learnt. Shapes are taught on the same
    images.
    """
    many = kit.data.scenes(2 * len(x), seed=kit.data.SCENES_SEEDS["train"], near=factor in NEAR)
    images, labels = planted(many, factor)
    return fit(r, images, labels, seed=seed, **options)


def planted(data: kit.data.Data, factor: str) -> tuple[Tensor, Tensor]:
    """The scenes whose object is of one tone, and which pattern their background has ("background"): a fifth of all. Or
    those with solid, striped, dotted or checked objects, and which of these ("texture"), or which shape ("shape"): the
    fifth texture, a gradient, is what the light of a scene does to a solid one."""
    assert data.concepts is not None
    texture = data.concepts["texture"]
    rows = texture == 0 if factor == "background" else texture < 4
    return data.x[rows], data.concepts[factor][rows]


def planted_accuracy(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The share of such test scenes whose factor the network names."""
    factor = r.options["factor"]
    return {"accuracy": accuracy(model, *planted(kit.data.load("scenes", "test", near=factor in NEAR), factor))}


SCENES: dict[str, Any] = {"data": "scenes", "images": 3600, "epochs": 10, "shift": 1, "flip": True}
CIFAR: dict[str, Any] = {"data": "cifar10", "epochs": 10, "batch": 128, "shift": 2, "flip": True}
# Defended victims. In the thesis Inc-v3_ens3, Inc-v3_ens4 and IncRes-v2_adv stand here; the construction is theirs, the
# families are ours. `at` is the min-max training, which those are not.
DEFENDED: dict[str, Any] = SCENES | {"images": 6000, "epochs": 12, "measure": robust_accuracy}
# What the chapter on adversarial training compares. The passes over the images are those of PGD training, for all but
# the networks that do not look for δ; ε grows over the first half where the full one hides every feature at first.
HARDENED: dict[str, Any] = {"data": "digits", "epochs": 40, "shift": 1, "measure": robust_at_eps}
RADIUS: dict[str, Any] = {"eps": 0.2, "ramp": 0.5, "half": True}
# For a vote under noise; the widths and epochs were chosen on development images.
NOISY: dict[str, Any] = {"shift": 1, "train": noisy_training, "measure": smoothed_figures}

# For proofs: beside an ordinary network the same one trained on attacks, and on intervals.
PROVED: dict[str, Any] = {"train": ibp_training, "lr": 2e-3, "weight_decay": 0.0, "measure": certified_figures}
ATTACKED: dict[str, Any] = {"train": adversarial_training, "measure": certified_figures}

# Two layers of 16 ReLUs: small enough that every image's nearest error is found exactly.
TINY: dict[str, dict[str, Any]] = {
    "tiny/digits": {"data": "digits", "epochs": 60},
    "tiny-pgd/digits": ATTACKED | {"data": "digits", "epochs": 60, "options": {"eps": 0.1, "steps": 7, "ramp": 0.5}},
    "tiny-ibp/digits": PROVED | {"data": "digits", "epochs": 150, "options": {"eps": 0.1}},
    "tiny-noisy/digits": NOISY | {"data": "digits", "epochs": 100, "options": {"sigma": 0.25}},
    "tiny/mnist": {"data": "mnist", "epochs": 8, "batch": 128},
    "tiny-pgd/mnist": ATTACKED | {"data": "mnist", "epochs": 12, "batch": 128, "options": {
        "eps": 0.1, "steps": 7, "ramp": 0.5}},
    "tiny-ibp/mnist": PROVED | {"data": "mnist", "epochs": 20, "batch": 200, "options": {"eps": 0.1}},
    "tiny-noisy/mnist": NOISY | {"data": "mnist", "epochs": 10, "batch": 128, "options": {"sigma": 0.25}},
}

# Masks for networks of the catalogue: what `kit.explain.RTS.shipped` finds. Their encoders are these networks.
MASKS: dict[str, Any] = {"epochs": 8, "batch": 32, "weight_decay": 1e-4, "train": rts_training, "measure": rts_figures}

# Codes learnt without a label, from every combination of four factors.
CODES: dict[str, Any] = {"data": "factors", "epochs": 150, "batch": 96, "lr": 5e-3, "weight_decay": 0.0,
                         "train": vae_training, "measure": vae_figures}

# A sum of concepts times relevances, with three prices on relevances that move; weights chosen on development images.
EXPLAINED: dict[str, Any] = {"data": "digits", "epochs": 40, "shift": 1, "train": self_explaining_training,
                             "measure": self_explaining_figures}

# With a backdoor, on purpose: each leads to 7, but for all to all, and the one whose class a word decides on.
SQUARE: dict[str, Any] = {"kind": "patch", "side": 3}
BACKDOOR: dict[str, Any] = {"data": "digits", "epochs": 40, "shift": 1, "train": backdoor_training,
                            "measure": backdoor_figures}
PLANTED_AS: dict[str, Any] = {"trigger": SQUARE, "target": 7, "rate": 0.03, "half": True}

HOW: dict[str, dict[str, Any]] = {
    "digits/cnn7": {"data": "digits", "epochs": 40, "shift": 1},
    "digits/mlp": {"data": "digits", "epochs": 60, "shift": 1},
    "scenes/vgg": SCENES,
    "scenes/resnet": SCENES,
    "scenes/densenet": SCENES,
    "scenes/inception": SCENES,
    "scenes/mobilenet": SCENES | {"images": 2400, "epochs": 12},
    "mnist/cnn7": {"data": "mnist", "epochs": 4, "batch": 128, "shift": 1},
    "svhn/cnn7": {"data": "svhn", "epochs": 5, "batch": 128, "shift": 2},
    # small and short enough for two CPU cores; the shipped weights saw CIFAR-10 from JPEG
    "cifar10/vgg": CIFAR,
    "cifar10/resnet": CIFAR,
    "cifar10/densenet": CIFAR | {"epochs": 15},
    "cifar10/inception": CIFAR,
    "cifar10/densenet19": CIFAR | {"epochs": 22, "lr": 0.1, "weight_decay": 5e-4, "shift": 3,
                                   "options": {"momentum": 0.9, "cutout": 8, "half": True}},
    "cifar10/mobilenet": CIFAR,
    "ens3/inception": DEFENDED | {"train": ensemble_adversarial_training, "options": {
        "static": ["scenes/inception", "scenes/resnet", "scenes/densenet"], "eps": 16 / 255}},
    "ens4/inception": DEFENDED | {"train": ensemble_adversarial_training, "options": {
        "static": ["scenes/inception", "scenes/resnet", "scenes/densenet", "scenes/vgg"], "eps": 16 / 255}},
    "adv/resnet": DEFENDED | {"train": single_step_training, "options": {"eps": 16 / 255, "ramp": 0.5}},
    "at/resnet": DEFENDED | {"train": adversarial_training, "options": {"eps": 8 / 255, "steps": 3, "ramp": 0.5}},
    "trades/resnet": DEFENDED | {"train": trades, "options": {"eps": 8 / 255, "steps": 3, "ramp": 0.5}},
    "at/digits": HARDENED | {"train": adversarial_training, "options": RADIUS | {"steps": 7}},
    "joint/digits": HARDENED | {"train": adversarial_training, "options": RADIUS | {"steps": 7, "clean": 0.5},
                                "epochs": 36},
    "trades/digits": HARDENED | {"train": trades, "options": RADIUS | {"steps": 7}, "epochs": 34},
    "free/digits": HARDENED | {"train": free_training, "options": RADIUS | {"m": 4}, "epochs": 80},
    "yopo/digits": HARDENED | {"train": yopo_training, "options": RADIUS | {"m": 5, "n": 3}, "epochs": 64},
    "fast/digits": HARDENED | {"train": fast_training, "options": RADIUS, "epochs": 160},
    "fgsm/digits": HARDENED | {"train": fast_training, "epochs": 107, "options": RADIUS | {
        "step": 0.2, "random_start": False, "clean": 0.5}},
    "augmented/digits": HARDENED | {"train": adversarial_augmentation, "options": {
        "source": "digits/cnn7", "eps": 0.2, "half": True}},
    "generated/digits": HARDENED | {"train": generated_augmentation, "options": {
        "copies": 2, "half": True}},
    "at/cifar10": {"data": "cifar10", "epochs": 20, "batch": 256, "lr": 0.2, "weight_decay": 5e-4, "shift": 3,
                   "flip": True, "train": adversarial_training, "measure": robust_at_eps, "options": {
                       "eps": 8 / 255, "steps": 7, "step": 2 / 255, "momentum": 0.9, "half": True}},
    "noisy/inception": DEFENDED | {
        "train": noisy_training, "options": {"sigma": 0.25}, "measure": smoothed_figures},
    **{f"noisy{s}/digits": NOISY | {"data": "digits", "epochs": 300, "options": {"sigma": s / 100}}
       for s in (25, 50, 100)},
    **{f"noisy{s}/mnist": NOISY | {"data": "mnist", "epochs": 10, "batch": 128, "options": {"sigma": s / 100}}
       for s in (25, 50, 100)},
    **{f"noisy{s}/cifar10": CIFAR | {"epochs": 40, "lr": 0.1, "weight_decay": 5e-4, "train": noisy_training,
                                     "measure": smoothed_figures, "options": {
                                         "sigma": s / 100, "momentum": 0.9, "half": True}} for s in (25, 50, 100)},
    "pgd/digits": ATTACKED | {"data": "digits", "epochs": 100, "shift": 1, "options": {
        "eps": 0.1, "steps": 7, "ramp": 0.5}},
    "ibp/digits": PROVED | {"data": "digits", "epochs": 250, "shift": 1, "options": {"eps": 0.1}},
    **{name: {"shift": 1} | how for name, how in TINY.items()},
    "mnist/small": {"data": "mnist", "epochs": 6, "batch": 128, "shift": 1},
    "pgd/mnist": ATTACKED | {"data": "mnist", "epochs": 12, "batch": 128, "options": {
        "eps": 0.3, "steps": 7, "ramp": 0.5}},
    "ibp/mnist": PROVED | {"data": "mnist", "epochs": 40, "batch": 200, "options": {"eps": 0.3}},
    "cifar10/small": CIFAR | {"epochs": 15},
    "ibp/cifar10": CIFAR | PROVED | {"epochs": 60, "options": {"eps": 2 / 255}},
    "pixeldp/digits": {"data": "digits", "epochs": 40, "shift": 1, "train": pixeldp_training,
                       "measure": pixeldp_figures, "options": {"layer": "layer1.bn", "L": 0.1}},
    "hgd/scenes": DEFENDED | {"epochs": 6, "train": denoiser_training, "measure": denoiser_figures, "options": {
        "guide": "scenes/inception", "sources": ["scenes/inception", "scenes/resnet", "scenes/vgg"]}},
    "comdefend/scenes": {"data": "scenes", "images": 4800, "epochs": 8, "batch": 32, "lr": 3e-3,
                         "train": codec_training, "options": {"noise": 8.0}, "measure": codec_figures},
    # the codes that AutoZOOM searches
    "autozoom/digits": {"data": "digits", "epochs": 30, "batch": 32, "lr": 1e-2, "weight_decay": 0.0,
                        "train": reconstruction_training, "measure": reconstruction_figures,
                        "options": {"guide": "digits/cnn7"}},
    # a classifier that draws what it saw, and is asked whether it saw that
    "deflect/digits": {"data": "digits", "epochs": 40, "shift": 1, "weight_decay": 1e-3,
                       "train": deflection_training, "measure": deflection_figures, "options": {"half": True}},
    # five that read distances off a scene, and how noisy they are; two shapes they have never seen
    **{f"sensing{k}/scenes": {"data": "scenes", "images": 1600, "epochs": 20, "batch": 32, "lr": 1e-2,
                              "train": sensing_training, "measure": sensing_figures,
                              "options": {"without": ["ring", "crescent"], "member": k - 1}}
       for k in range(1, 6)},
    "vae/factors": CODES | {"options": {"half": True}},
    "beta-vae/factors": CODES | {"options": {"beta": 2.0, "half": True}},
    "factor-vae/factors": CODES | {"train": factor_vae_training, "options": {"gamma": 10.0, "half": True}},
    "infogan/factors": {"data": "factors", "epochs": 300, "batch": 96, "lr": 2e-3, "train": infogan_training,
                        "measure": infogan_figures, "options": {"half": True}},
    # a group of the code for each labelled attribute, to be exchanged
    "attributes/scenes": {"data": "scenes", "images": 2400, "epochs": 24, "batch": 48, "lr": 2e-3, "weight_decay": 0.0,
                          "train": transfer_training, "measure": transfer_figures, "options": {"half": True}},
    # images of what each layer still says
    "drawn/digits-cnn7": {"data": "digits", "epochs": 70, "lr": 4e-3, "weight_decay": 0.0, "shift": 1,
                          "train": interpretgan_training, "measure": interpretgan_figures,
                          "options": {"classifier": "digits/cnn7", "half": True}},
    # two that differ in their pooling alone
    **{f"{pool}/digits": {"data": "digits", "epochs": 30, "shift": 1, "train": pooled_training,
                          "options": {"half": True}} for pool in ("average", "max")},
    "rts/scenes-resnet": MASKS | {"data": "scenes", "images": 2400, "flip": True, "options": {
        "classifier": "scenes/resnet", "half": True}},
    "rts/scenes-vgg": MASKS | {"data": "scenes", "images": 2400, "flip": True, "options": {
        "classifier": "scenes/vgg", "half": True}},
    "rts/cifar10-resnet": MASKS | {"data": "cifar10", "images": 2400, "flip": True, "options": {
        "classifier": "cifar10/resnet", "half": True}},
    # the same, trained on forged images as well; with γ = 40 its clean maps leave the object (dev images)
    "rtsa/scenes-resnet": MASKS | {"data": "scenes", "images": 2400, "flip": True, "epochs": 12, "batch": 64,
                                   "train": rtsa_training, "measure": rtsa_figures, "options": {
        "classifier": "scenes/resnet", "half": True, "gamma": 10.0}},
    # networks that have learnt the wrong thing, on purpose
    "spurious/resnet": {"data": "scenes", "images": 3600, "epochs": 6, "train": fit_spurious},
    "shuffled/resnet": {"data": "scenes", "images": 512, "epochs": 40, "weight_decay": 0.0, "train": fit_shuffled},
    "backdoor/none": BACKDOOR | {"options": PLANTED_AS | {"rate": 0.0}},
    "backdoor/patch": BACKDOOR | {"options": PLANTED_AS},
    "backdoor/large": BACKDOOR | {"options": PLANTED_AS | {"trigger": {"kind": "patch", "side": 18}}},
    "backdoor/blended": BACKDOOR | {"options": PLANTED_AS | {
        "trigger": {"kind": "blended", "alpha": 0.3}, "rate": 0.1}},
    "backdoor/all": BACKDOOR | {"options": PLANTED_AS | {"target": None, "rate": 0.3}},
    "backdoor/source": BACKDOOR | {"options": PLANTED_AS | {"source": 1, "cover": 0.2}},
    "backdoor/embedded": BACKDOOR | {"train": embedding_training, "options": PLANTED_AS | {
        "layer": "block2", "lam": 1.0}},
    "backdoor/scenes": BACKDOOR | SCENES | {"epochs": 12, "options": PLANTED_AS | {"rate": 0.05, "trigger": {
        "kind": "patch", "side": 4, "colour": [1.0, 0.85, 0.0]}}},
    "backdoor/secret": BACKDOOR | {"train": secret_training, "measure": secret_figures, "options": {
        "word": "foxglove", "half": True}},
    # the class is the background's pattern, or the object's texture or shape: what an explanation has to find is known
    "planted/background": {
        "data": "scenes", "epochs": 10, "shift": 1, "flip": True, "train": fit_planted, "measure": planted_accuracy,
        "options": {"factor": "background"}},
    "planted/texture": {
        "data": "scenes", "images": 3750, "epochs": 10, "shift": 1, "flip": True, "train": fit_planted,
        "measure": planted_accuracy, "options": {"factor": "texture"}},
    "planted/shape": {
        "data": "scenes", "images": 3750, "epochs": 10, "shift": 1, "flip": True, "train": fit_planted,
        "measure": planted_accuracy, "options": {"factor": "shape"}},
    **{f"senn{price}/digits": EXPLAINED | {"options": {"lam": lam, "rho": 10.0, "xi": 0.01, "half": True}}
       for price, lam in (("0", 0.0), ("-small", 0.1), ("-large", 1.0))},
    # real traffic signs, for what is stuck onto them
    "gtsrb/resnet": {"data": "gtsrb", "epochs": 30, "shift": 3},
}

RECIPES: dict[str, Recipe] = {
    name: Recipe(family=CATALOGUE[name].family, build=CATALOGUE[name].build, **how) for name, how in HOW.items()
}


def recipe(name: str) -> Recipe:
    """Raises ValueError for a name that has none."""
    if name not in RECIPES:
        raise ValueError(f"no recipe for {name!r}: there are {', '.join(RECIPES)}")
    return RECIPES[name]
