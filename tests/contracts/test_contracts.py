"""The contracts of DESIGN, section 3, over every public method: images do not depend on their mates, on the chunks, on
who finishes when; nothing leaks; balls and boxes are exact; calls repeat; mistakes get one sentence.

A method that cannot keep a contract stands in `EXCEPTIONS`, with the reason; one that keeps it must not stand there.
"""
from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import kit.core.passes
from kit.core import MisleadingModel, QueryCounter, ball, fooled, generator, logits
from tests.contracts.methods import CLASSES, METHODS, OTHERS, TOGETHER, arguments, images, network, run, takes, tensors

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("generator", "bim"): "takes one for oracles that draw; the gradient draws nothing",
    ("generator", "atta"): "as bim: it draws with p > 0 alone",
    ("success", "feature_adversary"): "its goal is a representation, and the class follows where it may",
    ("success", "move_map"): "its goal is the map, and it keeps the class",
    ("labels", "least_likely"): "its answer may be the same class for all images",
    ("generator", "attacked_distance"): "what an attack draws seldom moves the radius at which it begins to succeed",
    ("ball", "wasserstein"): "its eps is no l∞ norm: squared pixels on average; its own tests",
    **{("counted", name): "walks the network's layers once for all images, and asks it no more" for name in
       ("alpha_crown", "crown", "fast_lin", "ibp")},
    ("counted", "verify"): "reads the network's weights and asks it nothing",
    ("stopped", "verify"): "lists a copy of the network, in float64, whose passes are not the model's",
    **{("gradient", name): "asks for answers alone" for name in
       ("autozoom", "boundary", "finite_difference", "hopskipjump", "move_map", "nes", "opt_attack", "sign_opt",
        "simba", "spsa", "square", "zo_adamm", "zo_admm", "zo_ngd", "zo_sign_sgd", "zo_svrg", "zoo")},
}
NAMES = sorted(METHODS)
EACH = [name for name in NAMES if name not in TOGETHER]
ATTACKS = [name for name in NAMES if METHODS[name].__module__.startswith(("kit.attacks", "kit.detect", "kit.fire"))
           and name not in ("distance", "least_likely", "train_transformation")]
BOUNDED = [name for name in ATTACKS if takes(name, "eps") and name in EACH]
# What looks for the nearest image, or stops at the first that is wrong.
SPARING = [name for name in ATTACKS if (".minimal." in METHODS[name].__module__ and name not in BOUNDED)
           or METHODS[name].__module__.startswith(
               ("kit.attacks.scores", "kit.attacks.decision", "kit.attacks.spatial"))]

pytestmark = pytest.mark.filterwarnings("ignore::kit.core.checks.MisleadingModel")


@pytest.fixture(scope="module")
def case():
    model, x = network(), images()
    return model, x, logits(model, x).argmax(1)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)  # of 8 images


def close(a: Any, b: Any) -> bool:
    return all(torch.allclose(p, q, rtol=1e-6, atol=1e-9, equal_nan=True)
               for p, q in zip(tensors(a), tensors(b), strict=True))


def rows(result: Any, at: slice) -> list[torch.Tensor]:
    return [t[at] for t in tensors(result)]


@pytest.mark.parametrize("name", EACH)
def test_an_image_depends_on_its_place_alone(case, name, small_chunks):
    """Other mates, with other labels: fooled at once, or never. The images at the first and last places stay."""
    model, x, y = case
    other = x.clone()
    other[1:10] = images(20)[11:]
    labels = y.clone()
    labels[1:10] = (logits(model, other)[1:10].argmax(1) + torch.arange(9) % 2) % CLASSES
    a, b = run(name, model, x, y), run(name, model, other, labels)
    for place in (slice(0, 1), slice(10, 11)):
        assert all(torch.allclose(p, q, rtol=1e-6, atol=1e-9)
                   for p, q in zip(rows(a, place), rows(b, place), strict=True))
    assert not close(a, b) or ("labels", name) in EXCEPTIONS  # the others did change


@pytest.mark.parametrize("name", NAMES)
def test_the_chunk_makes_no_difference(case, name, monkeypatch):
    model, x, y = case
    whole = run(name, model, x, y)
    monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)
    assert close(whole, run(name, model, x, y))


@pytest.mark.parametrize("name", EACH)
def test_an_image_alone_is_the_first_of_many(case, name):
    model, x, y = case
    assert all(torch.allclose(p[:1], q, rtol=1e-6, atol=1e-9) for p, q in zip(
        tensors(run(name, model, x, y)), tensors(run(name, model, x[:1], y[:1])), strict=True))


class Fails(nn.Module):
    """Raises at its k-th pass, and counts them."""

    def __init__(self, inner: nn.Module, at: int = 10**9):
        super().__init__()
        self.inner, self.at, self.passes = inner, at, 0

    def forward(self, x):
        self.passes += 1
        if self.passes == self.at:
            raise KeyboardInterrupt
        return self.inner(x)


