"""Feature collision against its closed form for a linear map, and what a retrained last layer says then."""
import pytest
import torch
from torch import nn

from kit.core import generator, logits
from kit.explain import retrain
from kit.poison import feature_collision, nearest_neighbours

SHAPE = (1, 3, 4)


def linear():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3)).double()
    for k, p in enumerate(model.parameters()):
        p.data = torch.randn(p.shape, generator=generator(k), dtype=p.dtype) / 3
    return model


def images(n, seed=0):
    return 0.45 + 0.1 * torch.rand(n, *SHAPE, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("watermark", [0.0, 0.3])
def test_for_a_linear_map_it_is_the_closed_form(watermark):
    """(AᵀA + βI) x = Aᵀ(φ(t) − a) + βb; the box is far."""
    model, x, guide, beta = linear(), images(4), images(1, 1), 0.25
    A, a = model[1].weight.detach(), model[1].bias.detach()
    base = (watermark * guide + (1 - watermark) * x).flatten(1)
    right = (model[:2](guide).detach() - a) @ A + beta * base
    exact = torch.linalg.solve(A.T @ A + beta * torch.eye(12).double(), right.T).T
    found = feature_collision(model, x, guide, layer="1", beta=beta, steps=400, watermark=watermark)
    assert torch.allclose(found.flatten(1), exact, atol=1e-6)
    assert float((found.flatten(1) - base).abs().max()) > 1e-3


def two_classes():
    """Images of two classes, features in which they are apart, and a target near the second's edge."""
    source = generator(2)
    y = torch.arange(60) % 2
    x = 0.35 + 0.25 * y.view(-1, 1, 1, 1) + 0.1 * torch.rand(60, *SHAPE, generator=source, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 2)).double()
    for k, p in enumerate(model.parameters()):
        p.data = torch.randn(p.shape, generator=generator(k), dtype=p.dtype)
    return model, x, y


def test_a_poison_moves_the_target_s_answer_and_its_base_does_not():
    model, x, y = two_classes()
    target, bases = x[y == 1][:1], x[y == 0][:15]
    poison = feature_collision(model, bases, target, layer="2", beta=0.01, steps=300)

    def lead(extra):
        """By how much the target's class leads, the last layer trained with the extra images as class 0."""
        more, labels = torch.cat([x[1:], extra]), torch.cat([y[1:], torch.zeros(len(extra), dtype=torch.int64)])
        z = logits(retrain(model, more, labels, l2=1e-3, layers=["3"]), target)[0]
        return float(z[1] - z[0])

    assert lead(bases) > 0
    assert lead(poison) < lead(bases) - 1


def test_neighbours_find_one_poison_and_miss_many():
    model, x, y = two_classes()
    clean = nearest_neighbours(model, x, y, layer="2", k=5)
    assert clean.all()
    wrong = y.clone()
    wrong[:2] = 1 - wrong[:2]
    kept = nearest_neighbours(model, x, wrong, layer="2", k=5)
    assert not kept[:2].any()
    assert kept[2:].all()
    target = x[y == 1][:1]
    many = target + 1e-4 * torch.rand(12, *SHAPE, generator=generator(0), dtype=torch.float64)
    kept = nearest_neighbours(model, torch.cat([x, many]), torch.cat([y, torch.zeros(12, dtype=torch.int64)]),
                              layer="2", k=5)
    assert kept[60:].all()  # they vouch for each other


def test_a_poison_stays_in_the_box_where_the_target_pulls_it_out():
    """A target at one corner, bases at the other, and a map that is steep: without the box it would overshoot."""
    model, base = linear(), torch.zeros(3, *SHAPE, dtype=torch.float64)
    free = torch.linalg.lstsq(model[1].weight.detach(), 9 * torch.randn(5, 1, generator=generator(0)).double()).solution
    guide = (free > 0).double().view(1, *SHAPE)
    poison = feature_collision(model, base, guide, layer="1", beta=1e-4, steps=60)
    assert 0 <= float(poison.min()) <= float(poison.max()) <= 1
    far = (model[:2](poison) - model[:2](guide)).norm(dim=1), (model[:2](base) - model[:2](guide)).norm(dim=1)
    assert (far[0] < 0.5 * far[1]).all()


