"""What a layer loses: bits where its inputs can be counted, explained variance where they cannot; and its gains."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean square of the features, as a penalty on the decoder's weights


def bits_kept(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """H[function(x)] in bits, x one of the given rows (N, …) with equal probability: what is left of log2 N bits.

    Outputs are one where they are equal to the last digit. Of four fair bits, max pooling keeps H(1/16) = 0.337 and
    average pooling H(Bin(4, ½)) = 2.031.
    """
    _rows(x)
    with torch.no_grad():
        h = function(x).flatten(1)
    _, number = torch.unique(h, dim=0, return_counts=True)
    p = number.double() / len(x)
    return float(-(p * p.log2()).sum())


def gains(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """How much a layer enlarges a small change at most, in l2 and in l∞: the greatest norms of its Jacobian at rows x.

    In l2 the largest singular value, in l∞ the largest sum of absolute entries of a row. Cost: a backward pass for each
    output of each row.
    """
    _rows(x)
    jacobians = [torch.autograd.functional.jacobian(lambda v: function(v[None])[0], row).reshape(-1, row.numel())
                 for row in x]
    J = torch.stack(jacobians)
    return float(torch.linalg.matrix_norm(J, 2).max()), float(J.abs().sum(2).max())


def rank_kept(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The mean rank of the Jacobian at rows x, over the number of inputs: the share of directions that the layer sees.

    Cost: a backward pass for each output of each row.
    """
    _rows(x)
    ranks = [torch.linalg.matrix_rank(
        torch.autograd.functional.jacobian(lambda v: function(v[None])[0], row).reshape(-1, row.numel())) for row in x]
    return float(torch.stack(ranks).double().mean()) / x[0].numel()


def information_lost(features: Sequence[Tensor]) -> list[float]:
    """What each layer loses of the layer before, L numbers for L + 1 sets of features (N, …), the images first.

        lost_l = R²(h_{l−1} → h_{l−1}) − R²(h_l → h_{l−1})

    R² is what a linear decoder, fitted on every other image by ridge regression, explains of the features of the rest.
    The decoder from h_{l−1} to itself is the yardstick: with fewer images than features not even that is perfect. So a
    layer that permutes or rotates its inputs loses exactly nothing, and one that projects Gaussian ones loses the share
    of their variance that it drops. A linear decoder finds less than there is, never more but for chance.
    Raises ValueError for fewer than 8 images.
    """
    if len(features) < 2 or len({len(h) for h in features}) > 1:
        raise ValueError("features are two sets at least, (N, …) of the same N images, not "
                         + (", ".join(str(tuple(h.shape)) for h in features) or "none"))
    if not all(bool(h.isfinite().all()) for h in features):
        raise ValueError("the features hold NaN or infinity: no decoder can be fitted to them")
    if len(features[0]) < 8:
        raise ValueError(f"a decoder cannot be fitted and tested on {len(features[0])} images: 8 at least, better 500")
    flat = [h.flatten(1).double() for h in features]
    return [explained(a, a) - explained(b, a) for a, b in zip(flat, flat[1:], strict=False)]


def _rows(x: Tensor) -> None:
    if x.dim() < 2 or not x.numel() or not x.is_floating_point() or not bool(x.isfinite().all()):
        raise ValueError(f"x holds rows (N, …) of finite floats, one at least, not {x.dtype} {tuple(x.shape)}"
                         + (" with NaN or infinity" if x.is_floating_point() and x.numel() else ""))


def explained(h: Tensor, target: Tensor) -> float:
    """R² on the odd rows of a ridge regression from h (N, d) to `target` (N, e) on the even ones.

    It needs inner products of the rows of h alone, and so is the same for h rotated.
    """
    fit, test = h[::2], h[1::2]
    centre, goal = fit.mean(0), target[::2].mean(0)
    a, b, t = fit - centre, test - centre, target[::2] - goal
    gram = a @ a.T
    ridge = RIDGE * gram.diagonal().mean().clamp_min(torch.finfo(h.dtype).eps)
    weights = torch.linalg.solve(gram + ridge * torch.eye(len(a), dtype=h.dtype, device=h.device), t)
    rest = target[1::2] - goal
    error = (rest - b @ a.T @ weights).square().sum()
    return float(1 - error / rest.square().sum().clamp_min(torch.finfo(h.dtype).tiny))
