"""The commands of `kit lab`: from a lab's source to grades. What they need is imported when they are called."""
from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kit.run.files import UserError

Course = Annotated[Path, typer.Option(help="The course's folder.")]


def commands(
    mistakes: Callable[[], AbstractContextManager[None]], console: Callable[[], Console], options: dict[str, Any],
) -> typer.Typer:
    """The group of commands, with the command line's own consoles and its way to tell mistakes."""
    app = typer.Typer(help="Labs: build, collect, check, export.", **options)

    def say(text: str) -> None:
        console().print(escape(text), soft_wrap=True)

    @app.command("list")
    def lab_list() -> None:
        """The labs that come with the package."""
        with mistakes():
            source = import_module("kit.lab.source")
            table = Table("lab", "minutes", "points", "chapter", "what", title="labs")
            for name in source.names():
                nb = source.read(name)
                about, asked = nb.metadata.kit.lab, source.questions(nb)
                table.add_row(name, str(about.minutes), f"{sum(q.points for q in asked):g}", about.chapter,
                              escape(nb.cells[0].source.splitlines()[0].lstrip("# ")))
            console().print(table)

    @app.command()
    def build(
        lab: Annotated[str, typer.Argument(help="A name that `kit lab list` shows, or a notebook of your own.")],
        out: Course = Path("course"),
        seed: Annotated[int | None, typer.Option(help="The lab's seed: other numbers for each class.")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of the lab's parameters.")] = None,
    ) -> None:
        """Make the student's version of a lab, the instructor's and the grader's."""
        with mistakes():
            given = [pair.partition("=") for pair in set_ or []]
            if wrong := [name for name, equals, _ in given if not equals]:
                raise UserError(f"--set takes NAME=VALUE, as in --set eps=6/255, not {wrong[0]}")
            settings = {name.strip(): value.strip() for name, _, value in given}
            if seed is not None:
                settings["seed"] = str(seed)
            made = import_module("kit.lab.source").build(lab, out, settings)
            for words, version in (("student's", "release"), ("instructor's", "source"), ("grader's", "key")):
                say(f"{words:13} {made[version]}")

    @app.command()
    def collect(
        handed_in: Annotated[Path, typer.Argument(help="Zip file or folder, as Moodle or Canvas hands it out.")],
        lab: Annotated[str, typer.Option(help="The lab's name.")],
        course: Course = Path("course"),
    ) -> None:
        """Sort submissions into the course's folder."""
        with mistakes():
            students, left = import_module("kit.lab.grades").collect(handed_in, course, lab)
            say(f"{len(students)} submissions in {course / 'submitted'}")
            for why in left:
                console().print(f"[yellow]left out: {escape(why)}[/yellow]", soft_wrap=True)

    @app.command()
    def check(
        submissions: Annotated[list[Path] | None, typer.Argument(help="Notebooks; none means all collected.")] = None,
        lab: Annotated[str | None, typer.Option(help="The lab's name, if its file has another.")] = None,
        course: Course = Path("course"),
        csv: Annotated[Path | None, typer.Option(help="Where the grades go (default COURSE/grades_LAB.csv).")] = None,
        seconds: Annotated[float, typer.Option(help="For one submission.")] = 60.0,
        memory: Annotated[float, typer.Option(help="GB that a submission may use.")] = 4.0,
    ) -> None:
        """Grade submissions, each in a sandbox, and write the grades as CSV."""
        with mistakes():
            grades = import_module("kit.lab.grades")
            paths = list(submissions or [])
            if not paths:
                if lab is None:
                    raise UserError("name a notebook, or the lab: kit lab check --lab gradient_attacks")
                paths = sorted((course / "submitted").glob(f"*/{lab}/{lab}.ipynb"))
            if missing := [path for path in paths if not path.is_file()]:
                raise UserError(f"there is no {missing[0]}: check the path")
            lab = lab or paths[0].stem
            grades.key_of(course, lab)
            if not paths:
                raise UserError(f"nothing was handed in under {course / 'submitted'}: run `kit lab collect` first")
            apart = import_module("kit.lab.sandbox").apart()
            say("sandbox: time and memory bounded, " + ("no network" if apart else "the network is NOT cut off here"))
            found, people = [], grades.names(course)
            target = csv or course / f"grades_{lab}.csv"
            if target.exists():
                grades.table(target)  # a file that is spoilt is told before the work and not after it
            for path in paths:
                start = time.monotonic()
                result = grades.grade(path, course, lab, seconds=seconds, memory=memory)
                found.append(result)
                got = sum(value or 0 for value in result.points.values())
                open_ = [name for name, value in result.points.items() if value is None]
                grades.write(found, course, lab, target)  # what is graded stays, whatever comes after it
                name = people.get(result.student, result.student)
                who = result.student if name == result.student else f"{result.student} ({name})"
                say(f"{who}: {got:g} points" + (f", by hand: {', '.join(open_)}" if open_ else "")
                    + (f"; {result.remark}" if result.remark else "") + f" ({time.monotonic() - start:.0f} s)")
            say(f"written: {target}")

    @app.command()
    def export(
        grades: Annotated[Path, typer.Argument(help="The CSV of `kit lab check`, with the open questions filled in.")],
        form: Annotated[str, typer.Option(help="nbgrader, canvas or moodle.")],
        to: Annotated[Path | None, typer.Option(help="Where to (default: beside it).")] = None,
    ) -> None:
        """Write the totals in the form that a learning platform reads."""
        with mistakes():
            target = to or grades.with_name(f"{grades.stem}_{form}.csv")
            many = import_module("kit.lab.grades").export(grades, form, target)
            say(f"written: {target} ({many} students)")

    return app
