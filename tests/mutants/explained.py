"""The mutants that survive for a reason: (file, what the mutated line holds, the reason). An empty text is any line."""

EXPLAINED: list[tuple[str, str, str]] = [
    ("kit/models/registry.py", "Recipe(", "a recipe's constants are tested by training again, which takes minutes"),
    ("kit/report/figures.py", "figsize", "the size of a figure is a matter of taste"),
]
