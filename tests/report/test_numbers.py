"""Recorded numbers, their intervals, and tables."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kit.report import bootstrap_mean, numbers, paired, record, records, table, wilson
from kit.report.numbers import MIME
from kit.report.scoreboard import others


@pytest.fixture
def shown(monkeypatch):
    """As if in a notebook: what `record` displays."""
    import IPython.display

    seen = []
    monkeypatch.setattr(numbers, "in_kernel", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: seen.append(bundle))
    return seen


def test_record_shows_a_line_and_keeps_the_full_numbers(shown):
    record("bim / accuracy", np.float32(0.03125), paper=0.04, source="BIM, table 2", interval=(0.022, 0.0431), unit="%",
           better="lower", n=512)  # fmt: skip
    (bundle,) = shown
    assert bundle["text/plain"] == "bim / accuracy: 3.1 % [2.2, 4.3] (paper 4.0 %)"
    assert json.loads(json.dumps(bundle[MIME])) == {
        "name": "bim / accuracy",
        "value": 0.03125,
        "unit": "%",
        "interval": [0.022, 0.0431],
        "paper": 0.04,
        "source": "BIM, table 2",
        "better": "lower",
        "n": 512,
    }


def test_record_prints_outside_a_notebook(capsys):
    record("norm", 1.23456)
    record("time", 12.0, unit="s")
    record("large", 123456.7)
    assert capsys.readouterr().out == "norm: 1.23\ntime: 12 s\nlarge: 123457\n"


@pytest.mark.parametrize(
    ("value", "options", "words"),
    [
        (math.nan, {}, "finite"),
        (1.0, {"paper": math.inf}, "finite"),
        (3.1, {"unit": "%"}, "fractions"),
        (0.1, {"unit": "%", "interval": (2.0, 4.0)}, "fractions"),
        (1.0, {"interval": (2, 1)}, "lo <= hi"),
        (1.0, {"interval": (1, 2, 3)}, "lo, hi"),
        (1.0, {"better": "more"}, "higher"),
    ],
)
def test_record_refuses(value, options, words):
    with pytest.raises(ValueError, match=words):
        record("name", value, **options)


def test_wilson_against_its_formula():
    z, k, n = 1.959963984540054, 7, 50
    p = k / n
    middle, reach = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(k, n) == pytest.approx(((middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)))
    assert wilson(0, 10)[0] == 0
    assert wilson(0, 10)[1] > 0.2
    for k, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="0 <= successes <= n"):
            wilson(k, n)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        lo, hi = bootstrap_mean(generator.normal(2.0, 1.0, 40), resamples=300, seed=i)
        hits += lo <= 2.0 <= hi
    assert 0.88 <= hits / 200 <= 0.99
    assert bootstrap_mean([1, 2, 3]) == bootstrap_mean([1, 2, 3])
    with pytest.raises(ValueError, match="two values"):
        bootstrap_mean([1.0])
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, math.nan])


def test_the_bootstrap_draws_each_sample_with_replacement():
    values = np.random.default_rng(1).normal(size=600)  # more than are drawn at once
    generator = np.random.default_rng(3)
    means = [generator.choice(values, len(values)).mean() for _ in range(1000)]
    expected = np.quantile(means, [0.05, 0.95])
    assert bootstrap_mean(values, level=0.9, resamples=1000, seed=3) == pytest.approx(tuple(expected), rel=1e-12)


def test_paired_is_mcnemars_exact_test():
    a, b = np.ones(20, bool), np.ones(20, bool)
    b[:6] = False  # a alone on 6 images, b alone on none: 2 / 2^6
    assert paired(a, b) == pytest.approx(2 / 64)
    assert paired(b, a) == pytest.approx(2 / 64)
    a[6:9] = False  # 6 against 3
    assert paired(a, b) == pytest.approx(2 * sum(math.comb(9, k) for k in range(4)) / 2**9)
    assert paired(a, a) == 1.0
    with pytest.raises(ValueError, match="same images"):
        paired(a, b[:3])


def test_tables_are_plain_and_say_the_same_each_time():
    found = table([{"attack": "fgsm <1>", "rate": 0.12345}, {"attack": "a|b"}], caption="Rates")
    bundle = found._repr_mimebundle_()
    assert bundle == table([("fgsm <1>", 0.12345), ("a|b", None)], ["attack", "rate"], "Rates")._repr_mimebundle_()
    assert bundle["text/plain"] == "Rates\nattack    rate\nfgsm <1>  0.123\na|b"
    assert "| a\\|b |  |" in bundle["text/markdown"]
    assert "<td>fgsm &lt;1&gt;</td><td>0.123</td>" in bundle["text/html"]
    assert "style" not in bundle["text/html"]
    assert table([(np.float32(2.5), 3)], ["a", "b"]).rows == [["2.5", "3"]]
    with pytest.raises(ValueError, match="2 values for 1"):
        table([(1, 2)], ["a"])
    with pytest.raises(ValueError, match="not among the columns"):
        table([{"x": 1}], ["a"])
    with pytest.raises(ValueError, match="name the columns"):
        table([(1, 2)])


def notebook(path, title, *entries):
    outputs = [
        {"output_type": "display_data", "data": {MIME: entry, "text/plain": ["x"]}, "metadata": {}} for entry in entries
    ]
    cells = [
        {"cell_type": "markdown", "source": [f"# {title}\n", "text"]},
        {"cell_type": "code", "source": [], "outputs": [{"output_type": "stream", "text": "a"}, *outputs]},
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
    return path


def test_the_second_page_holds_every_record_beside_the_papers(tmp_path):
    first = notebook(
        tmp_path / "notebooks" / "attacks" / "gradient.ipynb",
        "Gradient attacks",
        {"name": "bim", "value": 0.031, "unit": "%", "interval": [0.022, 0.043], "n": 500, "paper": 0.04,
         "better": "lower", "source": "table 2"},
        {"name": "norm", "value": 2.0, "unit": "", "paper": 1.5, "better": "lower"},
        {"name": "alone", "value": 7.0, "unit": "s"},
    )  # fmt: skip
    empty = notebook(tmp_path / "notebooks" / "empty.ipynb", "Nothing")
    assert [entry["name"] for entry in records(first)] == ["bim", "norm", "alone"]
    assert records(json.loads(first.read_text())) == records(first)
    text = others([first, empty], tmp_path / "book")
    assert "## [Gradient attacks](../notebooks/attacks/gradient.ipynb)" in text
    assert "| bim | 3.1 % [2.2, 4.3], n = 500 | 4.0 % (table 2) | -0.9 points (better) |" in text
    assert "| norm | 2 | 1.5 | +0.5 (worse) |" in text
    assert "| alone | 7 s |  |  |" in text
    assert "Nothing" not in text
    twice = notebook(tmp_path / "t.ipynb", "T", *[{"name": "bim", "value": 1.0, "unit": ""}] * 2)
    with pytest.raises(ValueError, match="'bim' twice"):
        others([twice], tmp_path)
