"""Several explainers: their distance written out, and ADV² on all of them against the sum of its parts."""
import copy
from functools import partial

import pytest
import torch
from torch import nn

from kit.core import fooled, generator, logits, per_image
from kit.data import load
from kit.explain import RTS, cam, l1_distance, saliency
from kit.fire import Disagreement, adv2, joint, map_distance
from kit.fire.adv2.descent import unit
from kit.fire.defences.rtsa import runner_up


@pytest.fixture(scope="module")
def case():
    rts, x = RTS.shipped("scenes/resnet"), load("scenes", "dev", n=8).x
    y = logits(rts.model, x).argmax(1)
    return rts, x, y, runner_up(rts.model, x, y)


@per_image
def bright(model, x, target=None, *, create_graph=False):
    """The class has no say in it."""
    return x.mean(1)


@per_image
def dark(model, x, target=None, *, create_graph=False):
    return 1 - x.mean(1)


@per_image
def by_class(model, x, target=None, *, create_graph=False):
    """As many rows are 1 as the number of the class says."""
    rows = torch.arange(x.shape[2]).view(1, -1, 1)
    return (rows < target.view(-1, 1, 1)).to(x).expand(-1, -1, x.shape[3])


def test_how_far_they_are_apart_is_its_mean_over_pairs(case):
    rts, x, y, _ = case
    maps = {"bright": bright, "dark": dark, "class": by_class}
    found = Disagreement(rts.model, maps).score(x)
    R = [g(rts.model, x, y).double() for g in maps.values()]
    R = [(r - r.amin((1, 2), True)) / (r.amax((1, 2), True) - r.amin((1, 2), True)).clamp_min(1e-9) for r in R]
    wanted = sum((R[i] - R[j]).abs().mean((1, 2)) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    assert torch.allclose(found.double(), wanted, atol=1e-6)
    assert found.min() > 0.05


def test_the_maps_are_those_of_the_class_that_is_predicted(case):
    """Bright and dark pixels together hide the class: |r − b| + |1 − r − b| is 1 for every b of 0 or 1."""
    rts, x, y, t = case
    found = Disagreement(rts.model, {"bright": bright, "class": by_class}).score(x)
    ours, other = (l1_distance(bright(rts.model, x), by_class(rts.model, x, c)) for c in (y, t))
    assert torch.allclose(found, ours, atol=1e-6)
    assert ((found - other).abs() > 1e-3).any()


def test_who_agrees_is_not_apart_and_scale_is_no_disagreement(case):
    rts, x, *_ = case
    louder = {"a": bright, "b": lambda *a, **k: 3 * bright(*a, **k) + 1}
    assert Disagreement(rts.model, louder).score(x).max() < 1e-6
    assert Disagreement(rts.model, {"a": bright, "b": dark}).score(x).min() > 0.1


def test_its_threshold_alarms_about_as_often_as_it_promises(case):
    rts, *_ = case
    detector = Disagreement(rts.model, {"RTS": rts, "CAM": partial(cam, relu=False)})
    held = load("scenes", "dev", n=200).x
    tau = detector.threshold(held[:100], fpr=0.1)
    assert (detector.score(held[:100]) > tau).sum() == 9  # ⌈101 · 0.9⌉ = 91 lie below or at it
    assert 0 < detector.alarm(held[100:]).float().mean() < 0.25


def test_its_score_can_be_differentiated(case):
    rts, x, *_ = case
    detector = Disagreement(rts.model, {"RTS": rts, "CAM": partial(cam, relu=False)})
    v = x[:2].clone().requires_grad_()
    (g,) = torch.autograd.grad(detector.discrepancy(v).sum(), v)
    moved = (x[:2] + 0.002 * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    assert (detector.score(moved) > detector.score(x[:2])).all()


def test_the_attack_on_all_has_the_mean_of_the_parts_distances(case):
    rts, x, y, t = case
    parts = [rts, partial(cam, relu=False), saliency]
    maps = joint(*parts)(rts.model, x, t)
    assert maps.shape == (8, 32, 96)
    assert torch.equal(maps[:, :, 32:64], unit(parts[1](rts.model, x, t)))
    whole = map_distance(maps, joint(*parts)(rts.model, x, y))
    each = torch.stack([map_distance(g(rts.model, x, t), g(rts.model, x, y)) for g in parts])
    assert torch.allclose(whole, each.mean(0), atol=1e-7)
    v = x.clone().requires_grad_()
    near = map_distance(joint(*parts[:2])(rts.model, v, t, create_graph=True), maps[:, :, :64] * 0)
    (g,) = torch.autograd.grad(near.sum(), v)
    assert (g.flatten(1).abs().amax(1) > 0).all()


def test_the_attack_on_all_brings_both_maps_back(case):
    """Where the attack on one leaves the other, and where the benign disagreement is."""
    rts, x, y, t = case
    names = {"RTS": rts, "CAM": partial(cam, relu=False)}
    one = adv2(rts.model, x, t, rts, eps=8 / 255, steps=40, smooth=None)
    both = adv2(rts.model, x, t, joint(*names.values()), eps=8 / 255, steps=40, smooth=None)
    assert fooled(rts.model, both, y, t).all()
    off = {name: [l1_distance(g(rts.model, v, t), g(rts.model, x, y)).mean() for v in (one, both)]
           for name, g in names.items()}
    assert off["CAM"][1] < 0.7 * off["CAM"][0]
    assert sum(v[1] for v in off.values()) < 0.9 * sum(v[0] for v in off.values())


def test_on_a_linear_network_the_attack_on_all_ends_where_theory_says():
    """The map for a class is |w| wherever x is: no ensemble of such maps moves, and none hides the change of class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    model[1].weight.data = torch.randn(5, 48, generator=generator(0)) / 5
    x = 0.3 + 0.4 * torch.rand(6, 3, 4, 4, generator=generator(1))
    y = logits(model, x).argmax(1)
    t = runner_up(model, x, y)
    steep = partial(saliency)
    with pytest.warns(UserWarning, match="does not move"):
        v = adv2(model, x, t, joint(steep, steep), eps=0.2, steps=10)
    assert fooled(model, v, y, t).all()
    w = model[1].weight.detach().abs().view(5, 3, 4, 4).amax(1)
    assert torch.allclose(l1_distance(saliency(model, v, t), saliency(model, x, y)), l1_distance(w[t], w[y]), atol=1e-6)
    assert Disagreement(model, {"a": steep, "b": steep}).score(v).max() == 0


def test_mistakes_get_one_sentence(case):
    rts, x, _, t = case
    with pytest.raises(ValueError, match="two explainers to disagree, and there are 1"):
        Disagreement(rts.model, {"RTS": rts})
    with pytest.raises(ValueError, match="at least one explainer"):
        joint()
    with pytest.raises(ValueError, match=r"are \(32, 64\) and those wanted \(32, 32\)"):
        adv2(rts.model, x, t, joint(rts, rts), eps=0.03, smooth=None, steps=1, map_target=torch.zeros(8, 32, 32))
    before = copy.deepcopy(rts.model.state_dict())
    Disagreement(rts.model, {"a": bright, "b": dark}).score(x)
    assert all(torch.equal(before[k], v) for k, v in rts.model.state_dict().items())
