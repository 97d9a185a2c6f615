"""Figures of one look: opaque white, 700 px wide, told apart without colour.

Every function returns a `Figure` that no window manager knows: a notebook shows it as the last line of a cell, or by
`display`, once. `style()` in a chapter's first cell sets the look for figures made with pyplot as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kit.report.intervals import as_array
from kit.report.plotted import watch

WIDTH, DPI = 7.0, 100  # inches, and dots per inch: 700 px, the book's column
# Okabe and Ito's colours ("Color Universal Design", 2008), dark and light in turn: neighbours differ in grey too.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#009E73")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "--")
PRINT: Any = {"facecolor": "white", "edgecolor": "white", "metadata": {"Software": None}, "bbox_inches": None}


def style() -> None:
    """Set the look of all figures: call it in a chapter's first cell."""
    import matplotlib

    from kit.report.numbers import in_kernel

    look: Any = {
        "figure.figsize": (WIDTH, 3.2),
        "figure.dpi": DPI,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "axes.facecolor": "white",
        "savefig.facecolor": "white",
        "savefig.transparent": False,
        "savefig.dpi": "figure",
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.labelsize": 10,
        "legend.fontsize": 9,
        "axes.grid": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=LINES) + cycler(marker=MARKERS),
        "lines.linewidth": 1.5,
        "lines.markersize": 4,
        "image.interpolation": "nearest",
        "image.cmap": "gray",
        "svg.hashsalt": "kit",
    }
    matplotlib.rcParams.update(look)
    if in_kernel():
        from IPython import get_ipython
        from IPython.core.pylabtools import select_figure_formats
        from matplotlib_inline.config import InlineBackend

        shell = get_ipython()
        watch(shell)
        InlineBackend.instance(parent=shell).print_figure_kwargs = PRINT
        select_figure_formats(shell, {"png"}, **PRINT)


def _figure(width: float, height: float) -> Figure:
    """A figure under no window manager; `style` first, so that it looks the same without a call of the reader's."""
    style()
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _images(images: Any) -> list[np.ndarray]:
    """A batch (N, C, H, W), or a sequence of (C, H, W), as arrays (H, W, 3) or (H, W)."""
    if isinstance(images, list | tuple):
        found = [as_array(image) for image in images]
    else:
        batch = as_array(images)
        found = list(batch) if batch.ndim == 4 else [batch]
    for image in found:
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"images are (C, H, W) with 1 or 3 channels, and one is {tuple(image.shape)}")
        if np.issubdtype(image.dtype, np.integer):
            raise ValueError(f"images are floats in [0, 1], and one holds {image.dtype}: divide it by 255")
    return [image[0] if len(image) == 1 else image.transpose(1, 2, 0) for image in found]


def _maps(what: str, maps: Any, n: int) -> list[np.ndarray | None]:
    """One (H, W) map per image, or None for each image where `maps` is None."""
    if maps is None:
        return [None] * n
    found = [None if m is None else as_array(m).astype(float) for m in maps]
    if len(found) != n or any(m is not None and m.ndim != 2 for m in found):
        raise ValueError(f"{what} are one (H, W) map for each of the {n} images")
    return found


