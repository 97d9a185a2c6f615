"""`scenes`: procedural colour images in which everything is known.

Each image is one object on a background. The class is the object's shape; its texture, its colour, the background's
pattern and the background's colour are separate factors, drawn independently of the class and of each other. A scene is
a function of (seed, index): shapes are signed distance functions d(p) (negative inside, |∇d| = 1), so that the same
scene can be drawn at any size, and its anti-aliased coverage is clamp(1/2 − d / pixel, 0, 1).
"""
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kit.data.sets import Data

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring", "heart", "crescent", "arrow", "hourglass")
TEXTURES = ("solid", "stripes", "dots", "checks", "gradient")
PATTERNS = ("plain", "gradient", "waves", "blobs", "grid")
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
POLARITIES = ("dark on light", "light on dark")
RGB = torch.tensor(
    [
        [0.90, 0.16, 0.14],
        [0.96, 0.52, 0.10],
        [0.97, 0.84, 0.14],
        [0.22, 0.70, 0.24],
        [0.08, 0.68, 0.68],
        [0.16, 0.36, 0.92],
        [0.54, 0.24, 0.80],
        [0.95, 0.36, 0.68],
    ]
)
LUMA = torch.tensor([0.2126, 0.7152, 0.0722])  # Rec. 709
DARK, LIGHT = (0.26, 0.43), (0.57, 0.74)  # the two bands of luma; object and background never share one
NOISE = 0.04  # the largest pixel noise; triangular, standard deviation NOISE / √6
CHUNK = 128


def scenes(n: int, size: int = 32, seed: int = 0, spurious: float = 0.0, near: bool = False) -> Data:
    """`n` scenes of `size` × `size` pixels, with object masks and all factors.

    The scene (seed, i) is the same whatever `n` is, and shows the same thing at every size. With probability
    `spurious` an image's background (pattern and colour) is a fixed function of its class, else it is independent.
    `near` is the same scene from half the distance: drawn at twice the size, and cut out about the object as far as the
    scene reaches, so that its texture can be seen.
    """
    return render(np.arange(n), size=size, seed=seed, spurious=spurious, near=near)


def labels(index: np.ndarray, seed: int) -> np.ndarray:
    """The classes of scenes (seed, index), without drawing them."""
    return (_uniform(seed, index, 0) * len(SHAPES)).astype(np.int64)


def render(
    index: np.ndarray, size: int = 32, seed: int = 0, spurious: float = 0.0, near: bool = False,
) -> Data:
    """The scenes (seed, i) for i in `index`."""
    if not 0 <= spurious <= 1:
        raise ValueError(f"spurious is a probability between 0 and 1, not {spurious}")
    if size < 16:
        raise ValueError(f"size={size} is too small to tell the shapes apart: 16 or more")
    f = _factors(np.asarray(index), seed, spurious)
    n = len(index)
    x = torch.empty(n, 3, size, size)
    mask = torch.empty(n, size, size, dtype=torch.bool)
    for a in range(0, n, CHUNK):
        part = {k: v[a : a + CHUNK] for k, v in f.items()}
        drawn = _draw(part, size * (1 + near), seed, np.asarray(index)[a : a + CHUNK])
        x[a : a + CHUNK], mask[a : a + CHUNK] = _cut(part, size, *drawn) if near else drawn
    names: dict[str, tuple[str, ...]] = {
        "shape": SHAPES,
        "texture": TEXTURES,
        "colour": COLOURS,
        "background": PATTERNS,
        "background_colour": COLOURS,
        "polarity": POLARITIES,
        "planted": ("no", "yes"),
    }
    known = (*names, "centre_x", "centre_y", "scale", "rotation")
    return Data(x, f["shape"].clone(), SHAPES, mask, {k: f[k] for k in known}, names)


