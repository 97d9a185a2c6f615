"""DeepDream where its steps are known, and on sizes."""
import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import MisleadingModel, features, generator
from kit.explain import deep_dream


class Seen(nn.Module):
    """The layer `same` is the image itself, so that ½‖A‖² has the gradient x."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x):
        return self.same(x).flatten(1)[:, :2]


def test_one_step_is_the_gradient_over_its_mean():
    x = torch.rand(2, 3, 6, 5, generator=generator(0), dtype=torch.double).mul(0.5)
    for jitter in (0, 3):  # the identity does not notice a shift
        v = deep_dream(Seen(), x, ["same"], octaves=1, steps=1, step=0.1, jitter=jitter)
        assert torch.allclose(v, x + 0.1 * x / x.mean((1, 2, 3), keepdim=True), atol=1e-12)
    assert torch.allclose(deep_dream(Seen(), x, "same", octaves=1, steps=200, step=0.1), torch.ones_like(x))


class Scaled(nn.Module):
    """A layer of twice the image, and one of three times its first half: ½ Σ‖A‖² has the gradients 4x and 13x."""

    def __init__(self):
        super().__init__()
        self.whole, self.part = nn.Identity(), nn.Identity()

    def forward(self, x):
        whole, part = self.whole(2 * x), self.part(3 * x[:, :, :3])
        return torch.stack([whole.sum((1, 2, 3)), part.sum((1, 2, 3))], 1)


def test_layers_are_summed_over_all_of_their_numbers():
    x = torch.rand(2, 1, 6, 4, generator=generator(0), dtype=torch.double).mul(0.5)
    g = x * torch.tensor([13.0] * 3 + [4.0] * 3, dtype=torch.double)[:, None]
    v = deep_dream(Scaled(), x, ["whole", "part"], octaves=1, steps=1, step=0.01, jitter=0)
    assert torch.allclose(v, x + 0.01 * g / g.mean((1, 2, 3), keepdim=True), atol=1e-12)


def test_an_image_in_which_the_layer_sees_nothing_stays():
    x = torch.rand(2, 3, 6, 5, generator=generator(0), dtype=torch.double).mul(0.5)
    x[1] = 0
    with pytest.warns(MisleadingModel, match="zero for 1 of 2"):
        v = deep_dream(Seen(), x, ["same"], octaves=1, steps=2, step=0.1)
    assert bool((v[1] == 0).all())
    assert bool((v[0] > x[0]).any())


def test_what_a_small_size_has_added_is_carried_up():
    """On a constant image each size adds the same: octaves · steps · step."""
    x = torch.full((1, 1, 16, 16), 0.1, dtype=torch.double)
    v = deep_dream(Seen(), x, ["same"], octaves=3, steps=2, step=0.05)
    assert torch.allclose(v, x + 0.3)


def test_it_raises_what_the_layer_sees_and_keeps_the_image():
    model, x = kit.models.load("scenes/resnet"), kit.data.load("scenes", "test", n=4).x

    def energy(v, layer):
        with features(model, [layer]) as A, torch.no_grad():
            model(v)
        return A[layer].square().flatten(1).sum(1)

    for layer in ("block1", "block2"):
        v = deep_dream(model, x, [layer], octaves=2, steps=5, jitter=4)
        assert bool((energy(v, layer) > 1.5 * energy(x, layer)).all())
        assert float((v - x).abs().mean()) < 0.2
        assert float(v.min()) >= 0
        assert float(v.max()) <= 1
    both = deep_dream(model, x, ["block1", "block2"], octaves=1, steps=2)
    assert not torch.allclose(both, deep_dream(model, x, ["block2"], octaves=1, steps=2))


def test_the_generator_decides_the_shifts_and_they_count():
    model, x = kit.models.load("scenes/resnet"), kit.data.load("scenes", "test", n=2).x
    options = {"layers": ["block2"], "octaves": 1, "steps": 2}
    first, again, other = (deep_dream(model, x, **options, jitter=8, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert not torch.allclose(first, deep_dream(model, x, **options, jitter=0), atol=1e-3)


def test_mistakes_get_one_sentence():
    model, x = kit.models.load("digits/cnn7"), torch.rand(1, 1, 28, 28, generator=generator(0))
    with pytest.raises(ValueError, match="no images of 10 × 10 pixels: give octaves=1"):
        deep_dream(model, x, ["layer3"])
    assert deep_dream(model, x, ["layer3"], octaves=1, steps=1).shape == x.shape
    for options, words in [({"octaves": 0}, "octaves must be"), ({"ratio": 1.0}, "ratio above 1"),
                           ({"jitter": -1}, "jitter must be"), ({"layers": []}, "name a layer"),
                           ({"layers": ["no"]}, "no layer 'no'")]:
        with pytest.raises(ValueError, match=words):
            deep_dream(model, x, **({"layers": ["layer3"]} | options))
