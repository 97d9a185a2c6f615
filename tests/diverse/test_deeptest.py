"""The seven changes at strengths that are known, the ten blurs against SciPy, and the relation where it is a number."""
import numpy as np
import pytest
import scipy.ndimage as nd
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import Ensemble, generator
from kit.diverse import changed, clean_error, deeptest, departure, differ
from kit.diverse.deeptest import TESTS, blur


def images(n=4, channels=3, side=16):
    return torch.rand(n, channels, side, side, generator=generator(1), dtype=torch.float64)


def one(x, name, p):
    test = torch.full((len(x),), list(TESTS).index(name))
    return changed(x, test, torch.full((len(x),), p))


@pytest.mark.parametrize("p", [1, 4, 10])
def test_light_is_multiplied_and_added(p):
    x = images()
    assert torch.allclose(one(x, "contrast", p), (x * (1 + 0.2 * p)).clamp(0, 1))
    assert torch.allclose(one(x, "brightness", p), (x + 10 * p / 255).clamp(0, 1))


@pytest.mark.parametrize("p", [1, 3, 5])
def test_moves_are_those_of_the_frames_of_480_rows(p):
    """At 48 pixels p = 1 is one pixel to the right and down; at half the size it is half of one."""
    x = images(side=48)
    moved = one(x, "translation", p)
    assert torch.allclose(moved[:, :, p:, p:], x[:, :, :-p, :-p])
    assert (moved[:, :, :p] == 0).all()
    ramp = torch.arange(24.0).div(24).expand(1, 1, 24, 24)
    assert torch.allclose(one(ramp, "translation", 1)[0, 0, 1:, 1:], ramp[0, 0, 1:, 1:] - 0.5 / 24, atol=1e-6)


def test_scale_shear_and_rotation():
    """Known on a ramp: enlarged by 1 + p/2 its slope falls, sheared it moves by p/10 a row, turned it tilts."""
    side, c = 33, 16
    ramp = (0.5 + (torch.arange(side, dtype=torch.float64) - c) / 100).expand(1, 1, side, side)
    inside = slice(12, 21)
    offset = torch.arange(side, dtype=torch.float64) - c
    across, down = offset.expand(side, side), offset[:, None].expand(side, side)
    for p in (1, 3):
        scaled = one(ramp, "scale", p)[0, 0]
        assert torch.allclose(scaled, (0.5 + across / (1 + p / 2) / 100))
        slanted = one(ramp, "shear", p)[0, 0]
        want = 0.5 + (across + down * p / 10) / 100
        assert torch.allclose(slanted[inside, inside], want[inside, inside])
        turned = one(ramp, "rotation", p)[0, 0]
        angle = np.deg2rad(3 * p)
        want = 0.5 + (across * np.cos(angle) - down * np.sin(angle)) / 100
        assert torch.allclose(turned[inside, inside], want[inside, inside])


def test_blurs_are_those_of_scipy():
    x = images(2)
    flat = x.numpy()
    box = {1: 3, 2: 4, 3: 5, 9: 6}
    for p, size in box.items():
        want = nd.uniform_filter(flat, (0, 0, size, size), mode="mirror")
        assert np.allclose(blur(x, torch.full((2,), p)).numpy(), want)
    for p, kernel in ((4, [0.25, 0.5, 0.25]), (5, [0.0625, 0.25, 0.375, 0.25, 0.0625])):
        want = nd.correlate1d(nd.correlate1d(flat, kernel, 2, mode="mirror"), kernel, 3, mode="mirror")
        assert np.allclose(blur(x, torch.full((2,), p)).numpy(), want)
    binomial = np.array([1, 3.5, 7, 9, 7, 3.5, 1]) / 32
    want = nd.correlate1d(nd.correlate1d(flat, binomial, 2, mode="mirror"), binomial, 3, mode="mirror")
    assert np.allclose(blur(x, torch.full((2,), 6)).numpy(), want)
    for p, size in ((7, 3), (8, 5)):
        want = nd.median_filter(flat, (1, 1, size, size), mode="nearest")
        assert np.allclose(blur(x, torch.full((2,), p)).numpy(), want)


def test_the_bilateral_filter_keeps_an_edge_and_smooths_what_is_near():
    """Written out at one pixel; an edge of 1 is 3.4 σ apart, so that little comes across."""
    x = images(1)
    got = blur(x, torch.tensor([10]))[0, :, 8, 8]
    total, weight = 0.0, 0.0
    for i in range(-4, 5):
        for j in range(-4, 5):
            if i * i + j * j <= 16:
                near = x[0, :, 8 + i, 8 + j]
                off = float((near - x[0, :, 8, 8]).abs().sum())
                w = np.exp(-off**2 / (2 * (75 / 255) ** 2) - (i * i + j * j) / (2 * 75**2))
                total, weight = total + w * near, weight + w
    assert torch.allclose(got, total / weight)
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    assert torch.allclose(blur(edge, torch.tensor([10])), edge, atol=1e-6)
    assert (blur(edge, torch.tensor([1])) - edge).abs().max() > 0.3


