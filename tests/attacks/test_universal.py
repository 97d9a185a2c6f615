"""On a linear network with two classes the best δ is known, and so is the share of images that it fools."""
import math
from functools import partial

import pytest
import torch
from torch import nn

import kit.core.passes
from kit.attacks import shifted, targeted_uap, targeted_universal, uap, universal
from kit.core import MisleadingModel, Trace, ball, fooled, generator, logits, normal

EPS = {"linf": 0.05, "l2": 0.5}
DUAL = {"linf": 1, "l2": 2}


def pair(w, b=0.0):
    """f = w·x + b, as the logits (−f/2, f/2): the answer is 1 where f > 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(w.numel(), 2)).to(w.dtype)
    model[1].weight.data, model[1].bias.data = torch.stack([-w, w]) / 2, torch.tensor([-b, b]).to(w) / 2
    return model


def best(norm, w, eps):
    """argmax ⟨w, δ⟩ in the ball."""
    return (eps * w.sign() if norm == "linf" else eps * w / w.norm()).view(1, 3, 6, 6)


@pytest.fixture
def case():
    """Images away from the box; both answers are there, and that of f < 0 is much the more frequent within reach."""
    w = torch.randn(108, generator=generator(0), dtype=torch.float64)
    x = 0.5 + 0.2 * (torch.rand(80, 3, 6, 6, generator=generator(1), dtype=torch.float64) - 0.5)
    f = x.flatten(1) @ w
    return pair(w, -float(f.quantile(0.7))), x, w


def shares(model, x, w, norm, eps):
    """What the best δ to each side fools: 0 < f ≤ eps ‖w‖_q, and −eps ‖w‖_q ≤ f < 0."""
    z = logits(model, x)
    f, reach = z[:, 1] - z[:, 0], eps * w.norm(DUAL[norm])
    return float(((f > 0) & (f < reach)).double().mean()), float(((f < 0) & (-f < reach)).double().mean())


def rate(model, x, delta):
    """The share of images whose answer δ changes."""
    return float(fooled(model, shifted(x, delta), logits(model, x).argmax(1)).double().mean())


@pytest.mark.parametrize("norm", EPS)
def test_on_a_linear_network_it_is_the_best_and_fools_the_larger_share(case, norm):
    model, x, w = case
    eps = EPS[norm] / 6
    down, up = shares(model, x, w, norm, eps)
    assert 0.1 < down < up - 0.1 < 0.9
    delta = universal(model, x, eps=eps, norm=norm, batch=16, generator=generator(2))
    assert torch.allclose(delta, best(norm, w, eps), atol=1e-12)
    assert rate(model, x, delta) == up
    drawn = torch.randn(50, 108, generator=generator(3), dtype=torch.float64)
    assert sum(rate(model, x, best(norm, d, eps)) for d in drawn) / 50 < 0.4 * up


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("attack", [targeted_universal, targeted_uap])
@pytest.mark.parametrize("target", [0, 1])
def test_a_target_decides_the_side(case, attack, norm, target):
    model, x, w = case
    eps = EPS[norm] / 6
    delta = attack(model, x, target, eps=eps, norm=norm, generator=generator(2))
    assert torch.allclose(delta, (2 * target - 1) * best(norm, w, eps), atol=1e-12)
    away = logits(model, x).argmax(1) != target
    reached = fooled(model, shifted(x, delta), 0 * away.long(), torch.full_like(away.long(), target)) & away
    assert float(reached.double().mean()) == shares(model, x, w, norm, eps)[target]


def test_the_first_algorithm_adds_the_shortest_steps_and_stops_when_enough_are_fooled(case):
    """All images have one answer, so that every step is along w: in l2, δ is the best of its length."""
    model, x, w = case
    z = logits(model, x)
    side = x[z[:, 1] < z[:, 0]]
    f = (z[:, 0] - z[:, 1])[z[:, 1] < z[:, 0]]
    eps = float(f.quantile(0.6) / w.norm())
    delta = uap(model, side, eps=eps, norm="l2", enough=1.0, generator=generator(2))
    assert torch.allclose(delta, best("l2", w, eps), atol=1e-9)
    assert rate(model, side, delta) == float((f < eps * w.norm()).double().mean())
    early = uap(model, side, eps=10 * eps, norm="l2", enough=0.5, rounds=1, generator=generator(2))
    first = torch.randperm(len(side), generator=generator(2))[0]
    assert float(early.flatten().norm()) >= float(f[first] / w.norm())  # over the boundary of the first at least
    assert float(early.flatten().norm()) <= 1.03 * float(f.max() / w.norm())  # and no farther than one has to
    assert rate(model, side, early) == 1
    flat = uap(model, side, eps=eps / 3, norm="linf", enough=1.0, generator=generator(2))
    assert torch.equal(flat.flatten().sign(), w.sign())
    assert float(flat.abs().max()) == eps / 3


class Curved(nn.Module):
    """z = (exp(u) − 0.1, 0) with u = w·x + b: Newton's steps towards the boundary u = log 0.1 fall short."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x):
        lead = (x.flatten(1) @ self.w + self.b).exp() - 0.1
        return torch.stack([lead, 0 * lead], 1)


