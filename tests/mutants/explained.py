"""The mutants that survive for a reason: (file, what the mutated line holds, the reason). An empty text is any line."""

# Of committed outputs: the notebook, the kind, the reason.
EXPLAINED: list[tuple[str, str, str]] = [
    ("kit/models/registry.py", "Recipe(", "a recipe's constants are tested by training again, which takes minutes"),
    ("notebooks/", "number under 0.001", "rounding errors, which another processor makes differently"),
    *(("notebooks/attacks/atta.ipynb " + cell, ": number", why) for cell, why in (
        ("atta-09", "the game of T and x' is chaotic: LOOSE in conftest.py"),
        ("atta-28", "it prints ratios of measured times: LOOSE in conftest.py"),
        ("atta-46", "the game of T and x' is chaotic: LOOSE in conftest.py"),
    )),
    ("kit/core/balls.py", "clamp_min(1e-30)).clamp(max=1)", "where it is over 1 the next lines set 1: nothing changes"),
    ("kit/report/figures.py", "figsize", "the size of a figure is a matter of taste"),
]
