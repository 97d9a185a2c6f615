"""The contracts: nothing leaked, images independent, mistakes refused in one sentence."""
import os

import pytest
import torch
from torch import nn

import kit.core.passes
from kit.core import (
    MisleadingModel,
    QueryCounter,
    Trace,
    accuracy,
    check_settings,
    device,
    fooled,
    gradient,
    laid_out,
    logits,
    per_image,
    seed_everything,
    uniform,
)


@per_image
def brighten(model, x, y, *, by=0.1, weight=None, generator=None, trace=None):
    if trace is not None:
        trace.add(y.float(), x)
    model(x)
    return x + by * (1 if weight is None else weight.view(-1, 1, 1, 1)), {"y": y}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)


def test_chunks_are_joined_and_split_arguments_follow(linear, small_chunks):
    model, x, y = linear
    weight = torch.arange(len(x)) / 100
    trace, counter = Trace(images=True), QueryCounter(model, len(x))
    out, rest = brighten(counter, x, y, weight=weight, trace=trace)
    assert torch.allclose(out, x + 0.1 * weight.view(-1, 1, 1, 1))
    assert out.is_contiguous()
    assert torch.equal(rest["y"], y)
    assert torch.equal(trace.values, y.float()[None])
    assert torch.equal(trace.images[0], x)
    assert counter.counts.tolist() == [1] * len(x)


class Noisy(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(0.5)

    def forward(self, x):
        return self.inner(self.drop(x) + 0.2 * torch.rand_like(x))


def test_nothing_leaks_even_when_it_raises(linear):
    model, x, y = linear
    model.train()
    model[0].eval()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    before = [p.clone() for p in model.parameters()]
    images, state = x.clone(), torch.get_rng_state()

    @per_image
    def method(model, x, y, fail=False):
        assert not any(m.training for m in model.modules())
        with pytest.raises(RuntimeError, match="leaf"):
            torch.ones(1, requires_grad=True).add_(1)
        torch.rand(3)
        if fail:
            raise KeyError("inside")
        return gradient(lambda v: model(v).sum(1), x)[1]

    with torch.no_grad():  # as a caller may have it
        assert method(model, x, y).abs().sum() > 0
    with torch.inference_mode():
        assert method(model, x.clone(), y).abs().sum() > 0
    with pytest.raises(KeyError):
        method(model, x, y, fail=True)
    assert model.training
    assert not model[0].training
    assert model[1].training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model[1].weight.requires_grad
    assert torch.equal(model[1].weight.grad, torch.ones_like(model[1].weight))
    assert torch.equal(x, images)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("spoil", "error", "words"), [
    (lambda m, x, y: (m, x.numpy(), y), TypeError, "must be a torch tensor"),
    (lambda m, x, y: (m, x[0], y), ValueError, r"x\[None\]"),
    (lambda m, x, y: (m, x[:0], y[:0]), ValueError, "batch is empty"),
    (lambda m, x, y: (m, (x * 255).byte(), y), TypeError, r"\.float\(\) / 255"),
    (lambda m, x, y: (m, x * 255, y), ValueError, "divide them by 255"),
    (lambda m, x, y: (m, x * 4 - 2, y), ValueError, "Normalize"),
    (lambda m, x, y: (m, torch.rand(2, 8, 8, 3), y[:2]), ValueError, "permute"),
    (lambda m, x, y: (m, x.index_fill(0, torch.tensor([1]), torch.nan), y), ValueError, "hold NaN, 1 of 40"),
    (lambda m, x, y: (m, x.double(), y), TypeError, "float32"),
    (lambda m, x, y: (m, x, y.tolist()), TypeError, "y must be a torch tensor"),
    (lambda m, x, y: (m, x, y[:3]), ValueError, "one label per image"),
    (lambda m, x, y: (m, x, y + 1), ValueError, "0 … 4"),
    (lambda m, x, y: (m, x, y - 1), ValueError, "0 … 4"),
    (lambda m, x, y: (m, x, y.float()), TypeError, r"y\.long\(\)"),
    (lambda m, x, y: (m, x, nn.functional.one_hot(y, 5)), ValueError, r"y\.argmax\(1\)"),
    (lambda m, x, y: (nn.Sequential(m, nn.Softmax(1)), x, y), ValueError, "returns probabilities"),
    (lambda m, x, y: (nn.Flatten(2), x, y), ValueError, r"logits \(N, K\)"),
    (lambda m, x, y: (lambda v: (m(v), m(v)), x, y), TypeError, "not a tuple"),
    (lambda m, x, y: (lambda v: m(v) / 0, x, y), ValueError, "NaN or infinity"),
])
def test_mistakes_are_one_clear_sentence(linear, spoil, error, words):
    with pytest.raises(error, match=words) as caught:
        brighten(*spoil(*linear))
    assert "\n" not in str(caught.value)