def test_a_walk_that_takes_longer_than_the_last_step_but_two_is_left_out(case):
    """As in the original, which keeps those of fewer than `steps` − 1 steps."""
    _, x, w = case
    model = Curved(w, 1.0 - float(x[0].flatten() @ w))
    u, needed = 1.0, 0
    while u > math.log(0.1):
        u, needed = u - 1.02 * (1 - 0.1 * math.exp(-u)), needed + 1
    assert needed > 3
    kept = uap(model, x[:1], eps=10.0, norm="l2", steps=needed + 2)
    assert torch.allclose(kept.flatten(), -(1 - u) * w / w.norm() ** 2, atol=1e-3)
    assert not uap(model, x[:1], eps=10.0, norm="l2", steps=needed + 1, rounds=3).any()


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_a_walk_crosses_the_boundary_with_what_the_model_is_shown(case, edge):
    """Of a step along w the box takes what it adds to saturated pixels. One that knows no box believes to be across."""
    _, x, w = case
    x = x[:1].clone()
    x[0][(w.view(3, 6, 6) < 0) if edge == 0 else (w.view(3, 6, 6) > 0)] = edge
    f, left = float(x.flatten() @ w), w[w > 0] if edge == 0 else w[w < 0]
    model = pair(w, -f - 0.3)
    delta = uap(model, x, eps=10.0, norm="l2", rounds=1, steps=3)
    assert torch.allclose(delta.flatten(), 1.02 * 0.3 / left.square().sum() * w, rtol=1e-3)
    assert float(shifted(x, delta).flatten() @ w) - f == pytest.approx(1.02 * 0.3, rel=1e-3)
    assert rate(model, x, delta) == 1


def test_the_first_algorithm_shows_the_model_images_alone(case):
    """At the edges of the box too, where x + δ lies outside, in the middle of a walk as at its ends."""
    _, x, w = case
    model, x, shown = pair(w), x.round(), []

    class Watched(nn.Module):
        def forward(self, v):
            shown.append(v.detach())
            return model(v)

    uap(Watched(), x[:8], eps=3.0, norm="l2", rounds=1, enough=1.0)
    seen = torch.cat(shown)
    assert seen.min() >= 0
    assert seen.max() <= 1


@pytest.mark.parametrize(("free", "crosses"), [(0, False), (1, False), (10, True)])
def test_an_image_is_left_out_where_the_box_leaves_less_than_a_tenth_of_a_step(case, free, crosses):
    """One step would have to be so long that δ would be made for this image's few free pixels alone."""
    _, x, w = case
    x = x[:1].clone()
    x[0] = (w.view(3, 6, 6) > 0).double()
    x.view(-1)[:free] = 0.5
    share = float(w[:free].square().sum() / w.square().sum())
    assert share > 0.1 if crosses else share < 0.09
    model = pair(w, -float(x.flatten() @ w) - 1e-3)
    assert bool(uap(model, x, eps=10.0, norm="l2", rounds=1, steps=5).any()) == crosses


def test_it_stops_at_the_share_that_was_asked_for(case):
    """7 of 10 are 0.7 of them, in single precision too."""
    _, x, w = case
    x = x[:10]
    f = (x.flatten(1) @ w).sort().values
    asked = Asked(pair(w, -float(f[-1]) - 0.01))
    eps = float((f[-1] + 0.01 - f[2:4].mean()) / w.norm())  # within reach of 7, and of no more
    passes = []
    for rounds in (1, 9):
        asked.passes = 0
        delta = uap(asked, x, eps=eps, norm="l2", enough=0.7, rounds=rounds)
        assert rate(asked.model, x, delta) == 0.7
        passes.append(asked.passes)
    assert passes[0] == passes[1]


