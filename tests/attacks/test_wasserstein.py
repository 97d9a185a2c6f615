"""Plans against linear programmes on 4 × 4 images, Lambert's W against scipy's; mass, box and ball of what returns."""
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.special import wrightomega
from torch import nn

from kit.attacks import transport, wasserstein
from kit.attacks.wasserstein import COSTS, Moves, best_plan, omega, project_plan, sinkhorn_plan, within
from kit.core import fooled, generator, logits, margin

RULES = ("frank-wolfe", "projected", "sinkhorn")


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64)


def best_gain(x, g, budget, cost="squared", cap=None, reach=9):
    """max ⟨g, x'⟩ over the plans of one image (h, w), by scipy: every pair of pixels is a variable."""
    h, w = x.shape
    pixels = list(itertools.product(range(h), range(w)))
    pairs = [(i, j) for i, p in enumerate(pixels) for j, q in enumerate(pixels)
             if max(abs(p[0] - q[0]), abs(p[1] - q[1])) <= reach]
    of = {"squared": lambda a, b: a * a + b * b, "euclidean": np.hypot, "city": lambda a, b: abs(a) + abs(b)}[cost]
    c = np.array([of(pixels[i][0] - pixels[j][0], pixels[i][1] - pixels[j][1]) for i, j in pairs])
    leaves, arrives = np.zeros((2, h * w, len(pairs)))
    for k, (i, j) in enumerate(pairs):
        leaves[i, k] = arrives[j, k] = 1
    limits, bounds = [c], [float(budget)]
    if cap is not None:
        limits, bounds = [c, *arrives], [float(budget), *[cap] * (h * w)]
    found = linprog(-(g.numpy().flatten() @ arrives), A_ub=np.array(limits), b_ub=bounds, A_eq=leaves,
                    b_eq=x.numpy().flatten())
    assert found.success
    return -found.fun


@pytest.mark.parametrize("cost", COSTS)
def test_the_best_plan_is_that_of_the_linear_programme(cost):
    x, g = rand(5, 1, 4, 4), rand(5, 1, 4, 4, seed=1) - 0.5
    moves = Moves(x, 7, cost)
    for eps in (0.0, 0.3, 1.0, 30.0):
        budget = eps * moves.total(moves.mass)
        plan = best_plan(moves, g, budget)
        gain = (g * moves.image(plan)).sum((1, 2, 3))
        exact = [best_gain(x[i, 0], g[i, 0], budget[i], cost) for i in range(5)]
        assert torch.allclose(gain, torch.tensor(exact, dtype=torch.float64), atol=1e-7)
        assert (moves.paid(plan) <= budget + 1e-9).all()
        assert torch.allclose(plan.sum(1), moves.mass)


def test_a_plan_keeps_to_its_channel_and_window():
    x = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    x[0, 1, 2, 2] = 0.5
    g = torch.zeros_like(x)
    g[0, 0], g[0, 1, 2, 4], g[0, 1, 1, 2] = 9, 3, 1  # the other channel; two away; next to it
    moves = Moves(x, 3, "squared")
    end = moves.image(best_plan(moves, g, torch.tensor([9.0], dtype=torch.float64)))
    assert end[0, 1, 1, 2] == pytest.approx(0.5)
    assert end.sum() == pytest.approx(0.5)


@pytest.mark.parametrize("cost", COSTS)
def test_the_projection_is_the_nearest_plan(cost):
    """At the nearest plan p of z no plan s has ⟨z − p, s − p⟩ > 0: the programme over all plans finds none."""
    x = rand(3, 1, 4, 4)
    moves = Moves(x, 7, cost)
    z = moves.stay + 0.8 * (rand(*moves.stay.shape, seed=2) - 0.3) * moves.inside
    budget = 0.4 * moves.total(moves.mass)
    plan = project_plan(moves, z, budget)
    assert torch.allclose(moves.paid(plan), budget, rtol=1e-9)
    assert torch.allclose(plan.sum(1), moves.mass)
    assert plan.min() >= 0
    assert (plan[~moves.inside] == 0).all()
    for i in range(3):
        rows = moves.of == i
        push, inside = (z - plan)[rows], moves.inside[rows]
        row, offset = inside.nonzero(as_tuple=True)
        leaves = (row[None] == torch.arange(int(rows.sum()))[:, None]).double()
        best = linprog(-push[inside].numpy(), A_ub=moves.cost[offset][None].numpy(), b_ub=[float(budget[i])],
                       A_eq=leaves.numpy(), b_eq=moves.mass[rows].numpy())
        assert -best.fun - float((push * plan[rows]).sum()) == pytest.approx(0, abs=1e-7)
    free = project_plan(moves, moves.stay, budget)
    assert torch.allclose(free, moves.stay)  # what is inside stays


