"""Projected L-BFGS against SciPy's on quadratic programmes; feature adversaries that take a representation."""
import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from torch import nn

import kit.core.passes
from kit.attacks import feature_adversary
from kit.attacks.minimal.quasi_newton import minimise
from kit.core import QueryCounter, generator


def test_it_finds_the_minima_that_scipy_finds():
    source = generator(0)
    n, d = 6, 12
    root = torch.randn(n, d, d, generator=source, dtype=torch.float64)
    curvature, slope = root @ root.mT / d + 0.1 * torch.eye(d), torch.randn(n, d, generator=source, dtype=torch.float64)
    x = torch.full((n, 1, 3, 4), 0.5, dtype=torch.float64)

    def f(v, rows):
        u = v.flatten(1)
        pulled = torch.einsum("nij,nj->ni", curvature[rows], u)
        return (u * (0.5 * pulled + slope[rows])).sum(1), (pulled + slope[rows]).view_as(v)

    found = minimise(f, x, torch.zeros_like(x), torch.ones_like(x), steps=200, tolerance=1e-14).flatten(1)
    assert ((found == 0) | (found == 1)).any(1).all()  # the box matters
    for i in range(n):
        a, b = curvature[i].numpy(), slope[i].numpy()
        best = scipy_minimize(
            lambda u, a=a, b=b: (0.5 * u @ a @ u + b @ u, a @ u + b), np.full(d, 0.5), jac=True, method="L-BFGS-B",
            bounds=[(0, 1)] * d, options={"ftol": 1e-15, "gtol": 1e-12})
        assert np.allclose(found[i].numpy(), best.x, atol=1e-4)


def network():
    source = generator(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.Tanh(), nn.Linear(10, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source) / 3)
    x = 0.3 + 0.4 * torch.rand(10, 1, 6, 6, generator=source)
    return model.eval(), x, x.roll(1, 0)


def test_a_feature_adversary_takes_the_guides_representation(monkeypatch):
    model, x, guide = network()

    def gap(a):
        return (model[:3](a) - model[:3](guide)).square().sum(1)

    counter = QueryCounter(model, 10)
    x_adv = feature_adversary(counter.model, x, guide, layers="2", eps=0.2)
    assert float((x_adv - x).abs().max()) <= 0.2 + 1e-6
    assert (gap(x_adv) < 1e-4 * gap(x)).all()  # more pixels than features: it can be met
    assert (model(x_adv).argmax(1) == model(guide).argmax(1)).all()
    near = feature_adversary(model, x, guide, layers=["2"], eps=0.02)
    assert (gap(near) < gap(x)).all()
    assert (gap(near) > gap(x_adv)).all()
    monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)
    assert torch.allclose(feature_adversary(model, x, guide, layers="2", eps=0.02), near, atol=1e-3)


def test_a_feature_adversary_stays_in_the_box():
    model, x, guide = network()
    for edge in (x.roll(2, 0).round(), 1 - x.round()):
        x_adv = feature_adversary(model, edge, guide, layers="2", eps=0.2)
        assert float(x_adv.min()) == 0
        assert float(x_adv.max()) == 1
        assert float((x_adv - edge).abs().max()) == pytest.approx(0.2)


def test_bad_guides_and_layers_are_refused():
    model, x, guide = network()
    with pytest.raises(ValueError, match="guide has 3 rows for 10 images"):
        feature_adversary(model, x, guide[:3], layers="2")
    with pytest.raises(ValueError, match="guide must have the shape"):
        feature_adversary(model, x, guide[..., 1:], layers="2")
    with pytest.raises(ValueError, match="no layer 'conv9'"):
        feature_adversary(model, x, guide, layers="conv9")


def test_a_step_must_lower_the_function_by_its_share():
    """Armijo: from 0 with slopes 1 the first step goes to −0.1, where four pixels' slope promises 0.4, 10⁻⁴ of which is
    4·10⁻⁵. These parabolas are lower there by half of that, which is too little."""
    def f(v, rows):
        return (v + (10 - 5e-4) * v * v).flatten(1).sum(1), 1 + 2 * (10 - 5e-4) * v

    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    found = minimise(f, x, x - 1, x + 1, steps=1)
    assert torch.allclose(found, torch.full_like(x, -0.05))
    assert float(f(found, None)[0]) < -4e-5
