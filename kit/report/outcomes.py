"""What happened to every image under every setting: kept, compared image by image, and shown with its intervals."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kit.report.intervals import Estimate, as_array, mean, paired, share
from kit.report.measured import Measured
from kit.report.tables import Strong, Table, table

Setting = tuple[str, ...]


class Outcomes(Mapping[Setting, np.ndarray]):
    """One value for each of the same N images, in the same order, under every setting that was tried.

    A setting has a part for each of `names`: with `Outcomes(("source", "attack", "victim"))`,
    `right["resnet", "BIM", "vgg"] = answers == y` keeps (N,) truth values; numbers are possible too. Because all
    settings read the same images, their differences are counted image by image (`gain`, and the marks of `table`).
    Raises ValueError for values that are not (N,), and for a setting that does not fit the names.
    """

    def __init__(self, names: Sequence[str], values: Mapping[Any, Any] | None = None):
        self.names = tuple(names)
        self._values: dict[Setting, np.ndarray] = {}
        for setting, found in (values or {}).items():
            self[setting] = found

    def __setitem__(self, setting: str | Setting, values: Any) -> None:
        setting = (setting,) if isinstance(setting, str) else tuple(setting)
        if len(setting) != len(self.names) or any("/" in part for part in setting):
            raise ValueError(f"a setting names its {', '.join(self.names)}, without a slash: not {setting!r}")
        values = as_array(values)
        if values.ndim != 1 or (self._values and len(values) != self.n):
            has = f"the {self.n} images" if self._values else "N images"
            raise ValueError(f"outcomes are (N,), one value for each of {has}, not {values.shape}")
        self._values[setting] = values

    def __getitem__(self, setting: str | Setting) -> np.ndarray:
        return self._values[(setting,) if isinstance(setting, str) else tuple(setting)]

    def __iter__(self) -> Iterator[Setting]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def n(self) -> int:
        """The number of images. Raises ValueError where nothing was tried yet."""
        if not self._values:
            raise ValueError("there are no outcomes")
        return len(next(iter(self._values.values())))

    def __invert__(self) -> Outcomes:
        """The opposite of truth values: fooled, where these say right."""
        return Outcomes(self.names, {setting: ~values.astype(bool) for setting, values in self.items()})

    def where(self, **chosen: str | Iterable[str]) -> Outcomes:
        """The settings with these parts: `where(attack=("BIM", "ATA"), victim="vgg")`."""
        wanted = {self._at(k): {v} if isinstance(v, str) else set(v) for k, v in chosen.items()}
        return self._only(s for s in self if all(s[i] in parts for i, parts in wanted.items()))

    def apart(self, a: str, b: str) -> Outcomes:
        """The settings in which two parts differ: `apart("source", "victim")` leaves the attacked network out."""
        return self._only(s for s in self if s[self._at(a)] != s[self._at(b)])

    def _only(self, settings: Iterable[Setting]) -> Outcomes:
        return Outcomes(self.names, {setting: self[setting] for setting in settings})

    def _at(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"these outcomes have {', '.join(self.names)}, and no {name!r}")
        return self.names.index(name)

    def means(self, by: str) -> dict[str, np.ndarray]:
        """For each value of one part (N,): every image's mean over all settings that have it."""
        groups: dict[str, list[np.ndarray]] = {}
        for setting, values in self.items():
            groups.setdefault(setting[self._at(by)], []).append(values)
        return {key: np.mean(values, axis=0) for key, values in groups.items()}

    def estimates(self, by: str) -> dict[str, Estimate]:
        """For each value of one part: the mean over its settings and all images, with a bootstrap over images."""
        return {key: mean(values) for key, values in self.means(by).items()}

    def gain(self, by: str, a: str, b: str) -> Estimate:
        """How much more `a` has than `b`, image by image, with a bootstrap over images."""
        means = self.means(by)
        return mean(means[a] - means[b])

    def table(
        self, rows: Sequence[str], columns: str, *, ours: str | None = None, against: Sequence[str] | None = None,
        better: str = "lower", intervals: bool = True, level: float = 0.05, caption: str = "",
    ) -> Table:
        """Truth values in %, one row for each combination of `rows`, one column for each value of `columns`.

        The last of `rows` is what is compared, attacks for instance: the best of those that share the other parts is
        bold, by `better`. With `ours`, the cells of the others (or of those in `against`) are marked: ▲ where `ours` is
        better and ▼ where it is worse, by McNemar's exact test on the same images, with Holm's correction over all
        comparisons of the table at `level`. Intervals are Wilson's, at 95 %.
        """
        sign = _sign(better)
        cells: dict[tuple[Setting, str], np.ndarray] = {}
        for setting, values in self.items():
            place = tuple(setting[self._at(name)] for name in rows), setting[self._at(columns)]
            if place in cells:
                raise ValueError(f"two settings fall into the cell {place}: choose one by `where`")
            cells[place] = values.astype(bool)
        marks = _marks(cells, ours, against, sign, level)
        heads = list(dict.fromkeys(column for _, column in cells))
        lines = []
        for row in dict.fromkeys(row for row, _ in cells):
            line: list[str] = list(row)
            for column in heads:
                if (row, column) not in cells:
                    line.append("")
                    continue
                found = share(int(cells[row, column].sum()), self.n)
                text = f"{100 * found.value:.1f}"
                text += f" [{100 * found.low:.0f}, {100 * found.high:.0f}]" if intervals else ""
                text += marks.get((row, column), "")
                rivals = [sign * int(v.sum()) for (r, c), v in cells.items() if c == column and r[:-1] == row[:-1]]
                best = len(rivals) > 1 and sign * int(cells[row, column].sum()) == max(rivals)
                line.append(Strong(text) if best else text)
            lines.append(line)
        return table(lines, [*rows, *heads], caption)

    def summary(
        self, by: str, *, ours: str | None = None, better: str = "lower", what: str = "accuracy", caption: str = ""
    ) -> Table:
        """One row for each value of `by`: its mean in %, and by how many points `ours` is better, image by image."""
        sign = _sign(better)
        rows = []
        for key, found in self.estimates(by).items():
            row = {by: key, f"mean {what}": found.text()}
            if ours is not None:
                a, b = (ours, key) if sign > 0 else (key, ours)
                row[f"{ours} is better by"] = "" if key == ours else self.gain(by, a, b).text()
            rows.append(row)
        return table(rows, caption=caption)

    def packed(self) -> dict[str, Any]:
        """These outcomes as JSON: a bit for each truth value, four bytes for each number, as hexadecimal digits."""
        truth = all(values.dtype == bool for values in self.values())
        values = {"/".join(setting): _digits(values, truth) for setting, values in self.items()}
        return {"names": list(self.names), "n": self.n, "kind": "truth" if truth else "numbers", "values": values}

    @classmethod
    def unpacked(cls, *packed: Mapping[str, Any]) -> Outcomes:
        """What `packed` made; where several are given, such as the cells of a grid, all of them together."""
        found = {
            tuple(key.split("/")): _values(digits, part["kind"] == "truth", part["n"])
            for part in packed for key, digits in part["values"].items()
        }
        return cls(packed[0]["names"], found)

    def kept(self, measured: Measured, group: str, name: str = "outcomes") -> Outcomes:
        """Under the full profile these, kept beside the chapter; otherwise what was kept there."""
        if measured.write:
            measured.keep(group, **{name: self.packed()})
            return self
        return Outcomes.unpacked(measured[group][name])

    def agreement(self, other: Outcomes) -> float:
        """The share of equal values in all settings of these, on the images that come first in both."""
        n = min(self.n, other.n)
        return float(np.mean([values[:n] == other[setting][:n] for setting, values in self.items()]))


