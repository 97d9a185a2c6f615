"""ADV² on MASK: the longest step that is allowed, and a mask that follows the image."""
from functools import partial

import pytest
import torch

from kit.attacks import pgd
from kit.core import ball, fooled, generator, logits
from kit.data import load
from kit.explain import mask
from kit.fire import adv2_mask, map_distance
from kit.fire.adv2.bilevel import as_far_as
from kit.models import load as network


def test_the_longest_step_that_is_allowed_is_found_for_each_image():
    v = torch.rand(50, 1, 2, 2, generator=generator(0))
    most = torch.linspace(-0.2, 1.2, 50)
    moved = as_far_as(lambda s: v + s.view(-1, 1, 1, 1), lambda u: (u - v)[:, 0, 0, 0] <= most, v)
    s = (moved - v)[:, 0, 0, 0]
    exact = most.clamp(0, 1)
    assert (s <= exact + 1e-6).all()
    assert (exact - s).max() < 2**-6
    assert (s[most >= 1.001] > 1 - 1e-6).all()


@pytest.fixture(scope="module")
def case():
    model, x = network("scenes/resnet"), load("scenes", "dev", n=4).x
    z = logits(model, x)
    y = z.argmax(1)
    return model, x, y, z.scatter(1, y[:, None], -torch.inf).argmax(1)


def test_mask_is_deceived_where_pgd_deceives_the_classifier_alone(case):
    model, x, y, target = case
    solve = 50
    explain = partial(mask, steps=solve)
    benign = explain(model, x, y)
    asked = []

    def watched(model, v, classes, **how):
        asked.append((v.detach().clone(), how.get("create_graph", False)))
        return mask(model, v, classes, **how)

    x_adv = adv2_mask(model, x, target, watched, eps=8 / 255, steps=30, solve=solve, every=10)
    plain = pgd(model, x, y, eps=8 / 255, target=target)
    assert fooled(model, x_adv, y, target).all()
    near, far = (map_distance(explain(model, v, target), benign) for v in (x_adv, plain))
    assert near.mean() < 0.8 * far.mean()
    for v, _ in asked:
        assert v.min() >= 0
        assert v.max() <= 1
        assert (ball("linf", 1.0).norm(v - x) <= 8 / 255 + 1e-6).all()
    looked = [v for v, graph in asked if not graph][1:]
    assert len(looked) == 4
    off = torch.stack([map_distance(explain(model, v, target), benign) for v in looked])
    good = torch.stack([logits(model, v).softmax(1).gather(1, target[:, None])[:, 0] > 0.5 for v in looked])
    kept = torch.where(good, off, torch.inf).argmin(0)
    assert torch.equal(x_adv, torch.stack(looked)[kept, torch.arange(len(x))])


@pytest.mark.parametrize(("changed", "words"), [({"every": 0}, "every"), ({"warm": -1}, "warm"), ({"sure": 2}, "sure")])
def test_mistakes_get_one_sentence(case, changed, words):
    model, x, _, target = case
    with pytest.raises(ValueError, match=words):
        adv2_mask(model, x, target, eps=0.03, **changed)
