"""The transfer attacks beside the passes they cannot avoid, and beside BIM."""
import torch
from torch.nn.functional import cross_entropy

import kit.data
import kit.models
from kit.attacks import ata, bim, dim, mi_fgsm, si_ni_ti_dim, tap, tap_ata, tim
from kit.core import features, fooled
from tests.bench import Task, bare_passes

EPS, STEPS = 16 / 255, 10


def tasks():
    data = kit.data.load("scenes", "test", n=128)
    x, y = data.x, data.y
    for family in ("resnet", "vgg"):
        model = kit.models.load(f"scenes/{family}").requires_grad_(False)

        def success(x_adv, model=model):
            return f"fools {float(fooled(model, x_adv, y).float().mean()):.0%}"

        def run(attack, model=model):
            return lambda: attack(model, x, y, eps=EPS, steps=STEPS)

        yield Task(
            f"ATA, scenes/{family}, against BIM", run(bim), {"kit": run(ata), "TAP": run(tap), "TAP+ATA": run(tap_ata)},
            success, target=3)
        yield Task(
            f"ATA, scenes/{family}, against its passes", lambda model=model: attention_passes(model, x, y),
            {"kit": run(ata)}, success, target=1.2, repeats=3)
        yield Task(
            f"BIM with ingredients, scenes/{family}", lambda model=model: bare_passes(model, x, y, STEPS),
            {"kit": run(bim), "MI": run(mi_fgsm), "TI": run(tim), "DI": run(dim)}, success, target=1.1, repeats=3)
        yield Task(
            f"SI-NI-TI-DIM, scenes/{family}", lambda model=model: bare_passes(model, x, y, 5 * STEPS),
            {"kit": run(si_ni_ti_dim)}, success, target=1.2, repeats=3)


def attention_passes(model, x, y):
    """What ATA cannot avoid, bare: each step a forward, a backward and a backward from the logits to block2."""
    for part, labels in zip(x.split(128), y.split(128), strict=True):
        for _ in range(STEPS):
            v = part.detach().requires_grad_()
            with features(model, ["block2"]) as A:
                z = model(v)
            torch.autograd.grad(z.gather(1, labels[:, None]).sum(), A["block2"], retain_graph=True)
            torch.autograd.grad(cross_entropy(z, labels, reduction="sum"), v)