def test_one_bright_pixel_moves_as_far_as_it_may():
    """A pixel of mass 1, ε = 0.25 squared pixels: a quarter of it goes one pixel, or a sixteenth two pixels."""
    x = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    x[0, 0, 3, 3] = 1
    g = torch.zeros_like(x)
    g[0, 0, 3, 5] = 1
    budget = torch.tensor([0.25], dtype=torch.float64)
    for cost, share in (("squared", 1 / 16), ("euclidean", 1 / 8), ("city", 1 / 8)):
        moves = Moves(x, 5, cost)
        end = moves.image(best_plan(moves, g, budget))
        assert end[0, 0, 3, 5] == pytest.approx(share)
        assert transport(x, end, cost=cost) == pytest.approx(0.25)
    g[0, 0, 3, 4] = 1
    moves = Moves(x, 5, "squared")
    assert moves.image(best_plan(moves, g, budget))[0, 0, 3, 4] == pytest.approx(0.25)


def test_the_entropic_projection_approaches_the_exact_one():
    """‖x' − z*‖² ≤ 2 (max_s ⟨y − x', s⟩ − ⟨y − x', x'⟩), z* the nearest image to y in the ball: the gap, by a linear
    programme, goes to 0 as λ grows."""
    x = rand(2, 1, 4, 4) + 0.1
    y = (x + 0.8 * (rand(2, 1, 4, 4, seed=3) - 0.5))
    moves = Moves(x, 7, "squared")
    budget = 0.05 * moves.total(moves.mass)
    gaps = []
    for sharpness in (30.0, 300.0, 3000.0):
        end = moves.image(sinkhorn_plan(moves, y, budget, sharpness=sharpness, inner=3000))
        push = y - end
        gaps.append([best_gain(x[i, 0], push[i, 0], budget[i]) - float((push * end)[i].sum()) for i in range(2)])
        assert torch.allclose(end.sum((1, 2, 3)), x.sum((1, 2, 3)))
    gaps = torch.tensor(gaps)
    assert (gaps[1:] < 0.5 * gaps[:-1]).all()
    assert gaps[-1].max() < 2e-3
    assert (gaps > -1e-4).all()
    assert gaps[0].min() > 1e-3  # and at first it is not exact


def test_lambert_w():
    v = torch.linspace(-80, 3000, 4001, dtype=torch.float64)
    assert np.allclose(omega(v).numpy(), wrightomega(v.numpy()), rtol=1e-10)
    assert omega(torch.tensor([-torch.inf])) == 0


def test_what_a_pixel_cannot_hold_goes_back():
    x = rand(4, 1, 6, 6).round(decimals=1)
    x[:, :, 2:4] = 1
    moves = Moves(x, 5, "squared")
    budget = 0.5 * moves.total(moves.mass)
    plan = best_plan(moves, rand(4, 1, 6, 6, seed=5), budget)
    assert moves.image(plan).amax() > 1.5
    fits = within(moves, plan, budget)
    assert moves.image(fits).amax() <= 1 + 1e-6
    assert fits.min() >= 0
    assert (moves.paid(fits) <= budget).all()
    assert torch.allclose(fits.sum(1), moves.mass)
    assert (moves.image(fits) - x).abs().amax((1, 2, 3)).min() > 0.05  # not all of it
    assert torch.allclose(within(moves, fits, budget), fits)


