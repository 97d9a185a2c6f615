"""The trained networks by name: how each was made, where its weights are, and how to load it.

Weights are looked for in the package (`weights/` and its `manifest.json`), then among those that this user trained, in
`KIT_MODELS` (`~/.cache/kit/models` where it is unset). What the user trained wins over what is shipped: whoever
retrains a network wants to work with the result; deleting the file brings the shipped one back.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from kit.core import device as pick_device
from kit.models.families import FAMILIES
from kit.models.imagenet import imagenet
from kit.models.purifiers import PURIFIERS

SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained. `build` are the arguments of its family.

    `train(recipe, x, y, *, device, seed, progress, **options) -> Module` is `kit.models.training.fit` where it is None,
    and `measure(recipe, model, x, y) -> dict` says what the manifest records of it on the test images, its "accuracy"
    among it; None is `kit.models.training.clean_accuracy`. Either is a function, or "module:name" for what is imported
    only when it is needed: a network that is trained by an attack is listed and loaded without `kit.defend`.
    """

    data: str
    family: str
    build: dict[str, Any] = field(default_factory=dict)
    images: int | None = None  # of the training split; None is all
    epochs: int = 14
    batch: int = 64
    lr: float = 4e-3
    weight_decay: float = 1e-2
    shift: int = 0  # random translations by up to this many pixels
    flip: bool = False  # random left-right mirroring
    train: Callable[..., nn.Module] | str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # the settings of `train`
    measure: Callable[..., dict[str, float]] | str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the manifest, where what a recipe does not use is left out."""
        values = asdict(self) | {"train": _dotted(self.train) or "fit", "measure": _dotted(self.measure)}
        return {k: v for k, v in values.items() if v or k not in ("options", "measure")}


def _dotted(function: Callable | str | None) -> str | None:
    if function is None or isinstance(function, str):
        return function and function.replace(":", ".")
    return f"{function.__module__}.{function.__qualname__}"


def imported(function: Callable | str) -> Callable:
    """The function itself, or the one that "module:name" says."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)


GREY = {"channels": 1, "size": 28, "mean": (0.5,), "std": (0.5,)}
COLOUR = {"channels": 3, "size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
CIFAR: dict[str, Any] = {"epochs": 10, "batch": 128, "shift": 2, "flip": True}

RECIPES: dict[str, Recipe] = {
    "digits/cnn7": Recipe("digits", "cnn7", GREY, epochs=40, shift=1),
    "digits/mlp": Recipe("digits", "mlp", GREY, epochs=60, shift=1),
    "scenes/vgg": Recipe("scenes", "vgg", COLOUR, images=3600, epochs=10, shift=1, flip=True),
    "scenes/resnet": Recipe("scenes", "resnet", COLOUR, images=3600, epochs=10, shift=1, flip=True),
    "scenes/densenet": Recipe("scenes", "densenet", COLOUR, images=3600, epochs=10, shift=1, flip=True),
    "scenes/inception": Recipe("scenes", "inception", COLOUR, images=3600, epochs=10, shift=1, flip=True),
    "scenes/mobilenet": Recipe("scenes", "mobilenet", COLOUR, images=2400, epochs=12, shift=1, flip=True),
    "mnist/cnn7": Recipe("mnist", "cnn7", GREY, epochs=4, batch=128, shift=1),
    "svhn/cnn7": Recipe("svhn", "cnn7", COLOUR | {"width": 20}, epochs=15, batch=128, shift=2),
    # small and short enough for two CPU cores; the shipped weights saw CIFAR-10 from JPEG
    "cifar10/vgg": Recipe("cifar10", "vgg", COLOUR | {"width": 20}, **CIFAR),
    "cifar10/resnet": Recipe("cifar10", "resnet", COLOUR | {"width": 20}, **CIFAR),
    "cifar10/densenet": Recipe("cifar10", "densenet", COLOUR | {"width": 16}, **CIFAR | {"epochs": 15}),
    "cifar10/inception": Recipe("cifar10", "inception", COLOUR | {"width": 24}, **CIFAR),
    "cifar10/densenet19": Recipe(
        "cifar10", "densenet", COLOUR | {"width": 32, "depth": 5}, epochs=22, batch=128, lr=0.1, weight_decay=5e-4,
        shift=3, flip=True, options={"momentum": 0.9, "cutout": 8, "half": True}),
    "cifar10/mobilenet": Recipe("cifar10", "mobilenet", COLOUR | {"width": 16}, **CIFAR),
}

SCENES: dict[str, Any] = {"images": 6000, "epochs": 12, "shift": 1, "flip": True}
AT, PURIFY = "kit.defend.adversarial_training:", "kit.defend.purify:"
NOISY = "kit.defend.smoothing:"
RECIPES |= {
    # Defended victims, trained in `kit.defend`. In the thesis Inc-v3_ens3, Inc-v3_ens4 and IncRes-v2_adv stand here;
    # the construction is theirs, the families are ours. `at` is the min-max training, which those are not.
    "ens3/inception": Recipe(
        "scenes", "inception", COLOUR, **SCENES, train=AT + "ensemble_adversarial_training",
        options={"static": ["scenes/inception", "scenes/resnet", "scenes/densenet"], "eps": 16 / 255},
        measure=AT + "robust_accuracy"),
    "ens4/inception": Recipe(
        "scenes", "inception", COLOUR, **SCENES, train=AT + "ensemble_adversarial_training",
        options={"static": ["scenes/inception", "scenes/resnet", "scenes/densenet", "scenes/vgg"], "eps": 16 / 255},
        measure=AT + "robust_accuracy"),
    "adv/resnet": Recipe(
        "scenes", "resnet", COLOUR, **SCENES, train=AT + "single_step_training",
        options={"eps": 16 / 255, "ramp": 0.5},
        measure=AT + "robust_accuracy"),
    "at/resnet": Recipe(
        "scenes", "resnet", COLOUR, **SCENES, train=AT + "adversarial_training",
        options={"eps": 8 / 255, "steps": 3, "ramp": 0.5}, measure=AT + "robust_accuracy"),
    "noisy/inception": Recipe(
        "scenes", "inception", COLOUR, **SCENES, train=NOISY + "noisy_training", options={"sigma": 0.25},
        measure=NOISY + "smoothed_figures"),
    "hgd/scenes": Recipe(
        "scenes", "unet", images=6000, epochs=6, shift=1, flip=True, train=PURIFY + "denoiser_training",
        options={"guide": "scenes/inception", "sources": ["scenes/inception", "scenes/resnet", "scenes/vgg"]},
        measure=PURIFY + "denoiser_figures"),
    "comdefend/scenes": Recipe(
        "scenes", "codec", images=4800, epochs=8, batch=32, lr=3e-3, train=PURIFY + "codec_training",
        options={"noise": 8.0}, measure=PURIFY + "codec_figures"),
}


def names() -> list[str]:
    """Every network that has a recipe. `load` also takes `imagenet/<name>`: efficientnet_lite0, or torchvision's."""
    return list(RECIPES)


def user_folder() -> Path:
    """`KIT_MODELS`, or `~/.cache/kit/models`."""
    return Path(os.environ.get("KIT_MODELS") or Path.home() / ".cache" / "kit" / "models").expanduser()


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"no network {name!r}: there are {', '.join(RECIPES)}, and imagenet/<torchvision's name>")
    return RECIPES[name]


