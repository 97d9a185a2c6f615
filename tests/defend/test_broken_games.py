"""Faults in the game, in deflection and in costs that the other tests did not see; each docstring names its own."""
import numpy as np
import pytest
import torch
from torch import nn

from kit.attacks import fgsm
from kit.core import generator
from kit.defend import RandomEnsemble
from kit.defend.costs import Bits, Gaussian, Weak, ratio, robust_fit
from kit.defend.game import NOBODY, Defender, Played, knows, play
from kit.report import Measured, Outcomes


def line(w):
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 2)).double().requires_grad_(False)
    w = torch.tensor(w).double()
    model[1].weight.copy_(torch.stack([-w, w]))
    model[1].bias.zero_()
    return model.eval()


def split():
    """a: each attack takes another half, ½ under each and 0 image by image; b: both take the same ¾, ¼ by image."""
    held = Outcomes(("defender", "attacker"))
    for d in ("a", "b"):
        held[d, NOBODY] = np.ones(4, bool)
    held["a", "one"], held["a", "two"] = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)
    held["b", "one"], held["b", "two"] = np.array([1, 0, 0, 0], bool), np.array([1, 0, 0, 0], bool)
    return Played(held)


def test_who_is_best_alone_depends_on_whether_the_image_is_seen():
    """table.py game: H.max(0) or H.mean(2).min(0) for H.min(0).mean(1), in `alone` and in `pure`."""
    blind, sees = split().game(resamples=5), split().game(sees_image=True, resamples=5)
    assert (blind.best, blind.pure.value) == ("a", 0.5)
    assert (sees.best, sees.pure.value) == ("b", 0.25)


def test_the_column_mean_is_the_mean():
    """table.py table: worst[d] for average[d] in the column "mean"."""
    rows = split().table().rows
    assert [row[4].split()[0] for row in rows] == ["50", "25"]
    assert [row[5].split()[0] for row in rows] == ["0", "25"]


def test_intervals_are_the_same_for_the_same_seed():
    """table.py game: the seed of the bootstrap ignored."""
    source = np.random.default_rng(0)
    held = Outcomes(("defender", "attacker"))
    for d in ("a", "b"):
        held[d, NOBODY] = np.ones(40, bool)
        for a in ("one", "two"):
            held[d, a] = source.random(40) < 0.5
    played = Played(held)
    ends = [(g.value.low, g.value.high, g.gain.low) for g in (played.game(resamples=15, seed=s) for s in (3, 3, 4))]
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize("other", ["seed", "labels"])
def test_a_killed_run_with_another_seed_or_other_labels_begins_again(other, tmp_path):
    """table.py: the seed not in _Kept.about; the labels not in _digest."""
    # x is symmetric under the change of labels: clean share and answers stay as they are, and the cells do not.
    model, calls = line([1.0, -1.0, 1.0, -1.0]), []
    x = 0.1 + 0.8 * torch.rand(20, 1, 2, 2, generator=generator(0)).double()
    y = model(x).argmax(1)
    y[:4] = 1 - y[:4]
    z = model(x).argmax(1)
    z[4:8] = 1 - z[4:8]  # as many wrong, but others

    def first(model, x, y, *, eps):
        calls.append("first")
        return fgsm(model, x, y, eps=eps)

    def second(model, x, y, *, eps):
        raise KeyboardInterrupt

    def run(y=y, seed=0):
        with pytest.raises(KeyboardInterrupt):
            play({"first": knows(first), "second": knows(second)}, {"line": model}, x, y, eps=0.05, seed=seed,
                 measured=Measured(tmp_path / "g.json", write=True, seed=0))

    run()
    run()
    assert len(calls) == 1
    run(**({"seed": 1} if other == "seed" else {"y": z}))
    assert len(calls) == 2


def test_what_is_unaware_of_a_random_ensemble_sees_all_its_members():
    """sides.py inner: the first member alone."""
    several = RandomEnsemble([line([1.0, 0.0, 0.0, 0.0]), line([0.0, 1.0, 0.0, 0.0])], draws=2)
    assert len(Defender(several).inner.models) == 2


