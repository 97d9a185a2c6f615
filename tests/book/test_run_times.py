"""The table on the hardware page: a row for each chapter, which leads to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]


def test_the_directive_makes_a_row_for_each_chapter(tmp_path, monkeypatch):
    from sphinx.application import Sphinx

    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    note = {"profile": "quick", "device": "cpu", "seconds": 40.0, "cpu": 24.0, "memory": 1536}
    nb = {"cells": [], "metadata": {"kit": {"stamp": note}}, "nbformat": 4, "nbformat_minor": 5}
    files = {
        "notebooks/one.ipynb": json.dumps(nb),
        "notebooks/one.md": "# The first chapter",  # what Sphinx reads here in place of the notebook
        "book/instructors/times.json": json.dumps(
            {"notebooks/one.ipynb": {"full": {"A GPU": {"seconds": 600.0, "cpu": 1.0, "memory": 1, "kept": 0}}}}),
        "index.md": "# Time\n\n```{run-times}\n```\n\n```{toctree}\nnotebooks/one\n```",
        "conf.py": "extensions = ['myst_parser', 'kit_times']\nexclude_patterns = ['*.ipynb', '**/*.ipynb']",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    out = tmp_path / "out"
    Sphinx(tmp_path, tmp_path, out, out / "tree", "html", status=None, warningiserror=True).build()
    page = BeautifulSoup((out / "index.html").read_text(encoding="utf-8"), "html.parser")
    lines = page.table.find_all("tr")
    head, row = ([cell.get_text(strip=True) for cell in line.find_all(["th", "td"])] for line in lines)
    assert head == ["chapter", "quick, CPU min", "GiB", "quick, GPU min", "full, CPU min", "GiB", "full, GPU min"]
    assert row == ["The first chapter", "0.4", "1.5", "–", "–", "–", "10"]
    assert page.table.find("a")["href"] == "notebooks/one.html"
    assert "GPU of these runs: A GPU." in page.get_text()
    sys.modules.pop("kit_times")
