"""Influence functions against retraining, the exact Hessian against the iterative solves, TracIn against autograd."""
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from kit.core import Trace, fooled, generator
from kit.explain.influence import Influence, retrain, tracin, training_set_attack
from kit.explain.risk import Head, Network, backward, owners_of

L2 = 1e-2


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.fixture(scope="module")
def digits():
    """Real handwritten digits, 8×8: 400 to train on and 100 to test."""
    data = load_digits()
    x, y = torch.tensor(data.images / 16)[:, None], torch.tensor(data.target).long()
    return x[:400], y[:400], x[400:500], y[400:500]


@pytest.fixture(scope="module")
def logistic(digits):
    x, y, _, _ = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with torch.no_grad():
        model[1].weight.zero_(), model[1].bias.zero_()
    return retrain(model, x, y, l2=L2, tol=1e-10)


@pytest.fixture(scope="module")
def cnn(digits):
    """A small network with every kind of layer that has parameters, trained to a minimum on 200 digits."""
    x, y, _, _ = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Tanh(),
                          nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(16, 10)).double()
    model[1].running_mean.fill_(0.1)
    return retrain(model.eval(), x[:200], y[:200], l2=3 * L2, tol=1e-5)


def losses(model, x, y):
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


def removal(model, digits, points, n=None, **options):
    """What leaving each point out does to the test losses (T, points)."""
    x, y, x_test, y_test = digits
    before = losses(model, x_test, y_test)
    return torch.stack([
        losses(retrain(model, x[:n], y[:n], without=[int(i)], **options), x_test, y_test) - before for i in points], 1)


def test_retraining_reaches_the_minimum_scikit_learn_finds(digits, logistic):
    from sklearn.linear_model import LogisticRegression

    x, y, _, _ = digits
    ones = torch.cat([x.flatten(1), torch.ones(len(x), 1).double()], 1)
    theirs = LogisticRegression(C=1 / (L2 * len(x)), fit_intercept=False, tol=1e-10, max_iter=10000).fit(ones, y)
    ours = torch.cat([logistic[1].weight, logistic[1].bias[:, None]], 1).detach()
    assert torch.allclose(ours, torch.tensor(theirs.coef_), atol=1e-4)


def test_influence_is_the_loss_change_of_exact_leave_one_out_retraining(digits, logistic):
    x, y, x_test, y_test = digits
    predicted = Influence(logistic, l2=L2, solver="exact").fit(x, y).score(x_test, y_test)
    worst = int(losses(logistic, x_test, y_test).argmax())
    order = predicted[worst].argsort()
    points = torch.cat([order[:12], order[-12:]])
    actual = removal(logistic, digits, points, l2=L2, tol=1e-8)
    assert correlation(predicted[worst, points], actual[worst]) > 0.99
    assert correlation(predicted[:, points], actual) > 0.99
    slope = float((predicted[:, points] * actual).sum() / actual.square().sum())
    assert 0.7 < slope < 1  # the right size too; a first-order step falls short for the points with the most leverage


@pytest.mark.parametrize("layers", [None, ["6"]])
def test_influence_on_a_small_cnn_predicts_retraining(digits, cnn, layers):
    x, y, x_test, y_test = digits
    options = {"layers": layers, "l2": 3 * L2}
    predicted = Influence(cnn, damping=1e-3, solver="exact", **options).fit(x[:200], y[:200]).score(x_test, y_test)
    points = predicted.abs().mean(0).topk(4).indices
    actual = removal(cnn, digits, points, n=200, tol=1e-5, **options)
    assert correlation(predicted[:, points], actual) > 0.95


