"""Minimal attacks beside their unavoidable passes, replayed on exactly the images that were still unfooled."""
import importlib.util

import torch
from torch import Tensor, nn

import kit.data
import kit.models
from kit.attacks import auto_pgd, cw, deepfool, distance, jsma
from kit.core import fooled
from tests.bench import Task, bare_passes

EPS = 2 / 255


class Sizes(nn.Module):
    """A model that notes how many images each pass is given, and whether it will be differentiated."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.passes = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append((len(x), x.requires_grad))
        return self.model(x)


def replay(model, x, attack, backward):
    """A bound: the forward and backward passes of the differentiated calls of `attack`, and nothing else."""
    sizes = Sizes(model)
    attack(sizes)
    passes = [size for size, differentiated in sizes.passes if differentiated]

    def bound():
        for size in passes:
            v = x[:size].detach().requires_grad_()
            z = model(v)
            for k in range(backward):
                torch.autograd.grad(z[:, k].sum(), v, retain_graph=True)

    return bound


def tasks():
    for name, victim in (("digits", "digits/cnn7"), ("scenes", "scenes/resnet")):
        data = kit.data.load(name, "test", n=64)
        x, y = data.x, data.y
        model = kit.models.load(victim).requires_grad_(False)

        def quality(x_adv, model=model, x=x, y=y):
            far = distance(model, x, x_adv, y)
            hit = far.isfinite()
            return f"fools {float(hit.float().mean()):.0%}, l2 {float(far[hit].median()):.3f}"

        def success(x_adv, model=model, y=y):
            return f"fools {float(fooled(model, x_adv, y).float().mean()):.0%}"

        found = peers(model, x, y)
        yield Task(
            f"DeepFool l2, {victim}", replay(model, x, lambda m, x=x, y=y: deepfool(m, x, y), 9),
            {"kit": lambda model=model, x=x, y=y: deepfool(model, x, y), **found["deepfool"]}, quality, 1.2, repeats=3)
        yield Task(
            f"CW l2, 50 steps, {victim}", lambda model=model, x=x, y=y: bare_passes(model, x, y, 50),
            {"kit": lambda model=model, x=x, y=y: cw(model, x, y, rounds=1, steps=50, c=1.0), **found["cw"]}, quality,
            1.2, repeats=3)
        yield Task(
            f"Auto-PGD, 100 steps, {victim}", lambda model=model, x=x, y=y: bare_passes(model, x, y, 100),
            {"kit": lambda model=model, x=x, y=y: auto_pgd(model, x, y, eps=EPS), **found["auto_pgd"]}, success, 1.1,
            repeats=3)
        for name_, bound, attack in (
            ("DeepFool l2", replay(model, x, lambda m, x=x, y=y: deepfool(m, x, y), 9), "slow deepfool"),
            ("CW l2, 50 steps", lambda model=model, x=x, y=y: bare_passes(model, x, y, 50), "slow cw"),
        ):
            if found[attack]:  # too slow to be run more than once
                yield Task(f"{name_}, {victim}, slower libraries", bound, found[attack], quality, repeats=1)
        yield Task(
            f"JSMA, {victim}", replay(model, x, lambda m, x=x, y=y: jsma(m, x, y), 2),
            {"kit": lambda model=model, x=x, y=y: jsma(model, x, y), **found["jsma"]}, quality, 1.5, repeats=1)


def peers(model, x, y):
    """The same attacks by other libraries, where they are installed."""
    found: dict[str, dict] = {"deepfool": {}, "cw": {}, "auto_pgd": {}, "jsma": {}, "slow deepfool": {}, "slow cw": {}}
    if importlib.util.find_spec("foolbox"):
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        near = foolbox.attacks.L2DeepFoolAttack()
        penalty = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=1, steps=50, initial_const=1.0, abort_early=False)
        found["deepfool"]["foolbox"] = lambda: near(wrapped, x, y, epsilons=None)[1]
        found["cw"]["foolbox"] = lambda: penalty(wrapped, x, y, epsilons=None)[1]
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        tangent = torchattacks.DeepFool(model, steps=50, overshoot=0.02)
        hinge = torchattacks.CW(model, c=1.0, kappa=0, steps=50, lr=0.01)
        found["slow deepfool"]["torchattacks"] = lambda: tangent(x, y)
        found["slow cw"]["torchattacks"] = lambda: hinge(x, y)
        ascent = torchattacks.APGD(model, norm="Linf", eps=EPS, steps=100, n_restarts=1, loss="ce")
        found["auto_pgd"]["torchattacks"] = lambda: ascent(x, y)
    if importlib.util.find_spec("art"):
        from art.attacks.evasion import CarliniL2Method, DeepFool, SaliencyMapMethod
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
                                       device_type="cpu")
        plane = DeepFool(classifier, max_iter=50, epsilon=0.02, nb_grads=10, batch_size=64, verbose=False)
        weighed = CarliniL2Method(classifier, binary_search_steps=1, max_iter=50, initial_const=1.0, learning_rate=0.01,
                                  batch_size=64, verbose=False)
        found["slow deepfool"]["ART"] = lambda: torch.tensor(plane.generate(x.numpy()))
        found["slow cw"]["ART"] = lambda: torch.tensor(weighed.generate(x.numpy(), y.numpy()))
        greedy = SaliencyMapMethod(classifier, theta=1.0, gamma=0.145, batch_size=64, verbose=False)
        found["jsma"]["ART"] = lambda: torch.tensor(greedy.generate(x.numpy()))
    return found
