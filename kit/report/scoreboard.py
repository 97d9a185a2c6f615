"""The scoreboard: what became of every claim and figure of the seeds, and, on a second page, all other numbers."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from kit.report import seeds
from kit.report.numbers import VERDICTS, digits, evidence, measured, records, text, verdicts
from kit.report.seeds import Claim, Figure, Seed

SEEDS = """# Scoreboard

The documents that this project implements report figures and draw conclusions from them. Here is what became of each,
by the code of this book: first every claim with its verdict, then every table. A verdict rests on a number with its
95 % interval, and names the chapter that measured it. *Quick* is the profile under which this book was executed, on
small embedded data; *full* is what the full profile measured on larger sets, kept beside the chapter. Numbers that
answer no figure of the documents are on {doc}`a page of their own <records>`. `kit scoreboard` writes both pages from
the notebooks.
"""
OTHERS = """# Other numbers

What the committed notebooks measured and no figure of the {doc}`scoreboard` asks for, beside what papers report where
they do. Most are of the quick profile, on small embedded data; those of the full profile say so. Intervals are 95 %.
`kit scoreboard` writes this page from the notebooks.
"""
MARKS = {"holds": "✓", "in part": "◐", "does not hold here": "✗", "not yet tried": "○"}


@dataclass(frozen=True)
class Chapter:
    """An executed notebook: its place, its title, and what it recorded."""

    path: Path
    title: str
    records: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Chapter:
        """Raises ValueError where a name or a claim is used twice."""
        nb = json.loads(path.read_text(encoding="utf-8"))
        found = cls(path, _title(nb, path.stem), records(nb), verdicts(nb))
        names = Counter(entry["name"] for entry in found.records) + Counter(entry["claim"] for entry in found.verdicts)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"{path.name} records {twice[0]!r} twice: give each number a name of its own")
        return found

    def link(self, folder: Path) -> str:
        return f"[{self.title}]({Path(os.path.relpath(self.path, folder)).as_posix()})"


def page(notebooks: Sequence[Path], folder: Path) -> str:
    """The page of the seeds as Markdown, its links relative to `folder`.

    Raises ValueError where a chapter names an id that the seeds do not have, or uses a name twice.
    """
    chapters = [Chapter.read(path) for path in notebooks]
    answers = {entry["claim"]: (entry, chapter) for chapter in chapters for entry in chapter.verdicts}
    found: dict[str, list[tuple[dict[str, Any], Chapter]]] = {}
    for chapter in chapters:
        for entry in chapter.records:
            if "id" in entry:
                found.setdefault(seeds.figure(entry["id"]).id, []).append((entry, chapter))
    for claim in answers:
        seeds.claim(claim)
    said = Counter(answers[c.id][0]["verdict"] if c.id in answers else VERDICTS[-1] for c in seeds.claims())
    parts = [SEEDS, "## The claims\n", " · ".join(f"{MARKS[v]} {v}: {said[v]}" for v in VERDICTS) + "\n"]
    for document, group in _documents(seeds.seeds().values()):
        parts.append(f"### {document}\n")
        for seed in group:
            lines = [_claim(claim, answers.get(claim.id), folder) for claim in seed.claims]
            parts.append(f"**{_plain(seed.title)}**\n\n" + "\n".join(lines) + "\n")
    parts.append("## The tables\n")
    for document, group in _documents(seed for seed in seeds.seeds().values() if seed.figures):
        parts.append(f"### {document}: figures\n")
        parts += [_table(seed, found, folder) for seed in group]
    return "\n".join(parts)


def _documents(entries: Iterable[Seed]) -> Iterable[tuple[str, Iterable[Seed]]]:
    return groupby(entries, key=lambda seed: seed.document)


def others(notebooks: Sequence[Path], folder: Path) -> str:
    """The page of the records that name no figure of the seeds."""
    parts = [OTHERS]
    for chapter in map(Chapter.read, notebooks):
        rows = "\n".join(_row(entry) for entry in chapter.records if "id" not in entry)
        if rows:
            head = "| what | here | paper | difference |\n|---|---|---|---|\n"
            parts.append(f"## {chapter.link(folder)}\n\n{head}{rows}\n")
    return "\n".join(parts)


def missing(notebooks: Mapping[str, Path]) -> list[str]:
    """What is wrong with the ids and verdicts of the notebooks (by their names, as `attacks/transfer`), in words."""
    wrong = []
    read = {name: Chapter.read(path) for name, path in notebooks.items()}
    given = {name: {entry["claim"] for entry in chapter.verdicts} for name, chapter in read.items()}
    for claim in seeds.claims():
        if claim.chapter in read and claim.id not in given[claim.chapter]:
            wrong.append(f"{claim.chapter} gives no verdict on {claim.id}: {claim.text}")
    for name, chapter in read.items():
        for entry in chapter.verdicts:
            wrong += [f"{name}: {problem}" for problem in _wrong(entry)]
        for entry in chapter.records:
            if "id" in entry:
                wrong += [f"{name}: {problem}" for problem in _unknown(seeds.figure, entry["id"])]
    return wrong


def _wrong(entry: Mapping[str, Any]) -> list[str]:
    """What is wrong with one stored verdict."""
    found = _unknown(seeds.claim, entry["claim"])
    if entry["verdict"] not in VERDICTS:
        found.append(f"the verdict on {entry['claim']} is {entry['verdict']!r}")
    if entry["verdict"] != "not yet tried" and "interval" not in entry:
        found.append(f"the verdict on {entry['claim']} has no interval")
    if not entry.get("reason"):
        found.append(f"the verdict on {entry['claim']} has no reason")
    return found


def _unknown(look_up: Any, id: str) -> list[str]:
    try:
        look_up(id)
    except ValueError as error:
        return [str(error)]
    return []


def _title(nb: dict[str, Any], fallback: str) -> str:
    """The first level-1 heading."""
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return fallback


def _claim(claim: Claim, answer: tuple[dict[str, Any], Chapter] | None, folder: Path) -> str:
    """One claim: the mark, the text, and below it the verdict with its reason, its number and its chapter."""
    if answer is None:
        return f"- {MARKS['not yet tried']} {_plain(claim.text)} *Not yet tried.*"
    entry, chapter = answer
    says = entry["verdict"]
    number = f" ({evidence(entry)})" if "interval" in entry else ""
    said = f"**{says.capitalize()}**: {_plain(entry['reason'] + number)} → {chapter.link(folder)}"
    return f"- {MARKS[says]} {_plain(claim.text)}\\\n  {said}"


def _table(seed: Seed, found: Mapping[str, Sequence[tuple[dict[str, Any], Chapter]]], folder: Path) -> str:
    """One table of a source: its figures down, and across what the source, the quick and the full profile say.

    A cell that the source leaves empty has a row only where something was measured.
    """
    mine = [pair for figure in seed.figures.values() for pair in found.get(figure.id, [])]
    lines = [f"{seed.measure[0].upper()}{seed.measure[1:]}."]
    if seed.note:
        lines.append(f"Note: {seed.note}.")
    for profile in ("quick", "full"):
        where = list(dict.fromkeys(_where(*pair, folder) for pair in mine if pair[0]["profile"] == profile))
        if where:
            lines.append(f"{profile.capitalize()}: {'; '.join(where)}.")
    several = {profile for profile in ("quick", "full") if len(_names(mine, profile)) > 1}
    rows = []
    shown = {p: f for p, f in seed.figures.items() if f.id in found or not math.isnan(f.value)}
    for place, figure in shown.items():
        cells = [_plain(" · ".join(part for part in place if part != "value")), _printed(figure)]
        for profile in ("quick", "full"):
            values = [e for e, _ in found.get(figure.id, []) if e["profile"] == profile]
            cells.append("<br>".join(_value(e, named=profile in several) for e in values))
        rows.append(_line(cells))
    answered = sum(figure.id in found for figure in shown.values())
    title = f"{_plain(seed.title)} ({answered or 'none'} of {len(rows)} measured)"
    head = "| figure | source | quick | full |\n|---|---|---|---|\n"
    body = "\n".join(rows)
    return f":::{{dropdown}} {title}\n" + "\n".join(lines) + f"\n\n{head}{body}\n:::\n"


def _on(entry: Mapping[str, Any]) -> str:
    """What a number was measured on: how its name begins."""
    return str(entry["name"]).partition(" / ")[0]


def _names(pairs: Sequence[tuple[dict[str, Any], Chapter]], profile: str) -> set[str]:
    return {_on(entry) for entry, _ in pairs if entry["profile"] == profile}


def _where(entry: Mapping[str, Any], chapter: Chapter, folder: Path) -> str:
    return f"{_on(entry)}, on {entry['device']} ({chapter.link(folder)})"


def _printed(figure: Figure) -> str:
    """The value as the source prints it."""
    return "" if math.isnan(figure.value) else f"{figure.value:.10g} {figure.unit}".rstrip()


def _value(entry: Mapping[str, Any], named: bool) -> str:
    count = f", n = {entry['n']}" if "n" in entry else ""
    return measured(entry) + count + (f" ({_on(entry).partition(',')[0]})" if named else "")


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return text.replace("*", "\\*").replace("_", "\\_")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(entry: Mapping[str, Any]) -> str:
    unit = entry["unit"]
    here = measured(entry) + (f", n = {entry['n']}" if "n" in entry else "")
    paper = difference = ""
    if "paper" in entry:
        gap = entry["value"] - entry["paper"]
        paper = text(entry["paper"], unit)
        difference = f"{'+' if gap >= 0 else ''}{digits(gap, unit)} {'points' if unit == '%' else unit}".rstrip()
        if entry.get("better") and gap:
            difference += " (better)" if (gap > 0) == (entry["better"] == "higher") else " (worse)"
    if "source" in entry:
        paper = f"{paper} ({entry['source']})" if paper else entry["source"]
    return _line((entry["name"], here, paper, difference))