def show(
    images: Any,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    masks: Any = None,
    heatmaps: Any = None,
    scale: float = 1.0,
) -> Figure:
    """A grid of images (N, C, H, W) in [0, 1], pixels as squares.

    `masks` (N, H, W) are outlined; `heatmaps` (N, H, W) cover the image in grey the more the larger they are, up to
    each map's largest absolute value: light to dark where a map has one sign, orange (+) against purple (-) where it
    has both.
    `scale` is the grid's width as a share of the column. Raises ValueError for other shapes.
    """
    pictures = _images(images)
    n = len(pictures)
    if not n:
        raise ValueError("there are no images to show")
    if titles is not None and len(titles) != n:
        raise ValueError(f"{len(titles)} titles for {n} images")
    outlines, heats = _maps("masks", masks, n), _maps("heatmaps", heatmaps, n)
    columns = min(n, columns or 8)
    rows = math.ceil(n / columns)
    side = min(WIDTH * scale / columns, 2.4)
    longest = max((title.count("\n") + 1 for title in titles or ()), default=0)
    ratio = pictures[0].shape[0] / pictures[0].shape[1]
    figure = _figure(side * columns, rows * (side * ratio + 0.19 * longest))
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i >= n:
            continue
        picture = pictures[i]
        heat = heats[i]
        if heat is not None:
            picture = 0.5 + 0.5 * (picture if picture.ndim == 2 else picture.mean(-1))
        axes.imshow(np.clip(picture, 0, 1), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
        if heat is not None:
            top = float(np.abs(heat).max()) or 1.0
            signed = heat.min() < 0 < heat.max()
            low, cmap = (-top, "PuOr_r") if signed else (0.0, "Oranges")
            cover = 0.1 + 0.75 * np.abs(heat) / top  # where there is little to say, the image shows through
            axes.imshow(heat if signed else np.abs(heat), vmin=low, vmax=top, cmap=cmap, alpha=cover)
        outline = outlines[i]
        if outline is not None and 0 < outline.mean() < 1:
            for colour, width in (("white", 3.0), ("black", 1.2)):  # visible on any image
                axes.contour(outline, levels=[0.5], colors=colour, linewidths=width)
        if titles is not None:
            axes.set_title(titles[i], fontsize=9, pad=2)
    return figure


def grey(delta: Any) -> Any:
    """A perturbation (N, C, H, W) as an image: grey where it is zero, its largest absolute value black or white.

    0.5 + δ / (2 max|δ|), the maximum taken per image; an array or a tensor as it came.
    """
    if delta.ndim != 4:
        raise ValueError(f"perturbations are (N, C, H, W), not {tuple(delta.shape)}")
    top = abs(delta).reshape(len(delta), -1).max(1)
    top = getattr(top, "values", top).reshape(-1, 1, 1, 1)  # torch returns where the maximum is as well
    return 0.5 + delta / (2 * top + (top == 0))


def perturbation(delta: Any, titles: Sequence[str] | None = None, columns: int | None = None, **options: Any) -> Figure:
    """The grid of perturbations δ (N, C, H, W), each scaled around grey by `grey`."""
    return show(grey(delta), titles, columns, **options)


def _axes(xlabel: str, ylabel: str, height: float) -> tuple[Figure, Axes]:
    figure = _figure(WIDTH, height)
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def curve(
    x: Any,
    ys: Mapping[str, Any],
    *,
    xlabel: str,
    ylabel: str,
    intervals: Mapping[str, Any] | None = None,
    logx: bool = False,
    height: float = 3.2,
) -> Figure:
    """Lines over `x`, one for each name in `ys`; `intervals[name]` (len(x), 2) is drawn as a band around its line."""
    x = as_array(x)
    figure, axes = _axes(xlabel, ylabel, height)
    for name, y in ys.items():
        values = as_array(y)
        if values.shape != x.shape:
            raise ValueError(f"the curve {name!r} has shape {values.shape} and x has {x.shape}")
        (line,) = axes.plot(x, values, label=name)
        if intervals is not None and name in intervals:
            band = as_array(intervals[name])
            if band.shape != (len(x), 2):
                raise ValueError(f"the intervals of {name!r} are ({len(x)}, 2), not {band.shape}")
            axes.fill_between(x, band[:, 0], band[:, 1], color=line.get_color(), alpha=0.15, linewidth=0)
    if logx:
        axes.set_xscale("log")
    if len(ys) > 1:
        axes.legend(frameon=False)
    return figure


def bars(
    groups: Sequence[str],
    values: Mapping[str, Any],
    *,
    ylabel: str,
    intervals: Mapping[str, Any] | None = None,
    height: float = 3.2,
) -> Figure:
    """Bars, for each of `groups` one bar per name in `values`; `intervals[name]` (len(groups), 2) are (lo, hi) ends."""
    figure, axes = _axes("", ylabel, height)
    at = np.arange(len(groups))
    width = 0.8 / len(values)
    for i, (name, heights) in enumerate(values.items()):
        tops = as_array(heights).astype(float)
        if tops.shape != at.shape:
            raise ValueError(f"the bars {name!r} have shape {tops.shape} for {len(groups)} groups")
        place = at + (i - (len(values) - 1) / 2) * width
        k = i + 1  # the first colour is black, which would hide the intervals
        fill, hatch = COLOURS[k % len(COLOURS)], HATCHES[i % len(HATCHES)]
        axes.bar(place, tops, width, label=name, color=fill, hatch=hatch, edgecolor="black", linewidth=0.5)
        if intervals is not None and name in intervals:
            ends = as_array(intervals[name])
            if ends.shape != (len(groups), 2):
                raise ValueError(f"the intervals of {name!r} are ({len(groups)}, 2), not {ends.shape}")
            reach = np.clip(np.stack([tops - ends[:, 0], ends[:, 1] - tops]), 0, None)
            axes.errorbar(place, tops, reach, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.set_xticks(at, groups)
    if len(values) > 1:
        axes.legend(frameon=False)
    return figure
