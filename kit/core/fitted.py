"""What is fitted to a model and kept: its settings, its tensors, and the model that they belong to."""
import hashlib
import inspect
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from kit.core.files import write_whole


class Fitted:
    """A class with settings, a `fit` that makes tensors of images, and a file for both.

        settings    the arguments of __init__ but `model`, each kept under its own name as an attribute: JSON
        tensors()   what was fitted, by name; `restore(tensors)` takes it back
        numbers     the names of attributes that hold a fitted number or None, such as a threshold

    `save` and `load` are then the same for all. The file is safetensors, which holds no code, with a sha256 of its
    contents; a model, where there is one, is known by its `fingerprint`.
    """

    numbers: ClassVar[tuple[str, ...]] = ()

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make the same object again, read from the signature of its class."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name != "model"}

    def tensors(self) -> dict[str, Tensor]:
        """What was fitted, by name."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""

    def save(self, path: str | Path) -> None:
        """Write settings and what was fitted to `path`. The file appears complete or not at all.

        Raises TypeError for a setting that is no number, string or list, ValueError for fitted numbers that are NaN or
        infinite: what goes by them would be decided by no one.
        """
        kind = type(self).__name__
        try:
            settings = json.loads(json.dumps(self.settings()))
        except TypeError as error:
            raise TypeError(f"the settings of this {kind} cannot be written ({error})") from None
        model = getattr(self, "model", None)
        about = {"kind": kind, "settings": settings, "numbers": {name: getattr(self, name) for name in self.numbers},
                 "model": None if model is None else fingerprint(model)}
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self.tensors().items()}
        _check_numbers(tensors, about["numbers"], f"this {kind} cannot be saved")
        about["sha256"] = checksum(tensors, about)
        write_whole(path, serialise(tensors, metadata={"kit": _text(about)}))

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> Self:
        """Read what `save` wrote, for the model that it was fitted on. No code in the file is run: there is none.

        Raises ValueError for another kind of file, a file that was changed or is damaged, numbers that are NaN, and
        what was fitted on another model.
        """
        about, tensors = _read(Path(path))
        if about.get("kind") != cls.__name__:
            raise ValueError(f"{path} does not hold a {cls.__name__} but {about.get('kind', 'something else')}")
        if about.get("sha256") != checksum(tensors, {k: v for k, v in about.items() if k != "sha256"}):
            raise ValueError(f"{path} was changed after it was written (its checksum differs): fit and save it again")
        _check_numbers(tensors, about["numbers"], f"{path} cannot be used")
        if about["model"] != (None if model is None else fingerprint(model)):
            raise ValueError(f"{path} was fitted on a model with other weights or layers: fit it again on this one")
        fitted: Any = cls(*[] if model is None else [model], **about["settings"])
        device = None if model is None else next((p.device for p in model.parameters()), None)
        fitted.restore({name: t.to(device) for name, t in tensors.items()})
        for name in cls.numbers:
            setattr(fitted, name, about["numbers"][name])
        return fitted


def fingerprint(model: nn.Module) -> str:
    """sha256 of the model's layers, parameters and buffers by name, those that its state does not list included.

    Two networks with the same weights that normalise or activate differently have two fingerprints.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        digest.update(f"{name}: {type(module).__name__}({module.extra_repr()})\n".encode())
    parts = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(parts, key=lambda part: part[0]):
        _add(digest, name, tensor)
    return digest.hexdigest()


def checksum(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """sha256 of all that a file holds."""
    digest = hashlib.sha256(_text(about).encode())
    for name in sorted(tensors):
        _add(digest, name, tensors[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name}: {tensor.dtype}{list(tensor.shape)}\n".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes())


def _text(about: dict[str, Any]) -> str:
    return json.dumps(about, sort_keys=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("kit", "{}"))
            if not isinstance(about, dict):
                raise ValueError("its description is none")
            return about, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): fit and save it again") from None


def _check_numbers(tensors: dict[str, Tensor], numbers: dict[str, float | None], what: str) -> None:
    wrong = [name for name, t in tensors.items() if not bool(t.isfinite().all())]
    wrong += [name for name, value in numbers.items() if value is not None and not math.isfinite(value)]
    if wrong:
        raise ValueError(f"{what}: {wrong[0]!r} holds NaN or infinity; fit it again")
