"""What is laid out for jupyter-book."""
import json

import pytest

from kit.run.book import stage


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for name, text in {
        "_config.yml": "title: t", "_toc.yml": "format: jb-book\nroot: book/index\nchapters:\n- file: notebooks/a/b\n",
        "book/index.md": "# Book", "kit/core.py": "x = 1", "kit/weights.safetensors": "big",
        "notebooks/a/b.ipynb": json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def files(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_pages_and_chapters_are_laid_out_and_no_weights(root, tmp_path):
    source = tmp_path / "source"
    stage(source, root)
    assert set(files(source)) == {"_config.yml", "_toc.yml", "book/index.md", "kit/core.py", "notebooks/a/b.ipynb"}


def test_a_run_of_this_machine_takes_the_committed_outputs_place(root, tmp_path):
    source, runs = tmp_path / "source", tmp_path / "runs"
    (runs / "notebooks" / "a").mkdir(parents=True)
    (runs / "notebooks" / "a" / "b.ipynb").write_text("its own run")
    stage(source, root, runs)
    assert files(source)["notebooks/a/b.ipynb"] == "its own run"
    stage(source, root)
    assert files(source)["notebooks/a/b.ipynb"].startswith("{")


def test_only_what_differs_is_touched_and_what_is_gone_goes(root, tmp_path):
    source = tmp_path / "source"
    stage(source, root)
    before = {p: p.stat().st_mtime_ns for p in source.rglob("*") if p.is_file()}
    (root / "book" / "index.md").write_text("# Another")
    (root / "kit" / "core.py").unlink()
    stage(source, root)
    after = {p: p.stat().st_mtime_ns for p in source.rglob("*") if p.is_file()}
    assert {p.name for p in before if p not in after} == {"core.py"}
    assert {p.name for p in after if after[p] != before[p]} == {"index.md"}
