"""Units against directions where it is known which of them mean something."""
import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import generator, logits
from kit.explain import Unit, purity, responses, selectivity, top_images
from kit.explain.maximise import random_directions, whitened


def planted(n=600, labels=12, seed=0):
    """Features in which each axis answers to one label, and the labels."""
    y = torch.arange(n) % labels
    noise = 0.3 * torch.randn(n, labels, generator=generator(seed), dtype=torch.double)
    return torch.eye(labels, dtype=torch.double)[y] + noise, y


def rotation(d, seed=5):
    return torch.linalg.qr(torch.randn(d, d, generator=generator(seed), dtype=torch.double))[0]


def test_purity_counts():
    phi = torch.tensor([[3.0], [2.0], [1.0], [0.0]])
    labels = torch.tensor([7, 7, 4, 4])
    up, down = torch.ones(1, 1), -torch.ones(1, 1)
    assert purity(phi, labels, up, 2).tolist() == [1.0]
    assert purity(phi, labels, up, 3).tolist() == [pytest.approx(2 / 3)]
    assert purity(phi, labels, torch.cat([up, down]), 4).tolist() == [0.5, 0.5]
    assert purity(phi, torch.tensor([7, 4, 7, 4]), down, 2).tolist() == [0.5]


def test_planted_units_are_selective_and_a_rotation_takes_it_from_them_and_not_from_the_directions():
    """The same network: what Q mixes, Qᵀ in the next layer unmixes, so that its answers stay."""
    phi, y = planted()
    d = phi.shape[1]
    Q = rotation(d)
    W = torch.randn(3, d, generator=generator(2), dtype=torch.double)
    turned = phi @ Q.T
    assert torch.allclose(phi @ W.T, turned @ (W @ Q.T).T)

    own = selectivity(phi, y, generator=generator(1))
    assert float(own.units.mean()) > 0.95
    assert float(own.directions.mean()) < 0.6
    assert own.p == pytest.approx(1 / 1001)  # the given division counts as one of them, so that p is never 0
    assert own.lead.low > 0.3
    assert own.lead.low < own.lead.value < own.lead.high
    assert own.lead.value == pytest.approx(float(own.units.mean() - own.directions.mean()))
    lost = selectivity(turned, y, generator=generator(1))
    assert abs(float(lost.units.mean() - lost.directions.mean())) < 0.12
    assert lost.p > 0.05
    assert lost.lead.low < 0 < lost.lead.high
    kept = selectivity(turned, y, units=Q.T, generator=generator(1))  # row i is Q e_i
    assert torch.allclose(kept.units, own.units)
    assert kept.p < 0.01
    assert float(own.chance.mean()) < 0.35  # and where the labels say nothing, units are no purer than chance
    blind = selectivity(phi, y[torch.randperm(len(y), generator=generator(3))], generator=generator(1))
    assert abs(float(blind.units.mean() - blind.chance.mean())) < 0.06
    assert blind.p > 0.01


def test_the_generator_decides_every_draw():
    phi, y = planted(60)
    ambient = torch.get_rng_state()
    units = random_directions(4, phi, generator(9))
    first, again, other = (selectivity(phi, y, units=units, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), ambient)
    for name in ("directions", "chance"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert first.p == again.p != other.p


def test_p_is_uniform_where_nothing_differs():
    """Units that are random directions themselves."""
    phi, y = planted(300)
    p = torch.tensor([
        selectivity(phi, y, units=random_directions(12, phi, generator(s)), directions=40, permutations=100, shuffles=2,
                    generator=generator(100 + s)).p for s in range(40)])
    assert 0.3 < float(p.mean()) < 0.7
    assert int((p < 0.1).sum()) < 12


def test_whitened_has_unit_covariance_and_keeps_its_axes():
    phi, _ = planted()
    strong = phi * torch.linspace(1, 20, phi.shape[1])
    white = whitened(strong)
    assert torch.allclose(white.mean(0), torch.zeros_like(white[0]), atol=1e-9)
    assert torch.allclose(white.T @ white / len(white), torch.eye(white.shape[1], dtype=white.dtype), atol=1e-9)
    same = torch.corrcoef(torch.cat([white, strong], 1).T)[:12, 12:]
    assert bool((same.diagonal() > 0.9).all())
    flat = torch.cat([phi, phi[:, :1]], 1)  # one column twice
    assert torch.isfinite(whitened(flat)).all()


def test_random_directions_of_raw_features_follow_the_large_component():
    """Why the test is repeated on whitened features: there a random direction no longer sees the one large axis."""
    phi, y = planted()
    large = phi.clone()
    large[:, 0] *= 30
    v = random_directions(200, phi, generator(4))
    top = (large @ v.T).topk(10, dim=0).indices

    def first(top):
        return float(torch.stack([(y[top] == 0).double().mean(0), 1 - (y[top] == 0).double().mean(0)]).amax(0).mean())

    assert first(top) > 0.95
    assert float((y[(whitened(large) @ v.T).topk(10, dim=0).indices] == 0).double().mean()) < 0.3


def test_top_images_are_those_of_the_largest_answers():
    model, data = kit.models.load("scenes/vgg"), kit.data.load("scenes", "test", n=70)
    z = logits(model, data.x)
    h = responses(model, [4, 0], data.x)
    assert torch.allclose(h, z[:, [4, 0]], atol=1e-4)
    values, places = top_images(model, [4, 0], data.x, top=5)
    assert values.shape == places.shape == (2, 5)
    assert torch.equal(places[0], z[:, 4].argsort(descending=True)[:5])
    assert torch.allclose(values[1], z[places[1], 0], atol=1e-4)
    channel = responses(model, Unit([3], "block1"), data.x)
    alone = responses(model, Unit([3], "block1"), data.x[66:])
    assert torch.allclose(channel[66:], alone, atol=1e-5)  # the chunks


def test_silent_units_are_left_out_and_mistakes_get_one_sentence():
    phi, y = planted()
    silent = torch.cat([phi, torch.zeros(len(phi), 2, dtype=phi.dtype)], 1)
    assert len(selectivity(silent, y, permutations=1).units) == 12
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(3, 1, 2, 2)
    for call, words in [
        (lambda: selectivity(torch.ones(5, 3), torch.arange(5)), "answers differently"),
        (lambda: selectivity(phi, y, directions=1), "2 or more directions"),
        (lambda: selectivity(torch.rand(5, 3, 2, 2), y[:5]), "needs labels"),
        (lambda: selectivity(phi * float("nan"), y), "NaN"),
        (lambda: selectivity(phi, y, units=torch.eye(4)), "directions"),
        (lambda: purity(phi, y[:4], torch.eye(12).double()), "needs labels"),
        (lambda: purity(phi, y, torch.eye(11).double()), "directions"),
        (lambda: purity(phi, y, torch.eye(12).double(), top=0), "top must be 1 to 600"),
        (lambda: top_images(model, 0, x), "top must be 1 to 3"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
