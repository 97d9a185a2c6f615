"""The mutants that survive for a reason: (file, what the line holds before or after, the reason). "" is any line."""

# Of committed outputs: the notebook, the kind, the reason.
EXPLAINED: list[tuple[str, str, str]] = [
    ("kit/models/registry.py", "Recipe(", "a recipe's constants are tested by training again, which takes minutes"),
    ("notebooks/", "number under 0.01",
     "2 % of it are under 2e-4, by which another processor may differ; what is recorded is compared beside it"),
    *(("notebooks/attacks/atta.ipynb " + cell, ": number", why) for cell, why in (
        ("atta-09", "the game of T and x' is chaotic: LOOSE in conftest.py"),
        ("atta-28", "it prints ratios of measured times: LOOSE in conftest.py"),
        ("atta-46", "the game of T and x' is chaotic: LOOSE in conftest.py"),
    )),
    ("kit/core/balls.py", "clamp_min(1e-30)).clamp(max=1)", "where it is over 1 the next lines set 1: nothing changes"),
    ("kit/attacks/minimal/deepfool.py", "z.gather(1, others)).detach()",
     "an image that is still asked about has gaps above −slack: with 2 slack added all are positive"),
    ("kit/attacks/scores/estimators.py", "live.m = mu * live.m + ((1 + mu)) * g",
     "a steepest step has a length of its own: a factor of m changes nothing"),
    ("kit/attacks/minimal/penalty.py", "squared(x_adv - run.x) + run.c * (kappa - lead), w",
     "an image whose hinge is 0 leaves in the same step, but for logits that rounding alone sets apart"),
    ("kit/attacks/minimal/quasi_newton.py", "strict=True)]).mean(0))",
     "an objective divided by the number of layers has the same minimum, and the tolerance is a share of it"),
    ("kit/attacks/decision/walks.py", "around: float = 0.2",
     "a default that the walk changes by its answers: it comes as near from 0.9, or from 0.003"),
    ("kit/core/checks.py", "high <= 256", "no images end between 255 and 256, and it chooses a hint only"),
    ("kit/fire/adv2/descent.py", "smooth: float | None = 0.0002",
     "a default: maps of scenes/resnet come as near with any τ from 5e-5 to 1e-3"),
    ("kit/explain/tcav.py", "/ (total), 0.5", "a total of zero is in the branch not taken"),
    ("kit/fire/adv2/descent.py", "reach = (size * 2 ** 0.5)", "it matters in images of fewer than 5 pixels only"),
    ("kit/report/figures.py", "figsize", "the size of a figure is a matter of taste"),
]
