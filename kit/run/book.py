"""Building the book: pages and executed notebooks are laid out in one folder, and given to jupyter-book.

The committed notebooks are left as they are. A page is built from this machine's own run of it (`runs/quick`) where
that run is of the chapter as it stands, and from the committed outputs otherwise.
"""
from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from kit.report.numbers import MIME as RECORD
from kit.run.files import ROOT, UserError, chapters, read, run_key, stamp, up_to_date

SHOWN = 4  # so many recorded numbers one below the other are still read
PAGES = ("_config.yml", "_toc.yml", "book", "kit", "tests")  # the last two, because pages show and link their source


class BuildFailed(RuntimeError):
    """jupyter-book's warnings and errors, a line each."""


def current(run: Path, notebook: Path) -> bool:
    """Whether a run under the quick profile is of the notebook, of `kit` and of all else as they are now."""
    try:
        nb, copy = read(notebook), read(run)
    except UserError:
        return False
    note = stamp(copy)
    given = [{"profile": "quick", "device": device, "seed": note.get("seed")} for device in ("auto", "cpu", "cuda")]
    return any(up_to_date(copy, run_key(nb, g, prose=True, path=notebook), prose=True) for g in given)


def stale(runs: Path, root: Path = ROOT) -> list[Path]:
    """The chapters, by their place, whose run is not of them as they stand: their pages show the committed outputs."""
    places = [notebook.relative_to(root) for notebook in chapters(root)]
    return [place for place in places if (runs / place).is_file() and not current(runs / place, root / place)]


def _wanted(root: Path, runs: Path | None) -> Iterator[tuple[Path, Path]]:
    """(file, its place in the book's source)."""
    for name in PAGES:
        top = root / name
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            if "__pycache__" not in path.parts and path.suffix != ".safetensors":
                yield path, path.relative_to(root)
    for notebook in chapters(root):
        place = notebook.relative_to(root)
        run = runs / place if runs else None
        yield (run if run is not None and run.is_file() and current(run, notebook) else notebook), place


def _folded(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs, a row of more than `SHOWN` recorded numbers being one list that the reader unfolds."""
    rows: list[dict[str, Any]] = []
    for recorded, group in groupby(outputs, key=lambda output: RECORD in output.get("data", {})):
        row = list(group)
        if recorded and len(row) > SHOWN:
            items = "".join(f"<li>{html.escape(''.join(output['data']['text/plain']))}</li>" for output in row)
            head = f"{len(row)} recorded results, with their intervals"
            listed = f'<details class="records"><summary>{head}</summary><ul>{items}</ul></details>'
            row = [{"output_type": "display_data", "data": {"text/html": listed}, "metadata": {}}]
        rows += row
    return rows


def _page(path: Path) -> bytes:
    """What jupyter-book is given of a file."""
    if path.suffix != ".ipynb":
        return path.read_bytes()
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = _folded(cell["outputs"])
    return json.dumps(nb, ensure_ascii=False, indent=1).encode()


def stage(source: Path, root: Path = ROOT, runs: Path | None = None) -> None:
    """Make `source` hold the book's pages and nothing else, touching only what differs, so that a rebuild is short."""
    kept = set()
    for path, place in _wanted(root, runs):
        target = source / place
        kept.add(target)
        page = _page(path)
        if target.is_file() and target.read_bytes() == page:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(page)
    for path in source.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()


def build(out: Path, root: Path = ROOT, runs: Path | None = None) -> Path:
    """Build the book into `out`/_build/html, warnings being errors; returns its first page.

    Raises UserError when jupyter-book is not installed, BuildFailed with its complaints when it failed.
    """
    source = out / "_build" / "source"
    stage(source, root, runs)
    program = Path(sys.executable).with_name("jupyter-book")
    if not program.exists():
        raise UserError("jupyter-book is not installed: run `make env`, or pip install -e '.[book]'")
    command = [str(program), "build", str(source), "--path-output", str(out), "-W", "-n", "--keep-going"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    if done.returncode:
        shutil.rmtree(out / "_build" / ".doctrees", ignore_errors=True)  # or Sphinx would not repeat them next time
        complaints = [line for line in done.stdout.splitlines() if re.search("WARNING|ERROR|rror:", line)]
        raise BuildFailed("\n".join(complaints or done.stdout.splitlines()[-20:]))
    return out / "_build" / "html" / "index.html"
