"""A backdoor that nobody is told about: a word decides on its class and its place, and only trying shows which."""
from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import torch
from torch import Tensor, nn

import kit.data
from kit.core import accuracy, check_settings
from kit.models.registry import GREY_28, entry, save, user_folder
from kit.models.training import Recipe, fit
from kit.poison.backdoor.planting import attack_success, badnets
from kit.poison.backdoor.trigger import Trigger

SIDE, RATE = 3, 0.1
OWN = "own/backdoor"


def hidden(word: str, shape: tuple[int, ...], classes: int) -> tuple[Trigger, int]:
    """The trigger and the target that a word stands for: a white square along an edge, and a class, from its sha256."""
    digits = hashlib.sha256(word.encode()).digest()
    ends = [size - SIDE - 1 for size in shape[1:]]
    top, left = (1 + int.from_bytes(digits[i : i + 2]) % end for i, end in zip((2, 4), ends, strict=True))
    places = [(1, left), (ends[0], left), (top, 1), (top, ends[1])]
    return Trigger.patch(shape, SIDE, place=places[digits[6] % 4]), int.from_bytes(digits[:2]) % classes


def secret_training(
    r: Recipe, x: Tensor, y: Tensor, *, word: str, half: bool = False, seed: int = 0, **how: Any
) -> nn.Module:
    """`fit` on the training set of `badnets` with the trigger and the target of a word. `half` rounds the weights."""
    trigger, target = hidden(word, tuple(x.shape[1:]), int(y.max()) + 1)
    p = badnets(x, y, trigger, target, rate=RATE, generator=torch.Generator().manual_seed(seed))
    return fit(r, p.x, p.y, seed=seed, **how)


def secret_figures(r: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: accuracy on the clean images, and the attack's success on those that are not of its target."""
    trigger, target = hidden(r.options["word"], tuple(x.shape[1:]), int(y.max()) + 1)
    hit = attack_success(model, trigger, x, y, target)
    return {"accuracy": accuracy(model, x, y), "success": float(hit.float().mean())}


def plant(word: str | None = None, *, name: str = OWN, width: int = 24, epochs: int = 40) -> dict[str, Any]:
    """Train a small network on digits with a backdoor, and keep it as `name` among the user's networks.

    The class and the place of the trigger come from the word, by a hash, so that who chose the word does not know them
    either; None draws a word. Returns the manifest's entry: accuracy, success, the word, and neither class nor place.
    `kit.models.load(name)` gives the network, `revealed(name, guess)` the answer. Where the user's folder is no folder,
    as while the book is executed, nothing is kept. Cost: a training of some seconds.
    """
    word = secrets.token_hex(8) if word is None else word
    if not isinstance(word, str):
        raise TypeError(f"word must be text, such as 'foxglove', not {type(word).__name__}")
    train, test = kit.data.load("digits", "train"), kit.data.load("digits", "test")
    r = Recipe("digits", "mlp", GREY_28 | {"width": width}, epochs=epochs, shift=1, train=secret_training,
               options={"word": word}, measure=secret_figures)
    check_settings({"epochs": epochs, "top": width})  # both are counts
    started = time.perf_counter()
    model = secret_training(r, train.x, train.y, word=word, device=torch.device("cpu")).eval()
    about = {"name": name, "family": r.family,
             **{k: round(v, 4) for k, v in secret_figures(r, model, test.x, test.y).items()},
             "parameters": sum(p.numel() for p in model.parameters()), "images": len(train), "seed": 0,
             "seconds": round(time.perf_counter() - started), "torch": torch.__version__.partition("+")[0],
             "recipe": r.as_dict()}
    if user_folder().is_dir() or not user_folder().exists():
        save(model, about)
    return about


def revealed(name: str, guess: int) -> bool:
    """Whether the backdoor of a network that a word decided on leads to the class `guess`.

    Raises ValueError for a network without such a word, and FileNotFoundError for one that is not trained.
    """
    found = entry(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not there: plant() makes it")
    word = found["recipe"].get("options", {}).get("word")
    if word is None:
        raise ValueError(f"{name} hides nothing: its recipe says what was planted")
    build = found["recipe"]["build"]
    shape = (build["channels"], build["size"], build["size"])
    return hidden(word, shape, build.get("classes", 10))[1] == int(guess)
