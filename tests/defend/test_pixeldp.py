import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from kit.core import Normalize, accuracy, features, generator, logits
from kit.defend import ABSTAIN, PixelDP, Smoothed
from kit.defend.smoothing.binomial import at_most, clopper_pearson
from kit.defend.smoothing.pixeldp import bounds, deviation, leaves_up_to, private_radius, sensitivity
from kit.models import build


def linear(seed=1, classes=2):
    """A linear classifier of 3 × 4 × 4 values; with two classes the distance to its boundary is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    w = torch.randn(classes, 48, generator=generator(seed))
    model[1].weight.data, model[1].bias.data = w, -w.sum(1) / 2
    return model


@pytest.fixture
def x():
    return 0.2 + 0.6 * torch.rand(30, 3, 4, 4, generator=generator(2))


# --- the certificate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "radius"), [(0.6, 0.06), (0.8, 0.24), (0.9, 0.39), (0.99, 0.56), (1.0, 0.57)])
def test_radius_in_units_of_the_noise(p, radius):
    assert private_radius(np.array([p]), np.array([1 - p]), 1.0)[0] == pytest.approx(radius, abs=0.006)
    assert private_radius(np.array([p]), np.array([1 - p]), 2.5)[0] == pytest.approx(2.5 * radius, abs=0.015)


def test_a_radius_has_a_guarantee_behind_it_and_never_exceeds_cohens():
    p = np.random.default_rng(0).uniform(0, 1, 500)
    q = (1 - p) * np.random.default_rng(1).uniform(0, 1, 500)
    L = private_radius(p, q, 1.0)
    with np.errstate(invalid="ignore"):
        cohen = (norm.ppf(p) - norm.ppf(q)) / 2
    assert (L >= 0).all()
    assert (L[p > q] <= cohen[p > q]).all()
    assert (L[p <= q] == 0).all()
    assert (L[p > q] > 0).mean() > 0.9
    some = np.flatnonzero(L > 0)[:40]
    for i in some:  # at that radius the noise is private for some eps and delta that satisfy the condition
        eps = np.linspace(0.001, 1, 2000)
        delta = 1.25 * np.exp(-((eps / L[i]) ** 2) / 2)
        held = (delta < 0.3 + 1e-6) & (p[i] > np.exp(2 * eps) * q[i] + (1 + np.exp(eps)) * delta - 1e-3)
        assert held.any()


@pytest.mark.parametrize(("eps", "delta"), [(1.0, 0.05), (0.5, 0.01), (1.0, 0.29)])
def test_the_noise_is_private_for_a_threshold(eps, delta):
    """For f(x) = [x > 0] the probabilities are Φ(x/σ): what is promised holds at L, and not at several times L."""
    L = 0.3
    sigma = deviation(1.0, L, eps, delta)
    x = np.linspace(-4 * sigma, 4 * sigma, 2001)

    def most(r):
        return float((norm.cdf((x + r) / sigma) - math.exp(eps) * norm.cdf(x / sigma)).max())

    assert most(L) <= delta
    assert most(6 * L) > delta


def test_certificates_of_a_linear_classifier(x):
    """Noise on the image itself (after the first layer, which does nothing): Cohen's votes, and less of a radius."""
    model = linear()
    dp = PixelDP(model, "0", L=0.1)
    assert dp.sigma() == pytest.approx(0.1 * math.sqrt(2 * math.log(25)))
    cohen = Smoothed(model, sigma=dp.sigma())
    z = model(x).detach()
    exact = (z[:, 0] - z[:, 1]).abs() / (model[1].weight[0] - model[1].weight[1]).norm().item()
    assert torch.equal(dp.counts(x, 200), cohen.counts(x, 200))
    (found, radius), (_, larger) = dp.certify(x, n=2000), cohen.certify(x, n=2000)
    sure = found != ABSTAIN
    assert sure.float().mean() > 0.5
    assert torch.equal(found[sure], z.argmax(1)[sure])
    assert (radius <= exact).all()
    assert (radius <= larger).all()
    assert (radius[~sure] == 0).all()
    assert (radius[exact > 0.5] > 0.9 * 0.55 * dp.sigma()).all()  # where the vote is sure, it is near its own ceiling
    assert (radius <= 0.5706 * dp.sigma()).all()