def holm(p: Mapping[Any, float], level: float = 0.05) -> set[Any]:
    """The comparisons that stay significant at `level` after Holm's correction for their number.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    found = set()
    for rank, key in enumerate(sorted(p, key=lambda key: p[key])):
        if p[key] > level / (len(p) - rank):
            break
        found.add(key)
    return found


def _sign(better: str) -> int:
    if better not in ("higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower', not {better!r}")
    return 1 if better == "higher" else -1


def _marks(
    cells: Mapping[tuple[Setting, str], np.ndarray], ours: str | None, against: Sequence[str] | None, sign: int,
    level: float,
) -> dict[tuple[Setting, str], str]:
    """The mark of each cell that differs from that of `ours` in its group and column."""
    pairs, leads = {}, {}
    for (row, column), values in cells.items():
        mine = cells.get(((*row[:-1], ours or ""), column))
        if mine is not None and row[-1] != ours and (against is None or row[-1] in against):
            pairs[row, column] = paired(mine, values)
            leads[row, column] = sign * (int(mine.sum()) - int(values.sum())) > 0
    return {place: " ▲" if leads[place] else " ▼" for place in holm(pairs, level)}


def _digits(values: np.ndarray, truth: bool) -> str:
    return (np.packbits(values) if truth else values.astype("<f4")).tobytes().hex()


def _values(digits: str, truth: bool, n: int) -> np.ndarray:
    found = bytes.fromhex(digits)
    return np.unpackbits(np.frombuffer(found, np.uint8))[:n] == 1 if truth else np.frombuffer(found, "<f4")
