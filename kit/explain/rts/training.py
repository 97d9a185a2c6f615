"""The recipes' training of the decoders that are shipped, and the figures of their manifest: see `kit.explain.rts`."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import kit.data
import kit.models
from kit.core import accuracy, generator
from kit.explain.metrics import blurred, energy_inside, pointing_game
from kit.explain.rts.explainer import RTS
from kit.explain.rts.objective import asked, masked
from kit.models import Recipe


def rts_training(
    r: Recipe, x: Tensor, y: Tensor, *, classifier: str, device: torch.device, half: bool = True, **how: Any,
) -> nn.Module:
    """The decoder of an `RTS` of the catalogue's network `classifier`. Cost: that of `fit`.

    `half` says that its weights are stored in half precision; it is trained in single.
    """
    rts = RTS(kit.models.load(classifier, device), layers=list(r.build["maps"]))
    rts.fit(x, y, epochs=r.epochs, batch=r.batch, lr=r.lr, weight_decay=r.weight_decay, shift=r.shift, flip=r.flip,
            **how)
    return rts.fitted()


def rts_figures(r: Recipe, decoder: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: how often the selector is right on a class that is there and on one that is not (accuracy).

    Of the first 500 images: how many the classifier labels y when only what the mask keeps is left, and when only that
    is gone; the mean of the masks, also for a class that is not there; and where the object is known, how many masks
    have their highest pixel on it once they are blurred (flat where they are 1, they have no highest else), and the
    share of them that lies on it.
    """
    few = slice(0, 500)
    x, y = x[few], y[few]
    rts = RTS(kit.models.load(r.options["classifier"]), layers=list(decoder.maps))
    rts.decoder = decoder
    target, _ = asked(y, len(decoder.selector), generator(), fakes=1.0)
    with torch.no_grad():
        there, other = rts.see(x, y), rts.see(x, target)
        kept, lost = (masked(x, m, generator()).clamp(0, 1) for m in (there.mask, 1 - there.mask))
    figures = {
        "accuracy": float(torch.cat([there.exists > 0, other.exists < 0]).float().mean()),
        "kept": accuracy(rts.model, kept, y), "lost": accuracy(rts.model, lost, y),
        "mask": float(there.mask.mean()), "mask_of_another": float(other.mask.mean()),
    }
    truth = kit.data.load(r.data, "test").mask
    if truth is not None:
        blurry = blurred(there.mask[:, None], 7)[:, 0]
        figures["pointing"] = float(pointing_game(blurry, truth[few]).float().mean())
        figures["energy_inside"] = float(energy_inside(there.mask, truth[few]).mean())
    return figures
