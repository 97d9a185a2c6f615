"""The table of a paper on transfer: sources and attacks down, victims across, and which differences are real.

Both functions take what happened to every image: `outcome[source, attack][victim]` (N,) says whether the victim still
had each of N images right, the same images in the same order everywhere, so that two attacks can be compared on them.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kit.report.intervals import _array, bootstrap_mean, paired, wilson
from kit.report.tables import Strong, Table, table

Outcome = Mapping[tuple[str, str], Mapping[str, Any]]
METRICS = {"accuracy": False, "fooling rate": True}  # whether the attacker wants it high


def transfer_table(
    outcome: Outcome, *, metric: str = "accuracy", ours: str | None = None, against: Sequence[str] | None = None,
    intervals: bool = True, level: float = 0.05, caption: str = "",
) -> Table:
    """One row for each (source, attack), one column for each victim: the metric in %, and its 95 % interval.

    metric is "accuracy" (the share of images that the victim has right) or "fooling rate" (one minus it). The best
    attack of a source on a victim is bold. With `ours`, the cells of the other attacks (or of those in `against`) are
    marked: ▲ where `ours` is better and ▼ where it is worse, by McNemar's exact test on the same images, with Holm's
    correction over all comparisons of the table at `level`. Raises ValueError for outcomes that do not fit together.
    """
    hits = _hits(outcome, metric)
    victims = list(dict.fromkeys(victim for row in hits.values() for victim in row))
    pairs = {}
    for (source, attack), row in hits.items():
        if ours is not None and attack != ours and (source, ours) in hits and (against is None or attack in against):
            for victim in row.keys() & hits[source, ours].keys():
                pairs[source, attack, victim] = paired(hits[source, ours][victim], row[victim])
    real = holm(pairs, level)
    rows = []
    for (source, attack), row in hits.items():
        cells: list[str] = [source, attack]
        for victim in victims:
            if victim not in row:
                cells.append("")
                continue
            mine = int(row[victim].sum())
            rivals = [int(h[victim].sum()) for (s, _), h in hits.items() if s == source and victim in h]
            text = _cell(mine, len(row[victim]), metric, intervals)
            if ours is not None and (source, attack, victim) in real:
                text += " ▲" if int(hits[source, ours][victim].sum()) > mine else " ▼"
            cells.append(Strong(text) if mine == max(rivals) and len(rivals) > 1 else text)
        rows.append(cells)
    return table(rows, ["source", "attack", *victims], caption)


def transfer_summary(
    outcome: Outcome, *, metric: str = "accuracy", ours: str | None = None, victims: Sequence[str] | None = None,
    caption: str = "",
) -> Table:
    """One row for each attack: the mean of the metric over all sources and the victims other than the source.

    Intervals are 95 % bootstraps over images. With `ours`, the last column is how much worse each attack does than
    `ours`, image by image, in points: an interval above zero says that `ours` is better.
    `victims` names those that count (all where it is None); attacks must have the same sources.
    """
    sign = 1 if METRICS[_metric(metric)] else -1
    means = transfer_means(outcome, metric=metric, victims=victims)
    rows = []
    for attack, value in means.items():
        row = {"attack": attack, f"mean {metric}": _with_interval(value)}
        if ours is not None:
            row[f"{ours} is better by"] = "" if attack == ours else _with_interval(sign * (means[ours] - value))
        rows.append(row)
    return table(rows, caption=caption)


def transfer_means(
    outcome: Outcome, *, metric: str = "accuracy", victims: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """For each attack (N,): each image's mean of the metric over the sources and the victims other than the source."""
    high = METRICS[_metric(metric)]
    cells: dict[str, list[np.ndarray]] = {}
    for (source, attack), row in _hits(outcome, metric).items():
        for victim, hit in row.items():
            if victim != source and (victims is None or victim in victims):
                cells.setdefault(attack, []).append(hit if high else ~hit)
    return {attack: np.mean(values, axis=0) for attack, values in cells.items()}


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


def _metric(metric: str) -> str:
    if metric not in METRICS:
        raise ValueError(f"metric must be 'accuracy' or 'fooling rate', not {metric!r}")
    return metric


def _hits(outcome: Outcome, metric: str) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """For each cell (N,): whether the attack succeeded on each image."""
    _metric(metric)
    hits = {key: {v: ~_array(right).astype(bool) for v, right in row.items()} for key, row in outcome.items()}
    shapes = {hit.shape for row in hits.values() for hit in row.values()}
    if not shapes:
        raise ValueError("there are no outcomes to tabulate")
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"every outcome is (N,), one truth value for each of the same N images, not {sorted(shapes)}")
    return hits


def _cell(hits: int, n: int, metric: str, intervals: bool) -> str:
    count = hits if METRICS[metric] else n - hits
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f}" + (f" [{100 * low:.0f}, {100 * high:.0f}]" if intervals else "")


def _with_interval(values: np.ndarray) -> str:
    low, high = bootstrap_mean(values)
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"