def build(name: str | Recipe, norm: bool = False) -> nn.Module:
    """The network of a recipe with fresh weights; with `norm=False` as it is shipped, batch norm folded away."""
    r = recipe(name) if isinstance(name, str) else name
    return {**FAMILIES, **PURIFIERS}[r.family](norm=norm, **r.build)


def load(name: str, device: str | torch.device | None = None) -> nn.Module:
    """A trained network in eval mode: images (N, C, H, W) in [0, 1] → logits (N, K). Its first layer normalises.

    The purifiers (`hgd/…`, `comdefend/…`) return images instead; `kit.defend` puts them before a classifier.

    `device=None` is the CPU; "auto" the GPU where there is one. Raises ValueError for a name that does not exist or
    weights that are damaged, FileNotFoundError for a network that nobody has trained yet.
    """
    where = torch.device("cpu") if device is None else pick_device(str(device))
    if name.startswith("imagenet/"):
        return imagenet(name.removeprefix("imagenet/")).eval().to(where)
    model = build(name)
    folder, entry = _find(name)
    path = folder / entry["file"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is listed in its manifest but not there: kit models train {name} makes it")
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path} is not the file its manifest describes (sha256 differs): {_restore(folder, name)}")
    state = {k: v.float() for k, v in load_file(path).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError:
        again = _restore(folder, name)
        raise ValueError(f"{path} was made for another architecture than {name} has now: {again}") from None
    return model.eval().to(where)


def _restore(folder: Path, name: str) -> str:
    if folder == SHIPPED:
        return "install the package again"
    return f"train it again (kit models train {name}), or delete it"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: e for name, e in entries.items() if e["file"] and e["sha256"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} cannot be read as a manifest: delete it, and train its networks again") from None


def entry(name: str) -> dict[str, Any] | None:
    """The manifest's entry for a trained network (recipe, seed, accuracy, …), or None where it has no weights."""
    recipe(name)
    return next((m[name] for m in (_manifest(user_folder()), _manifest(SHIPPED)) if name in m), None)


def _find(name: str) -> tuple[Path, dict[str, Any]]:
    for folder in (user_folder(), SHIPPED):
        if found := _manifest(folder).get(name):
            return folder, found
    raise FileNotFoundError(f"{name} has a recipe but no trained weights here: kit models train {name}")


def save(model: nn.Module, entry: dict[str, Any], folder: str | Path | None = None) -> Path:
    """Write weights and manifest entry to `folder` (None: the user's own); returns the weights' path.

    `model` and `entry` are what `train` returns. The file appears complete or not at all.
    """
    folder = user_folder() if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = entry["name"]
    path = folder / f"{name.replace('/', '-')}.safetensors"
    tensors = {k: _smallest(v.detach().cpu().contiguous()) for k, v in model.state_dict().items()}
    _aside(path).write_bytes(serialise(tensors))
    _aside(path).replace(path)
    entries = _manifest(folder)
    entries[name] = entry | {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest = folder / "manifest.json"
    text = json.dumps(dict(sorted(entries.items())), indent=1)
    _aside(manifest).write_text(text + "\n", encoding="utf-8")
    _aside(manifest).replace(manifest)
    return path


def _smallest(v: Tensor) -> Tensor:
    """In half precision where that loses nothing; `load` gives single precision back."""
    small = v.half()
    return small if v.is_floating_point() and torch.equal(small.to(v.dtype), v) else v


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".part")
