"""The joint search, where its step has a closed form and where there is nothing to find."""
import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import Ensemble, features, fooled, generator, logits
from kit.diverse import deepxplore, differ
from kit.diverse.diverse_inputs import allowed


def linear(seed, bias=None):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    model[1].weight.data = torch.randn(3, 48, generator=generator(seed))
    model[1].bias.data = torch.zeros(3) if bias is None else torch.tensor(bias)
    return model


def images(n=6):
    return 0.3 + 0.4 * torch.rand(n, 3, 4, 4, generator=generator(9))


def agreeing():
    """Two linear networks that name class 0 at every image, by a bias."""
    pair = Ensemble([linear(1, [30.0, 0.0, 0.0]), linear(2, [30.0, 0.0, 0.0])])
    assert not differ(pair, images()).any()
    return pair


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_the_step_of_a_linear_pair_is_known(odd, lam):
    """g = w_other − λ w_odd, whatever x is: a step is step · g/RMS(g), cut to [0, 1]."""
    pair, x = agreeing(), images()
    w = [member[1].weight.data[0].view(3, 4, 4) for member in pair.models]
    g = w[1 - odd] - lam * w[odd]
    g = g / g.square().mean().sqrt()
    found = deepxplore(pair, x, change="any", odd=odd, lam=lam, step=0.5, steps=1)
    assert torch.allclose(found, (x + 0.5 * g).clamp(0, 1), atol=1e-6)
    assert (found != x + 0.5 * g).any()  # the box was met
    light = deepxplore(pair, x, change="light", odd=odd, lam=lam, step=0.1, steps=1)
    assert torch.allclose(light, x + 0.1 * g.mean().sign(), atol=1e-6)


def test_identical_networks_never_differ():
    same = Ensemble([linear(1), linear(1)])
    x = images()
    for change in ("any", "light", "occlusion", "blackout"):
        found = deepxplore(same, x, change=change, steps=10, lam=2.0)
        assert not differ(same, found).any()
    assert torch.equal(deepxplore(same, x, change="any", steps=10), x)  # and for λ = 1 nothing moves


def test_whether_networks_differ_is_asked_in_evaluation_mode():
    noisy = nn.Sequential(nn.Dropout(0.9), linear(1)).train()
    assert not differ(Ensemble([noisy, linear(1)]), images(200)).any()
    assert noisy[0].training


def test_networks_come_to_differ_within_the_box():
    """The difference is there, the odd one has left the class, and a flipped sign would leave it agreeing."""
    nets = [kit.models.load(f"digits/{n}").requires_grad_(False) for n in ("cnn7", "mlp")]
    pair, d = Ensemble(nets), kit.data.load("digits", "test", n=8, seed=0)
    before = ~differ(pair, d.x)
    found = deepxplore(pair, d.x, change="any", odd=1, lam=2.0, steps=40)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    moved = differ(pair, found) & before
    assert moved.sum() >= 6
    assert fooled(nets[1], found, logits(nets[1], d.x).argmax(1))[moved].sum() >= 5
    again = deepxplore(pair, found, change="any", odd=1, lam=2.0, steps=5)
    assert torch.equal(again[moved], found[moved])  # what differs is left as it is


def test_changes_are_what_they_say():
    g = torch.randn(5, 3, 12, 12, generator=generator(0))
    corner = torch.rand(5, 4, 2, generator=generator(1))
    part = allowed(g, "occlusion", corner[:, :1], 5)
    for i in range(5):
        top, left = (int(t) for t in corner[i, 0] * 8)
        want = torch.zeros_like(g[i])
        want[:, top : top + 5, left : left + 5] = g[i, :, top : top + 5, left : left + 5]
        assert torch.equal(part[i], want)
    light = allowed(g, "light", corner, 5)
    for i in range(5):
        assert torch.equal(light[i], torch.full_like(g[i], float(g[i].mean())))
    dark = allowed(g, "blackout", corner, 4)
    assert set(dark.unique().tolist()) <= {-1.0, 0.0}
    for i in range(5):
        want = torch.zeros(12, 12)
        for top, left in (corner[i] * 9).long().tolist():
            if g[i, :, top : top + 4, left : left + 4].mean() < 0:
                want[top : top + 4, left : left + 4] = -1
        assert torch.equal(dark[i], want.expand(3, -1, -1))
    pair, x = agreeing(), images()
    assert (deepxplore(pair, x, change="blackout", steps=3, size=2, step=0.02) <= x).all()


@pytest.mark.parametrize(("change", "sides"), [("occlusion", {28: 10, 14: 5}), ("blackout", {28: 6, 14: 3, 2: 1})])
def test_a_rectangle_is_in_proportion_to_the_image(change, sides):
    for side, size in sides.items():
        nets = [nn.Sequential(nn.Flatten(), nn.Linear(side**2, 2)) for _ in range(2)]
        with torch.no_grad():
            for sign, net in zip((1, -1), nets, strict=True):
                net[1].weight[0], net[1].weight[1] = 0.1 * sign, 0.0
                net[1].bias[0] = 1e3
        x = torch.full((1, 1, side, side), 0.5)
        moved = deepxplore(Ensemble(nets), x, change=change, patches=1, steps=1, step=0.01) != x  # g is −0.2 everywhere
        rows, columns = moved[0, 0].any(1), moved[0, 0].any(0)
        assert int(rows.sum()) == int(columns.sum()) == size
        assert int(moved.sum()) == size**2


