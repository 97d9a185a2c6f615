"""What a figure shows, as small data: kept beside its image in an executed notebook, so that the regressions compare
it. `watch(shell)` makes a kernel do so for every matplotlib figure it displays, pyplot's included.

The data are a tree of dicts and lists. Texts are strings; numbers are one string "0 0.5 1" under the keys in `NUMBERS`.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogFormatter, NullFormatter, ScalarFormatter

MIME = "application/vnd.kit.figure+json"
NUMBERS = ("x", "y", "limits", "values", "shape")
KEPT = 64  # an array with more numbers is kept as the means of this many blocks
SIDE = 8  # an image is kept as the means of SIDE × SIDE blocks


def numbers(values: Any) -> str:
    """Numbers to four digits; of more than `KEPT`, their least, their greatest and the means of `KEPT` blocks."""
    flat: np.ndarray = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel()
    if len(flat) > KEPT:
        blocks = [block.mean() for block in np.array_split(flat, KEPT)]
        flat = np.array([len(flat), flat.min(), flat.max(), *blocks])
    return " ".join(f"{value:.4g}" for value in flat + 0.0)  # no -0


def picture(values: Any) -> str:
    """An image (H, W) or (H, W, channels): least, greatest, means of the channels, grey means of blocks."""
    array: np.ndarray = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    array = array.reshape(*array.shape[:2], -1)
    grey = array.mean(-1)
    blocks = [block.mean() for row in np.array_split(grey, min(SIDE, grey.shape[0]), 0)
              for block in np.array_split(row, min(SIDE, grey.shape[1]), 1)]
    found = np.array([array.min(), array.max(), *array.mean((0, 1)), *blocks])
    return " ".join(f"{value:.3g}" for value in found + 0.0)


def _colours(values: Any) -> list[str]:
    """The colours of an artist: all of a few, and of more the first and how many there are."""
    found = [to_hex(value) for value in np.atleast_2d(values)] if len(values) else []
    return found if len(found) <= 8 else [found[0], str(len(found))]


def _axis(axis: Axis) -> dict[str, Any]:
    formatter = axis.get_major_formatter()
    named = not isinstance(formatter, ScalarFormatter | LogFormatter | NullFormatter)
    return {
        "label": axis.get_label_text(),
        "scale": axis.get_scale(),
        "limits": numbers(axis.get_view_interval()),
        **({"ticks": [tick.get_text() for tick in axis.get_ticklabels()]} if named else {}),
    }


def _line(line: Line2D) -> dict[str, Any]:
    x, y = (line.get_data(orig=False)[i] for i in (0, 1))
    return {"label": str(line.get_label()), "colour": to_hex(line.get_color()), "x": numbers(x), "y": numbers(y)}


def _patch(patch: Patch) -> dict[str, Any]:
    if isinstance(patch, Rectangle):
        corners = np.array([patch.get_xy(), np.add(patch.get_xy(), (patch.get_width(), patch.get_height()))])
    else:
        corners = patch.get_patch_transform().transform(patch.get_path().vertices)
    return {"colour": to_hex(patch.get_facecolor()), "x": numbers(corners[:, 0]), "y": numbers(corners[:, 1])}


def _collection(collection: Collection) -> dict[str, Any]:
    if isinstance(collection, PathCollection):  # scatter: its paths are the markers
        points = np.asarray(collection.get_offsets())
    else:
        points = np.concatenate([path.vertices for path in collection.get_paths()] or [np.empty((0, 2))])
    values = collection.get_array()
    return {
        "label": str(collection.get_label()),
        "colours": _colours(collection.get_facecolor()) if values is None else [],
        "x": numbers(points[:, 0]),
        "y": numbers(points[:, 1]),
        **({} if values is None else {"values": numbers(values), "limits": numbers(collection.get_clim())}),
    }


def _image(image: AxesImage) -> dict[str, Any]:
    array: Any = image.get_array()
    return {
        "shape": numbers(array.shape),
        "limits": numbers(image.get_clim()),
        "colours": image.get_cmap().name,
        "values": picture(array),
    }


def _texts(legends: Sequence[Legend | None], texts: Any) -> list[str]:
    own = [text.get_text() for text in texts]
    return [t for t in own + [text.get_text() for legend in legends if legend for text in legend.get_texts()] if t]


def _axes(axes: Axes) -> dict[str, Any]:
    titles = [axes.get_title(loc) for loc in ("left", "center", "right")]
    found: dict[str, Any] = {"texts": [t for t in titles if t] + _texts([axes.get_legend()], axes.texts)}
    if axes.axison:
        found |= {"x axis": _axis(axes.xaxis), "y axis": _axis(axes.yaxis)}
    found |= {
        "lines": [_line(line) for line in axes.lines],
        "patches": [_patch(patch) for patch in axes.patches],
        "collections": [_collection(collection) for collection in axes.collections],
        "images": [_image(image) for image in axes.images],
        "axes": [_axes(child) for child in axes.child_axes if isinstance(child, Axes)],
    }
    return {key: value for key, value in found.items() if value}


def plotted(figure: Figure) -> dict[str, Any]:
    """What a figure shows: its texts, and for each of its axes labels, limits, lines, bars, points and images."""
    parts: list[FigureBase] = [figure, *figure.subfigs]
    texts = [text for part in parts for text in _texts(part.legends, part.texts)]
    return {"texts": texts, "axes": [_axes(axes) for axes in figure.axes]}


def bundle(figure: Figure) -> dict[str, Any]:
    return {MIME: plotted(figure)}


def watch(shell: Any) -> None:
    """Let an IPython shell keep `plotted` beside the image of every figure that it displays."""
    formatter = shell.display_formatter.mimebundle_formatter
    formatter.for_type_by_name("matplotlib.figure", "Figure", bundle)
