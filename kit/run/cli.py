"""The command line, `kit`. Torch is imported only by the commands that compute."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kit.run.files import PACKAGE, ROOT, UserError, chapters, versions
from kit.run.job import Result
from kit.run.lab import commands as lab_commands
from kit.run.notebooks import run as run_notebooks

OPTIONS: dict[str, Any] = {"add_completion": False, "no_args_is_help": True, "pretty_exceptions_enable": False}
app = typer.Typer(help="The course that runs: its notebooks, data, models and scoreboard.", **OPTIONS)
data = typer.Typer(help="The data sets.", **OPTIONS)
models = typer.Typer(help="The trained networks.", **OPTIONS)
app.add_typer(data, name="data")
app.add_typer(models, name="models")
console = Console()
errors = Console(stderr=True)

STYLE = {"ok": "green", "up to date": "dim", "stopped": "yellow"}


@contextmanager
def _mistakes() -> Iterator[None]:
    """Tell a user's mistake in one red line, and leave with status 2."""
    try:
        yield
    except (UserError, ValueError, LookupError, OSError, ImportError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        errors.print(f"[red]{escape(' '.join(text.split()))}[/red]", soft_wrap=True)
        raise typer.Exit(2) from None


app.add_typer(lab_commands(_mistakes, lambda: console, OPTIONS), name="lab")


def _short(path: Path) -> str:
    """A path as the user would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _line(result: Result) -> None:
    """One line per finished notebook, for logs where no progress bar moves."""
    if not console.is_terminal and result.status != "up to date":
        took = f"{result.seconds:.1f} s" + (f" ({result.cpu:.1f} s of CPU)" if result.cpu else "")
        console.print(f"{result.status}: {escape(_short(result.notebook))} {took}", soft_wrap=True)


def _summary(results: list[Result]) -> None:
    for result in results:
        if result.good:
            continue
        console.rule(f"[red]{escape(_short(result.notebook))}[/red]")
        if result.cell:
            console.print(escape(result.cell.rstrip()), soft_wrap=True)
        if result.detail:
            console.print(Text.from_ansi(result.detail.rstrip()), soft_wrap=True)
        if not result.detail.rstrip().endswith(result.error):
            console.print(f"[red]{escape(result.error)}[/red]", soft_wrap=True)
        if result.output != result.notebook and result.output.exists():
            console.print(f"What it did until then: {escape(_short(result.output))}", soft_wrap=True)
    table = Table("notebook", "seconds", "CPU seconds", "peak memory", "device", "status")
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    for result in results:
        style = STYLE.get(result.status, "red")
        table.add_row(
            escape(_short(result.notebook)),
            f"{result.seconds:.1f}" if result.seconds else "",
            f"{result.cpu:.1f}" if result.cpu else "",
            f"{result.memory} MiB" if result.memory else "",
            escape(result.device),
            f"[{style}]{result.status}[/{style}]",
        )
    console.print(table)


@app.command()
def run(
    notebooks: Annotated[list[Path] | None, typer.Argument(help="Notebooks or folders; none means the book.")] = None,
    profile: Annotated[str, typer.Option(help="quick (embedded data) or full (the paper's scale).")] = "quick",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    jobs: Annotated[int, typer.Option(help="How many notebooks run at once.")] = 1,
    seed: Annotated[int, typer.Option(help="The notebooks' seed.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the executed copies (default runs/<profile>).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run what is up to date, measure what is kept.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Refresh the notebooks' own outputs.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds a notebook may take.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Run on the workers of a dask cluster: its address, or local:N.")
    ] = None,
) -> None:
    """Execute notebooks; skip what is up to date."""
    done: list[Result] = []

    def finished(result: Result) -> None:
        done.append(result)
        _line(result)

    with _mistakes():
        try:
            results = run_notebooks(
                list(notebooks or []),
                profile=profile,
                device=device,
                jobs=jobs,
                seed=seed,
                out=out,
                force=force,
                in_place=in_place,
                timeout=timeout,
                console=console,
                finished=finished,
                cluster=cluster,
            )
        except KeyboardInterrupt:
            good = sum(result.good for result in done)
            errors.print(f"[yellow]Stopped with {good} done; the same command goes on from there.[/yellow]")
            raise typer.Exit(130) from None
    _summary(results)
    if not all(result.good for result in results):
        raise typer.Exit(1)


def _listing(title: str, found: Iterable[Any]) -> None:
    """A table of dictionaries or dataclasses, a column for every key that occurs."""
    rows = [asdict(row) if is_dataclass(row) and not isinstance(row, type) else row for row in found]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*keys, title=title)
    for row in rows:
        values = (row.get(key) for key in keys)
        table.add_row(*(escape(f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v)) for v in values))
    console.print(table)


# One line a set on a screen of 80 columns, whatever its name.
DATA_COLUMNS: dict[str, Any] = {
    "name": {"max_width": 16}, "train/dev/test": {"max_width": 19}, "shape": {"max_width": 11}, "there": {},
    "what": {"ratio": 1},
}


@data.command("list")
def data_list() -> None:
    """The data sets and whether they are at hand."""
    with _mistakes():
        kit_data = import_module("kit.data")
        rows = kit_data.listing()
        table = Table(box=None, pad_edge=False, expand=True)
        for heading, options in DATA_COLUMNS.items():
            table.add_column(heading, no_wrap=True, **options)
        for row in rows:
            counts = ["?" if count is None else str(count) for count in row.splits.values()]
            shape = "×".join(map(str, row.shape or ()))
            there = "yes" if row.available else "no"
            table.add_row(escape(row.name), "/".join(counts), shape, there, escape(row.what))
        console.print(table)
        console.print(f"Others are looked for in {escape(str(kit_data.real.root()))} (KIT_DATA).",
                      soft_wrap=True)


@models.command("list")
def models_list() -> None:
    """The trained networks, with what they reach."""
    with _mistakes():
        _listing("models", import_module("kit.models").listing())


@models.command("train")
def models_train(
    name: Annotated[str, typer.Argument(help="A name that `kit models list` shows.")],
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's own seed.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's own number.")] = None,
) -> None:
    """Train a network by its recipe, and save it with its entry in the manifest."""
    with _mistakes():
        options = {"device": device, "seed": seed, "epochs": epochs}
        given = {key: value for key, value in options.items() if value is not None}
        kit_models = import_module("kit.models")
        model, entry = kit_models.train(name, **given)
        path = kit_models.save(model, entry)
        _listing(name, [{key: value for key, value in entry.items() if not isinstance(value, dict | list)}])
        console.print(f"saved: {escape(_short(Path(path)))}", soft_wrap=True)


@app.command()
def book() -> None:
    """Build the book, each chapter from this machine's run of it where there is one."""
    from kit.run.book import BuildFailed, build, stale

    runs = ROOT / "runs" / "quick"
    with _mistakes():
        for place in stale(runs):
            errors.print(f"{escape(str(place))} has changed since its run: the page shows its committed outputs "
                         f"(kit run {escape(str(place))} makes them anew)", soft_wrap=True)
        try:
            with console.status("building the book"):
                first = build(ROOT, runs=runs)
        except BuildFailed as failed:
            errors.print(f"[red]The book could not be built:[/red]\n{escape(str(failed))}", soft_wrap=True)
            raise typer.Exit(1) from None
        console.print(f"Open {escape(str(first))}", soft_wrap=True)


@app.command()
def moving(
    names: Annotated[list[str] | None, typer.Argument(help="Figures; none means all.")] = None,
) -> None:
    """Compute the frames of the figures that move, and keep them beside the book's pages."""
    with _mistakes():
        of = import_module("kit.run.moving")
        if unknown := set(names or []) - set(of.FIGURES):
            raise UserError(f"there is no figure {sorted(unknown)[0]!r}: choose among {', '.join(of.FIGURES)}")
        for name in names or of.FIGURES:
            for path in of.write(name, ROOT / of.FOLDER):
                console.print(f"written: {escape(_short(path))}", soft_wrap=True)


@app.command()
def times(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders of runs; none means those in runs/.")] = None,
) -> None:
    """Keep what runs took, by chapter, profile and device, for the page on hardware."""
    with _mistakes():
        from kit.run.times import FILE, gathered

        there = [path for path in (ROOT / "runs" / "quick", ROOT / "runs" / "full") if path.is_dir()]
        found = gathered(folders or there)
        (ROOT / FILE).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"written: {escape(_short(ROOT / FILE))}", soft_wrap=True)


@app.command()
def scoreboard() -> None:
    """Write book/scoreboard.md and book/records.md from what the committed notebooks recorded."""
    with _mistakes():
        from kit.report.scoreboard import others, page

        for name, write in (("scoreboard", page), ("records", others)):
            path = ROOT / "book" / f"{name}.md"
            path.write_text(write(chapters(), path.parent), encoding="utf-8")
            console.print(f"written: {escape(_short(path))}", soft_wrap=True)


@app.command()
def version() -> None:
    """The versions of kit, python and torch."""
    found = versions()
    console.print(f"kit {found['kit']}, python {found['python']}, torch {found['torch']} ({PACKAGE})", soft_wrap=True)


def main() -> None:
    app(prog_name="kit")
