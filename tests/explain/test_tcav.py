"""TCAV where the answer is known: linear layers, whose derivative is a row of the head."""
import pytest
import torch
from torch import nn

from kit.core import generator, logits
from kit.explain import TCAV


@pytest.fixture
def colours():
    """A network of three pooled colours; class 0 grows with red and falls with green."""
    conv = nn.Conv2d(3, 3, 1, bias=False)
    conv.weight.data = torch.eye(3)[:, :, None, None]
    head = nn.Linear(3, 2, bias=False)
    head.weight.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.5]])
    model = nn.Sequential()
    for name, part in (("maps", conv), ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("head", head)):
        model.add_module(name, part)
    base = 0.3 + 0.1 * torch.rand(60, 3, 4, 4, generator=generator(0))
    more = []
    for k in range(3):
        image = 0.3 + 0.1 * torch.rand(40, 3, 4, 4, generator=generator(k + 1))
        image[:, k] += 0.4
        more.append(image)
    return model, base, more


def test_the_vector_points_to_the_concept_and_the_score_has_its_sign(colours):
    model, base, more = colours
    x, y = base[40:], torch.zeros(20, dtype=torch.int64)
    for k, score in ((0, 1.0), (1, 0.0)):
        found = TCAV(model, "maps").fit(more[k], base[:40])
        assert found.accuracy == 1.0
        assert float(found.cav.norm()) == pytest.approx(1, abs=1e-5)
        assert float(found.cav[k].mean()) > 5 * float(found.cav.mean((1, 2)).abs().sort().values[1])
        assert found.score(x, y) == score
    exact = model.head.weight.data[0][:, None, None] / 16 * found.cav  # ∂z_0/∂A is the head's row over the 16 places
    assert torch.allclose(found.derivatives(x, y), exact.sum().expand(20), atol=1e-6)


def test_what_is_no_concept_is_not_told_from_random_images(colours):
    model, base, _ = colours
    found = [TCAV(model, "maps", seed=s).fit(base[:30], base[30:]).accuracy for s in range(5)]
    assert sum(found) / 5 < 0.75


def test_calls_repeat_and_mistakes_are_named(colours):
    model, base, more = colours
    first, again = (TCAV(model, "maps").fit(more[0], base) for _ in range(2))
    assert torch.equal(first.cav, again.cav)
    before = logits(model, base)
    with pytest.raises(ValueError, match="not 3"):
        TCAV(model, "maps").fit(more[0][:3], base)
    with pytest.raises(ValueError, match="call fit"):
        TCAV(model, "maps").score(base, torch.zeros(60, dtype=torch.int64))
    with pytest.raises(ValueError, match="no layer"):
        TCAV(model, "elsewhere")
    assert torch.equal(logits(model, base), before)
