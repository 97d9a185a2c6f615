"""ADV² by flows: what a flow can do and cannot, and both lies at once."""
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from kit.attacks import stadv
from kit.core import MisleadingModel, fooled, generator, logits
from kit.explain import cam, l1_distance, mask
from kit.fire import adv2_flow, map_distance, random_patches


def test_it_deceives_both_where_stadv_deceives_one(case):
    rts, x, y, t = case
    benign = rts(rts.model, x, y)
    plain = stadv(rts.model, x, y, target=t, lam=5e-4, kappa=1.0, steps=100)
    v = adv2_flow(rts.model, x, t, rts, smooth=None, warm=40, steps=60)
    assert fooled(rts.model, v, y, t).all()
    assert (logits(rts.model, v).softmax(1).gather(1, t[:, None]) > 0.5).all()
    near, far = (l1_distance(rts(rts.model, images, t), benign).mean() for images in (v, plain))
    assert near < 0.5 * far


def test_it_invents_no_colour(case):
    """Every value lies between the least and the greatest near it: the flows are short."""
    rts, x, _, t = case
    v = adv2_flow(rts.model, x, t, rts, smooth=None, warm=10, steps=10)
    reach = 5
    high = F.max_pool2d(x, 2 * reach + 1, 1, reach)
    low = -F.max_pool2d(-x, 2 * reach + 1, 1, reach)
    assert (v <= high + 1e-6).all()
    assert (v >= low - 1e-6).all()
    assert (v - x).abs().amax() > 0.05
    flat = torch.full_like(x[:2], 0.3)
    with pytest.warns(MisleadingModel, match="exactly zero"):
        v = adv2_flow(rts.model, flat, t[:2], rts, smooth=None, warm=3, steps=3)
    assert torch.allclose(v, flat, atol=1e-6)


def test_the_map_can_be_another_one(case):
    rts, x, _, t = case
    patch, explain = random_patches(x, generator=generator(3)), partial(cam, relu=False)
    found = [adv2_flow(rts.model, x, t, explain, smooth=None, warm=20, steps=40, lam=1000.0, map_target=m)
             for m in (patch, None)]
    to_patch, to_benign = (l1_distance(explain(rts.model, v, t), patch).mean() for v in found)
    assert to_patch < 0.9 * to_benign


def test_a_dear_flow_is_an_even_one(case):
    """With a large τ little is left of it: the image hardly changes."""
    rts, x, _, t = case
    cheap, dear = (adv2_flow(rts.model, x, t, rts, smooth=None, warm=15, steps=15, tau=tau, generator=generator(0))
                   for tau in (0.0, 1.0))
    assert (dear - x).abs().mean() < 0.5 * (cheap - x).abs().mean()


def test_mask_is_deceived_by_a_flow_and_each_mask_follows_its_own_image(case):
    rts, x, y, t = case
    x, y, t, asked = x[:4], y[:4], t[:4], []
    explain = partial(mask, steps=50)

    def watched(model, v, classes, *, state, steps, **how):
        asked.append((len(how) > 0, steps, int(state.t.max())))
        return mask(model, v, classes, state=state, steps=steps, **how)

    benign = explain(rts.model, x, y)
    options = {"smooth": None, "solve": 50, "every": 8, "generator": generator(0)}
    v = adv2_flow(rts.model, x, t, watched, warm=40, steps=40, lam=1000.0, inner=3, **options)
    plain = stadv(rts.model, x, y, target=t, lam=5e-4, kappa=1.0, steps=100)
    assert fooled(rts.model, v, y, t).all()
    near, far = (map_distance(explain(rts.model, images, t), benign).mean() for images in (v, plain))
    assert near < 0.8 * far
    looks = [steps for follows, steps, _ in asked if not follows]
    assert looks == [50] * 7  # the benign map, five times on the way, the end
    begun = [t for follows, _, t in asked if follows]
    assert begun == [50 + 3 * (k % 8) for k in range(40)]


@pytest.mark.parametrize(("changed", "words"), [
    ({"inner": 0}, "inner"), ({"every": 0}, "every"), ({"tau": -1.0}, "tau"), ({"warm": -1}, "warm"),
    ({"smoothing": 1.0}, "smoothing"), ({"sure": 1.0}, "sure"),
    ({"ramp": 0.0}, "ramp"), ({"map_target": torch.zeros(8, 5, 5)}, r"maps \(8, 32, 32\)"),
])
def test_mistakes_get_one_sentence(case, changed, words):
    rts, x, _, t = case
    with pytest.raises(ValueError, match=words):
        adv2_flow(rts.model, x, t, rts, **changed)
