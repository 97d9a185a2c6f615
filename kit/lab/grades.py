"""From submissions to grades: collect what a learning platform hands out, grade it, write what it takes back.

A course's folder is laid out as nbgrader's: submitted/<student>/<lab>/<lab>.ipynb, and autograded/ in the same way.
"""
from __future__ import annotations

import csv
import io
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
# Moodle: "Ada Lovelace_417_assignsubmission_file_/lab.ipynb", or without folders "…_file_lab.ipynb";
# Canvas: "lovelaceada_417_8812_lab.ipynb"
MOODLE = re.compile(r"(?P<name>.+?)_(?P<student>\d+)_assignsubmission_file")
CANVAS = re.compile(r"(?P<name>[^_]+)(?:_LATE)?_(?P<student>\d+)_\d+_.+")
FORMS = ("nbgrader", "canvas", "moodle")


@dataclass(frozen=True)
class Graded:
    """What a submission came to: points for each question (None: a person's to give); what cost it points beside wrong
    answers; and the questions for a person that were empty when it was graded before, and got no points for that."""

    student: str
    points: dict[str, float | None]
    remark: str = ""
    answered_since: tuple[str, ...] = ()


def owner(place: PurePosixPath, lab: str) -> tuple[str, str]:
    """Whose a file is: student and name, out of its folder or of its own name."""
    for part in place.parts:
        if found := MOODLE.match(part):
            return found["student"], found["name"]
    if found := CANVAS.fullmatch(place.stem):
        return found["student"], found["name"]
    folders = [part for part in place.parts[:-1] if part not in (lab, ".", "..", "/")]
    name = folders[-1] if folders else re.sub(rf"[-_ ]*{re.escape(lab)}$", "", place.stem)
    return re.sub(r"[^\w.@-]+", "-", name).strip("-."), name


def handed_in(place: Path) -> Iterator[tuple[PurePosixPath, bytes | None]]:
    """The files of a folder or of a zip file, with their paths in it: a notebook's content, None for what is too large
    or no notebook. Raises ValueError for another file."""
    def wanted(path: PurePosixPath) -> bool:
        return not any(part.startswith((".", "__MACOSX")) for part in path.parts)

    def small(path: PurePosixPath, size: int) -> bool:
        return path.suffix == ".ipynb" and size <= LARGEST

    if place.is_dir():
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            inside = PurePosixPath(path.relative_to(place).as_posix())
            if wanted(inside):
                yield inside, path.read_bytes() if small(inside, path.stat().st_size) else None
    elif zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            for entry in archive.infolist():
                inside = PurePosixPath(entry.filename)
                if wanted(inside) and not entry.is_dir():
                    yield inside, archive.read(entry) if small(inside, entry.file_size) else None
    else:
        raise ValueError(f"{place} is neither a folder nor a zip file: give the one that your platform hands out")