def state(model: nn.Module) -> list[Any]:
    """All that a call could leave behind in a model, and in the ambient random state."""
    return [
        [(p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()],
        [(m.training, *(len(hooks) for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)))
         for m in model.modules()],
        torch.get_rng_state(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind_also_when_it_is_stopped(case, name):
    _, x, y = case
    model = network()
    for module in (model, model.block2):  # as a caller may have them
        module.train()
    model.block3.eval()
    model.head.weight.requires_grad_(False)
    counted = Fails(model)
    before, given = state(model), (x.clone(), y.clone())
    for at in (10**9, 2) if ("stopped", name) in EXCEPTIONS else (10**9, 2, 3, 4, 6):
        counted.at, counted.passes = at, 0
        try:
            run(name, counted, x, y)
        except KeyboardInterrupt:
            assert counted.passes == at
        except ValueError:  # a layer is named as the network has it, not as the wrapper does
            run(name, model, x, y)
        assert same(before, state(model))
        assert torch.equal(x, given[0])
        assert torch.equal(y, given[1])
        assert x.grad is None
        assert not x.requires_grad


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", [name for name in BOUNDED if ("ball", name) not in EXCEPTIONS])
def test_balls_and_boxes_are_exact(case, name, norm):
    model, x, y = case
    if norm != "linf" and not (takes(name, "norm") or takes(name, "steps")):
        pytest.skip("l∞ only")
    x = x.clone()
    x[:, :, :3] = x[:, :, :3].round()  # pixels on the edge of the box
    eps = {"linf": 0.05, "l2": 0.4, "l1": 1.5}[norm] * torch.linspace(0.5, 1, len(x), dtype=x.dtype)
    options = {} if norm == "linf" else {"norm": norm}
    try:
        x_adv = run(name, model, x, y, eps=eps, **options)
    except (ValueError, TypeError) as error:
        one_sentence(error, "norm")
        return
    assert x_adv.shape == x.shape
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (ball(norm, 1.0).norm(x_adv - x) <= eps * (1 + 1e-9) + 1e-12).all()
    moved = ball(norm, 1.0).norm(x_adv - x) > 0.1 * eps
    assert (moved | fooled(model, x, y)).float().mean() > 0.5  # and it did something


@pytest.mark.parametrize("name", NAMES)
def test_calls_repeat_and_the_generator_decides(case, name):
    model, x, y = case
    first = run(name, model, x, y)
    assert close(first, run(name, model, x, y))
    if takes(name, "generator"):
        assert close(first, run(name, model, x, y, generator=generator(0)))
        if ("generator", name) not in EXCEPTIONS:
            options = {"start": "random"} if name == "train_transformation" else {}
            a, b = (run(name, model, x, y, generator=generator(seed), **options) for seed in (0, 1))
            assert not close(a, b)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name in EACH])
def test_success_holds_when_asked_again_alone(case, name):
    model, x, y = case
    x_adv = run(name, model, x, y, **({"eps": 0.3} if name in BOUNDED else {}))
    together = fooled(model, x_adv, y)
    alone = torch.cat([fooled(model, x_adv[i:i + 1], y[i:i + 1]) for i in range(len(x))])
    assert torch.equal(together, alone)
    assert together.any() or ("success", name) in EXCEPTIONS


@pytest.mark.parametrize("name", NAMES)
def test_a_counted_model_answers_as_the_model_does(case, name, small_chunks):
    model, x, y = case
    counter = QueryCounter(model, len(x))
    inside = {k: v for k, v in (("layers", ["model.block2"]), ("layer", "model.block2"))
              if k in arguments(name, model, x, y)}
    counted = run(name, counter, x, y, **inside)
    assert bool((counter.counts > 0).all()) or ("counted", name) in EXCEPTIONS
    assert close(counted, run(name, model, x, y))


@pytest.mark.parametrize("name", SPARING)
def test_an_image_that_is_wrong_already_comes_back_as_it_was(case, name):
    model, x, y = case
    wrong = torch.arange(len(x)) % 2 == 0
    assert torch.equal(run(name, model, x, torch.where(wrong, (y + 1) % CLASSES, y))[wrong], x[wrong])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EACH)
def test_one_channel_odd_sizes_and_both_precisions(name, dtype):
    model, x = network(1, dtype=dtype), images(3, 1, (9, 7), dtype)
    y = logits(model, x).argmax(1)
    for result in tensors(run(name, model, x, y)):
        assert result.dtype in (dtype, torch.int64, torch.bool)
        assert result.dtype != dtype or bool((~result.isnan()).all())
        assert len(result) == 3


