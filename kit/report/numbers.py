"""Numbers worth keeping: shown in the chapter, stored in its outputs, and collected by the scoreboard."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.report import seeds
from kit.report.intervals import Estimate

MIME = "application/vnd.kit.record+json"
VERDICT = "application/vnd.kit.verdict+json"
VERDICTS = ("holds", "in part", "does not hold here", "not yet tried")
FRACTIONS = ("%", "points")  # units that are stored as fractions: 0.031 is 3.1 %, or +3.1 points as a difference


def digits(value: float, unit: str) -> str:
    """A value without its unit: one decimal for percent and points (of fractions), else three significant digits."""
    if unit in FRACTIONS:
        return f"{100 * value:{'+' if unit == 'points' else ''}.1f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def text(value: float, unit: str) -> str:
    """A value with its unit: text(0.031, "%") is `3.1 %`."""
    return f"{digits(value, unit)} {unit}".rstrip()


def measured(entry: Mapping[str, Any]) -> str:
    """The value of a record or verdict with its unit and its interval: `3.1 % [2.2, 4.3]`."""
    shown = text(entry["value"], entry["unit"])
    if "interval" in entry:
        shown += f" [{', '.join(digits(end, entry['unit']) for end in entry['interval'])}]"
    return shown


def _number(what: str, value: Any, unit: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a record holds finite numbers, and its {what} is {number}")
    if unit in FRACTIONS and abs(number) > 1:
        raise ValueError(f"the unit {unit} takes fractions (0.031 shows as 3.1 {unit}), and the {what} is {number:g}")
    return number


def _measurement(value: Any, unit: str, interval: Sequence[Any] | None, n: int | None) -> dict[str, Any]:
    """Value, unit, interval and n as they are stored; an `Estimate` (or an area with its ends) brings its own."""
    if isinstance(value, tuple | list):
        if len(value) != (4 if isinstance(value, Estimate) else 3) or interval is not None:
            raise ValueError(f"a number with its interval is (value, lo, hi), and not {value!r} with {interval!r}")
        n = value.n if isinstance(value, Estimate) else n
        value, interval = value[0], value[1:3]
    entry: dict[str, Any] = {"value": _number("value", value, unit), "unit": unit}
    if interval is not None:
        if len(interval) != 2 or not float(interval[0]) <= float(interval[1]):
            raise ValueError(f"an interval is (lo, hi) with lo <= hi, not {interval!r}")
        entry["interval"] = [_number("interval's end", end, unit) for end in interval]
    if n is not None:
        entry["n"] = int(n)
    return entry


def _shell() -> Any:
    """The notebook's shell, or None outside a kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if shell is not None and hasattr(shell, "kernel") else None


def in_kernel() -> bool:
    """Whether this runs in a notebook."""
    return _shell() is not None


def _parameter(name: str, default: str) -> str:
    """What the notebook's own parameters say: `profile`, `device`."""
    shell = _shell()
    return str(shell.user_ns.get(name, default)) if shell is not None else default


def _show(line: str, mime: str, entry: Any, **more: str) -> None:
    if in_kernel():
        from IPython.display import display

        display({"text/plain": line, **more, mime: entry}, raw=True)
    else:
        print(line)


def record(
    name: str,
    value: Any,
    *,
    id: str | None = None,
    paper: Any = None,
    source: str | None = None,
    interval: Sequence[Any] | None = None,
    unit: str | None = None,
    better: str | None = None,
    n: int | None = None,
    profile: str | None = None,
    device: str | None = None,
) -> None:
    """Show a number and keep it: `bim / accuracy on scenes: 3.1 % [2.2, 4.3] (paper 4.0 %)`.

    `value` is a number, or (value, lo, hi) with its interval (an `Estimate`, an area of `roc_auc`). With unit "%" the
    value, the interval and the paper's value are fractions, as `wilson` returns them, and with "points" a difference
    of fractions. `paper` is what the paper reports and `source` where (paper, table), `better` is "higher" or "lower",
    `n` the number of images.

    A number that answers a figure of the seeds names its `id`, `table/row/column` (kit/report/seeds.toml), from which
    paper, source, unit and better are taken. `profile` and `device` say how such a number was measured; they are the
    notebook's own unless given, as for what `Measured` has kept of a full profile.

    In a notebook the full numbers are stored with the output, for `records`; elsewhere the line is printed. A name
    is used once per chapter. Raises ValueError for a number that is not finite, a percentage above 1, an interval
    that is not (lo, hi), an unknown `better`, an unknown id, or an id beside what it says.
    """
    entry = _entry(name, value, id, paper, source, interval, unit, better, n, profile, device)
    line = f"{name}: {measured(entry)}"
    if "paper" in entry:
        line += f" (paper {text(entry['paper'], entry['unit'])})"
    _show(line, MIME, entry)


