"""SVM poisoning against finite differences, a grid of retrained machines, and random flips."""
import numpy as np
import pytest
import torch

from kit.core import generator
from kit.poison import flipped, hinge, svm_gradient, svm_poison, train_svm


def gaussians(n, seed):
    source = generator(seed)
    y = torch.where(torch.arange(n) % 2 == 0, 1, -1)
    return torch.randn(n, 2, generator=source, dtype=torch.float64) * 0.7 + 1.0 * y[:, None], y


X, Y = gaussians(30, 0)
V, U = gaussians(120, 1)


def with_point(point, label):
    return torch.cat([X, point[None]]), torch.cat([Y, torch.tensor([label])])


def sets(m):
    """Which points are margin vectors, and which are bounded."""
    return m.margin.tolist(), np.flatnonzero(m.alpha > 0.99 * m.C).tolist()


def loss(point, label, gamma):
    return hinge(train_svm(*with_point(point, label), gamma=gamma), V, U)


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_the_machine_meets_the_optimality_conditions(gamma):
    m = train_svm(X, Y, gamma=gamma)
    g = Y.numpy() * m.decision(X).numpy() - 1
    assert abs(m.alpha @ Y.double().numpy()) < 1e-8
    assert len(m.margin)
    assert np.abs(g[m.margin]).max() < 1e-8
    assert (g[m.alpha == 0] > -1e-6).all()
    assert (g[m.alpha == 1.0] < 1e-6).all()


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_the_gradient_is_that_of_finite_differences(gamma):
    """At points that are margin vectors and at bounded ones, wherever the sets stay what they are."""
    kinds, source, h = [], generator(3), 1e-5
    for _ in range(60):
        point, label = torch.randn(2, generator=source, dtype=torch.float64) * 1.5, -1
        m = train_svm(*with_point(point, label), gamma=gamma)
        if m.alpha[-1] < 1e-6:
            continue
        moved = [train_svm(*with_point(point + s * h * torch.eye(2, dtype=torch.float64)[i], label), gamma=gamma)
                 for i in range(2) for s in (1, -1)]
        if not len(m.margin) or any(sets(other) != sets(m) for other in moved):
            continue
        exact = np.array([hinge(moved[2 * i], V, U) - hinge(moved[2 * i + 1], V, U) for i in range(2)]) / (2 * h)
        found = svm_gradient(m, len(X), V, U).numpy()
        assert np.allclose(found, exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max() + 1e-6)
        kinds.append(len(X) in m.margin)
    assert any(kinds)
    assert not all(kinds)


def test_a_point_that_the_machine_does_not_see_has_no_gradient():
    far = torch.tensor([4.0, 4.0], dtype=torch.float64)
    m = train_svm(*with_point(far, 1))
    assert m.alpha[-1] == 0
    assert not svm_gradient(m, len(X), V, U).any()


def test_points_are_counted_from_the_end_too():
    m = train_svm(X, Y)
    gradients = [svm_gradient(m, c, V, U) for c in range(30)]
    assert any(g.any() for g in gradients)
    for c in range(-30, 0):
        assert torch.equal(svm_gradient(m, c, V, U), gradients[c])
    with pytest.raises(ValueError, match="none of number -31"):
        svm_gradient(m, -31, V, U)


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_the_path_climbs_the_grid_of_retrained_machines_and_beats_flips(gamma):
    path = []
    point, label = svm_poison(X, Y, V, U, label=-1, gamma=gamma, low=-3, high=3, step=0.5, generator=generator(0),
                              trace=path)
    values = [value for _, value in path]
    assert all(b > a for a, b in zip(values, values[1:], strict=False))
    assert values[-1] == pytest.approx(loss(point[0], -1, gamma))
    flips = [loss(p, -1, gamma) for p in X[Y == 1]]
    assert values[-1] > max(flips)
    side = torch.linspace(-3, 3, 13, dtype=torch.float64)
    grid = [loss(torch.stack([a, b]), -1, gamma) for a in side for b in side]
    assert values[-1] > np.quantile(grid, 0.9)
    assert int(label[0]) == -1


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_several_points_stay_in_the_box_and_do_more_harm_than_as_many_flips(gamma):
    box = (float(X.min()), float(X.max()))
    points, labels = svm_poison(X, Y, V, U, count=3, label=-1, gamma=gamma, low=box[0], high=box[1], step=0.5, steps=15,
                                generator=generator(0))
    assert points.shape == (3, 2)
    assert labels.tolist() == [-1, -1, -1]
    assert points.min() >= box[0]
    assert points.max() <= box[1]

    def harm(points, labels):
        return hinge(train_svm(torch.cat([X, points]), torch.cat([Y, labels]), gamma=gamma), V, U)

    random = [harm(*flipped(X, Y, 3, label=-1, generator=generator(s))) for s in range(10)]
    assert harm(points, labels) > np.quantile(random, 0.8)
    assert harm(points, labels) > 1.05 * np.mean(random)
    assert flipped(X, Y, 4)[1].tolist() == [-1, 1, -1, 1]


