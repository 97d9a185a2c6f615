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
    ("kit/attacks/minimal/deepfool.py", "torch.where(movable, -others, (torch.inf))",
     "a feature whose a is −∞ is in no pair, whatever its b"),
    ("kit/attacks/minimal/deepfool.py", "b.where(few, (torch.inf))",
     "a feature that is not among the few has a = −∞, too"),
    ("kit/attacks/minimal/deepfool.py", "z.gather(1, others)).detach()",
     "an image that is still asked about has gaps above −slack: with 2 slack added all are positive"),
    ("kit/attacks/scores/estimators.py", "live.m = mu * live.m + ((1 + mu)) * g",
     "a steepest step has a length of its own: a factor of m changes nothing"),
    ("kit/core/checks.py", "high <= 256", "no images end between 255 and 256, and it chooses a hint only"),
    ("kit/fire/adv2/descent.py", "smooth: float | None = 0.0002",
     "a default: maps of scenes/resnet come as near with any τ from 5e-5 to 1e-3"),
    ("kit/data/scenes.py", "data.x.shape[-2]", "scenes are as high as they are wide"),
    ("kit/explain/tcav.py", "/ (total), 0.5", "a total of zero is in the branch not taken"),
    ("kit/fire/adv2/descent.py", "reach = (size * 2 ** 0.5)", "it matters in images of fewer than 5 pixels only"),
    ("kit/explain/maximise/dream.py", "for name in layers]).mean(0)",
     "a step is as long whatever the gradient's length"),
    ("kit/diverse/diverse_inputs.py", "(g[:, None] * inside[:, :, None]).sum(", "of it the sign alone is asked for"),
    ("kit/models/decoders.py", "size: int = 28, width: int = 17", "an untuned default: a critic is not kept"),
    ("kit/poison/leakage/shared.py", "steps: int = 601", "an untuned default: how long to train is up to the caller"),
    ("kit/report/figures.py", "figsize", "the size of a figure is a matter of taste"),
]
