"""The frames that are kept are those that the package computes."""
import json
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
from PIL import Image

from kit.report.links import Book
from kit.run.files import ROOT
from kit.run.moving import FIGURES, FOLDER, strip, write

KEPT = ROOT / FOLDER


def kept(name):
    return json.loads((KEPT / f"{name}.json").read_text())


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_the_package_computes(name):
    """Numbers within the rounding of another machine, pictures within two grey levels of nearly all values."""
    found, frames = FIGURES[name]()
    for row, before in zip(asdict(found)["rows"], kept(name)["rows"], strict=True):
        for value, was in zip(row, before, strict=True):
            assert value == was if isinstance(was, str) else value == pytest.approx(was, abs=0.02)
    if frames is not None:
        with Image.open(KEPT / f"{name}.png") as image:
            picture, was = np.asarray(strip(frames)).astype(int), np.asarray(image).astype(int)
        assert (abs(picture - was) <= 2).mean() > 0.98


@pytest.mark.parametrize("name", FIGURES)
def test_rows_are_the_sliders_positions_in_order(name):
    figure = kept(name)
    many = len(figure["sliders"])
    values = [list(dict.fromkeys(row[k] for row in figure["rows"])) for k in range(many)]
    assert [tuple(row[:many]) for row in figure["rows"]] == list(product(*values))
    assert {len(row) for row in figure["rows"]} == {many + len(figure["columns"])}
    assert set(figure["bars"]) <= set(figure["columns"])
    bars = [row[many + figure["columns"].index(bar)] for row in figure["rows"] for bar in figure["bars"]]
    assert all(isinstance(value, str) or 0 <= value <= 1 for value in bars)


def test_figures_stand_below_equations_of_their_chapters():
    equations = Book(ROOT).equations
    assert {path.stem for path in KEPT.glob("*.json")} == set(FIGURES)
    for name in FIGURES:
        figure = kept(name)
        assert equations[figure["after"]] == f"notebooks/{figure['chapter']}"
        assert bool(figure["alt"]) == bool(figure["size"]) == (KEPT / f"{name}.png").is_file()


def test_more_epsilon_is_less_of_the_true_class_and_precision_follows_the_base_rate():
    rows = kept("push")["rows"]
    for attack in ("FGSM", "PGD"):
        true = [row[3] for row in rows if row[0] == attack]
        assert true[0] > 0.8 > 0.1 > true[-1]
    at = {(row[0], row[1]): row for row in kept("threshold")["rows"]}
    for cut in {cut for _, cut in at}:
        assert len({tuple(at[base, cut][2:4]) for base in (0.5, 0.1, 0.01, 0.001)}) == 1
        shares = [at[base, cut][4] for base in (0.5, 0.1, 0.01, 0.001)]
        assert shares == sorted(shares, reverse=True)
        _, _, tpr, fpr, precision = at[0.01, cut]
        assert precision == pytest.approx(0.01 * tpr / (0.01 * tpr + 0.99 * fpr), rel=0.05, abs=0.002)


def test_proofs_stay_below_the_attack_and_the_best_rule_above_all_others():
    rows = kept("proofs")["rows"]
    assert all(max(intervals, lines) <= held for _, _, intervals, lines, held in rows)
    assert any(lines > intervals + 0.5 for _, _, intervals, lines, _ in rows)
    assert all(best >= max(bayes, strong) - 1e-3 for _, _, bayes, strong, best in kept("weak")["rows"])
    many = {eps: (bayes, best) for d, eps, bayes, _, best in kept("weak")["rows"] if d == 1000}
    assert many[0.0][0] > 0.99
    assert many[0.1][0] < 0.7 < 0.95 == many[0.1][1]


def test_without_noise_copies_make_no_difference_and_a_map_at_the_last_layer_finds_the_object():
    rows = kept("averaged")["rows"]
    assert len({share for sigma, _, share in rows if sigma == 0}) == 1
    assert len({share for sigma, _, share in rows if sigma == 0.2}) == 4
    last = [share for _, layer, share in kept("depth")["rows"] if layer == "block3"]
    assert min(last) > 0.2


def test_ten_chapters_have_a_figure_that_moves():
    assert len({kept(name)["chapter"] for name in FIGURES}) >= 10


def test_a_figure_is_written_whole(tmp_path):
    paths = write("rules", tmp_path)
    assert [path.name for path in paths] == ["rules.json", "rules.png"]
    figure = json.loads(paths[0].read_text())
    height, width = figure["size"]
    with Image.open(paths[1]) as image:
        assert image.size == (width * len(figure["rows"]), height)
