"""Attacks that see the label alone: the nearest image that the model calls something else, by at most `max_queries`.

    x' = argmin ‖x' − x‖   subject to   label(x') ≠ y   (or = target)   and   x' ∈ [0, 1]

    model         images (N, C, H, W) in [0, 1] → (N, K); only the place of each row's largest entry is looked at
    x, y          images and their labels (N,)           target       labels (N,) to reach, or None
    start         images to begin from that reach the goal: (N or 1, C, H, W), or several for each (N or 1, S, C, H, W),
                  such as images of the target class, without which a targeted attack cannot begin; None: noise
    tries         how many blends of x and noise are asked about until one is wrong
    max_queries   answers that may be asked for, per image
    generator     where random numbers come from         trace        kit.core.Progress(x): what was reached by when

    walks         along the boundary: Boundary by random steps, HopSkipJump along its normal, which labels give
    rays          from x: OPT and Sign-OPT turn a direction until the boundary is near

An image that reaches its goal as it is comes back as it was, for one query; so does one for which no start is found.
A point on the boundary could fall back by rounding, so the last query asks for what is returned, a thousandth further
out. Each raises ValueError or TypeError for images, labels and numbers that make no sense.
"""
from kit.attacks.decision.labels import LabelOnly
from kit.attacks.decision.rays import opt_attack, sign_opt
from kit.attacks.decision.walks import boundary, hopskipjump

__all__ = ["LabelOnly", "boundary", "hopskipjump", "opt_attack", "sign_opt"]