def test_the_generator_decides_where_a_path_and_a_flip_begin():
    few = {"label": -1, "steps": 1, "low": -3, "high": 3}
    for draw in (lambda s: svm_poison(X, Y, V, U, generator=generator(s), **few)[0],
                 lambda s: flipped(X, Y, 3, generator=generator(s))[0]):
        assert torch.equal(draw(0), draw(0))
        assert not torch.equal(draw(0), draw(1))
    assert torch.equal(svm_poison(X, Y, V, U, **few)[0], svm_poison(X, Y, V, U, generator=generator(0), **few)[0])


def test_a_flip_is_a_training_point_with_the_label_of_the_other_class():
    for label in (-1, 1, None):
        points, labels = flipped(X, Y, 12, label=label, generator=generator(3))
        own = [int((point == X).all(1).nonzero()[0, 0]) for point in points]
        assert torch.equal(labels, -Y[own])


def test_a_start_that_the_machine_does_not_see_is_drawn_anew():
    """Two thirds of the class −1 lie deep among the others: called 1 they are what the machine expects, α_c = 0."""
    source = generator(5)
    y = torch.tensor([1] * 60 + [-1] * 18)
    x = torch.where(torch.arange(78) < 72, 4.0, -3.0)[:, None] + 0.1 * torch.randn(78, 2, generator=source)
    deep = train_svm(torch.cat([x, x[65:66]]), torch.cat([y, torch.tensor([1])]))
    assert deep.alpha[-1] == 0
    for seed in range(8):
        found, label = svm_poison(x, y, V, U, label=1, low=-9, high=9, step=1e-9, steps=1, generator=generator(seed))
        assert train_svm(torch.cat([x, found]), torch.cat([y, label])).alpha[-1] > 0


def test_without_a_label_the_points_are_of_both_classes_in_turn():
    points, labels = svm_poison(X, Y, V, U, count=3, steps=1, low=-3, high=3)
    assert labels.tolist() == [-1, 1, -1]
    assert len(points) == 3


def test_a_step_that_does_not_raise_the_loss_is_halved_and_a_start_outside_is_moved_onto_the_box():
    for box in ((-0.5, 0.5), (0.2, 0.3)):
        path = []
        points, _ = svm_poison(X, Y, V, U, label=-1, low=box[0], high=box[1], step=50.0, steps=3, trace=path)
        assert box[0] <= float(points.min()) <= float(points.max()) <= box[1]
        assert all(b > a for (_, a), (_, b) in zip(path, path[1:], strict=False))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: train_svm(X, (Y + 1) // 2), "labels must be"), (lambda: train_svm(X, Y[:, None]), "one for each of 30"),
    (lambda: train_svm(X, torch.ones(30)), "both classes"), (lambda: train_svm(X * torch.nan, Y), "NaN"),
    (lambda: train_svm(X, Y, C=0.0), "c must be more than 0"), (lambda: train_svm(X, Y, gamma=-1.0), "gamma must be"),
    (lambda: svm_poison(X, Y, V, U, label=0), "label must be"),
    (lambda: svm_poison(X, Y, V, U, count=0), "count at least 1"),
    (lambda: svm_poison(X, Y, V, U, low=1.0, high=0.0), "low below high"),
    (lambda: svm_poison(X, Y, V[:, :1], U), "must be alike"),
    (lambda: svm_poison(X, Y, V[:0], U[:0]), "one or more"),
    (lambda: svm_poison(X, torch.ones(30), V, U, label=1), "both classes"),
    (lambda: svm_gradient(train_svm(X, Y), 30, V, U), "none of number 30"),
    (lambda: flipped(X, torch.ones(30), 2, label=1), "both classes"),
    (lambda: flipped(X, Y, 2, label=3), "label must be"), (lambda: flipped(X, Y, 0), "count at least 1"),
    (lambda: hinge(train_svm(X, Y), V, U[:5]), "labels must be"),
])  # fmt: skip
def test_what_no_machine_can_be_trained_on_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()
