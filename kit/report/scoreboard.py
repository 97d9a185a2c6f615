"""The scoreboard: every recorded number of the book beside the paper's, one table per chapter."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.report.numbers import digits, records, text

HEAD = """# Scoreboard

What the committed notebooks measured under the quick profile, beside what the papers report. The quick profile uses
small embedded data: its numbers show the same effect at another scale. Intervals are 95 %. `kit scoreboard` writes this
page from the notebooks.
"""


def _title(nb: dict[str, Any], fallback: str) -> str:
    """The first level-1 heading."""
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return fallback


def _row(entry: dict[str, Any]) -> str:
    unit = entry["unit"]
    here = text(entry["value"], unit)
    if "interval" in entry:
        here += f" [{', '.join(digits(end, unit) for end in entry['interval'])}]"
    if "n" in entry:
        here += f", n = {entry['n']}"
    paper = difference = ""
    if "paper" in entry:
        gap = entry["value"] - entry["paper"]
        paper = text(entry["paper"], unit)
        difference = f"{'+' if gap >= 0 else ''}{digits(gap, unit)} {'points' if unit == '%' else unit}".rstrip()
        if entry.get("better") and gap:
            difference += " (better)" if (gap > 0) == (entry["better"] == "higher") else " (worse)"
    if "source" in entry:
        paper = f"{paper} ({entry['source']})" if paper else entry["source"]
    cells = (entry["name"], here, paper, difference)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(notebooks: Sequence[Path], folder: Path) -> str:
    """The page as Markdown, its links relative to `folder`. Raises ValueError where a chapter uses a name twice."""
    parts = [HEAD]
    for path in notebooks:
        nb = json.loads(path.read_text(encoding="utf-8"))
        entries = records(nb)
        if not entries:
            continue
        names = [entry["name"] for entry in entries]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{path.name} records {twice[0]!r} twice: give each number a name of its own")
        link = Path(os.path.relpath(path, folder)).as_posix()
        rows = "\n".join(_row(entry) for entry in entries)
        parts.append(
            f"## [{_title(nb, path.stem)}]({link})\n\n| what | here | paper | difference |\n|---|---|---|---|\n{rows}\n"
        )
    return "\n".join(parts)