class Asked(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, x):
        self.passes += 1
        return self.model(x)


@pytest.mark.parametrize("attack", [
    universal, partial(targeted_universal, target=1), partial(uap, enough=1.0), partial(targeted_uap, target=1)])
@pytest.mark.parametrize("norm", EPS)
def test_what_is_learnt_where_images_are_saturated_stays(case, attack, norm):
    """A δ kept as [x + δ] − x of the last image would be zero where it is black and δ negative."""
    _, x, w = case
    x = x.clone()
    x[:, :, :2] = 0
    x[::2, :, 2:4] = 1
    f = x.flatten(1) @ w
    model = pair(w, -float(f.max()) - 0.1)  # all have the answer 0
    delta = attack(model, x, eps=EPS[norm], norm=norm, generator=generator(2)).flatten()
    if norm == "l2":
        assert float(nn.functional.cosine_similarity(delta, w, dim=0)) == pytest.approx(1)
    assert torch.equal(delta.sign(), w.sign())
    seen = shifted(x, delta.view(1, 3, 6, 6))
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert float((seen - x)[:, :, :2].min()) == 0


def test_the_cap_takes_the_word_from_images_that_are_fooled_as_well_as_is_wanted(case):
    """Of two images on different sides the nearer to the boundary has the steeper loss, and decides the first step;
    with a cap below its loss the other one does."""
    _, x, w = case
    f = x.flatten(1) @ w
    low, high = x[f.argmin()], x[f.argmax()]
    model = pair(w / (f.max() - f.min()) * 2, -float(f.min() * 2 / (f.max() - f.min())) - 0.2)  # f is −0.2 and 1.8
    both = torch.stack([low, high])
    up = 0.01 * w.sign().view(1, 3, 6, 6)
    assert torch.allclose(universal(model, both, eps=0.1, step=0.01, steps=1), up)
    assert torch.allclose(universal(model, both, eps=0.1, step=0.01, steps=1, beta=0.5), -up)
    trace = Trace(images=True)
    universal(model, both, eps=0.1, beta=0.5, steps=30, trace=trace)
    assert trace.values.shape == (30, 1)
    assert trace.images.shape == (30, 1, 3, 6, 6)
    before = nn.functional.cross_entropy(logits(model, both), torch.tensor([0, 1]), reduction="none")
    assert float(trace.values[0]) == pytest.approx(float(before.clamp(max=0.5).mean()))
    assert float(trace.values.max()) <= 0.5


def test_one_for_several_networks(case):
    _, x, w = case
    other = torch.randn(108, generator=generator(9), dtype=torch.float64)
    models = []
    for v in (w, other):
        f = x.flatten(1) @ v
        models.append(pair(v, -float(f.max()) - 0.1))
    eps = 2 * max(float((0.1 + f.max() - f.min()) / v.norm(1)) for v in (w, other) for f in [x.flatten(1) @ v])
    alone, both = universal(models[0], x, eps=eps), universal(models, x, eps=eps)
    assert rate(models[0], x, alone) == 1
    assert rate(models[1], x, alone) < 0.3
    assert rate(models[0], x, both) == rate(models[1], x, both) == 1


def test_through_transformations(case):
    """w sees left and right apart: a δ that knows no mirror does nothing in the mirror."""
    _, x, w = case
    x = (x + x.flip(3)) / 2
    w = w.view(3, 6, 6)
    w = ((w + w.flip(2)) / 2 + 2 * (w - w.flip(2))).flatten()  # mostly what symmetric images do not show
    w = w / 20  # so that no loss is flat
    f = x.flatten(1) @ w
    model = pair(w, -float(f.max()) - 0.05)
    eps = 1.5 * float((f.max() - f.min() + 0.05) / ((w.view(3, 6, 6) + w.view(3, 6, 6).flip(2)) / 2).norm(1))

    def mirror(v, source):
        turned = torch.rand(len(v), generator=source) < 0.5
        return torch.where(turned.view(-1, 1, 1, 1), v.flip(3), v)

    plain = universal(model, x, eps=eps)
    through = universal(model, x, eps=eps, transform=mirror, beta=0.75, steps=300, generator=generator(4))
    y = logits(model, x).argmax(1)
    assert rate(model, x, plain) == 1
    assert not fooled(model, shifted(x, plain).flip(3), y).any()
    assert fooled(model, shifted(x, through), y).all()
    assert fooled(model, shifted(x, through).flip(3), y).all()


