"""CLEVER where the distance is known: right on linear networks, and wrong, as it may be, where sampling misses."""
from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from kit.certify import clever, exact_distance
from kit.certify.clever import right_end, slopes
from kit.core import MisleadingModel, QueryCounter, generator, logits

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


def linear(classes: int = 3) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    w = torch.randn(classes, 16, generator=generator(0), dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double()
    model[1].weight.data, model[1].bias.data = w, -w.sum(1) / 2
    x = 0.4 + 0.2 * torch.rand(8, 1, 4, 4, generator=generator(1), dtype=torch.float64)
    return model, x, logits(model, x).argmax(1), w


def distances(model, x, y, w, norm):
    """(N, K): (z_y − z_k)/‖w_y − w_k‖_q, infinite at k = y."""
    z = logits(model, x)
    away = (z.gather(1, y[:, None]) - z) / (w[y][:, None] - w[None]).norm(p=DUAL[norm], dim=2)
    return away.scatter(1, y[:, None], torch.inf)


@pytest.mark.parametrize("norm", DUAL)
def test_of_a_linear_network_it_is_the_distance(norm):
    model, x, y, w = linear()
    exact = distances(model, x, y, w, norm)
    estimate, p = clever(model, x, y, eps=1.0, norm=norm, batches=10, samples=4)
    assert torch.allclose(estimate, exact.amin(1).clamp(max=1.0), rtol=1e-6)
    assert (p == 1).all()
    target = exact.scatter(1, y[:, None], -1).argmax(1)  # the farthest class, which is never the nearest
    aimed, _ = clever(model, x, y, eps=5.0, norm=norm, target=target, batches=10, samples=4) if norm != "linf" else (
        clever(model, x, y, eps=1.0, norm=norm, target=target, batches=10, samples=4))
    assert torch.allclose(aimed, exact.gather(1, target[:, None])[:, 0].clamp(max=5.0 if norm != "linf" else 1.0))
    assert (aimed >= estimate).all()


def test_it_says_nothing_beyond_its_ball_and_zero_of_an_error():
    model, x, y, w = linear()
    exact = distances(model, x, y, w, "linf").amin(1)
    eps = 0.5 * exact
    assert torch.allclose(clever(model, x, y, eps=eps, batches=10, samples=2)[0], eps)
    assert not clever(model, x, (y + 1) % 3, eps=0.5, batches=10, samples=2)[0].any()


def kink(size: float) -> nn.Module:
    """z_0 − z_1 = 1/2 + Σ x/64 − relu(Σ x − 32 − 64 size): steep in a corner that a uniform sample does not meet."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.full((64,), 1 / 64), torch.full((64,), 1.0)]))
        model[1].bias.copy_(torch.tensor([0.0, -32 - 64 * size]))
        model[3].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        model[3].bias.copy_(torch.tensor([0.75, 0.25]))
    return model


def test_a_kink_that_no_sample_meets_makes_it_far_too_large():
    """All pixels up by 0.1 and the slope is 63 times as large; a random point of the ball moves their sum by little."""
    x, y = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64), torch.tensor([0])
    model = kink(0.1)
    low, high = exact_distance(model, x, y, largest=0.5, rounds=12)
    assert float(low) == pytest.approx(float(high), abs=1e-3)
    assert float(low) == pytest.approx(0.1 + 1.1 / 63, abs=2e-3)
    estimate, p = clever(model, x, y, eps=0.4)
    assert float(estimate) == pytest.approx(0.4)  # its whole ball
    assert float(p) == 1  # and nothing of it shows in the fit


def test_the_end_of_a_known_law():
    source = np.random.default_rng(0)
    u = source.random((40, 400))
    ends = np.array([right_end(5 - 0.3 * (-np.log(row)) ** (1 / 2)) for row in u])
    assert abs(ends[:, 0].mean() - 5) < 0.02
    assert (ends[:, 1] > 0.05).mean() > 0.9
    assert right_end(np.full(20, 3.0)) == (3.0, 1.0)
    steps = np.repeat([1.0, 2.0], 25)
    assert right_end(steps) == (2.0, 0.0)
    heavy = 1 / source.random(200)  # no right end
    end, p = right_end(heavy)
    assert end == heavy.max()
    assert p < 0.05


def stepped() -> nn.Module:
    """|x_0 − 1/2| summed with others: a slope of few values."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(3), dtype=torch.float64))
    return model


def test_a_fit_that_is_rejected_is_said():
    model = stepped()
    x = torch.rand(20, 1, 2, 2, generator=generator(0), dtype=torch.float64)
    y = logits(model, x).argmax(1)
    with pytest.warns(MisleadingModel, match="do not follow the law"):
        _, p = clever(model, x, y, eps=0.3, samples=8)
    assert (p < 0.05).any()


def test_it_goes_by_the_slopes_nearby_and_the_generator_decides():
    source = generator(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    x = torch.rand(6, 1, 4, 4, generator=source, dtype=torch.float64)
    y = logits(model, x).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, other = (clever(model, x, y, eps=0.3, batches=20, samples=20, generator=generator(g))[0] for g in (0, 1))
    assert not torch.allclose(first, other)
    assert torch.allclose(first, other, rtol=0.5)
    z = logits(model, x)
    others = torch.tensor([[k for k in range(3) if k != label] for label in y.tolist()])
    here = ((z.gather(1, y[:, None]) - z.gather(1, others)) / slopes(model, x, y, others, "linf")).amin(1)
    assert (0.1 * here < first).all()  # the slope at the image itself is about the least that is found near it
    assert (first < 1.05 * here).all()


@pytest.mark.parametrize("samples", [4, 100])
def test_an_image_has_its_own_ball_points_and_passes_whatever_its_mates(samples):
    """The points of several images go through the network together, where few of them fill a chunk."""
    source = generator(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    x = torch.rand(12, 1, 32, 32, generator=source, dtype=torch.float64)
    y, eps = logits(model, x).argmax(1), torch.linspace(0.1, 0.5, 12)
    y[4] = (y[4] + 1) % 3
    counter = QueryCounter(model, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = clever(counter, x, y, eps=eps, batches=10, samples=samples)
        first = clever(model, x[:5], y[:5], eps=eps[:5], batches=10, samples=samples)
    assert together[0][4] == 0
    for whole, part in zip(together, first, strict=True):
        assert torch.allclose(whole[:5], part)
    asked = counter.counts - counter.counts[4]
    assert set(asked.tolist()) == {0, 10 * samples}
    assert (together[0] <= eps).all()


def test_nonsense_is_refused():
    model, x, y, _ = linear()
    with pytest.raises(ValueError, match="batches must be 10 or more"):
        clever(model, x, y, eps=0.1, batches=5)
    with pytest.raises(ValueError, match="own label"):
        clever(model, x, y, eps=0.1, target=y)
    with pytest.raises(ValueError, match="norm"):
        clever(model, x, y, eps=0.1, norm="l3")


def test_a_network_that_hides_its_gradient_is_said():
    model, x, y, _ = linear()
    hidden = nn.Sequential(Rounds(), model)
    y = logits(hidden, x).argmax(1)
    with pytest.warns(MisleadingModel, match="exactly zero at every"):
        clever(hidden, x, y, eps=0.1, batches=10, samples=2)


class Rounds(nn.Module):
    def forward(self, x):
        return (x * 8).round() / 8 + 0 * x
