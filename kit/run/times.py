"""What each chapter takes, by profile and by device, from the stamps that its runs left.

The committed notebooks carry their own stamps, of the quick profile on a CPU. Those of other runs are gathered by
`kit times` from the executed copies, and kept in `FILE`; the page on hardware is made of both when the book is built.
"""
from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.run.files import ROOT, UserError, chapters, executed, read, stamp

FILE = Path("book") / "instructors" / "times.json"
KEPT = ("seconds", "cpu", "memory", "torch", "kept")
Times = dict[str, dict[str, dict[str, dict[str, Any]]]]  # by chapter, profile and device


def noted(nb: dict[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    """The profile, the device, and what the run took, of a notebook that was run to its end."""
    note = stamp(nb)
    if not note or not executed(nb):
        return None
    return note["profile"], note["device"], {key: note[key] for key in KEPT if key in note}


def known(root: Path = ROOT) -> Times:
    """What was gathered before."""
    path = root / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def gathered(folders: Iterable[Path], root: Path = ROOT) -> Times:
    """What is known, with what the executed chapters in these folders say; the last one for each device counts.

    A run under the full profile that only looks at what is kept replaces none that measured more. Raises UserError for
    a folder that holds no executed chapter.
    """
    found = known(root)
    for folder in folders:
        runs = [(place, folder / place) for place in _places(root) if (folder / place).is_file()]
        if not runs:
            raise UserError(f"{folder} holds no executed chapter: give the folder that `kit run --out` wrote")
        for place, path in runs:
            if not (said := noted(read(path))):
                continue
            profile, device, took = said
            there = found.setdefault(place, {}).setdefault(profile, {})
            if profile != "full" or took["cpu"] >= there.get(device, took)["cpu"] or not took.get("kept", 1):
                there[device] = took
    return {place: found[place] for place in sorted(found)}


def table(root: Path = ROOT) -> list[tuple[str, list[str]]]:
    """For each chapter its place, and `COLUMNS`; "–" where no run has said."""
    times, rows = known(root), []
    for path in chapters(root):
        place = path.relative_to(root).as_posix()
        own = {profile: dict(devices) for profile, devices in times.get(place, {}).items()}
        if said := noted(read(path)):
            own.setdefault(said[0], {})[said[1]] = said[2]
        cells: list[str] = []
        for profile in ("quick", "full"):
            on = own.get(profile, {})
            gpu = next((took for device, took in on.items() if device != "cpu"), None)
            cpu = on.get("cpu")
            cells += [_minutes(cpu, "cpu", profile), _memory(cpu), _minutes(gpu, "seconds", profile)]
        rows.append((place, cells))
    return rows


COLUMNS = ("quick, CPU min", "GiB", "quick, GPU min", "full, CPU min", "GiB", "full, GPU min")


def spread(times: Iterable[float], workers: int) -> float:
    """How long it takes when each worker that is free takes the longest that is left, as on a cluster."""
    busy = [0.0] * workers
    for took in sorted(times, reverse=True):
        busy[busy.index(min(busy))] += took
    return max(busy)


def on_paper(root: Path = ROOT) -> list[str]:
    """How long all chapters take under the quick profile on 1, 2, 4 and 8 workers of a core, in sentences."""
    said = [noted(read(path)) for path in chapters(root)]
    times = [took[2]["cpu"] / 60 for took in said if took and took[:2] == ("quick", "cpu")]
    memory = [took[2]["memory"] / 1024 for took in said if took]
    if not times:
        return []
    ways = ", ".join(f"{spread(times, n):.1f} on {n}" for n in (2, 4, 8))
    return [f"All {len(times)} chapters under the quick profile: {sum(times):.1f} minutes of one core; with the "
            f"longest first {ways} workers of one core and {max(memory):.1f} GiB each. The longest takes "
            f"{max(times):.1f}: fewer than that no number of workers can reach."]


def gpus(root: Path = ROOT) -> list[str]:
    """The GPUs of the runs."""
    devices = {d for profiles in known(root).values() for on in profiles.values() for d in on}
    return sorted(devices - {"cpu"})


def _places(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in chapters(root)]


def _minutes(took: dict[str, Any] | None, key: str, profile: str) -> str:
    """Minutes; "≥" for a full run that went on from figures that were kept, or does not say whether it did."""
    if not took:
        return "–"
    minutes = took[key] / 60
    least = "≥ " if profile == "full" and took.get("kept", 1) else ""
    return least + (f"{minutes:.1f}" if minutes < 10 else f"{minutes:.0f}")


def _memory(took: dict[str, Any] | None) -> str:
    return f"{took['memory'] / 1024:.1f}" if took and took.get("memory") else "–"