def test_the_solvers_agree(digits, logistic):
    x, y, x_test, y_test = digits
    x_test, y_test = x_test[:5], y_test[:5]
    trace = Trace()
    exact = Influence(logistic, l2=L2, damping=1e-2, solver="exact").fit(x, y).score(x_test, y_test)
    cg = Influence(logistic, l2=L2, damping=1e-2, tol=1e-8).fit(x, y).score(x_test, y_test, trace=trace)
    assert torch.allclose(cg, exact, rtol=1e-4, atol=1e-8)
    norms = trace.values
    assert norms.shape[1] == 5
    assert len(norms) > 5
    assert torch.allclose(norms[-1], norms[-2], rtol=1e-3)
    trace = Trace()
    lissa = Influence(logistic, l2=L2, damping=1e-2, solver="lissa", depth=600).fit(x, y).score(
        x_test, y_test, trace=trace)
    assert correlation(lissa, exact) > 0.98
    assert trace.values.shape == (600, 5)
    assert torch.allclose(trace.values[-1], norms[-1], rtol=0.1)  # the trace is of H⁻¹v, whatever the scale


def test_the_head_in_closed_form_is_the_network_by_autograd(digits, cnn, monkeypatch):
    x, y, x_test, y_test = digits
    x, y, x_test, y_test = x[:150], y[:150], x_test[:3], y_test[:3]
    fitted = [Influence(cnn, layers=["6"], l2=L2, solver="exact").fit(x, y)]
    assert type(fitted[0]._risk) is Head
    monkeypatch.setattr("kit.explain.risk.Head", Network)
    fitted.append(Influence(cnn, layers=["6"], l2=L2, solver="exact").fit(x, y))
    assert type(fitted[1]._risk) is Network
    for ask in (lambda i: i.score(x_test, y_test), lambda i: i.self_influence(),
                lambda i: i.perturbation(x_test, y_test, torch.tensor([3, 70]))):
        assert torch.allclose(ask(fitted[0]), ask(fitted[1]), rtol=1e-6, atol=1e-12)


def test_gradients_of_single_images_are_those_of_autograd(digits, cnn):
    x, y, _, _ = digits
    owners = owners_of(cnn, None)
    found = Influence(cnn, l2=L2).fit(x[:100], y[:100])._risk.gradients(x[:3], y[:3])
    assert len(backward(cnn, owners, x[:3], y[:3])) == 4
    for i in range(3):
        g = torch.autograd.grad(F.cross_entropy(cnn(x[i:i + 1]), y[i:i + 1]), list(cnn.parameters()))
        assert torch.allclose(found[i], torch.cat([part.flatten() for part in g]), atol=1e-12)


def test_self_influence_is_the_diagonal_of_the_score(digits, logistic):
    x, y, _, _ = digits
    influence = Influence(logistic, l2=L2, solver="exact").fit(x, y)
    assert torch.allclose(influence.self_influence()[:20], influence.score(x[:20], y[:20])[:, :20].diagonal())


def test_perturbation_is_the_slope_of_the_retrained_loss(digits, logistic):
    x, y, x_test, y_test = digits
    x_test, y_test, index = x_test[:2], y_test[:2], torch.tensor([7, 123])
    slope = Influence(logistic, l2=L2, solver="exact").fit(x, y).perturbation(x_test, y_test, index)
    assert slope.shape == (2, 1, 8, 8)
    h = 1e-3
    inside = (x[index[1]] > h) & (x[index[1]] < 1 - h)
    at = (slope[1].abs() * inside).flatten().argmax()
    changed = []
    for sign in (1, -1):
        moved = x.clone()
        moved[123].view(-1)[at] += sign * h
        changed.append(losses(retrain(logistic, moved, y, l2=L2, tol=1e-11), x_test, y_test).sum())
    assert float((changed[0] - changed[1]) / (2 * h)) == pytest.approx(float(slope[1].view(-1)[at]), rel=1e-3)


