"""Faults that were put into the certificates by hand and that no other test saw, and what users get wrong."""
import importlib
import math

import pytest
import torch
from torch import nn

from kit.certify import Box, Relaxed, alpha_crown, certified, crown
from kit.certify.verify import SAFE, UNSAFE, Verdict, exact_distance, verify
from kit.core import generator


class Rejoined(nn.Module):
    """z = h + alpha relu(h)."""

    def __init__(self, alpha):
        super().__init__()
        self.first, self.alpha = nn.Linear(4, 3), alpha

    def forward(self, x):
        h = self.first(x.flatten(1))
        return torch.add(h, h.relu(), alpha=self.alpha)


@pytest.fixture
def images():
    return torch.rand(6, 1, 2, 2, generator=generator(3))


def little(seed=0):
    source = generator(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(0, 0.7, generator=source)
    return model


@pytest.mark.parametrize("method", ["crown", "fast_lin"])
def test_a_pooling_s_plane_is_below_the_greatest_entry_everywhere_in_its_box(method):
    lower = torch.tensor([[-100.0, 0.9, 0.9, 0.9]]).double()
    upper = torch.tensor([[1.0, 10, 10, 10]]).double()  # a wide entry that ends low: the slopes sum to more than one
    pool = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())

    class Two(nn.Module):
        def forward(self, x):
            h = pool(x)
            return torch.cat([h, -h], 1)

    net = Relaxed(Two(), Box(lower.view(1, 1, 2, 2), upper.view(1, 1, 2, 2)), method)
    A, c = net.linear(torch.eye(2).double())
    assert A[0, 0].sum() > 1.5
    v = lower + (upper - lower) * torch.rand(2000, 4, generator=generator(0)).double()
    v = torch.cat([v, torch.where(v < (lower + upper) / 2, lower, upper)])
    below, above = v @ A[0].flatten(1).T[:, 0] + c[0, 0], -(v @ A[0].flatten(1).T[:, 1] + c[0, 1])
    assert bool((below <= v.amax(1) + 1e-9).all())
    assert bool((above >= v.amax(1) - 1e-9).all())