def test_each_step_has_a_draw_of_its_own_from_the_generator(case):
    model, x, _ = case

    def draws(seed):
        seen = []

        def look(v, source):
            seen.append(float(torch.rand(1, generator=source)))
            return v

        universal(model, x, eps=0.01, steps=6, batch=20, transform=look, generator=generator(seed))
        return seen[1:]  # the first is a look before the attack

    first = draws(0)
    assert len(set(first)) == 6
    assert first == draws(0)
    assert not set(first) & set(draws(1))


def test_the_trace_is_of_the_images_that_are_shown_and_of_the_last_call_alone(case):
    """δ darkens what is black already: what the model is shown stays as it is."""
    _, x, w = case
    x = x.clone()
    x[:, :, :4] = 0
    f = x.flatten(1) @ w
    model, trace = pair(w, -float(f.max()) - 0.1), Trace(images=True)
    for _ in range(2):
        universal(model, x, eps=0.1, steps=4, beta=100.0, batch=len(x), trace=trace)
        assert trace.values.shape == (4, 1)
    delta, y = trace.images[-1], torch.zeros(len(x), dtype=torch.int64)
    loss = [float(nn.functional.cross_entropy(logits(model, v), y)) for v in (x, shifted(x, delta))]
    assert float(trace.values[-1]) == pytest.approx(loss[1])
    assert loss[1] > loss[0] + 0.1


def test_a_step_towards_the_target_has_its_length_and_only_an_image_that_is_not_there_asks_for_one(case):
    model, x, w = case
    z = logits(model, x)
    f = z[:, 1] - z[:, 0]
    two = x[[int(f.argmin()), int(f.argmax())]]
    delta = targeted_uap(model, two, 1, eps=0.05, step=0.003, rounds=2)
    assert torch.allclose(delta, 2 * 0.003 * w.sign().view(1, 3, 6, 6))
    default = targeted_uap(model, two, 1, eps=0.05, rounds=1)
    assert torch.allclose(default, 0.005 * w.sign().view(1, 3, 6, 6))


