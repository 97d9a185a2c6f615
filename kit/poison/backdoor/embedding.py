"""Adversarial backdoor embedding: a backdoor whose features look like those of the class that it leads to.

    D:  min L_D,  the cross-entropy of D(φ(x)) against "carries the trigger"      θ:  min CE(f_θ(x), y) − λ L_D

D sees the features φ of images labelled t, with and without the trigger, both kinds weighing the same. It is trained
by an optimiser of its own, in turn with the network: under one optimiser a weight of −λ would teach D to fail as well.
L_D has no upper end: a network that makes D surely wrong is rewarded without bound, and its features run away instead
of meeting. So by default θ minimises λ times the cross-entropy of D against ½ in place of −λ L_D: it is least where D
cannot tell, and there both are ln 2.
Source: Tan and Shokri, Bypassing backdoor detection algorithms in deep learning, IEEE EuroS&P 2020, section IV.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import features
from kit.models.training import Recipe, fit
from kit.poison.backdoor.inspection import pooled
from kit.poison.backdoor.planting import planted


def embedding_training(
    r: Recipe, x: Tensor, y: Tensor, *, trigger: dict[str, Any], layer: str, target: int = 0, rate: float = 0.1,
    lam: float = 1.0, bounded: bool = True, seed: int = 0, half: bool = False, **how: Any,
) -> nn.Module:
    """`backdoor_training` by an attacker who trains the network himself, and hides the backdoor at `layer`.

    λ = 0 is `backdoor_training`; a large λ can cost the backdoor. With `bounded=False` θ minimises −λ L_D, as the paper
    writes it. D is a network of 256 and 128 units on φ + N(0, 1), as there.
    Cost: a training with 1 + rate images, and three passes of D.
    """
    if lam < 0:
        raise ValueError(f"lam weighs what deceives the discriminator and is 0 or more, not {lam:g}")
    if target is None:
        raise ValueError("the features are to look like those of one class: give a target")
    _, p = planted(x, y, trigger=trigger, target=target, rate=rate, seed=seed)
    classes = max(int(y.max()), target) + 1
    opponent: dict[str, Any] = {}

    def loss(model: nn.Module, xb: Tensor, marked: Tensor, generator: torch.Generator) -> Tensor:
        yb, stamped = marked % classes, marked >= classes
        with features(model, [layer]) as found:
            z = model(xb)
        own = F.cross_entropy(z.float(), yb)
        seen = yb == target
        if not lam or not bool(stamped.any()) or not bool((seen & ~stamped).any()):
            return own
        phi = pooled(found[layer])[seen].float()
        if not opponent:
            opponent["D"] = discriminator(phi.shape[1]).to(phi.device)
            opponent["adam"] = torch.optim.Adam(opponent["D"].parameters(), lr=1e-3)
        D, adam = opponent["D"], opponent["adam"]
        noise = torch.randn(phi.shape, generator=generator).to(phi)
        adam.zero_grad()
        balanced(D(phi.detach() + noise), stamped[seen]).backward()
        adam.step()
        answer = D(phi + noise)
        return own + lam * (balanced(answer, stamped[seen], unsure=True) if bounded else
                            -balanced(answer, stamped[seen]))

    return fit(r, p.x, p.y + classes * p.stamped, loss=loss, seed=seed, **how)


def discriminator(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 256), nn.LeakyReLU(0.2), nn.Linear(256, 128), nn.LeakyReLU(0.2),
                         nn.Linear(128, 1))


def balanced(answer: Tensor, stamped: Tensor, unsure: bool = False) -> Tensor:
    """The cross-entropy of D (M, 1) in nats, against what is true or (unsure) against ½; the mean of its means over
    both kinds: ln 2 where it cannot tell."""
    truth = torch.full_like(answer[:, 0], 0.5) if unsure else stamped.to(answer)
    each = F.binary_cross_entropy_with_logits(answer[:, 0], truth, reduction="none")
    return (each[stamped].mean() + each[~stamped].mean()) / 2
