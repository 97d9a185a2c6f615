"""All attackers against all defenders: `play` measures every pair, `Played` reads the table."""
from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from kit.core import MisleadingModel, ball, check_images, check_labels, logits
from kit.defend.game.sides import Attack, Defender, check_returned
from kit.defend.game.value import Game, informed, solve
from kit.detect import Detector
from kit.report import Estimate, Measured, Outcomes, share, table
from kit.report.intervals import mean
from kit.report.tables import Strong, Table

NOBODY = "nobody"
PARTS = ("defender", "attacker")


class Played:
    """Which images each defender keeps against each attacker: `held[defender, attacker]` (N,), NOBODY the clean ones.

    An image is kept if it is right when it is clean, and right or refused when it is attacked: what is wrong without
    an attack is lost under any (the measure of Tramèr, Detecting adversarial examples is (nearly) as hard as
    classifying them, ICML 2022). So no cell exceeds the clean one, and an attacker can only take.
    """

    def __init__(self, held: Outcomes):
        self.held = held
        self.defenders = list(dict.fromkeys(d for d, _ in held))
        self.attackers = [a for a in dict.fromkeys(a for _, a in held) if a != NOBODY]

    def against(self, defender: str) -> dict[str, np.ndarray]:
        """{attacker: kept (N,)} of those that were run against it."""
        _check_known("defender", [defender], self.defenders)
        return {a: self.held[defender, a] for a in self.attackers if (defender, a) in self.held}

    def worst(self) -> dict[str, np.ndarray]:
        """For each defender the images that it keeps against all attackers, (N,)."""
        return {d: np.logical_and.reduce([self.held[d, NOBODY], *self.against(d).values()]) for d in self.defenders}

    def average(self) -> dict[str, np.ndarray]:
        """For each defender every image's mean over the attackers, (N,)."""
        return {d: np.mean(list(self.against(d).values()), axis=0) for d in self.defenders}

    def best_attack(self, defender: str) -> str:
        """The attacker that takes most; of several, the first by name."""
        found = {a: int(kept.sum()) for a, kept in self.against(defender).items()}
        return min(sorted(found), key=lambda a: found[a])

    def estimate(self, kept: np.ndarray) -> Estimate:
        """The share of images with Wilson's interval; of means over attackers, with a bootstrap."""
        return share(int(kept.sum()), len(kept)) if kept.dtype == bool else mean(kept)

    def images(self, instead: str | None = None) -> np.ndarray:
        """H (A, D, N), what is kept of each image. Where an attacker does not belong, `instead` takes his place.

        Raises ValueError where one does not belong and nobody takes his place.
        """
        _check_known("attacker", [] if instead is None else [instead], self.attackers)

        def cell(a: str, d: str) -> np.ndarray:
            played = a if (d, a) in self.held else instead
            if played is None or (d, played) not in self.held:
                raise ValueError(f"{a!r} was not run against {d!r}: say which attacker takes its place (instead=…)")
            return self.held[d, played]

        return np.array([[cell(a, d) for d in self.defenders] for a in self.attackers])

    def matrix(self, instead: str | None = None) -> np.ndarray:
        """M (A, D), the share that is kept, as `solve` takes it."""
        return self.images(instead).mean(2)

    def only(self, defenders: list[str] | None = None, attackers: list[str] | None = None) -> Played:
        """The part of the table with these rows and columns. Raises ValueError for a name that is not in it."""
        rows = self.defenders if defenders is None else list(defenders)
        columns = self.attackers if attackers is None else list(attackers)
        _check_known("defender", rows, self.defenders)
        _check_known("attacker", columns, self.attackers)
        if not rows or not columns:
            raise ValueError("a game needs at least one attacker and one defender: leave the argument out to keep all")
        return Played(self.held.where(defender=rows, attacker=[NOBODY, *columns]))

    def game(
        self, *, instead: str | None = None, sees_image: bool = False, resamples: int = 200, seed: int = 0
    ) -> Game:
        """The value if the defender is drawn by chance, in secret, and the attacker chooses before he sees the draw.

        With `sees_image` he may choose another attack for each image (`informed`). Against one who sees the draw as
        well a mixture keeps the mean of its members' worst cases, which is no more than the best of them.
        Intervals: `resamples` bootstraps over images, each solved again.
        """
        if not resamples >= 1:
            raise ValueError(f"resamples must be 1 or more, not {resamples}: intervals are made of them")
        H = self.images(instead)
        N = H.shape[2]

        def once(H: np.ndarray) -> tuple[float, float]:
            if sees_image:
                return informed(H)[0], float(H.min(0).mean(1).max())
            found = solve(H.mean(2))
            return found.value, found.maximin

        source = np.random.default_rng(seed)
        drawn = np.array([once(H[..., source.integers(N, size=N)]) for _ in range(resamples)])
        value, pure = once(H)
        ends = [np.quantile(v, [0.025, 0.975]) for v in (drawn[:, 0], drawn[:, 1], drawn[:, 0] - drawn[:, 1])]
        estimates = [Estimate(v, min(v, float(lo)), max(v, float(hi)), N)
                     for v, (lo, hi) in zip((value, pure, value - pure), ends, strict=True)]
        alone = H.min(0).mean(1) if sees_image else H.mean(2).min(0)
        q, p = (informed(H)[1], None) if sees_image else (solve(H.mean(2)).defender, solve(H.mean(2)).attacker)
        return Game(estimates[0], estimates[1], estimates[2], self.defenders[int(alone.argmax())],
                    _mixture(self.defenders, q), {} if p is None else _mixture(self.attackers, p))

    def table(self, *, intervals: bool = False, cells: bool = True, caption: str = "") -> Table:
        """One row for each defender, in %: clean, each attacker, the mean over them, the worst image by image, and who
        takes most. Worst and mean have intervals, with `intervals` all have; the strongest attack of a row is bold."""
        worst, average = self.worst(), self.average()
        lines = []
        for d in self.defenders:
            against, best = self.against(d), self.best_attack(d)
            line = [d, self._text(self.held[d, NOBODY], True)]
            for a in self.attackers if cells else []:
                text = self._text(against[a], intervals) if a in against else ""
                line.append(Strong(text) if a == best else text)
            lines.append([*line, self._text(average[d], True), self._text(worst[d], True), best])
        heads = ["defender", "clean", *(self.attackers if cells else []), "mean", "worst", "strongest"]
        return table(lines, heads, caption)

    def _text(self, kept: np.ndarray, interval: bool) -> str:
        found = self.estimate(kept)
        text = f"{100 * found.value:.0f}"
        return f"{text} [{100 * found.low:.0f}, {100 * found.high:.0f}]" if interval else text


