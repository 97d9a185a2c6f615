"""The catalogue of networks: name → how it is built, where its weights are, and how to load it.

Weights are looked for in the package (`weights/` and its `manifest.json`), then among those that this user trained, in
`KIT_MODELS` (`~/.cache/kit/models` where it is unset). What the user trained wins over what is shipped: whoever
retrains a network wants to work with the result; deleting the file brings the shipped one back.
"""
from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from kit.core import device as pick_device
from kit.core.files import write_whole
from kit.core.seeding import ambient_randomness_kept
from kit.models.decoders import DECODERS
from kit.models.explaining import EXPLAINING
from kit.models.families import FAMILIES
from kit.models.generative import GENERATIVE
from kit.models.imagenet import imagenet
from kit.models.purifiers import PURIFIERS

SHIPPED = Path(__file__).parent / "weights"


class Built(Protocol):
    """What `build` asks for: a `Network`, or a `Recipe`, which says beside it how the network is trained."""

    @property
    def family(self) -> str: ...

    @property
    def build(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Network:
    """How a network is built: the `family` of `FAMILIES`, `PURIFIERS`, `DECODERS`, `GENERATIVE` or `EXPLAINING`, with
    `build`."""

    family: str
    build: dict[str, Any] = field(default_factory=dict)


GREY_28 = {"channels": 1, "size": 28, "mean": (0.5,), "std": (0.5,)}
COLOUR_32 = {"channels": 3, "size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

# Every network that `kit.train` has a recipe for. Nothing here says how it was trained: loading needs no recipe.
CATALOGUE: dict[str, Network] = {
    "digits/cnn7": Network("cnn7", GREY_28),
    "digits/mlp": Network("mlp", GREY_28),
    "scenes/vgg": Network("vgg", COLOUR_32),
    "scenes/resnet": Network("resnet", COLOUR_32),
    "scenes/densenet": Network("densenet", COLOUR_32),
    "scenes/inception": Network("inception", COLOUR_32),
    "scenes/mobilenet": Network("mobilenet", COLOUR_32),
    "mnist/cnn7": Network("cnn7", GREY_28),
    "svhn/cnn7": Network("cnn7", COLOUR_32 | {"width": 20}),
    "cifar10/vgg": Network("vgg", COLOUR_32 | {"width": 20}),
    "cifar10/resnet": Network("resnet", COLOUR_32 | {"width": 20}),
    "cifar10/densenet": Network("densenet", COLOUR_32 | {"width": 16}),
    "cifar10/inception": Network("inception", COLOUR_32 | {"width": 24}),
    "cifar10/densenet19": Network("densenet", COLOUR_32 | {"width": 32, "depth": 5}),
    "cifar10/mobilenet": Network("mobilenet", COLOUR_32 | {"width": 16}),
    "ens3/inception": Network("inception", COLOUR_32),
    "ens4/inception": Network("inception", COLOUR_32),
    "adv/resnet": Network("resnet", COLOUR_32),
    "at/resnet": Network("resnet", COLOUR_32),
    "trades/resnet": Network("resnet", COLOUR_32),
    **{f"{how}/digits": Network("cnn7", GREY_28)
       for how in ("at", "joint", "trades", "free", "yopo", "fast", "fgsm", "augmented", "generated")},
    "at/cifar10": Network("resnet", COLOUR_32 | {"width": 48}),
    "noisy/inception": Network("inception", COLOUR_32),
    **{f"noisy{s}/{data}": Network("mlp", GREY_28 | {"width": 128})
       for data in ("digits", "mnist") for s in (25, 50, 100)},
    **{f"noisy{s}/cifar10": Network("densenet", COLOUR_32 | {"width": 32, "depth": 5}) for s in (25, 50, 100)},
    **dict.fromkeys(("pgd/digits", "ibp/digits"), Network("mlp", GREY_28)),
    **{f"{how}/{data}": Network("mlp", GREY_28 | {"width": 16})
       for data in ("digits", "mnist") for how in ("tiny", "tiny-pgd", "tiny-ibp", "tiny-noisy")},
    **dict.fromkeys(("mnist/small", "pgd/mnist", "ibp/mnist"), Network("small", GREY_28 | {"width": 12})),
    **dict.fromkeys(("cifar10/small", "ibp/cifar10"), Network("small", COLOUR_32 | {"width": 12})),
    "pixeldp/digits": Network("cnn7", GREY_28 | {"width": 6}),
    "hgd/scenes": Network("unet"),
    "comdefend/scenes": Network("codec"),
    "autozoom/digits": Network("autoencoder", {"channels": 1, "size": 28, "maps": 1, "levels": 1}),
    "deflect/digits": Network("capsules", {"channels": 1, "size": 28}),
    **{f"sensing{k}/scenes": Network("sensing") for k in range(1, 6)},
    **dict.fromkeys(("vae/factors", "beta-vae/factors", "factor-vae/factors"), Network("vae", {"widths": (48, 48)})),
    "infogan/factors": Network("infogan", {"width": 48}),
    "attributes/scenes": Network("attributes", {"labels": {"colour": 8, "background_colour": 8, "polarity": 2}}),
    "drawn/digits-cnn7": Network("drawers", {"width": 12, "noise": 8, "shapes": {
        "layer1": [12, 28, 28], "layer2": [12, 14, 14], "layer3": [24, 14, 14], "layer4": [24, 7, 7],
        "layer5": [48], "layer6": [48], "head": [10]}}),
    **{f"{pool}/digits": Network("pooled", GREY_28 | {"pool": pool}) for pool in ("average", "max")},
    "rts/scenes-resnet": Network("masks", {"maps": {"block3": 64, "block2": 32}}),
    "rts/scenes-vgg": Network("masks", {"maps": {"block3": 64, "block1": 16}}),
    "rts/cifar10-resnet": Network("masks", {"maps": {"block3": 80, "block2": 40}}),
    "rtsa/scenes-resnet": Network("masks", {"maps": {"block3": 64, "block2": 32}}),
    "spurious/resnet": Network("resnet", COLOUR_32),
    "shuffled/resnet": Network("resnet", COLOUR_32),
    **{f"backdoor/{what}": Network("mlp", GREY_28 | {"width": 24})
       for what in ("none", "patch", "large", "blended", "all", "source", "embedded", "secret")},
    "backdoor/scenes": Network("vgg", COLOUR_32 | {"width": 8}),
    "planted/background": Network("resnet", COLOUR_32 | {"classes": 5, "width": 8}),
    "planted/texture": Network("resnet", COLOUR_32 | {"classes": 4, "width": 8}),
    "planted/shape": Network("resnet", COLOUR_32 | {"width": 8}),
    **{f"senn{lam}/digits": Network("self_explaining", GREY_28) for lam in ("0", "-small", "-large")},
    "gtsrb/resnet": Network("resnet", COLOUR_32 | {"classes": 43, "width": 10}),
}


def names() -> list[str]:
    """Every network of the catalogue. `load` takes imagenet/<name> too: efficientnet_lite0 (1, 2), torchvision's."""
    return list(CATALOGUE)


def user_folder() -> Path:
    """`KIT_MODELS`, or `~/.cache/kit/models`."""
    return Path(os.environ.get("KIT_MODELS") or Path.home() / ".cache" / "kit" / "models").expanduser()


def network(name: str) -> Network:
    """How a network is built: by the catalogue, or by the manifest where this user trained it under a name of his own.

    Raises ValueError for a name that neither has.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    own = manifest(user_folder()).get(name)
    if own is None:
        raise ValueError(f"no network {name!r}: there are {', '.join(CATALOGUE)}, and imagenet/<torchvision's name>")
    return Network(own["family"], own["recipe"]["build"])


def build(name: str | Built, norm: bool = False) -> nn.Module:
    """A network with fresh weights, by its name, its place in the catalogue or its recipe.

    With `norm=False` as it is shipped, batch norm folded away.
    """
    made = network(name) if isinstance(name, str) else name
    return {**FAMILIES, **PURIFIERS, **DECODERS, **GENERATIVE, **EXPLAINING}[made.family](norm=norm, **made.build)


def load(name: str, device: str | torch.device | None = None) -> nn.Module:
    """A trained network in eval mode: images (N, C, H, W) in [0, 1] → logits (N, K). Its first layer normalises.

    The purifiers (`hgd/…`, `comdefend/…`) return images instead; `kit.defend` puts them before a classifier. So
    does the autoencoder (`autozoom/digits`), whose `decoder` makes images of codes. The decoders (`rts/…`, `rtsa/…`)
    make masks of a classifier's feature maps: `kit.explain.RTS.shipped` (`kit.fire.RTSA`) puts the two together; so
    does `kit.fire.InterpretGAN.shipped` with those that draw images of features (`drawn/…`). The
    five of `sensing…/scenes` return (N, 2, H, W): for each pixel a distance, and ln σ² of its noise. Those of
    `kit.models.generative` read codes off images of 16 × 16, and draw images of codes.

    `device=None` is the CPU; "auto" the GPU where there is one. Raises ValueError for a name that does not exist or
    weights that are damaged, FileNotFoundError for a network that nobody has trained yet.
    """
    where = torch.device("cpu") if device is None else pick_device(str(device))
    with ambient_randomness_kept(torch.device("cpu")):  # a network is built with random weights before it gets its own
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


def manifest(folder: Path) -> dict[str, Any]:
    """The entries of a folder of weights, by name; none where it has no manifest."""
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
    network(name)
    return next((m[name] for m in (manifest(user_folder()), manifest(SHIPPED)) if name in m), None)


def _find(name: str) -> tuple[Path, dict[str, Any]]:
    for folder in (user_folder(), SHIPPED):
        if found := manifest(folder).get(name):
            return folder, found
    raise FileNotFoundError(f"{name} has a recipe but no trained weights here: kit models train {name}")


def save(model: nn.Module, entry: dict[str, Any], folder: str | Path | None = None) -> Path:
    """Write weights and manifest entry to `folder` (None: the user's own); returns the weights' path.

    `model` and `entry` are what `kit.train.train` returns. The file appears complete or not at all.
    """
    folder = user_folder() if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = entry["name"]
    path = folder / f"{name.replace('/', '-')}.safetensors"
    tensors = {k: _smallest(v.detach().cpu().contiguous().clone()) for k, v in model.state_dict().items()}
    write_whole(path, serialise(tensors))
    entries = manifest(folder)
    entries[name] = entry | {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    text = json.dumps(dict(sorted(entries.items())), indent=1)
    write_whole(folder / "manifest.json", f"{text}\n".encode())
    return path


def _smallest(v: Tensor) -> Tensor:
    """In half precision where that loses nothing; `load` gives single precision back."""
    small = v.half()
    return small if v.is_floating_point() and torch.equal(small.to(v.dtype), v) else v