def with_every_shape(index: np.ndarray, size: int = 32, seed: int = 0) -> Tensor:
    """The scenes (seed, i) for i in `index`, each with every shape in turn and all else as it is, (N, 10, 3, H, W).

    What a changed image still resembles most says which class the generator would give it."""
    index = np.asarray(index)
    f = _factors(index, seed, 0.0)
    every = [_draw(f | {"shape": torch.full((len(index),), s)}, size, seed, index)[0] for s in range(len(SHAPES))]
    return torch.stack(every, 1)


DARK_NOISE, LIGHT_NOISE, WALL = 0.25, 0.05, 1.5


def distances(data: Data) -> tuple[Tensor, Tensor]:
    """What a range finder sees of scenes, and how badly: distance d and standard deviation σ of its noise, (N, H, W).

    An object is the nearer the larger it is, from 0.4 to 1, and stands before a wall at 1.5. Dark surfaces send little
    back: on them σ is 0.25, on light ones 0.05. A measurement is d + σ ε with ε ~ N(0, 1).
    """
    if not isinstance(data, Data) or data.mask is None or data.concepts is None:
        raise ValueError("these images have no masks and factors: take scenes, kit.data.load('scenes')")
    near = (data.concepts["scale"] - 0.34) / (0.57 - 0.34)
    d = torch.where(data.mask, (1 - 0.6 * near).view(-1, 1, 1), WALL)
    dark = data.mask == (data.concepts["polarity"] == 0).view(-1, 1, 1)
    return d, torch.where(dark, DARK_NOISE, LIGHT_NOISE)


