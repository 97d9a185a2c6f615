"""What Reluplex does: a simplex that may leave ReLUs broken, and mends them one by one.

The question is whether there are x with  v = T x̄  (the rows of a tableau: basic variables as sums of the others), all
variables within their bounds, and f_i = relu(b_i) for each pair. The rows always hold; bounds are mended first, by
pivoting; then a broken pair is mended by setting f to relu(b) or b to f; a pair that breaks too often is split, into
b ≥ 0, f = b and b ≤ 0, f = 0. Source: Katz et al., Reluplex, CAV 2017, section 3.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

TOLERANCE = 1e-9


@dataclass
class Reluplex:
    """`rows`: basic variable → its sum of non-basic ones; `low`, `high`, `value`: for each variable; `pairs`: (b, f).

    `log` says what was done, one line for each step.
    """

    rows: dict[str, dict[str, float]]
    low: dict[str, float]
    high: dict[str, float]
    pairs: list[tuple[str, str]]
    value: dict[str, float] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [*self.low]
        self.value = {v: min(max(0.0, self.low[v]), self.high[v]) if v not in self.rows else 0.0 for v in names}
        self._evaluate()

    def _evaluate(self) -> None:
        for basic, row in self.rows.items():
            self.value[basic] = sum(k * self.value[v] for v, k in row.items())

    def update(self, v: str, to: float, why: str) -> None:
        """Give a non-basic variable another value; the basic ones follow."""
        self.log.append(f"update {v} = {to:g}: {why}")
        self.value[v] = to
        self._evaluate()

    def pivot(self, basic: str, other: str) -> None:
        """Exchange a basic variable for a non-basic one of its row."""
        row = self.rows.pop(basic)
        k = row.pop(other)
        solved = {basic: 1 / k, **{v: -c / k for v, c in row.items()}}
        for r in self.rows.values():
            c = r.pop(other, 0.0)
            for v, a in solved.items() if c else ():
                r[v] = r.get(v, 0.0) + c * a
        self.rows[other] = {v: c for v, c in solved.items() if abs(c) > TOLERANCE}
        self.rows = {b: {v: c for v, c in r.items() if abs(c) > TOLERANCE} for b, r in self.rows.items()}
        self.log.append(f"pivot {basic}, {other}")

    def mend_bounds(self, limit: int = 1000) -> bool:
        """Pivot until every variable is within its bounds (Bland's rule: the first that can); False if that fails."""
        for _ in range(limit):
            out = next((v for v in sorted(self.rows) if self._off(v)), None)
            if out is None:
                return True
            sign = 1 if self.value[out] < self.low[out] else -1
            goal = self.low[out] if sign > 0 else self.high[out]
            for v, c in sorted(self.rows[out].items()):
                up, down = self.value[v] < self.high[v] - TOLERANCE, self.value[v] > self.low[v] + TOLERANCE
                if up if sign * c > 0 else down:
                    self.pivot(out, v)
                    self.update(out, goal, "its bound")
                    break
            else:
                self.log.append(f"{out} cannot reach its bound: no solution")
                return False
        raise RuntimeError(f"the bounds were not mended in {limit} pivots")

    def _off(self, v: str) -> bool:
        return not self.low[v] - TOLERANCE <= self.value[v] <= self.high[v] + TOLERANCE

    def broken(self) -> tuple[str, str] | None:
        """The first pair with f ≠ relu(b), or None."""
        return next(((b, f) for b, f in self.pairs
                     if abs(self.value[f] - max(self.value[b], 0)) > TOLERANCE), None)

    def mend_pair(self, b: str, f: str) -> bool:
        """Set f to relu(b), or where f is no free variable, b to f; False where neither can be made non-basic."""
        for v, to in ((f, max(self.value[b], 0.0)), (b, self.value[f])):
            if v in self.rows:
                other = next((o for o in sorted(self.rows[v]) if o not in (b, f)), None)
                if other is None:
                    continue
                self.pivot(v, other)
            self.update(v, to, f"{f} = relu({b})")
            return True
        return False

    def solve(self, splits_after: int = 5) -> dict[str, float] | None:
        """Values that satisfy everything, or None where there are none."""
        broke: dict[tuple[str, str], int] = {}
        while self.mend_bounds():
            pair = self.broken()
            if pair is None:
                return dict(self.value)
            broke[pair] = broke.get(pair, 0) + 1
            if broke[pair] > splits_after or not self.mend_pair(*pair):
                return self._split(*pair, splits_after)
        return None

    def _split(self, b: str, f: str, splits_after: int) -> dict[str, float] | None:
        """Both sides of a ReLU in turn; on each, f − b = 0 or f = 0 is a row or a bound like any other."""
        for active in (True, False):
            self.log.append(f"split: {b} {'≥' if active else '≤'} 0")
            low, high, rows = dict(self.low), dict(self.high), {v: dict(r) for v, r in self.rows.items()}
            difference = f"{f}−{b}"
            row: dict[str, float] = {}
            for v, sign in ((f, 1.0), (b, -1.0)):
                for part, c in rows.get(v, {v: 1.0}).items():
                    row[part] = row.get(part, 0.0) + sign * c
            if active:
                low[b] = max(low[b], 0.0)
                rows[difference] = {v: c for v, c in row.items() if abs(c) > TOLERANCE}
                low[difference] = high[difference] = 0.0
            else:
                high[b], high[f] = min(high[b], 0.0), min(high[f], 0.0)
            if low[b] > high[b] or low[f] > high[f]:
                continue
            side = Reluplex(rows, low, high, [p for p in self.pairs if p != (b, f)])
            found = side.solve(splits_after)
            self.log += side.log
            if found is not None:
                return {v: found[v] for v in self.low}
        return None


def tableau(
    chain_W: list[np.ndarray], chain_b: list[np.ndarray], low: np.ndarray, high: np.ndarray,
    outputs: list[tuple[float, float]], reach: float = 1e3,
) -> Reluplex:
    """The question for a network W, b, with x in the box and every output k within `outputs[k]`; hidden |z| ≤ `reach`.

    Variables: x1 …, b1_1 … and f1_1 … before and after each ReLU, y1 … the outputs, and `one`, which is 1.
    """
    x = [f"x{j + 1}" for j in range(len(low))]
    lows = {"one": 1.0, **dict(zip(x, map(float, low), strict=True))}
    highs = {"one": 1.0, **dict(zip(x, map(float, high), strict=True))}
    rows: dict[str, dict[str, float]] = {}
    pairs, before = [], x
    for i, (W, b) in enumerate(zip(chain_W, chain_b, strict=True)):
        last = i == len(chain_W) - 1
        names = [f"y{k + 1}" if last else f"b{i + 1}_{k + 1}" for k in range(len(b))]
        for k, name in enumerate(names):
            row = dict(zip(before, map(float, W[k]), strict=True)) | {"one": float(b[k])}
            rows[name] = {v: c for v, c in row.items() if c}
            lows[name], highs[name] = outputs[k] if last else (-reach, reach)
        if not last:
            before = [n.replace("b", "f") for n in names]
            pairs += list(zip(names, before, strict=True))
            lows |= dict.fromkeys(before, 0.0)
            highs |= dict.fromkeys(before, reach)
    return Reluplex(rows, lows, highs, pairs)
