"""Faults that were put into adversarial training by hand and that no other test saw."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.core import generator
from kit.defend import adversarial_training, fast_training, free_training, single_step_training
from kit.defend.adversarial_training import minmax
from kit.models import Recipe


def test_trades_weighs_its_divergence_alike_for_every_size_of_batch(monkeypatch):
    caught = {}
    monkeypatch.setattr(minmax, "fit", lambda r, x, y, **how: caught.update(how))
    x, y = torch.rand(4, 1, 4, 4, generator=generator(0)), torch.tensor([0, 1, 0, 1])
    minmax.trades(Recipe("digits", "mlp"), x, y, eps=0.1, steps=3, beta=6.0)
    caught["before"](0, 10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    for weight in model.parameters():
        weight.data.normal_(0, 1, generator=generator(1))

    def apart(copies):
        xb, yb = x.repeat(copies, 1, 1, 1), y.repeat(copies)
        value = caught["loss"](model, xb, yb, generator(2)) - F.cross_entropy(model(xb), yb)
        return float(value.detach()) / 6

    assert apart(1) > 0.01
    assert 0.6 < apart(8) / apart(1) < 1.7


X, Y = torch.rand(12, 1, 28, 28, generator=generator(0)), torch.arange(12) % 10
GREY = {"channels": 1, "size": 28, "mean": (0.5,), "std": (0.5,), "width": 4}
SMALL = Recipe("digits", "mlp", GREY, epochs=1, batch=6)


@pytest.mark.parametrize(("x", "y", "error", "words"), [
    (255 * X, Y, ValueError, "divide them by 255"), (X * float("nan"), Y, ValueError, "NaN"),
    (X[:, 0], Y, ValueError, "must have the shape"), (X.double(), Y, TypeError, "use x.to"),
    (X.numpy(), Y, TypeError, "use torch.as_tensor"), (X, Y.int(), TypeError, "use y.long"),
    (X, Y.float(), TypeError, "use y.long"),
])
def test_training_says_what_is_wrong_with_its_images_and_labels(x, y, error, words):
    with pytest.raises(error, match=words):
        adversarial_training(SMALL, x, y, eps=0.1, steps=1, device=torch.device("cpu"))


@pytest.mark.parametrize("train", [free_training, single_step_training, fast_training])
def test_a_radius_in_grey_levels_is_refused_before_the_first_step(train):
    with pytest.raises(ValueError, match="eps = 8 is larger than the range of a pixel"):
        train(SMALL, X, Y, eps=8, device=torch.device("cpu"))


def test_training_does_not_mind_a_caller_without_gradients():
    how = {"eps": 0.1, "steps": 1, "device": torch.device("cpu")}
    wanted = adversarial_training(SMALL, X, Y, **how)
    with torch.no_grad():
        got = adversarial_training(SMALL, X, Y, **how)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), got.parameters(), strict=True))