BAD_IMAGES = {
    "not a tensor": (lambda x: x.numpy(), "must be a torch tensor"),
    "no batch axis": (lambda x: x[0], r"x\[None\]"),
    "empty": (lambda x: x[:0], "empty"),
    "bytes": (lambda x: (x * 255).byte(), r"float\(\) / 255"),
    "0 to 255": (lambda x: x * 255, "divide them by 255"),
    "NaN": (lambda x: x.index_fill(0, torch.tensor([1]), torch.nan), "NaN"),
    "another dtype": (lambda x: x.float(), "float64"),
}
BAD_LABELS = {
    "a list": (lambda y: y.tolist(), "must be a torch tensor"),
    "too few": (lambda y: y[:3], "one label per image|rows for 11 images"),
    "a column": (lambda y: y[:, None], "one label per image"),
    "beyond K": (lambda y: y + 100, "the model has the classes 0 … 4"),
    "floats": (lambda y: y.double(), r"y\.long\(\)"),
    "None": (lambda y: None, "must be a torch tensor"),
}
BAD_SETTINGS = {
    "eps": (float("nan"), -0.1, "8/255", None, [0.1, 0.2]), "steps": (0, -1, 2.5), "rounds": (0, 1.5),
    "restarts": (0,), "samples": (0, 2.5), "step": (float("nan"), -0.1), "mu": (float("nan"), -1.0),
    "kappa": (float("nan"),), "c": (-1.0, float("nan")), "lr": (0.0, float("nan")), "generator": (5,),
    "max_queries": (0, 2.5), "norm": ("l3",), "copies": (0,), "p": (1.5, float("nan")),
}


def one_sentence(error: BaseException, words: str) -> None:
    assert re.search(words, str(error)), str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("what", BAD_IMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_bad_images_get_one_sentence(case, name, what):
    model, x, y = case
    spoil, words = BAD_IMAGES[what]
    good = arguments(name, model, x, y)
    with pytest.raises((ValueError, TypeError)) as caught:
        METHODS[name](model, spoil(x), **good)
    one_sentence(caught.value, words)


@pytest.mark.parametrize("what", BAD_LABELS)
@pytest.mark.parametrize("name", [name for name in NAMES if takes(name, "y")])
def test_bad_labels_get_one_sentence(case, name, what):
    model, x, y = case
    spoil, words = BAD_LABELS[what]
    with pytest.raises((ValueError, TypeError)) as caught:
        METHODS[name](model, x, **(arguments(name, model, x, y) | {"y": spoil(y)}))
    one_sentence(caught.value, words)


@pytest.mark.parametrize(("name", "setting"), [
    (name, setting) for name in NAMES for setting in BAD_SETTINGS if takes(name, setting)])
def test_bad_settings_get_one_sentence(case, name, setting):
    model, x, y = case
    for value in BAD_SETTINGS[setting]:
        with pytest.raises((ValueError, TypeError)) as caught:
            METHODS[name](model, x, **(arguments(name, model, x, y) | {setting: value}))
        one_sentence(caught.value, setting)


@pytest.mark.parametrize("name", NAMES)
def test_labels_from_inference_mode_and_images_that_need_no_gradient(case, name):
    model, x, y = case
    with torch.inference_mode():
        x2, y2 = x.clone(), model(x).argmax(1)
    assert close(run(name, model, x, y), run(name, model, x2, y2))


class Rounds(nn.Module):
    """Hides its gradient: rounding has none."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 4).round() / 4 + 0 * x)


GRADIENTS = [name for name in ATTACKS if ("gradient", name) not in EXCEPTIONS]


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_that_vanishes_is_said(case, name):
    model, x, y = case
    hidden = nn.Sequential()
    hidden.add_module("rounds", Rounds(nn.Identity()))
    for part, module in model.named_children():
        hidden.add_module(part, module)
    y = logits(hidden, x).argmax(1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(name, hidden, x, y)
    assert any(issubclass(w.category, MisleadingModel) and "zero" in str(w.message) for w in said)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_model_without_a_gradient_is_refused(case, name):
    model, x, y = case

    class Wrapped(nn.Sequential):
        @torch.no_grad()
        def forward(self, v):
            return super().forward(v)

    wrapped = Wrapped()
    for part, module in model.named_children():
        wrapped.add_module(part, module)
    with pytest.raises(ValueError, match="gradient"):
        run(name, wrapped, x, y)


def test_exceptions_name_methods():
    assert all(name in METHODS and reason for (_, name), reason in EXCEPTIONS.items())
    assert set(OTHERS).isdisjoint(METHODS)


def test_the_suite_covers_what_is_public():
    assert {"pgd", "cw", "square", "lrp", "grad_cam", "smoothgrad", "evade", "tap_ata", "deletion"} <= set(NAMES)
    assert len(NAMES) >= 35
