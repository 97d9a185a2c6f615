"""Flows: where they lead exactly, how uneven they are, and what no flow can do."""
import pytest
import torch
from torch import nn

from kit.attacks import stadv
from kit.attacks.spatial import FLAT, unevenness, warp
from kit.core import fooled, generator, logits


def test_whole_pixels_are_a_shift_and_halves_the_mean():
    x = torch.rand(2, 3, 5, 7, generator=generator(0), dtype=torch.float64)
    flow = torch.zeros(2, 2, 5, 7, dtype=torch.float64)
    assert torch.allclose(warp(x, flow), x, atol=1e-12)
    flow[0, 0], flow[1, 1] = 1, -2
    moved = warp(x, flow)
    assert torch.allclose(moved[0, :, :-1], x[0, :, 1:], atol=1e-12)
    assert torch.allclose(moved[0, :, -1], x[0, :, -1], atol=1e-12)  # the edge goes on
    assert torch.allclose(moved[1, :, :, 2:], x[1, :, :, :-2], atol=1e-12)
    flow[:] = 0
    flow[:, 1] = 0.5
    assert torch.allclose(warp(x, flow)[..., :-1], (x[..., 1:] + x[..., :-1]) / 2, atol=1e-12)
    assert warp(x[:, :, :1, :1], flow[:, :, :1, :1]).shape == (2, 3, 1, 1)


def test_unevenness_is_that_of_the_neighbours():
    """A translation has none; a slope of (3, 4) pixels a column has 2 · 5 for each of the 4 · 6 pairs in a row."""
    flow = torch.ones(1, 2, 4, 7, dtype=torch.float64)
    assert unevenness(flow)[0] == pytest.approx(0, abs=2 * 46 * FLAT**0.5)
    flow = torch.stack([torch.arange(7.0) * 3, torch.arange(7.0) * 4])[None, :, None].expand(1, 2, 4, 7).double()
    assert unevenness(flow)[0] == pytest.approx(2 * 5 * 24, abs=0.01)
    assert torch.equal(unevenness(flow), unevenness(flow.flip(1)))
    at = flow.clone().requires_grad_()
    unevenness(at * 0).sum().backward()
    assert at.grad.isfinite().all()


@pytest.fixture
def ramp():
    """An image that is brighter from row to row, and a model that asks whether its upper half is bright: a flow must
    fetch rows from below, and the evenest one shifts the image by a known number of rows."""
    x = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).view(1, 1, 9, 1).expand(1, 1, 9, 6).contiguous()
    model = nn.Sequential(nn.Flatten(), nn.Linear(54, 2)).double()
    where = torch.zeros(9, 6, dtype=torch.float64)
    where[:4] = 1 / 24
    level = 0.25 + 0.15  # the mean of rows 0 to 3 is 0.25, and a row is 0.1
    model[1].weight.data = torch.stack([-10 * where.flatten(), 10 * where.flatten()])
    model[1].bias.data = torch.tensor([10 * level, -10 * level], dtype=torch.float64)
    return model, x, torch.zeros(1, dtype=torch.int64)


def test_an_even_flow_takes_along_what_the_model_does_not_see(ramp):
    """The evenest is a shift of one and a half rows for all; without λ the rows that are not asked about stay."""
    model, x, y = ramp
    x_adv = stadv(model, x, y, lam=0.002, steps=400, lr=0.02)
    assert fooled(model, x_adv, y).all()
    rows = x_adv[0, 0]
    assert rows[:4].mean() == pytest.approx(0.4, abs=0.01)
    assert (rows[4:7] - x[0, 0, 4:7]).mean() > 0.08
    assert rows[:7].std(1).amax() < 0.002  # nothing across
    rough = stadv(model, x, y, lam=0.0, steps=400, lr=0.02)[0, 0]
    assert rough[:4].mean() == pytest.approx(0.4, abs=0.01)
    assert (rough[4:7] - x[0, 0, 4:7]).abs().mean() < 0.02
    assert torch.equal(x_adv, stadv(model, x, y, lam=0.002, steps=400, lr=0.02))


def test_a_flow_brings_no_new_colour(ramp):
    model, x, y = ramp
    x_adv = stadv(model, x, y, lam=0.0, steps=100, lr=0.1)
    assert fooled(model, x_adv, y).all()
    assert x_adv.amax() <= x.amax() + 1e-12
    assert x_adv.amin() >= x.amin() - 1e-12
    grey = torch.full_like(x, 0.3)
    assert torch.equal(stadv(model, grey, y, steps=20), grey)  # nothing to move


def test_a_target_is_reached_and_confidence_too(ramp):
    model, x, y = ramp
    x_adv = stadv(model, x, y, target=1 - y, kappa=1.0, lam=0.002, steps=400, lr=0.02)
    z = logits(model, x_adv)[0]
    assert z[1] - z[0] == pytest.approx(1.1, abs=0.1)  # the first that leads by κ, or an evener one
    back = stadv(model, x_adv, 1 - y, lam=0.002, steps=400, lr=0.02)
    assert fooled(model, back, 1 - y).all()


def test_it_starts_from_a_flow_of_a_tenth_of_a_pixel_either_way(ramp):
    """On a ramp of 0.1 a row the change is a tenth of the flow down."""
    model, x, y = ramp
    seen = []

    def recorded(v):
        seen.append(v)
        return model(v)

    stadv(recorded, x, y, steps=1)
    flow = 10 * (seen[-1] - x)[0, 0, 1:-1]
    assert flow.abs().max() <= 0.1 + 1e-9
    assert flow.min() < -0.08
    assert flow.max() > 0.08


def test_the_flow_that_is_returned_makes_the_image(ramp):
    model, x, y = ramp
    many = torch.cat([x, x, 0.5 * x])
    labels = torch.cat([y, 1 - y, y])  # the second is wrong already: nothing flows
    x_adv, flow = stadv(model, many, labels, lam=0.002, steps=100, lr=0.05, with_flow=True)
    assert torch.equal(x_adv, stadv(model, many, labels, lam=0.002, steps=100, lr=0.05))
    assert torch.allclose(warp(many, flow), x_adv, atol=1e-12)
    assert flow[0].abs().max() > 0.5
    assert not flow[1].any()