def test_a_sum_with_a_negative_factor_is_refused_and_not_taken_for_a_rising_step(images):
    crown(Rejoined(0.5), images, torch.zeros(6, dtype=torch.int64), eps=0.1)
    with pytest.raises(ValueError, match="no rule for add"):
        crown(Rejoined(-0.5), images, torch.zeros(6, dtype=torch.int64), eps=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fitted_slopes_are_numbers_in_low_precision(images, dtype):
    model = little().to(dtype)
    y = model(images.to(dtype)).argmax(1)
    bounds = alpha_crown(model, images.to(dtype), y, eps=0.05, steps=8)
    assert bool(bounds.isfinite().all())
    assert bool((bounds >= crown(model, images.to(dtype), y, eps=0.05)).all())


def test_a_radius_in_grey_levels_is_refused_by_the_verifier(images):
    model = little()
    y = model(images).argmax(1)
    assert set(verify(model, images, y, eps=1.0)[0].tolist()) <= {SAFE, UNSAFE}
    with pytest.raises(ValueError, match="eps = 8 is larger than the range of a pixel.*write 8/255"):
        verify(model, images, y, eps=8)
    with pytest.raises(ValueError, match="eps = 2 is larger"):
        exact_distance(model, images, y, largest=2.0)
    with pytest.raises(TypeError, match="use torch.as_tensor"):
        exact_distance(model, images.numpy(), y)


@pytest.mark.parametrize("eps", [math.inf, math.nan])
def test_an_eps_that_is_no_number_is_called_so(images, eps):
    model = little()
    with pytest.raises(ValueError, match=f"eps must be finite and at least 0, not {eps:g}$"):
        crown(model, images, model(images).argmax(1), eps=eps)


def test_no_sample_contradicts_a_bound_or_a_verdict_in_either_precision(images):
    corners = 2 * torch.rand(400, 4, generator=generator(1)).double() - 1
    corners = torch.where(torch.rand(400, 1, generator=generator(2)) < 0.5, corners.sign(), corners)
    proven = 0
    for seed, dtype in ((s, d) for s in range(12) for d in (torch.float32, torch.float64)):
        model, x = little(seed).to(dtype), images.to(dtype)
        y, eps = model(x).argmax(1), 0.02 * (1 + seed)
        points = (x.double().flatten(1)[:, None] + eps * corners).clamp(0, 1)
        z = model.double()(points.flatten(0, 1)).unflatten(0, (6, 400))
        held = (z.argmax(2) == y[:, None]).all(1)
        model = model.to(dtype)
        sure = certified(crown(model, x, y, eps=eps), y)
        answer, example = verify(model, x, y, eps=eps)
        assert not bool((sure & ~held).any())
        assert not bool(((answer == SAFE) & ~held).any())
        assert not bool((sure & (answer == UNSAFE)).any())
        fooled = model(example[answer == UNSAFE]).argmax(1) != y[answer == UNSAFE]
        assert bool(fooled.all())
        proven += int((answer == SAFE).sum())
    assert proven > 20


def test_slopes_that_climb_far_stay_bounds():
    x = torch.rand(3, 1, 2, 2, generator=generator(3)).double()
    step = 2 * torch.rand(2000, 4, generator=generator(1)).double() - 1
    points = (x.flatten(1)[:, None] + 0.3 * step).clamp(0, 1)
    for seed in (7, 18, 23):  # where a slope beyond 1 would help the bound, and be wrong by a hundred
        source, sizes = generator(seed), (4, 8, 8, 2)
        layers = [nn.Flatten()]
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        model = nn.Sequential(*layers[:-1]).double().requires_grad_(False)
        for weight in model.parameters():
            weight.normal_(0, 0.7, generator=source)
        y = model(x).argmax(1)
        z = model(points.flatten(0, 1)).unflatten(0, (3, 2000))
        margins = (z.gather(2, y[:, None, None].expand(3, 2000, 1)) - z).amin(1)
        fitted = alpha_crown(model, x, y, eps=0.3, steps=60, lr=0.3)
        assert bool((fitted <= margins + 1e-9).all())
        assert bool((fitted > crown(model, x, y, eps=0.3) + 1e-3).any())


def test_an_example_that_rounding_to_the_images_dtype_undoes_is_none():
    class Sliver(nn.Module):
        """z_0 = |3 v − 1|, z_1 = 1e-9: class 1 wins near 1/3 alone, which float32 does not have."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(1, 2), nn.Linear(2, 2)
            for weight, values in ((self.first.weight, [[3.0], [-3.0]]), (self.first.bias, [-1.0, 1.0]),
                                   (self.last.weight, [[1.0, 1.0], [0.0, 0.0]]), (self.last.bias, [0.0, 1e-9])):
                weight.data = torch.tensor(values)

        def forward(self, x):
            return self.last(self.first(x.flatten(1)).relu())

    model, x, y = Sliver(), torch.full((1, 1, 1, 1), 0.4), torch.zeros(1, dtype=torch.int64)
    answer, example = verify(model, x, y, eps=0.1)
    assert (int(answer), float(example)) == (0, float(x))
    answer, example = verify(model.double(), x.double(), y, eps=0.1)
    assert int(answer) == UNSAFE
    assert int(model(example).argmax(1)) == 1


def test_the_seconds_are_an_image_s_and_not_each_class_s(images, monkeypatch):
    given = []

    def slow(chain, low, high, *, seconds, **how):
        given.append(seconds)
        return Verdict("unknown", None, -1.0, 1, 3.0)

    monkeypatch.setattr(importlib.import_module("kit.certify.verify.images"), "search", slow)
    source = generator(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 9)).requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(0, 0.7, generator=source)
    verify(model, images[:1], model(images[:1]).argmax(1), eps=0.6, seconds=100.0)
    assert len(given) > 2
    assert all(later <= earlier - 3 for earlier, later in zip(given, given[1:], strict=False))
