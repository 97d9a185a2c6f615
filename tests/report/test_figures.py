"""Figures: what is drawn, not the pixels of a backend."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from kit.report import figures


@pytest.fixture(autouse=True)
def settings():
    with matplotlib.rc_context():
        yield


def pixels(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", **figures.PRINT)
    return Image.open(file)


def test_show_lays_out_a_grid_of_unsmoothed_images():
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    figure = figures.show(x, [str(i) for i in range(5)], columns=3)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(figure.axes) == 6
    assert len(drawn) == 5
    for i, axes in enumerate(drawn):
        (image,) = axes.images
        assert image.get_interpolation() == "nearest"
        assert np.allclose(image.get_array(), x[i].permute(1, 2, 0))
        assert axes.get_title() == str(i)


def test_show_does_not_stretch_grey_levels():
    figure = figures.show([torch.full((1, 4, 4), 0.4), torch.full((1, 4, 4), 0.6)])
    for axes in figure.axes:
        assert axes.images[0].get_clim() == (0, 1)


def test_masks_are_outlined_and_heatmaps_keep_their_sign():
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 8, 8)
    mask[0, 2:5, 2:5] = 1  # the second is empty, and gets no outline
    figure = figures.show(x, masks=mask)
    assert [len(axes.collections) for axes in figure.axes] == [2, 0]
    heat = torch.zeros(2, 8, 8)
    heat[0, 0, 0], heat[1, 0, 0], heat[1, 0, 1] = 3.0, 3.0, -1.0
    one, both = (axes.images[1] for axes in figures.show(x, heatmaps=heat).axes)
    assert one.get_clim() == (0, 3)
    assert both.get_clim() == (-3, 3)


def test_grey_scales_each_perturbation_around_the_middle():
    delta = torch.zeros(3, 1, 4, 4)
    delta[0, 0, 0, 0], delta[0, 0, 0, 1], delta[1, 0, 0, 0] = 0.1, -0.05, -0.001
    for found in (figures.grey(delta).numpy(), figures.grey(delta.numpy())):
        assert found[0, 0, 0, 0] == pytest.approx(1.0)
        assert found[0, 0, 0, 1] == pytest.approx(0.25)
        assert found[1, 0, 0, 0] == pytest.approx(0.0)
        assert (found[2] == 0.5).all()
    assert figures.perturbation(delta).axes[0].images[0].get_array()[0, 1] == pytest.approx(0.25)


def test_curve_draws_the_values_and_their_bands():
    figure = figures.curve([1, 2, 4], {"a": [1, 2, 3], "b": torch.tensor([3, 2, 1])}, xlabel="steps", ylabel="rate",
                           intervals={"a": [[0, 2], [1, 3], [2, 4]]}, logx=True)  # fmt: skip
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 2, 3], [3, 2, 1]]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("steps", "rate", "log")
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().bounds == (1, 0, 3, 4)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_bars_stand_side_by_side_with_their_intervals():
    figure = figures.bars(["x", "y"], {"a": [1, 2], "b": [3, 4]}, ylabel="rate", intervals={"a": [[0.5, 1.5], [1, 4]]})
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [1, 2, 3, 4]
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert all(left[1] <= right[0] + 1e-9 for left, right in zip(spans, spans[1:], strict=False))
    segments = axes.collections[0].get_segments()
    assert [(segment[0][1], segment[1][1]) for segment in segments] == [(0.5, 1.5), (1, 4)]


def test_figures_are_opaque_700_pixels_wide_and_small():
    figures.style()
    image = pixels(figures.curve([0, 1], {"a": [0, 1]}, xlabel="x", ylabel="y"))
    assert image.size == (700, 320)
    assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert len(image.info) <= 1  # only the resolution: no version, no date
    assert pixels(figures.show(torch.zeros(9, 3, 32, 32))).size[0] == 700


def test_lines_differ_without_colour():
    assert len(set(figures.COLOURS)) == len(set(map(str, figures.LINES))) == len(set(figures.MARKERS)) == 7
    lightness = [np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in figures.COLOURS]
    assert all(abs(a - b) > 0.05 for a, b in zip(lightness, lightness[1:], strict=False))
    figures.style()
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()
    assert set(cycle) == {"color", "linestyle", "marker"}


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.show(torch.zeros(2, 4, 8, 8)),
        lambda: figures.show(torch.zeros(0, 3, 8, 8)),
        lambda: figures.show(torch.zeros(8, 8)),
        lambda: figures.show(torch.zeros(2, 3, 8, 8), ["one"]),
        lambda: figures.show(torch.zeros(2, 3, 8, 8), masks=torch.zeros(1, 8, 8)),
        lambda: figures.show(torch.zeros(2, 3, 8, 8), heatmaps=torch.zeros(2, 1, 8, 8)),
        lambda: figures.grey(torch.zeros(3, 8, 8)),
        lambda: figures.curve([1, 2], {"a": [1]}, xlabel="", ylabel=""),
        lambda: figures.curve([1, 2], {"a": [1, 2]}, xlabel="", ylabel="", intervals={"a": [1, 2]}),
        lambda: figures.bars(["x"], {"a": [1, 2]}, ylabel=""),
        lambda: figures.bars(["x"], {"a": [1]}, ylabel="", intervals={"a": [1]}),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match="are|shape|titles|images"):
        call()


def test_bytes_are_no_images():
    with pytest.raises(ValueError, match="divide it by 255"):
        figures.show((torch.rand(1, 3, 4, 4) * 255).byte())
