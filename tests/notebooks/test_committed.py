"""What every committed notebook must be, besides reproducible (which `pytest --nbval notebooks` shows)."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kit.report.plotted import MIME as FIGURE
from kit.report.scoreboard import page
from kit.run.files import DEFAULTS, ROOT, chapters, code_key, content_key, parameters, source, stamp, tags, toc

SPEC = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
assert SPEC is not None
assert SPEC.loader is not None
plugin = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plugin)
LOOSE = plugin.LOOSE

LARGEST = 1_500_000  # bytes
BUDGET = 30.0  # CPU seconds of a chapter under the quick profile, the start of its kernel included
# The chapters that take longer, with the seconds that their stamp says: none.
OVER_BUDGET: dict[str, float] = {}
# An absolute path that is not one of the book's own pages, or anything under the usual folders of a machine.
MACHINE = re.compile(
    r"(?<![\w.:/<*)\\])/(?!(?:notebooks|book|kit|tests)/)[A-Za-z_][\w.-]*/[\w.-]*\w"
    r"|(?<![\w.:/<])/(?:root|tmp|content|home|Users|mnt|opt|data|scratch|kaggle|work|workspaces?)\b(?![/\w]*>)"
    r"|\b[A-Z]:[\\/]+(?:Users|Windows|Program|Documents|Temp|home)\w*|\bfile:/{2,}\S|(?<!\w)~/\w|site-packages"
)
# What nbval takes for a request not to compare a cell.
OPT_OUT = re.compile(r"^\s*#+\s*(?:NBVAL_|PYTEST_VALIDATE)\w+", re.M)
IMAGE = re.compile(r"!\[\s*\]\(")


def strings(value: Any) -> list[str]:
    """Every text in a piece of JSON, but not the bytes of images."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return ["".join(value)] if all(isinstance(v, str) for v in value) else [s for v in value for s in strings(v)]
    if isinstance(value, dict):
        return [s for k, v in value.items() if not str(k).startswith("image/") for s in [str(k), *strings(v)]]
    return []


