"""Faults that were put into adversarial training by hand and that no other test saw."""
import torch
import torch.nn.functional as F
from torch import nn

from kit.core import generator
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
