"""Exercises that answer back: an answer is compared with the package's own, and with the usual wrong ones.

An exercise asks for a function. Its cases are arguments drawn from a seed; `right` is what the package says, in closed
form wherever there is one. Each named wrong answer is a function too: an answer that agrees with it on every case gets
its hints, from a nudge to nearly the solution.

    check(name, function)             prints the verdict, with the first hint; `hint=2` prints the next
    judge(name, function)             the same verdict as a value
    marks(name, function, points=…)   the points for it, for a lab's hidden tests, which use another seed
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.core import generator

Case = tuple[Any, ...]
UNREACHED = ("does not require grad", "allow_unused")  # in torch's message where a gradient has no way to its variable
GRAPH = ("what you differentiate does not depend on that variable: was it detached, or a first gradient taken without "
         "`create_graph=True`?")
Answer = Callable[..., Any]


@dataclass(frozen=True)
class Wrong:
    """A mistake that is often made: a function that makes it, and hints from a nudge to nearly the answer."""

    name: str
    answer: Answer
    hints: tuple[str, ...]


@dataclass(frozen=True)
class Exercise:
    """What is asked for, the cases that it is tried on, the right answer, and the named wrong ones.

    cases         (generator) → lists of arguments
    reads         (answer, *arguments) → what of the answer is compared, where it is random: its quantiles, say
    rtol, atol    how near it must come
    """

    name: str
    asks: str
    right: Answer
    cases: Callable[[torch.Generator], Iterable[Case]]
    wrong: tuple[Wrong, ...]
    reads: Answer | None = None
    rtol: float = 1e-3
    atol: float = 1e-5

    def read(self, answer: Any, case: Case) -> list[Tensor]:
        return tensors(self.reads(answer, *case) if self.reads else answer)

    def near(self, a: list[Tensor], b: list[Tensor]) -> bool:
        return len(a) == len(b) and all(
            u.shape == v.shape and torch.allclose(u, v, rtol=self.rtol, atol=self.atol)
            for u, v in zip(a, b, strict=True))


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right; if it is not, which mistake it is (None: no named one) and the hints for it."""

    exercise: str
    passed: bool
    hints: tuple[str, ...] = ()
    mistake: str | None = None

    def message(self, hint: int = 1) -> str:
        if self.passed:
            return f"✓ {self.exercise}: right."
        level = min(max(hint, 1), len(self.hints))
        more = f'\n  More: check("{self.exercise}", …, hint={level + 1})' if level < len(self.hints) else ""
        return f"✗ {self.exercise}: {self.hints[level - 1]}{more}"


EXERCISES: dict[str, Exercise] = {}


def exercise(
    name: str, asks: str, right: Answer, cases: Callable[[torch.Generator], Iterable[Case]],
    wrong: Sequence[tuple[str, Answer, Sequence[str]]], **how: Any,
) -> Exercise:
    """Make an exercise and enter it in `EXERCISES`. Raises ValueError for a name that is taken."""
    if name in EXERCISES:
        raise ValueError(f"there is an exercise {name!r} already: give this one another name")
    EXERCISES[name] = Exercise(name, asks, right, cases, tuple(Wrong(n, f, tuple(h)) for n, f, h in wrong), **how)
    return EXERCISES[name]


def tensors(value: Any) -> list[Tensor]:
    """An answer as tensors of float64: a number, an array, a list of numbers, or a tuple of them.

    Raises TypeError for others."""
    if isinstance(value, tuple) or (isinstance(value, list) and not all(isinstance(v, int | float) for v in value)):
        return [t for part in value for t in tensors(part)]
    if isinstance(value, Tensor | np.ndarray | np.generic | int | float | list):
        return [torch.as_tensor(value).detach().to("cpu", torch.float64)]
    raise TypeError(f"it returns a {type(value).__name__}, not a tensor or a number")


def judge(name: str, function: Answer, *, seed: int = 0) -> Verdict:
    """Try an answer on the exercise's cases. Raises LookupError for a name that no exercise has."""
    if name not in EXERCISES:
        raise LookupError(f"there is no exercise {name!r}; there are {', '.join(sorted(EXERCISES))}")
    task = EXERCISES[name]
    if not callable(function):
        return Verdict(name, False, (f"hand over the function itself, {task.asks}, not what it returns.",))
    cases = [tuple(case) for case in task.cases(generator(seed))]
    given, wanted = [], []
    for case in cases:
        mine = copy.deepcopy(case)
        try:
            answer = function(*mine)
        except NotImplementedError:
            return Verdict(name, False, (f"not written yet: {task.asks}.",), "not written")
        except Exception as error:
            said = f"it stops with {type(error).__name__}: {error}"
            kept = (GRAPH,) if any(words in str(error) for words in UNREACHED) else ()
            return Verdict(name, False, (f"{said} (arguments: {_described(case)}).", *kept), "stops")
        if answer is None or answer is Ellipsis:
            return Verdict(name, False, (f"it returns nothing: is there a `return`? It should be {task.asks}.",),
                           "not written")
        if any(isinstance(a, Tensor | np.ndarray) and not torch.equal(torch.as_tensor(a), torch.as_tensor(b))
               for a, b in zip(mine, case, strict=True)):
            return Verdict(name, False, ("it changes its arguments in place: compute a new tensor, without `+=` and "
                                         "functions whose names end in `_`.",), "in place")
        right = task.right(*copy.deepcopy(case))
        answer = _in_the_form_of(right, answer)
        if fault := _unlike(answer, right):
            return Verdict(name, False, (fault,), "shape")
        given.append(task.read(answer, case))
        wanted.append(task.read(right, case))
    if all(task.near(a, b) for a, b in zip(given, wanted, strict=True)):
        return Verdict(name, True)
    for wrong in task.wrong:
        if all(task.near(a, task.read(wrong.answer(*copy.deepcopy(case)), case))
               for a, case in zip(given, cases, strict=True)):
            return Verdict(name, False, wrong.hints, wrong.name)
    return Verdict(name, False, _difference(task, given, wanted))