def test_the_training_set_attack_flips_a_test_image_and_keeps_its_budget(digits, logistic):
    x, y, x_test, y_test = digits
    z = logistic(x_test).detach()
    right = z.argmax(1) == y_test
    gap = z.topk(2).values.diff(dim=1)[:, 0].abs().masked_fill(~right, torch.inf)
    weak = int(gap.argsort()[3])
    x_test, y_test = x_test[weak:weak + 1], y_test[weak:weak + 1]
    trace = Trace()
    poisoned, retrained = training_set_attack(
        logistic, x, y, x_test, y_test, eps=0.1, count=20, l2=L2, steps=10, trace=trace)
    again = retrain(logistic, poisoned, y, l2=L2, tol=1e-9)
    assert not bool(fooled(logistic, x_test, y_test))
    assert bool(fooled(again, x_test, y_test))
    assert bool(fooled(retrained, x_test, y_test))
    assert float(trace.values[-1]) > float(losses(logistic, x_test, y_test))
    changed = (poisoned != x).flatten(1).any(1)
    assert int(changed.sum()) <= 20
    assert float((poisoned - x).abs().max()) <= 0.1 + 1e-12
    random = x.clone()
    noise = torch.rand(int(changed.sum()), 1, 8, 8, generator=generator(), dtype=x.dtype)
    random[changed] = (random[changed] + 0.1 * (2 * noise - 1).sign()).clamp(0, 1)
    assert not bool(fooled(retrain(logistic, random, y, l2=L2, tol=1e-9), x_test, y_test))


def test_flipped_labels_have_high_self_influence(digits):
    x, y, _, _ = digits
    flipped = torch.randperm(400, generator=generator(1))[:40]
    wrong = y.clone()
    wrong[flipped] = (y[flipped] + 1 + torch.randint(9, (40,), generator=generator(2))) % 10
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    model = retrain(model, x, wrong, l2=L2)
    suspicious = Influence(model, l2=L2, solver="exact").fit(x, wrong).self_influence().topk(80).indices
    assert torch.isin(flipped, suspicious).float().mean() > 0.85  # random order would find a fifth
    assert torch.isin(flipped, tracin(model, x, wrong).topk(80).indices).float().mean() > 0.85


def test_tracin_is_the_sum_of_gradient_products_over_checkpoints(digits, cnn):
    x, y, x_test, y_test = digits
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(1, 2, 3, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)).double()
    score = tracin([cnn, other], x[:70], y[:70], x_test[:2], y_test[:2], rates=[0.5, 2.0])

    def gradient(model, image, label):
        g = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), list(model.parameters()))
        return torch.cat([part.flatten() for part in g])

    for t, i in ((0, 0), (1, 3), (1, 69)):
        exact = sum(rate * gradient(m, x_test[t], y_test[t]) @ gradient(m, x[i], y[i])
                    for m, rate in ((cnn, 0.5), (other, 2.0)))
        assert float(score[t, i]) == pytest.approx(float(exact), rel=1e-8)
    assert torch.allclose(tracin(cnn, x[:5], y[:5]), tracin(cnn, x[:5], y[:5], x[:5], y[:5]).diagonal())


def test_what_an_in_place_relu_overwrites_was_read_before(digits):
    x, y, _, _ = digits
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)]
    plain = nn.Sequential(*layers).double().eval()
    in_place = nn.Sequential(*layers[:2], nn.ReLU(inplace=True), *layers[3:]).double().eval()
    assert torch.allclose(tracin(plain, x[:4], y[:4]), tracin(in_place, x[:4], y[:4]))


def test_nothing_leaks_and_frozen_parameters_do_not_matter(digits, cnn):
    x, y, x_test, y_test = digits
    cnn.train()
    cnn.requires_grad_(False)
    try:
        before = {name: value.clone() for name, value in cnn.state_dict().items()}
        score = Influence(cnn, l2=L2, damping=0.5).fit(x[:200], y[:200]).score(x_test[:2], y_test[:2])
        assert cnn.training
        assert not any(p.requires_grad or p.grad is not None for p in cnn.parameters())
        assert all(torch.equal(value, before[name]) for name, value in cnn.state_dict().items())
    finally:
        cnn.eval().requires_grad_(True)
    assert not score.requires_grad
    same = Influence(cnn, l2=L2, damping=0.5).fit(x[:200], y[:200]).score(x_test[:2], y_test[:2])
    assert torch.allclose(same, score)


