"""Universal perturbations beside the bare passes of as many images, and beside ART's where it is installed.

The bound of a row is what ours must do: steps × batch forward and backward passes. ART works image by image, with FGSM
or DeepFool within; its passes are its own, so that its × is against ours. What is fooled is measured on other images.
"""
import importlib.util

import torch

import kit.data
import kit.models
from kit.attacks import shifted, universal
from kit.core import fooled, generator, logits
from tests.bench import Task, bare_passes

STEPS, BATCH, IMAGES = 48, 64, 128
EPS = {"digits": 0.2, "scenes": 16 / 255}


def tasks():
    for name, victim in (("digits", "digits/cnn7"), ("scenes", "scenes/resnet")):
        x = kit.data.load(name, "train", n=IMAGES).x
        y = torch.zeros(IMAGES, dtype=torch.int64)
        model = kit.models.load(victim).requires_grad_(False)
        unseen = kit.data.load(name, "test", n=300).x
        eps, said = EPS[name], logits(model, unseen).argmax(1)

        def quality(delta, model=model, unseen=unseen, said=said):
            return f"changes {float(fooled(model, shifted(unseen, delta), said).float().mean()):.0%} of unseen answers"

        def ours(model=model, x=x, eps=eps):
            return universal(model, x, eps=eps, steps=STEPS, batch=BATCH)

        def random(x=x, eps=eps):
            return eps * torch.randn(x[:1].shape, generator=generator(1)).sign()

        yield Task(
            f"universal linf, {victim}",
            lambda model=model, x=x, y=y: bare_passes(model, x, y, STEPS * BATCH // IMAGES),
            {"kit": ours, "random signs": random, **peers(model, x, eps)}, quality, target=1.2, repeats=1)


def peers(model, x, eps):
    """ART's, with the attack within it that fools most in the least time, and with its default."""
    if not importlib.util.find_spec("art"):
        return {}
    from art.attacks.evasion import UniversalPerturbation
    from art.estimators.classification import PyTorchClassifier
    from torch import nn, tensor

    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
                                   device_type="cpu")

    def attack(within, **how):
        def run():
            art = UniversalPerturbation(classifier, attacker=within, attacker_params=how,
                                        delta=0.2, max_iter=2, eps=eps, norm="inf", verbose=False)
            art.generate(x.numpy())
            return tensor(art.noise).float().view(1, *x.shape[1:])

        return run

    return {"ART, FGSM": attack("fgsm", eps=eps / 4), "ART, DeepFool": attack("deepfool", verbose=False)}