def test_a_warning_points_at_the_callers_line():
    """Also through wrappers of wrappers, and from a cell of a notebook, which is no file."""
    class Random(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1) + torch.randn_like(x.flatten(1)))

    cell = "\nfrom kit.attacks import fgsm\n\nfgsm(model, x, y, eps=0.1)\n"
    x, y = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    given = {"__name__": "__main__", "model": Random(12, 3), "x": x, "y": y}
    with pytest.warns(MisleadingModel, match="differently when asked twice") as said:
        exec(compile(cell, "<cell 7>", "exec"), given)
    assert {(w.filename, w.lineno) for w in said} == {("<cell 7>", 4)}


def test_a_randomised_model_is_pointed_out(linear):
    model, x, y = linear
    with pytest.warns(MisleadingModel, match="differently when asked twice"):
        brighten(Noisy(model), x, y)


def test_evaluation_mode_is_used_and_given_back(linear):
    model, x, y = linear
    dropping = nn.Sequential(nn.Dropout(0.9), model).train()
    assert torch.equal(logits(dropping, x), logits(model, x))
    assert dropping.training


def test_accuracy_and_success_are_those_of_the_logits(linear, small_chunks):
    model, x, y = linear
    wrong = y.clone()
    wrong[:10] = (y[:10] + 1) % 5
    assert accuracy(model, x, wrong) == pytest.approx(0.75)
    assert fooled(model, x, wrong).sum() == 10
    assert fooled(model, x, wrong, target=y).all()
    assert torch.allclose(logits(model, x), model(x), atol=1e-6)


def test_layout_is_channels_last_on_a_cpu():
    x = torch.rand(2, 3, 4, 4)
    assert laid_out(x).is_contiguous(memory_format=torch.channels_last)
    grey = x[:, :1].contiguous().requires_grad_()
    assert torch.equal(laid_out(grey), grey)
    hidden = nn.Conv2d(1, 5, 3)(laid_out(grey))  # with one channel only the strides tell a convolution
    assert hidden.is_contiguous(memory_format=torch.channels_last)
    assert not hidden.is_contiguous()
    assert torch.autograd.grad(laid_out(grey).sum(), grey)[0].eq(1).all()


def test_seeds_and_devices():
    like = torch.empty(3)
    first = uniform(like, seed_everything(1))
    assert torch.equal(first, uniform(like, seed_everything(1)))
    assert torch.equal(uniform(like, None), uniform(like, None))
    assert device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            device("cuda")


def test_what_differs_on_a_gpu_is_set_when_one_is_chosen_and_only_then(monkeypatch):
    """A convolution in TF32 has 11 bits, and a sum in another order another last digit."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def settings():
        return (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic,
                torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.utils.deterministic.fill_uninitialized_memory)

    before = settings()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        cudnn.allow_tf32 = cudnn.benchmark = True
        loose = settings()
        assert device("cpu").type == "cpu"
        assert settings() == loose
        for name in ("auto", "cuda", "cuda:1"):
            cudnn.allow_tf32 = cudnn.benchmark = True
            assert device(name).type == "cuda"
            assert settings() == (False, False, False, True, True, True, False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = before[:4]
        torch.use_deterministic_algorithms(before[4], warn_only=before[5])
        torch.utils.deterministic.fill_uninitialized_memory = before[6]


def test_a_number_keeps_its_precision():
    x = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64)
    assert check_settings({"eps": 0.1, "step": 0.3}, x) == {"eps": 0.1, "step": 0.3}


def test_a_method_whose_arguments_have_no_names_is_refused():
    with pytest.raises(TypeError, match="takes 'more' by its place"):
        per_image(lambda model, x, *more: x)
