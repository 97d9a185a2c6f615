"""ATTA beside the bare passes: Algorithm 1 is a game of 2·outer·(inner + 1) passes, Algorithm 2 one of 2·steps."""
import kit.data
import kit.models
from kit.attacks import atta, bim, train_transformation
from kit.core import fooled
from tests.bench import Task, bare_passes

EPS = 16 / 255


def tasks():
    data = kit.data.load("scenes", "dev", n=64)
    x, y = data.x, data.y
    model = kit.models.load("scenes/resnet").requires_grad_(False)
    other = kit.models.load("scenes/vgg")
    game = {"eps": EPS, "outer": 2, "inner": 10}
    for name, options in (("a T for each image", {}), ("one T for all", {"shared": True})):
        yield Task(
            f"ATTA, {name}, 2 rounds of 11", lambda: bare_passes(model, x, y, 44),
            {"kit": lambda options=options: train_transformation(model, x, y, **game, **options)}, target=1.4,
            repeats=3)
    shared, own = train_transformation(model, x, y, shared=True, **game), train_transformation(model, x, y, **game)

    def success(x_adv):
        return f"fools vgg {float(fooled(other, x_adv, y).float().mean()):.0%}"

    yield Task(
        "ATTA, the attack, 10 steps on f and f∘T", lambda: bare_passes(model, x, y, 20),
        {"kit": lambda: atta(model, x, y, T=shared, eps=EPS), "a T for each image": lambda: atta(
            model, x, y, T=own, eps=EPS), "BIM": lambda: bim(model, x, y, eps=EPS)}, success, target=1.3, repeats=3)
