"""RTS^A: its objective written out, and what fits it."""
import pytest
import torch

from kit.core import generator
from kit.data import load
from kit.explain import RTS
from kit.fire import RTSA, adv2
from kit.fire.defences.rtsa import runner_up


@pytest.fixture(scope="module")
def case():
    data = load("scenes", "train", n=12)
    return RTS.shipped("scenes/resnet"), data.x, data.y


def test_the_runner_up_is_the_largest_but_y(case):
    rts, x, y = case
    with torch.no_grad():
        z = rts.model(x)
    for found, own, label in zip(runner_up(rts.model, x, y).tolist(), z.tolist(), y.tolist(), strict=True):
        assert found == max((k for k in range(10) if k != label), key=lambda k: own[k])


def test_the_objective_is_that_of_rts_less_the_distance_under_attack(case):
    """The map of the attack is that of the decoder as it is: here the shipped one, so that RTS itself shows it."""
    rts, x, y = case
    decoder, e = rts.decoder, rts.decoder.selector
    plain = rts.objective(decoder, e, x, y, generator(5))
    t = runner_up(rts.model, x, y)
    forged = adv2(rts.model, x, t, rts, eps=8 / 255, step=2 / 255, warm=2, steps=3, smooth=None)
    apart = (rts.explain(x, y) - rts.explain(forged, t)).abs().mean((1, 2))
    assert apart.min() > 0.001
    for gamma in (0.0, 10.0):
        rtsa = RTSA(rts.model, layers=rts.layers, gamma=gamma, warm=2, steps=3)
        found = rtsa.objective(decoder, e, x, y, generator(5))
        assert found.shape == (12,)
        assert torch.allclose(found, plain - gamma * apart, atol=1e-3)


def test_a_step_down_the_objective_moves_the_maps_apart(case):
    """With the weight of the distance alone, the decoder's gradient is that of the distance."""
    rts, x, y = case
    rtsa = RTSA(rts.model, layers=rts.layers, gamma=1.0, warm=2, steps=3)
    decoder, e = rts.decoder, rts.decoder.selector
    weights = [p.clone() for p in decoder.parameters()]
    t = runner_up(rts.model, x, y)
    forged = adv2(rts.model, x, t, rts, eps=8 / 255, step=2 / 255, warm=2, steps=3, smooth=None)

    def apart():
        return float((rts.explain(x, y) - rts.explain(forged, t)).abs().mean())

    before = apart()
    with_it, without = (r.objective(decoder, e, x, y, generator(5)).mean() for r in (rtsa, rts))
    gradients = torch.autograd.grad(with_it - without, list(decoder.parameters()), allow_unused=True)
    try:
        with torch.no_grad():
            for p, g in zip(decoder.parameters(), gradients, strict=True):
                if g is not None:
                    p.sub_(0.05 * g)
        assert apart() > before
    finally:
        with torch.no_grad():
            for p, w in zip(decoder.parameters(), weights, strict=True):
                p.copy_(w)


def test_fitting_is_that_of_rts_and_leaves_the_network_as_it_was(case):
    rts, x, y = case
    before = {k: v.clone() for k, v in rts.model.state_dict().items()}
    rtsa = RTSA(rts.model, width=4, warm=1, steps=1)
    with pytest.raises(ValueError, match="not fitted yet"):
        rtsa.explain(x)
    rtsa.fit(x, y, epochs=1, batch=6)
    m = rtsa.explain(x, y)
    assert m.shape == (12, 32, 32)
    assert 0 <= float(m.min()) <= float(m.max()) <= 1
    assert all(torch.equal(v, rts.model.state_dict()[k]) for k, v in before.items())
    assert rtsa.settings()["gamma"] == 10.0


def test_mistakes_get_one_sentence(case):
    rts, *_ = case
    for wrong in ({"gamma": -1.0}, {"eps": 0.0}, {"warm": -1}, {"steps": 0}):
        with pytest.raises(ValueError, match="gamma and warm must be 0 or more"):
            RTSA(rts.model, **wrong)