def _entry(
    name: str, value: Any, id: str | None, paper: Any, source: str | None, interval: Sequence[Any] | None,
    unit: str | None, better: str | None, n: int | None, profile: str | None, device: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What is stored of one number."""
    if better not in (None, "higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower', not {better!r}")
    if id is not None:
        figure = seeds.figure(id)
        given = {"paper": paper, "source": source, "better": better}
        if twice := [key for key, option in given.items() if option is not None]:
            raise ValueError(f"the id {id!r} says the {' and the '.join(twice)} already: leave that out")
        if unit not in (None, figure.unit):
            raise ValueError(f"the figure {id!r} has the unit {figure.unit!r}, not {unit!r}")
        unit, source, better = figure.unit, figure.source, figure.better
        paper = None if math.isnan(figure.paper) else figure.paper
    entry = {"name": name, **_measurement(value, unit or "", interval, n)}
    if paper is not None:
        entry["paper"] = _number("paper's value", paper, unit or "")
    if id is not None:
        entry |= {"id": id, "profile": _profile(profile), "device": device or _parameter("device", "cpu")}
    return entry | {k: v for k, v in {"source": source, "better": better}.items() if v is not None}


def _profile(given: str | None) -> str:
    profile = given or _parameter("profile", "quick")
    if profile not in ("quick", "full"):
        raise ValueError(f"a profile is 'quick' or 'full', not {profile!r}")
    return profile


def record_table(
    id: str,
    values: Mapping[tuple[str, str], Any],
    *,
    on: str,
    n: int | None = None,
    profile: str | None = None,
    device: str | None = None,
) -> None:
    """Keep what answers a whole table of the seeds, or a part of it: a value for each (row, column) of its own.

    `values` are numbers or tuples as `record` takes them, in the table's unit; `on` says what they were measured on,
    and begins their names. Shows one line, which says how much of the table is answered. Raises ValueError for an id, a
    row or a column that the seeds do not have, and for no values.
    """
    table = seeds.printed(id)
    if not values:
        raise ValueError(f"there are no values for the table {id!r}")
    entries = [
        _entry(f"{on} / {row}, {column}", value, table.figure(row, column).id, None, None, None, None, None, n,
               profile, device)
        for (row, column), value in values.items()
    ]  # fmt: skip
    line = f"{id}: {len(entries)} of {len(table.figures)} figures recorded, measured on {on}"
    _show(line, MIME, entries)


def verdict(
    claim: str,
    says: str,
    *,
    reason: str,
    of: str | None = None,
    value: Any = None,
    interval: Sequence[Any] | None = None,
    unit: str = "",
    n: int | None = None,
) -> None:
    """Keep what became of a claim of the seeds, for the scoreboard, and show it.

    `claim` is its id, `table/claim` (kit/report/seeds.toml). `says` is "holds", "in part", "does not hold here" or
    "not yet tried"; `reason` is one sentence that tells why. What was tried has a number on which the verdict rests:
    `of` names it, `value` and `interval` are as for `record` (an `Estimate` brings both). Raises ValueError for an
    unknown claim or verdict, for a verdict without a reason, a number or an interval.
    """
    known = seeds.claim(claim)
    if says not in VERDICTS:
        raise ValueError(f"a verdict is one of {', '.join(map(repr, VERDICTS))}, not {says!r}")
    if not reason.strip():
        raise ValueError(f"the verdict on {claim!r} gives no reason")
    entry: dict[str, Any] = {"claim": claim, "verdict": says, "reason": reason.strip()}
    answer = entry["reason"]
    if says != "not yet tried":
        if of is None or value is None:
            raise ValueError(f"the verdict on {claim!r} rests on a number: name it (of) and give it (value)")
        entry |= {"of": of, **_measurement(value, unit, interval, n)}
        if "interval" not in entry:
            raise ValueError(f"the verdict on {claim!r} has no interval: a number alone does not say how sure it is")
        answer += f" ({evidence(entry)})"
    shown = f"**Claim.** {known.text} **{says.capitalize()}**: {answer}"
    _show(f"{known.text} {says.capitalize()}: {answer}", VERDICT, entry, **{"text/markdown": shown})


def evidence(entry: Mapping[str, Any]) -> str:
    """The number on which a verdict rests: `TAP's accuracy minus ATA's: −6.5 points [−7.4, −5.6], n = 500`."""
    count = f", n = {entry['n']}" if "n" in entry else ""
    return f"{entry['of']}: {measured(entry)}{count}"


def _stored(notebook: str | Path | Mapping[str, Any], mime: str) -> list[Any]:
    nb = notebook if isinstance(notebook, Mapping) else json.loads(Path(notebook).read_text(encoding="utf-8"))
    outputs = (output for cell in nb["cells"] for output in cell.get("outputs", []))
    return [output["data"][mime] for output in outputs if mime in output.get("data", {})]


def records(notebook: str | Path | Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `record` and `record_table` stored in an executed notebook (a path, or the notebook as JSON), in order."""
    found = _stored(notebook, MIME)
    return [entry for stored in found for entry in (stored if isinstance(stored, list) else [stored])]


def verdicts(notebook: str | Path | Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `verdict` stored in an executed notebook, in order."""
    return _stored(notebook, VERDICT)
