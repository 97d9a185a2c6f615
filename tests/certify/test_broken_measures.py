"""Faults in the measures that the other tests did not see, each with the fault that it is against."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from kit.attacks import pgd
from kit.certify import (
    adversarial_frequency,
    adversarial_severity,
    attacked_distance,
    clever,
    lipschitz,
    lipschitz_radius,
)
from kit.certify.measures import Between
from kit.core import generator, logits
from kit.report import Estimate

DUALS = {"linf": (torch.inf, 1), "l2": (2, 2), "l1": (1, torch.inf)}


def test_an_error_at_exactly_eps_counts():  # kills `<` for `<=`
    psi = adversarial_frequency(torch.tensor([0.25, 0.5]), 0.25)
    assert psi.least.value == psi.most.value == 0.5
    assert adversarial_severity(torch.tensor([0.25, 0.5]), 0.25).most.value == 0.25


def test_the_generator_reaches_the_attack():  # kills generator=None
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(4, 1, 4, 4, generator=generator(0))
    y, seen = logits(model, x).argmax(1), []

    def attack(model, x, y, *, eps, norm, generator):
        seen.append(torch.rand(1, generator=generator._streams[0]).item())
        return pgd(model, x, y, eps=eps, norm=norm, steps=2)

    for seed in (0, 0, 1):
        attacked_distance(model, x, y, attack=attack, rounds=1, generator=generator(seed))
    once = len(seen) // 3
    assert seen[:once] == seen[once:2 * once] != seen[2 * once:]


def test_text_goes_to_the_upper_end_of_the_upper_value():  # kills least.high
    assert Between(Estimate(0.1, 0.05, 0.2, 9), Estimate(0.3, 0.25, 0.4, 9)).text() == "10.0 to 30.0 [5.0, 40.0]"


def test_a_distance_that_is_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        adversarial_frequency(torch.tensor([0.1, torch.nan]), 0.2)


@pytest.mark.parametrize("norm", DUALS)
def test_of_a_perceptron_it_is_the_product_of_all_its_layers(norm):  # kills a product that misses a layer
    p, q = DUALS[norm]
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    for k, parameter in enumerate(model.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator(k))
    first, second, last = (layer.weight.detach().double() for layer in model if isinstance(layer, nn.Linear))
    exact = (last[:, None] - last[None]).norm(p=q, dim=2)
    for weight in (first, second):
        exact = exact * torch.linalg.matrix_norm(weight, p)
    found = lipschitz(model.double(), torch.rand(1, 1, 4, 4, dtype=torch.float64), norm=norm)
    assert torch.allclose(found, exact, rtol=1e-5)
    assert (found >= exact).all()


class Twice(nn.Module):
    """h = relu(x) beside itself, or added to itself, and z_0 − z_1 = Σ of all that holds pixel 0."""

    def __init__(self, joined: bool):
        super().__init__()
        self.joined, self.head = joined, nn.Linear(8 if joined else 4, 2)
        self.head.weight.data = torch.zeros_like(self.head.weight)
        self.head.weight.data[0, ::4] = 1

    def forward(self, x):
        h = x.relu()
        return self.head((torch.cat([h, h], 1) if self.joined else h + h).relu().flatten(1))


@pytest.mark.parametrize("norm", DUALS)
@pytest.mark.parametrize("joined", [True, False])
def test_branches_that_move_together(norm, joined):  # kills max for Σ and for √Σ², in every norm
    found = lipschitz(Twice(joined), torch.rand(1, 1, 2, 2), norm=norm)[0, 1]
    assert found == pytest.approx(2.0, rel=1e-5)
    assert found >= 2


# --- clever


class Of(nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x):
        return torch.stack(self.rule(x.flatten(1)[:, 0]), 1)


@pytest.mark.filterwarnings("ignore::kit.core.MisleadingModel")
def test_it_is_the_greatest_slope_of_the_ball_that_counts():  # kills the mean of the slopes for the greatest
    """g = 1/2 − v² of one pixel v: slopes 0 to 2 in [0, 1], and a lead of 1/4 at v = 1/2."""
    half, zero = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.tensor([0])
    estimate, _ = clever(Of(lambda v: [0.5 - v**2, 0 * v]), half, zero, eps=0.5)
    assert float(estimate) == pytest.approx(0.125, rel=0.05)


@pytest.mark.filterwarnings("ignore::kit.core.MisleadingModel")
def test_the_p_value_is_that_of_the_class_that_decides():  # kills ps[0]
    half, zero = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.tensor([0])
    rule = Of(lambda v: [0 * v, (v - 0.5).relu() - 5, v - 0.6])  # class 1 has two slopes, and is far; class 2 decides
    estimate, p = clever(rule, half, zero, eps=0.4, samples=1)
    assert float(estimate) == pytest.approx(0.1)
    assert float(p) == 1


@pytest.mark.parametrize("norm", DUALS)
def test_a_negative_scale_moves_as_far(norm):  # kills max for max |.|
    norm_layer = nn.BatchNorm2d(1, eps=0.0)
    norm_layer.weight.data.fill_(-3.0)
    head = nn.Linear(4, 2)
    head.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    model = nn.Sequential(norm_layer, nn.ReLU(), nn.Flatten(), head).eval()
    assert lipschitz(model, torch.rand(1, 1, 2, 2), norm=norm)[0, 1] == pytest.approx(3.0, rel=1e-5)


def test_clever_with_a_target_is_zero_of_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model[1].weight.data, model[1].bias.data = torch.eye(3, 4), torch.tensor([5.0, 3.0, 0.0])
    x = torch.full((1, 1, 2, 2), 0.5)
    assert clever(model, x, torch.tensor([1]), eps=0.3, target=torch.tensor([2]), batches=10, samples=2)[0] == 0


def test_lipschitz_radius_of_twin_classes_is_zero():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model[1].weight.data[1], model[1].bias.data[1] = model[1].weight.data[0], model[1].bias.data[0]
    radius = lipschitz_radius(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 0]))
    assert not radius.isnan().any()


def test_sides_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="above its upper"):
        adversarial_frequency((torch.tensor([0.3]), torch.tensor([0.1])), 0.2)
