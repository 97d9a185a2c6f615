"""Picture files: which files are pictures, and how one is read."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = {
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
}
MARGIN = 256 / 224  # the short side before the central square is cut, over the square's


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def decode(files: Sequence[Path], size: int | None = None, grey: bool = False, margin: float = MARGIN) -> Tensor:
    """Pictures → (N, C, H, W) float32 in [0, 1], as a viewer shows them: turned as EXIF says; the first of many frames.

    With `size` the short side becomes margin · size and the central size × size is cut out; without it all must be of
    one size. 16-bit grey keeps its depth. Raises ValueError for what cannot be read, and for grey pictures of 32 bits,
    of which no one knows what is white.
    """
    x = torch.empty(0)
    for i, path in enumerate(files):
        image = _read(path, size, grey, margin)
        if i == 0:
            x = torch.empty(len(files), *image.shape)
        if image.shape != x.shape[1:]:
            raise ValueError(f"{path} is {image.shape[2]}×{image.shape[1]} and {files[0]} is {x.shape[3]}×"
                             f"{x.shape[2]}: give size=, and all are resized and cropped to it")
        x[i] = image
    return x


def _read(path: Path, size: int | None, grey: bool, margin: float) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            depth = _white(picture)
            image = ImageOps.exif_transpose(picture)
            if depth == 255:
                image = image.convert("L" if grey else "RGB")
            else:
                image = Image.fromarray(np.asarray(image, dtype=np.float32) * (255 / depth))
            if size is not None:
                image = _centre(image, size, margin)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ValueError(f"{path} is not a picture that can be read ({why}): replace it or delete it") from None
    pixels = torch.from_numpy(np.array(image)).float().div_(255)
    if pixels.ndim == 3:
        return pixels.permute(2, 0, 1)
    return pixels.clamp_(0, 1).expand(1 if grey else 3, -1, -1)


def _white(picture) -> int:
    """The number that stands for white. Pillow reads all but grey of 16 bits and more as 8 bits a channel."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        return 65535
    if picture.mode in ("I", "F"):
        raise ValueError("grey of 32 bits, in which white is not defined; save it with 8 or 16 bits")
    return 255


def _centre(image, size: int, margin: float):
    """resize to (margin · size) on the short side, then cut the central size × size: only that part is computed."""
    from PIL import Image

    k = size * margin / min(image.size)
    box = []
    for side in image.size:
        resized = max(size, round(side * k))
        first = (resized - size) // 2
        box.append((first * side / resized, (first + size) * side / resized))
    (left, right), (top, bottom) = box
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
