"""Where a training keeps its state, so that it goes on after a stop as if there had been none."""
from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kit.core.files import write_whole


class Checkpoint:
    """One training's state in one file of `folder`, whose name tells this training from any other.

    `about` is whatever the result depends on (recipe, seed, images, versions), as JSON or tensors: another value is
    another file, so that a training never goes on from the state of another. Files appear complete or not at all, and
    hold no code.
    """

    def __init__(self, folder: str | Path, name: str, about: dict[str, Any]):
        self.path = Path(folder) / f"{name.replace('/', '-')}-{digest(about)[:16]}.checkpoint"

    def save(self, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(self.path, content.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, or None. Raises ValueError for a file that is damaged."""
        if not self.path.is_file():
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # whatever zip, torch or the disk say of half a file
            raise ValueError(f"{self.path} is damaged: delete it, and the training begins at its first step") from None

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


def digest(about: dict[str, Any]) -> str:
    """sha256 of the values by name; of a tensor its shape and its bytes."""
    plain = {key: _bytes_of(value) if isinstance(value, Tensor) else value for key, value in about.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _bytes_of(tensor: Tensor) -> list[Any]:
    return [list(tensor.shape), hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()]
