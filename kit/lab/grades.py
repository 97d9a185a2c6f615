"""From submissions to grades: collect what a learning platform hands out, grade it, write what it takes back.

A course's folder is laid out as nbgrader's: submitted/<student>/<lab>/<lab>.ipynb, and autograded/ in the same way.
"""
from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat

from kit.lab.sandbox import run
from kit.lab.source import Question, earned, graded, notebook, poured, questions

LARGEST = 20 * 2**20  # bytes of a notebook that is collected
# "Ada Lovelace_417_assignsubmission_file_/lab.ipynb" (Moodle) and "lovelaceada_417_8812_lab.ipynb" (Canvas)
MOODLE = re.compile(r"(?P<name>.+?)_(?P<student>\d+)_assignsubmission_file")
CANVAS = re.compile(r"(?P<name>[^_]+)(?:_LATE)?_(?P<student>\d+)_\d+_.+")
FORMS = ("nbgrader", "canvas", "moodle")


@dataclass(frozen=True)
class Graded:
    """What a submission came to: points for each question (None: a person's to give); why, if it ended early."""

    student: str
    points: dict[str, float | None]
    remark: str = ""


def owner(place: PurePosixPath, lab: str) -> tuple[str, str]:
    """Whose a file is: student and name, out of its folder or of its own name."""
    for part in place.parts[:-1]:
        if found := MOODLE.match(part):
            return found["student"], found["name"]
    if found := CANVAS.fullmatch(place.stem):
        return found["student"], found["name"]
    folders = [part for part in place.parts[:-1] if part not in (lab, ".", "..", "/")]
    name = folders[-1] if folders else re.sub(rf"[-_ ]*{re.escape(lab)}$", "", place.stem)
    return re.sub(r"[^\w.@-]+", "-", name).strip("-."), name


def notebooks(place: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The notebooks of a folder or of a zip file, with their paths in it. Raises ValueError for another file."""
    def wanted(path: PurePosixPath) -> bool:
        return path.suffix == ".ipynb" and not any(part.startswith((".", "__MACOSX")) for part in path.parts)

    if place.is_dir():
        for path in sorted(place.rglob("*.ipynb")):
            inside = PurePosixPath(path.relative_to(place).as_posix())
            if wanted(inside) and path.stat().st_size <= LARGEST:
                yield inside, path.read_bytes()
    elif zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            for entry in archive.infolist():
                if wanted(PurePosixPath(entry.filename)) and entry.file_size <= LARGEST:
                    yield PurePosixPath(entry.filename), archive.read(entry)
    else:
        raise ValueError(f"{place} is neither a folder nor a zip file: give the one that your platform hands out")


def collect(place: Path, course: Path, lab: str) -> tuple[list[str], list[str]]:
    """Sort what a platform handed out into submitted/<student>/<lab>/. Returns the students, and what was left out."""
    ids = {graded(cell).get("grade_id") for cell in notebook(key_of(course, lab)).cells if graded(cell).get("solution")}
    people = names(course)
    taken: list[str] = []
    left = []
    for inside, content in notebooks(place):
        student, name = owner(inside, lab)
        try:
            nb = nbformat.reads(content.decode("utf-8"), as_version=4)
        except Exception:
            left.append(f"{inside}: not a notebook that can be read")
            continue
        if not ids & {graded(cell).get("grade_id") for cell in nb.cells}:
            left.append(f"{inside}: not a copy of {lab}")
        elif not student or student in taken:
            left.append(f"{inside}: {'a second notebook of ' + student if student else 'nobody'}")
        else:
            target = course / "submitted" / student / lab / f"{lab}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            taken.append(student)
            people[student] = name
    with open(course / "students.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("student", "name"), *sorted(people.items())])
    return taken, left


def names(course: Path) -> dict[str, str]:
    """What the students of a course are called, as far as it is known."""
    try:
        with open(course / "students.csv", newline="", encoding="utf-8") as file:
            return {row["student"]: row["name"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        return {}


def key_of(course: Path, lab: str) -> Path:
    """The grader's version of a lab. Raises ValueError where it has not been built."""
    path = course / "key" / lab / f"{lab}.ipynb"
    if not path.is_file():
        raise ValueError(f"{course} has no lab {lab}: run `kit lab build {lab} --out {course}` first")
    return path


def grade(path: Path, course: Path, lab: str, *, seconds: float = 60.0, memory: float = 4.0) -> Graded:
    """Run a submission against the hidden tests, and keep what it put out in autograded/<student>/<lab>/."""
    student, _ = owner(PurePosixPath(path.absolute().as_posix()) if path.stem == lab else PurePosixPath(path.name), lab)
    key = notebook(key_of(course, lab))
    try:
        submission = notebook(path)
    except ValueError as error:
        return Graded(student, {q.name: 0.0 for q in questions(key)}, str(error))
    executed, remark = run(poured(submission, key), seconds=seconds, memory=memory)
    remark = remark or stopped(executed)
    kept = course / "autograded" / student / lab / f"{lab}.ipynb"
    kept.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(executed, kept)
    return Graded(student, earned(executed), remark)


def stopped(executed: Any) -> str:
    """A remark where one of the lab's own cells stopped: what follows it may then not be the student's fault."""
    for cell in executed.cells:
        meta = graded(cell)
        given = meta and not meta.get("solution") and not meta.get("grade") and cell.cell_type == "code"
        if given and (errors := [o.ename for o in cell.outputs if o.output_type == "error"]):
            return f"the lab's own cell {meta['grade_id']} stopped with {errors[0]}"
    return ""


def write(found: Sequence[Graded], course: Path, lab: str, path: Path) -> None:
    """The grades as CSV: a column for each question, with its points in the heading; what a person grades is empty.

    Points that were given by hand in an earlier such file are kept."""
    asked, people, before = questions(notebook(key_of(course, lab))), names(course), {}
    if path.exists():
        _, rows = table(path)
        before = {row["student"]: row for row in rows}
    by_hand = [heading(q) for q in asked if q.by_hand]
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["student", "name", "lab", *map(heading, asked), "remark"])
        out.writeheader()
        new = {g.student for g in found}
        rows = [{"student": g.student, "name": people.get(g.student, g.student), "lab": lab, "remark": g.remark,
                 **{heading(q): "" if g.points.get(q.name) is None else f"{g.points[q.name]:g}" for q in asked}}
                for g in found]
        for row in rows:
            old = before.get(row["student"], {})
            row.update({h: old[h] for h in by_hand if row[h] == "" and old.get(h)})
        kept = [{h: row.get(h, "") for h in out.fieldnames} for s, row in before.items() if s not in new]
        out.writerows(sorted([*rows, *kept], key=lambda row: row["student"]))