def check(name: str, function: Answer, *, seed: int = 0, hint: int = 1) -> None:
    """Print whether the answer is right, and the hint of that number where it is not."""
    print(judge(name, function, seed=seed).message(hint))


def marks(name: str, function: Answer, *, points: float, seed: int) -> float:
    """The points for an answer: all or none. What is wrong with it is printed. For a lab's hidden tests."""
    verdict = judge(name, function, seed=seed)
    print(verdict.message())
    return float(points) if verdict.passed else 0.0


def marks_number(name: str, value: Any, expected: Any, *, points: float, within: float = 1e-3) -> float:
    """The points for a number that a lab asks for: all where it lies within `within` of what is expected, else none."""
    try:
        (a,), (b,) = tensors(value), tensors(expected)
        good = a.shape == b.shape and bool(((a - b).abs() <= within).all())
    except (TypeError, ValueError):
        good = False
    print(f"✓ {name}: right." if good else f"✗ {name}: not the number that the functions above lead to.")
    return float(points) if good else 0.0


def _described(case: Case) -> str:
    return ", ".join(f"{'tensor' if isinstance(a, Tensor) else 'array'} {tuple(a.shape)}"
                     if isinstance(a, Tensor | np.ndarray) else "a function" if callable(a) else repr(a) for a in case)


def _in_the_form_of(right: Any, answer: Any) -> Any:
    """The answer, its parts put together or a tensor taken apart where that alone gives it the shape of what is right.

    A loop that collects a number for each image in a list is as right as a tensor of them."""
    try:
        a, b = tensors(answer), tensors(right)
    except (TypeError, ValueError, RuntimeError):
        return answer
    if len(b) == 1 and len(a) > 1 and all(u.shape == a[0].shape for u in a):
        return torch.stack(a) if torch.stack(a).shape == b[0].shape else answer
    if len(a) == 1 and len(b) > 1 and a[0].ndim and len(a[0]) == len(b):
        return tuple(a[0]) if all(u.shape == v.shape for u, v in zip(a[0], b, strict=True)) else answer
    return answer


def _unlike(answer: Any, right: Any) -> str:
    """What keeps an answer from being compared: type, number of parts, shape, NaN. Empty where nothing does."""
    try:
        a = tensors(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{error}."
    b = tensors(right)
    shapes = [", ".join(str(tuple(t.shape)) for t in part) for part in (a, b)]
    if shapes[0] != shapes[1]:
        return f"the shape is {shapes[0]}, and should be {shapes[1]}."
    if any(bool(u.isnan().any()) and not bool(v.isnan().any()) for u, v in zip(a, b, strict=True)):
        return "there are NaNs in it: is something divided by zero?"
    return ""


def _difference(task: Exercise, given: list[list[Tensor]], wanted: list[list[Tensor]]) -> tuple[str, ...]:
    """Hints for an answer that no named mistake explains: how it differs, then an example."""
    a = torch.cat([t.flatten() for part in given for t in part])
    b = torch.cat([t.flatten() for part in wanted for t in part])
    wrong = ~torch.isclose(a, b, rtol=task.rtol, atol=task.atol)
    ratio = a[b.abs() > 1e-6] / b[b.abs() > 1e-6]
    at = int(wrong.nonzero()[0]) if bool(wrong.any()) else 0
    example = f"first where they differ: yours {float(a[at]):.4g}, expected {float(b[at]):.4g}."
    if len(ratio) and float(ratio.std(correction=0)) < 1e-3 and abs(float(ratio.mean()) - 1) > 1e-3:
        c = float(ratio.mean())
        said = "it is the negative of what is expected." if abs(c + 1) < 1e-3 else (
            f"it is {c:.4g} times what is expected, everywhere: a constant factor is missing or too much.")
    else:
        said = f"{int(wrong.sum())} of {len(wrong)} values differ from what is expected."
    return said, f"{said[:-1]}; {example}"
