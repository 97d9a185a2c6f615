"""What the full profile measured, kept beside the chapter, so that its page can show it next to its own figures."""
import json
import math
from pathlib import Path
from typing import Any


class Measured(dict[str, dict[str, Any]]):
    """A dict of named groups of figures in a JSON file: read here, and under the full profile (`write=True`) written.

    `measured = Measured("lime_measured.json", write=full, seed=seed)`; then `measured.keep("cifar10", n=…, auc=…)`.
    A number that is not finite, such as the queries of an attack that never got there, is kept as None, since JSON has
    no word for it.

    What is given besides `write` says how the figures are made, and is kept with every group. Every `keep` writes the
    file, so that a run that is stopped keeps what it has measured. Raises ValueError for a file that is no such dict.
    """

    def __init__(self, path: str | Path, *, write: bool, **about: Any):
        super().__init__()
        self.path, self.write, self.about = Path(path), write, about
        if not self.path.exists():
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path} is not JSON ({error}): restore it, or delete it and run the full profile") \
                from None
        if not isinstance(found, dict) or not all(isinstance(group, dict) for group in found.values()):
            raise ValueError(f"{self.path} does not hold named groups of figures: restore it, or delete it and run the "
                             "full profile")
        self.update(found)

    def keep(self, name: str, **figures: Any) -> None:
        """Add figures to a group, replacing those of the same name; nothing happens where `write` is false."""
        if not self.write:
            return
        self.setdefault(name, {}).update(_finite(self.about | figures))
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(self.path)


def _finite(value: Any) -> Any:
    """The value, with None for every number in it that is infinite or NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
