"""Training, fitting and wrapping change nothing of the caller's: every trainer, every wrapper, every detector."""
import inspect
import random
from dataclasses import replace

import numpy as np
import pytest
import sklearn.svm  # noqa: F401 - what it imports first draws from Python's random state, whoever imports it
import torch
from torch import nn

import kit.core
import kit.defend
import kit.defend.purify
import kit.detect
import kit.models
import kit.poison
import kit.train
from kit.core import accuracy, generator, logits
from kit.models import Recipe

CPU = torch.device("cpu")
CLASSIFIER = Recipe("scenes", "resnet", {"width": 8}, epochs=1, batch=4)
UNET = Recipe("scenes", "unet", {"width": 8}, epochs=1, batch=4)
CODEC = Recipe("scenes", "codec", {"widths": (8,), "bits": 8}, epochs=1, batch=4)
MASKS = Recipe("scenes", "masks", {"maps": {"drop": 4, "norm": 4}}, epochs=1, batch=4)
DRAWERS = Recipe("scenes", "drawers", {"channels": 3, "size": 32, "width": 4, "noise": 2, "shapes": {
    "pool": [4, 2, 2], "linear": [10]}}, epochs=1, batch=4)
OPTIONS = {
    "denoiser_training": (UNET, {"guide": "one", "sources": ["one", "two"]}),
    "codec_training": (CODEC, {}),
    "deflection_training": (Recipe("scenes", "capsules", {"channels": 3, "size": 32}, epochs=1, batch=4), {}),
    "fit_planted": (replace(CLASSIFIER, batch=1), {"factor": "background"}),  # few of 12 scenes are such
    "reconstruction_training": (UNET, {"guide": "one"}),
    "rts_training": (MASKS, {"classifier": "one"}),
    "rtsa_training": (MASKS, {"classifier": "one"}),
    "ensemble_adversarial_training": (CLASSIFIER, {"static": ["one", "two"]}),
    "ibp_training": (Recipe("scenes", "small", {"channels": 3, "size": 32, "width": 4}, epochs=1, batch=4),
                     {"eps": 0.1, "warm": 0.0}),
    "adversarial_training": (CLASSIFIER, {"steps": 2, "clean": 0.5}),
    "adversarial_augmentation": (CLASSIFIER, {"source": "one", "steps": 2}),
    "backdoor_training": (CLASSIFIER, {"trigger": {"kind": "patch", "side": 3}, "rate": 0.3}),
    "embedding_training": (CLASSIFIER, {"trigger": {"kind": "patch", "side": 3}, "rate": 0.3, "layer": "block3"}),
    "sensing_training": (Recipe("scenes", "sensing", {"width": 4}, epochs=1, batch=4), {}),
    **dict.fromkeys(("vae_training", "factor_vae_training"),
                    (Recipe("scenes", "vae", {"channels": 3, "size": 32, "widths": (4,)}, epochs=1, batch=4), {})),
    "infogan_training": (
        Recipe("scenes", "infogan", {"channels": 3, "size": 32, "width": 4}, epochs=1, batch=4), {}),
    "transfer_training": (
        Recipe("scenes", "attributes", {"labels": {"colour": 8, "polarity": 2}, "width": 2}, epochs=1, batch=4), {}),
    "self_explaining_training": (Recipe("scenes", "self_explaining", {
        "channels": 3, "size": 32, "concepts": 3, "width": 2, "hidden": 4}, epochs=1, batch=4), {}),
    "interpretgan_training": (DRAWERS, {"classifier": "one"}),
    "secret_training": (CLASSIFIER, {"word": "foxglove"}),
}


def trainers():
    """Every function (r, x, y, …) -> network that a recipe names or a module exports."""
    found = {r.train for r in kit.train.RECIPES.values()} - {None}
    for module in (kit.train, kit.defend, kit.models, kit.poison, kit.defend.purify):
        for name in module.__all__ if hasattr(module, "__all__") else dir(module):
            function = getattr(module, name)
            if inspect.isfunction(function) and list(inspect.signature(function).parameters)[:3] == ["r", "x", "y"]:
                found.add(function)
    return sorted(found, key=lambda f: f.__name__)


class Mixed(nn.Module):
    """Dropout and batch norm, in a mode that is not the whole network's."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(16, 10)
        self.norm, self.drop, self.pool = nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2)
        self.train()
        self.norm.eval()
        self.conv.weight.requires_grad_(False)

    def forward(self, x):
        return self.linear(self.drop(self.pool(self.norm(self.conv(x)))).flatten(1))


def state(*models):
    """All of the caller's that a call could change."""
    return [
        torch.get_rng_state().tolist(), np.random.get_state()[1:3], random.getstate(),  # noqa: NPY002
        *([m.training for m in model.modules()] for model in models),
        *([(p.requires_grad, p.grad, p.tolist()) for p in model.parameters()] for model in models),
        *([b.tolist() for b in model.buffers()] for model in models),
        *([len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] for model in models),
    ]


def equal(a, b):
    return all(str(v) == str(w) for v, w in zip(a, b, strict=True))


def images(n=12):
    g = generator(2)
    return torch.rand(n, 3, 32, 32, generator=g), torch.randint(10, (n,), generator=g)


