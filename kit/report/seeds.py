"""What the seed documents report: their tables, figures and claims, each by its id (the list is `seeds.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np

from kit.report.tables import Table, table

# TOML, because Python reads it without another package, it takes comments, and it refuses an id that is given twice.
LIST = files("kit.report") / "seeds.toml"
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Figure:
    """One number that a source prints: `value` as printed, in percent where the unit is "%"; nan where it is empty."""

    id: str
    value: float
    unit: str
    better: str | None
    source: str

    @property
    def paper(self) -> float:
        """The value as `record` takes it: a fraction where the unit is "%"."""
        return self.value / 100 if self.unit == "%" else self.value


@dataclass(frozen=True)
class Claim:
    """What a source says that its table shows, and the chapter (`attacks/transfer`) that answers it."""

    id: str
    text: str
    chapter: str


@dataclass(frozen=True)
class Seed:
    """One entry of the list: a table of a source, with its figures by (row, column), and its claims."""

    id: str
    document: str
    title: str
    measure: str
    note: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    figures: dict[tuple[str, ...], Figure]
    claims: tuple[Claim, ...]

    @property
    def values(self) -> np.ndarray:
        """The values as printed, (rows, columns)."""
        return np.array([[self.figures[row, column].value for column in self.columns] for row in self.rows])

    def figure(self, *place: str) -> Figure:
        """The figure of (row, column), or of the name under which the source gives one more."""
        return figure("/".join([self.id, *place]))

    def table(self, caption: str = "", *, transposed: bool = False) -> Table:
        """The table as the source prints it, or `transposed`, its columns down."""
        decimals = max((len(f"{v:.10g}".partition(".")[2]) for v in self.values.ravel() if np.isfinite(v)), default=0)
        cells = [[f"{v:.{decimals}f}" if np.isfinite(v) else "" for v in line] for line in self.values]
        down, across = (self.columns, self.rows) if transposed else (self.rows, self.columns)
        lines = zip(*cells, strict=True) if transposed else cells
        rows = [[name, *line] for name, line in zip(down, lines, strict=True)]
        return table(rows, ["", *across], caption or f"{self.document}: {self.title}")


@cache
def seeds() -> dict[str, Seed]:
    """Every entry of the list, by its id, in its order."""
    return {id: _read(id, entry) for id, entry in tomllib.loads(LIST.read_text(encoding="utf-8")).items()}


def printed(id: str) -> Seed:
    """The entry of this id. Raises ValueError, naming near matches, where there is none."""
    return _find(id, seeds(), "table")


def figure(id: str) -> Figure:
    """The figure `table/row/column`. Raises ValueError, naming near matches, where the seeds have none of this id."""
    return _find(id, {f.id: f for s in seeds().values() for f in s.figures.values()}, "figure")


def claim(id: str) -> Claim:
    """The claim `table/claim`. Raises ValueError, naming near matches, where the seeds have none of this id."""
    return _find(id, {c.id: c for s in seeds().values() for c in s.claims}, "claim")


def claims() -> list[Claim]:
    """Every claim of the list, in its order."""
    return [c for s in seeds().values() for c in s.claims]


def _find(id: str, known: dict[str, Entry], kind: str) -> Entry:
    if id not in known:
        near = " or ".join(map(repr, get_close_matches(id, known, n=3, cutoff=0.5)))
        hint = f"did you mean {near}?" if near else "kit/report/seeds.toml lists them"
        raise ValueError(f"the seeds have no {kind} {id!r}: {hint}")
    return known[id]


def _read(id: str, entry: dict[str, Any]) -> Seed:
    rows, columns = entry.get("rows", []), entry.get("columns", [])
    units = entry.get("unit", "")
    units = [units] * len(rows) if isinstance(units, str) else units
    better, source = entry.get("better"), f"{entry['document']}, {entry['title']}"
    found: dict[tuple[str, ...], Figure] = {}
    for row, unit, line in zip(rows, units, entry.get("values", []), strict=True):
        for column, value in zip(columns, line, strict=True):
            found[row, column] = Figure(f"{id}/{row}/{column}", float(value), unit, better, source)
    for name, more in entry.get("also", {}).items():
        found[name,] = Figure(f"{id}/{name}", float(more["value"]), more["unit"], None, source)
    texts = tuple(Claim(f"{id}/{name}", c["text"], c["chapter"]) for name, c in entry["claims"].items())
    about = entry["document"], entry["title"], entry.get("measure", ""), entry.get("note", "")
    return Seed(id, *about, tuple(rows), tuple(columns), found, texts)