def test_a_poison_of_many_is_the_poison_alone():
    model, x, guide = linear(), images(4), images(4, 1)
    many = feature_collision(model, x, guide, layer="1", steps=15)
    alone = torch.cat([feature_collision(model, x[i : i + 1], guide[i : i + 1], layer="1", steps=15) for i in range(4)])
    assert torch.allclose(many, alone, atol=1e-12)
    for beta in (0.01, 10.0):  # a large β keeps the base
        moved = feature_collision(model, x, guide, layer="1", beta=beta, steps=60) - x
        assert (float(moved.norm()) > 0.05) == (beta < 1)


def test_an_image_is_no_neighbour_of_its_own_and_of_two_labels_alike_its_own_wins():
    model = linear()
    x = torch.tensor([0.1, 0.12, 0.5, 0.53, 0.9]).double().view(5, 1, 1, 1).expand(5, *SHAPE).contiguous()
    y = torch.tensor([0, 1, 1, 1, 0])
    assert nearest_neighbours(model, x, y, layer="1", k=1).tolist() == [False, False, True, True, False]
    assert nearest_neighbours(model, x, torch.tensor([0, 1, 0, 1, 1]), layer="1", k=2).tolist() == \
        [True, False, False, True, True]


def test_one_neighbour_alike_among_three_is_no_majority():
    x = torch.tensor([0.11, 0.12, 0.13, 0.135]).double().view(4, 1, 1, 1).expand(4, *SHAPE).contiguous()
    assert nearest_neighbours(linear(), x, torch.tensor([0, 1, 0, 1]), layer="1", k=3).tolist() == [False] * 4


def test_a_step_that_does_not_lower_the_objective_is_taken_back_and_the_next_is_half():
    model, x, guide = linear(), images(4), images(1, 1)
    far = {"layer": "1", "beta": 1e-3, "lr": 1e3}
    assert torch.equal(feature_collision(model, x, guide, steps=1, **far), x)
    near = feature_collision(model, x, guide, layer="1", beta=1e-3, steps=300)
    assert float((near - x).abs().max()) > 1e-3
    found = feature_collision(model, x, guide, steps=300, **far)
    phi = [model[:2](v).detach() for v in (x, near, found, guide)]
    left = [float((p - phi[3]).square().sum()) for p in phi[:3]]
    assert left[1] < 0.05 * left[0]
    assert left[2] < 0.05 * left[0]


def test_mistakes_get_one_sentence():
    model, x = linear(), images(2)
    with pytest.raises(TypeError, match="images must be a torch tensor"):
        feature_collision(model, x, None, layer="1")
    with pytest.raises(ValueError, match="divide them by 255"):
        feature_collision(model, x, 255 * x, layer="1")
    with pytest.raises(ValueError, match="beta must be at least 0"):
        feature_collision(model, x, x, layer="1", beta=-1.0)
    with pytest.raises(ValueError, match="no layer"):
        feature_collision(model, x, x, layer="other")
    with pytest.raises(ValueError, match="one label per image"):
        nearest_neighbours(model, x, torch.tensor([0]), layer="1", k=1)
    with pytest.raises(ValueError, match="not -1 … 0"):
        nearest_neighbours(model, x, torch.tensor([-1, 0]), layer="1", k=1)
    with pytest.raises(ValueError, match="watermark"):
        feature_collision(model, x, x, layer="1", watermark=1.0)
    with pytest.raises(ValueError, match="guide must"):
        feature_collision(model, x, x[..., :2], layer="1")
    with pytest.raises(ValueError, match="k must"):
        nearest_neighbours(model, x, torch.tensor([0, 1]), layer="1", k=2)
