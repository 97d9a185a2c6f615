"""Measures of robustness on lists that can be worked out by hand, and the attack's side on a linear network."""
from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from kit.attacks import pgd
from kit.certify import (
    Robustness,
    adversarial_frequency,
    adversarial_severity,
    attacked_distance,
    pointwise_robustness,
)
from kit.core import fooled, generator, logits, normal
from kit.report import wilson

INF = math.inf
ALL = torch.ones(4, dtype=torch.bool)


def test_exact_distances_by_hand():
    rho = torch.tensor([0.1, 0.2, 0.3, 0.6])
    for eps, hit, severity in ((0.05, 0, None), (0.1, 1, 0.1), (0.25, 2, 0.15), (0.5, 3, 0.2), (1.0, 4, 0.3)):
        least, most = adversarial_frequency(rho, eps + 1e-6)
        assert least == most
        assert (least.value, least.low, least.high) == pytest.approx((hit / 4, *wilson(hit, 4)))
        below, above = adversarial_severity(rho, eps + 1e-6)
        if severity is None:
            assert math.isnan(below.value)  # of no image: undefined, and not 0
            assert math.isnan(above.value)
        else:
            assert below.value == above.value == pytest.approx(severity)
            assert below.n == hit


def test_an_image_that_is_misclassified_is_at_zero():
    right = torch.tensor([True, False, True, False])
    rho = pointwise_robustness(right, torch.tensor([0.1, 0.5, 0.2, 0.0]), torch.tensor([0.1, 0.5, INF, torch.nan]))
    assert rho.low.tolist() == pytest.approx([0.1, 0, 0.2, 0])
    assert rho.high.tolist() == pytest.approx([0.1, 0, INF, 0])
    assert adversarial_frequency(rho, 0.0).least.value == 0.5
    assert adversarial_severity(rho, 0.15).least.value == pytest.approx(0.1 / 3)


def test_what_is_not_known_of_an_image_is_in_both_ends():
    """Proved to 0.1, 0.05, 0.3, 0.02; found at 0.2, never, 0.4, 0.06. At 0.25 two are certain, one may be."""
    rho = pointwise_robustness(ALL, torch.tensor([0.1, 0.05, 0.3, 0.02]), torch.tensor([0.2, INF, 0.4, 0.06]))
    psi = adversarial_frequency(rho, 0.25)
    assert (psi.least.value, psi.most.value) == (0.5, 0.75)
    mu = adversarial_severity(rho, 0.25)
    assert mu.least.value == pytest.approx((0.1 + 0.02 + 0.05) / 3)  # the third may be as near as 0.05
    assert mu.most.value == pytest.approx((0.2 + 0.06 + 0.25) / 3)
    assert psi.text().startswith("50.0 to 75.0 [")
    nothing = pointwise_robustness(ALL)
    assert (adversarial_frequency(nothing, 0.1).least.value, adversarial_frequency(nothing, 0.1).most.value) == (0, 1)


def test_both_ends_are_those_of_every_rho_in_between():
    source = generator(0)
    for _ in range(30):
        low = torch.rand(6, generator=source)
        rho = Robustness(low, low + 0.5 * torch.rand(6, generator=source) * (torch.rand(6, generator=source) < 0.7))
        psi, mu = adversarial_frequency(rho, 0.5), adversarial_severity(rho, 0.5)
        share, mean = [], []
        for _ in range(400):  # any values between, and often an end
            t = (3 * torch.rand(6, generator=source) - 1).clamp(0, 1)
            values = rho.low + t * (rho.high - rho.low)
            within = values[values <= 0.5]
            share.append(len(within) / 6)
            mean += [float(within.mean())] if len(within) else []
        assert psi.least.value <= min(share)
        assert max(share) <= psi.most.value
        if mean and not math.isnan(mu.least.value):
            assert mu.least.value <= min(mean) + 1e-6
            assert max(mean) <= mu.most.value + 1e-6
            assert min(mean) - mu.least.value < 0.2  # and they are met, nearly