def test_bounds_of_all_classes_hold_together():
    votes, chosen = np.array([[0, 70, 20, 10], [5, 5, 5, 85]]), np.array([1, 3])
    p, q = bounds(votes, chosen, 100, 0.01)
    assert p == pytest.approx(clopper_pearson(np.array([70, 85]), 100, 0.005))
    assert q[0] == pytest.approx(min(1 - p[0], at_most(np.array(20), 100, 0.005 / 3)))
    assert q[1] == pytest.approx(min(1 - p[1], at_most(np.array(5), 100, 0.005 / 3)))
    draws = torch.distributions.Multinomial(200, torch.tensor([0.0, 0.6, 0.3, 0.1])).sample((2000,)).numpy().astype(int)
    p, q = bounds(draws, np.ones(2000, dtype=int), 200, 0.1)
    wrong = (p > 0.6) | (q < 0.3)
    assert wrong.mean() < 0.1
    assert wrong.mean() > 0.02


def test_an_even_vote_has_no_certificate():
    model = linear(classes=3)
    model[1].weight.data *= 0
    found, radius = PixelDP(model, "0").certify(torch.full((2, 3, 4, 4), 0.5), n=300)
    certain = PixelDP(model, "0")
    assert certain.certify(torch.full((1, 3, 4, 4), 0.5), n=5)[0].item() in (ABSTAIN, 0)
    assert (radius <= 0.5706 * certain.sigma()).all()
    votes = np.array([[0, 34, 33, 33]])
    assert private_radius(*bounds(votes, np.array([1]), 100, 0.001), 1.0)[0] == 0
    assert len(found) == 2


# --- the noise -------------------------------------------------------------------------------------------------------


def norm_of(part, shape):
    """The largest singular value of a linear module, by its matrix."""
    basis = torch.eye(math.prod(shape)).view(-1, *shape)
    with torch.no_grad():
        columns = (part(basis) - part(torch.zeros(1, *shape))).flatten(1)
    return float(torch.linalg.matrix_norm(columns.double(), 2))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (4, 4), (1, 1)])
def test_sensitivity_is_a_bound(kernel, stride):
    conv = nn.Conv2d(2, 3, kernel, stride, kernel // 2 if stride < kernel else 0)
    conv.weight.data = torch.randn(conv.weight.shape, generator=generator(3))
    model = nn.Sequential(Normalize((0.5, 0.5), (0.5, 0.25)), conv)
    bound = sensitivity(model, "1")
    assert norm_of(model, (2, 12, 12)) <= bound * (1 + 1e-6)
    conv.weight.data.fill_(1.0)  # equal weights make neighbouring patches add up
    bound, real = sensitivity(model, "1"), norm_of(model, (2, 12, 12))
    assert 0.6 * bound < real <= bound * (1 + 1e-6)
    if kernel > stride:
        assert real > 4 * float(torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2)) * 1.1  # one patch alone


def test_sensitivity_of_a_chain():
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(48, 6)), nn.ReLU(), nn.Linear(6, 2))
    first = float(torch.linalg.matrix_norm(model[0][1].weight.detach(), 2))
    last = float(torch.linalg.matrix_norm(model[2].weight.detach(), 2))
    assert sensitivity(model, "0") == pytest.approx(first)
    assert sensitivity(model, "2") == pytest.approx(first * last)
    assert [name for name, _ in leaves_up_to(model, "0")] == ["0.0", "0.1"]
    assert PixelDP(model).layer == "0.1"
    bn = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    bn[1].running_var.data, bn[1].weight.data = torch.tensor([4.0, 0.25]), torch.tensor([1.0, -3.0])
    assert norm_of(bn, (1, 4, 4)) <= sensitivity(bn, "1") * (1 + 1e-5)
    assert sensitivity(bn, "1") == pytest.approx(6 * sensitivity(bn, "0"), rel=1e-4)


