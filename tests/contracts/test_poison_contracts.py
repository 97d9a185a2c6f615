"""The contracts over `kit.poison`, whose methods take a training set, a trigger or a gradient in place of images alone.

What is written as `method(model, x, …)` for images one by one is covered by test_contracts.py as well.
"""
from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import kit.poison
from kit.core import generator
from kit.poison import (
    ActivationClustering,
    Attacker,
    NeuralCleanse,
    SpectralSignatures,
    Trigger,
    attack_success,
    badnets,
    client_gradients,
    dirichlet_clients,
    feature_collision,
    federated,
    flipped,
    leak,
    leak_cosine,
    leak_labels,
    lenet,
    nearest_neighbours,
    noisy_gradient,
    prune,
    reverse_triggers,
    svm_poison,
    unlearn,
)
from tests.contracts.methods import CLASSES, images, network
from tests.contracts.test_contracts import Fails, same, state

SHAPE = (3, 7, 9)
X = images(25)
Y = torch.arange(25) % CLASSES
SIGNS = torch.where(Y < 2, 1, -1)
TRIGGER = Trigger.patch(SHAPE, 2)
CLIENTS = [torch.arange(k, 25, 5) for k in range(5)]


def sent(model, n=2):
    return client_gradients(model, X[:n], Y[:n])


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, in order; those of a network are its weights."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, torch.nn.Module):
        return [p.detach() for p in result.parameters()]
    if isinstance(result, float | int) or result is None:
        return [torch.tensor(result or 0)]
    parts = result.values() if isinstance(result, dict) else result
    return [t for part in parts for t in tensors(part)]


def alike(a: Any, b: Any) -> bool:
    return all(p.shape == q.shape and torch.allclose(p.double(), q.double(), atol=1e-9, equal_nan=True)
               for p, q in zip(tensors(a), tensors(b), strict=True))


# What a method does to a model `m` whose layers are called by `at`, with a generator `g` where it takes one.
MODELS = {
    "attack_success": lambda m, at, g: attack_success(m, TRIGGER, X, Y, 1),
    "reverse_triggers": lambda m, at, g: reverse_triggers(m, X, Y, epochs=2, batch=10, generator=g),
    "NeuralCleanse": lambda m, at, g: NeuralCleanse(m, epochs=2, batch=10).fit(X, Y).triggers,
    "SpectralSignatures": lambda m, at, g: SpectralSignatures(m, at("pool")).fit(X, Y).score(X, Y),
    "ActivationClustering": lambda m, at, g: ActivationClustering(m, at("pool")).fit(X, Y).score(X, Y),
    "prune": lambda m, at, g: prune(m, at("block3"), TRIGGER, X, Y, 1),
    "unlearn": lambda m, at, g: unlearn(m, TRIGGER, X, Y, batch=10),
    "feature_collision": lambda m, at, g: feature_collision(m, X[:3], X[5:6], layer=at("block2"), steps=3),
    "nearest_neighbours": lambda m, at, g: nearest_neighbours(m, X, Y, layer=at("pool"), k=3),
    "client_gradients": lambda m, at, g: sent(m),
    "leak": lambda m, at, g: leak(m, sent(m), SHAPE, y=Y[:2], steps=2, generator=g),
    "leak_cosine": lambda m, at, g: leak_cosine(m, sent(m), SHAPE, y=Y[:2], steps=2, generator=g),
    "leak_labels": lambda m, at, g: leak_labels(m, sent(m), SHAPE),
    "federated": lambda m, at, g: federated(m, X, Y, CLIENTS, rounds=1, per_round=3, steps=1, batch=4, generator=g,
                                            attackers=[Attacker(0, TRIGGER, 1)]).model,
}
SENT = sent(network())
# What draws, and takes no model.
DRAWS = {
    "badnets": lambda g: badnets(X, Y, TRIGGER, 1, rate=0.3, generator=g),
    "svm_poison": lambda g: svm_poison(X[:20], SIGNS[:20], X, SIGNS, steps=1, generator=g),
    "flipped": lambda g: flipped(X, SIGNS, 3, generator=g),
    "dirichlet_clients": lambda g: dirichlet_clients(Y, 5, generator=g),
    "noisy_gradient": lambda g: noisy_gradient(SENT, 1.0, g),
    "lenet": lambda g: lenet(3, 1, 8, generator=g),
}
OTHERS = {
    "fit_on_shared": "trains the model that it is given, in place; its own tests",
    "leak_linear": "of a network that begins with a linear layer; its own tests",
    "train_svm": "no network", "svm_gradient": "no network", "hinge": "no network",
    "plant": "trains a network of the kit's and keeps it; its own tests",
    "backdoor_training": "as `fit`", "embedding_training": "as `fit`", "training_set_attack": "of kit.explain",
    "revealed": "no network", "anomaly_index": "of norms", "pieces": "of a shape", "union": "of triggers",
    **dict.fromkeys(("mean", "median", "geometric_median", "bounded"), "of updates"),
    **dict.fromkeys(("clipped_gradient", "pruned_gradient"), "of gradients"),
    **dict.fromkeys(("matched", "psnr", "ssim"), "of images, with no model"),
    **dict.fromkeys(("Inspection", "Poisoned", "Triggers", "Trigger", "Attacker", "Federation"), "a type"),
    "FoolsGold": "of updates",
}


