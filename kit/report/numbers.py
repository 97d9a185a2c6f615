"""Numbers worth keeping: shown in the chapter, stored in its outputs, and collected by the scoreboard."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MIME = "application/vnd.kit.record+json"


def digits(value: float, unit: str) -> str:
    """A value without its unit: one decimal for percentages (of a fraction), else three significant digits."""
    if unit == "%":
        return f"{100 * value:.1f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def text(value: float, unit: str) -> str:
    """A value with its unit: text(0.031, "%") is `3.1 %`."""
    return f"{digits(value, unit)} {unit}".rstrip()


def _number(what: str, value: Any, unit: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a record holds finite numbers, and its {what} is {number}")
    if unit == "%" and abs(number) > 1:
        raise ValueError(f"the unit % takes fractions (0.031 shows as 3.1 %), and the {what} is {number:g}")
    return number


def in_kernel() -> bool:
    """Whether this runs in a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def record(
    name: str,
    value: Any,
    *,
    paper: Any = None,
    source: str | None = None,
    interval: Sequence[Any] | None = None,
    unit: str = "",
    better: str | None = None,
    n: int | None = None,
) -> None:
    """Show a number and keep it: `bim / accuracy on scenes: 3.1 % [2.2, 4.3] (paper 4.0 %)`.

    With unit "%" the value, the interval and the paper's value are fractions, as `wilson` returns them. `paper` is what
    the paper reports and `source` where (paper, table), `better` is "higher" or "lower", `n` the number of images.
    In a notebook the full numbers are stored with the output, for `records`; elsewhere the line is printed. A name
    is used once per chapter. Raises ValueError for a number that is not finite, a percentage above 1, an interval
    that is not (lo, hi), or an unknown `better`.
    """
    if better not in (None, "higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower', not {better!r}")
    entry: dict[str, Any] = {"name": name, "value": _number("value", value, unit), "unit": unit}
    line = f"{name}: {text(entry['value'], unit)}"
    if interval is not None:
        if len(interval) != 2 or not float(interval[0]) <= float(interval[1]):
            raise ValueError(f"an interval is (lo, hi) with lo <= hi, not {interval!r}")
        entry["interval"] = [_number("interval's end", end, unit) for end in interval]
        line += f" [{', '.join(digits(end, unit) for end in entry['interval'])}]"
    if paper is not None:
        entry["paper"] = _number("paper's value", paper, unit)
        line += f" (paper {text(entry['paper'], unit)})"
    entry.update({k: v for k, v in {"source": source, "better": better, "n": n}.items() if v is not None})
    if in_kernel():
        from IPython.display import display

        display({"text/plain": line, MIME: entry}, raw=True)
    else:
        print(line)


def records(notebook: str | Path | dict[str, Any]) -> list[dict[str, Any]]:
    """What `record` stored in an executed notebook (a path, or the notebook as JSON), in order."""
    nb = notebook if isinstance(notebook, dict) else json.loads(Path(notebook).read_text(encoding="utf-8"))
    outputs = (output for cell in nb["cells"] for output in cell.get("outputs", []))
    return [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