@pytest.mark.parametrize("L", [0.1, 0.4])
def test_noise_is_added_where_it_is_said_and_as_much(x, L):
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    dp = PixelDP(model, L=L)
    shape, s = dp.place(x)
    assert (dp.layer, tuple(shape)) == ("0", (2, 4, 4))
    assert s == pytest.approx(L * 3 * float(torch.linalg.matrix_norm(model[0].weight.detach().flatten(1), 2))
                              * math.sqrt(2 * math.log(25)))
    e = torch.stack(list(dp.noise(x, 400, generator(0))))
    assert e.std().item() == pytest.approx(s, rel=0.03)
    with torch.no_grad(), features(model, ["0"]) as h:
        model(x)
    expected = model[1:]((h["0"][:, None] + e[:3]).flatten(0, 1))
    torch.testing.assert_close(dp.under(x, e[:3]), expected)
    z = dp(x.requires_grad_())
    assert torch.autograd.grad(z[:, 0].sum(), x)[0].abs().sum() > 0


def test_it_learns_to_answer_under_its_noise():
    y = torch.arange(400) % 2
    x = torch.full((400, 1, 6, 6), 0.5) + 0.05 * torch.randn(400, 1, 6, 6, generator=generator(0))
    x[:, :, :3] += 0.25 * (2.0 * y - 1).view(-1, 1, 1, 1)  # half the image says the class
    x = x.clamp(0, 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    before = [p.detach().clone() for p in model.parameters()]
    dp = PixelDP(model, L=0.2)
    assert dp.fit(x[:200], y[:200], epochs=20) is dp
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert dp.model is not model
    assert accuracy(dp, x[200:], y[200:]) > 0.95
    found, radius = dp.certify(x[200:], n=300)
    assert (found == y[200:]).float().mean() > 0.9
    assert radius.max() > 0.1
    plain = PixelDP(model, L=0.2)
    assert accuracy(plain, x[200:], y[200:]) < 0.9


def test_a_shipped_network():
    dp = PixelDP(build("pixeldp/digits"), "layer1.bn")
    assert dp.certify(torch.rand(2, 1, 28, 28, generator=generator(0)), n0=5, n=20)[0].shape == (2,)
    assert logits(dp, torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("numbers", "message"), [
    ({"L": 0.0}, "without noise there is no certificate"), ({"L": -1.0}, "L must be positive"),
    ({"eps": 1.5}, "the Gaussian mechanism holds for"), ({"eps": 0.0}, "Gaussian mechanism"),
    ({"delta": 0.0}, "Gaussian mechanism"), ({"delta": math.nan}, "Gaussian mechanism"), ({"draws": 0}, "draws must"),
    ({"layer": "7"}, "no layer '7' in its chain; it has 0, 1"),
])
def test_numbers_without_a_guarantee(numbers, message):
    with pytest.raises(ValueError, match=message):
        PixelDP(linear(), **numbers)


def test_layers_without_a_bound():
    pooled = nn.Sequential(nn.Conv2d(3, 2, 3), nn.LPPool2d(2, 2), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no bound is known for the layer '1' \(LPPool2d\) before the noise"):
        PixelDP(pooled, "2")
    for odd in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(3, 2, 3, dilation=2),
                nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular")):
        with pytest.raises(ValueError, match="no bound is known"):
            PixelDP(nn.Sequential(odd, nn.Flatten()))
    with pytest.raises(ValueError, match="name the layer for the noise"):
        PixelDP(nn.Sequential(nn.Flatten()))