def test_what_goes_wrong_is_said_with_what_to_change(digits, logistic, cnn):
    x, y, x_test, y_test = digits
    one = x_test[:1], y_test[:1]
    with pytest.raises(ValueError, match="use a larger scale"):
        Influence(logistic, l2=L2, solver="lissa", scale=0.1).fit(x, y).score(*one)
    with pytest.raises(RuntimeError, match="use more steps"):
        Influence(logistic, l2=L2, steps=2).fit(x, y).score(*one)
    torch.manual_seed(3)
    untrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10)).double()
    with pytest.raises(ValueError, match="damping above"):
        Influence(untrained, solver="exact").fit(x[:100], y[:100])
    with pytest.raises(ValueError, match="damping above"):
        Influence(untrained).fit(x[:100], y[:100]).score(*one)
    with pytest.raises(ValueError, match="no layer 'last'"):
        Influence(cnn, layers=["last"]).fit(x, y)
    with pytest.raises(ValueError, match="solver must be"):
        Influence(cnn, solver="newton")
    with pytest.raises(ValueError, match="not known for '0'"):
        tracin(nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.Flatten(), nn.Linear(256, 10)).double(), x, y)
    with pytest.raises(RuntimeError, match="training stopped"):
        retrain(untrained, x, y, l2=L2, steps=1)


def test_training_descends_from_where_the_curvature_is_negative():
    """A saturated unit on the wrong side: along ∇R the risk curves down at once, and conjugate gradients give no
    direction at all."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 2, bias=False)).double()
    model[1].weight.data.fill_(1.5)
    model[3].weight.data = torch.tensor([[-4.0], [4.0]]).double()
    x, y = torch.ones(2, 1, 1, 1, dtype=torch.float64), torch.tensor([0, 0])
    weight = retrain(model, x, y, layers=["1"], l2=1e-2)[1].weight
    assert float(weight.detach()) < 0
    assert float(losses(model, x, y).mean()) > 7


class Tokens(nn.Module):
    """A linear layer on tokens (N, L, D), as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.c, self.f, self.h = nn.Conv2d(1, 4, 4, 4), nn.Linear(4, 4), nn.Linear(4, 10)

    def forward(self, x):
        return self.h(self.f(self.c(x).flatten(2).transpose(1, 2)).tanh().mean(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d, self.h = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 10)

    def forward(self, x):
        return self.h(self.d(self.d(self.c(x)).relu()).relu().mean((2, 3)))


def test_a_linear_layer_on_tokens_sums_over_them(digits):
    x, y, _, _ = digits
    torch.manual_seed(0)
    model = Tokens().double().eval()
    G = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(
        F.cross_entropy(model(x[i:i + 1]), y[i:i + 1]), list(model.parameters()))]) for i in range(6)])
    assert torch.allclose(tracin(model, x[:6], y[:6], x[:2], y[:2]), G[:2] @ G.T)
    assert torch.allclose(tracin(model, x[:6], y[:6]), G.square().sum(1))
    influence = Influence(model, l2=1.0, damping=2.0, solver="exact").fit(x[:6], y[:6])
    assert torch.allclose(influence.gradients(x[:6], y[:6]), G)
    assert influence.score(x[:2], y[:2]).shape == (2, 6)


def test_layers_whose_gradients_are_not_those_of_single_images_are_refused_by_name(digits):
    x, y, _, _ = digits
    x, y = x[:6], y[:6]
    tied = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 10)).double()
    tied[3].weight = tied[1].weight
    rows = nn.Sequential(nn.Flatten(1, 2), nn.Flatten(0, 1), nn.Linear(8, 3), nn.Unflatten(0, (-1, 8)), nn.Flatten(),
                         nn.Linear(24, 10)).double()
    for model, message in ((Twice().double(), "'d' is called more than once"), (tied, "'1' and '3' share a parameter"),
                           (rows, "not known for '2'")):
        for call in (lambda m=model: tracin(m, x, y), lambda m=model: Influence(m, l2=1.0).fit(x, y).score(x, y)):
            with pytest.raises(ValueError, match=message):
                call()
    with pytest.raises(ValueError, match="share a parameter"):
        retrain(tied, x, y, l2=1.0)
    assert tracin(tied, x, y, layers=["4"]).shape == (6,)  # the others may be as they like
    assert tracin(Twice().double(), x, y, layers=["c", "h"]).shape == (6,)
