"""What the comparison of committed notebooks lets through and what it catches (kit.run.compare, conftest.py)."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from kit.report import figures
from kit.report.numbers import MIME as RECORDS
from kit.report.plotted import MIME, plotted
from kit.run.compare import DEFAULT, Tolerance, differences, same_picture, same_record, same_text
from kit.run.files import ROOT

SPEC = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
assert SPEC is not None
assert SPEC.loader is not None
plugin = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plugin)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("accuracy 0.9998", "accuracy 1.0000"),
        ("accuracy 0.98", "accuracy 0.99"),  # one in the last decimal is rounding
        ("3.1 %", "3.2 %"),
        ("−2.50 points", "-2.51 points"),
        ("|  9.98|", "| 10.0|"),  # and so is a digit less
        ("loss 1.2345e-05", "loss 0.0"),
        ("norm 250.4", "norm 251.4"),
        ("123,456 queries", "124,000 queries"),
        ("tensor([-0.0001,  0.5])", "tensor([ 0.0001, 0.5])"),  # the sign's column moves
        ("the end 3.", "the end 3."),
    ],
)
def test_numbers_may_differ_a_little(a, b):
    assert same_text(a, b)
    assert same_text(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("accuracy 0.98", "accuracy 1.00"),
        ("AUC 0.9996", "AUC 0.9810"),
        ("AUC 0.9996", "AUC 0.9970"),
        ("100.0 %", "101.5 %"),
        ("98.0 %", "98.4 %"),
        ("98.0%", "98.4%"),
        ("2.0 %", "2.3 %"),
        ("98%", "99%"),
        ("n = 400", "n = 404"),
        ("n = 400", "n = 401"),
        ("fooled 98 of 100", "fooled 99 of 100"),
        ("3.1", "3.19"),
        ("norm 2.50", "norm 2.54"),
        ("123,456 queries", "125,000 queries"),
        ("accuracy 0.9", "accuracy 0.5"),
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
    assert not same_text(a, b)
    assert not same_text(b, a)


def entry(**change) -> dict:
    return {"name": "rate", "value": 0.5, "unit": "%", "interval": [0.4, 0.6], "n": 400} | change


def test_records_are_compared_without_an_allowance_for_rounding():
    assert same_record(entry(), entry(value=0.5001))
    assert same_record(entry(), entry(value=0.5025))  # one image of 400
    assert not same_record(entry(), entry(value=0.505))
    assert not same_record(entry(value=0.98), entry(value=0.99))
    assert not same_record(entry(unit=""), entry(unit="", value=0.5035))
    assert not same_record(entry(), entry(interval=[0.4, 0.61]))
    assert not same_record(entry(), entry(n=401))
    assert not same_record(entry(), entry(name="other"))
    assert not same_record(entry(), {"name": "rate", "value": 0.5})
    assert not same_record(entry(value=1000.0), entry(value=1010.0))


def test_the_line_of_a_record_is_compared_with_it():
    def output(value, line):
        return [shown(text_plain=line) | {"data": {"text/plain": line, RECORDS: entry(value=value)}}]

    committed = output(0.5, "rate: 50.0 % [40.0, 60.0]")
    assert differences(committed, output(0.5025, "rate: 50.2 % [40.2, 60.2]")) == []
    assert differences(committed, output(0.5, "rate: 50.0 % [40.0, 60.6]"))
    assert differences(committed, output(0.5, "rate: 50.5 % [40.0, 60.0]"))


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def shown(**data) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": {k.replace("_", "/"): v for k, v in data.items()}}


def test_the_order_of_outputs_and_their_number_count():
    a, b = shown(text_plain="a"), shown(text_plain="b")
    assert differences([a, b], [a, b]) == []
    assert differences([a, b], [b, a])
    assert differences([a, b], [a])
    assert differences([a], [])
    assert differences([stream("x")], [a])
    assert differences([stream("x")], [stream("x", "stderr")])
    assert differences([shown(text_plain="a", text_html="<p>a</p>")], [a])
    assert differences([stream("one\n"), stream("two\n")], [stream("one\ntwo\n")]) == []
    assert differences([{"output_type": "error", "ename": "E", "evalue": "1"}],
                       [{"output_type": "error", "ename": "F", "evalue": "1"}])  # fmt: skip


def test_a_loose_cell_is_loose_in_numbers_alone():
    loose = Tolerance(rel=0.3, abs=0.1)
    assert same_text("4.89 nats, 66%", "5.9 nats, 60%", loose)
    assert not same_text("4.89 nats", "7.89 nats", loose)
    assert not same_text("4.89 nats", "4.89 bits", loose)
    assert same_text("4 nats", "4 nats", loose)
    assert not same_text("4 nats", "5 nats", loose)


def picture(radius: int) -> str:
    image, file = Image.new("RGB", (80, 80), "white"), io.BytesIO()
    ImageDraw.Draw(image).ellipse((40 - radius, 40 - radius, 40 + radius, 40 + radius), fill="black")
    image.save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def test_an_image_without_data_is_compared_by_its_pixels():
    assert same_picture(picture(20), picture(20))
    assert not same_picture(picture(20), picture(24))
    assert not same_picture(picture(20), "AAAA")
    assert differences([shown(image_png=picture(20))], [shown(image_png=picture(24))]) == ["the image is another"]


def figure(*heights: float) -> dict:
    drawn = figures.curve([0, 1, 2], {"a": heights}, xlabel="x", ylabel="y")
    return {"output_type": "execute_result", "metadata": {}, "execution_count": 1,
            "data": {"image/png": "AAAA", "text/plain": repr(drawn), MIME: plotted(drawn)}}  # fmt: skip


def test_a_figure_is_compared_by_what_it_shows():
    assert differences([figure(1, 2, 3)], [figure(1, 2, 3.001)]) == []
    assert "lines 0 y" in differences([figure(1, 2, 3)], [figure(3, 2, 1)])[0]
    old = figure(1, 2, 3)
    del old["data"][MIME]
    assert "run make baseline" in differences([old], [figure(1, 2, 3)])[0]
    assert differences([figure(1, 2, 3)], [old])


def test_the_list_of_loose_cells_names_cells_that_are_there():
    for notebook, cell in plugin.LOOSE:
        cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
        assert cell in [c["id"] for c in cells], f"{notebook} has no cell {cell}: mend LOOSE in conftest.py"
    assert all(reason for _, reason in plugin.LOOSE.values())
    assert plugin.tolerance("notebooks/attacks/gradient.ipynb", "none") == DEFAULT


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


RECORD = "from kit.report import record\nrecord('rate', 0.5, paper=0.4)"
SHOWN = "rate: 0.5 (paper 0.4)"
CURVE = "from kit.report import figures\nfigures.curve([0, 1, 2], {'a': [1, 2, 3]}, xlabel='x', ylabel='y')"
PYPLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]);"


def recorded(value: float) -> list:
    data = {"text/plain": SHOWN, "application/vnd.kit.record+json": entry(value=value, unit="", paper=0.4)}
    for name in ("interval", "n"):
        del data["application/vnd.kit.record+json"][name]
    return [{"output_type": "display_data", "metadata": {}, "data": data}]


def test_notebooks_are_compared(tmp_path):
    """One run of pytest, under the settings of the project, over notebooks that are right and wrong."""
    for name in ("conftest.py", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    bare = figure(1, 2, 3)
    del bare["data"][MIME]
    threads = "import os\nprint(os.environ['OMP_NUM_THREADS'], repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    loose = {"kit": {"tolerance": {"rel": 1e9, "abs": 1e9}}}
    error = [{"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": []}]
    build(
        tmp_path / "right.ipynb",
        ("print(0.9)", [stream("0.9001\n")], 1),
        (RECORD, recorded(0.5001), 2),
        (CURVE, [figure(1, 2, 3)], 3),
        (threads, [stream("1 ''\n")], 4),
        ("1 + 1;", [], 5),
        ("print(__import__('os').getcwd())", [stream(f"{tmp_path}\n")], 6),
        ("print(__import__('sys').executable)", [stream(f"{sys.executable}\n")], 7),
        ("1 / 0", error, 8, {"tags": ["raises-exception"]}),
    )
    build(
        tmp_path / "wrong.ipynb",
        ("print(0.9)", [stream("0.5\n")], 1),
        (RECORD, recorded(0.6), 2),
        ("print('ran')", [], None),
        ("import warnings\nwarnings.warn('careful')", [], 4),
        ("print('a')", [stream("b\n")], 5),
        ("1 / 0", [], 6),
        ("print('more')", [], 7),
        (CURVE, [figure(3, 2, 1)], 8),
        (CURVE, [bare], 9),
        ("# NBVAL_SKIP\nprint(0.9)", [stream("0.5\n")], 10),
        ("print(0.9)", [stream("0.5\n")], 11, {"tags": ["nbval-ignore-output", "nbval-skip"]}),
        ("print(0.9)", [stream("0.5\n")], 12, loose),
        (PYPLOT, [bare | {"output_type": "display_data"}], 13),
        ("1 / 0", [], 14, {"tags": ["raises-exception"]}),
    )
    command = [sys.executable, "-m", "pytest", "--nbval", ".", "-n", "2", "--dist", "loadscope", "-rA", "--color=no"]
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")}
    environment["PYTHONPATH"] = str(ROOT)  # in CI, pytest's summary repeats every message in full
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    lines = [line.split(" - ")[0].split() for line in done.stdout.splitlines() if line.startswith(("PASSED", "FAILED"))]
    outcome = {" ".join(words[1:]): words[0] for words in lines}
    expected = {f"right.ipynb::Cell {i}": "PASSED" for i in range(8)}
    expected |= {f"wrong.ipynb::Cell {i}": "FAILED" for i in range(14)}
    assert outcome == expected, done.stdout + done.stderr
    assert "this cell was never executed" in done.stdout
    assert done.stdout.count("the committed figure does not keep what it shows: run make baseline") == 2


def test_a_tables_record_is_compared_figure_by_figure():
    def outputs(value):
        entries = [{"name": "a", "value": 97.1, "unit": "%"}, {"name": "b", "value": value, "unit": "%"}]
        return [{"output_type": "display_data", "metadata": {}, "data": {RECORDS: entries, "text/plain": "2 of 3"}}]

    assert differences(outputs(42.0), outputs(42.0)) == []
    assert differences(outputs(42.0), outputs(43.0))
    assert not same_record(outputs(42.0)[0]["data"][RECORDS], outputs(42.0)[0]["data"][RECORDS][:1])
    one = [shown(text_plain="rate: 50.0 %") | {"data": {"text/plain": "rate: 50.0 %", RECORDS: entry()}}]
    assert differences(one, outputs(42.0))  # a number in the place of a table
    assert differences(outputs(42.0), one)
