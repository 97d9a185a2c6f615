"""What the full profile measured, kept beside the chapter, so that its page can show it next to its own figures."""
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kit.report.grids import computed

ANEW = "KIT_MEASURE_ANEW"  # set by `kit run --profile full --force`


class Measured(dict[str, dict[str, Any]]):
    """A dict of named groups of figures in a JSON file: read here, and under the full profile (`write=True`) written.

    `measured = Measured("lime_measured.json", write=full, seed=seed)`; then `measured.keep("cifar10", n=…, auc=…)`.
    A number that is not finite, such as the queries of an attack that never got there, is kept as None, since JSON has
    no word for it.

    What is given besides `write` says how the figures are made, and is kept with every group. Every `keep` writes the
    file, so that a run that is stopped keeps what it has measured.

    What is complete is not measured again, and what is not goes on where it was:

        if measured.lacks("mnist", images=200):
            measured.keep("mnist", images=200, auc=…)
        for way in measured.missing("svhn", "ways", ways):
            measured.add("svhn", "ways", way, ways[way]())
        measured.fill("seeds", "accuracy", trained, {f"{way}, {k}": (way, k) for way in ways for k in range(5)})

    All is measured anew where the file is deleted, or by `kit run --profile full --force`; a group alone where another
    seed made it, or once it is taken out of the file. Raises ValueError for a file that is no such dict.
    """

    def __init__(self, path: str | Path, *, write: bool, **about: Any):
        super().__init__()
        self.path, self.write, self.about = Path(path), write, _finite(about)
        self.stale: set[str] = set()  # kept until they have been measured anew, so that a run that is killed loses none
        found = kept_in(self.path)
        self.before = found  # what the file held when last seen
        self.update(found)
        if write and os.environ.get(ANEW):
            self.stale = set(found)

    def keep(self, name: str, **figures: Any) -> None:
        """Add figures to a group, replacing those of the same name; nothing happens where `write` is false."""
        if not self.write:
            return
        self[name] = self.made(name) | self.about | _finite(figures)
        self.stale.discard(name)
        if (there := kept_in(self.path)) != self.before:  # by another run of the chapter
            self.update(merged(there, self.before, self))
        written(self.path, self)
        self.before = json.loads(json.dumps(self))

    def made(self, name: str) -> dict[str, Any]:
        """The figures of a group; none where it is to be made anew, or was made otherwise, as from another seed."""
        group = {} if name in self.stale else self.get(name, {})
        return group if all(group.get(key, value) == value for key, value in self.about.items()) else {}

    def lacks(self, name: str, *figures: str, **size: float) -> bool:
        """Whether the full profile has yet to measure a group, or one of these figures of it. False under the quick
        profile. A group that holds `finished=False` lacks something.

        With a size (`images=200`), a group that was measured at a smaller one is made anew. One that was measured at a
        larger one, as on a GPU, stands.
        """
        group = self.made(name)
        if self.write and group and any(group.get(key, 0) < value for key, value in size.items()):
            self.stale.add(name)
            return True
        whole = group and group.get("finished", True) and all(figure in group for figure in figures)
        return self.write and not whole

    def missing(self, name: str, figure: str, cells: Iterable[str], **size: Any) -> list[str]:
        """Of a figure that is a dict, the cells that the full profile has yet to measure; none under the quick one.

        With a size (`images=200`, say), a group is made anew that was measured at a smaller one, or that lacks some of
        them and was begun at another one. Words (`device="cpu"`) are no size.
        """
        group, cells = self.made(name), list(cells)
        left = [cell for cell in cells if cell not in group.get(figure, {})]
        sizes = {key: value for key, value in _finite(size).items() if not isinstance(value, str)}
        smaller = any(isinstance(value, int) and group.get(key, value) < value for key, value in sizes.items())
        if self.write and (smaller or left and any(group.get(key, value) != value for key, value in sizes.items())):
            self.stale.add(name)
            return cells
        return left if self.write else []

    def fill(
        self, name: str, figure: str, function: Callable[..., Any], cells: Mapping[str, tuple[Any, ...]], **figures: Any
    ) -> None:
        """Compute the missing cells of a figure, `function(*arguments)` for each, side by side where there is room
        (`kit.report.grids.computed`), and keep each with `figures`, which say at what size, as it is done."""
        missing = self.missing(name, figure, cells, **figures)
        for cell, value in computed(function, {cell: cells[cell] for cell in missing}):
            self.add(name, figure, cell, value, **figures)

    def add(self, name: str, figure: str, cell: str, value: Any, **figures: Any) -> None:
        """Keep one cell of a figure that is a dict, and other figures with it."""
        self.keep(name, **figures, **{figure: self.made(name).get(figure, {}) | {cell: value}})


def kept_in(path: Path) -> dict[str, dict[str, Any]]:
    """The groups that a file holds; none where there is none. Raises ValueError for a file that is no such dict."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it, or delete it and run the full profile") from None
    if not isinstance(found, dict) or not all(isinstance(group, dict) for group in found.values()):
        raise ValueError(f"{path} does not hold named groups of figures: restore it, or delete it and run the full "
                         "profile")
    return found


def written(path: Path, groups: dict[str, dict[str, Any]]) -> None:
    """Write the groups, in place of the file only once they are all there."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(groups, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def merged(
    here: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The groups that stand here, with those that another run found which started from `before`.

    A group that only one of them has changed is that one's. Where both have, it is the run's, with the cells that only
    ours has if all else that both hold is equal.
    """
    whole = dict(here)
    for name, group in found.items():
        ours, common = here.get(name, {}), before.get(name, {})
        if group == common:
            continue
        both = ours.keys() & group.keys()
        cells = {key for key in both if isinstance(ours[key], dict) and isinstance(group[key], dict)}
        alike = all(ours[key] == group[key] for key in both - cells)
        united = ours | group | {key: ours[key] | group[key] for key in cells}
        whole[name] = united if ours != common and alike else group
    return whole


def _finite(value: Any) -> Any:
    """The value, with None for every number in it that is infinite or NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
