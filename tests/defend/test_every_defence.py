"""A defended network is a network: what attacks, explains or guards one does so with every defence, unchanged."""
import inspect

import pytest
import torch
from torch import nn

import kit.defend
from kit.attacks import boundary, pgd, square
from kit.core import accuracy, ball, fooled, generator, logits
from kit.core.losses import cross_entropy
from kit.defend.game import knows, play
from kit.detect import Energy, FeatureSqueezing, evade
from kit.explain import integrated_gradients, occlusion, saliency
from kit.models.purifiers import Codec, UNet
from tests.contracts.methods import images, network

EPS = 0.2


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def denoiser():
    unet = seeded(lambda: UNet(width=4))
    nn.init.normal_(unet.dx.weight, std=0.02, generator=generator(1))
    return unet


def cloak(model):
    x = images(6, size=(8, 8))
    return kit.defend.DeepCloak(model, "flat", share=0.2).fit(x, (x + 0.1).clamp(0, 1))


DEFENCES = {
    "HGD": lambda f: kit.defend.HGD(f, denoiser()),
    "ComDefend": lambda f: kit.defend.ComDefend(f, seeded(lambda: Codec(widths=(6, 6), bits=6))),
    "JPEG": lambda f: kit.defend.JPEG(f, 75),
    "FeatureDistillation": lambda f: kit.defend.FeatureDistillation(f, 10.0, 12.0),
    "Squeezed": lambda f: kit.defend.Squeezed(f, "median", 2),
    "Through": lambda f: kit.defend.Through(f, lambda x: 0.5 + 0.8 * (x - 0.5)),
    "RandomResizePad": lambda f: kit.defend.RandomResizePad(f, 3),
    "RandomEnsemble": lambda f: kit.defend.RandomEnsemble([f, f], draws=2),
    "DeepCloak": cloak,
    "Smoothed": lambda f: kit.defend.Smoothed(f, 0.1, 4),
    "PixelDP": lambda f: kit.defend.PixelDP(f, "block1.0", 0.02, draws=4),
}


@pytest.fixture(params=DEFENCES)
def case(request):
    inner = network().requires_grad_(False)
    model, x = DEFENCES[request.param](inner).double().requires_grad_(False), images(6, size=(8, 8))
    inner.head.bias.sub_(logits(model, x).mean(0))  # no class always wins
    return model, x, logits(model, x).argmax(1)


def test_none_is_missing():
    defences = {name for name in kit.defend.__all__ if inspect.isclass(value := getattr(kit.defend, name))
                and issubclass(value, nn.Module)}
    assert defences == set(DEFENCES)


def test_attacks_by_gradient_scores_and_labels_apply(case):
    model, x, y = case
    climbed = pgd(model, x, y, eps=EPS, steps=10)
    assert (cross_entropy(logits(model, climbed), y) > cross_entropy(logits(model, x), y)).all()
    asked = square(model, x, y, eps=EPS, max_queries=60)
    for v in (climbed, asked):
        assert (ball("linf", EPS).norm(v - x) <= EPS + 1e-9).all()
        assert v.min() >= 0
        assert v.max() <= 1
        torch.testing.assert_close(v[:1], (pgd if v is climbed else square)(
            model, x[:1], y[:1], eps=EPS, **({"steps": 10} if v is climbed else {"max_queries": 60})))
    assert fooled(model, asked, y).double().mean() >= 0.3
    near = boundary(model, x, y, max_queries=60)
    wrong = fooled(model, near, y)
    assert wrong.double().mean() >= 0.3
    assert torch.equal(near[~wrong], x[~wrong])


@pytest.mark.filterwarnings("ignore::kit.core.checks.MisleadingModel")  # eight steps are few
def test_explanations_apply_and_say_something(case):
    model, x, _ = case
    for explain in (saliency, lambda m, v: integrated_gradients(m, v, steps=8), lambda m, v: occlusion(
            m, v, size=3, stride=2)):
        shown = explain(model, x)
        assert shown.shape == (6, 8, 8)
        assert shown.isfinite().all()
        assert (shown.flatten(1).std(dim=1) > 0).all()
        torch.testing.assert_close(explain(model, x[:1]), shown[:1])


def test_a_detector_guards_it_and_the_attack_that_knows_both_runs(case):
    model, x, y = case
    for detector in (Energy(model), FeatureSqueezing(model, (("bit_depth", 2),))):
        detector.threshold(images(40, size=(8, 8)), fpr=0.1)
        assert detector.score(x).isfinite().all()
        torch.testing.assert_close(detector.score(x[:1]), detector.score(x)[:1])
        v = evade(model, x, y, detector=detector, eps=EPS, steps=5)
        assert (v - x).abs().flatten(1).amax(1).min() > 0
        answers = detector.predict(x)
        assert ((answers == y) | (answers == -1)).all()


def test_it_plays(case):
    model, x, y = case
    played = play({"PGD": knows(pgd, steps=5), "Square": knows(square, max_queries=20)}, {"it": model}, x, y, eps=EPS)
    assert played.held["it", "nobody"].mean() == accuracy(model, x, y) == 1
    assert played.worst()["it"].sum() < 6