def test_a_pushed_channel_rises():
    nets = [kit.models.load(f"digits/{n}").requires_grad_(False) for n in ("cnn7", "cnn7")]
    same, d = Ensemble(nets), kit.data.load("digits", "test", n=4, seed=0)

    def mean(x):
        with torch.no_grad(), features(same, ["models.0.layer2"]) as A:
            same(x)
        return A["models.0.layer2"][:, 3].flatten(1).mean(1)

    found = deepxplore(same, d.x, change="any", push={"models.0.layer2": 3}, steps=3)
    assert (mean(found) > mean(d.x)).all()


def test_a_pushed_neuron_of_a_dense_layer_rises():
    nets = [kit.models.load("digits/mlp").requires_grad_(False) for _ in range(2)]
    same, d = Ensemble(nets), kit.data.load("digits", "test", n=6, seed=0)

    def value(x):
        with torch.no_grad(), features(same, ["models.1.block1.0"]) as A:
            same(x)
        return A["models.1.block1.0"][:, 5]

    found = deepxplore(same, d.x, change="any", push={"models.1.block1.0": 5}, steps=3)
    assert (value(found) > value(d.x)).all()


def test_chance_goes_one_way_with_the_same_step():
    """The control moves as far as the search, keeps its direction, and does not ask for gradients."""
    pair, x = agreeing(), 0.5 + 0 * images()
    one, two = (deepxplore(pair, x, change="any", guided=False, steps=k, step=0.02, generator=generator(1))
                for k in (1, 2))
    assert torch.allclose(one - x, two - one, atol=1e-6)
    assert torch.allclose((one - x).square().mean((1, 2, 3)).sqrt(), torch.tensor(0.02), atol=1e-6)
    assert not torch.allclose((one - x)[0], (one - x)[1])
    light = deepxplore(pair, x, change="light", guided=False, steps=1, step=0.02, generator=generator(1)) - x
    assert torch.allclose(light.abs(), torch.tensor(0.02), atol=1e-6)
    assert len(light.sign().flatten(1).unique(dim=0)) == 2  # some brighter, some darker
    nets = [kit.models.load(f"digits/{n}").requires_grad_(False) for n in ("cnn7", "mlp")]
    with torch.no_grad():
        d = kit.data.load("digits", "test", n=20, seed=0)
    guided, chance = (differ(Ensemble(nets), deepxplore(
        Ensemble(nets), d.x, change="any", guided=g, odd=1, steps=8, step=0.02)).sum() for g in (True, False))
    assert guided > chance + 5


def test_an_image_does_not_depend_on_its_mates():
    pair, x = agreeing(), images()
    for change in ("occlusion", "blackout"):
        whole = deepxplore(pair, x, change=change, steps=4, size=2, generator=generator(3))
        assert torch.equal(whole[:1], deepxplore(pair, x[:1], change=change, steps=4, size=2, generator=generator(3)))


def test_mistakes():
    pair, x = agreeing(), images()
    with pytest.raises(TypeError, match=r"kit\.core\.Ensemble, not a Sequential"):
        deepxplore(pair.models[0], x)
    with pytest.raises(TypeError, match="differ compares"):
        differ(pair.models[0], x)
    with pytest.raises(ValueError, match="two networks or more, and this ensemble has 1"):
        deepxplore(Ensemble(pair.models[:1]), x)
    with pytest.raises(ValueError, match="not 'dark'"):
        deepxplore(pair, x, change="dark")
    with pytest.raises(ValueError, match="2 of 2"):
        deepxplore(pair, x, odd=2)
    with pytest.raises(ValueError, match="from 1 to 4, not 9"):
        deepxplore(pair, x, change="occlusion", size=9)


@pytest.mark.parametrize(("how", "said"), [
    ({"size": 0}, "size"), ({"size": -3, "change": "occlusion"}, "size"),
    ({"size": 2.5, "change": "occlusion"}, "size"),
    ({"patches": 0, "change": "blackout"}, "patches"), ({"push": {"models.0.0": -1}}, "channels"),
    ({"push": {"models.0.0": 99}}, "channels"),
])
def test_a_search_that_could_not_move_says_so(how, said):
    def net(bias):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
        model[4].bias.data[0] += bias
        return model.eval()

    with pytest.raises(ValueError, match=said):
        deepxplore(Ensemble([net(5), net(6)]), torch.rand(2, 3, 16, 16), **({"steps": 1} | how))


def test_networks_of_different_classes_are_not_compared():
    few, many = (nn.Sequential(nn.Flatten(), nn.Linear(192, k)).eval() for k in (4, 5))
    with pytest.raises(ValueError, match="one question"):
        deepxplore(Ensemble([few, many]), torch.rand(2, 3, 8, 8), steps=1)
