"""A network behind HTTP: the same answers, rounded, late, limited and lost as asked for, and billed."""
import time

import pytest
import torch
from torch import nn

from kit.attacks import fgsm, square
from kit.core import QueryCounter, fooled, logits
from kit.models.service import Service


def test_answers_are_the_networks(linear):
    model, x, y = linear
    with Service(model) as service:
        remote = service.remote()
        assert torch.allclose(remote(x), model(x).log_softmax(1), atol=1e-5)
        assert service.billed == len(x)
        assert remote.requests == 1
        with pytest.raises(ValueError, match="gradient"):
            fgsm(remote, x, y, eps=0.1)
        with pytest.raises(ValueError, match=r"the service refuses the images: images must lie in \[0, 1\]"):
            remote(2 * x)
    with pytest.raises(RuntimeError, match="is it still running"):
        remote(x)
    with pytest.raises(ValueError, match="does not run"):
        service.remote()


def test_an_attack_on_it_is_billed_as_it_is_counted(linear):
    model, x, y = linear
    with Service(model) as service:
        counter = QueryCounter(service.remote(), len(x))
        x_adv = square(counter, x, y, eps=0.1, max_queries=40)
        assert service.billed == counter.total + 4  # two images are asked about twice, to look at the model
    assert fooled(model, x_adv, y).float().mean() > 0.5
    assert torch.equal(x_adv, square(model, x, y, eps=0.1, max_queries=40))


def test_probabilities_are_rounded_and_zero_is_half_a_unit(linear):
    model, x, _ = linear
    def sure(v):
        return 40 * model(v)

    with Service(sure, digits=2) as service:
        p = service.remote()(x).exp()
    true = sure(x).softmax(1)
    assert torch.allclose(p, true.round(decimals=2).clamp_min(0.005), atol=1e-6)
    assert (true < 0.005).any()


def test_lost_answers_are_asked_for_again_and_billed(linear):
    model, x, _ = linear
    with Service(model, failures=0.5) as service:
        remote = service.remote()
        for _ in range(10):
            assert torch.allclose(remote(x[:2]), model(x[:2]).log_softmax(1), atol=1e-5)
        assert remote.requests > 12
        assert service.billed == 2 * remote.requests
    with Service(model, failures=1.0) as service, pytest.raises(RuntimeError, match="20 times in a row"):
        logits(service.remote(), x[:2])


def test_latency_and_rate_are_kept(linear):
    model, x, _ = linear
    with Service(model, latency=0.05, rate=100) as service:
        remote = service.remote()
        start = time.monotonic()
        for _ in range(3):
            remote(x[:10])
        assert time.monotonic() - start >= 0.2  # 20 images before the third request, at 100 a second
        assert service.billed == 30
        assert remote.requests > 3


def test_it_asks_the_model_where_the_model_is():
    """A request comes as bytes; a model on a GPU would refuse images of the CPU."""
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.zeros(1, device="meta")), []

        def forward(self, x):
            self.seen.append(x.device.type)
            return torch.zeros(len(x), 3)

    model = Elsewhere()
    with Service(model) as service:
        assert service.remote()(torch.rand(2, 1, 4, 4)).exp().allclose(torch.full((2, 3), 1 / 3))
    assert model.seen == ["meta"]
