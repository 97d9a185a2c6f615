"""Counterfactuals: the closed form of a linear model, real tables, and what bounds and fixed features forbid."""
import math

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import nn

from kit.core import generator
from kit.explain.counterfactual import _ista, counterfactual, mad


class Standardised(nn.Module):
    """scikit-learn's network on a table's columns in their own units, standardised inside: logits (0, log-odds)."""

    def __init__(self, data, network):
        super().__init__()
        self.mean, self.std = data.mean(0), data.std(0)
        self.weights = [torch.tensor(w) for w in network.coefs_]
        self.biases = [torch.tensor(b) for b in network.intercepts_]

    def forward(self, x):
        hidden = torch.tanh((x - self.mean) / self.std @ self.weights[0] + self.biases[0])
        z = hidden @ self.weights[1] + self.biases[1]
        return torch.cat([torch.zeros_like(z), z], 1)


def linear(w, b):
    """Logits (0, w·x + b)."""
    model = nn.Linear(len(w), 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.zeros_like(w), w])), model.bias.copy_(torch.tensor([0.0, b]))
    return model


@pytest.fixture(scope="module")
def table():
    """Real measurements of breast tumours: 569 rows of 30 columns, benign (1) or malignant (0)."""
    data = load_breast_cancer()
    x, y = torch.tensor(data.data), torch.tensor(data.target).long()
    network = MLPClassifier((8,), activation="tanh", solver="lbfgs", alpha=1.0, max_iter=500, random_state=0)
    network.fit((x - x.mean(0)) / x.std(0), y)
    return Standardised(x, network), x, y


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x, y = torch.tensor(data.images / 16).float()[:, None], torch.tensor(data.target).long()
    sk = LogisticRegression(max_iter=3000).fit(x.flatten(1), y)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(sk.coef_)), model[1].bias.copy_(torch.tensor(sk.intercept_))
    return model, x, y


def distance(x, x_cf, scale):
    return ((x_cf - x).abs() / scale).flatten(1).sum(1)


