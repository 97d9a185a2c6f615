"""Learning by doing: exercises that answer back, and labs made from one source.

`check("fgsm-step", my_function)` says at once whether an answer is right, and what is wrong with it where it is not.
`kit lab build`, `kit lab collect`, `kit lab check` and `kit lab export` take a lab from its source to the grades; they
compute nothing, so the exercises, and torch with them, are imported when one of their names is asked for.
"""
from importlib import import_module
from typing import Any

__all__ = [
    "check", "Exercise", "exercise", "EXERCISES", "judge", "marks", "marks_number", "Verdict", "Wrong",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kit.lab' has no attribute {name!r}")
    import_module("kit.lab.exercises")
    return getattr(import_module("kit.lab.checks"), name)
