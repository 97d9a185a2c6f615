"""What is kept of a figure: every kind of thing that is drawn, and nothing that is not."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from kit.report import figures
from kit.report.plotted import KEPT, numbers, picture, plotted
from kit.run.compare import same_figure


def drawn(change=None) -> Figure:
    """One of each, and what `change` does to its data."""
    data = {
        "line": [0.1, 0.5, 0.2], "bars": [1.0, 2.0], "points": [3.0, 4.0], "shade": [1.0, 2.0, 1.5], "title": "Title",
        "image": np.linspace(0, 1, 256).reshape(16, 16), "mesh": np.arange(4.0).reshape(2, 2), "note": "here",
        "ticks": ["cat", "dog"], "label": "loss", "name": "first", "mark": 0.3, "inset": [1.0, 2.0], "top": "Together",
    }  # fmt: skip
    data |= change or {}
    figure = Figure()
    figure.suptitle(data["top"])
    (a, b, c), (d, e, f) = figure.subplots(2, 3)
    a.plot([0, 1, 2], data["line"], label=data["name"])
    a.legend()
    a.set_title(data["title"])
    a.set_ylabel(data["label"])
    b.bar(range(2), data["bars"])
    b.set_xticks(range(2), data["ticks"])
    c.scatter([1, 2], data["points"])
    c.annotate(data["note"], (1, 1))
    d.fill_between([0, 1, 2], data["shade"])
    d.axvline(data["mark"])
    e.imshow(data["image"])
    e.inset_axes([0, 0, 0.2, 0.2]).plot(data["inset"])
    f.pcolormesh(data["mesh"])
    return figure


CHANGES = {
    "line": [0.1, 0.5, 0.21], "bars": [1.0, 2.05], "points": [3.0, 4.1], "shade": [1.0, 2.0, 1.6], "title": "Tile",
    "image": 1 - np.linspace(0, 1, 256).reshape(16, 16), "mesh": np.arange(4.0).reshape(2, 2).T, "note": "there",
    "ticks": ["dog", "cat"], "label": "accuracy", "name": "second", "mark": 0.4, "inset": [2.0, 1.0], "top": "Apart",
}  # fmt: skip


def test_the_same_figure_is_the_same_and_a_hair_is_let_through():
    assert plotted(drawn()) == plotted(drawn())
    assert not same_figure(plotted(drawn()), plotted(drawn({"line": [0.1, 0.5, 0.2001], "bars": [1.0, 2.0002]})))


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_anything_that_is_drawn_is_seen(what):
    assert same_figure(plotted(drawn()), plotted(drawn({what: CHANGES[what]})))


def test_a_log_axis_a_missing_curve_and_other_colours_are_seen():
    def of(ys, **options):
        return plotted(figures.curve([1, 10], ys, xlabel="x", ylabel="y", **options))

    two = {"a": [1, 2], "b": [2, 1]}
    assert same_figure(of(two), of(two, logx=True))
    assert same_figure(of(two), of({"a": [1, 2]}))
    assert same_figure(of(two), of({"b": [2, 1], "a": [1, 2]}))


def test_heatmaps_masks_and_pyplots_figures_are_kept():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    heat, mask = torch.zeros(2, 16, 16), torch.zeros(2, 16, 16)
    heat[:, 4:8, 4:8], mask[:, 2:9, 2:9] = 1, 1
    whole = plotted(figures.show(x, heatmaps=heat, masks=mask))
    assert same_figure(whole, plotted(figures.show(x, heatmaps=heat.flip(2), masks=mask)))
    assert same_figure(whole, plotted(figures.show(x, heatmaps=heat, masks=mask.flip(1))))
    figure = plt.figure()
    parts = figure.subfigures(1, 2)
    parts[0].suptitle("left")
    parts[1].subplots(subplot_kw={"projection": "polar"}).plot([1, 2], [3, 4])
    found = plotted(figure)
    plt.close(figure)
    assert found["texts"] == ["left"]
    assert found["axes"][0]["lines"][0]["y"] == "3 4"


def test_large_arrays_stay_small_and_small_ones_whole():
    assert numbers([1, 0.25, -0.0, np.nan]) == "1 0.25 0 nan"
    many = numbers(np.linspace(0, 1, 10_000))
    assert many.split()[:3] == ["1e+04", "0", "1"]
    assert len(many.split()) == 3 + KEPT
    assert numbers(np.arange(3 * KEPT)).split()[3:] == [str(3 * i + 1) for i in range(KEPT)]
    assert len(json.dumps(plotted(figures.show(torch.rand(1, 3, 299, 299))))) < 1000
    assert picture(np.ones((2, 3))) == " ".join(["1"] * (3 + 6))
    halves = np.zeros((16, 24, 3))
    halves[8:] = [0.2, 0.3, 0.4]  # of 64 blocks of 2 × 3 pixels
    assert picture(halves) == " ".join(["0", "0.4", "0.1", "0.15", "0.2", *["0"] * 32, *["0.3"] * 32])