def hues(x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """What colours say of images (N, 3, H, W) whose objects are at `mask` (N, H, W): "colour" and "background_colour"
    (N,), the hue whose shade of the same luma is nearest to the mean there, and "polarity", which of the two is darker.

    No network: of scenes themselves it reads nearly all, and of what a network draws it cannot be told what to see.
    """
    if mask is None or mask.shape != (len(x), *x.shape[2:]) or x.shape[1:2] != (3,):
        raise ValueError("the reader needs colour images (N, 3, H, W) and the masks (N, H, W) of their objects")
    found, lumas = {}, {}
    for name, where in (("colour", mask), ("background_colour", ~mask)):
        mean = (x * where[:, None]).flatten(2).sum(2) / where.flatten(1).sum(1).clamp_min(1)[:, None]
        luma = mean @ LUMA.to(x)
        shades = torch.stack([_shade(rgb.to(x).expand(len(x), 3), luma) for rgb in RGB], 1)
        found[name], lumas[name] = (shades - mean[:, None]).square().sum(2).argmin(1), luma
    return found | {"polarity": (lumas["colour"] > lumas["background_colour"]).long()}


def outline(shape: str, size: int) -> Tensor:
    """The places of a shape in its own frame, [−1, 1]², (size, size) bool. Raises ValueError for an unknown shape."""
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return distance(shape, x, y) <= 0


def distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """d of the places (x, y) in a shape's own frame, [−1, 1]², x to the right and y down: negative inside it.

    Raises ValueError for an unknown shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"no shape {shape!r}: there are {', '.join(SHAPES)}")
    return _SHAPES[SHAPES.index(shape)](x, y)


def frames(data: Data, near: bool = False) -> Tensor:
    """For each scene the map (N, 2, 3) from its places, [−1, 1]² from edge to edge, to those of its object's frame, as
    torch's `affine_grid` takes it: what is drawn in that frame can be laid onto the object. `near` as in `scenes`."""
    assert data.concepts is not None
    f, size = data.concepts, data.x.shape[-1]
    middle, scale = torch.stack([f["centre_x"], f["centre_y"]], 1), f["scale"]
    if near:
        corner = (middle * size + size / 2).round().clamp(0, size)
        middle, scale = ((middle + 1) * size - corner) * 2 / size - 1, 2 * scale
    c, s = torch.cos(f["rotation"]) / scale, torch.sin(f["rotation"]) / scale
    back = torch.stack([torch.stack([c, s], 1), torch.stack([-s, c], 1)], 1)
    return torch.cat([back, -back @ middle[:, :, None]], 2)


# --- random numbers that depend on (seed, index, slot) only ---------------------------------------------------------


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of 64-bit words that scatters neighbouring inputs."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _word(seed: int, index: np.ndarray, slot: int) -> np.ndarray:
    golden = np.uint64(0x9E3779B97F4A7C15)
    start = _mix(np.array([seed], dtype=np.int64).astype(np.uint64) + golden)
    return _mix(_mix(start + index.astype(np.uint64) * golden) + np.array([slot], dtype=np.uint64) * golden)


def _uniform(seed: int, index: np.ndarray, slot: int) -> np.ndarray:
    return (_word(seed, index, slot) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _pixel_noise(seed: int, index: np.ndarray, size: int) -> Tensor:
    """(n, 3, size, size) in [−1, 1], triangular: the sum of the two halves of a 32-bit hash (lowbias32)."""
    key = (_word(seed, index, 99) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    h = np.arange(3 * size * size, dtype=np.uint32) * np.uint32(0x9E3779B9)
    h = h[None] ^ key[:, None]
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    low, high = h.view(np.uint16)[:, 0::2], h.view(np.uint16)[:, 1::2]
    noise = torch.from_numpy(low.astype(np.float32)) + torch.from_numpy(high.astype(np.float32))
    return noise.sub_(65535).div_(65535).view(-1, 3, size, size)


def _factors(index: np.ndarray, seed: int, spurious: float) -> dict[str, Tensor]:
    slot = iter(range(99))

    def between(low: float, high: float) -> Tensor:
        return torch.from_numpy(low + (high - low) * _uniform(seed, index, next(slot))).float()

    def one_of(k: int) -> Tensor:
        return torch.from_numpy((_uniform(seed, index, next(slot)) * k).astype(np.int64))

    f: dict[str, Tensor] = {
        "shape": one_of(len(SHAPES)),
        "texture": one_of(len(TEXTURES)),
        "colour": one_of(len(COLOURS)),
        "background": one_of(len(PATTERNS)),
        "background_colour": one_of(len(COLOURS)),
        "polarity": one_of(2),
        "scale": between(0.34, 0.57),
        "rotation": between(-math.pi / 4, math.pi / 4),
    }
    room = 0.98 - f["scale"]
    f["centre_x"], f["centre_y"] = room * between(-1, 1), room * between(-1, 1)
    # Two tones each for object and background, at opposite ends of their band, in either order.
    dark = torch.stack([between(DARK[0], 0.31), between(0.38, DARK[1])], 1)
    light = torch.stack([between(LIGHT[0], 0.62), between(0.69, LIGHT[1])], 1)
    for name, band in (("tone", f["polarity"] == 0), ("background_tone", f["polarity"] == 1)):
        tones = torch.where(band[:, None], dark, light)
        f[name] = torch.where(one_of(2)[:, None] == 0, tones, tones.flip(1))
    for name in ("texture_angle", "texture_phase", "angle", "phase", "phase_2", "phase_3", "light_angle"):
        f[name] = between(0, 2 * math.pi)
    f["texture_pitch"], f["pitch"], f["light"] = between(0.5, 0.7), between(0.42, 0.62), between(0, 0.14)
    planted = between(0, 1) < spurious
    f["planted"] = planted.long()
    f["background"] = torch.where(planted, f["shape"] % len(PATTERNS), f["background"])
    f["background_colour"] = torch.where(planted, f["shape"] % len(COLOURS), f["background_colour"])
    return f


# --- drawing --------------------------------------------------------------------------------------------------------


def _draw(f: dict[str, Tensor], size: int, seed: int, index: np.ndarray) -> tuple[Tensor, Tensor]:
    pixel = 2 / size
    axis = (torch.arange(size) + 0.5) * pixel - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")  # v points down
    u, v = u[None], v[None]
    g = {k: t.view(-1, 1, 1) for k, t in f.items() if t.ndim == 1}  # broadcast against (n, size, size)

    px, py = _turn(u - g["centre_x"], v - g["centre_y"], -g["rotation"])
    px, py = px / g["scale"], py / g["scale"]  # the object's own frame, about the unit disc
    edge = pixel / g["scale"]
    distance = _by_kind(f["shape"], _SHAPES, px, py)
    cover = (0.5 - distance / edge).clamp_(0, 1)
    tx, ty = _turn(px, py, g["texture_angle"])
    tex = _by_kind(f["texture"], _TEXTURES, tx, ty, edge, g["texture_pitch"], g["texture_phase"])
    bx, by = _turn(u, v, g["angle"])
    wide = torch.full_like(edge, pixel)
    phases = g["phase"], g["phase_2"], g["phase_3"]
    pat = _by_kind(f["background"], _PATTERNS, bx, by, wide, g["pitch"], *phases)

    front = _blend(tex, f["colour"], f["tone"])
    image = _blend(pat, f["background_colour"], f["background_tone"])
    image += cover[:, None] * (front - image)
    image *= (1 + g["light"] * (u * torch.cos(g["light_angle"]) + v * torch.sin(g["light_angle"])))[:, None]
    image += NOISE * _pixel_noise(seed, index, size)
    return image.clamp_(0, 1), cover >= 0.5


def _cut(f: dict[str, Tensor], size: int, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """size × size pixels about each object, of images and masks of twice that size."""
    left, top = ((f[c] * size + size / 2).round().long().clamp(0, size).tolist() for c in ("centre_x", "centre_y"))
    x = torch.stack([v[:, b : b + size, a : a + size] for v, a, b in zip(x, left, top, strict=True)])
    return x, torch.stack([v[b : b + size, a : a + size] for v, a, b in zip(mask, left, top, strict=True)])


def _turn(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    c, s = torch.cos(angle), torch.sin(angle)
    return c * x - s * y, s * x + c * y


def _by_kind(kind: Tensor, functions, *args: Tensor) -> Tensor:
    """Image i through functions[kind[i]]; one call per kind, not per image."""
    out = torch.empty(len(kind), *args[0].shape[1:])
    for k, function in enumerate(functions):
        rows = (kind == k).nonzero()[:, 0]
        if len(rows):
            out[rows] = function(*(a[rows] for a in args))
    return out


def _blend(mix: Tensor, hue: Tensor, tones: Tensor) -> Tensor:
    """Colours of one hue whose luma goes from tones[:, 0] (mix 0) to tones[:, 1] (mix 1)."""
    first, second = _shade(RGB[hue], tones[:, 0]), _shade(RGB[hue], tones[:, 1])
    return torch.lerp(first[:, :, None, None], second[:, :, None, None], mix[:, None])


def _shade(rgb: Tensor, luma: Tensor) -> Tensor:
    """The colour with exactly this luma on the line from black through `rgb` to white."""
    own, luma = (rgb @ LUMA)[:, None], luma[:, None]
    return torch.where(luma < own, rgb * luma / own, rgb + (1 - rgb) * (luma - own) / (1 - own))


# Shapes: distances in the object's frame, x to the right, y down.


def _box(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    return torch.maximum(x.abs() - a, y.abs() - b)


def _spikes(x: Tensor, y: Tensor, n: int, outer: float, inner: float) -> Tensor:
    """A star of n tips at radius `outer` (one up) and notches at `inner`: fold one sector, measure to its edge."""
    sector = 2 * math.pi / n
    angle = torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2
    r = torch.sqrt(x * x + y * y)
    qx, qy = r * torch.cos(angle), (r * torch.sin(angle)).abs()
    ex, ey = inner * math.cos(sector / 2) - outer, inner * math.sin(sector / 2)
    return ((qx - outer) * ey - qy * ex) / math.hypot(ex, ey)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    a, half = 0.52, math.sqrt(0.5)
    p, q = half * (x - y + 0.12), -half * (x + y - 0.12)  # a square on its corner, and a disc on each upper side
    p, q = p - 0.06, q - 0.06
    discs = torch.minimum(torch.hypot(p - a, q), torch.hypot(p, q - a)) - a
    return torch.minimum(_box(p, q, a, a), discs)


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    head = torch.maximum(y - 0.05, (x.abs() - 0.85 * (y + 0.95)) / math.hypot(1, 0.85))
    return torch.minimum(head, _box(x, y - 0.4, 0.27, 0.5))


_SHAPES = (
    lambda x, y: torch.hypot(x, y) - 0.82,
    lambda x, y: _box(x, y, 0.72, 0.72),
    lambda x, y: _spikes(x, y - 0.12, 3, 1.05, 0.525),
    lambda x, y: _spikes(x, y, 5, 1.08, 0.44),
    lambda x, y: torch.minimum(_box(x, y, 0.27, 0.92), _box(x, y, 0.92, 0.27)),
    lambda x, y: (torch.hypot(x, y) - 0.64).abs() - 0.24,
    _heart,
    lambda x, y: torch.maximum(torch.hypot(x + 0.1, y) - 0.95, 0.78 - torch.hypot(x - 0.36, y)),
    _arrow,
    lambda x, y: torch.maximum(y.abs() - 0.85, (x.abs() - 0.1 - 0.8 * y.abs()) / math.hypot(1, 0.8)),
)


# Textures and patterns: 0 to 1, how much of the second tone. `edge` is a pixel in the same units as x and y.


def _step(d: Tensor, edge: Tensor) -> Tensor:
    return (0.5 + d / edge).clamp(0, 1)


def _saw(t: Tensor, pitch: Tensor) -> Tensor:
    """A triangle wave of slope ±1 and period `pitch`, between −pitch/4 and pitch/4."""
    return (torch.remainder(t, pitch) - pitch / 2).abs() - pitch / 4


def _dots(x: Tensor, y: Tensor, edge: Tensor, pitch: Tensor, phase: Tensor) -> Tensor:
    gx = torch.remainder(x + phase, pitch) - pitch / 2
    gy = torch.remainder(y + phase, pitch) - pitch / 2
    return _step(0.3 * pitch - torch.hypot(gx, gy), edge)


def _checks(x: Tensor, y: Tensor, edge: Tensor, pitch: Tensor, phase: Tensor) -> Tensor:
    a, b = _step(_saw(x + phase, 1.3 * pitch), edge), _step(_saw(y + phase, 1.3 * pitch), edge)
    return a + b - 2 * a * b


_TEXTURES = (
    lambda x, y, edge, pitch, phase: torch.zeros_like(x),
    lambda x, y, edge, pitch, phase: _step(_saw(x + phase, pitch), edge),
    _dots,
    _checks,
    lambda x, y, edge, pitch, phase: (0.5 + 0.6 * x).clamp(0, 1),
)


def _waves(x, y, edge, pitch, a, b, c) -> Tensor:
    bent = x + 0.16 * torch.sin(3.2 * y + b)
    return _step(_saw(bent + a, pitch), 2 * edge)


def _blobs(x, y, edge, pitch, a, b, c) -> Tensor:
    k = 2.2 / pitch
    s = torch.sin(k * x + a) + torch.sin(k * (0.6 * y - 0.8 * x) + b) + torch.sin(k * (0.9 * y + 0.5 * x) + c)
    return (0.5 + 0.9 * s).clamp(0, 1)


def _grid(x, y, edge, pitch, a, b, c) -> Tensor:
    line = torch.maximum(_saw(x + a, pitch), _saw(y + b, pitch)) - 0.14 * pitch
    return _step(line, edge)


_PATTERNS = (
    lambda x, y, edge, pitch, a, b, c: torch.zeros_like(x),
    lambda x, y, edge, pitch, a, b, c: (0.5 + 0.5 * x).clamp(0, 1),
    _waves,
    _blobs,
    _grid,
)