def _check_known(side: str, asked: list[str], names: list[str]) -> None:
    """Raise ValueError for a name that did not play."""
    for name in asked:
        if name not in names:
            raise ValueError(f"no {side} {name!r} played here: there are {', '.join(names)}")


def _mixture(names: list[str], weights: np.ndarray) -> dict[str, float]:
    return {name: float(w) for name, w in zip(names, weights, strict=False) if w > 1e-6}


def play(
    attackers: Mapping[str, Attack], defenders: Mapping[str, nn.Module | Detector | Defender], x: Tensor, y: Tensor, *,
    eps: float, norm: str = "linf", seed: int = 0, measured: Measured | None = None, group: str = "game",
) -> Played:
    """Every attacker against every defender, on the images x (N, C, H, W) in [0, 1] with labels y (N,).

    Each attack is asked about all images, from the same seed, so that no cell depends on the others, nor on their
    order. Success is measured on what the attack returned, projected onto the ball. With `measured`, under the full
    profile, every cell is kept in `group` as soon as it is there, and is not measured again as long as images, radius,
    seed, the attack's settings and the defender's answers are the same: a run that was killed goes on where it was, and
    a finished one measures the rows and columns that are new. Warnings of a misleading gradient are silenced: the
    table says what they warn of.
    Cost: the attacks', and one pass for each cell. Raises ValueError or TypeError for what makes no sense.
    """
    check_images(x)
    for side, members, example in (("attackers", attackers, "knows(pgd)"), ("defenders", defenders, "model")):
        if not isinstance(members, Mapping):
            raise TypeError(f'{side} have names: {{"a name": {example}}}, not a {type(members).__name__}')
    if not attackers or not defenders:
        raise ValueError("a game needs at least one attacker and one defender")
    for name, attack in attackers.items():
        if not isinstance(attack, Attack):
            method = getattr(attack, "__name__", "method")
            raise TypeError(f"the attacker {name!r} is a {type(attack).__name__}: say what it is shown of a defender, "
                            f"such as knows({method}), elsewhere(source, {method}) or past({method})")
    ball(norm, eps)
    if NOBODY in attackers:
        raise ValueError(f"{NOBODY!r} stands for the clean images: give this attacker another name")
    sides = {name: Defender.of(d) for name, d in defenders.items()}
    kept = _Kept(measured, group, {
        "eps": eps, "norm": norm, "images": len(x), "of": _digest(x, y), "seed": seed})
    held, alike = Outcomes(PARTS), dict[str, Any]()
    for d, defender in sides.items():
        z = logits(defender.model, x) if not defender.random else logits(defender.inner, x)
        check_labels(y, x, z.shape[1])
        clean = held[d, NOBODY] = defender.right(x, y).cpu().numpy()
        for a, attack in attackers.items():
            made = _short(f"{attack.text} on {_summary(defender, z, clean)}".encode())
            known = kept.cell(d, a, made)
            if known is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", MisleadingModel)
                    x_adv = alike[a] if a in alike else attack.run(defender, x, y, eps, norm, seed)
                    if x_adv is not None:
                        check_returned(x_adv, x, attack.text)
                    if attack.alike:
                        alike[a] = x_adv
                    known = None if x_adv is None else clean & defender.withstands(x_adv, y).cpu().numpy()
            if known is not None:
                held[d, a] = known
                kept.keep(held, d, a, made)
        if not any((d, a) in held for a in attackers):
            raise ValueError(f"none of these attackers belongs to {d!r}: add one that knows it, such as knows(pgd)")
    kept.done(held)
    return Played(held)


