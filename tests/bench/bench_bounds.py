"""Bounds beside the passes that they cannot avoid: two forward passes for intervals; auto_LiRPA where it is there.

CROWN's bound is two backward passes of a whole batch, which nothing reaches: its row compares, and has no target. A
call of `ibp` checks the model and lists its layers once, which takes as long as some milliseconds of passes: "listed
before" is what it costs who keeps the `Layers`, as auto_LiRPA's users keep a BoundedModule. That shows where the passes
themselves take few milliseconds. Both passes of the MLP take half of one, less than any call in Python: no target.
"""
import torch

import kit.data
import kit.models
from kit.certify import ClippedBall, Layers, crown, ibp
from kit.certify.bounds.methods import margins
from kit.certify.bounds.relaxed import least_by_intervals
from kit.core import chunks, laid_out
from tests.bench import Task


def tasks():
    digits, scenes = kit.data.load("digits", "test"), kit.data.load("scenes", "test")
    for name, data, n in (("digits/mlp", digits, 64), ("mnist/small", digits, 64), ("digits/cnn7", digits, 128),
                          ("scenes/resnet", scenes, 128), ("mnist/small", digits, 400)):
        model, x, y = kit.models.load(name).requires_grad_(False), data.x[:n], data.y[:n]
        layers, peers = Layers(model, x), {}
        if theirs := lirpa(model, x, y):
            peers = {"auto_LiRPA": lambda f=theirs: f("IBP")}
        yield Task(f"ibp, {name}, {n} images", lambda m=model, x=x: passes(m, x),
                   {"kit": lambda m=model, x=x, y=y: ibp(m, x, y, eps=0.01),
                    "kit, listed before": lambda layers=layers, x=x, y=y: listed_before(layers, x, y), **peers},
                   lambda result: f"sum {float(result.sum()):.1f}",
                   target=None if name == "digits/mlp" else 1.7)
    model, x, y = kit.models.load("mnist/small").requires_grad_(False), digits.x[:8], digits.y[:8]
    peers = {"auto_LiRPA": lambda f=f: f("CROWN")} if (f := lirpa(model, x, y)) else {}
    yield Task(f"crown, mnist/small, {len(x)} images", lambda: passes(model, x),
               {"kit": lambda: crown(model, x, y, eps=0.01), **peers},
               lambda result: f"sum {float(result.sum()):.1f}", target=None)


def listed_before(layers, x, y):
    with torch.no_grad():
        return torch.cat([least_by_intervals(layers, ClippedBall(v, 0.01), margins(labels, layers.classes, v))
                          for v, labels in ((laid_out(x[rows]), y[rows]) for rows in chunks(x))])


def passes(model, x):
    with torch.no_grad():
        for rows in chunks(x):
            v = laid_out(x[rows])
            model(v)
            model(v)


def lirpa(model, x, y, eps=0.01):
    """auto_LiRPA's lower bounds of z_y − z_k by a method's name, or None where it is not installed."""
    try:
        from auto_LiRPA import BoundedModule, BoundedTensor
        from auto_LiRPA.perturbations import PerturbationLpNorm
    except ImportError:
        return None
    bounded = BoundedModule(model, torch.empty_like(x))
    box = PerturbationLpNorm(norm=float("inf"), eps=eps, x_L=(x - eps).clamp(0, 1), x_U=(x + eps).clamp(0, 1))
    C = margins(y, model(x[:1]).shape[1], x)

    def bounds(method):
        with torch.no_grad():
            return bounded.compute_bounds(x=(BoundedTensor(x, box),), C=C, method=method, bound_upper=False)[0]

    return bounds