def heading(question: Question) -> str:
    return f"{question.name} /{question.points:g}"


def table(path: Path) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Columns of points with their maximum, and the rows. Raises ValueError for a file that is none of `write`'s."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, fields = list(reader), reader.fieldnames or []
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: `kit lab check` writes it") from None
    columns = {field: float(field.rpartition(" /")[2]) for field in fields if re.fullmatch(r".+ /[\d.]+", field)}
    if not columns or not {"student", "name", "lab"} <= set(fields):
        raise ValueError(f"{path} has not the columns that `kit lab check` writes")
    return columns, rows


def export(path: Path, form: str, to: Path) -> int:
    """Write the totals in the form that a platform reads: "nbgrader", "canvas" or "moodle". Returns how many.

    Raises ValueError where points are still to be given by hand, or are more than there are."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form}")
    columns, rows = table(path)
    most, lab = sum(columns.values()), rows[0]["lab"] if rows else ""
    totals = [sum(points(row, column, best) for column, best in columns.items()) for row in rows]
    with open(to, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        if form == "canvas":
            out.writerow(["Student", "ID", "SIS User ID", "SIS Login ID", "Section", lab])
            out.writerow(["    Points Possible", "", "", "", "", f"{most:g}"])
            out.writerows([r["name"], r["student"], "", "", "", f"{t:g}"] for r, t in zip(rows, totals, strict=True))
        elif form == "moodle":
            out.writerow(["Identifier", "Full name", "Grade", "Maximum grade"])
            out.writerows([f"Participant {r['student']}", r["name"], f"{t:g}", f"{most:g}"]
                          for r, t in zip(rows, totals, strict=True))
        else:
            out.writerow(["assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email",
                          "raw_score", "late_submission_penalty", "score", "max_score"])
            out.writerows([lab, "", "", r["student"], r["name"], "", "", t, 0.0, t, most]
                          for r, t in zip(rows, totals, strict=True))
    return len(rows)


def points(row: dict[str, str], column: str, most: float) -> float:
    try:
        value = float(row[column])
    except ValueError:
        said = row[column].strip() or "empty"
        raise ValueError(f"{row['student']} has no points for {column.rpartition(' /')[0]} ({said}): what a person "
                         "grades is filled in by hand, before it is exported") from None
    if not 0 <= value <= most:
        raise ValueError(f"{row['student']} has {value:g} points for {column}: at most {most:g} can be had")
    return value
