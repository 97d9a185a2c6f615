"""Whether a cell's outputs are those that were committed: `differences(committed, found)` says what is not.

The order of the outputs counts, and so does every text between numbers. How far two numbers may be apart depends on
what they are (`apart`). What a figure shows is compared (`kit.report.plotted`), and an image without such data by its
pixels.
"""
from __future__ import annotations

import base64
import difflib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import sub
from typing import Any

from kit.report.numbers import MIME as RECORD
from kit.report.plotted import MIME as FIGURE
from kit.report.plotted import NUMBERS

SKIPPED = ("application/vnd.jupyter.widget-view+json",)  # its ids are random

# A number that stands alone, with its sign and the blanks around it, which move when a digit more is printed.
# Not a part of a word (conv2d), a version (3.11.2) or a hexadecimal.
NUMBER = re.compile(
    r"[ \t]*((?<![\w.])[+\-−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|(?<!\d)\.\d+)(?:[eE][+-]?\d+)?)(?!\w|\.\d)[ \t]*"
)


@dataclass(frozen=True)
class Tolerance:
    """`rel` of a value, or of what a fraction leaves to 1; never less than `abs`. `count` is for large counts."""

    rel: float = 5e-3
    abs: float = 2e-4
    count: float = 5e-3


DEFAULT = Tolerance()


@dataclass(frozen=True)
class Number:
    value: float
    last: float  # what one in the last printed decimal is worth; 0 for a whole number, or for a single digit
    whole: bool


def number(text: str) -> Number:
    """A printed number."""
    plain = text.replace(",", "").replace("−", "-")
    mantissa, _, exponent = plain.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    whole = not exponent and "." not in mantissa
    rounded = not whole and len(re.sub(r"\D", "", mantissa).lstrip("0")) >= 2
    return Number(float(plain), 10.0 ** (int(exponent or 0) - decimals) if rounded else 0.0, whole)


def near(x: float, y: float, tolerance: Tolerance = DEFAULT, unit: float = 1.0) -> bool:
    """Whether two measured values differ by no more than `tolerance`; `unit` is what stands for 1 (100 for per cent).

    Between 0 and 1 the relative tolerance is of the smaller of x and 1 − x: an accuracy of 0.98 is not one of 1.00,
    whose errors are none.
    """
    size = max(abs(x), abs(y)) / unit
    size = min(size, max(1 - abs(x) / unit, 1 - abs(y) / unit)) if size <= 1 else size
    return abs(x - y) <= unit * max(tolerance.abs, tolerance.rel * size) * (1 + 1e-9)


def apart(a: str, b: str, tolerance: Tolerance = DEFAULT, *, percent: bool = False) -> bool:
    """Whether two printed numbers are further apart than they may be.

    Whole numbers are counts, sizes and labels: they are equal, or from 10 000 on within `tolerance.count`. Others are
    `near`, in points where they are percentages, or differ by rounding: by one in the last decimal.
    """
    x, y = number(a), number(b)
    gap = abs(x.value - y.value)
    if x.whole and y.whole and not percent:
        large = min(abs(x.value), abs(y.value)) >= 10_000
        own = tolerance.abs if tolerance is not DEFAULT else 0.0
        return gap > max(own, tolerance.count * abs(x.value) if large else 0.0)
    same = x.last == y.last
    rounding = 1.001 * x.last if same else 0.6 * max(x.last, y.last)
    return gap > rounding and not near(x.value, y.value, tolerance, 100.0 if percent else 1.0)


def same_text(a: str, b: str, tolerance: Tolerance = DEFAULT, *, percent: bool = False) -> bool:
    """Whether two texts are the same but for numbers that are near; with `percent` all of them are percentages."""
    if a == b:
        return True
    here, there = NUMBER.split(a), NUMBER.split(b)
    if here[::2] != there[::2]:  # the text between the numbers
        return False
    numbers = zip(here[1::2], there[1::2], here[2::2], strict=True)
    return not any(apart(x, y, tolerance, percent=percent or after[:1] == "%") for x, y, after in numbers)


def one_image(record: dict[str, Any], tolerance: Tolerance) -> Tolerance:
    """The tolerance of a rate over `n` images: one of them, which another processor may turn, but not over a point."""
    rate = record.get("unit") == "%" and record.get("n")
    return replace(tolerance, abs=max(tolerance.abs, min(1.2 / record["n"], 0.0099))) if rate else tolerance


def _measured(record: dict[str, Any]) -> list[float]:
    return [float(v) for v in [record.get("value", 0), *record.get("interval", [])]]


def same_record(a: Any, b: Any, tolerance: Tolerance = DEFAULT) -> bool:
    """Whether two records agree: value and interval are near (a rate: within one image), all else is equal.

    A table's record is a list of them. There is no allowance for rounding.
    """
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_record(p, q, tolerance) for p, q in zip(a, b, strict=True))
    if not isinstance(a, dict) or not isinstance(b, dict) or set(a) != set(b):
        return False

    tolerance = one_image(a, tolerance)
    rest = [{k: v for k, v in record.items() if k not in ("value", "interval")} for record in (a, b)]
    x, y = _measured(a), _measured(b)
    return rest[0] == rest[1] and len(x) == len(y) and all(near(v, w, tolerance) for v, w in zip(x, y, strict=True))


def same_array(a: str, b: str, share: float) -> bool:
    """Whether two rows of numbers differ by no more than a share of their range (of their size where all are equal)."""
    x, y = ([float(value) for value in text.split()] for text in (a, b))
    if len(x) != len(y):
        return False
    known = [value for value in x + y if value == value and abs(value) < float("inf")]
    reach = (max(known) - min(known) or abs(known[0])) if known else 0.0
    return all(v == w or (v != v and w != w) or abs(v - w) <= share * reach for v, w in zip(x, y, strict=True))


