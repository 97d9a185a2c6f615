"""A lab is one notebook with marked regions; from it come the student's version, the instructor's and the grader's.

The marks and the cells' metadata are nbgrader's, so that nbgrader can take over at any point:

    ### BEGIN SOLUTION … ### END SOLUTION              in an answer's cell: a stub stands there for the student
    ### BEGIN HIDDEN TESTS … ### END HIDDEN TESTS      in a test's cell: the student does not see them
    a cell of text that is graded                      an open question: solution and rubric between the first marks

    source(…)      for the instructor: parameters set, points table, solutions, hidden tests, rubrics
    release(…)     for the student: stubs and public checks
    key(…)         for the grader: the student's answers go into it, and it has the hidden tests

The cell tagged `parameters` is what `--seed` and `--set` change. Nothing here runs a notebook.
"""
from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

SOURCES = Path(__file__).resolve().parent / "labs"
SCHEMA = 3  # of nbgrader's metadata
CODE_STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")
TEXT_STUB = ("YOUR ANSWER HERE",)
CONFIG = """# Written by `kit lab build`: what nbgrader needs to work in this folder.
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "kit"
c.ExecutePreprocessor.timeout = 60
"""

Notebook = Any


@dataclass(frozen=True)
class Question:
    """What is graded: its name, points, and whether a person grades it."""

    name: str
    points: float
    by_hand: bool


def names() -> list[str]:
    """The labs that come with the package."""
    return sorted(path.stem for path in SOURCES.glob("*.ipynb"))


def read(lab: str) -> Notebook:
    """A lab's source, by name or by path. Raises LookupError or ValueError for what is none."""
    path = Path(lab) if lab.endswith(".ipynb") else SOURCES / f"{lab}.ipynb"
    if not path.is_file():
        raise LookupError(f"there is no lab {lab}; there are {', '.join(names())}, and your own notebook by its path")
    nb = notebook(path)
    if not questions(nb):
        raise ValueError(f"{path} is no lab: none of its cells is graded")
    nb.metadata.setdefault("kit", {}).setdefault("lab", {})["name"] = path.stem
    return nb


def notebook(path: Path) -> Notebook:
    """Any notebook. Raises ValueError where the file is none."""
    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except Exception as error:
        raise ValueError(f"{path} is not a notebook that can be read ({type(error).__name__})") from None


def graded(cell: Any) -> dict[str, Any]:
    """What nbgrader is told about a cell; empty for a cell that it is not told about."""
    return cell.metadata.get("nbgrader", {})


def questions(nb: Notebook) -> list[Question]:
    return [Question(meta["grade_id"], float(meta["points"]), bool(meta.get("solution")))
            for meta in map(graded, nb.cells) if meta.get("grade")]


def set_parameters(nb: Notebook, settings: Mapping[str, str]) -> Notebook:
    """A copy with other values in its parameters' cell. Raises LookupError for a name that is not set there, ValueError
    for a value that is no number, text or arithmetic of numbers."""
    nb = copy.deepcopy(nb)
    (cell,) = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    lines = cell.source.split("\n")
    places = {line.partition("=")[0].strip(): i for i, line in enumerate(lines) if re.match(r"\w+\s*=", line)}
    for name, value in settings.items():
        if name not in places:
            raise LookupError(f"this lab has no parameter {name}; it has {', '.join(places)}")
        comment = "".join(re.findall(r"  #.*$", lines[places[name]]))
        lines[places[name]] = f"{name} = {plain(name, value)}{comment}"
    cell.source = "\n".join(lines)
    return nb


def plain(name: str, value: str) -> str:
    """The value, where it is a constant or arithmetic of constants."""
    allowed = (ast.Expression, ast.Constant, ast.UnaryOp, ast.BinOp, ast.Tuple, ast.List, ast.operator, ast.unaryop,
               ast.expr_context)
    try:
        fine = all(isinstance(node, allowed) for node in ast.walk(ast.parse(value, mode="eval")))
    except SyntaxError:
        fine = False
    if not fine:
        raise ValueError(f"{name}={value}: give a number, such as 6/255, or a text in quotes")
    return value


def source(nb: Notebook, settings: Mapping[str, str] | None = None) -> Notebook:
    """The instructor's version: the parameters set, and after the title a table of the points."""
    settings = dict(settings or {})
    nb = set_parameters(nb, settings)
    nb.metadata.kit.lab["settings"] = settings
    nb.cells.insert(1, nbformat.v4.new_markdown_cell(points_table(nb), id="points"))
    for cell in nb.cells:
        if not graded(cell):
            cell.metadata["nbgrader"] = {"grade": False, "grade_id": cell.id, "locked": True, "schema_version": SCHEMA,
                                         "solution": False, "task": False}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nb


