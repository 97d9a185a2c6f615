"""A larger training set instead of another loss: images made once, by an attack or by a generator, beside the given."""
from typing import Any

import torch
from torch import Tensor, nn

import kit.models
from kit.attacks import pgd
from kit.defend.adversarial_training.inner import check
from kit.models import Recipe, fit


def adversarial_augmentation(
    r: Recipe, x: Tensor, y: Tensor, *, source: str, eps: float = 8 / 255, steps: int = 10, **how: Any
) -> nn.Module:
    """Plain training on the images and on what `pgd` made of them, once, against the network `source`.

    Those images are fixed: the network can learn them by heart, and whoever attacks the network that comes out finds
    others. What min-max training adds is that it makes them again at every step.
    Cost: two steps of training; beforehand `steps` + 1 forward and `steps` backward passes of `source`.
    Source: Szegedy et al., Intriguing properties of neural networks, ICLR 2014, section 4.
    """
    check(eps=eps, steps=steps)
    device = how["device"]
    model = kit.models.load(source, device)
    made = pgd(model, x.to(device), y.to(device), eps=eps, steps=steps).to(x.device)
    return fit(r, torch.cat([x, made]), torch.cat([y, y]), **how)


def generated_augmentation(
    r: Recipe, x: Tensor, y: Tensor, *, copies: int = 1, rank: int = 24, **how: Any
) -> nn.Module:
    """Plain training on the images and on `copies` times as many that a generator made of their classes.

    The generator is the plainest there is, `sampled`. Cost: 1 + copies steps of training.
    """
    check(copies=copies, top=rank)
    generator = torch.Generator().manual_seed(how.get("seed", 0))
    label = y.repeat(copies)
    return fit(r, torch.cat([x, sampled(x, y, label, rank, generator)]), torch.cat([y, label]), **how)


def sampled(x: Tensor, y: Tensor, label: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """New images of the classes `label`: normal in the first `rank` principal components of each class, cut to [0, 1].

    Source: Tipping and Bishop, Probabilistic principal component analysis, 1999, without the noise.
    """
    made = x.new_empty(len(label), *x.shape[1:])
    for k in label.unique().tolist():
        own, wanted = x[y == k].flatten(1), label == k
        mean = own.mean(0)
        _, s, axes = torch.linalg.svd(own - mean, full_matrices=False)
        s, axes = s[:rank], axes[:rank]
        z = torch.randn(int(wanted.sum()), len(s), generator=generator) * s / max(len(own) - 1, 1) ** 0.5
        made[wanted] = (mean + z.to(x) @ axes).clamp(0, 1).view(-1, *x.shape[1:])
    return made