def collect(place: Path, course: Path, lab: str) -> tuple[list[str], list[str]]:
    """Sort what a platform handed out into submitted/<student>/<lab>/. Returns the students, and what was left out.

    Of a student's notebooks the one with most answers is taken, and the first of those with as many."""
    stubs = {graded(cell)["grade_id"]: cell.source for cell in notebook(key_of(course, lab)).cells
             if graded(cell).get("solution")}
    people = names(course)
    taken: dict[str, tuple[int, PurePosixPath, str, bytes]] = {}
    left, others, seen = [], [], set()
    for inside, content in handed_in(place):
        student, name = owner(inside, lab)
        if inside.suffix != ".ipynb":
            others.append((student, inside))
            continue
        seen.add(student)
        if content is None:
            left.append(f"{inside}: larger than {LARGEST // 2**20} MB, clear its outputs")
            continue
        try:
            nb = nbformat.reads(content.decode("utf-8"), as_version=4)
        except Exception:
            left.append(f"{inside}: not a notebook that can be read")
            continue
        answers = {graded(cell).get("grade_id"): cell.source for cell in nb.cells}
        written = sum(answers.get(place, stub).strip() != stub.strip() for place, stub in stubs.items())
        if not stubs.keys() & answers.keys():
            left.append(f"{inside}: not a copy of {lab}")
        elif not student:
            left.append(f"{inside}: nobody's, by its name")
        elif student not in taken:
            taken[student] = written, inside, name, content
        else:
            rival = taken[student]
            if more := written > rival[0]:
                taken[student] = written, inside, name, content
            lost, kept = (rival[1], inside) if more else (inside, rival[1])
            left.append(f"{lost}: a second notebook of {student}, no more answers in it than in {kept.name}")
    left += [f"{inside}: not a notebook" + (", unpack it where it is" if zip_file else "")
             for student, inside in others if student not in seen for zip_file in [inside.suffix == ".zip"]]
    for student, (_, _, name, content) in taken.items():
        target = course / "submitted" / student / lab / f"{lab}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        people[student] = name
    with open(course / "students.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("student", "name"), *sorted(people.items())])
    return list(taken), left


def names(course: Path) -> dict[str, str]:
    """What the students of a course are called, as far as it is known. Raises ValueError for a list without them."""
    path = course / "students.csv"
    if not path.exists():
        return {}
    fields, rows = sheet(path)
    if not {"student", "name"} <= set(fields):
        raise ValueError(f"{path} has not the columns student and name: mend its first line, or remove it")
    return {row["student"]: row["name"] for row in rows}


def sheet(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV file, also as a spreadsheet saves it: with semicolons, or not in UTF-8."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    first = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), restval="")
    return list(reader.fieldnames or []), [row for row in reader if any(row.values())]


def key_of(course: Path, lab: str) -> Path:
    """The grader's version of a lab. Raises ValueError where it has not been built."""
    path = course / "key" / lab / f"{lab}.ipynb"
    if not path.is_file():
        built = sorted(found.stem for found in course.glob("key/*/*.ipynb"))
        there = f", it has {', '.join(built)}: name one with --lab, or" if built else ":"
        raise ValueError(f"{course} has no lab {lab}{there} run `kit lab build {lab} --out {course}` first")
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
    remark = remark or stopped(executed) or stumbled(executed, submission)
    kept = course / "autograded" / student / lab / f"{lab}.ipynb"
    points = earned(executed)
    since: tuple[str, ...] = ()
    if kept.is_file():
        before = notebook(kept)
        since = tuple(name for name, value in earned(before).items() if value == 0 and points.get(name, 0) is None)
        remark = "; ".join(filter(None, (remark, rewritten(executed, before, but=since))))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)  # nbgrader leaves files that may not be written over
    nbformat.write(executed, kept)
    return Graded(student, points, remark, since)


def stopped(executed: Any) -> str:
    """A remark where one of the lab's own cells stopped: what follows it may then not be the student's fault."""
    for cell in executed.cells:
        meta = graded(cell)
        given = meta and not meta.get("solution") and not meta.get("grade") and cell.cell_type == "code"
        if given and (errors := [o.ename for o in cell.outputs if o.output_type == "error"]):
            return f"the lab's own cell {meta['grade_id']} stopped with {errors[0]}"
    return ""


def stumbled(executed: Any, submission: Any) -> str:
    """A remark on what cost points apart from a wrong answer: cells that are missing, or that stop with an error."""
    there = {graded(cell).get("grade_id") for cell in submission.cells}
    wanted = [meta["grade_id"] for meta in map(graded, executed.cells) if meta.get("solution")]
    said = [f"{name} is missing" for name in wanted if name not in there]
    failed = False  # the tests of an answer that stopped say nothing more
    for cell in executed.cells:
        meta = graded(cell)
        if cell.cell_type != "code" or not (meta.get("solution") or meta.get("grade")):
            continue
        errors = [o.ename for o in cell.outputs if o.output_type == "error"]
        if errors and not failed and errors[0] != "NotImplementedError":
            said.append(f"{meta['grade_id']} stopped with {errors[0]}")
        failed = bool(errors) and bool(meta.get("solution"))
    return "; ".join(said)


def rewritten(executed: Any, before: Any, but: Sequence[str] = ()) -> str:
    """A remark where an answer that a person grades is another one than when it was run last."""
    old = {graded(cell).get("grade_id"): cell.source for cell in before.cells}
    changed = [q.name for q in questions(executed) if q.by_hand and q.name not in but and any(
        graded(cell).get("grade_id") == q.name and cell.source != old.get(q.name, cell.source)
        for cell in executed.cells)]
    return f"{', '.join(changed)} rewritten since: its points are those of before" if changed else ""


def write(found: Sequence[Graded], course: Path, lab: str, path: Path) -> None:
    """The grades as CSV: a column for each question, with its points in the heading; what a person grades is empty.

    Points that were given by hand in an earlier such file are kept."""
    asked, people, before = questions(notebook(key_of(course, lab))), names(course), {}
    if path.exists():
        _, rows = table(path)
        before = {row["student"]: row for row in rows}
    by_hand = {q.name: heading(q) for q in asked if q.by_hand}
    since = {g.student: g.answered_since for g in found}
    beside = path.with_suffix(".part")  # whatever ends this, there is a whole file
    with open(beside, "w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["student", "name", "lab", *map(heading, asked), "remark"])
        out.writeheader()
        new = {g.student for g in found}
        rows = [{"student": g.student, "name": people.get(g.student, g.student), "lab": lab, "remark": g.remark,
                 **{heading(q): "" if g.points.get(q.name) is None else f"{g.points[q.name]:g}" for q in asked}}
                for g in found]
        for row in rows:
            old = before.get(row["student"], {})
            row.update({h: old[h] for name, h in by_hand.items()
                        if row[h] == "" and old.get(h) and name not in since[row["student"]]})
        kept = [{h: row.get(h, "") for h in out.fieldnames} for s, row in before.items() if s not in new]
        out.writerows(sorted([*rows, *kept], key=lambda row: row["student"]))
    beside.replace(path)


def heading(question: Question) -> str:
    return f"{question.name} /{question.points:g}"


def table(path: Path) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Columns of points with their maximum, and the rows. Raises ValueError for a file that is none of `write`'s."""
    if not path.exists():
        raise ValueError(f"there is no {path}: `kit lab check` writes it")
    fields, rows = sheet(path)
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
            # without the last column Moodle refuses the sheet; "-" is what its own has for who has no grade yet
            out.writerow(["Identifier", "Full name", "Grade", "Maximum grade", "Last modified (grade)"])
            out.writerows([f"Participant {r['student']}", r["name"], f"{t:g}", f"{most:g}", "-"]
                          for r, t in zip(rows, totals, strict=True))
        else:
            out.writerow(["assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email",
                          "raw_score", "late_submission_penalty", "score", "max_score"])
            out.writerows([lab, "", "", r["student"], r["name"], "", "", t, 0.0, t, most]
                          for r, t in zip(rows, totals, strict=True))
    return len(rows)


def points(row: dict[str, str], column: str, most: float) -> float:
    try:
        value = float(row[column].replace(",", "."))
    except ValueError:
        said = row[column].strip() or "empty"
        raise ValueError(f"{row['student']} has no points for {column.rpartition(' /')[0]} ({said}): what a person "
                         "grades is filled in by hand, before it is exported") from None
    if not 0 <= value <= most:
        raise ValueError(f"{row['student']} has {value:g} points for {column}: at most {most:g} can be had")
    return value
