"""ADV² on an image and its views: what a detector compares x' with is answered t as well."""
from functools import partial

import pytest
import torch

from kit.core import fooled, logits
from kit.detect import FeatureSqueezing
from kit.explain import mask
from kit.fire import adv2, adv2_mask
from kit.fire.adv2.descent import prediction_loss


def same(v):
    return v


def upside_down(v):
    return v.flip(2)


def test_the_loss_is_the_mean_over_the_views():
    z, t = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 4])
    found = prediction_loss(z, t, 0.1)
    for i in range(4):
        each = [-(0.9 * own[i].log_softmax(0)[t[i]] + 0.1 * own[i].log_softmax(0).mean()) for own in z]
        assert float(found[i]) == pytest.approx(float(sum(each)) / 3, rel=1e-5)


def test_a_view_that_is_the_image_changes_nothing(case):
    rts, x, _, t = case
    plain, viewed = (adv2(rts.model, x, t, rts, eps=8 / 255, smooth=None, warm=3, steps=4, views=views)
                     for views in ((), (same,)))
    assert torch.allclose(plain, viewed, atol=1e-6)


@pytest.mark.parametrize("name", ["adv2", "adv2_mask"])
def test_the_views_are_deceived_too(case, name):
    rts, x, y, t = case
    attack = (partial(adv2, rts.model, x, t, rts, eps=16 / 255, smooth=None, steps=25) if name == "adv2" else
              partial(adv2_mask, rts.model, x, t, partial(mask, steps=4), eps=16 / 255, solve=4, steps=12, every=6,
                      warm=25))
    plain, viewed = (attack(views=views) for views in ((), (upside_down,)))
    turned = [fooled(rts.model, upside_down(v), y, t).float().mean() for v in (plain, viewed)]
    assert fooled(rts.model, viewed, y, t).all()
    assert turned[1] > turned[0] + 0.3
    assert turned[1] > 0.8
    assert (viewed - x).abs().amax() <= 16 / 255 + 1e-6


def test_what_is_kept_is_sure_on_every_view(case):
    """With a view that is never answered t no iterate is good, and all are as good: the first that was looked at stays,
    where without it a later one does."""
    rts, x, y, t = case
    stubborn = [lambda v: x[: len(v)]]
    early, late = (adv2(rts.model, x, t, rts, eps=8 / 255, smooth=None, steps=steps, views=stubborn)
                   for steps in (1, 6))
    plain = adv2(rts.model, x, t, rts, eps=8 / 255, smooth=None, steps=6)
    assert fooled(rts.model, plain, y, t).all()
    assert torch.equal(early, late)
    assert not torch.equal(plain, late)


def test_a_detectors_views_are_its_squeezers(case):
    rts, x, *_ = case
    detector = FeatureSqueezing(rts.model, [("bit_depth", 3), ("median", 3)])
    assert [view(x).shape for view in detector.views] == [x.shape] * 2
    changes = torch.stack([(logits(rts.model, x).softmax(1) - logits(rts.model, view(x)).softmax(1)).abs().sum(1)
                           for view in detector.views], 1)
    assert torch.allclose(detector.singles(x), changes, atol=1e-5)


def test_squeezers_that_are_attacked_see_less(case):
    rts, x, y, t = case
    detector = FeatureSqueezing(rts.model, [("bit_depth", 3), ("median", 3)])
    plain, adapted = (adv2(rts.model, x, t, rts, eps=8 / 255, smooth=None, steps=40, views=views)
                      for views in ((), detector.views))
    assert fooled(rts.model, adapted, y, t).float().mean() > 0.8
    assert detector.score(adapted).mean() < 0.7 * detector.score(plain).mean()
