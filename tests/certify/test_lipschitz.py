"""Lipschitz bounds against norms of matrices that can be written down, and against what points do."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kit.certify import certified_radius, exact_distance, ibp, lipschitz, lipschitz_radius
from kit.certify.bounds.layers import Layers
from kit.certify.lipschitz import DUAL, convolution_norm, grown
from kit.core import generator, logits

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    source = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source) / max(1, p[0].numel()) ** 0.5)
    return model.double().eval()


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine layer, without its bias."""
    basis = torch.eye(int(torch.tensor(shape).prod()), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros_like(basis))).flatten(1).T


@pytest.mark.parametrize("norm", DUAL)
def test_of_a_linear_network_the_radius_is_the_distance(norm):
    model = drawn(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    x = torch.rand(10, 1, 4, 4, generator=generator(1), dtype=torch.float64)
    z = logits(model, x)
    y, w = z.argmax(1), model[1].weight.detach()
    y[0] = (y[0] + 1) % 3
    away = (z.gather(1, y[:, None]) - z) / (w[y][:, None] - w[None]).norm(p=DUAL[norm], dim=2)
    exact = away.scatter(1, y[:, None], torch.inf).amin(1).clamp_min(0)
    radius = lipschitz_radius(model, x, y, norm=norm)
    assert torch.allclose(radius, exact, rtol=1e-5)
    assert radius[0] == 0
    assert (radius <= exact).all()


CONVOLUTIONS = [
    nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 4, stride=2, padding=1),
    nn.Conv2d(2, 3, 3, stride=3), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(2, 3, 3, padding=2, dilation=2),
    nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, (3, 1), stride=(2, 1), padding=(1, 0)), nn.Conv2d(2, 3, 5, stride=3, padding=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_the_norm_of_a_convolution_is_that_of_its_matrix(layer):
    """Exact in l∞ and l1; in l2 from above, and near: less than a tenth beyond on 12 × 10 pixels."""
    model = drawn(nn.Sequential(layer))
    shape = (layer.in_channels, 12, 10)
    A = matrix(model, shape)
    step = Layers(nn.Sequential(layer, nn.Flatten()), torch.rand(1, *shape, dtype=torch.float64)).steps[0]
    for norm, p in (("linf", torch.inf), ("l1", 1)):
        assert grown(step, [1.0], norm) == pytest.approx(float(torch.linalg.matrix_norm(A, p)))
    exact = float(torch.linalg.matrix_norm(A, 2))
    bound = convolution_norm(step.step)
    assert exact <= bound * (1 + 1e-9)
    assert bound <= 1.1 * exact
    v = torch.rand(A.shape[1], generator=generator(3), dtype=torch.float64)
    for _ in range(200):  # power iteration comes from below
        v = A.T @ (A @ v)
        v = v / v.norm()
    assert 0.97 * exact <= float((A @ v).norm()) <= exact * (1 + 1e-9)


@pytest.mark.parametrize("layer", [
    nn.AvgPool2d(2), nn.AvgPool2d(3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1), nn.ZeroPad2d(1), nn.MaxPool2d(2),
    nn.MaxPool2d(3, stride=1), nn.BatchNorm2d(2)], ids=str)
@pytest.mark.parametrize("norm", DUAL)
def test_the_other_layers(layer, norm):
    model = layer.double().eval()
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_var.copy_(torch.tensor([0.5, 3.0]))
    shape = (2, 6, 6)
    step = Layers(nn.Sequential(layer, nn.Flatten()), torch.rand(1, *shape, dtype=torch.float64)).steps[0]
    bound = grown(step, [1.0], norm)
    if not isinstance(layer, nn.MaxPool2d):
        exact = float(torch.linalg.matrix_norm(matrix(model, shape), ORDER[norm]))
        assert exact <= bound + 1e-9
        assert bound <= 1.25 * exact or norm == "l2"
        return
    a, b = torch.rand(2, 3000, *shape, generator=generator(0), dtype=torch.float64)
    b[:1500] = a[:1500] + 1e-3 * torch.eye(72, dtype=torch.float64).view(72, *shape).repeat(21, 1, 1, 1)[:1500]
    moved = [(model(a) - model(b)), a - b]
    ratio = moved[0].flatten(1).norm(p=ORDER[norm], dim=1) / moved[1].flatten(1).norm(p=ORDER[norm], dim=1)
    assert float(ratio.max()) <= bound + 1e-9


class Branches(nn.Module):
    """A residual sum, a concatenation, both poolings, a normalisation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(6 * 9, 4)

    def forward(self, x):
        h = self.first((x - 0.5) / 0.25).relu()
        h = h + self.second(h).relu()
        h = torch.cat([nn.functional.avg_pool2d(h, 2), nn.functional.max_pool2d(h, 2)], 1)
        return self.head(h.flatten(1))


@pytest.mark.parametrize("norm", DUAL)
def test_no_pair_of_points_is_further_apart(norm):
    model = drawn(Branches(), 2)
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    L = lipschitz(model, x, norm=norm)
    assert torch.allclose(L, L.T)
    assert not L.diagonal().any()
    a, b = torch.rand(2, 4000, 1, 6, 6, generator=generator(4), dtype=torch.float64)
    b[:2000] = a[:2000] + 1e-3 * (b[:2000] - a[:2000]).sign()
    z = logits(model, a) - logits(model, b)
    moved = (z[:, :, None] - z[:, None]).abs()
    assert (moved <= L * (a - b).flatten(1).norm(p=ORDER[norm], dim=1)[:, None, None]).all()


class Twice(nn.Module):
    """2 max(x, 0) as a sum of two branches, before another ReLU or as the answer."""

    def __init__(self, more: bool):
        super().__init__()
        self.more = more

    def forward(self, x):
        h, k = x.relu(), x.relu()
        return ((h + k).relu() if self.more else h + k).flatten(1)


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("norm", DUAL)
def test_branches_that_are_summed_add(norm, more):
    """z_0 − z_1 = 2 (x_0 − x_1): its slope is known, and two points have it. One branch alone has half of it."""
    a, b = [0.8, 0.5 if norm == "l1" else 0.2], [0.2, 0.5 if norm == "l1" else 0.8]
    x = torch.tensor([a, b], dtype=torch.float64).view(2, 1, 1, 2)
    z = logits(Twice(more), x)
    slope = float((z[0, 0] - z[0, 1] - z[1, 0] + z[1, 1]) / (x[0] - x[1]).flatten().norm(p=ORDER[norm]))
    assert slope == pytest.approx({"linf": 4, "l2": 8**0.5, "l1": 2}[norm])
    assert float(lipschitz(Twice(more), x, norm=norm)[0, 1]) == pytest.approx(slope, rel=1e-5)


def test_it_is_below_intervals_and_below_the_truth():
    """r' = |W| r ≤ ‖W‖_∞ max r: in l∞ intervals never prove less than this product."""
    for seed in range(5):
        layers = [nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)]
        model = drawn(nn.Sequential(*layers), seed)
        x = 0.3 + 0.4 * torch.rand(4, 1, 4, 4, generator=generator(seed), dtype=torch.float64)
        y = logits(model, x).argmax(1)
        radius = lipschitz_radius(model, x, y)
        assert (radius > 0).all()
        assert (radius <= 1.02 * certified_radius(model, x, y, bound=ibp, steps=20)).all()
        assert (radius <= exact_distance(model, x, y, largest=0.5)[1] + 1e-9).all()


def test_nonsense_is_refused():
    model = drawn(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    with pytest.raises(ValueError, match="norm"):
        lipschitz(model, torch.rand(1, 1, 2, 2, dtype=torch.float64), norm="l3")
    with pytest.raises(ValueError, match="no rule for tanh"):
        lipschitz(nn.Sequential(model, nn.Tanh()), torch.rand(1, 1, 2, 2, dtype=torch.float64))
