"""How the book's networks are trained: cross-entropy, AdamW, one cycle of the learning rate; batch norm folded."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.data
from kit.core import accuracy, fold_batch_norm
from kit.core import device as pick_device
from kit.models.registry import COLOUR, RECIPES, Recipe, build, imported, recipe

Progress = Callable[[int, int, float], None]
Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def train(
    name: str,
    *,
    device: str = "auto",
    seed: int = 0,
    epochs: int | None = None,
    n: int | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a network by its recipe; returns it (folded, in eval mode, on the CPU) and its manifest entry.

    `epochs` and `n` (training images) replace the recipe's, for a quick try. `progress(step, steps, loss)` is called
    after every step. The same seed gives the same weights on one machine with one number of threads, and the same
    accuracy (± 1 point) elsewhere. The ambient random state is left as it was. `save` stores the result.
    """
    r = recipe(name)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs={epochs}: at least 1 is needed to train")
    if epochs is not None:
        r = replace(r, epochs=epochs)
    data = kit.data.load(r.data, "train", n=r.images if n is None else n, seed=seed)
    where = pick_device(device)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        trainer = imported(r.train or fit)
        model = trainer(r, data.x, data.y, device=where, seed=seed, progress=progress, **r.options)
    model = fold_batch_norm(model.eval().cpu(), data.x[:2])
    if r.options.get("half"):  # stored so too: what is measured is what is loaded
        model = model.half().float()
    test = kit.data.load(r.data, "test")
    figures = imported(r.measure or clean_accuracy)(r, model, test.x, test.y)
    entry = {
        "name": name,
        "family": r.family,
        **{k: round(v, 4) for k, v in figures.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": len(data),
        "seed": seed,
        "seconds": round(time.perf_counter() - started),
        "torch": torch.__version__.partition("+")[0],
        "recipe": r.as_dict(),
    }
    return model, entry


def clean_accuracy(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """What the manifest records where the recipe names nothing else."""
    return {"accuracy": accuracy(model, x, y)}


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, draws: torch.Generator) -> Tensor:
    return F.cross_entropy(model(x).float(), y)


def fit(
    r: Recipe, x: Tensor, y: Tensor, *, device: torch.device, seed: int = 0, progress: Progress | None = None,
    loss: Loss = cross_entropy, momentum: float | None = None, cutout: int = 0, half: bool = False,
) -> nn.Module:
    """min over θ of E[loss(f_θ, t(x), y)], t a random translation and mirroring where the recipe says so.

    The loss of a batch may draw random numbers from the generator that it is given: adversarial training perturbs the
    images there. AdamW, or SGD with Nesterov's `momentum` where one is given; the learning rate rises to `lr` over 30 %
    of the steps and falls to zero along a cosine. `cutout` blanks a square of that side in every image; `half`
    multiplies in bfloat16, twice as fast on processors that know it (and `train` rounds the weights to half precision).
    Cost: `epochs` times the loss's forward and backward passes over x.
    """
    torch.manual_seed(seed)
    model = build(r, norm=True).to(device).to(memory_format=torch.channels_last)
    draws = torch.Generator().manual_seed(seed)
    batch = min(r.batch, len(x))
    per_epoch = len(x) // batch
    weights = model.parameters()
    optimiser: torch.optim.Optimizer = (
        torch.optim.AdamW(weights, lr=r.lr, weight_decay=r.weight_decay) if momentum is None
        else torch.optim.SGD(weights, lr=r.lr, weight_decay=r.weight_decay, momentum=momentum, nesterov=True))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, r.lr, total_steps=max(2, r.epochs * per_epoch), cycle_momentum=momentum is None)
    for epoch in range(r.epochs):
        order = torch.randperm(len(x), generator=draws)
        for i in range(per_epoch):
            rows = order[i * batch : (i + 1) * batch]
            xb = blank(augment(x[rows], r.shift, r.flip, draws), cutout, draws)
            xb = xb.to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                value = loss(model, xb, y[rows].to(device), draws)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(epoch * per_epoch + i + 1, r.epochs * per_epoch, value.item())
    return model


def augment(x: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image translated by up to `shift` pixels both ways (its edge repeated), and mirrored half the time."""
    n, _, h, w = x.shape
    if shift:
        x = F.pad(x, [shift] * 4, mode="replicate")
        top, left = torch.randint(0, 2 * shift + 1, (2, n), generator=generator)
        rows, columns = top[:, None] + torch.arange(h), left[:, None] + torch.arange(w)
        x = x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


def blank(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Each image with a mid-grey square of `side` pixels at a random place within it; 0 changes nothing."""
    if not side:
        return x
    n, _, h, w = x.shape
    top, left = (torch.randint(0, size - side + 1, (n, 1), generator=generator) for size in (h, w))
    rows, columns = torch.arange(h), torch.arange(w)
    inside = ((rows >= top) & (rows < top + side))[:, None, :, None] & (
        (columns >= left) & (columns < left + side))[:, None, None, :]
    return x.masked_fill(inside, 0.5)


# --- networks that have learnt the wrong thing, on purpose ----------------------------------------------------------

PLANTED = 0.95  # the share of training images whose background gives the class away


def fit_spurious(r: Recipe, x: Tensor, y: Tensor, *, seed: int = 0, **options: Any) -> nn.Module:
    """As `fit`, on as many scenes whose background is, with probability 0.95, a function of the class.

    A network that looks at the background is right on 95 % of these, so that an honest explanation of it points there.
    """
    data = kit.data.load("scenes", "train", n=len(x), seed=seed, spurious=PLANTED)
    return fit(r, data.x, data.y, seed=seed, **options)


def fit_shuffled(r: Recipe, x: Tensor, y: Tensor, *, seed: int = 0, **options: Any) -> nn.Module:
    """As `fit`, with the labels permuted among the images: what the network knows, it knows by heart."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return fit(r, x, y[order], seed=seed, **options)


RECIPES["spurious/resnet"] = Recipe("scenes", "resnet", COLOUR, images=3600, epochs=6, train=fit_spurious)
RECIPES["shuffled/resnet"] = Recipe(
    "scenes", "resnet", COLOUR, images=512, epochs=40, weight_decay=0.0, train=fit_shuffled)