def test_frequency_rises_with_eps_and_severity_stays_within_it():
    rho = torch.rand(50, generator=generator(1))
    last = 0.0
    for eps in torch.linspace(0.05, 1, 20).tolist():
        psi, mu = adversarial_frequency(rho, eps).least.value, adversarial_severity(rho, eps).least.value
        assert last <= psi
        assert mu <= eps
        last = psi


def test_a_better_network_may_have_the_smaller_severity():
    """Fewer errors, and the one that is left is near: ψ and μ do not rank alike."""
    worse, better = torch.tensor([0.05, 0.09, 0.09, 0.09]), torch.tensor([0.05, 0.5, 0.5, 0.5])
    assert adversarial_frequency(better, 0.1).least.value < adversarial_frequency(worse, 0.1).least.value
    assert adversarial_severity(better, 0.1).least.value < adversarial_severity(worse, 0.1).least.value


def test_contradictions_and_nonsense_are_refused():
    with pytest.raises(ValueError, match="image 2 is proved up to 0.3 and has an error at 0.2"):
        pointwise_robustness(ALL, torch.tensor([0, 0, 0.3, 0]), torch.tensor([1, 1, 0.2, 1]))
    with pytest.raises(ValueError, match="NaN or a negative"):
        pointwise_robustness(ALL, torch.tensor([0, 0, torch.nan, 0]))
    with pytest.raises(ValueError, match="one number for each of 4"):
        pointwise_robustness(ALL, torch.zeros(3))
    with pytest.raises(ValueError, match="bools"):
        pointwise_robustness(torch.ones(4))
    for measure in (adversarial_frequency, adversarial_severity):
        with pytest.raises(ValueError, match="eps"):
            measure(torch.ones(4), -0.1)


def test_the_attack_comes_down_to_the_distance_of_a_linear_network():
    w = torch.randn(2, 48, generator=generator(1))
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    model[1].weight.data, model[1].bias.data = w, -w.sum(1) / 2
    x = 0.4 + 0.2 * torch.rand(20, 3, 4, 4, generator=generator(0))
    z = logits(model, x)
    y = z.argmax(1)
    y[0] = 1 - y[0]
    dual = {"linf": 1, "l2": 2, "l1": INF}
    for norm, q in dual.items():
        exact = (z[:, 0] - z[:, 1]).abs() / (w[0] - w[1]).norm(p=q)
        inside = exact < {"linf": 0.4, "l2": 0.4, "l1": 0.3}[norm]  # no pixel meets the box
        found = attacked_distance(model, x, y, norm=norm, attack=partial(pgd, steps=30), rounds=12)
        assert found[0] == 0
        inside[0] = False
        assert inside.sum() > 5
        assert (found >= exact * (1 - 1e-4))[1:].all()
        assert (found <= 1.02 * exact + 1e-3)[inside].all()
    x_adv = pgd(model, x, y, eps=float(found[1]))
    assert fooled(model, x_adv, y)[0]


def test_an_attack_that_finds_nothing_gives_infinity():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data, model[1].bias.data = torch.tensor([[0.1] * 4, [0.0] * 4]), torch.tensor([5.0, 0.0])
    x, y = torch.rand(3, 1, 2, 2), torch.tensor([0, 0, 1])
    assert attacked_distance(model, x, y).tolist() == [INF, INF, 0]


def test_the_attack_draws_from_the_generator():
    """Noise in a random direction: what it finds depends on the draws, and those on the image's place alone."""
    def noise(model, x, y, *, eps, norm, generator):
        return (x + eps.view(-1, 1, 1, 1) * normal(x, generator).sign()).clamp(0, 1)

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model[1].weight.data = torch.randn(2, 16, generator=generator(1))
    x = torch.rand(8, 1, 4, 4, generator=generator(0))
    y = logits(model, x).argmax(1)
    one, again, other = (attacked_distance(model, x, y, attack=noise, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    y[:3] = 1 - y[:3]  # misclassified: at zero, and not asked about
    rest = attacked_distance(model, x, y, attack=noise, generator=generator(0))
    assert torch.equal(rest, torch.cat([torch.zeros(3), one[3:]]))
