"""Estimates along random directions: their mean, their length and their cosine are those of the theory."""
import pytest
import torch
from torch import nn

from kit.attacks.scores import directions
from kit.core import Draws, Goal, Live, generator

D = 24
SLOPE = torch.linspace(-1, 2, D, dtype=torch.float64)


def live_of(n, seed=0):
    """n images of D numbers, and their streams."""
    x = torch.full((n, 1, 4, 6), 0.5, dtype=torch.float64)
    live = Live(nn.Identity(), x, Goal(torch.zeros(n, dtype=torch.long)), Draws(n, generator(seed)))
    live.v = torch.zeros(n, D, dtype=torch.float64)
    return live


def estimates(kind, q, n=6000, f=lambda v, of: v @ SLOPE, h=0.1, one_sided=False):
    live = live_of(n)
    live.many = torch.full((n,), q)
    value = f(live.v, torch.arange(n)) if one_sided else None
    return directions.estimate(live, f, kind, q, h, value)


@pytest.mark.parametrize("one_sided", [True, False], ids=["one side", "two sides"])
@pytest.mark.parametrize("q", [1, 5, 20])
@pytest.mark.parametrize("kind", directions.KINDS)
def test_mean_length_and_cosine_are_those_of_the_theory(kind, q, one_sided):
    g = estimates(kind, q, one_sided=one_sided)
    longer = (D + q + (1 if kind == "gaussian" else -1)) / q
    size = SLOPE.square().sum()
    assert torch.allclose(g.mean(0), SLOPE, atol=4.5 * float(size.sqrt()) * (2 / q / len(g)) ** 0.5)
    assert float(g.square().sum(1).mean() / size) == pytest.approx(longer, rel=0.05)
    cosine = torch.nn.functional.cosine_similarity(g, SLOPE[None])
    # For q = 1 the mean square is 1/d exactly, in any distribution whose length says nothing about its direction.
    assert float(cosine.square().mean().sqrt()) == pytest.approx((q / (q + D - 1)) ** 0.5, rel=0.04)
    assert (cosine > -1e-9).all()  # a rise along u is a rise along the slope


@pytest.mark.parametrize("kind", directions.KINDS)
def test_two_sides_cancel_the_curvature_and_one_side_does_not(kind):
    def bent(v, of):
        return v @ SLOPE + 5 * v.square().sum(1)

    assert torch.allclose(estimates(kind, 3, 50, bent), estimates(kind, 3, 50))
    assert not torch.allclose(estimates(kind, 3, 50, bent, one_sided=True), estimates(kind, 3, 50), rtol=0.1)


def test_gaussian_is_the_gradient_of_what_is_smoothed():
    """f = sin(w v): smoothed by a normal density its slope at 0 is w exp(−w² h²/2), with any w and h."""
    w, h = 3.0, 0.4
    g = estimates("gaussian", 20, 4000, lambda v, of: (w * v[:, 0]).sin(), h)
    assert float(g[:, 0].mean()) == pytest.approx(w * torch.tensor(-(w * h) ** 2 / 2).exp().item(), rel=0.02)
    signs = estimates("signs", 20, 50, lambda v, of: (w * v[:, 0]).sin(), h)[:, 0]
    assert torch.allclose(signs, torch.full_like(signs, torch.tensor(w * h).sin().item() / h), rtol=1e-5)


@pytest.mark.parametrize("kind", directions.KINDS)
def test_an_image_has_the_same_estimate_in_any_batch(kind):
    for q in (3, directions.TOGETHER + 3):
        many, one = estimates(kind, q, 7), estimates(kind, q, 1)
        assert torch.allclose(many[:1], one, rtol=1e-9)
        assert not torch.allclose(many[1], many[0])
    live = live_of(3)
    live.many = torch.tensor([1, 5, 3])
    asked = []

    def f(v, of):
        asked.append(of)
        return v @ SLOPE

    g = directions.estimate(live, f, kind, 5, 0.1)
    assert torch.cat(asked).bincount().tolist() == [2, 10, 6]
    live = live_of(3)
    live.many = torch.full((3,), 5)
    assert torch.allclose(directions.estimate(live, f, kind, 5, 0.1)[1], g[1])


def test_directions_have_the_second_moment_of_one():
    for kind in directions.KINDS:
        u = directions.directions(live_of(3000), 4, kind).flatten(0, 1)
        assert torch.allclose(u.T @ u / len(u), torch.eye(D, dtype=u.dtype), atol=0.08), kind
        assert (kind == "gaussian") != torch.allclose(u.square().sum(1), torch.tensor(float(D), dtype=u.dtype))
    assert u.abs().std() > 0.1  # the sphere's differ from the signs'