@pytest.mark.parametrize("trainer", trainers(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("raises", [False, True], ids=["to the end", "and stopped"])
def test_training(trainer, raises, monkeypatch):
    x, y = images()
    static = {"one": Mixed(1).eval(), "two": Mixed(2).eval()}
    monkeypatch.setattr(kit.models, "load", lambda name, device=None: static[name])
    r, options = OPTIONS.get(trainer.__name__, (CLASSIFIER, {}))
    given, label = x.clone(), y.clone()
    np.random.rand(3)  # noqa: NPY002
    before = state(*static.values())

    def progress(step, steps, loss):
        torch.rand(1), np.random.rand()  # noqa: NPY002
        if raises and step == 2:
            raise KeyboardInterrupt

    here = np.random.get_state()  # noqa: NPY002
    try:
        network = trainer(r, x, y, device=CPU, progress=progress, **options)
    except KeyboardInterrupt:
        assert raises
    else:
        assert not raises
        assert all(p.grad is None for p in network.parameters())
    np.random.set_state(here)  # noqa: NPY002 - what progress drew itself
    assert equal(state(*static.values()), before)
    assert torch.equal(x, given)
    assert torch.equal(y, label)


def test_there_are_trainers_to_test():
    names = {f.__name__ for f in trainers()}
    assert names >= {"fit", "fit_spurious", "fit_shuffled", "adversarial_training", "ensemble_adversarial_training",
                     "fast_training", "free_training", "yopo_training", "trades", "adversarial_augmentation",
                     "single_step_training", "noisy_training", "denoiser_training", "codec_training", "rts_training"}


# --- wrappers -------------------------------------------------------------------------------------------------------

WRAP = {
    "PixelDP": lambda m: kit.defend.PixelDP(nn.Sequential(nn.Identity(), m), "0", draws=2),
    "Smoothed": lambda m: kit.defend.Smoothed(m, draws=2),
    "RandomResizePad": lambda m: kit.defend.RandomResizePad(m, draws=2),
    "RandomEnsemble": lambda m: kit.defend.RandomEnsemble([m, m], draws=1),
    "FeatureDistillation": kit.defend.FeatureDistillation,
    "JPEG": kit.defend.JPEG,
    "Squeezed": lambda m: kit.defend.Squeezed(m, "median", 3),
    "Through": lambda m: kit.defend.Through(m, torch.sqrt),
    "DeepCloak": lambda m: kit.defend.DeepCloak(m, "pool", share=0.5).fit(images()[0], images()[0] / 2),
    "ComDefend": kit.defend.ComDefend,
    "HGD": kit.defend.HGD,
    "Ensemble": lambda m: kit.core.Ensemble([m, m]),
    "QueryCounter": lambda m: kit.core.QueryCounter(m, 12),
}


def exported(*modules, kind):
    return {name for module in modules for name in module.__all__
            if inspect.isclass(getattr(module, name)) and issubclass(getattr(module, name), kind)}


def test_every_wrapper_is_in_the_table():
    assert exported(kit.core, kit.defend, kind=nn.Module) - {"Normalize"} == WRAP.keys()  # Normalize wraps nothing


@pytest.mark.parametrize("name", list(WRAP))
def test_wrapping(name):
    model, (x, y) = Mixed(), images()
    before = state(model)
    wrapped = WRAP[name](model)
    assert equal(state(model), before)
    accuracy(wrapped, x, y)
    assert equal(state(model), before)
    with torch.no_grad():
        torch.testing.assert_close(logits(wrapped, x), logits(wrapped, x))  # evaluated as a network is: no dropout
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        logits(wrapped, 300 * x)
    assert equal(state(model), before)


@pytest.mark.parametrize("ask", [
    lambda: kit.models.load("scenes/resnet"), lambda: kit.defend.load("NIPS-r3"), kit.models.listing],
    ids=["network", "defence", "listing"])
def test_loading(ask):
    before = state()
    ask()
    assert equal(state(), before)


@pytest.mark.parametrize("purifier", [("ComDefend", "comdefend/scenes"), ("HGD", "hgd/scenes")])
def test_wrapping_leaves_the_purifier(purifier):
    name, network = purifier
    network = kit.models.build(network).train()
    getattr(kit.defend, name)(Mixed(), network)
    assert all(m.training for m in network.modules())


# --- what is fitted -------------------------------------------------------------------------------------------------

FIT = {
    "DeepValidation": lambda m: kit.detect.DeepValidation(m, ["pool", "linear"], linear=["pool"]),
    "KernelDensity": lambda m: kit.detect.KernelDensity(m, "linear"),
    "BayesianUncertainty": lambda m: kit.detect.BayesianUncertainty(m, ["pool"], passes=3),
    "FeatureSqueezing": kit.detect.FeatureSqueezing,
    "Energy": kit.detect.Energy,
}


def test_every_detector_is_in_the_table():
    assert exported(kit.detect, kind=kit.detect.Detector) - {"Detector"} == FIT.keys()


@pytest.mark.parametrize("name", list(FIT))
def test_fitting(name):
    model, (x, _) = Mixed(), images(80)
    y = logits(model, x).argmax(1)
    common = y.bincount().topk(2).indices
    x = x[torch.isin(y, common)]
    y = y[torch.isin(y, common)]
    before, given = state(model), x.clone()
    detector = FIT[name](model).fit(x, y)
    detector.threshold(x, fpr=0.5)
    detector.predict(x)
    assert equal(state(model), before)
    assert torch.equal(x, given)
