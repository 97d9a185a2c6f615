"""Bounds beside the passes that they cannot avoid: two forward passes for intervals; auto_LiRPA where it is there.

CROWN's bound is two backward passes of a whole batch, which nothing reaches: its row compares, and has no target. A
call of `ibp` checks the model and lists its layers, which takes as long as some milliseconds of passes: "listed once"
is what it costs who keeps the `Layers`, as auto_LiRPA's users keep a BoundedModule. Both passes of the MLP take half a
millisecond, less than any call in Python: its row has no target.
"""
import torch

import kit.data
import kit.models
from kit.certify import ClippedBall, Layers, Relaxed, crown, ibp
from kit.certify.bounds.methods import margins
from tests.bench import Task


def tasks():
    x, y = (t[:64] for t in (lambda d: (d.x, d.y))(kit.data.load("digits", "test")))
    for name in ("digits/mlp", "digits/cnn7", "mnist/small"):
        model = kit.models.load(name).requires_grad_(False)
        layers, peers = Layers(model, x), {}
        if theirs := lirpa(model, x, y):
            peers = {"auto_LiRPA": lambda f=theirs: f("IBP")}
        yield Task(f"ibp, {name}, {len(x)} images", lambda m=model, x=x: passes(m, x),
                   {"kit": lambda m=model, x=x, y=y: ibp(m, x, y, eps=0.01),
                    "kit, listed once": lambda layers=layers, x=x, y=y: listed_once(layers, x, y), **peers},
                   lambda result: f"sum {float(result.sum()):.1f}", target=None if name == "digits/mlp" else 1.7)
    model, x, y = kit.models.load("mnist/small").requires_grad_(False), x[:8], y[:8]
    peers = {"auto_LiRPA": lambda f=f: f("CROWN")} if (f := lirpa(model, x, y)) else {}
    yield Task(f"crown, mnist/small, {len(x)} images", lambda: passes(model, x),
               {"kit": lambda: crown(model, x, y, eps=0.01), **peers},
               lambda result: f"sum {float(result.sum()):.1f}", target=None)


def listed_once(layers, x, y):
    with torch.no_grad():
        return Relaxed(layers, ClippedBall(x, 0.01), "ibp").least(margins(y, layers.classes, x))


def passes(model, x):
    with torch.no_grad():
        model(x)
        model(x)


def lirpa(model, x, y, eps=0.01):
    """auto_LiRPA's lower bounds of z_y − z_k by a method's name, or None where it is not installed."""
    try:
        from auto_LiRPA import BoundedModule, BoundedTensor
        from auto_LiRPA.perturbations import PerturbationLpNorm
    except ImportError:
        return None
    bounded = BoundedModule(model, torch.empty_like(x))
    box = PerturbationLpNorm(norm=float("inf"), eps=eps, x_L=(x - eps).clamp(0, 1), x_U=(x + eps).clamp(0, 1))
    C = margins(y, 10, x)

    def bounds(method):
        with torch.no_grad():
            return bounded.compute_bounds(x=(BoundedTensor(x, box),), C=C, method=method, bound_upper=False)[0]

    return bounds
