"""NES, SPSA and their kin: exact distances on linear networks, exact counts, and what each does alone."""
import inspect

import pytest
import torch
from torch import nn

import kit.attacks
from kit.attacks import bim, nes, zo_admm, zo_ngd, zo_svrg
from kit.attacks.scores import estimators
from kit.attacks.scores.estimators import Top
from kit.core import Progress, QueryCounter, ball, fooled, generator, logits
from tests.attacks.scores.blind import Blind, Recorded

BOUNDED = {"nes": {"step": 0.05}, "spsa": {"q": 20, "lr": 0.03}, "zo_ngd": {}, "zo_admm": {"c": 3.0}}
NEAREST = {"zo_sign_sgd": 1.1, "zo_adamm": 1.1, "zo_svrg": 1.2}  # how near they come, over the exact distance


@pytest.fixture(scope="module")
def case():
    """A linear network on 6 × 7 pixels, far from the box, and the distances to the nearest other class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(42, 5)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(3), dtype=p.dtype) / 3)
    x = 0.3 + 0.4 * torch.rand(8, 1, 6, 7, generator=generator(5), dtype=torch.float64)
    z, w = model(x).detach(), model[1].weight.detach()
    y = z.argmax(1)
    exact = {}
    for norm, dual in (("linf", 1), ("l2", 2)):
        gaps = (z.gather(1, y[:, None]) - z) / (w[y][:, None] - w[None]).norm(dual, dim=2)
        exact[norm] = gaps.masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).amin(1)
    return Blind(model), x, y, exact


def attack(name):
    return getattr(kit.attacks, name)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", BOUNDED)
def test_a_ball_of_1_3_times_the_exact_distance_is_enough_and_of_0_99_is_not(case, name, norm):
    model, x, y, exact = case
    trace = Progress(x)
    x_adv = attack(name)(model, x, y, eps=1.3 * exact[norm], norm=norm, max_queries=2000, trace=trace, **BOUNDED[name])
    assert fooled(model, x_adv, y).all()
    assert (ball(norm, 1).norm(x_adv - x) <= 1.3 * exact[norm] * (1 + 1e-6)).all()
    assert (trace.first > 1).all()
    x_adv = attack(name)(model, x, y, eps=0.99 * exact[norm], norm=norm, max_queries=500, **BOUNDED[name])
    assert not fooled(model, x_adv, y).any()


@pytest.mark.parametrize("box", ["tanh", "clip"])
@pytest.mark.parametrize("name", NEAREST)
def test_the_nearest_come_to_the_exact_distance(case, name, box):
    model, x, y, exact = case
    x_adv = attack(name)(model, x, y, box=box, max_queries=3000)
    assert fooled(model, x_adv, y).all()
    ratio = (x_adv - x).flatten(1).norm(dim=1) / exact["l2"]
    assert ratio.min() >= 1
    assert ratio.max() < NEAREST[name] + 0.05 * (box == "clip")


@pytest.mark.parametrize("name", [*BOUNDED, *NEAREST])
def test_towards_a_target(case, name):
    model, x, y, _ = case
    target = (y + 1) % 5
    settings = {"eps": 0.4, **BOUNDED[name]} if name in BOUNDED else {"c": 10.0, "lr": 0.03}
    x_adv = attack(name)(model, x, y, target=target, max_queries=3000, **settings)
    assert fooled(model, x_adv, y, target).all()


@pytest.mark.parametrize("name", [*BOUNDED, *NEAREST])
def test_the_budget_is_used_and_never_exceeded(case, name):
    model, x, y, exact = case
    already = y.clone()
    already[0] = (y[0] + 1) % 5
    for budget in (1, 2, 3, 30, 151):
        counter = QueryCounter(model, len(x))
        settings = {"eps": 0.5 * exact["linf"]} if name in BOUNDED else {}
        x_adv = attack(name)(counter, x, already, max_queries=budget, **settings)
        assert counter.counts[0] == 1
        assert torch.equal(x_adv[0], x[0])
        assert (counter.counts[1:] <= budget).all()
        assert (counter.counts[1:] >= budget - 2).all()  # a pair is not taken apart


def test_an_iteration_asks_about_v_once_and_about_all_directions_together(case):
    model, x, y, exact = case
    network = Recorded(model)
    nes(network, x[:2], y[:2], eps=0.3 * exact["linf"][:2], q=4, max_queries=28)  # two passes look at the model
    assert [len(v) for v in network.asked[2:]] == [2, 16, 2, 16, 2, 16, 2]


def test_nes_halves_its_step_on_a_plateau(case):
    """Within a ball that holds no success ℓ stops growing, at the corner, and steps of v stop too."""
    model, x, y, exact = case
    network = Recorded(model)
    nes(network, x[:1], y[:1], eps=0.05 * exact["l2"][:1], norm="l2", q=3, step=0.1, mu=0.0, max_queries=1500)
    seen = [v for v in network.asked if len(v) == 1]
    moves = torch.cat(seen[3:]).diff(dim=0).flatten(1).norm(dim=1)
    assert moves[-20:].mean() < 0.3 * moves[5:25].mean()


def test_nes_keeps_its_step_while_the_value_grows(case):
    model, x, y, _ = case
    network = Recorded(model)
    nes(network, x[:1], y[:1], eps=0.5, q=50, step=1e-4, mu=0.0, max_queries=12 * 101, generator=generator(0))
    seen = [v for v in network.asked if len(v) == 1]
    moves = torch.cat(seen[2:-1]).diff(dim=0).abs().amax((1, 2, 3))
    assert len(moves) > 10  # twice five iterations, after which a step may be halved
    torch.testing.assert_close(moves, torch.full_like(moves, 1e-4))


def test_natural_steps_change_the_loss_by_what_is_said(case):
    """On a linear ℓ a step of lr ĝ/(damping + ‖ĝ‖²) raises ℓ by lr q/(d + q − 1) on average: d = 42, q = 8."""
    model, x, y, _ = case
    many, of = x[:1].expand(400, -1, -1, -1), y[:1].expand(400)
    moved = nes_like(zo_ngd, model, many, of, q=8, lr=0.05, damping=1e-9)
    z = logits(model, torch.cat([many, moved]))
    lead = z.gather(1, of.repeat(2)[:, None])[:, 0]
    rise = lead[:400] - lead[400:] + (z.masked_fill(nn.functional.one_hot(of.repeat(2), 5).bool(), -torch.inf)
                                      .amax(1)[400:] - z[:400].topk(2, 1).values[:, 1])
    assert float(rise.mean()) == pytest.approx(0.05 * 8 / 49, rel=0.1)


def nes_like(method, model, x, y, q, **settings):
    """The image after one step."""
    return method(model, x, y, eps=1.0, q=q, max_queries=2 * q + 2, **settings)


def test_admm_returns_what_is_in_ball_and_box_though_its_delta_is_not(case):
    model, x, y, exact = case
    edge = torch.where(x > 0.5, 1.0, 0.0).to(x)
    label = logits(model, edge).argmax(1)
    x_adv = zo_admm(model, edge, label, eps=0.05, rho=0.5, alpha=0.1, max_queries=300)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (x_adv - edge).abs().max() <= 0.05 + 1e-9
    assert (x_adv - edge).abs().max() > 0.04
    sparing = zo_admm(model, x, y, eps=0.5 * exact["linf"], gamma=200.0, max_queries=300)
    free = zo_admm(model, x, y, eps=0.5 * exact["linf"], gamma=0.0, max_queries=300)
    assert ((sparing - x).flatten(1).norm(dim=1) < 0.8 * (free - x).flatten(1).norm(dim=1)).all()


def stilled(monkeypatch):
    """The loop of the estimators takes no step; the list gets every estimate."""
    seen, follow = [], estimators.follow

    def watched(live, ask, gradient, rule, max_queries):
        def still(g):
            seen.append(g.clone())
            return live.v

        return follow(live, ask, gradient, still, max_queries)

    monkeypatch.setattr(estimators, "follow", watched)
    return seen


def test_svrg_at_its_snapshot_is_the_snapshot(case, monkeypatch):
    """With no step v stays v₀, where the difference with the same directions is 0: every ĝ is ĝ₀ until the next."""
    model, x, y, _ = case
    seen = stilled(monkeypatch)
    zo_svrg(model, x, y, inner=4, many=20, q=5, c=100.0, max_queries=120)
    assert len(seen) >= 8
    assert all(torch.equal(seen[0], g) for g in seen[1:4])
    assert not torch.allclose(seen[4], seen[0])
    monkeypatch.undo()
    counter = QueryCounter(model, len(x))
    zo_svrg(counter, x, y, inner=4, many=20, q=5, max_queries=1 + 21 + 3 * 11 + 1)
    assert (counter.counts == 56).all()


def test_svrg_takes_a_new_snapshot_where_the_weight_changes(case, monkeypatch):
    """c changes after 6 steps, in the midst of 4 inner ones: with v₀ where v is, ĝ stays ĝ₀, of the new objective."""
    model, x, y, _ = case
    seen = stilled(monkeypatch)
    zo_svrg(model, x, y, inner=4, switch=6, many=20, q=5, c=100.0, max_queries=180)
    assert len(seen) >= 10
    assert torch.equal(seen[4], seen[5])
    assert not torch.allclose(seen[5], seen[6])
    assert all(torch.equal(seen[6], g) for g in seen[7:10])


def test_svrg_adds_how_the_gradient_has_changed_since_the_snapshot(case, monkeypatch):
    """Of ‖v‖², beside a linear term that cancels, it changes by 2 (v − v₀): along that the correction is positive."""
    model, x, y, _ = case
    seen = []
    follow = estimators.follow

    def watched(live, ask, gradient, rule, max_queries):
        def noted(g):
            seen.append(((live.v - live.v0).clone(), g - live.g0))
            return rule(g)

        return follow(live, ask, gradient, noted, max_queries)

    monkeypatch.setattr(estimators, "follow", watched)
    zo_svrg(model, x, y, inner=4, many=20, q=5, c=0.01, box="clip", max_queries=54)
    assert len(seen) == 4
    assert all(((apart * change).sum(1) > 0).all() for apart, change in seen[1:])


def steps_along(monkeypatch, gradients):
    """Let an estimator step along these gradients, whatever it would estimate; returns the v's and the z's."""
    seen = []

    def follow(live, ask, gradient, rule, max_queries):
        for g in gradients:
            live.v = rule(torch.full_like(live.v, g))
            seen.append((live.v - (live.x if live.v.dim() == 4 else 0), vars(live).get("z")))
        return live.found.x_adv

    monkeypatch.setattr(estimators, "follow", follow)
    return seen


def test_admm_splits_and_its_dual_variable_counts_the_difference(case, monkeypatch):
    model, x, y, _ = case
    seen = steps_along(monkeypatch, [0.1, 0.1, 0.1])
    zo_admm(model, x, y, eps=0.3, c=1.0, rho=10.0, gamma=1.0, alpha=10.0)
    delta = z = s = 0.0
    for k, found in enumerate(seen, 1):
        z = 10 / 12 * (delta - s / 10)
        delta = (10 * k**0.5 * delta + 10 * z + s + 0.1) / (10 * k**0.5 + 10)
        s = s + 10 * (z - delta)
        assert torch.allclose(found[0], torch.full_like(x, delta))
        assert torch.allclose(found[1], torch.full_like(x, 10 / 12 * (delta - s / 10)))


def test_adamm_never_lets_its_second_moment_fall(case, monkeypatch):
    model, x, y, _ = case
    seen = steps_along(monkeypatch, [1.0, 0.01])
    kit.attacks.zo_adamm(model, x, y, lr=0.01)
    first = -0.01 * 0.1 / 0.7**0.5
    assert torch.allclose(seen[0][0], torch.full_like(seen[0][0], first))
    assert torch.allclose(seen[1][0], torch.full_like(seen[1][0], first - 0.01 / 2**0.5 * 0.091 / 0.7**0.5))


@pytest.mark.parametrize("name", [*BOUNDED, *NEAREST])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_answers_may_be_of_another_dtype_than_the_images(name, dtype):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False))
    model[1].weight.data = torch.randn(3, 12, generator=generator(2))
    x = torch.rand(4, 1, 3, 4, generator=generator(1))
    y = logits(model, x).argmax(1)
    settings = {"eps": 0.9, **BOUNDED[name]} if name in BOUNDED else {"c": 10.0, "lr": 0.1}
    x_adv = attack(name)(lambda v: model(v).to(dtype), x, y, max_queries=400, h=0.05, **settings)
    assert x_adv.dtype == torch.float32
    assert fooled(model, x_adv, y).any()


@pytest.mark.parametrize(("name", "setting"), [
    ("zo_admm", {"alpha": -1.0}), ("zo_adamm", {"betas": (1.0, 0.3)}), ("zo_adamm", {"betas": 0.9})])
def test_settings_under_which_nothing_descends_are_refused(case, name, setting):
    model, x, y, _ = case
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be"):
        attack(name)(model, x, y, max_queries=10, **({"eps": 0.1} if name in BOUNDED else {}), **setting)


# --- partial information --------------------------------------------------------------------------------------------

def test_the_top_classes_are_told_and_the_others_share_the_rest():
    z = torch.tensor([[3.0, 1.0, 0.0, -1.0, 2.0], [0.0, 30.0, 1.0, 0.0, 0.0]])
    p = z.softmax(1)
    told = Top(nn.Identity(), 2)(z).exp()
    assert torch.allclose(told[0, [0, 4]], p[0, [0, 4]])
    assert torch.allclose(told[0, [1, 2, 3]], (1 - p[0, 0] - p[0, 4]).expand(3) / 3)
    assert told[1].argmax() == 1
    assert told.isfinite().all()
    assert torch.allclose(Top(nn.Identity(), 5)(z).exp(), p)
    assert torch.allclose(Top(nn.Identity(), 9)(z).exp(), p)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_from_an_image_of_the_target_class_the_ball_shrinks_to_eps(case, top):
    model, x, y, _ = case
    target = (y + 1) % 5
    other = torch.rand(x.shape, generator=generator(9), dtype=x.dtype)
    other = bim(model.inner, other, y, eps=1.0, step=0.05, steps=20, target=target)
    settings = {"target": target, "start": other, "top": top, "step": 0.05, "max_queries": 6000}
    x_adv = nes(model, x, y, eps=0.3, **settings)
    assert fooled(model, x_adv, y, target).float().mean() > 0.8
    assert (x_adv - x).abs().max() <= 0.3 + 1e-9
    assert (x_adv - other).abs().flatten(1).amax(1).min() > 0.2  # it left where it began
    missed = nes(model, x, y, eps=1e-4, **settings | {"max_queries": 500})
    assert torch.equal(missed, x)  # no image within eps: as it was
    for budget in (1, 2, 3, 60):
        counter = QueryCounter(model, len(x))
        nes(counter, x, y, eps=0.3, **settings | {"max_queries": budget})
        assert (counter.counts <= budget).all()


@pytest.mark.parametrize(("sure", "end"), [(0.15, 0.7), (0.25, 0.1)])
def test_the_ball_shrinks_where_the_target_has_a_fifth_of_the_probability(sure, end):
    """Whatever the model is shown, it says this of the target: with a fifth or more v is drawn from 0.7 to eps."""
    asked, p = [], torch.tensor([0.35, sure, 0.65 - sure])

    def model(v):
        if len(v) == 1:
            asked.append(float(v.mean()) - 0.2)
        return p.log().expand(len(v), 3)

    x, of = torch.full((1, 1, 4, 4), 0.2), torch.tensor([0])
    x_adv = nes(model, x, of, eps=0.1, target=of + 1, start=x + 0.7, top=3, q=2, step=1e-3, max_queries=100)
    assert torch.equal(x_adv, x)
    assert max(asked) == pytest.approx(0.7)  # where it begins
    assert asked[-1] == pytest.approx(end, abs=0.02)


def test_partial_information_is_counted_image_by_image_when_some_are_done(case):
    model, x, y, _ = case
    target = (y + 1) % 5
    other = torch.rand(x.shape, generator=generator(9), dtype=x.dtype)
    other = bim(model.inner, other, y, eps=1.0, step=0.05, steps=20, target=target)
    counter, trace = QueryCounter(model, len(x)), Progress(x)
    nes(counter, x, y, eps=0.45, target=target, start=other, top=2, step=0.05, max_queries=2000, trace=trace)
    assert len(trace.first.unique()) > 1
    assert torch.equal(counter.counts.to(trace.first), trace.first)


def test_partial_information_says_what_it_needs(case):
    model, x, y, _ = case
    target = (y + 1) % 5
    with pytest.raises(ValueError, match="top= needs target="):
        nes(model, x, y, eps=0.3, top=1)
    with pytest.raises(ValueError, match="top= needs target="):
        nes(model, x, y, eps=0.3, top=1, target=target)
    with pytest.raises(ValueError, match="do not have it among their top 1"):
        nes(model, x, y, eps=0.3, top=1, target=target, start=x)
    with pytest.raises(ValueError, match="start= is where partial information begins: give top="):
        nes(model, x, y, eps=0.3, target=target, start=x)
    with pytest.raises(ValueError, match=r"start must have the images' shape, \(N, C, H, W\)"):
        nes(model, x, y, eps=0.3, top=1, target=target, start=x[:, :, :2])
    with pytest.raises(ValueError, match="divide them by 255"):
        nes(model, x, y, eps=0.3, top=1, target=target, start=255 * x)
    for name in ("q", "h"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            nes(model, x, y, eps=0.3, **{name: 0})


def test_every_estimator_is_among_these():
    public = {name for name in kit.attacks.__all__
              if inspect.getmodule(getattr(kit.attacks, name)) is estimators}
    assert public == {*BOUNDED, *NEAREST}
