"""Losses of logits z (N, K) and labels y (N,), of shape (N,). All are for the attacker to maximise.

Each is unchanged when a constant is added to all logits of an image. A targeted attack maximises `-loss(z, target)`.
"""
import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """−log softmax(z)_y, in nats."""
    return F.cross_entropy(z, y, reduction="none")


def margin(z: Tensor, y: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y: positive exactly when the image is misclassified."""
    z_y = z.gather(1, y[:, None])
    others = z.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - z_y[:, 0]


def cw(z: Tensor, y: Tensor, kappa: float = 0.0) -> Tensor:
    """min(margin, κ): Carlini and Wagner's f₆ with its sign turned; it stops growing at confidence κ."""
    return margin(z, y).clamp(max=kappa)


def dlr(z: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, section 4.2), unchanged also when all logits are scaled.

    Untargeted: (max_{j≠y} z_j − z_y) / (z_π1 − z_π3), π the order of falling logits; needs K ≥ 3.
    Targeted:   (z_t − z_y) / (z_π1 − (z_π3 + z_π4)/2), for the attacker to maximise as it stands; needs K ≥ 4.
    """
    needed = 3 if target is None else 4
    if z.shape[1] < needed:
        raise ValueError(f"the DLR loss needs at least {needed} classes, the model has {z.shape[1]}: use loss=margin")
    top = z.topk(needed, dim=1).values
    if target is None:
        return margin(z, y) / (top[:, 0] - top[:, 2] + 1e-12)
    gap = z.gather(1, target[:, None])[:, 0] - z.gather(1, y[:, None])[:, 0]
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