def test_every_public_name_has_its_place():
    assert set(kit.poison.__all__) == set(MODELS) | set(DRAWS) | set(OTHERS)


def taker(name: str) -> bool:
    return "generator" in inspect.signature(getattr(kit.poison, name)).parameters


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_behind_also_when_it_is_stopped(name):
    model = network()
    model.train()
    model.block2.eval()
    model.head.weight.requires_grad_(False)
    counted = Fails(model)
    before, given = state(model), (X.clone(), Y.clone())
    for stop in (10**9, 2, 3):
        counted.at, counted.passes = stop, 0
        try:
            MODELS[name](counted, lambda layer: f"inner.{layer}", generator(1))
        except KeyboardInterrupt:
            assert stop < 10**9
        assert same(before, state(model))
        assert torch.equal(X, given[0])
        assert torch.equal(Y, given[1])
        assert not X.requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_calls_repeat_and_the_generator_decides(name):
    model, ambient = network(), torch.get_rng_state()
    first, again = (MODELS[name](model, lambda layer: layer, generator(0)) for _ in range(2))
    assert alike(first, again)
    assert torch.equal(torch.get_rng_state(), ambient)
    if taker(name):
        assert alike(first, MODELS[name](model, lambda layer: layer, None))  # which is that of seed 0
        assert not alike(first, MODELS[name](model, lambda layer: layer, generator(1)))


@pytest.mark.parametrize("name", DRAWS)
def test_draws_repeat_and_the_generator_decides(name):
    ambient, given = torch.get_rng_state(), X.clone()
    first = DRAWS[name](generator(0))
    assert alike(first, DRAWS[name](generator(0)))
    assert alike(first, DRAWS[name](None))
    other = DRAWS[name](generator(1))
    shapes = [t.shape for t in tensors(first)] == [t.shape for t in tensors(other)]
    assert not shapes or not alike(first, other)
    assert torch.equal(torch.get_rng_state(), ambient)
    assert torch.equal(X, given)
    with pytest.raises(TypeError, match="must be a torch.Generator"):
        DRAWS[name](5)


@pytest.mark.parametrize("name", [name for name in MODELS if taker(name)])
def test_what_is_no_generator_gets_one_sentence(name):
    with pytest.raises(TypeError, match="must be a torch.Generator"):
        MODELS[name](network(), lambda layer: layer, 5)


@pytest.mark.parametrize("name", ["reverse_triggers", "leak", "leak_cosine", "feature_collision"])
def test_what_is_found_lies_in_the_box(name):
    found = tensors(MODELS[name](network(), lambda layer: layer, generator(0)))[:1 + (name == "reverse_triggers")]
    for t in found:
        assert 0 <= float(t.min()) <= float(t.max()) <= 1


def test_what_one_client_gives_away_does_not_depend_on_the_others():
    model = network()
    for search in (leak, leak_cosine):
        many = search(model, sent(model, 3), SHAPE, y=Y[:3], steps=2, generator=generator(0))
        alone = search(model, sent(model, 1), SHAPE, y=Y[:1], steps=2, generator=generator(0))
        assert torch.allclose(many[:1], alone, atol=1e-7)
