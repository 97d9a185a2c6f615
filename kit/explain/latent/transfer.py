"""Attributes that move from one image to another: an autoencoder whose code has a group for each labelled attribute.

    min  reconstruction + own + cycle − adversary        over encoder and decoder
    own        each attribute is read off its own group
    adversary  and off no other: who tries to is trained to succeed, and the encoder to make it fail
    cycle      images drawn from exchanged groups are read so, and exchanging them back gives the first image again

Source: Zhang et al., "Multi-attribute transfer via disentangled representation" (AAAI 2019), as far as its abstract
goes: the groups, their exchange, and a classifier. The other terms and all weights are ours; there is no GAN.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.data
from kit.core.checks import check_fits, check_images
from kit.data.scenes import hues
from kit.data.sets import Data
from kit.explain.latent.moves import check_coder, swap
from kit.models.training import Recipe, fit


class Reverse(torch.autograd.Function):
    """The identity, whose gradient is turned round: who stands behind it learns, who stands before it unlearns."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


def transfer(model: Any, x: Tensor, donor: Tensor, name: str) -> Tensor:
    """The images x (N, C, H, W), drawn again with the attribute `name` of the donors, row by row.

    `model` is an `Attributes` network. Cost: two passes of its encoder and one of its decoder.
    """
    check_coder(model, "groups", "encode", "decode")
    if not isinstance(name, str) or name not in model.groups:
        raise ValueError(f"no attribute {name!r}: the network has {', '.join(model.groups)}")
    for images in (x, donor):
        check_images(images)
        check_fits(model, images)
    if x.shape != donor.shape:
        raise ValueError(f"each image has one donor of its shape: {tuple(x.shape)} is not {tuple(donor.shape)}")
    with torch.no_grad():
        return model.decode(swap(model.encode(x), model.encode(donor), model.groups[name])[0])


def transfer_loss(model: Any, x: Tensor, labels: dict[str, Tensor], *, lam: float, name: str, order: Tensor) -> Tensor:
    """All four terms for images x, their attributes, and one exchange of the group `name` with x[order]. Summed over
    pixels; `lam` weighs the readings."""
    h = model.encode(x)
    loss = _squared(model.decode(h), x)
    for attribute, label in labels.items():
        mine, others = model.parts(h, attribute)
        loss = loss + lam * F.cross_entropy(model.own[attribute](mine), label)
        loss = loss + lam * F.cross_entropy(model.other[attribute](Reverse.apply(others)), label)
    moved, _ = swap(h, h[order], model.groups[name])
    again = model.encode(model.decode(moved))
    for attribute, label in labels.items():
        told = label[order] if attribute == name else label
        loss = loss + lam * F.cross_entropy(model.own[attribute](model.parts(again, attribute)[0]), told)
    back, _ = swap(again, h, model.groups[name])
    return loss + _squared(model.decode(back), x)


def transfer_training(
    r: Recipe, x: Tensor, y: Tensor, *, size: int = 16, lam: float = 1.5, half: bool = False, seed: int = 0, **how: Any
) -> nn.Module:
    """The network of the chapter, on `len(x)` scenes of `size` × `size`, seen from near, and their attributes.

    Cost: a step is three passes of the encoder and three of the decoder.
    """
    names = list(r.build["labels"])
    data = kit.data.load("scenes", "train", n=len(x), seed=seed, size=size, near=True)
    assert data.concepts is not None
    v = torch.stack([data.concepts[n] for n in names], 1).float()

    def loss(model: nn.Module, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
        labels = {n: yb[:, k].long() for k, n in enumerate(names)}
        chosen = names[int(torch.randint(len(names), (), generator=generator))]
        order = torch.randperm(len(xb), generator=generator).to(xb.device)
        return transfer_loss(model, xb, labels, lam=lam, name=chosen, order=order)

    return fit(r, data.x, v, loss=loss, seed=seed, **how)


def transfer_figures(r: Recipe, network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: on test scenes, how often the reader sees the donor's value in the exchanged attribute
    ("accuracy") and the image's own in the others, and the squared error of a reconstruction in pixels."""
    data = kit.data.load("scenes", "test", n=len(x), size=r.options.get("size", 16), near=True)
    moved, stayed = moved_and_stayed(network, data)
    with torch.no_grad():
        error = (network(data.x) - data.x).square().mean()
    return {"accuracy": float(moved.float().mean()), "others": float(stayed.float().mean()), "mse": float(error)}


def moved_and_stayed(network: Any, data: Data) -> tuple[Tensor, Tensor]:
    """For scenes, each with its successor as donor: does the reader of `kit.data.scenes.hues` find the donor's value in
    the attribute that was exchanged (N, A), and the image's own in the others, mean over them (N, A)?"""
    assert data.concepts is not None
    order = (torch.arange(len(data)) + 1) % len(data)
    moved, stayed = [], []
    for name in network.groups:
        found = hues(transfer(network, data.x, data.x[order], name), data.mask)
        moved.append(found[name] == data.concepts[name][order])
        others = [(found[n] == data.concepts[n]).float() for n in network.groups if n != name]
        stayed.append(torch.stack(others).mean(0))
    return torch.stack(moved, 1), torch.stack(stayed, 1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).sum(1).mean()
