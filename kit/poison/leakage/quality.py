"""How near a reconstruction is: matched to the right image of its batch first, then PSNR and SSIM."""
from __future__ import annotations

import torch
from torch import Tensor

from kit.report.intervals import as_array


def matched(found: Tensor, x: Tensor, *, batch: int = 1) -> Tensor:
    """`found` (N, C, H, W) in the order of x: within each client's batch the assignment of least squared error.

    A gradient is a mean over a batch, which has no order.
    """
    from scipy.optimize import linear_sum_assignment

    if (not isinstance(found, Tensor) or not isinstance(x, Tensor) or found.shape != x.shape or batch < 1
            or len(x) % batch):
        raise ValueError(f"both must have the same shape, of a multiple of batch={batch} images: "
                         f"not {_shape(found)} and {_shape(x)}")
    rows = []
    for first in range(0, len(x), batch):
        part = slice(first, first + batch)
        cost = torch.cdist(x[part].flatten(1).double(), found[part].flatten(1).double()).square()
        rows.append(first + torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1]))
    return found[torch.cat(rows).to(found.device)]


def psnr(found: Tensor, x: Tensor) -> Tensor:
    """−10 log₁₀ of the mean squared error, in dB, (N,), by scikit-image; infinite for the image itself."""
    from skimage.metrics import peak_signal_noise_ratio as ratio

    _alike(found, x)
    pairs = zip(as_array(x.double()), as_array(found.double()), strict=True)
    return torch.tensor([float("inf") if (a == b).all() else ratio(a, b, data_range=1.0) for a, b in pairs])


def ssim(found: Tensor, x: Tensor) -> Tensor:
    """Structural similarity, 1 for the image itself, (N,), by scikit-image with windows of 7 × 7."""
    from skimage.metrics import structural_similarity as similarity

    _alike(found, x)
    if min(x.shape[2:]) < 7:
        raise ValueError(f"windows of 7 × 7 do not fit into images of {x.shape[2]} × {x.shape[3]}: use psnr")
    pairs = zip(as_array(x.double()), as_array(found.double()), strict=True)
    return torch.tensor([similarity(a, b, channel_axis=0, data_range=1.0) for a, b in pairs])


def _alike(found: Tensor, x: Tensor) -> None:
    if not isinstance(found, Tensor) or not isinstance(x, Tensor) or found.shape != x.shape or x.dim() != 4:
        raise ValueError(f"both must be images of the same shape (N, C, H, W), not {_shape(found)} and {_shape(x)}")


def _shape(v: object) -> object:
    return tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