def test_an_image_for_which_no_room_is_found_stays_and_no_other(monkeypatch):
    """Nothing may be sent back: the first image gets overfull, the second keeps its full pixel and moves another."""
    monkeypatch.setitem(within.__globals__, "RETURNS", 0)
    x = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    x[0, 0, 0], x[1, 0, 0] = torch.tensor([1, 0, 0.5, 0.6, 0]).double(), torch.tensor([1, 0, 0, 0, 0.6]).double()
    g = torch.zeros_like(x)
    g[0, 0, 0, 1], g[1, 0, 0, 3], g[1, 0, 0, 0] = 9, 5, 3  # 1 + 0.5 go to the pixel between them; 0.6 go next door
    moves = Moves(x, 3, "squared")
    plan = best_plan(moves, g, torch.tensor([9.0, 9.0], dtype=torch.float64))
    assert moves.image(plan)[:, 0, 0].amax(1).tolist() == pytest.approx([1.5, 1.0])
    end = moves.image(within(moves, plan, torch.tensor([9.0, 9.0], dtype=torch.float64)))
    assert torch.equal(end[0], x[0])
    assert end[1, 0, 0].tolist() == pytest.approx([1, 0, 0, 0.6, 0])


def test_what_moves_nothing_pays_nothing():
    x = rand(2, 1, 3, 3)
    moves, none = Moves(x, 3, "squared"), torch.zeros(2, dtype=torch.float64)
    assert torch.equal(within(moves, moves.stay, none), moves.stay)
    plan = best_plan(moves, rand(2, 1, 3, 3, seed=1), 0.5 * moves.total(moves.mass))
    assert torch.allclose(within(moves, plan, none), moves.stay)
    assert torch.allclose(project_plan(moves, plan, none), moves.stay)


def test_a_pixel_of_hardly_any_mass_can_be_projected():
    """So little that, beside the plan's entries, it is lost in rounding."""
    x = torch.tensor([0.7, 1e-20, 0.2, 1e-30]).view(1, 1, 2, 2)
    moves = Moves(x, 3, "euclidean")
    plan = moves.stay + 0.3 * rand(*moves.stay.shape).float()
    found = project_plan(moves, plan, torch.tensor([0.1]))
    assert torch.allclose(found.sum(1), moves.mass, atol=1e-6)
    assert found.min() >= 0


@pytest.fixture(scope="module")
def linear():
    """Two classes, so that the gain is linear in x'; y is the class of x."""
    x = 0.6 * rand(4, 1, 4, 4, seed=7)
    w = rand(16, seed=8) - 0.5
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    model[1].weight.data = torch.stack([w, -w])
    model[1].bias.data.zero_()
    return model, x, logits(model, x).argmax(1), w.view(4, 4)


@pytest.mark.parametrize(("by", "scale", "share"), [
    ("frank-wolfe", 0.2, 0.9999), ("projected", 0.2, 0.99), ("sinkhorn", 0.2, 0.5),  # no pixel can get full
    ("frank-wolfe", 1.0, 0.93), ("projected", 1.0, 0.93), ("sinkhorn", 1.0, 0.5)])
def test_it_reaches_what_the_linear_programme_allows(linear, by, scale, share):
    """With the box: beyond the programme's image there is nothing, and near it there is the attack's. (Sinkhorn's step
    along the sign climbs ⟨sign ∇ℓ, x'⟩, and its entropy holds it back.)"""
    model, x, _, w = linear
    x, eps = scale * x, 0.2
    y = logits(model, x).argmax(1)
    x_adv = wasserstein(model, x, y, eps=eps, by=by, steps=60, step=0.1, window=7, loss=margin)
    parts = []
    for i in range(4):
        push = -w if y[i] == 0 else w
        exact = best_gain(x[i, 0], push, eps * x[i].sum(), cap=1.0) - float((push * x[i, 0]).sum())
        parts.append(float((push * (x_adv - x)[i, 0]).sum()) / exact)
    assert min(parts) >= share, parts
    assert max(parts) <= 1 + 1e-5
    back = wasserstein(model, x, 1 - y, eps=eps, by=by, steps=5, window=7)  # the other sign lowers it
    assert ((logits(model, back) - logits(model, x))[torch.arange(4), 1 - y] < 0).all()


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("by", RULES)
def test_mass_box_and_ball_of_what_is_returned(linear, by, cost):
    model, x, y, _ = linear
    x = x.clone()
    x[:, :, 1] = 1
    eps = torch.tensor([0.0, 0.05, 0.2, 0.4], dtype=torch.float64)
    x_adv = wasserstein(model, x, y, eps=eps, by=by, steps=8, window=5, cost=cost)
    assert torch.allclose(x_adv.sum((2, 3)), x.sum((2, 3)), atol=1e-5)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    size = transport(x, x_adv, cost=cost)
    assert (size <= eps + 1e-5).all()
    assert (size[1:] > 0.3 * eps[1:]).all()
    assert torch.allclose(x_adv[0], x[0], atol=1e-6)


