"""PGD and FGSM beside the bare passes, and beside the libraries of the peers group that are installed."""
import importlib.util

import kit.data
import kit.models
from kit.attacks import fgsm, pgd
from kit.core import fooled
from tests.bench import Task, bare_passes

EPS = 8 / 255


def tasks():
    data = kit.data.load("scenes", "test", n=128)
    x, y = data.x, data.y
    for family in ("resnet", "vgg"):
        model = kit.models.load(f"scenes/{family}").requires_grad_(False)

        def success(x_adv, model=model):
            return f"fools {float(fooled(model, x_adv, y).float().mean()):.0%}"

        yield Task(
            f"FGSM linf, scenes/{family}", lambda model=model: bare_passes(model, x, y),
            {"kit": lambda model=model: fgsm(model, x, y, eps=EPS), **peers(model, x, y, 1)}, success, target=1.1)
        for norm, eps in (("linf", EPS), ("l2", 0.5)):
            yield Task(
                f"PGD-40 {norm}, scenes/{family}", lambda model=model: bare_passes(model, x, y, 40),
                {"kit": lambda model=model, norm=norm, eps=eps: pgd(model, x, y, eps=eps, norm=norm),
                 **(peers(model, x, y, 40) if norm == "linf" else {})}, success, target=1.05, repeats=3)


def peers(model, x, y, steps):
    """The same attack by other libraries, where they are installed."""
    found = {}
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        attack = (torchattacks.FGSM(model, eps=EPS) if steps == 1
                  else torchattacks.PGD(model, eps=EPS, alpha=2.5 * EPS / steps, steps=steps))
        found["torchattacks"] = lambda: attack(x, y)
    if importlib.util.find_spec("foolbox"):
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        method = (foolbox.attacks.FGSM() if steps == 1
                  else foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=2.5 / steps))
        found["foolbox"] = lambda: method(wrapped, x, y, epsilons=EPS)[1]
    if importlib.util.find_spec("art"):
        from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier
        from torch import nn, tensor

        classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
                                       device_type="cpu")
        art = (FastGradientMethod(classifier, eps=EPS, batch_size=128) if steps == 1
               else ProjectedGradientDescentPyTorch(classifier, eps=EPS, eps_step=2.5 * EPS / steps, max_iter=steps,
                                                    num_random_init=1, batch_size=128, verbose=False))
        found["ART"] = lambda: tensor(art.generate(x.numpy(), y.numpy()))
    return found