class _Kept:
    """The cells in a chapter's file that were made in the same way, each with a digest of what it is made of."""

    def __init__(self, measured: Measured | None, group: str, about: dict[str, Any]):
        self.measured, self.group, self.about = measured, group, about
        found = {} if measured is None or not measured.write else measured.made(group)
        same = all(found.get(k) == v for k, v in self.about.items())
        self.made: dict[str, str] = dict(found["made"]) if same else {}
        self.held = Outcomes.unpacked(found["outcomes"]) if same else Outcomes(PARTS)

    def cell(self, d: str, a: str, made: str) -> np.ndarray | None:
        return self.held[d, a] if self.made.get(f"{d}/{a}") == made else None

    def keep(self, held: Outcomes, d: str, a: str, made: str) -> None:
        self.made[f"{d}/{a}"] = made
        if self.measured is not None:
            union = Outcomes(PARTS, dict(self.held) | dict(held))
            self.measured.keep(self.group, **self.about, outcomes=union.packed(), made=self.made, finished=False)

    def done(self, held: Outcomes) -> None:
        if self.measured is not None:
            made = {f"{d}/{a}": text for d, a in held if (text := self.made.get(f"{d}/{a}"))}
            self.measured.keep(self.group, **self.about, outcomes=held.packed(), made=made, finished=True)


def _short(what: bytes) -> str:
    return hashlib.sha256(what).hexdigest()[:16]


def _digest(x: Tensor, y: Tensor) -> str:
    return _short(x.detach().cpu().contiguous().numpy().tobytes() + y.cpu().numpy().tobytes())


def _summary(defender: Defender, z: Tensor, clean: np.ndarray) -> str:
    """What tells two defenders under one name apart: how they answer these images."""
    numbers = [*z.detach().cpu().double().abs().mean(0).tolist(), float(clean.mean())]
    if defender.detector is not None:
        numbers.append(float(defender.detector.tau or 0.0))
    return " ".join(f"{v:.4g}" for v in numbers)


