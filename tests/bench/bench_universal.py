"""Universal perturbations beside the bare passes of as many images, and beside ART's where it is installed.

The bound of a row is what ours must do: steps × batch forward and backward passes. ART works image by image, with FGSM
or DeepFool within; its passes are its own, so that its × is against ours. What is fooled is measured on other images.
ART's result depends on the order of the images, so that each way is run with three orders, and its time is all three.
"""
import importlib.util
import random

import torch

import kit.data
import kit.models
from kit.attacks import shifted, universal
from kit.core import fooled, generator, logits
from tests.bench import Task, bare_passes

IMAGES, ORDERS = 128, 3
BUDGETS = {"in few steps": (12, 32), "as it is called": (100, 64)}  # steps of so many images
EPS = {"digits": 0.2, "scenes": 16 / 255}


def tasks():
    for name, victim in (("digits", "digits/cnn7"), ("scenes", "scenes/resnet")):
        x = kit.data.load(name, "train", n=IMAGES).x
        y = torch.zeros(IMAGES, dtype=torch.int64)
        model = kit.models.load(victim).requires_grad_(False)
        unseen = kit.data.load(name, "test", n=300).x
        eps, said = EPS[name], logits(model, unseen).argmax(1)

        def quality(deltas, model=model, unseen=unseen, said=said):
            rates = [float(fooled(model, shifted(unseen, delta), said).float().mean()) for delta in deltas]
            return f"changes {sum(rates) / len(rates):.0%} of unseen answers ({min(rates):.0%} to {max(rates):.0%})"

        def random_signs(x=x, eps=eps):
            return [eps * torch.randn(x[:1].shape, generator=generator(k)).sign() for k in range(ORDERS)]

        for how, (steps, batch) in BUDGETS.items():
            def ours(model=model, x=x, eps=eps, steps=steps, batch=batch):
                return [universal(model, x, eps=eps, steps=steps, batch=batch, generator=generator(k))
                        for k in range(ORDERS)]

            def bound(model=model, x=x, y=y, steps=steps, batch=batch):
                bare_passes(model, x[:batch], y[:batch], ORDERS * steps)

            others = peers(model, x, eps) if how == "in few steps" else {}
            yield Task(f"universal linf, {victim}, {how}: {steps} steps of {batch}", bound,
                       {"kit": ours, "random signs": random_signs, **others}, quality, target=1.2, repeats=1)


def peers(model, x, eps):
    """ART's, with the attack within it that fools most in the least time, and with its default (its eps is no bound on
    images in [0, 1], so that it is given ours)."""
    if not importlib.util.find_spec("art"):
        return {}
    import numpy as np
    from art.attacks.evasion import UniversalPerturbation
    from art.estimators.classification import PyTorchClassifier
    from torch import nn, tensor

    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
                                   device_type="cpu")

    def attack(within, rounds, **how):
        def run():
            deltas = []
            for k in range(ORDERS):
                random.seed(k)
                np.random.seed(k)  # noqa: NPY002 (ART draws from it)
                art = UniversalPerturbation(classifier, attacker=within, attacker_params=how, max_iter=rounds, eps=eps,
                                            norm="inf", verbose=False)
                art.generate(x.numpy())
                deltas.append(tensor(art.noise).float().view(1, *x.shape[1:]))
            return deltas

        return run

    return {"ART, FGSM of eps/3": attack("fgsm", 2, eps=eps / 3), "ART, FGSM of eps/4": attack("fgsm", 2, eps=eps / 4),
            "ART, DeepFool, its default": attack("deepfool", 2, verbose=False)}