def test_the_draws_that_an_attacker_sees_follow_the_seed():
    """sides.py seen: the seed ignored."""
    from kit.defend import Smoothed
    x, defender = torch.rand(3, 1, 2, 2, generator=generator(0)).double(), Defender(Smoothed(line([1.0] * 4), 0.3, 2))
    a, b, c = (defender.seen(s)(x) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_everything_drawn_is_drawn_from_the_generator():
    """costs.py: a draw of `sample` or `learnt` without the generator."""
    bits, theta = Bits(40, 0.1), torch.ones(40).double()
    makers = [lambda g: Weak(d=5).sample(200, g), lambda g: Gaussian(d=5).sample(theta[:5], 9, g),
              lambda g: Gaussian(d=5).learnt(4, 9, g), lambda g: bits.sample(theta, 9, g),
              lambda g: (bits.learnt(*bits.sample(theta, 2, generator(8)), g),)]  # two samples: many ties
    for make in makers:
        assert all(torch.equal(a, b) for a, b in zip(make(generator(7)), make(generator(7)), strict=True))


def test_a_fit_starts_where_it_is_told():
    """costs.py robust_fit: `start` ignored."""
    x, y = Weak(d=5).sample(50, generator(0))
    start = torch.arange(6).double()
    assert torch.allclose(robust_fit(x, y, steps=1, lr=1e-9, start=start), start, atol=1e-6)


def test_a_margin_of_zero_without_noise_is_no_success():
    """costs.py ratio: a >= 0 for a > 0 (a rule without weights is never right)."""
    assert ratio(torch.zeros(1).double(), torch.zeros(1).double()).item() == -torch.inf


def test_the_bound_is_a_share():
    """costs.py bound: not capped at 1."""
    assert Weak(p=0.95).bound(0.5) == 1.0


def test_the_best_row_and_the_best_column_are_not_exchanged():
    """value.py solve: best_defender and best_attacker swapped."""
    from kit.defend.game import solve
    found = solve(np.array([[0.4, 0.1], [0.7, 0.9], [0.8, 0.8]]).T)  # one attack more than defences, transposed
    assert found.best_defender == 2  # keeps 0.8 under both
    assert found.best_attacker == 0  # 0.8 at most, against 0.9


def test_the_cycle_loss_is_minimised():
    """deflect.py deflection_training: − cycle for + cycle."""
    from kit.defend.deflect import deflection_training, drawings
    from kit.models import Recipe
    y = torch.arange(64) % 2
    x = 0.1 * torch.rand(64, 1, 8, 8, generator=generator(0))
    x[y == 0, :, :, :4] += 0.8
    x[y == 1, :, :, 4:] += 0.8
    r = Recipe("none", "capsules", {"size": 8, "classes": 2, "width": 4}, epochs=40, batch=16, lr=1e-2)
    model = deflection_training(r, x, y, drawn=0.0, cycle=5.0, device=torch.device("cpu")).eval()
    assert (model(drawings(model, x, y)).argmax(1) == y).all()  # no drawing is asked for, but to be seen as y


def test_the_figures_of_the_manifest():
    """deflect.py deflection_figures: | for &, or the false alarms not at 5 %."""
    from kit.core import fooled
    from kit.defend.deflect import Deflection, deflection_figures, drawings
    from kit.detect import evade
    from kit.models import Recipe
    from kit.models.purifiers import Capsules
    torch.manual_seed(0)
    model, r = Capsules(size=8, classes=2, numbers=3, width=4).eval(), Recipe("none", "capsules", {})
    x = torch.rand(80, 1, 8, 8, generator=generator(1))
    y = model(x).argmax(1)
    y[40:60] = 1 - y[40:60]
    found = deflection_figures(r, model, x, y)
    detector = Deflection(model).fit(x[:20])
    detector.threshold(x[20:40])
    x_adv = evade(model, x[40:], y[40:], detector=detector, eps=0.2, steps=40, generator=generator())
    wrong, alarm = fooled(model, x_adv, y[40:]), detector.alarm(x_adv)
    assert found["undetected_0.2"] == pytest.approx(float((wrong & ~alarm).float().mean()))
    assert (wrong | ~alarm).sum() > (wrong & ~alarm).sum()
    assert found["mse"] == pytest.approx(float((drawings(model, x, y) - x).square().mean()))
    assert found["accuracy"] == pytest.approx(0.75)


def test_best_is_the_nearest_of_the_other_classes():
    """deflect.py of: amax for amin over the other classes (two classes cannot tell)."""
    from kit.defend.deflect import Deflection, every
    from kit.models.purifiers import Capsules
    torch.manual_seed(0)
    model = Capsules(size=8, classes=4, numbers=3, width=4).double().eval().requires_grad_(False)
    x = torch.rand(6, 1, 8, 8, generator=generator(1)).double()
    errors, k = every(model, x, model.capsules(x)), model(x).argmax(1)
    expect = [float(e[j] - min(e[i] for i in range(4) if i != j)) for e, j in zip(errors, k, strict=True)]
    assert Deflection(model, ["best"]).measured(x)[:, 0].tolist() == pytest.approx(expect)
