"""Building the book: the pages, with each notebook as it was executed, laid beside each other and given to jupyter-book.

The committed notebooks are left as they are. A page is built from this machine's own run of it (`runs/quick`) where there
is one, and from the committed outputs otherwise.
"""
from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kit.run.files import ROOT, UserError, chapters

PAGES = ("_config.yml", "_toc.yml", "book", "kit")  # kit, because pages include its source


def _wanted(root: Path, runs: Path | None) -> Iterator[tuple[Path, Path]]:
    """(file, its place in the book's source)."""
    for name in PAGES:
        top = root / name
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            if "__pycache__" not in path.parts and path.suffix != ".safetensors":
                yield path, path.relative_to(root)
    for notebook in chapters(root):
        place = notebook.relative_to(root)
        fresh = runs / place if runs else None
        yield (fresh if fresh is not None and fresh.is_file() else notebook), place


def stage(source: Path, root: Path = ROOT, runs: Path | None = None) -> None:
    """Make `source` hold the book's pages and nothing else, touching only what differs, so that a rebuild is short."""
    kept = set()
    for path, place in _wanted(root, runs):
        target = source / place
        kept.add(target)
        if target.is_file() and filecmp.cmp(path, target, shallow=False):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for path in source.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()


def build(out: Path, root: Path = ROOT, runs: Path | None = None, *, quiet: bool = True) -> Path:
    """Build the book into `out`/_build/html, warnings being errors; returns its first page.

    Raises UserError when jupyter-book is not installed, or with what it complained about when it failed.
    """
    source = out / "_build" / "source"
    stage(source, root, runs)
    command = [sys.executable, "-m", "jupyter_book.cli.main", "build", str(source), "--path-output", str(out)]
    done = subprocess.run([*command, "-W", "-n", "--keep-going", *(["-q"] if quiet else [])],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    if done.returncode:
        if "No module named" in done.stdout:
            raise UserError("jupyter-book is not installed: run `make env`, or pip install -e '.[book]'")
        raise UserError(f"the book could not be built:\n{done.stdout.strip()}")
    return out / "_build" / "html" / "index.html"
