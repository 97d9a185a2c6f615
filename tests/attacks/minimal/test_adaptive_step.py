"""Auto-PGD reaches the closed form on a linear network, keeps the ball, and its step length answers for itself."""
import pytest
import torch
from torch import nn

import kit.core.passes
from kit.attacks import auto_pgd, pgd
from kit.attacks.minimal.adaptive_step import _checkpoints
from kit.core import QueryCounter, Trace, ball, cross_entropy, dlr, fooled, generator, logits, margin

DUAL = {"linf": 1, "l2": 2}


def exact_distance(model, x, y, norm):
    z, w = model(x), model[1].weight
    lengths = torch.linalg.vector_norm(w[y][:, None] - w[None], DUAL[norm], dim=2)
    ratio = (z.gather(1, y[:, None]) - z) / lengths
    return ratio.masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).detach().min(1)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("kind", ["target", "targets", "target dlr"])
def test_success_on_a_linear_model_is_the_closed_form(linear, norm, kind):
    model, x, y = linear
    exact, nearest = exact_distance(model, x, y, norm)

    def gap(z, target):  # to the nearest class; the cross-entropy's ascent may lead to a farther one
        return (z.gather(1, y[:, None]) - z.gather(1, target[:, None]))[:, 0]

    options = {
        "target": {"target": nearest, "loss": gap}, "targets": {"targets": 4, "loss": dlr},
        "target dlr": {"target": nearest, "loss": dlr},
    }[kind]
    for eps, hits in ((exact * 1.02, True), (exact * 0.98, False)):
        x_adv = auto_pgd(model, x, y, eps=eps, norm=norm, **options)
        assert torch.equal(fooled(model, x_adv, y), torch.full_like(y, hits, dtype=torch.bool))
        assert (ball(norm, eps).norm(x_adv - x) <= eps * (1 + 1e-5) + 1e-7).all()


def test_the_checkpoints_are_the_papers():
    assert sorted(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def deep(seed=0):
    source = generator(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source) * 3 / p[0].numel() ** 0.5)
    x = torch.rand(24, 3, 4, 4, generator=source)
    return model.eval().double(), x.double(), logits(model.float(), x).argmax(1)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("loss", [cross_entropy, dlr, margin])
def test_images_are_independent_and_it_climbs(loss, norm, monkeypatch):
    model, x, y = deep()
    model = model.double()
    options = {"eps": {"linf": 0.03, "l2": 0.1}[norm], "norm": norm, "loss": loss, "steps": 30}
    whole = auto_pgd(model, x, y, **options)
    assert torch.equal(whole, auto_pgd(model, x, y, **options))
    trace = Trace()
    auto_pgd(model, x, y, trace=trace, **options)
    assert trace.values.shape == (30, 24)
    assert (loss(logits(model, whole), y) >= trace.values.amax(0) - 1e-9).all() or loss is cross_entropy
    assert (loss(logits(model, whole), y) > loss(logits(model, x), y)).all()
    start = ball(norm, options["eps"]).random(x, generator())
    monkeypatch.setattr(kit.core.balls.Linf, "random", lambda self, x, g: start[: len(x)])
    monkeypatch.setattr(kit.core.balls.L2, "random", lambda self, x, g: start[: len(x)])
    first = auto_pgd(model, x[:1], y[:1], **options)
    assert torch.allclose(first, auto_pgd(model, x, y, **options)[:1], atol=1e-9)


@pytest.mark.parametrize("norm", DUAL)
def test_two_steps_are_the_formula(linear, norm):
    """u = Π(x_k + η step(∇ℓ)), x_{k+1} = Π(x_k + ¾ (u − x_k) + ¼ (x_k − x_{k−1})), with η = 2 eps before a halving."""
    model, x, y = linear
    model, x, eps, trace = model.double(), x.double(), 0.05, Trace(images=True)
    auto_pgd(model, x, y, eps=eps, norm=norm, steps=20, trace=trace)
    within = ball(norm, eps)

    def slope(v):
        v = v.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(model(v), y).sum(), v)[0]

    x0 = trace.images[0]
    x1 = within.project(within.step(x0, slope(x0), 2 * eps), x)
    u = within.project(within.step(x1, slope(x1), 2 * eps), x)
    x2 = within.project(x1 + 0.75 * (u - x1) + 0.25 * (x1 - x0), x)
    assert torch.allclose(trace.images[1], x1, atol=1e-9)
    assert torch.allclose(trace.images[2], x2, atol=1e-9)
    assert not torch.allclose(x2, within.project(x1 + 0.75 * (u - x1) - 0.25 * (x1 - x0), x), atol=1e-4)


def test_the_steps_are_those_of_the_papers_algorithm():
    """One image after the other, algorithm 1 as it is printed. After 3 of 10 steps, 2 rises are under 0.75 · 3."""
    (model, x, y), eps, trace = deep(), 0.05, Trace(images=True)
    model = model.double()
    auto_pgd(model, x, y, eps=eps, steps=10, trace=trace)
    marks, within, halvings = sorted(_checkpoints(10)), ball("linf", eps), 0
    for i in range(len(x)):

        def f(v, label=y[i:i + 1]):
            v = v.detach().requires_grad_()
            value = cross_entropy(model(v), label)
            return float(value.detach()), torch.autograd.grad(value.sum(), v)[0]

        v = before = trace.images[0, i:i + 1]
        eta, rises, last, halved = 2 * eps, 0, 0, True
        value, g = f(v)
        top, top_value, top_then = v, value, value
        for k in range(1, 10):
            u = within.project(v + eta * g.sign(), x[i:i + 1])
            new = u if k == 1 else within.project(v + 0.75 * (u - v) + 0.25 * (v - before), x[i:i + 1])
            before, v = v, new
            old, (value, g) = value, f(v)
            rises += value > old
            if value > top_value:
                top, top_value = v, value
            if k in marks:
                halved = rises < 0.75 * (k - last) or (not halved and top_value <= top_then)
                if halved:
                    eta, v, halvings = eta / 2, top, halvings + 1
                    value, g = f(v)
                rises, last, top_then = 0, k, top_value
            assert torch.allclose(trace.images[k, i:i + 1], v, atol=1e-9)
    assert 24 < halvings < 24 * len(marks)


def test_it_needs_no_step_where_pgd_does():
    model, x, y = deep(2)
    model = model.double()
    options = {"eps": 0.05, "steps": 40}
    adaptive = margin(logits(model, auto_pgd(model, x, y, loss=margin, **options)), y).mean()
    for step in (0.0002, 0.1):
        assert adaptive > margin(logits(model, pgd(model, x, y, loss=margin, step=step, **options)), y).mean()


def test_fooled_images_leave_before_the_next_run():
    model, x, y = deep()
    model = model.double()
    once = fooled(model, auto_pgd(model, x, y, eps=0.03, steps=10), y)
    counter = QueryCounter(model, 24)
    often = fooled(model, auto_pgd(counter, x, y, eps=0.03, steps=10, restarts=3), y)
    assert 0 < once.sum() < 24
    assert often[once].all()
    assert (counter.counts[once] == 11).all()
    assert (counter.counts[~often] == 33).all()


def test_bad_numbers_are_refused(linear):
    model, x, y = linear
    for options, message in (
        ({"norm": "l1"}, "use pgd"), ({"restarts": 0}, "restarts"), ({"targets": 5}, "targets must be 1 to 4"),
        ({"targets": 2, "target": y}, "not both"),
    ):
        with pytest.raises(ValueError, match=message):
            auto_pgd(model, x, y, eps=0.1, **options)
