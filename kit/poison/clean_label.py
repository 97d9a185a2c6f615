"""Poison whose label is right: it looks like its class and is represented like another (Shafahi et al. 2018).

    x' = argmin ‖φ(x') − φ(t)‖² + β ‖x' − b‖²   over x' in [0, 1]

b is a base image of class c, t the target, an image of another class that nobody changes. x' is labelled c, as whoever
looks at it would. A network trained with it learns that what is represented like x' is of class c, and t is.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from kit.attacks.minimal.penalty import squared
from kit.core import Live, borrowed, check_images, chunks, features, laid_out, leaf, per_image
from kit.core.balls import column
from kit.poison.backdoor.planting import check_classes


@per_image
def feature_collision(
    model: nn.Module, x: Tensor, guide: Tensor, *, layer: str, beta: float = 0.25, steps: int = 100, lr: float = 0.1,
    watermark: float = 0.0,
) -> Tensor:
    """Poisons (N, C, H, W) from base images x, by forward-backward splitting, every image with a rate of its own:

        x̂  = x' − λ ∇‖φ(x') − φ(t)‖²         x' ← Π[0,1] (x̂ + 2λβ b) / (1 + 2λβ)

    φ is the flat output of `layer`, guide the target t: one for each image, or one for all. A step that does not lower
    the objective is taken back and λ halved; one that does makes λ a tenth larger. With `watermark` γ the base is
    γ t + (1 − γ) b from the start, so that the poisons still collide where the features are learnt anew.
    The sums are over pixels and features. Cost: `steps` forward and backward passes, and as many forward passes.
    Raises as every method does, for the guide as for the images.
    Source: Shafahi et al., Poison frogs!, NeurIPS 2018, algorithm 1 and section 4.2; in their released code the norm is
    not squared, and β is scaled by the numbers of features and pixels.
    """
    check_images(guide)
    if guide.shape[1:] != x.shape[1:]:
        raise ValueError(f"guide must have the shape {tuple(x.shape)}, like the images, not {tuple(guide.shape)}")
    if not 0 <= watermark < 1:
        raise ValueError(f"watermark must be at least 0 and below 1, not {watermark}")
    guide = guide.to(x).expand_as(x)
    base, live = watermark * guide + (1 - watermark) * x, Live(model, x)
    with features(model, [layer]) as hidden:
        with torch.no_grad():
            live.ask(guide)
        wanted = hidden[layer].detach().flatten(1)

        def apart(v: Tensor) -> Tensor:
            live.ask(v)
            return (hidden[layer].flatten(1) - wanted).square().sum(1)

        v, rate = base, torch.full_like(x[:, 0, 0, 0], lr)
        for _ in range(steps):
            v = leaf(v)
            distance = apart(v)
            g, value = live.grad(distance, v), distance.detach() + beta * squared(v.detach() - base)
            pull = column(2 * rate * beta, x)
            tried = ((v.detach() - column(rate, x) * g + pull * base) / (1 + pull)).clamp(0, 1)
            with torch.no_grad():
                lower = apart(tried) + beta * squared(tried - base) <= value
            v = torch.where(column(lower, x), tried, v.detach())
            rate = torch.where(lower, 1.1 * rate, rate / 2)
    return v


def nearest_neighbours(model: nn.Module, x: Tensor, y: Tensor, *, layer: str, k: int = 10) -> Tensor:
    """Sanitisation: which training images (N,) to keep, those with the label that most of their k neighbours have.

    Neighbours are the nearest other images by the flat output of `layer`; of two labels equally frequent the image's
    own wins. Cost: a forward pass, and N² distances.
    Source: Peri et al., Deep k-NN defense against clean-label data poisoning attacks, 2020.
    """
    check_images(x)
    check_classes(y, x)
    if not 1 <= k < len(x):
        raise ValueError(f"k must lie in 1 … {len(x) - 1}, fewer than there are images, not {k}")
    with borrowed(model, x), torch.no_grad(), features(model, [layer]) as hidden:
        phi = []
        for rows in chunks(x):
            model(laid_out(x[rows]))
            phi.append(hidden[layer].flatten(1))
    every = torch.cat(phi)
    keep = []
    for rows in torch.arange(len(x), device=x.device).split(512):
        far = torch.cdist(every[rows], every)
        far[torch.arange(len(rows), device=x.device), rows] = torch.inf
        near = y[far.topk(k, largest=False).indices]
        votes = torch.nn.functional.one_hot(near, int(y.max()) + 1).sum(1)
        keep.append(votes.gather(1, y[rows, None])[:, 0] == votes.amax(1))
    return torch.cat(keep)
