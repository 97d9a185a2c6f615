"""Mutants of committed outputs: each is compared with what was committed, as the regressions compare a new run."""
from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

from kit.report.numbers import MIME as RECORD
from kit.report.plotted import MIME as FIGURE
from kit.report.plotted import NUMBERS
from kit.run.compare import NUMBER, number


def changed_number(text: str, source: random.Random) -> str | None:
    """A text with one of its numbers changed by 2 %, and by three in the last decimal at least; a whole one by one."""
    places = list(NUMBER.finditer(text))
    if not places:
        return None
    place = source.choice(places)
    old = place[1]
    found, decimals = number(old), len(old.partition(".")[2].partition("e")[0])
    if found.whole:
        new = str(int(found.value) + (1 if abs(found.value) < 10_000 else max(1, int(abs(found.value) * 0.02))))
    elif "e" in old.lower():
        new = f"{found.value * 1.5 or 1.0:.{decimals}e}"
    else:
        new = f"{found.value + max(0.02 * abs(found.value), 3 * 10.0**-decimals):.{decimals}f}"
    return text[: place.start(1)] + new + text[place.end(1) :]


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else value


def _arrays(tree: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of numbers in what a figure shows, as (where, key)."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, str) and key in NUMBERS and value:
            yield tree, str(key)
        elif isinstance(value, dict | list):
            yield from _arrays(value)


def _finite(where: dict[str, Any], key: str) -> dict[int, float]:
    """The numbers of a row by their place; what was not measured is left out, since a change of it is none."""
    return {j: float(v) for j, v in enumerate(where[key].split()) if math.isfinite(float(v))}


def _entries(output: dict[str, Any]) -> list[dict[str, Any]]:
    """What an output records: nothing, one number, or a whole table."""
    found = output.get("data", {}).get(RECORD, [])
    return [found] if isinstance(found, dict) else found


def mutated(outputs: list[dict[str, Any]], source: random.Random) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Mutants of a cell's outputs: (kind, outputs)."""
    for i, output in enumerate(outputs):
        yield "output removed", outputs[:i] + outputs[i + 1 :]
        if i and outputs[i - 1] != output:
            yield "outputs swapped", [*outputs[: i - 1], output, outputs[i - 1], *outputs[i + 1 :]]
        texts = ["text"] if output["output_type"] == "stream" else []
        kinds = [k for k in output.get("data", {}) if k.startswith("text/")]
        for key in texts + kinds:
            place = output if key == "text" else output["data"]
            text = _text(place[key])

            def put(new: str, i: int = i, key: str = key) -> list[dict[str, Any]]:
                other = copy.deepcopy(outputs)
                (other[i] if key == "text" else other[i]["data"])[key] = new
                return other

            if (new := changed_number(text, source)) is not None and new != text:
                small = all(abs(number(v).value) < 1e-2 for v in set(NUMBER.findall(text)) ^ set(NUMBER.findall(new)))
                yield "number under 0.01" if small else "number", put(new)
            lines = text.splitlines(keepends=True)
            if len(lines) > 1:
                at = source.randrange(len(lines))
                yield "line removed", put("".join(lines[:at] + lines[at + 1 :]))
        for at, entry in enumerate(_entries(output)):
            for key, value in entry.items():
                other = copy.deepcopy(outputs)
                new: Any = "another"
                if isinstance(value, int | float):
                    new = value + 1 if key == "n" else value - max(0.02 * abs(value), 0.01)
                elif isinstance(value, list):
                    new = [value[0] - max(0.02 * abs(value[0]), 0.01), *value[1:]]
                _entries(other[i])[at][key] = new
                yield f"record's {key}", other
        if FIGURE in output.get("data", {}):
            other = copy.deepcopy(outputs)
            where, key = source.choice([row for row in _arrays(other[i]["data"][FIGURE]) if _finite(*row)])
            values, finite = [float(v) for v in where[key].split()], _finite(where, key)
            values[source.choice(list(finite))] += 0.05 * (
                max(finite.values()) - min(finite.values()) or abs(max(finite.values())) or 1.0)
            where[key] = " ".join(f"{v:.4g}" for v in values)
            yield "plotted data", other
            bare = copy.deepcopy(outputs)
            del bare[i]["data"][FIGURE]
            yield "plotted data removed", bare
