"""Where a sign may be changed: masks M (1, 1, S, S) of 0 and 1 in the sign's own frame, which is [−1, 1]², y down.

The shapes follow those of Eykholt et al., Robust physical-world attacks on deep learning visual classification, CVPR
2018 (figures 1 and 5), and Sharif et al., Accessorize to a crime, CCS 2016 (figure 2); the drawings are ours.
"""
import math
from numbers import Integral

import torch
from torch import Tensor

# Letters as strokes in a box 2 wide and 3 high: they say what the source's graffiti said.
LETTERS: dict[str, list[tuple[float, float, float, float]]] = {
    "L": [(0, 0, 0, 3), (0, 3, 2, 3)],
    "O": [(0, 0, 2, 0), (2, 0, 2, 3), (2, 3, 0, 3), (0, 3, 0, 0)],
    "V": [(0, 0, 1, 3), (1, 3, 2, 0)],
    "E": [(0, 0, 0, 3), (0, 0, 2, 0), (0, 1.5, 1.6, 1.5), (0, 3, 2, 3)],
    "H": [(0, 0, 0, 3), (2, 0, 2, 3), (0, 1.5, 2, 1.5)],
    "A": [(0, 3, 1, 0), (1, 0, 2, 3), (0.4, 2, 1.6, 2)],
    "T": [(0, 0, 2, 0), (1, 0, 1, 3)],
    "S": [(2, 0, 0, 0), (0, 0, 0, 1.5), (0, 1.5, 2, 1.5), (2, 1.5, 2, 3), (2, 3, 0, 3)],
    "P": [(0, 3, 0, 0), (0, 0, 2, 0), (2, 0, 2, 1.6), (2, 1.6, 0, 1.6)],
}
TURN = [(-0.3, 0.5, -0.3, -0.1), (-0.3, -0.1, 0.35, -0.1), (0.1, -0.4, 0.4, -0.1), (0.4, -0.1, 0.1, 0.2)]


def frame(size: int) -> tuple[Tensor, Tensor]:
    """The places of the pixels, x and y (S, S)."""
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, 1 or more, not {size!r}")
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def face(size: int, radius: float = 0.8, sides: int = 0) -> Tensor:
    """The whole face of a sign, for a poster: a disc, or a regular polygon of so many sides that stands on one."""
    if sides != 0 and sides < 3:
        raise ValueError(f"a polygon has 3 sides or more, not {sides}: 0 is a disc")
    x, y = frame(size)
    if sides == 0:
        return _mask(x.square() + y.square() <= radius**2)
    sector = 2 * math.pi / sides
    angle = torch.remainder(torch.atan2(x, y) + sector / 2, sector) - sector / 2
    return _mask(torch.hypot(x, y) * angle.cos() <= radius * math.cos(sector / 2))


def bars(size: int, radius: float = 0.8) -> Tensor:
    """Camouflage art: two wide stickers, above and below the middle."""
    x, y = frame(size)
    inside = (x / radius).abs() <= 0.75
    return _mask(inside & ((y / radius).abs() >= 0.33) & ((y / radius).abs() <= 0.63))


def squares(size: int, radius: float = 0.8) -> Tensor:
    """Camouflage art of another cut: four stickers beside the corners, and one in the middle."""
    x, y = frame(size)
    x, y = x / radius, y / radius
    corners = torch.maximum((x.abs() - 0.5).abs(), (y.abs() - 0.5).abs()) <= 0.17
    return _mask(corners | (torch.maximum(x.abs(), y.abs()) <= 0.2))


def graffiti(size: int, radius: float = 0.8, words: tuple[str, str] = ("LOVE", "HATE"), thick: float = 0.045) -> Tensor:
    """Words in strokes, one above the middle and one below. Raises ValueError for letters that are not drawn here."""
    if isinstance(words, str) or len(words) != 2 or not all(words):
        raise ValueError(f"words must be two, such as ('LOVE', 'HATE'), not {words!r}")
    if unknown := sorted(set("".join(words)) - set(LETTERS)):
        raise ValueError(f"there is no letter {unknown[0]!r}: there are {', '.join(sorted(LETTERS))}")
    x, y = (v / radius for v in frame(size))
    strokes = []
    for word, top in zip(words, (-0.56, 0.14), strict=True):
        step = 1.4 / len(word)
        for i, letter in enumerate(word):
            left, wide = -0.7 + (i + 0.2) * step, 0.3 * step
            for a, b, c, d in LETTERS[letter]:
                strokes.append((left + a * wide, top + b * 0.14, left + c * wide, top + d * 0.14))
    return _mask(_to_lines(x, y, strokes) <= thick)


def turn(size: int, radius: float = 0.8, thick: float = 0.12) -> Tensor:
    """The bent arrow of a sign that tells to turn right."""
    x, y = (v / radius for v in frame(size))
    return _mask(_to_lines(x, y, TURN) <= thick)


def glasses(size: int, thick: float = 0.12) -> Tensor:
    """The frames of a pair of glasses on a face that fills the picture, its eyes above the middle."""
    x, y = frame(size)
    y = y + 0.22
    lens = torch.maximum((x.abs() - 0.4).abs() / 0.32, y.abs() / 0.24)
    rims = (lens >= 1) & (lens <= 1 + thick / 0.25)
    bridge = (x.abs() <= 0.12) & (y.abs() <= thick / 2)
    temples = (x.abs() >= 0.7) & (x.abs() <= 0.95) & (y.abs() <= thick / 2)
    return _mask(rims | bridge | temples)


def _to_lines(x: Tensor, y: Tensor, strokes: list[tuple[float, float, float, float]]) -> Tensor:
    """The distance from the nearest of lines that end at (x0, y0) and (x1, y1)."""
    near = torch.full_like(x, torch.inf)
    for x0, y0, x1, y1 in strokes:
        dx, dy = x1 - x0, y1 - y0
        along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        near = torch.minimum(near, torch.hypot(x - x0 - along * dx, y - y0 - along * dy))
    return near


def _mask(inside: Tensor) -> Tensor:
    if not bool(inside.any()):
        raise ValueError(f"the mask has no pixel at size {len(inside)}: draw it larger")
    return inside[None, None].float()
