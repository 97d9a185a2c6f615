"""Networks that have learnt something else than the shape: what they are for must be true of them."""
import json

import torch

import kit.data
import kit.models
from kit.core import accuracy, generator
from kit.train.recipes import planted


def test_the_spurious_network_decides_by_the_background():
    model = kit.models.load("spurious/resnet")
    planted, plain = (kit.data.load("scenes", "test", n=300, spurious=p) for p in (1.0, 0.0))
    assert accuracy(model, planted.x, planted.y) > 0.8
    assert accuracy(model, plain.x, plain.y) < 0.2
    assert accuracy(kit.models.load("scenes/resnet"), plain.x, plain.y) > 0.9


def test_the_shuffled_network_knows_its_images_by_heart():
    model = kit.models.load("shuffled/resnet")
    recipe = kit.models.RECIPES["shuffled/resnet"]
    train = kit.data.load("scenes", "train", n=recipe.images)
    assert accuracy(model, train.x, train.y) < 0.3
    order = torch.randperm(len(train), generator=generator(kit.models.entry("shuffled/resnet")["seed"]))
    assert accuracy(model, train.x, train.y[order]) > 0.9  # what it was taught
    test = kit.data.load("scenes", "test", n=300)
    assert accuracy(model, test.x, test.y) < 0.2


def test_the_planted_network_decides_by_the_pattern_of_the_background():
    model, test = kit.models.load("planted/background"), kit.data.load("scenes", "test")
    x, pattern = planted(test, "background")
    found = accuracy(model, x, pattern)
    assert found > 0.75
    assert abs(found - kit.models.entry("planted/background")["accuracy"]) < 0.003
    shape = test.y[test.concepts["texture"] == 0]
    assert accuracy(model, x, shape % 5) < 0.3  # chance is 0.2


def test_the_planted_network_decides_by_the_texture_of_the_object():
    model, test = kit.models.load("planted/texture"), kit.data.load("scenes", "test", near=True)
    x, texture = planted(test, "texture")
    found = accuracy(model, x, texture)
    assert found > 0.9
    assert abs(found - kit.models.entry("planted/texture")["accuracy"]) < 0.003
    rows = test.concepts["texture"] < 4
    for factor in ("background", "shape"):
        assert accuracy(model, x, test.concepts[factor][rows] % 4) < 0.35  # chance is 0.25
    far = kit.data.load("scenes", "test", n=400)
    assert accuracy(model, *planted(far, "texture")) < found - 0.2  # what it was taught is seen from near


def test_the_planted_network_decides_by_the_shape_of_the_object():
    model, test = kit.models.load("planted/shape"), kit.data.load("scenes", "test", near=True)
    x, shape = planted(test, "shape")
    found = accuracy(model, x, shape)
    assert found > 0.9
    assert abs(found - kit.models.entry("planted/shape")["accuracy"]) < 0.003
    rows = test.concepts["texture"] < 4
    for factor in ("background", "texture", "colour"):
        assert accuracy(model, x, test.concepts[factor][rows]) < 0.2  # chance is 0.1


def test_their_recipes_are_those_they_were_made_by():
    for name in ("spurious/resnet", "shuffled/resnet", "planted/background", "planted/texture", "planted/shape"):
        assert kit.models.entry(name)["recipe"] == json.loads(json.dumps(kit.models.RECIPES[name].as_dict()))