def test_each_image_has_its_own_change():
    x = images(7)
    test, p = torch.arange(7), torch.tensor([1, 2, 3, 4, 5, 6, 7])
    together = changed(x, test, p)
    for i, name in enumerate(TESTS):
        assert torch.equal(together[i : i + 1], one(x[i : i + 1], name, int(p[i])))
        assert not torch.equal(together[i], x[i])
    assert 0 <= float(together.min()) <= float(together.max()) <= 1


def test_the_search_returns_what_it_did():
    """The networks differ about what was found, the change made again gives it, and nothing leaves the box."""
    pair = Ensemble([kit.models.load(f"digits/{n}").requires_grad_(False) for n in ("cnn7", "mlp")])
    d = kit.data.load("digits", "test", n=40, seed=0)
    x = d.x[~differ(pair, d.x)][:20]
    found, test, p = deeptest(pair, x, tries=15, generator=generator(0))
    assert differ(pair, found).sum() >= 15
    assert torch.equal(found, changed(x, test, p))
    assert set(test.tolist()) <= set(range(7))
    assert len(set(test.tolist())) > 3
    mild = deeptest(pair, x, tries=15, strongest=2, generator=generator(0))[2]
    assert set(mild.tolist()) == {1, 2}
    first = deeptest(pair, found, tries=3)
    gone = differ(pair, found)
    assert torch.equal(first[0][gone], found[gone])
    assert (first[2][gone] == 0).all()


def test_identical_networks_never_differ():
    net = kit.models.load("digits/cnn7").requires_grad_(False)
    x = kit.data.load("digits", "test", n=5, seed=0).x
    found, _, p = deeptest(Ensemble([net, net]), x, tries=4)
    assert not differ(Ensemble([net, net]), found).any()
    assert (p > 0).all()


class Bright(nn.Module):
    """Two classes, logits (0, s · mean): its probabilities are known."""

    def forward(self, x):
        s = 4 * x.mean((1, 2, 3)) - 2
        return torch.stack([torch.zeros_like(s), s], 1)


def test_the_relation_is_a_number():
    """‖f(T) − f‖² = 2 (q' − q)² for two classes, and the error of a clean image is 2 q² or 2 (1 − q)²."""
    x = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).expand(2, 1, 4, 4).contiguous()
    q = torch.sigmoid(4 * torch.tensor([0.2, 0.7]) - 2)
    moved = (x + 0.1).clamp(0, 1)
    q_moved = torch.sigmoid(4 * torch.tensor([0.3, 0.8]) - 2)
    assert torch.allclose(departure(Bright(), x, moved), 2 * (q_moved - q).square(), atol=1e-6)
    assert (departure(Bright(), x, x) == 0).all()
    y = torch.tensor([0, 1])
    want = (2 * q[0] ** 2 + 2 * (1 - q[1]) ** 2) / 2
    assert clean_error(Bright(), x, y) == pytest.approx(float(want), rel=1e-5)
    assert clean_error(Bright(), x, 1 - y) > clean_error(Bright(), x, y)


def test_mistakes():
    x = images(2)
    with pytest.raises(TypeError, match="deeptest compares the networks"):
        deeptest(Bright(), x)
    with pytest.raises(ValueError, match="not 11"):
        deeptest(Ensemble([Bright(), Bright()]), x, strongest=11)
    with pytest.raises(ValueError, match="test is a whole number from 0 to 6"):
        changed(x, torch.tensor([0, 7]), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="p is a whole number from 1 to 10"):
        changed(x, torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="1 changed images for 2"):
        departure(Bright(), x, x[:1])


def test_strengths_are_whole_and_images_large_enough():
    x, first = images(2).float(), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="whole number"):
        changed(x, first, torch.full((2,), 1.5))
    with pytest.raises(ValueError, match="whole number"):
        changed(x, first, torch.full((2,), 10.5))
    with pytest.raises(ValueError, match="too few"):
        changed(images(2, side=4), first + list(TESTS).index("blur"), first + 10)
    few, many = (nn.Sequential(nn.Flatten(), nn.Linear(768, k)).eval() for k in (4, 5))
    with pytest.raises(ValueError, match="whole number"):
        deeptest(Ensemble([few, few]), x, strongest=2.5)
    with pytest.raises(ValueError, match="one question"):
        deeptest(Ensemble([few, many]), x)
