"""Extremal perturbations against TorchRay's energy written out, and against regions that are known."""
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from kit.core import Trace, generator, logits
from kit.explain import energy_inside, extremal, extremal_curve, iou, perturbed
from kit.explain.extremal import SmoothMax, _Smax, damped, missed_area, smax
from kit.explain.mask import gaussian_blur


class Region(nn.Module):
    """Class c by the mean of the region c, and nothing else."""

    def __init__(self, where, gain=10.0):
        super().__init__()
        self.where, self.gain = where, gain

    def forward(self, x):
        seen = [x.mean(1)[:, at].mean(1) for at in self.where]
        return self.gain * torch.stack([*seen, torch.full_like(seen[0], 0.5)], 1)


def discs(size, *centres, radius):
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([(rows - r).square() + (columns - c).square() <= radius**2 for r, c in centres])


SHORT = {"steps": 120, "lr": 0.1, "lam": 10.0, "growth": 1.04, "flip": False}


def test_the_mask_of_the_area_of_a_known_region_finds_it():
    where = discs(32, (10, 9), (20, 22), radius=5.5)
    model = Region(where)
    x = torch.ones(2, 1, 32, 32)
    target = torch.tensor([0, 1])
    area = where.float().mean((1, 2))
    R = extremal(model, x, target, area=area, reference="fade", sigma=4.0, cell=2, **SHORT)
    assert (iou(R, where[target]) >= 0.8).all()
    assert ((R > 0.5).float().mean((1, 2)) - area).abs().max() < 0.3 * area.max()


@pytest.mark.parametrize("variant", ["preserve", "delete", "both"])
def test_the_mask_of_one_class_leaves_the_other_object_out(variant):
    where = discs(32, (10, 9), (20, 22), radius=5.5)
    model, x = Region(where), 0.1 * torch.rand(2, 3, 32, 32, generator=generator(1))
    x[:, :, where.any(0)] = 1
    for target in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        R = extremal(model, x, target, area=0.1, variant=variant, reference="fade", **SHORT)
        assert (energy_inside(R, where[target]) > 0.5).all()
        assert (energy_inside(R, where[1 - target]) < 0.1).all()


def test_what_is_kept_keeps_the_class_and_the_curve_rises():
    where = discs(32, (16, 16), (4, 27), radius=6)
    model, x = Region(where), torch.ones(2, 1, 32, 32)
    target = torch.tensor([0, 0])
    areas = (0.03, 0.1, 0.3)
    M, scores = extremal_curve(model, x, target, areas=areas, reference="fade", **SHORT)
    assert M.shape == (2, 3, 32, 32)
    assert scores.shape == (2, 3)
    assert (scores.diff(dim=1) > 0).all()
    assert torch.allclose(M[:, 1], extremal(model, x, target, area=0.1, reference="fade", **SHORT))
    assert torch.allclose(scores[:, 2], logits(model, perturbed(x, M[:, 2], "fade"))[:, 0])
    assert float((M.mean((0, 2, 3)) - torch.tensor(areas)).abs().max()) < 0.05
    assert (scores[:, 2] > 0.95 * logits(model, x)[:, 0]).all()