def defects(nb: dict[str, Any], name: str = "") -> list[str]:
    """All that is wrong with a notebook, in the words of who has to mend it; `name` is its path in the repository."""
    found: list[str] = []
    first = nb["cells"][0] if nb["cells"] else {"cell_type": "none"}
    lines = [line for line in source(first).splitlines() if line.strip() and not re.fullmatch(r"\(.+\)=", line.strip())]
    if first["cell_type"] != "markdown" or not lines or not lines[0].startswith("# "):
        found.append("the first cell is not a level-1 heading")
    count = 0
    for cell in nb["cells"]:
        text = source(cell)
        start = repr(text.strip().split("\n")[0][:60])
        if cell["cell_type"] == "markdown" and IMAGE.search(text):
            found.append(f"an image without alt text in the markdown cell {start}")
        if any(MACHINE.search(s) for s in [text, *strings(cell.get("outputs", [])), *strings(cell["metadata"])]):
            found.append(f"a path of one machine in the cell {start}")
        if cell["cell_type"] != "code":
            continue
        count += 1
        if not text.strip():
            found.append("an empty code cell")
        elif cell.get("execution_count") is None:
            found.append(f"not executed: the cell {start}")
        elif cell["execution_count"] != count:
            found.append(f"executed out of order (number {cell['execution_count']}, not {count}): the cell {start}")
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                found.append(f"an error in the cell {start}")
            if output["output_type"] == "stream" and output["name"] == "stderr":
                found.append(f"output on stderr in the cell {start}")
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            if any(kind.startswith("image/") for kind in output.get("data", {})) and not alt.strip():
                found.append(f"a figure without alt text (metadata mystnb.image.alt) in the cell {start}")
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        if "figure" in cell["metadata"].get("mystnb", {}) and not any(kind.startswith("image/") for kind in kinds):
            found.append(f"a caption and no figure (is it the last line, or shown by display?) in the cell {start}")
        if "injected-parameters" in tags(cell):
            found.append("a cell of injected parameters")
        if OPT_OUT.search(text) or any(tag.startswith("nbval") or tag == "raises-exception" for tag in tags(cell)):
            found.append(f"a tag or comment that takes it out of the regressions in the cell {start}")
        if "tolerance" in cell["metadata"].get("kit", {}) and (name, cell.get("id")) not in LOOSE:
            found.append(f"a tolerance that is not in LOOSE (conftest.py) in the cell {start}")
    if parameters(nb) is None:
        found.append("no cell tagged `parameters`")
    elif parameters(nb) != DEFAULTS:
        found.append(f"the parameters are not the defaults {DEFAULTS}")
    if nb["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    if any(MACHINE.search(s) for s in strings(nb["metadata"])):
        found.append("a path of one machine in the metadata")
    note = stamp(nb)
    if note.get("profile") != "quick":
        found.append("no stamp of the quick profile: run make baseline")
    elif note.get("source") != code_key(nb):
        found.append("the code has changed since the outputs were made: run make baseline")
    if len(json.dumps(nb)) > LARGEST:
        found.append(f"larger than {LARGEST / 1e6:g} MB")
    return found


def outdated(nb: dict[str, Any], name: str = "") -> list[str]:
    """What a notebook's last run did not leave, or somebody changed since, and what it says of its time."""
    found, note = [], stamp(nb)
    if "content" not in note or "cpu" not in note:
        return ["the stamp does not say the CPU seconds and the content of the run: run make baseline"]
    if note["content"] != content_key(nb, prose=False):
        found.append("the outputs were changed after the run that made them: run make baseline")
    shown = [output.get("data", {}) for cell in nb["cells"] for output in cell.get("outputs", [])]
    if any("<Figure" in "".join(data.get("text/plain", "")) and FIGURE not in data for data in shown):
        found.append("a figure does not keep what it shows: run make baseline")
    if name not in OVER_BUDGET and note["cpu"] > BUDGET:
        found.append(f"it takes {note['cpu']:g} CPU seconds, and a chapter has {BUDGET:g}")
    if name in OVER_BUDGET and note["cpu"] <= BUDGET:
        found.append(f"it takes {note['cpu']:g} CPU seconds: take it out of OVER_BUDGET")
    return found


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_committed(path: Path):
    nb, name = json.loads(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix()
    found = defects(nb, name) + outdated(nb, name)
    if path.stat().st_size > LARGEST:
        found.append("the file is too large")
    if not {name, name.removesuffix(".ipynb")} & set(toc()):
        found.append("not listed in _toc.yml")
    assert not found, "\n".join(found)


@pytest.mark.skipif(not (ROOT / "book" / "scoreboard.md").exists(), reason="there is no scoreboard yet")
def test_the_scoreboard_is_that_of_the_notebooks():
    path = ROOT / "book" / "scoreboard.md"
    assert path.read_text(encoding="utf-8") == page(chapters(), path.parent), "run kit scoreboard"


def good() -> dict[str, Any]:
    """A notebook without a defect."""
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": 1}
    text = "\n".join(f"{name} = {value!r}" for name, value in DEFAULTS.items())
    figure = {"output_type": "display_data", "data": {"image/png": "/tmp/", "text/plain": ["<Figure>"]}}
    alt = {"mystnb": {"image": {"alt": "A figure."}}}
    nb: dict[str, Any] = {
        "cells": [
            {
                "cell_type": "markdown",
                "metadata": {},
                "source": ["(label)=\n", "# Title\n", "![alt](a.png) f: x/home/y"],
            },
            {**code, "metadata": {"tags": ["parameters"]}, "source": text.splitlines(True)},
            {**code, "metadata": alt, "source": "draw()", "outputs": [figure], "execution_count": 2},
        ],
        "metadata": {"kernelspec": {"name": "python3"}, "kit": {"stamp": {"profile": "quick"}}},
        "nbformat": 4,
    }
    nb["metadata"]["kit"]["stamp"]["source"] = code_key(nb)
    return copy.deepcopy(nb)


def output(nb: dict[str, Any], **found: Any) -> None:
    nb["cells"][2]["outputs"].append(found)


DAMAGE = {
    "not executed": lambda nb: nb["cells"][2].update(execution_count=None),
    "out of order": lambda nb: nb["cells"][2].update(execution_count=5),
    "empty code cell": lambda nb: nb["cells"].append({**nb["cells"][2], "source": " ", "outputs": []}),
    "an error": lambda nb: output(nb, output_type="error", ename="E", evalue="e", traceback=["t"]),
    "stderr": lambda nb: output(nb, output_type="stream", name="stderr", text="warned"),
    "figure without alt text": lambda nb: nb["cells"][2].update(metadata={"mystnb": {"figure": {"caption": "c"}}}),
    "a caption and no figure": lambda nb: nb["cells"][2].update(
        metadata={"mystnb": {"figure": {"caption": "c"}}}, outputs=[]),
    "markdown cell": lambda nb: nb["cells"][0].update(source="# Title\n![](a.png)"),
    "no cell tagged": lambda nb: nb["cells"][1].update(metadata={}),
    "not the defaults": lambda nb: nb["cells"][1].update(source='profile = "full"\ndevice = "auto"\nseed = 0'),
    "injected": lambda nb: nb["cells"][2]["metadata"].update(tags=["injected-parameters"]),
    "kernel is not": lambda nb: nb["metadata"]["kernelspec"].update(name="mine"),
    "level-1 heading": lambda nb: nb["cells"][0].update(source="## Title"),
    "no stamp": lambda nb: nb["metadata"].pop("kit"),
    "quick profile": lambda nb: nb["metadata"]["kit"]["stamp"].update(profile="full"),
    "code has changed": lambda nb: nb["cells"][2].update(source="draw(2)"),
    "larger than": lambda nb: nb["cells"][2]["outputs"][0]["data"].update({"image/png": "A" * LARGEST}),
    "in the metadata": lambda nb: nb["metadata"].update(path="/home/ann/x.ipynb"),
    "path of one machine": lambda nb: nb["cells"][2]["metadata"].update(note="/home/ann/x"),
    "out of the regressions": lambda nb: nb["cells"][2]["metadata"].update(tags=["nbval-skip"]),
    "takes it out": lambda nb: nb["cells"][2].update(source="x = 1\n  #NBVAL_IGNORE_OUTPUT\ndraw()"),
    "tag or comment": lambda nb: nb["cells"][2]["metadata"].update(tags=["raises-exception"]),
    "not in LOOSE": lambda nb: nb["cells"][2]["metadata"].update(kit={"tolerance": {"rel": 0.1}}),
}


def test_a_good_notebook_has_no_defect():
    assert defects(good()) == []


@pytest.mark.parametrize("words", DAMAGE)
def test_each_defect_is_found(words):
    nb = good()
    DAMAGE[words](nb)
    assert any(words in found for found in defects(nb)), defects(nb)


PATHS = [
    "/home/ann/kit", "at /root", "in /tmp/ipykernel_3/4.py:1", "'/Users/ann'", "C:\\Users\\ann", "file=/work/a",
    "/usr/local/lib/python3.11/site-packages/torch/nn.py:3", "/opt/conda/lib/x.py", "/content/kit", "/workspaces/kit/x",
    "/var/folders/zz/T/ipykernel_3/4.py", "file:///home/ann/x", "C:/Users/ann/kit", "/data/ann/mnist", "/scratch/u/x",
    "/kaggle/working", "~/kit/x", "File \"/srv/jupyter/kit/a.py\", line 3", "D:\\Users\\x", "/Volumes/disk/x",
]  # fmt: skip


@pytest.mark.parametrize("text", PATHS)
def test_paths_of_a_machine_are_found(text):
    nb = good()
    output(nb, output_type="display_data", data={"text/plain": ["fine\n", text]})
    assert any("path of one machine" in found for found in defects(nb))


OTHERS = [
    "https://site.org/home/page", "a/tmpfile", "x/root", "f: C:\\mathbb{R}", "../home/x", "8/255", "</td></tr>",
    "and/or", "{doc}`/notebooks/attacks/gradient`", "](/book/notation.md)", "\\partial f/\\partial x", "text/plain",
    "1/2/3", "a / b",
]  # fmt: skip


@pytest.mark.parametrize("text", OTHERS)
def test_other_text_is_not_a_path(text):
    nb = good()
    output(nb, output_type="display_data", data={"text/plain": text})
    assert defects(nb) == []


def stamped(**note: Any) -> dict[str, Any]:
    nb = good()
    nb["cells"][2]["outputs"][0]["data"][FIGURE] = {"texts": [], "axes": []}
    nb["metadata"]["kit"]["stamp"] |= {"cpu": 12.0, "content": content_key(nb, prose=False)} | note
    return nb


def test_the_stamp_holds_time_and_content(monkeypatch):
    assert outdated(stamped()) == []
    assert "run make baseline" in outdated(good())[0]
    assert "31 CPU seconds" in outdated(stamped(cpu=31.0))[0]
    monkeypatch.setitem(OVER_BUDGET, "slow", 31.0)
    assert outdated(stamped(cpu=31.0), "slow") == []
    assert "out of OVER_BUDGET" in outdated(stamped(cpu=29.0), "slow")[0]
    edited = stamped()
    edited["cells"][2]["outputs"][0]["data"]["text/plain"] = ["<Figure 2>"]
    assert "changed after" in outdated(edited)[0]
    bare = good()
    bare["metadata"]["kit"]["stamp"] |= {"cpu": 1.0, "content": content_key(bare, prose=False)}
    assert "does not keep what it shows" in outdated(bare)[0]


def test_the_list_of_slow_chapters_names_chapters():
    assert set(OVER_BUDGET) <= {path.relative_to(ROOT).as_posix() for path in chapters()}