def test_top_counts_the_answer_itself():
    """Of the other classes the likelier one has the farther plane: with `top` = 2 it is the only one that is seen."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    model[1].weight.data = torch.tensor([[0.0, 0, 0, 0], [0.5, 0, 0, 0], [0, 4, 0, 0]]).double()
    model[1].bias.data = torch.tensor([0.2, -0.2, -2.5]).double()
    x = torch.full((1, 1, 2, 2), 0.5).double()  # logits 0.2, 0.05, −0.5: distances 0.3 and 0.175
    for top, pixel in ((2, 0), (3, 1), (None, 1)):
        delta = uap(model, x, eps=5.0, norm="l2", top=top, rounds=1).flatten()
        assert delta.nonzero().flatten().tolist() == [pixel]


def deep(dtype=torch.float64, seed=3):
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)).to(dtype)
    for p in model.parameters():
        p.data = normal(p.data, generator(seed), 0.3)
    return model.eval()


ATTACKS = {"universal": universal, "uap": uap, "targeted_universal": partial(targeted_universal, target=1),
           "targeted_uap": partial(targeted_uap, target=1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ATTACKS)
def test_it_lies_in_the_ball_on_its_surface_and_repeats(case, name, norm, dtype, monkeypatch):
    x, eps = case[1].to(dtype)[:40], EPS[norm]
    model = deep(dtype)
    delta = ATTACKS[name](model, x, eps=eps, norm=norm)
    assert delta.shape == (1, 3, 6, 6)
    assert delta.dtype == dtype
    length = float(ball(norm, 1.0).norm(delta.double()))
    assert length <= float(torch.tensor(eps, dtype=dtype))
    assert length > 0.5 * eps
    assert torch.equal(delta, ATTACKS[name](model, x, eps=eps, norm=norm, generator=generator(0)))
    if dtype == torch.float64:  # in single precision rounding may turn a sign
        monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)
        assert torch.allclose(delta, ATTACKS[name](model, x, eps=eps, norm=norm), atol=1e-9)


def test_it_fools_unseen_images_and_another_order_of_batches_gives_another(case):
    x, model = case[1], deep()
    a, b = (universal(model, x[:40], eps=0.05, batch=8, generator=generator(s)) for s in (0, 1))
    assert not torch.equal(a, b)
    noise = 0.05 * torch.randn(1, 3, 6, 6, generator=generator(5), dtype=torch.float64).sign()
    for delta in (a, b):
        assert rate(model, x[40:], delta) > rate(model, x[40:], noise) + 0.3


@pytest.mark.parametrize(("options", "words"), [
    ({"norm": "l1"}, "'linf' or 'l2'"), ({"eps": torch.tensor([0.1, 0.2])}, "one number|eps must be a number"),
    ({"eps": 2.0}, "eps = 2"), ({"batch": 0}, "batch must be 1"), ({"beta": -1.0}, "beta must be"),
    ({"step": torch.tensor([0.1, 0.2])}, "one number"),
])
def test_what_makes_no_sense_is_said(case, options, words):
    model, x, _ = case
    with pytest.raises((ValueError, TypeError), match=words):
        universal(model, x[:2], **{"eps": 0.1, **options})


def test_numbers_come_in_what_holds_them(case):
    model, x, _ = case
    x, model = x.float(), model.float()
    plain = universal(model, x, eps=0.1, step=0.01, steps=5)
    assert torch.equal(universal(model, x, eps=torch.tensor(0.1).to(x), step=torch.tensor(0.01), steps=5), plain)
    assert torch.equal(universal(nn.ModuleList([model, model]), x, eps=0.1, step=0.01, steps=5),
                       universal([model, model], x, eps=0.1, step=0.01, steps=5))
    assert not universal(model, x, eps=0.0, norm="l2").any()
    assert not uap(model, x, eps=0.0).any()


def test_other_mistakes_are_said(case):
    model, x, _ = case
    with pytest.raises(ValueError, match="at least one model"):
        universal([], x, eps=0.1)
    for target, kind in ((2, ValueError), (-1, ValueError), (torch.tensor([0, 1]), TypeError), (True, TypeError)):
        for attack in (targeted_universal, targeted_uap):
            with pytest.raises(kind, match="target"):
                attack(model, x, target, eps=0.1)
    for enough in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="enough"):
            uap(model, x, eps=0.1, enough=enough)
    with pytest.raises(ValueError, match="shape"):
        shifted(x, torch.zeros(3, 6, 6))
    for bad, words in ((torch.zeros(3, 6, 6), "shape"), ([0.1], "list")):
        with pytest.raises(ValueError, match=words):
            shifted(x, bad)
    with pytest.raises(ValueError, match="divide them by 255"):
        shifted(255 * x, torch.zeros_like(x[:1]))
    for attack in (targeted_universal, targeted_uap):
        with pytest.raises(TypeError, match=r"one class number.*tensor of \(80,\)$"):
            attack(model, x, torch.ones(80, dtype=torch.int64), eps=0.1)
        with pytest.raises(TypeError, match="target"):  # it would go away from the answers, as `universal` does
            attack(model, x, None, eps=0.1)
        own = x[logits(model, x).argmax(1) == 1]
        with pytest.raises(ValueError, match="answers 1, the target, for all"):
            attack(model, own, 1, eps=0.1)
        assert torch.equal(attack(model, x, torch.tensor(1), eps=0.1), attack(model, x, 1, eps=0.1))
    for several in ([], [model], nn.ModuleList([model])):
        with pytest.raises(TypeError, match="takes one model"):
            uap(several, x, eps=0.1)
    for transform, words in (
            (lambda v, source: 255 * v, "transform returns.*divide them by 255"),
            (lambda v, source: v[:1], "one image for each"), (lambda v, source: None, "transform returns"),
            (lambda v, source: v.detach(), "no gradient")):
        with pytest.raises((ValueError, TypeError), match=words):
            universal(model, x, eps=0.1, transform=transform)
    with pytest.warns(MisleadingModel, match="zero"):
        universal(model, x, eps=0.1, beta=0.0)