def points_table(nb: Notebook) -> str:
    asked = questions(nb)
    rows = [f"| {q.name} | {q.points:g} | {'by hand' if q.by_hand else 'by its tests'} |" for q in asked]
    total = f"| **all** | **{sum(q.points for q in asked):g}** | |"
    return "\n".join(["| question | points | graded |", "|---|---|---|", *rows, total])


def release(nb: Notebook) -> Notebook:
    """The student's version of an instructor's: stubs for solutions, and no hidden tests."""
    nb = key(nb)
    for cell in nb.cells:
        cell.source = without(cell.source, "HIDDEN TESTS")
    return nb


def key(nb: Notebook) -> Notebook:
    """The grader's version of an instructor's: stubs for solutions, and the hidden tests."""
    nb = copy.deepcopy(nb)
    for cell in nb.cells:
        if graded(cell).get("solution"):
            stub = CODE_STUB if cell.cell_type == "code" else TEXT_STUB
            cell.source = without(cell.source, "SOLUTION", stub) if "BEGIN SOLUTION" in cell.source else "\n".join(stub)
    return nb


def without(text: str, region: str, stub: tuple[str, ...] = ()) -> str:
    """The text without a marked region's lines, and with a stub in their place, as far indented as the mark.

    Raises ValueError for a mark without its other half."""
    kept, inside = [], False
    for line in text.split("\n"):
        if f"BEGIN {region}" in line or f"END {region}" in line:
            if inside is (f"BEGIN {region}" in line):
                raise ValueError(f"BEGIN and END {region} do not alternate in: {text[:60]!r}")
            inside = not inside
            indent = line[: len(line) - len(line.lstrip())]
            kept += [indent + words for words in stub] if inside else []
        elif not inside:
            kept.append(line)
    if inside:
        raise ValueError(f"there is no END {region} in: {text[:60]!r}")
    return "\n".join(kept)


def build(lab: str, course: Path, settings: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Write the three versions into a course's folder, laid out as nbgrader's, and its configuration if it lacks one.

    Returns where they are. What stood there of this lab is replaced; submissions and grades are not touched."""
    nb = source(read(lab), settings)
    name = nb.metadata.kit.lab.name
    found = {}
    for version, made in (("source", nb), ("release", release(nb)), ("key", key(nb))):
        found[version] = course / version / name / f"{name}.ipynb"
        found[version].parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(made, found[version])
    if not (course / "nbgrader_config.py").exists():
        (course / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    return found


def poured(submission: Notebook, answers_for: Notebook) -> Notebook:
    """The grader's version with a submission's answers: every given cell as it was given, every answer as it was handed
    in, and after it the cells that the student added there. An answer that is missing stays a stub."""
    known = {graded(cell).get("grade_id") for cell in answers_for.cells}
    answers: dict[str, Any] = {}
    added: dict[str | None, list[Any]] = {}
    last = None
    for cell in submission.cells:
        name = str(graded(cell).get("grade_id"))
        if name in known:
            answers.setdefault(name, cell)
            last = name
        elif not graded(cell):
            added.setdefault(last, []).append(copy.deepcopy(cell))
    nb = copy.deepcopy(answers_for)
    cells = added.get(None, [])
    for cell in nb.cells:
        meta = graded(cell)
        handed_in = answers.get(meta["grade_id"])
        if meta["solution"] and handed_in is not None and handed_in.cell_type == cell.cell_type:
            cell.source = handed_in.source
        cells += [cell, *added.get(meta["grade_id"], [])]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nb.cells = cells
    return nb


def earned(executed: Notebook) -> dict[str, float | None]:
    """The points of each question in an executed notebook; None for what a person grades.

    A test's cell ends with its points. It is worth nothing where it stopped, or never came to that."""
    found: dict[str, float | None] = {}
    for cell in executed.cells:
        meta = graded(cell)
        if not meta.get("grade"):
            continue
        if cell.cell_type == "markdown":
            found[meta["grade_id"]] = 0.0 if cell.source.strip() in ("", *TEXT_STUB) else None
            continue
        found[meta["grade_id"]] = min(max(_result(cell), 0.0), float(meta["points"]))
    return found


def _result(cell: Any) -> float:
    if any(output.output_type == "error" for output in cell.outputs):
        return 0.0
    for output in cell.outputs:
        if output.output_type == "execute_result":
            try:
                value = float(output.data.get("text/plain", ""))
            except ValueError:
                return 0.0
            return value if math.isfinite(value) else 0.0
    return 0.0
