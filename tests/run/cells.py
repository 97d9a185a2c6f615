"""Notebooks of a few cells, for the tests of what runs them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil

PARAMETERS = 'profile = "quick"\ndevice = "auto"\nseed = 0'


def write(
    path: Path, *sources: str | tuple[str, str], parameters: str | None = PARAMETERS, language: str = "python"
) -> Path:
    """A notebook with a heading, the parameters cell and these code cells, a source or (source, tag)."""
    code = [] if parameters is None else [(parameters, ["parameters"])]
    code += [(source, []) if isinstance(source, str) else (source[0], [source[1]]) for source in sources]
    cells = [{"cell_type": "markdown", "id": "top", "metadata": {}, "source": ["# A title\n", "Text."]}]
    for i, (source, tags) in enumerate(code):
        metadata = {"tags": tags} if tags else {}
        cell = {"cell_type": "code", "id": f"c{i}", "metadata": metadata, "source": source.splitlines(True)}
        cells.append({**cell, "outputs": [], "execution_count": None})
    kernel = {"name": "python3", "display_name": "x", "language": language}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def printed(path: Path) -> str:
    nb = json.loads(path.read_text())
    return "".join("".join(o.get("text", [])) for cell in nb["cells"] for o in cell.get("outputs", []))


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends within a while (a zombie has ended)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False