def same_figure(a: Any, b: Any, tolerance: Tolerance = DEFAULT, key: str = "") -> str:
    """Where what two figures show is not the same; empty where it is."""
    if type(a) is not type(b):
        return key
    if isinstance(a, dict):
        if set(a) != set(b):
            return f"{key} {'/'.join(sorted(set(a) ^ set(b)))}"
        return next((found for k in a if (found := same_figure(a[k], b[k], tolerance, f"{key} {k}".strip()))), "")
    if isinstance(a, list):
        if len(a) != len(b):
            return f"{key} ({len(a)}, not {len(b)})"
        pairs = enumerate(zip(a, b, strict=True))
        return next((w for i, (v, u) in pairs if (w := same_figure(v, u, tolerance, f"{key} {i}"))), "")
    if key.rpartition(" ")[2] in NUMBERS:
        return "" if same_array(a, b, tolerance.rel) else key
    return "" if same_text(str(a), str(b), tolerance) else key


def same_picture(a: str, b: str) -> bool:
    """Whether two images (base64) show the same: blocks of 8 × 8 pixels differ by no more than 2 % of white."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    def blocks(text: str) -> Any:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            small = (max(1, image.width // 8), max(1, image.height // 8))
            return image.size, np.asarray(image.convert("RGB").resize(small, Image.Resampling.BOX), float)

    if a == b:
        return True
    try:
        (size, x), (other, y) = blocks(a), blocks(b)
    except (UnidentifiedImageError, ValueError):
        return False
    return size == other and float(np.abs(x - y).max()) <= 0.02 * 255


def joined(outputs: Sequence[Any]) -> list[dict[str, Any]]:
    """The outputs, those of one stream that follow one another as one."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        stream = output["output_type"] == "stream"
        if stream and found and found[-1]["output_type"] == "stream" and found[-1]["name"] == output["name"]:
            found[-1]["text"] += _text(output["text"])
        else:
            found.append({**output, "text": _text(output["text"])} if stream else dict(output))
    return found


def _text(value: Any) -> str:
    """A text as files store it: one string, or a list of lines."""
    return "".join(value) if isinstance(value, list) else str(value)


def _said(a: str, b: str) -> str:
    """The lines in which two texts differ."""
    lines = difflib.unified_diff(a.splitlines(), b.splitlines(), "committed", "found", lineterm="", n=0)
    return "\n".join(list(lines)[:20])


def _rates(committed: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether both outputs are the record of one number in percent; a table's record is a list."""
    return all(isinstance(data.get(RECORD), dict) and data[RECORD].get("unit") == "%" for data in (committed, found))


def _data(committed: dict[str, Any], found: dict[str, Any], tolerance: Tolerance) -> list[str]:
    """What differs between the data of two displayed outputs."""
    if FIGURE in found and FIGURE not in committed:
        return ["the committed figure does not keep what it shows: run make baseline"]
    kinds = [{k for k in data if k not in SKIPPED} for data in (committed, found)]
    if kinds[0] != kinds[1]:
        return [f"there is {', '.join(sorted(kinds[1]))} and not {', '.join(sorted(kinds[0]))}"]
    wrong = []
    for kind in sorted(kinds[0]):
        a, b = committed[kind], found[kind]
        if kind == FIGURE:
            if where := same_figure(a, b, tolerance):
                wrong.append(f"the figure shows something else: {where}")
        elif kind == RECORD:
            if not same_record(a, b, tolerance):
                wrong.append("the record is another\n" + _said(json.dumps(a, indent=1), json.dumps(b, indent=1)))
        elif kind.startswith("image/") and kind != "image/svg+xml":
            if FIGURE not in committed and not same_picture(_text(a), _text(b)):
                wrong.append("the image is another")
        elif kind.endswith("json"):
            if not same_text(json.dumps(a, sort_keys=True), json.dumps(b, sort_keys=True), tolerance):
                wrong.append(f"{kind} is another")
        elif kind == "text/plain" and _rates(committed, found):
            moved = max(map(abs, map(sub, _measured(committed[RECORD]), _measured(found[RECORD]))), default=0.0)
            if not same_text(_text(a), _text(b), replace(tolerance, rel=0.0, abs=moved), percent=True):
                wrong.append(_said(_text(a), _text(b)))
        elif not same_text(_text(a), _text(b), tolerance):
            wrong.append(_said(_text(a), _text(b)))
    return wrong


def differences(committed: Sequence[Any], found: Sequence[Any], tolerance: Tolerance = DEFAULT) -> list[str]:
    """What a cell shows now that it did not show when it was committed, in words; empty where all is the same."""
    before, now = joined(committed), joined(found)
    kinds = [[o.get("name") or ("data" if "data" in o else "error") for o in outputs] for outputs in (before, now)]
    if kinds[0] != kinds[1]:
        return [f"there are other outputs: {', '.join(kinds[1]) or 'none'}, and not {', '.join(kinds[0]) or 'none'}"]
    wrong: list[str] = []
    for old, new in zip(before, now, strict=True):
        if "data" in old:
            wrong += _data(old["data"], new["data"], tolerance)
            continue
        a, b = (o["text"] if o["output_type"] == "stream" else f"{o['ename']}: {o['evalue']}" for o in (old, new))
        if not same_text(a, b, tolerance):
            wrong.append(_said(a, b))
    return wrong
