"""Masks beside the bare forward and backward passes of as many steps."""
import kit.data
import kit.models
from kit.core import logits
from kit.explain import extremal, mask
from tests.bench import Task, bare_passes, peak_memory

STEPS = 40


def tasks():
    data = kit.data.load("scenes", "test", n=64)
    for name in ("scenes/vgg", "scenes/resnet"):
        model = kit.models.load(name).requires_grad_(False)
        x, c = data.x, logits(model, data.x).argmax(1)

        def passes(model=model, x=x, c=c):
            """The steps, and the forward passes of the discs that a start is chosen from."""
            bare_passes(model, x, c, STEPS)
            bare_passes(model, x, c, 14, backward=False)

        yield Task(f"MASK, {STEPS} steps, {name}", passes,
                   {"kit": lambda model=model, x=x, c=c: mask(model, x, c, steps=STEPS)}, target=1.1, repeats=3)
        yield Task(f"extremal, {STEPS} steps, {name}", lambda model=model, x=x, c=c: bare_passes(model, x, c, STEPS),
                   {"kit": lambda model=model, x=x, c=c: extremal(model, x, c, steps=STEPS)}, target=1.3, repeats=3)

    model, few, c = kit.models.load("scenes/vgg"), data.x[:8], data.y[:8]
    yield Task("MASK, memory, 8 images", lambda: bare_passes(model, few, c), {
        "kit": lambda: ", ".join(f"{peak_memory(lambda k=k: mask(model, few, c, steps=k)):.0f} MB with {k} steps"
                                 for k in (5, 20))}, str, repeats=1)