def test_a_target_a_black_image_and_early_success(linear):
    model, x, y, _ = linear
    x_adv = wasserstein(model, x, y, target=1 - y, eps=2.0, steps=10)
    assert torch.equal(fooled(model, x_adv, y), fooled(model, wasserstein(model, x, y, eps=2.0, steps=10), y))
    assert (logits(model, x_adv)[torch.arange(4), 1 - y] > logits(model, x)[torch.arange(4), 1 - y]).all()
    black = x.clone()
    black[1] = 0
    x_adv = wasserstein(model, black, y, eps=0.5, steps=4)
    assert torch.equal(x_adv[1], black[1])
    assert torch.allclose(x_adv[2], wasserstein(model, x, y, eps=0.5, steps=4)[2])


def test_transport_measures():
    """A shift by two columns costs 4, 2 and 2; scaling costs nothing; what leaves the window is out of reach."""
    x = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    x[:, 0, 2:4, 1:3] = torch.tensor([[0.2, 0.4], [0.6, 0.8]])
    shifted = x.roll(2, 3)
    assert torch.allclose(transport(x, shifted), torch.full((2,), 4.0, dtype=torch.float64))
    assert torch.allclose(transport(x, shifted, cost="city"), torch.full((2,), 2.0, dtype=torch.float64))
    diagonal = x.roll((1, 1), (2, 3))
    assert transport(x, diagonal, cost="euclidean")[0] == pytest.approx(2**0.5)
    assert transport(x, 0.5 * x)[0] == pytest.approx(0)
    assert transport(x, shifted, window=3)[0] == torch.inf
    assert transport(x, torch.zeros_like(x))[0] == torch.inf
    assert transport(0 * x, 0 * x).tolist() == [0, 0]
    assert transport(x[..., 2:3, 1:2], x[..., 2:3, 1:2]).tolist() == [0, 0]


def test_mistakes_get_one_sentence(linear):
    model, x, y, _ = linear
    for options, words in (({"by": "clip"}, "by must be one of"), ({"cost": "l2"}, "cost must be one of"),
                           ({"window": 4}, "odd number"), ({"window": 2.5}, "odd number"),
                           ({"sharpness": -1.0}, "sharpness")):
        with pytest.raises(ValueError, match=words):
            wasserstein(model, x, y, eps=0.1, **options)
    with pytest.raises(ValueError, match="same shape"):
        transport(x, x[:2])


def test_the_best_on_the_way_is_what_returns():
    """The same steps go before more of them, so that more are never worse; one step is seen, and a rough one undone."""
    x = rand(3, 1, 4, 4, seed=9)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(3 * (rand(*p.shape, seed=20 + k) - 0.5))
    y = logits(model, x).argmax(1)
    for by, step in (("frank-wolfe", 0.1), ("projected", 3.0)):
        gains = torch.stack([margin(logits(model, wasserstein(
            model, x, y, eps=0.4, by=by, steps=steps, step=step, loss=margin)), y) for steps in range(1, 9)])
        assert (gains[0] > margin(logits(model, x), y)).all(), by
        assert (gains[1:] >= gains[:-1] - 1e-9).all(), by


def test_sharpness_and_inner_are_those_that_are_given(linear):
    model, x, y, _ = linear
    soft, sharp, few = (wasserstein(model, x, y, eps=0.1, by="sinkhorn", steps=1, sharpness=s, inner=i)
                        for s, i in ((30.0, 50), (1000.0, 50), (1000.0, 1)))
    assert (soft - sharp).abs().max() > 1e-3
    assert (few - sharp).abs().max() > 1e-3
