"""Mutants of `kit`: where one can be made, and the tests that should see it."""
from __future__ import annotations

import ast
import copy
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
REDUCED = {"mean": "sum", "sum": "mean", "amax": "amin", "amin": "amax", "argmax": "argmin", "max": "min", "min": "max",
           "maximum": "minimum", "minimum": "maximum"}  # fmt: skip
CLAMPS = ("clamp", "clamp_", "clamp_min", "clamp_max", "clip", "relu")
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
LEFT_OUT = ("kit/run/", "kit/__init__.py")  # the runner is tested in processes of its own


@dataclass(frozen=True)
class Mutant:
    path: str  # of the file, in the repository
    line: int
    column: int
    kind: str
    start: int  # bytes of the file that `new` takes the place of
    end: int
    new: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.kind}"

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The ways to make one expression wrong."""
    other = copy.copy(node)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not isinstance(node.left, ast.JoinedStr):
        other.op = OPERATORS[type(node.op)]()
        yield "operator", other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "sign", node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
        other.ops = [COMPARED[type(node.ops[0])]()]
        yield "comparison", other
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        other.value = node.value + 1 if isinstance(node.value, int) else (node.value * 2 or 1.0)
        yield "constant", other
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in CLAMPS and not isinstance(node.func.value, ast.Name | ast.Attribute) or name in CLAMPS[:4]:
            yield "clamp dropped", node.func.value
        if name in REDUCED:
            other.func = ast.Attribute(node.func.value, REDUCED[name], ast.Load())
            yield "reduction", other
    if isinstance(node, ast.Call):
        for i, keyword in enumerate(node.keywords):
            if keyword.arg == "generator" and not (isinstance(keyword.value, ast.Constant)):
                ignored = copy.copy(node)
                ignored.keywords = [k for j, k in enumerate(node.keywords) if j != i]
                yield "generator ignored", ignored


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes whose change a test can see: not messages, annotations, the arguments of what raises, or an exercise's
    cases and wrong answers, which are other cases and other wrong answers once they are changed."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        if name == "args" and isinstance(tree, ast.Call) and ast.unparse(tree.func) == "exercise":
            value = value[:3]
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr | ast.ImportFrom):
                yield child
                yield from _code(child)


@lru_cache(maxsize=8)
def beside_the_answers(folder: Path) -> set[tuple[str, str]]:
    """(file, name) of the functions and classes in a folder of exercises that make cases or wrong answers and nothing
    else: no right answer and no reading of one comes to them, in whatever file it is."""
    calls: dict[tuple[str, str], set[tuple[str, str]]] = {}
    answers: set[tuple[str, str]] = set()
    beside: set[tuple[str, str]] = set()
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_bytes())
        known = {alias.asname or alias.name: ((node.module or "").rpartition(".")[2], alias.name)
                 for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        known |= {node.name: (path.stem, node.name) for node in tree.body if isinstance(node, DEFINITIONS)}
        for node in tree.body:
            call = node.value if isinstance(node, ast.Expr) else None
            if isinstance(node, DEFINITIONS):
                calls[path.stem, node.name] = _used(known, node)
            elif isinstance(call, ast.Call) and ast.unparse(call.func) == "exercise":
                answers |= _used(known, *call.args[:3], *call.keywords)
                beside |= _used(known, *call.args[3:])
            else:
                answers |= _used(known, node)

    def reached(names: set[tuple[str, str]]) -> set[tuple[str, str]]:
        while more := set().union(*(calls.get(name, set()) for name in names)) - names:
            names = names | more
        return names

    return (reached(beside) - reached(answers)) & set(calls)


def _used(known: dict[str, tuple[str, str]], *trees: ast.AST) -> set[tuple[str, str]]:
    return {known[n.id] for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in known}


def mutants(root: Path, path: Path) -> list[Mutant]:
    """Every mutant of one file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found, tree = [], ast.parse(source)
    beside = beside_the_answers(path.parent) if b"exercise(" in source else set()
    tree.body = [n for n in tree.body if not (isinstance(n, DEFINITIONS) and (path.stem, n.name) in beside)]
    for node in _code(tree):
        if not isinstance(node, ast.expr):
            continue
        for kind, other in _changes(node):
            new = ast.unparse(ast.fix_missing_locations(other))
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            place = path.relative_to(root).as_posix()
            text = new if isinstance(node, ast.Constant) else f"({new})"
            found.append(Mutant(place, node.lineno, node.col_offset, kind, start, end, text))
    return found


def files(root: Path) -> list[Path]:
    found = sorted((root / "kit").rglob("*.py"))
    return [p for p in found if not p.relative_to(root).as_posix().startswith(LEFT_OUT)]


def spread(found: list[Mutant], n: int, seed: int) -> list[Mutant]:
    """`n` mutants (0: all), as many of each kind as there are: constants outnumber all else."""
    source, kinds = random.Random(seed), {}
    for mutant in source.sample(found, len(found)):
        kinds.setdefault(mutant.kind, []).append(mutant)
    turns = [m for turn in zip_longest(*(kinds[kind] for kind in sorted(kinds))) for m in turn if m is not None]
    return turns[: n or None]


def seen_by(root: Path, path: str) -> list[str]:
    """The tests of a module by "one path, three places": those of `kit/a/b/c.py` are `tests/a/test_b…` and `test_c…`.

    Where there is none, they are those in `tests/a` that name the module, or all of them.
    """
    family, *names = Path(path).with_suffix("").parts[1:]
    folder = root / "tests" / family
    if not folder.is_dir():
        folder = root / "tests" / "core"
    there = sorted(folder.rglob("test_*.py"))
    named = [p for p in there if any(re.match(rf"test_{name}(_|$)", p.stem) for name in names)]
    if not named:
        named = [p for p in there if any(re.search(rf"\b{name}\b", p.read_text(encoding="utf-8")) for name in names)]
    return [p.relative_to(root).as_posix() for p in named or there]


def elsewhere(root: Path, mutant: Mutant) -> list[str]:
    """The tests of other modules that name the function or class in which a mutant stands."""
    tree = ast.parse((root / mutant.path).read_bytes())
    around = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
              and node.lineno <= mutant.line <= (node.end_lineno or node.lineno)]
    found = [place for place, text in _tests(root) if any(re.search(rf"\b{name}\b", text) for name in around)]
    return [place for place in found if place not in seen_by(root, mutant.path)]


@lru_cache(maxsize=1)
def _tests(root: Path) -> list[tuple[str, str]]:
    """All tests, with what stands in them."""
    return [(p.relative_to(root).as_posix(), p.read_text(encoding="utf-8"))
            for p in sorted((root / "tests").rglob("test_*.py"))]
