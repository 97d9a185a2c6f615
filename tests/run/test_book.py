"""What is laid out for jupyter-book."""
import json

import pytest

from kit.report.numbers import MIME, VERDICT
from kit.run import files as files_of
from kit.run.book import stage, stale


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for name, text in {
        "_config.yml": "title: t", "_toc.yml": "format: jb-book\nroot: book/index\nchapters:\n- file: notebooks/a/b\n",
        "book/index.md": "# Book", "kit/core.py": "x = 1", "kit/weights.safetensors": "big",
        "notebooks/a/b.ipynb": json.dumps({
            "cells": [{"cell_type": "code", "metadata": {}, "source": "print(1)", "outputs": [], "execution_count": 1}],
            "metadata": {}, "nbformat": 4, "nbformat_minor": 5,
        }),
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


def executed(root, text="its own run", seed=0):
    """The chapter as a run leaves it."""
    chapter = root / "notebooks" / "a" / "b.ipynb"
    nb = files_of.read(chapter)
    given = {"profile": "quick", "device": "cpu", "seed": seed}
    key = files_of.run_key(nb, given, prose=True, path=chapter)
    nb["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [text]}]
    nb["cells"][0]["execution_count"] = 1
    nb["metadata"]["kit"] = {"stamp": {"key": key, "seed": seed, "content": files_of.content_key(nb, prose=True)}}
    return nb


def test_a_run_of_this_machine_takes_the_committed_outputs_place(root, tmp_path):
    source, run = tmp_path / "source", tmp_path / "runs" / "notebooks" / "a" / "b.ipynb"
    run.parent.mkdir(parents=True)
    run.write_text(json.dumps(executed(root, seed=3)))
    stage(source, root, tmp_path / "runs")
    assert "its own run" in files(source)["notebooks/a/b.ipynb"]
    assert stale(tmp_path / "runs", root) == []
    stage(source, root)
    assert "its own run" not in files(source)["notebooks/a/b.ipynb"]


@pytest.mark.parametrize("what", ["chapter", "kit", "output", "measured", "damaged"])
def test_a_run_that_is_not_of_the_chapter_as_it_stands_is_left_out(root, tmp_path, what, monkeypatch):
    source, run = tmp_path / "source", tmp_path / "runs" / "notebooks" / "a" / "b.ipynb"
    run.parent.mkdir(parents=True)
    nb, chapter = executed(root), root / "notebooks" / "a" / "b.ipynb"
    if what == "chapter":
        chapter.write_text(chapter.read_text().replace("print(1)", "print(2)"))
    elif what == "kit":
        monkeypatch.setattr(files_of, "package_key", lambda: "another")
    elif what == "output":
        nb["cells"][0]["outputs"][0]["text"] = ["its own run, edited"]
    elif what == "measured":
        (chapter.parent / "b_measured.json").write_text("{}")
    run.write_text(json.dumps(nb)[: 50 if what == "damaged" else None])
    stage(source, root, tmp_path / "runs")
    assert "its own run" not in files(source)["notebooks/a/b.ipynb"]
    assert stale(tmp_path / "runs", root) == [chapter.relative_to(root)]


@pytest.mark.parametrize(("n", "blocks"), [(4, 6), (5, 3)])
def test_many_recorded_numbers_in_a_row_are_one_folded_list(root, tmp_path, n, blocks):
    chapter = root / "notebooks" / "a" / "b.ipynb"
    nb = files_of.read(chapter)

    def shown(mime, text):
        return {"output_type": "display_data", "data": {mime: {}, "text/plain": [text]}, "metadata": {}}

    printed = {"output_type": "stream", "name": "stdout", "text": ["printed"]}
    nb["cells"][0]["outputs"] = [printed, *(shown(MIME, f"a{i} < 1") for i in range(n)), shown(VERDICT, "holds")]
    chapter.write_text(json.dumps(nb))
    stage(tmp_path / "source", root)
    outputs = json.loads((tmp_path / "source" / "notebooks" / "a" / "b.ipynb").read_text())["cells"][0]["outputs"]
    assert len(outputs) == blocks
    assert outputs[0] == printed
    assert outputs[-1]["data"]["text/plain"] == ["holds"]
    assert [f"a{i} " in json.dumps(outputs) for i in range(n)] == [True] * n
    if n > 4:
        assert outputs[1]["data"]["text/html"].count("<li>") == n
        assert "<summary>5 recorded" in outputs[1]["data"]["text/html"]
        assert "&lt; 1" in outputs[1]["data"]["text/html"]
    assert len(json.loads(chapter.read_text())["cells"][0]["outputs"]) == n + 2


def test_a_chapter_that_was_never_run_is_not_stale(root, tmp_path):
    assert stale(tmp_path / "runs", root) == []


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