def test_for_a_linear_model_the_cheapest_feature_alone_changes():
    w = torch.tensor([1.0, -3.0, 2.0, 0.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    x = torch.tensor([[0.3, 0.5, -1.0, 2.0], [0.1, 1.0, 0.2, 0.0]], dtype=torch.float64)
    model = linear(w, -1.0)
    x_cf = counterfactual(model, x, torch.tensor([1, 1]), scale=scale)
    changed = x_cf != x
    assert changed.tolist() == [[False, False, True, False]] * 2  # |w| s is 1, 1.5, 4, 0
    exact = -(x @ w - 1.0) / 2.0
    assert bool((model(x_cf).argmax(1) == 1).all())
    assert torch.allclose((x_cf - x)[:, 2], exact, atol=0.06)
    assert bool(((x_cf - x)[:, 2] >= exact).all())
    surer = counterfactual(model, x, torch.tensor([1, 1]), scale=scale, confidence=0.9)
    assert bool((model(surer).softmax(1)[:, 1] > 0.9).all())
    assert torch.allclose((surer - x)[:, 2], exact + math.log(9) / 2, atol=0.06)


def test_a_step_of_ista_solves_a_quadratic_of_its_own_curvature():
    """½‖u − a‖² + ‖u‖₁ is least at a, nearer to 0 by 1; from curvature 1 that is one step, from less as many more."""
    a = torch.linspace(-3, 3, 8, dtype=torch.float64).expand(2, 1, 8)
    wanted, box = a.sign() * (a.abs() - 1).clamp_min(0), [torch.full((), v, dtype=torch.float64) for v in (-9, 9)]

    def solved(factor, steps):
        return _ista(lambda u, live: factor / 2 * (u - a[live]).square().sum((1, 2)), torch.zeros_like(a),
                     torch.zeros_like(a), torch.ones_like(a[:1]), box, steps)

    assert torch.allclose(solved(1, 1), wanted)
    assert torch.allclose(solved(4, 1), a.sign() * (a.abs() - 0.25).clamp_min(0))  # two doublings, no more


def test_bounds_and_fixed_features_are_kept_exactly():
    w = torch.tensor([1.0, -3.0, 2.0, 0.0], dtype=torch.float64)
    x = torch.tensor([[0.3, 0.5, -1.0, 2.0]], dtype=torch.float64)
    model, target = linear(w, -1.0), torch.tensor([1])
    x_cf = counterfactual(model, x, target, fixed=torch.tensor([False, True, False, False]))
    assert (x_cf != x).tolist() == [[False, False, True, False]]
    x_cf = counterfactual(model, x, target, low=torch.tensor([-9.0, 0.0, -9.0, -9.0]))
    assert (x_cf != x).tolist() == [[False, True, True, False]]
    assert float(x_cf[0, 1]) == 0.0  # the cheapest is at its bound, and the next does the rest
    high = torch.tensor([1.0, 1.0, -0.5, 3.0])
    impossible = counterfactual(model, x, target, high=high, low=torch.tensor([-1.0, 0.4, -2.0, 0.0]), rounds=10)
    assert torch.equal(impossible, x)


def test_on_a_real_table_few_features_change_and_the_answer_turns(table):
    model, x, _ = table
    scale = mad(x)
    answer = model(x).argmax(1)
    rows = torch.where(answer == 0)[0][:8]
    target = torch.ones(8, dtype=torch.int64)
    x_cf = counterfactual(model, x[rows], target, scale=scale, low=0.0)
    turned = model(x_cf).argmax(1) == 1
    assert bool(turned.all())
    assert bool((x_cf >= 0).all())
    changed = (x_cf != x[rows]).sum(1).double()
    assert float(changed.mean()) < 5
    nearest = x[answer == 1]  # a row of the table that is answered so is a counterfactual too, if not as near
    to_row = torch.stack([distance(x[r], nearest, scale).min() for r in rows])
    assert bool((distance(x[rows], x_cf, scale) < to_row).all())
    unpruned = counterfactual(model, x[rows], target, scale=scale, low=0.0, steps=20, prune=False)
    pruned = counterfactual(model, x[rows], target, scale=scale, low=0.0, steps=20)
    assert float((unpruned != x[rows]).sum()) >= float((pruned != x[rows]).sum())


def test_each_row_is_found_as_if_it_were_alone(table):
    model, x, _ = table
    rows = torch.where(model(x).argmax(1) == 0)[0][:3]
    target = torch.ones(3, dtype=torch.int64)
    together = counterfactual(model, x[rows], target, scale=mad(x))
    alone = counterfactual(model, x[rows[2:]], target[:1], scale=mad(x))
    assert torch.allclose(together[2:], alone, rtol=1e-5)
    assert torch.equal(together, counterfactual(model, x[rows], target, scale=mad(x)))


def test_several_at_once_are_valid_and_differ(table):
    model, x, _ = table
    rows = torch.where(model(x).argmax(1) == 0)[0][:2]
    target = torch.ones(2, dtype=torch.int64)
    options = {"scale": mad(x), "count": 3, "low": 0.0, "steps": 20}
    several = counterfactual(model, x[rows], target, generator=generator(1), **options)
    assert several.shape == (2, 3, 30)
    assert bool((model(several.flatten(0, 1)).argmax(1) == 1).all())

    def apart(x_cf):
        scaled = x_cf / mad(x)
        return float(torch.cdist(scaled, scaled, p=1).sum() / (2 * 3 * 2))

    alike = counterfactual(model, x[rows], target, diversity=0.0, generator=generator(1), **options)
    assert apart(several) > 1.5 * apart(alike)


def test_two_of_them_move_apart_until_the_last_step_costs_what_it_gains():
    """Of features that the model does not read, −ln(1 − k²), k = 1/(1 + d), pays for d until 2k³ = 1 − k²: d = 0.52,
    the same whether one such feature moves or nine share it."""
    k = torch.linspace(0.01, 0.99, 9801, dtype=torch.float64)
    d = float(1 / k[(2 * k**3 + k**2 - 1).abs().argmin()] - 1)
    for idle in (1, 9):
        model = linear(torch.cat([torch.ones(1), torch.zeros(idle)]).double(), -1.0)
        x = torch.zeros(1, 1 + idle, dtype=torch.float64)
        pair = counterfactual(model, x, torch.tensor([1]), count=2, lam=50.0, prune=False, generator=generator(0))
        assert float((pair[0, 0] - pair[0, 1]).abs().sum()) == pytest.approx(d, rel=0.01)


def test_plausibility_brings_digits_nearer_to_the_data_at_a_larger_distance(digits):
    model, x, y = digits
    rows = torch.where(y == 3)[0][:2]
    target = torch.full((2,), 8)
    eights = x[y == 8][:100]
    near = counterfactual(model, x[rows], target, steps=20)
    likely = counterfactual(model, x[rows], target, data=eights, plausibility=5.0, prune=False, steps=20)
    for x_cf in (near, likely):
        assert bool((model(x_cf).argmax(1) == 8).all())
        assert float(x_cf.min()) >= 0
        assert float(x_cf.max()) <= 1

    def to_data(x_cf):
        return torch.cdist(x_cf.flatten(1), eights.flatten(1)).amin(1)

    assert bool((to_data(likely) < to_data(near)).all())
    assert bool((distance(x[rows], likely, 1) > distance(x[rows], near, 1)).all())
    assert float((near != x[rows]).flatten(1).sum(1).float().mean()) < 16


def test_an_input_that_is_answered_as_wished_comes_back_unchanged_and_nothing_leaks(digits):
    model, x, y = digits
    right = torch.where(model(x).argmax(1) == y)[0][:3]
    model.train()
    kept = x[right].clone()
    assert torch.equal(counterfactual(model, x[right], y[right]), kept)
    assert torch.equal(counterfactual(model, x[right], y[right], lam=10.0, prune=False), kept)  # none is less sure
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x[right], kept)


def test_mad_is_the_median_absolute_deviation():
    data = torch.tensor([[1.0, 0, 5], [2, 0, 5], [4, 0, 5], [9, 8, 5], [10, 0, 5]])
    assert torch.allclose(mad(data), torch.tensor([3.0, 1.6, 1.0]))


def test_bad_input_is_refused_with_what_to_do(table, digits):
    model, x, _ = table
    target = torch.ones(2, dtype=torch.int64)
    for options, message in (({"confidence": 1.0}, "confidence must lie"), ({"count": 0}, "count must be"),
                             ({"plausibility": 1.0}, "pass them as data="), ({"high": 0.0}, "outside low"),
                             ({"scale": torch.zeros(30)}, "scales must be positive")):
        with pytest.raises(ValueError, match=message):
            counterfactual(model, x[:2], target, **options)
    with pytest.raises(ValueError, match="finite float table"):
        counterfactual(model, x[0], target)
    with pytest.raises(ValueError, match="target"):
        counterfactual(model, x[:2], torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="divide them by 255"):
        counterfactual(digits[0], 255 * digits[1][:1], target[:1])


def test_a_model_of_probabilities_and_another_precision_are_refused(digits):
    model, x, y = digits
    target = (y[:2] + 1) % 10
    with pytest.raises(ValueError, match="remove its softmax"):
        counterfactual(nn.Sequential(model, nn.Softmax(1)), x[:2], target, confidence=0.9)
    with pytest.raises(TypeError, match="float64"):
        counterfactual(model, x[:2].double(), target)