def torchray(m, size, step, sigma, spill):
    """TorchRay's MaskGenerator, a pixel at a time: M of one mask m (h, w), with a margin or the edge repeated."""
    h, w = m.shape
    radius, margin = 1 + math.ceil(sigma / step), math.ceil(sigma / step) * step if spill else 0
    high, wide = ((n * step + 2 * margin - step + 1 if spill else s) for n, s in zip((h, w), size, strict=True))
    M = torch.zeros(high, wide, dtype=m.dtype)
    for u in range(high):
        for v in range(wide):
            y, x = u - margin, v - margin
            values = []
            for i in range(y // step - radius, y // step + radius + 1):
                for j in range(x // step - radius, x // step + radius + 1):
                    inside = 0 <= i < h and 0 <= j < w
                    near = float(m[min(max(i, 0), h - 1), min(max(j, 0), w - 1)])
                    node = near if inside or not spill else 0.0
                    away = math.hypot(y - step * i, x - step * j) / sigma
                    values.append(math.exp(-2 * max(away - 0.5, 0) ** 2) * node)
            weights = [math.exp(20 * value) for value in values]
            M[u, v] = sum(a * b for a, b in zip(values, weights, strict=True)) / sum(weights)
    return M.clamp(0, 1)


@pytest.mark.parametrize("spill", [False, True])
def test_the_energy_is_torchrays(spill, monkeypatch):
    """With its settings: nodes every 7 pixels, σ 21, 8 blurs to σ 20, λ 300, growth 1.0035; mirrored at even steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double().eval()
    model.requires_grad_(False)
    x = torch.rand(1, 1, 28, 28, generator=generator(1)).double()
    trace, seen = Trace(), []
    cover_of = SmoothMax.__call__

    def watched(self, m):
        seen.append(m.detach().clone())
        return cover_of(self, m)

    monkeypatch.setattr(SmoothMax, "__call__", watched)
    options = {"cell": 7, "sigma": 21.0, "blur": 20.0, "area": 0.3, "spill": spill}
    extremal(model, x, torch.tensor([2]), steps=3, trace=trace, lr=0.05, **options)

    pyramid = [gaussian_blur(x, (1 - level) * 20)[0, 0] for level in torch.linspace(0, 1, 8).tolist()]
    assert float((seen[2] - seen[0]).abs().max()) > 0.01
    for k in range(3):
        M = torchray(seen[k][0], (28, 28), 7, 21.0, spill)
        at = 21 if spill else 0
        image = torch.zeros(28, 28, dtype=torch.double)
        for u in range(28):
            for v in range(28):
                place = float(M[u + at, v + at]) * 7
                low = min(int(place), 6)
                image[u, v] = (low + 1 - place) * pyramid[low][u, v] + (place - low) * pyramid[low + 1][u, v]
        image = image.flip(1) if k % 2 == 0 else image
        ordered = sorted(M.flatten().tolist())
        wanted = [0.0] * int(len(ordered) * (1 - 0.3))
        wanted += [1.0] * (len(ordered) - len(wanted))
        missed = sum((a - b) ** 2 for a, b in zip(ordered, wanted, strict=True)) / len(ordered)
        energy = float(model(image[None, None])[0, 2]) - 300 * 1.0035**k * missed
        assert float(trace.values[k, 0]) == pytest.approx(energy, rel=1e-6)


def test_the_rule_is_sgd_with_momentum_and_dampening():
    v = torch.zeros(1, 3, requires_grad=True)
    optimiser = torch.optim.SGD([v], lr=0.01, momentum=0.9, dampening=0.9)
    u, memory, rule = torch.zeros(1, 3), {}, damped(0.01)
    for k in range(4):
        g = torch.randn(1, 3, generator=generator(k))
        v.grad = -g
        optimiser.step()
        u = rule(u, g, memory)
    assert torch.allclose(u, v.detach(), atol=1e-6)


def test_the_fast_smooth_maximum_is_the_plain_one_and_so_is_its_gradient():
    x = torch.zeros(3, 1, 12, 10, dtype=torch.double)
    for cell, sigma in ((2, 4.0), (3, 2.0), (1, 1.5)):
        cover = SmoothMax(x, cell, sigma, spill=False)
        m = torch.rand(3, *cover.grid, generator=generator(2)).double().requires_grad_()
        near = torch.nn.functional.pad(m[:, None], [cover.reach] * 4, mode="replicate")[:, 0]
        one, other = smax(near, cover.K), _Smax.apply(near, cover.K)
        probe = torch.randn(one.shape, generator=generator(3)).double()
        assert torch.allclose(one, other)
        gradients = [torch.autograd.grad((M * probe).sum(), m, retain_graph=True)[0] for M in (one, other)]
        assert torch.allclose(*gradients)
        M = cover(m)[0][0]
        assert torch.allclose(M, torchray(m[0].detach(), (12, 10), cell, sigma, False))


@pytest.mark.parametrize("variant", ["preserve", "delete", "both"])
def test_unrolled_it_is_the_derivative_of_the_whole_map(variant):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(256, 3)).double().eval()
    x = torch.rand(2, 2, 10, 10, dtype=torch.double, generator=generator(1)).mul(0.8).add(0.1).requires_grad_()
    target = torch.tensor([0, 2])
    options = {"area": 0.3, "steps": 4, "cell": 3, "lr": 0.02, "lam": 3.0, "variant": variant}
    direction = torch.randn(x.shape, dtype=torch.double, generator=generator(2))
    probe = torch.randn(2, 10, 10, dtype=torch.double, generator=generator(3))
    R = extremal(model, x, target, create_graph=True, unroll=4, **options)
    (g,) = torch.autograd.grad((R * probe).sum(), x)
    h = 1e-5
    # With a graph too: at m = 1 many pixels of M are equal, and rounding decides which of them are kept.
    up, down = (extremal(model, x.detach() + s * h * direction, target, create_graph=True, **options).detach()
                for s in (1, -1))
    slope = ((up - down) * probe).sum() / (2 * h)
    assert float(slope.abs()) > 1e-6
    assert torch.allclose((g * direction).sum(), slope, rtol=1e-3)
    assert torch.allclose(R, extremal(model, x.detach(), target, **options), atol=0.02)
    (ahead,) = torch.autograd.grad((extremal(model, x, target, create_graph=True, **options) * probe).sum(), x)
    assert float(ahead.abs().max()) > 0
    assert not torch.allclose(ahead, g, rtol=0.01)


def test_a_constant_image_a_saturated_class_and_one_area_for_each():
    where = discs(32, (10, 9), (20, 22), radius=5.5)
    flat = torch.full((1, 1, 32, 32), 0.7)
    R = extremal(Region(where), flat, steps=20)
    assert bool(R.isfinite().all())
    sure = Region(where, gain=60.0)
    x = torch.ones(2, 1, 32, 32)
    assert float(logits(sure, x).softmax(1).amax(1).min()) == 0.5  # the two classes share all of it
    R = extremal(sure, x, torch.tensor([0, 1]), area=torch.tensor([0.05, 0.2]), reference="fade",
                 **SHORT | {"lam": 60.0})
    assert (energy_inside(R, where) > 3 * 0.09).all()
    assert float(R[1].mean() / R[0].mean()) > 2


def test_mistakes_get_one_sentence():
    model, x = Region(discs(32, (10, 9), (20, 22), radius=5)), torch.rand(2, 1, 32, 32, generator=generator(1))
    for options, words in [
        ({"variant": "keep"}, "variant must be"), ({"reference": "noise"}, "reference must be"),
        ({"area": 0.0}, "area must lie"), ({"area": 1.5}, "area must lie"),
        ({"area": torch.tensor([0.1, 2.0])}, "area must lie"),
        ({"area": torch.rand(3)}, "3 rows"), ({"unroll": 0}, "unroll"), ({"cell": 0}, "cell must be"),
        ({"sigma": -1.0}, "sigma"), ({"growth": float("nan")}, "growth"), ({"blur": -1.0}, "blur"),
    ]:
        with pytest.raises(ValueError, match=words):
            extremal(model, x, steps=2, **options)
    for options, words in [({"sigma": 0.0}, "sigma must be more than 0"), ({"growth": 1e40}, "overflow"),
                           ({"area": torch.rand(2, 1)}, "area must be")]:
        with pytest.raises(ValueError, match=words):
            extremal(model, x, steps=2, **options)
    for area in ([0.1, 0.2], "0.1", None, True):
        with pytest.raises(TypeError, match="area must be a number, or a tensor"):
            extremal(model, x, steps=2, area=area)
    for areas in ((), 0.1):
        with pytest.raises(ValueError, match="areas must be several"):
            extremal_curve(model, x, areas=areas, steps=2)
    with pytest.raises(TypeError, match="and no area"):
        extremal_curve(model, x, area=0.1, steps=2)
    for M, words in [(torch.ones(2, 16, 16), "M must be masks"), (torch.ones(2, 1, 32, 32), "M must be masks"),
                     (torch.ones(3, 32, 32), "M must be masks"), (torch.full((2, 32, 32), 1.5), "M must lie"),
                     (torch.full((2, 32, 32), -0.5), "M must lie"), (torch.full((2, 32, 32), math.nan), "M must lie")]:
        with pytest.raises(ValueError, match=words):
            perturbed(x, M)
    with pytest.raises(TypeError, match="images must be floats"):
        perturbed(x.byte(), torch.ones(2, 32, 32))
    assert torch.equal(perturbed(x, torch.full((1, 32, 32), 0.3)), perturbed(x, torch.full((2, 32, 32), 0.3)))
    assert torch.equal(perturbed(x, torch.ones(2, 32, 32).bool()), x)


@pytest.mark.parametrize("area", [0.1, 0.2, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_area_is_a_share_of_the_pixels_to_the_pixel(area, dtype, monkeypatch):
    seen = []
    monkeypatch.setattr(sys.modules[SmoothMax.__module__], "missed_area",
                        lambda M, r: seen.append(r.sum(1)) or missed_area(M, r))
    model, x = Region(discs(10, (5, 5), (2, 2), radius=2)), torch.rand(2, 1, 10, 10, generator=generator(1)).to(dtype)
    for given in (area, np.float32(area), torch.tensor(area), torch.tensor([area, 0.5])):
        extremal(model, x, area=given, steps=1)
        assert seen[-1][0].item() == round(100 * area)
    assert seen[-1][1].item() == 50


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (9, 2)])
def test_images_of_a_few_pixels(size):
    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([4 * x.mean((1, 2, 3)), torch.ones(len(x))], 1)

    R = extremal(Mean(), torch.ones(2, 3, *size), torch.tensor([0, 0]), area=0.5, reference="fade", steps=60, lr=0.05,
                 lam=0.5, growth=1.0, flip=False)
    assert R.shape == (2, *size)
    assert 0.9 < float(R.min()) <= float(R.max()) <= 1  # the class is worth more than the area


def test_close_pixels_are_not_all_equal_because_there_are_many():
    """In a ramp of very many pixels each is next to one that is nearly equal; the two ends are not."""
    M = torch.linspace(0.2, 0.8, 200_000).view(1, 400, 500).requires_grad_()
    r = (torch.arange(200_000) >= 150_000).float()[None]
    (g,) = torch.autograd.grad(missed_area(M, r).sum(), M)
    exact = 2 * (M.detach().flatten() - r[0]) / 200_000
    assert ((g.flatten() - exact).abs() > 1e-8).float().mean() < 1e-3
    assert missed_area(M, r).item() == pytest.approx(((M.flatten() - r[0]).square().mean()).item(), rel=1e-5)


def test_equal_pixels_share_the_area_and_the_value_is_the_formula():
    r = torch.tensor([[0.0, 0, 0, 1]])
    M = torch.full((1, 2, 2), 0.8, requires_grad=True)
    assert missed_area(M, r).item() == pytest.approx((3 * 0.8**2 + 0.2**2) / 4)
    (g,) = torch.autograd.grad(missed_area(M, r).sum(), M)
    assert torch.allclose(g, torch.full_like(g, 2 * (0.8 - 0.25) / 4))
    M = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]], requires_grad=True)
    assert missed_area(M, r).item() == pytest.approx((0.1**2 + 0.1**2 + 0.8**2 + 0.2**2) / 4)
    (g,) = torch.autograd.grad(missed_area(M, r).sum(), M)
    assert torch.allclose(g, torch.tensor([[[-0.1, 0.1], [0.8, 0.2]]]) / 2)
