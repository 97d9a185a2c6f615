"""Attacks on labels beside the bare forward passes of as many answers, and HopSkipJump beside that of foolbox at as
many queries: what they reach, and in what time."""
import importlib.util

import torch

import kit.data
import kit.models
from kit.attacks import boundary, hopskipjump, opt_attack, sign_opt
from kit.core import fooled
from tests.bench import Task, bare_passes

QUERIES, IMAGES = 1000, 16


def tasks():
    data = kit.data.load("scenes", "test", n=128)
    model = kit.models.load("scenes/vgg").requires_grad_(False)
    right = model(data.x).argmax(1) == data.y
    x, y = data.x[right][:IMAGES], data.y[right][:IMAGES]
    start = torch.stack([x[y != label][0] for label in y])  # the same for all: foolbox finds none by noise
    many = x.repeat(8, 1, 1, 1)

    def passes(times):
        for _ in range(QUERIES * times // 8):
            bare_passes(model, many, y, 1, backward=False)

    def distance(x_adv):
        wrong = fooled(model, x_adv, y)
        size = (x_adv - x).flatten(1).norm(dim=1)
        return f"{int(wrong.sum())} of {len(x)}, median l2 {float(torch.where(wrong, size, torch.inf).median()):.3f}"

    yield Task(f"HopSkipJump, {QUERIES} queries, scenes/vgg", lambda: passes(1),
               {"kit": lambda: hopskipjump(model, x, y, start=start, max_queries=QUERIES), **peers(model, x, y, start)},
               quality=distance, target=1.1, repeats=3)
    yield Task(f"the others, {QUERIES} queries, scenes/vgg", lambda: passes(1),
               {"Sign-OPT": lambda: sign_opt(model, x, y, max_queries=QUERIES),
                "OPT": lambda: opt_attack(model, x, y, max_queries=QUERIES),
                "Boundary": lambda: boundary(model, x, y, max_queries=QUERIES)}, quality=distance, repeats=1)


class Counted(torch.nn.Module):
    """Counts the images that it is asked about."""

    def __init__(self, model):
        super().__init__()
        self.model, self.asked = model, 0

    def forward(self, v):
        self.asked += len(v)
        with torch.no_grad():
            return self.model(v)


def steps_for(attack, images):
    """The smallest number of its iterations that takes the budget, QUERIES for each image on the average, or more."""
    steps = 1
    while attack(steps)[1] < QUERIES * images:
        steps += 1
    return steps


def peers(model, x, y, start):
    """HopSkipJump of foolbox, where it is installed, with as many iterations as the budget takes. (ART takes an image
    at a time, and minutes.)"""
    found = {}
    if importlib.util.find_spec("foolbox") and importlib.util.find_spec("git"):
        import foolbox

        def run(steps):
            counted = Counted(model).eval()
            attack = foolbox.attacks.HopSkipJumpAttack(steps=steps)
            inside = foolbox.PyTorchModel(counted, bounds=(0, 1), device="cpu")
            wrong = foolbox.criteria.Misclassification(y)
            return attack.run(inside, x, wrong, starting_points=start), counted.asked

        steps = steps_for(run, len(x))
        found["foolbox"] = lambda: run(steps)[0]
    return found
