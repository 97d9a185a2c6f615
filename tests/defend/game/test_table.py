import numpy as np
import pytest
import torch
from torch import nn

from kit.attacks import bim, deepfool, fgsm, pgd, square
from kit.core import MisleadingModel, fooled, generator
from kit.defend import RandomEnsemble, Smoothed, Squeezed, Through
from kit.defend.game import (
    NOBODY,
    Defender,
    Played,
    averaged,
    elsewhere,
    first_of,
    knows,
    past,
    play,
    unaware,
    undetected,
)
from kit.detect import Detector, Energy
from kit.report import Measured, Outcomes

EPS = 0.05


def line(w, b=0.0):
    """Two classes, z₁ − z₀ = 2 (⟨w, x⟩ + b)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 2)).double().requires_grad_(False)
    w = torch.tensor(w).double()
    model[1].weight.copy_(torch.stack([-w, w]))
    model[1].bias.copy_(torch.tensor([-b, b]))
    return model.eval()


@pytest.fixture
def case():
    """The margin of an image is m = ±(⟨w, x⟩ + b), and it is lost within ε exactly where m < ε ‖w‖₁ = 4 ε."""
    model = line([1.0, -1.0, 1.0, -1.0])
    x = 0.1 + 0.8 * torch.rand(60, 1, 2, 2, generator=generator(0)).double()
    side = model(x).diff(dim=1)[:, 0] / 2
    y = (side > 0).long()
    y[:6] = 1 - y[:6]  # wrong from the start
    return model, x, y, side.abs()


def nothing(model, x, y, *, eps):
    return x


def helpful(model, x, y, *, eps):
    """Turns everything to the right label."""
    return bim(model, x, 1 - y, eps=eps, steps=1)


def test_a_cell_is_what_the_closed_form_says_and_a_no_op_leaves_the_clean_images(case):
    model, x, y, m = case
    played = play({"FGSM": knows(fgsm), "no-op": knows(nothing)}, {"line": model}, x, y, eps=EPS)
    right = ~fooled(model, x, y)
    assert right.tolist() == [False] * 6 + [True] * 54
    assert (played.held["line", NOBODY] == right.numpy()).all()
    assert (played.held["line", "no-op"] == right.numpy()).all()
    robust = right & (m > 4 * EPS)
    assert (played.held["line", "FGSM"] == robust.numpy()).all()
    assert 5 < int(robust.sum()) < 50
    assert (played.worst()["line"] == robust.numpy()).all()
    assert played.best_attack("line") == "FGSM"
    assert played.average()["line"] == pytest.approx((robust.double() + right.double()).numpy() / 2)


def test_what_was_wrong_is_not_won_by_an_attack_that_turns_it_right(case):
    model, x, y, _ = case
    played = play({"helpful": knows(helpful)}, {"line": model}, x, y, eps=1.0)
    assert not played.held["line", "helpful"][:6].any()
    assert played.held["line", "helpful"][6:].all()


def test_the_worst_is_below_every_cell_and_their_order_does_not_matter(case):
    model, x, y, _ = case
    noisy = Smoothed(model, 0.05, 4)
    attackers = {"FGSM": knows(fgsm), "PGD": knows(pgd, steps=3, restarts=2), "Square": knows(square, max_queries=5),
                 "elsewhere": elsewhere(line([1.0, -1.0, -1.0, 1.0]), bim), "averaged": averaged(pgd, steps=2)}
    defenders = {"line": model, "other": line([1.0, -0.5, 0.2, -1.0]), "noisy": noisy}
    once = play(attackers, defenders, x, y, eps=EPS, seed=3)
    turned = play(dict(reversed(attackers.items())), dict(reversed(defenders.items())), x, y, eps=EPS, seed=3)
    assert set(once.held) == set(turned.held)
    assert all((once.held[place] == turned.held[place]).all() for place in once.held)
    assert all((once.worst()[d] == turned.worst()[d]).all() for d in defenders)
    assert [once.best_attack(d) for d in defenders] == [turned.best_attack(d) for d in defenders]
    for d in defenders:
        for kept in once.against(d).values():
            assert (once.worst()[d] <= kept).all()
            assert (kept <= once.held[d, NOBODY]).all()
    alone = play({"PGD": attackers["PGD"]}, {"line": model}, x, y, eps=EPS, seed=3)
    assert (alone.held["line", "PGD"] == once.held["line", "PGD"]).all()


def test_another_seed_is_another_attack_and_the_ambient_state_is_kept(case):
    model, x, y, _ = case
    seen = []

    def noise(model, x, y, *, eps, generator):
        seen.append(torch.rand(3, generator=generator))
        return x

    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        play({"noise": knows(noise)}, {"line": model}, x, y, eps=EPS, seed=seed)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_what_leaves_the_ball_is_brought_back(case):
    model, x, y, m = case
    played = play({"DeepFool": knows(lambda model, x, y: deepfool(model, x, y, norm="l2")),  # knows no radius
                   "opposite": knows(lambda model, x, y: 1 - x)}, {"line": model}, x, y, eps=EPS)
    lost = ~torch.from_numpy(played.worst()["line"]) & (torch.arange(60) >= 6)
    assert 0 < lost.sum() < 54
    assert (m[lost] <= 4 * EPS + 1e-9).all()  # no image is lost that no attack within the ball can take


def test_where_each_attack_belongs(case):
    model, x, y, _ = case
    attackers = {"unaware": unaware(fgsm), "BPDA": past(fgsm), "EOT": averaged(fgsm), "detector": undetected(steps=2)}
    clean = Squeezed(model, "bit_depth", 4)
    detector = Energy(model)
    detector.threshold(x, fpr=0.1)
    defenders = {"plain": model, "cleaner": clean, "draws": Smoothed(model, 0.05, 4), "refuses": detector,
                 "several": RandomEnsemble([model], draws=2)}
    played = play({"knows": knows(fgsm), **attackers}, defenders, x, y, eps=EPS)
    belongs = {d: {a for a in attackers if (d, a) in played.held} for d in defenders}
    assert belongs == {"plain": set(), "cleaner": {"unaware", "BPDA"}, "draws": {"unaware", "EOT"},
                       "refuses": {"detector"}, "several": {"unaware", "EOT"}}
    adapts = first_of(attackers["detector"], attackers["EOT"], attackers["BPDA"])
    again = play({"adapts": adapts, "knows": knows(fgsm)}, defenders, x, y, eps=EPS)
    for d, a in (("cleaner", "BPDA"), ("draws", "EOT"), ("refuses", "detector")):
        assert (again.held[d, "adapts"] == played.held[d, a]).all()
    assert ("plain", "adapts") not in again.held
    with pytest.raises(ValueError, match="none of these attackers belongs to 'plain'"):
        play(attackers, {"plain": model}, x, y, eps=EPS)


class Bright(Detector):
    def discrepancy(self, x):
        return x.flatten(1).mean(1)


def test_a_refused_attack_is_lost_and_a_refused_clean_image_as_well(case):
    model, x, y, _ = case
    detector = Bright(model)
    detector.tau = float(x.flatten(1).mean(1).median())
    everything = knows(lambda model, x, y: torch.ones_like(x))  # wrong for class 0, and as bright as can be
    played = play({"bright": everything, "FGSM": knows(fgsm)}, {"refuses": detector}, x, y, eps=EPS)
    dark = (x.flatten(1).mean(1) <= detector.tau).numpy()
    right = (~fooled(model, x, y)).numpy()
    assert (played.held["refuses", NOBODY] == (dark & right)).all()
    taken = (x + EPS).clamp(0, 1)
    refused = (taken.flatten(1).mean(1) > detector.tau).numpy()
    lost = fooled(model, taken, y).numpy() & ~refused
    assert (played.held["refuses", "bright"] == (dark & right & ~lost)).all()
    assert refused.any()


def test_draws_are_judged_by_others_than_the_attackers_and_a_cleaner_is_seen_through(case):
    model, x, y, _ = case
    seen = []

    def spy(model, x, y, *, eps):
        seen.append(model)
        return x

    draws = Smoothed(model, 0.05, 4)
    play({"knows": knows(spy), "EOT": averaged(spy, 3), "unaware": unaware(spy)}, {"draws": draws}, x, y, eps=EPS)
    own, more, inside = seen
    assert not torch.equal(own(x), draws(x))
    assert not torch.equal(own(x), own(x))  # fresh at every pass
    assert (own.draws, more.draws, draws.draws, draws.generator) == (4, 12, 4, None)
    assert inside is model
    hidden = Through(model, lambda v: (7 * v).round() / 7)
    played = play({"PGD": knows(fgsm), "BPDA": past(fgsm)}, {"hidden": hidden}, x, y, eps=EPS)
    assert played.held["hidden", "BPDA"].sum() < played.held["hidden", "PGD"].sum()
    assert (played.held["hidden", "PGD"] == played.held["hidden", NOBODY]).all()  # the gradient is zero


def test_images_made_elsewhere_are_made_once(case):
    model, x, y, _ = case
    calls = []

    def counted(model, x, y, *, eps):
        calls.append(model)
        return x

    source = line([1.0, 1.0, 1.0, 1.0])
    play({"elsewhere": elsewhere(source, counted)}, {"a": model, "b": line([1.0, 0.0, 0.0, 0.0])}, x, y, eps=EPS)
    assert calls == [source]


def test_a_killed_run_goes_on_where_it_was(case, tmp_path):
    model, x, y, _ = case
    calls, fails = [], [True]

    def attack(name):
        def method(model, x, y, *, eps):
            if name == "second" and fails[0]:
                raise KeyboardInterrupt
            calls.append(name)
            return fgsm(model, x, y, eps=eps)

        method.__name__ = name
        return knows(method)

    attackers, defenders = {n: attack(n) for n in ("first", "second")}, {"line": model, "other": line([1.0] * 4)}

    def run(defenders=defenders, eps=EPS, write=True):
        measured = Measured(tmp_path / "game.json", write=write, seed=0)
        return play(attackers, defenders, x, y, eps=eps, measured=measured)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run()
    assert calls == ["first"]  # the second run had it already
    with pytest.raises(KeyboardInterrupt):
        run(eps=0.2)
    assert calls == ["first", "first"]  # another radius is another cell
    with pytest.raises(KeyboardInterrupt):
        run(eps=0.2, defenders={"line": line([0.1, -1.0, 1.0, -1.0])})
    assert len(calls) == 3  # another network under the same name as well
    fails[0] = False
    calls.clear()
    played = run(eps=0.2, defenders={"line": line([0.1, -1.0, 1.0, -1.0])})
    assert calls == ["second"]
    read = Outcomes.unpacked(Measured(tmp_path / "game.json", write=False)["game"]["outcomes"])
    assert set(read) == set(played.held)
    assert all((read[place] == played.held[place]).all() for place in read)
    other = {"line": line([0.1, -1.0, 1.0, -1.0])}
    again = run(eps=0.2, defenders=other)
    assert calls == ["second"]  # what was finished is kept
    assert all((again.held[place] == played.held[place]).all() for place in played.held)
    more = run(eps=0.2, defenders=other | {"new": line([1.0] * 4)})
    assert calls == ["second", "first", "second"]  # and a new row is measured alone
    assert set(more.held) > set(played.held)
    before = (tmp_path / "game.json").read_bytes()
    run(write=False)
    assert (tmp_path / "game.json").read_bytes() == before


def made_up():
    """Two defenders and two attackers on four images: each attacker takes half of the one and all of the other."""
    held = Outcomes(("defender", "attacker"))
    for d in ("a", "b"):
        held[d, NOBODY] = np.ones(4, bool)
    held["a", "one"], held["a", "two"] = np.array([1, 1, 1, 1], bool), np.array([0, 0, 0, 0], bool)
    held["b", "one"], held["b", "two"] = np.array([1, 0, 0, 0], bool), np.array([1, 1, 1, 0], bool)
    return Played(held)


def test_the_game_of_a_made_up_table():
    """M = [[1, ¼], [0, ¾]]: v = (1 · ¾ − ¼ · 0)/(1 + ¾ − ¼ − 0) = ½, and b alone keeps ¼."""
    played = made_up()
    assert played.matrix().tolist() == [[1, 0.25], [0, 0.75]]
    game = played.game(resamples=20)
    assert game.value.value == pytest.approx(0.5)
    assert (game.best, game.pure.value) == ("b", 0.25)
    assert game.gain.value == pytest.approx(0.25)
    assert game.defender == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert game.attacker == pytest.approx({"one": 0.5, "two": 0.5})
    for found in (game.value, game.pure, game.gain):
        assert found.low <= found.value <= found.high
    sees = played.game(sees_image=True, resamples=20)
    assert sees.pure.value == 0.25  # b's worst image by image: only the first is kept
    assert 0.25 <= sees.value.value <= 0.5
    assert played.only(defenders=["b"]).game(resamples=5).value.value == 0.25


def test_the_table_shows_what_was_measured():
    played = made_up()
    shown = played.table()
    assert shown.columns == ["defender", "clean", "one", "two", "mean", "worst", "strongest"]
    assert [row[0] for row in shown.rows] == ["a", "b"]
    assert shown.rows[1][2:4] == ["25", "75"]
    assert type(shown.rows[1][2]) is not type(shown.rows[1][3])  # the strongest is bold
    assert shown.rows[1][5].startswith("25 [")
    assert [row[6] for row in shown.rows] == ["two", "one"]
    assert played.table(cells=False).columns == ["defender", "clean", "mean", "worst", "strongest"]


def test_a_missing_cell_needs_somebody_in_its_place():
    held = made_up().held
    held["c", NOBODY], held["c", "one"] = np.ones(4, bool), np.array([0, 1, 1, 1], bool)
    with pytest.raises(ValueError, match="'two' was not run against 'c'"):
        Played(held).matrix()
    assert Played(held).matrix(instead="one")[:, 2].tolist() == [0.75, 0.75]


@pytest.mark.filterwarnings("error::kit.core.checks.MisleadingModel")
def test_what_makes_no_sense(case):
    model, x, y, _ = case
    one = {"FGSM": knows(fgsm)}
    for call, error, message in (
        (lambda: play({}, {"line": model}, x, y, eps=EPS), ValueError, "at least one attacker"),
        (lambda: play({NOBODY: knows(fgsm)}, {"line": model}, x, y, eps=EPS), ValueError, "stands for the clean"),
        (lambda: play(one, {"line": model}, x, y[:3], eps=EPS), ValueError, "one label per image"),
        (lambda: play(one, {"line": model}, 300 * x, y, eps=EPS), ValueError, r"\[0, 1\]"),
        (lambda: play(one, {"line": 3}, x, y, eps=EPS), TypeError, "a network or a detector"),
        (lambda: play(one, {"line": Energy(model)}, x, y, eps=EPS), ValueError, "no threshold yet"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert Defender.of(Defender(model)).model is model
    play(one, {"flat": Through(model, lambda v: v.round())}, x, y, eps=EPS)  # its warning is silenced
    assert MisleadingModel
