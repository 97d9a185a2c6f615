"""What the comparison of committed notebooks lets through and what it catches (conftest.py at the root)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.run.files import ROOT

SPEC = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
assert SPEC is not None
assert SPEC.loader is not None
plugin = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plugin)


def same(a: str, b: str, **tolerance: float) -> bool:
    options = {**plugin.TOLERANCE, **tolerance}
    return plugin.Approximate(a, **options) == plugin.Approximate(b, **options)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("accuracy 0.9998", "accuracy 1.0000"),
        ("loss 1.2345e-05", "loss 0.0"),
        ("123,456 queries", "124,000 queries"),
        ("tensor([-0.0001,  0.5])", "tensor([ 0.0001, 0.5])"),  # the sign's column moves
        ("|  9.98|", "| 10.02|"),
        ("3.1 %", "3.2 %"),  # one in the last decimal is rounding
        ("fooled 98 of 100", "fooled 99 of 100"),
        ("−2.50 points", "-2.51 points"),
        ("the end 3.", "the end 3."),
    ],
)
def test_numbers_may_differ_a_little(a, b):
    assert same(a, b)
    assert not plugin.Approximate(a, **plugin.TOLERANCE).__ne__(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("accuracy 0.9", "accuracy 0.5"),
        ("rate 0.5", "rate 0.6"),
        ("2e-2 here", "3e-2 here"),
        ("label 3", "label 4"),
        ("tensor([0., 1.])", "tensor([1., 0.])"),
        ("accuracy 0.90", "precision 0.90"),
        ("0.5 0.5", "0.5"),
        ("0.5", "-0.5"),
        ("nan", "0.5"),
        ("conv1", "conv2"),
        ("layer1.0.conv2", "layer1.1.conv2"),
        ("0x7f1", "0x7f2"),
        ("version 3.11.2", "version 3.11.3"),
        ("1e-3 of it", "1e3 of it"),
        ("3-4", "3-5"),
        ("one line", "one line\n"),
    ],
)
def test_the_rest_may_not(a, b):
    assert not same(a, b)
    assert plugin.Approximate(a, **plugin.TOLERANCE) != plugin.Approximate(b, **plugin.TOLERANCE)


def test_a_cell_may_set_its_own_tolerance():
    assert same("rate 0.50", "rate 0.60", abs=0.15)
    assert not same("norm 2.50", "norm 2.52", rel=0.0, abs=0.0)
    exact = plugin.Approximate("2.5", rel=0.0, abs=0.0, printed=False)
    assert exact != "2.6"


def build(path: Path, *cells: tuple) -> None:
    """A notebook as it would be committed: (source, outputs, execution count, metadata) per cell."""
    body = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": metadata[0] if metadata else {},
            "source": source,
            "outputs": outputs,
            "execution_count": count,
        }
        for i, (source, outputs, count, *metadata) in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "x", "language": "python"}
    path.write_text(json.dumps({"cells": body, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))


def said(text: str, name: str = "stdout") -> list:
    return [{"output_type": "stream", "name": name, "text": text}]


RECORD = "from kit.report import record\nrecord('rate', 0.5, paper=0.4)"
SHOWN = "rate: 0.5 (paper 0.4)"


def recorded(value: float) -> list:
    entry = {"name": "rate", "value": value, "unit": "", "paper": 0.4}
    data = {"text/plain": SHOWN, "application/vnd.kit.record+json": entry}
    return [{"output_type": "display_data", "metadata": {}, "data": data}]


def test_notebooks_are_compared(tmp_path):
    """One run of pytest, under the settings of the project, over notebooks that are right and wrong."""
    for name in ("conftest.py", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    png = [{"output_type": "display_data", "metadata": {}, "data": {"image/png": "AAAA", "text/plain": "an image"}}]
    image = (
        "from IPython.display import display\n"
        "display({'image/png': 'BBBB', 'text/plain': 'an image'}, raw=True)"
    )  # fmt: skip
    threads = "import os\nprint(os.environ['OMP_NUM_THREADS'], repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    loose = {"kit": {"tolerance": {"abs": 0.5}}}
    build(
        tmp_path / "right.ipynb",
        ("print(0.9)", said("0.9001\n"), 1),
        ("print(0.9)", said("0.5\n"), 2, loose),
        (RECORD, recorded(0.5001), 3),
        (image, png, 4),
        (threads, said("1 ''\n"), 5),
        ("1 + 1;", [], 6),
        ("print(__import__('os').getcwd())", said(f"{tmp_path}\n"), 7),
        ("print(__import__('sys').executable)", said(f"{sys.executable}\n"), 8),
    )
    build(
        tmp_path / "wrong.ipynb",
        ("print(0.9)", said("0.5\n"), 1),
        (RECORD, recorded(0.6), 2),
        ("print('ran')", [], None),
        ("import warnings\nwarnings.warn('careful')", [], 4),
        ("print('a')", said("b\n"), 5),
        ("1 / 0", [], 6),
        ("print('more')", [], 7),
    )
    command = [sys.executable, "-m", "pytest", "--nbval", ".", "-n", "2", "--dist", "loadscope", "-rA", "--color=no"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    lines = [line.split(" - ")[0].split() for line in done.stdout.splitlines() if line.startswith(("PASSED", "FAILED"))]
    outcome = {" ".join(words[1:]): words[0] for words in lines}
    expected = {f"right.ipynb::Cell {i}": "PASSED" for i in range(8)}
    expected |= {f"wrong.ipynb::Cell {i}": "FAILED" for i in range(7)}
    assert outcome == expected, done.stdout + done.stderr
    assert "this cell was never executed" in done.stdout
