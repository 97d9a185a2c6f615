"""Attacks by queries beside the bare forward passes of as many answers: none succeeds, so that all are asked. Then how
many questions Square and SimBA need where they do succeed, beside other libraries."""
import importlib.util

import kit.data
import kit.models
from kit.attacks import autozoom, finite_difference, nes, simba, spsa, square, zoo
from kit.core import fooled
from tests.bench import Task, bare_passes
from tests.bench.bench_decision import Counted

TINY = 1e-4  # a radius within which nothing is fooled, so that every image uses its whole budget


def tasks():
    data = kit.data.load("scenes", "test", n=128)
    model = kit.models.load("scenes/vgg").requires_grad_(False)
    right = model(data.x).argmax(1) == data.y
    x, y = data.x[right][:64], data.y[right][:64]

    def passes(images, queries):
        bare_passes(model, x[:images], y[:images], queries, backward=False)

    def many(images, queries):
        """The same number of answers, a whole chunk at a time."""
        v = x[:images].repeat(queries, 1, 1, 1)
        bare_passes(model, v, y[:images].repeat(queries), 1, backward=False)

    yield Task("Square, 100 queries, scenes/vgg", lambda: passes(64, 100),
               {"kit": lambda: square(model, x, y, eps=TINY, max_queries=100), **peers(model, x, y)}, target=1.1,
               repeats=3)
    yield Task("SimBA, 100 queries, scenes/vgg", lambda: passes(64, 100),
               {"kit": lambda: simba(model, x, y, step=TINY, max_queries=100)}, target=1.2, repeats=3)
    yield Task("ZOO, 8 images, 1028 queries, scenes/vgg", lambda: many(8, 1028),
               {"kit": lambda: zoo(model, x[:8], y[:8], c=1e-6, lr=1e-5, max_queries=1028)}, target=1.2,
               repeats=3)
    for name, attack in (("SPSA", spsa), ("NES", nes)):
        yield Task(f"{name}, 8 images, 1033 queries, scenes/vgg", lambda: many(8, 1033),
                   {"kit": lambda attack=attack: attack(model, x[:8], y[:8], eps=TINY, q=64, max_queries=1033)},
                   target=1.2, repeats=3)
    yield Task("finite differences, groups of 8, scenes/vgg", lambda: many(8, 770),
               {"kit": lambda: finite_difference(model, x[:8], y[:8], eps=TINY, group=8)}, target=1.2, repeats=3)
    yield Task("AutoZOOM, 100 queries, scenes/vgg", lambda: passes(64, 100),
               {"kit": lambda: autozoom(model, x, y, c=1e-6, lr=1e-5, max_queries=100)}, repeats=3)
    few, labels = x[:16], y[:16]

    def result(x_adv):
        return f"{int(fooled(model, x_adv, labels).sum())} of 16, {x_adv.asked:.0f} queries an image"

    yield Task("Square that succeeds, 8/255, 1000 queries, scenes/vgg", lambda: passes(16, 100),
               {"kit": counted(model, lambda m: square(m, few, labels, eps=8 / 255, max_queries=1000), 16),
                **rivals(model, few, labels, "Square")}, quality=result, repeats=1)
    yield Task("SimBA that succeeds, steps of 0.2, 1000 queries, scenes/vgg", lambda: passes(16, 100),
               {"kit": counted(model, lambda m: simba(m, few, labels, step=0.2, max_queries=1000), 16),
                **rivals(model, few, labels, "SimBA")}, quality=result, repeats=1)


def counted(model, attack, images):
    """attack(model), whose result says how many questions an image took."""
    def run():
        counter = Counted(model)
        x_adv = attack(counter)
        x_adv.asked = counter.asked / images
        return x_adv

    return run


def peers(model, x, y):
    """The same attack by other libraries, where they are installed."""
    found = {}
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        attack = torchattacks.Square(model, norm="Linf", eps=TINY, n_queries=99, n_restarts=1, p_init=0.05)
        found["torchattacks"] = lambda: attack(x, y)
    if importlib.util.find_spec("art"):
        import numpy as np
        from art.attacks.evasion import SquareAttack
        from torch import tensor

        art = SquareAttack(classifier(model, x), norm=np.inf, eps=TINY, max_iter=99, batch_size=64, verbose=False)
        found["ART"] = lambda: tensor(art.generate(x.numpy(), y.numpy()))
    return found


def rivals(model, x, y, name):
    """The same by other libraries, with as many iterations as the kit has queries."""
    found = {}
    if name == "Square" and importlib.util.find_spec("torchattacks"):
        import torchattacks

        settings = {"norm": "Linf", "eps": 8 / 255, "n_queries": 999, "n_restarts": 1, "p_init": 0.05}
        found["torchattacks"] = counted(model, lambda m: torchattacks.Square(m, **settings)(x, y), len(x))
    if importlib.util.find_spec("art"):
        import numpy as np
        from art.attacks.evasion import SimBA, SquareAttack
        from torch import tensor

        attacks = {
            "Square": lambda c: SquareAttack(c, norm=np.inf, eps=8 / 255, max_iter=999, batch_size=64, verbose=False),
            "SimBA": lambda c: SimBA(c, attack="px", max_iter=500, epsilon=0.2, verbose=False),
        }
        hot = np.eye(10, dtype=np.float32)[y.numpy()]
        found["ART"] = counted(
            model, lambda m: tensor(attacks[name](classifier(m, x)).generate(x.numpy(), hot)), len(x))
    return found


def classifier(model, x):
    from art.estimators.classification import PyTorchClassifier
    from torch import nn

    model = nn.Sequential(model, nn.Softmax(1))  # its SimBA wants probabilities
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
                             device_type="cpu")
