"""What a printer can print: a palette of colours, how far a picture is from it, and the picture as it comes out."""
import itertools

import torch
from torch import Tensor

from kit.core import check_images

INK = (0.15, 0.5, 0.85)
FLAT = 1e-12  # under the root, which has no slope at 0


def palette(channels: int = 3) -> Tensor:
    """Three levels a channel, from 0.15 to 0.85: 27 colours, or 3 greys, (K, C). A made printer: a real one is measured
    by photographing what it prints."""
    return torch.tensor(list(itertools.product(INK, repeat=channels)))


def distances(colours: Tensor, inks: Tensor) -> Tensor:
    """‖p − c‖₂ of every pixel's colour p and ink c, (N, K, H, W); 1e-6 where they are the same."""
    check_images(colours)
    if not isinstance(inks, Tensor) or inks.dim() != 2 or inks.shape[1] != colours.shape[1] or not len(inks):
        raise ValueError(f"the inks must be a tensor (K, {colours.shape[1]}), a colour a row, not "
                         f"{tuple(getattr(inks, 'shape', ())) or type(inks).__name__}")
    apart = colours[:, None] - inks.to(colours)[None, :, :, None, None]
    return (apart.square().sum(2) + FLAT).sqrt()


def printability(colours: Tensor, inks: Tensor, mask: Tensor | None = None) -> Tensor:
    """The non-printability score of the colours that are to be printed (N, C, H, W), (N,):

        NPS = Σ_{p in M} min_c ‖p − c‖₂ / |M|,

    the mean distance of a pixel inside the mask from the nearest ink. The source multiplies the distances to all inks;
    with 30 of them the product is of the order 1e-7 and pulls nowhere. The smallest factor is what makes it zero.
    It is to be asked about the colour that is printed, not about the perturbation, and inside the mask alone.
    Finite, with a finite gradient, also where a pixel has an ink's exact colour.
    Source: Sharif et al., Accessorize to a crime, CCS 2016 (its NPS).
    """
    nearest = distances(colours, inks).amin(1, keepdim=True)
    inside = torch.ones_like(nearest[:1]) if mask is None else mask.to(colours)
    if inside.dim() != 4 or inside.shape[1:] != nearest.shape[1:] or len(inside) not in (1, len(nearest)):
        raise ValueError(f"the mask of the colours must have the shape (1 or {len(nearest)}, "
                         f"{', '.join(map(str, nearest.shape[1:]))}), not {tuple(inside.shape)}")
    if not bool((inside > 0).flatten(1).any(1).all()):
        raise ValueError("the mask has no pixel in a picture whose colours are to be printed: draw it larger, or move "
                         "its frame into the picture")
    return (inside * nearest).flatten(1).sum(1) / inside.expand_as(nearest).flatten(1).sum(1)


def printed(colours: Tensor, inks: Tensor) -> Tensor:
    """Every pixel in the nearest ink, (N, C, H, W)."""
    nearest = distances(colours, inks).argmin(1)
    return inks.to(colours)[nearest].permute(0, 3, 1, 2).contiguous()
