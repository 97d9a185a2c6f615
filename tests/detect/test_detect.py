"""The detectors, on a network whose features are the pixels, so that the right answers are known."""
import json
import math

import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics
import sklearn.neighbors
import torch
from sklearn.svm import OneClassSVM
from torch import nn

from kit.core import fooled
from kit.detect import (
    REFUSED,
    BayesianUncertainty,
    DeepValidation,
    Detector,
    Energy,
    FeatureSqueezing,
    KernelDensity,
    bit_depth,
    evade,
    median,
    non_local_means,
    roc_auc,
)
from kit.detect.deep_validation import Bubbles, Hyperplanes

SIDE = 4


def blobs(n=120, seed=0, spread=0.05):
    """Three classes of 4×4 images around fixed patterns, and their labels."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.rand(3, SIDE * SIDE, generator=torch.Generator().manual_seed(7)) * 0.6 + 0.2
    y = torch.arange(n) % 3
    x = centres[y] + spread * torch.randn(n, SIDE * SIDE, generator=draws)
    return x.clamp(0, 1).view(-1, 1, SIDE, SIDE), y


class Nearest(nn.Module):
    """Logits −‖x − c_k‖² · 20; the layers `pixels` and `squares` are hidden ones."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(
            torch.rand(3, SIDE * SIDE, generator=torch.Generator().manual_seed(7)) * 0.6 + 0.2, requires_grad=False)
        self.pixels = nn.Flatten()
        self.squares = nn.Identity()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        phi = self.drop(self.pixels(x))
        return -20 * self.squares((phi[:, None] - self.centres).square()).sum(2)


def detectors(model):
    return {
        "deep": DeepValidation(model, ["pixels", "squares"], components=None),
        "squeezing": FeatureSqueezing(model, (("bit_depth", 1), ("median", 2))),
        "density": KernelDensity(model, "pixels"),
        "uncertainty": BayesianUncertainty(model, ["pixels"], passes=8),
        "linear": DeepValidation(model, ["pixels", "squares"], components=None, linear=["pixels"]),
        "energy": Energy(model),
    }


EACH = pytest.mark.parametrize("name", ["deep", "squeezing", "density", "uncertainty", "linear", "energy"])


@pytest.fixture(scope="module")
def fitted():
    model = Nearest().eval()
    return {name: d.fit(*blobs()) for name, d in detectors(model).items()}


# ---------------------------------------------------------------- the shared interface

@EACH
def test_score_is_per_image_and_leaks_nothing(fitted, name):
    detector, (x, _) = fitted[name], blobs(70, seed=3)
    model, before = detector.model, x.clone()
    model.train()
    state = torch.get_rng_state()
    s = detector.score(x)
    assert model.drop.training
    model.eval()
    assert s.shape == (70,)
    assert not s.requires_grad
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())
    torch.testing.assert_close(detector.score(x[5:6]), s[5:6], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detector.score(x.flip(0)).flip(0), s, rtol=1e-4, atol=1e-5)


@EACH
def test_save_and_load(fitted, name, tmp_path):
    detector, (x, _) = fitted[name], blobs(20, seed=3)
    detector.threshold(blobs(40, seed=4)[0], fpr=0.1)
    detector.save(tmp_path / "d.safetensors")
    again = type(detector).load(tmp_path / "d.safetensors", detector.model)
    assert torch.equal(again.score(x), detector.score(x))
    assert again.tau == detector.tau
    head = (tmp_path / "d.safetensors").read_bytes()
    length = int.from_bytes(head[:8], "little")
    assert json.loads(head[8:8 + length])["__metadata__"]
    other = Nearest()
    other.centres.data += 0.01
    with pytest.raises(ValueError, match="other weights"):
        type(detector).load(tmp_path / "d.safetensors", other)
    wrong = FeatureSqueezing if name != "squeezing" else KernelDensity
    with pytest.raises(ValueError, match="does not hold"):
        wrong.load(tmp_path / "d.safetensors", detector.model)


class Overflows(Nearest):
    """No finite answer to a white image."""

    value = torch.nan

    def forward(self, x):
        return torch.where(x.amin((1, 2, 3))[:, None] == 1, self.value, super().forward(x))


@EACH
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_image_without_an_answer_raises_an_alarm_and_changes_no_other(name, value):
    model = Overflows().eval()
    model.value = value
    detector, (x, _) = detectors(model)[name].fit(*blobs()), blobs(30, seed=3)
    detector.threshold(blobs(99, seed=4)[0])
    s, alarms, labels = detector.score(x), detector.alarm(x), detector.predict(x)
    assert not alarms.all()
    for broken in ([0, 1, 2], [7, 29]):  # the first of the batch, too
        y = x.clone()
        y[broken] = 1.0
        others = [i for i in range(30) if i not in broken]
        assert not detector.score(y)[broken].isfinite().any()
        assert detector.alarm(y)[broken].all()
        assert (detector.predict(y)[broken] == REFUSED).all()
        assert detector.predict(y, fail_safe=lambda v: torch.full((len(v),), 7))[broken].tolist() == [7] * len(broken)
        torch.testing.assert_close(detector.score(y)[others], s[others], rtol=1e-4, atol=1e-5)
        assert torch.equal(detector.alarm(y)[others], alarms[others])
        assert torch.equal(detector.predict(y)[others], labels[others])
        with pytest.raises(ValueError, match=f"{len(broken)} of 30 clean images have a score that is NaN"):
            detector.threshold(y, fpr=0.5)


def test_an_answer_for_another_number_of_images_is_refused():
    detector = Given(Nearest().eval())
    detector.tau = 0.0
    with pytest.raises(ValueError, match="one label per refused image, 3 of them"):
        detector.predict(blobs(3)[0], fail_safe=lambda v: torch.zeros(2))


def test_a_second_fit_chooses_the_bandwidth_again():
    detector = KernelDensity(Nearest().eval(), "pixels").fit(*blobs(spread=0.05))
    wide = detector.fit(*blobs(spread=0.12)).bandwidth
    assert wide == KernelDensity(Nearest().eval(), "pixels").fit(*blobs(spread=0.12)).bandwidth
    assert wide > detector.fit(*blobs(spread=0.05)).bandwidth


class Given(Detector):
    """The score is the first pixel."""

    def discrepancy(self, x):
        return x[:, 0, 0, 0]


def test_threshold_is_the_promised_order_statistic():
    x = torch.zeros(99, 1, SIDE, SIDE)
    x[:, 0, 0, 0] = torch.linspace(0.01, 0.99, 99)[torch.randperm(99, generator=torch.Generator().manual_seed(0))]
    detector = Given(Nearest())
    assert detector.threshold(x, fpr=0.05) == pytest.approx(0.95)  # ⌈100 · 0.95⌉ = 95th of 0.01, 0.02 …
    assert int(detector.alarm(x).sum()) == 4
    assert detector.threshold(x, fpr=0.01) == pytest.approx(0.99)
    with pytest.raises(ValueError, match="give at least 199"):
        detector.threshold(x, fpr=0.005)
    with pytest.raises(ValueError, match="between 0 and 1"):
        detector.threshold(x, fpr=5)


def test_prediction_refuses_and_the_fail_safe_answers_for_the_refused_alone():
    x, y = blobs(30)
    x[:, 0, 0, 0] = torch.linspace(0, 1, 30)
    detector = Given(Nearest())
    with pytest.raises(ValueError, match="no threshold yet"):
        detector.predict(x)
    detector.tau = 0.5
    plain = detector.predict(x)
    refused = x[:, 0, 0, 0] > 0.5
    assert bool((plain[refused] == REFUSED).all())
    assert torch.equal(plain[~refused], y[~refused])
    asked = []
    labels = detector.predict(x, fail_safe=lambda z: asked.append(z) or y[refused])
    assert torch.equal(labels, y)
    assert torch.equal(asked[0], x[refused])


def test_only_a_subclass_scores():
    with pytest.raises(TypeError, match="needs discrepancy"):
        Detector(Nearest()).score(blobs(3)[0])


@EACH
def test_images_must_be_images(fitted, name):
    with pytest.raises(ValueError, match="divide them by 255"):
        fitted[name].score(blobs(3)[0] * 255)


# ---------------------------------------------------------------- Deep Validation

def test_the_distance_is_scikit_learns_decision_function():
    x, y = blobs()
    model = Nearest().eval()
    detector = DeepValidation(model, ["pixels"], components=None, standardise=(), nu=0.2, gamma=2.0).fit(x, y)
    fresh, labels = blobs(40, seed=5)
    expected = torch.empty(40)
    mean = x.flatten(1).mean(0)
    for k in range(3):
        phi = (x[y == k].flatten(1) - mean).numpy()
        svm = OneClassSVM(nu=0.2, gamma=2.0 / (phi.shape[1] * phi.var(ddof=1))).fit(phi)
        rows = labels == k
        expected[rows] = -torch.tensor(svm.decision_function((fresh[rows].flatten(1) - mean).numpy())).float()
    torch.testing.assert_close(detector.score(fresh), expected, rtol=1e-3, atol=1e-4)


def test_nothing_is_nearer_to_a_vector_than_itself():
    """Far from the mean ‖φ‖² − 2⟨φ, φ_j⟩ + ‖φ_j‖² of equal rows is rounding, of either sign."""
    phi = 100 + torch.rand(200, 16, generator=torch.Generator().manual_seed(0))
    each = [Bubbles(0.1, False, 2.0, None, ()).g(
        row[None], vectors=row[None], alpha=torch.ones(1), rho=torch.zeros(()), gamma=torch.tensor(1e3)) for row in phi]
    assert float(torch.cat(each).max()) == 1


def test_the_linear_distance_is_to_the_separating_hyperplane():
    x, y = blobs()
    model = Nearest().eval()
    detector = DeepValidation(model, ["pixels"], standardise=(), nu=0.2, linear=["pixels"]).fit(x, y)
    fresh, labels = blobs(40, seed=5)
    expected = torch.empty(40)
    unit = x.flatten(1).norm(dim=1).mean()
    for k in range(3):
        svm = OneClassSVM(kernel="linear", nu=0.2).fit((x[y == k].flatten(1) / unit).numpy())
        rows = labels == k
        found = svm.decision_function((fresh[rows].flatten(1) / unit).numpy()) / np.linalg.norm(svm.coef_)
        expected[rows] = -torch.tensor(found).float()
    torch.testing.assert_close(detector.score(fresh), expected, rtol=1e-3, atol=1e-5)
    # what all images of the class have in common is taken away: paler is more suspicious, stronger is not
    scaled = torch.stack([0.5 * x[0], 2 * x[0]]).flatten(1)
    pale, strong = detector.svms["pixels"].distance(scaled, torch.zeros(2, dtype=torch.int64))
    assert float(pale) < 0 < float(strong)


def test_the_joint_validator_is_the_sum_and_far_images_score_higher(fitted):
    detector = fitted["deep"]
    x, _ = blobs(60, seed=6)
    singles = detector.singles(x)
    assert singles.shape == (60, 2)
    torch.testing.assert_close(singles.sum(1), detector.score(x))
    away = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert roc_auc(detector.score(x), detector.score(away)).value > 0.95
    assert roc_auc(*detector.singles(torch.cat([x, away]))[:, 0].split(60)).value > 0.95


def test_a_fit_that_is_stopped_leaves_the_earlier_one(monkeypatch):
    x, y = blobs()
    detector = DeepValidation(Nearest().eval(), ["pixels", "squares"], components=8, linear=["squares"]).fit(x, y)
    before = detector.score(x[:5])

    def stopped(self, phi):
        raise KeyboardInterrupt

    monkeypatch.setattr(Hyperplanes, "boundary", stopped)  # in the second layer
    with pytest.raises(KeyboardInterrupt):
        detector.fit(*blobs(seed=9))
    assert torch.equal(detector.score(x[:5]), before)


def test_layers_are_brought_to_one_unit():
    x, y = blobs()
    detector = DeepValidation(Nearest().eval(), ["pixels", "squares"], components=8).fit(x, y)
    torch.testing.assert_close(detector.singles(x).std(0), torch.ones(2), rtol=1e-3, atol=1e-3)
    raw = DeepValidation(Nearest().eval(), ["pixels", "squares"], components=8, standardise=["features"]).fit(x, y)
    ratio = raw.singles(x) / detector.singles(x)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_features_are_pooled_and_reduced():
    x = torch.rand(2, 5, 9, 9, generator=torch.Generator().manual_seed(0))
    conv = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    detector = DeepValidation(conv, ["0"], grid=1)
    torch.testing.assert_close(detector._pooled(x), x.mean((2, 3)))
    detector = DeepValidation(conv, ["0"], grid=None)
    assert torch.equal(detector._pooled(x), x.flatten(1))
    x, y = blobs()
    detector = DeepValidation(Nearest().eval(), ["pixels"], components=5).fit(x, y)
    phi = detector.svms["pixels"].reduced(x.flatten(1))
    covariance = phi.T @ phi / len(phi)
    assert covariance.shape == (5, 5)
    torch.testing.assert_close(covariance, torch.diag(covariance.diag()), atol=1e-3, rtol=0)
    assert covariance.diag().tolist() == sorted(covariance.diag().tolist(), reverse=True)
    for count in (5, None):  # whitened, with and without a reduction
        detector = DeepValidation(
            Nearest().eval(), ["pixels"], components=count, standardise=["features", "components"]).fit(x, y)
        covariance = detector.svms["pixels"].reduced(x.flatten(1)).T.cov()
        torch.testing.assert_close(covariance, torch.eye(len(covariance)), atol=1e-3, rtol=0)


def test_the_spread_of_a_map_tells_apart_what_its_mean_does_not():
    conv = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(2 * 36, 2))
    x = torch.full((3, 1, 6, 6), 0.5)
    x[1, ..., ::2], x[1, ..., 1::2] = 0.25, 0.75
    mean, both = (DeepValidation(conv, ["0"], grid=1, spread=s)._pooled(conv[0](x)) for s in (False, True))
    torch.testing.assert_close(mean[0], mean[1])
    torch.testing.assert_close(both[:, :2], mean)
    torch.testing.assert_close(both[1, 2:], conv[0].weight.flatten().abs() / 4)
    slope = torch.autograd.grad(both.sum(), conv[0].weight)[0]
    assert slope.isfinite().all()


def test_the_rim_is_told_from_what_it_surrounds():
    a = torch.rand(2, 3, 16, 9, generator=torch.Generator().manual_seed(0))
    conv = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    rim = torch.ones(16, 9, dtype=torch.bool)
    rim[1:-1, 1:-1] = False  # an eighth of the shorter side
    parts = torch.stack([a[:, :, rim].mean(2), a[:, :, ~rim].mean(2)], 2)
    spread = torch.stack([a[:, :, rim].std(2, correction=0), a[:, :, ~rim].std(2, correction=0)], 2)
    torch.testing.assert_close(DeepValidation(conv, ["0"], grid="rim")._pooled(a), parts.flatten(1))
    both = DeepValidation(conv, ["0"], grid="rim", spread=True)._pooled(a)
    torch.testing.assert_close(both, torch.cat([parts, spread], 1).flatten(1))
    point = a[:, :, :1, :1]  # a map of one place is all rim
    found = DeepValidation(conv, ["0"], grid="rim")._pooled(point)
    torch.testing.assert_close(found, torch.stack([point[..., 0, 0], torch.zeros(2, 3)], 2).flatten(1))
    cells = DeepValidation(conv, ["0"], grid=2, spread=True)._pooled(a[..., :8]).view(2, 2, 3, 2, 2)
    torch.testing.assert_close(cells[:, 1, :, 1, 0], a[:, :, 8:, :4].flatten(2).std(2, correction=0))


def test_fitting_uses_rightly_classified_images_and_no_more_than_asked():
    x, y = blobs()
    wrong = y.clone()
    wrong[:30] = (y[:30] + 1) % 3
    model = Nearest().eval()
    a = DeepValidation(model, ["pixels"], components=None, per_class=20).fit(x, wrong)
    b = DeepValidation(model, ["pixels"], components=None, per_class=20).fit(x[30:], y[30:])
    assert torch.equal(a.score(x), b.score(x))
    with pytest.raises(ValueError, match="fewer than 2"):
        DeepValidation(model, ["pixels"]).fit(x, (y + 1) % 3)


def test_a_class_that_was_not_fitted_is_named():
    x, y = blobs()
    detector = DeepValidation(Nearest().eval(), ["pixels"], components=None).fit(x[y < 2], y[y < 2])
    with pytest.raises(ValueError, match="predicts class 2"):
        detector.score(x)


@pytest.mark.parametrize(("settings", "message"), [
    ({"layers": []}, "at least one layer"), ({"layers": ["nowhere"]}, "no layer 'nowhere'"),
    ({"nu": 0}, "nu is a share"), ({"gamma": -1.0}, "positive"), ({"standardise": ["all"]}, "not 'all'"),
    ({"linear": ["squares"]}, "'squares' is not one"), ({"grid": "edge"}, "not 'edge'"),
])
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DeepValidation(Nearest(), **{"layers": ["pixels"], **settings})


@EACH
def test_discrepancy_is_differentiable(name):
    model = Nearest().double().eval()
    x, y = blobs(60)
    detector = detectors(model)[name].fit(x.double(), y)
    point = torch.full((2, 1, SIDE, SIDE), 0.4, dtype=torch.float64)
    point += 0.2 * torch.rand(point.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if name == "squeezing":  # straight through the rounding: only that there is a gradient, and it is finite
        g = torch.autograd.grad(detector.discrepancy(point.requires_grad_()).sum(), point)[0]
        assert bool(g.isfinite().all())
        assert float(g.abs().sum()) > 0
    else:
        assert torch.autograd.gradcheck(detector.discrepancy, (point.requires_grad_(),))


# ---------------------------------------------------------------- Feature Squeezing

@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_median_is_scipys(size):
    x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = scipy.ndimage.median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect")
    assert torch.equal(median(x, size), torch.tensor(expected))


def test_the_median_of_nine_passes_its_gradient_to_the_median():
    x = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (g,) = torch.autograd.grad(median(x, 3)[..., 2, 2].sum(), x)
    here = x.detach() == median(x, 3).detach()[..., 2:3, 2:3]
    assert torch.equal(g, here.float())
    flat = torch.full((1, 1, 5, 5), 0.3, requires_grad=True)
    (g,) = torch.autograd.grad(median(flat, 3)[0, 0, 2, 2], flat)
    torch.testing.assert_close(g.sum(), torch.tensor(1.0))


def test_bit_depth_has_that_many_levels_and_a_straight_gradient():
    x = torch.linspace(0, 1, 101).view(1, 1, 1, 101).requires_grad_()
    q = bit_depth(x, 2)
    torch.testing.assert_close(q.detach().unique(), torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert torch.equal(bit_depth(x, 1).detach(), (x.detach() > 0.5).float())
    assert torch.equal(torch.autograd.grad(q.sum(), x)[0], torch.ones_like(x))
    assert float((bit_depth(x, 8) - x).detach().abs().max()) <= 0.5 / 255 + 1e-6


def test_non_local_means_by_its_definition():
    x = torch.rand(1, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    search, patch, strength = 5, 3, 60.0
    out = non_local_means(x, search, patch, strength)
    wide = np.pad(x[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="symmetric")
    row, column, h = 3, 3, strength / 255  # an inner pixel, whose patches stay inside the image
    total, weights = 0.0, 0.0
    for i in range(-2, 3):
        for j in range(-2, 3):
            apart = np.mean([(wide[:, 2 + row + a + i, 2 + column + b + j] - x[0, :, row + a, column + b].numpy()) ** 2
                             for a in (-1, 0, 1) for b in (-1, 0, 1)])
            weight = math.exp(-apart / h**2)
            total, weights = total + weight * wide[:, 2 + row + i, 2 + column + j], weights + weight
    torch.testing.assert_close(out[0, :, row, column], torch.tensor(total / weights).float(), rtol=1e-4, atol=1e-5)
    assert float((non_local_means(x, strength=0.01) - x).abs().max()) < 1e-5
    assert float(non_local_means(x, strength=1e4).std()) < 0.5 * float(x.std())


def test_feature_squeezing_score_in_closed_form():
    model = Nearest().eval()
    detector = FeatureSqueezing(model, (("bit_depth", 1), ("median", 3)))
    x, _ = blobs(10, seed=2)
    p = model(x).softmax(1)
    each = torch.stack([(p - model(q).softmax(1)).abs().sum(1) for q in ((x > 0.5).float(), median(x, 3))], 1)
    torch.testing.assert_close(detector.singles(x), each)
    torch.testing.assert_close(detector.score(x), each.max(1).values)
    binary = (x > 0.5).float()
    assert float(FeatureSqueezing(model, (("bit_depth", 1),)).score(binary).abs().max()) == 0


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: bit_depth(x, 9), "1 … 8"), (lambda x: median(x, 9), "pixels wide"),
    (lambda x: non_local_means(x, 4), "odd"), (lambda x: non_local_means(x, strength=0), "positive"),
    (lambda x: FeatureSqueezing(Nearest(), (("blur", 3),)), "no squeezer 'blur'"),
    (lambda x: FeatureSqueezing(Nearest(), ()), "at least one"),
])
def test_squeezers_refuse_what_makes_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call(blobs(2)[0])


# ---------------------------------------------------------------- density and uncertainty

def test_density_is_scikit_learns_for_classes_of_any_size():
    """s = −log (1/n_k) Σ K; scikit-learn's kernel is a normal density, which adds (d/2) log 2πh²."""
    x, y = blobs()
    few = (y != 1) | (torch.arange(len(y)) < 40)
    x, y = x[few], y[few]
    model = Nearest().eval()
    detector = KernelDensity(model, "pixels", bandwidth=0.2).fit(x, y)
    fresh, labels = blobs(30, seed=5)
    for k in range(3):
        rows = labels == k
        peer = sklearn.neighbors.KernelDensity(bandwidth=0.2).fit(x[y == k].flatten(1).numpy())
        apart = detector.score(fresh[rows]) + torch.tensor(peer.score_samples(fresh[rows].flatten(1).numpy())).float()
        constant = torch.tensor(-SIDE * SIDE / 2 * np.log(2 * np.pi * 0.2**2)).float()
        torch.testing.assert_close(apart, constant.expand_as(apart), rtol=0, atol=1e-3)


def test_bandwidth_is_the_likeliest_one():
    x, y = blobs(300, spread=0.03)
    detector = KernelDensity(Nearest().eval(), "pixels").fit(x, y)
    points = list(detector.points.values())

    def likelihood(h):
        return sum(
            sklearn.neighbors.KernelDensity(bandwidth=h).fit(np.delete(p.numpy(), i, 0)).score(p[i:i + 1].numpy())
            for p in points for i in range(0, len(p), 10))

    chosen = likelihood(detector.bandwidth)
    assert chosen > likelihood(detector.bandwidth * 2)
    assert chosen > likelihood(detector.bandwidth / 2)
    with pytest.raises(ValueError, match="positive"):
        KernelDensity(Nearest(), "pixels", bandwidth=0)


def test_uncertainty_is_highest_between_two_classes():
    model = Nearest().eval()
    detector = BayesianUncertainty(model, ["pixels"], rate=0.2, passes=30)
    centres = model.centres.view(3, 1, SIDE, SIDE)
    s = detector.score(torch.cat([centres, (centres + centres.roll(1, 0)) / 2]))
    assert float(s[3:].min()) > float(s[:3].max())
    nearly_none = BayesianUncertainty(model, ["pixels"], rate=1e-9, passes=5)
    assert float(nearly_none.score(centres).max()) < 1e-9
    with pytest.raises(ValueError, match="2 passes"):
        BayesianUncertainty(model, ["pixels"], passes=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        BayesianUncertainty(model, ["pixels"], rate=1.0)


def test_energy_is_high_where_no_class_has_evidence():
    model = Nearest().eval()
    x, _ = blobs(30)
    z = model(x)
    by_hand = torch.tensor([-math.log(sum(math.exp(v) for v in row)) for row in z.tolist()])
    torch.testing.assert_close(Energy(model).score(x), by_hand, rtol=1e-4, atol=1e-4)
    nowhere = torch.ones(1, 1, SIDE, SIDE)
    assert float(Energy(model).score(nowhere)) > float(Energy(model).score(x).max())


@pytest.mark.parametrize("make", [lambda m: DeepValidation(m, ["pixels"]), lambda m: KernelDensity(m, "pixels")])
def test_what_is_not_fitted_says_so(make):
    with pytest.raises(ValueError, match=r"call fit\(training images, labels\) first"):
        make(Nearest()).score(blobs(3)[0])


# ---------------------------------------------------------------- the adaptive attack

def test_squeezing_can_be_evaded_where_its_score_is_flat():
    model = Nearest().eval()
    model.centres.data = (model.centres > 0.5).float()
    detector = FeatureSqueezing(model, (("bit_depth", 1),))
    x = (0.5 + 0.02 * torch.sign(model.centres[:1] - model.centres[1:2])).view(1, 1, SIDE, SIDE) * 1.0
    for t in torch.linspace(0, 1, 21):  # sure of one class as it is, of another when squeezed
        mixed = (1 - t) * model.centres[1].view_as(x) + t * x
        if float(detector.score(mixed)) > 1.9:
            break
    z = mixed.clone().requires_grad_()
    (g,) = torch.autograd.grad(detector.evasion(z).sum(), z)
    assert float(g.abs().max()) > 1
    flat = mixed.clone().requires_grad_()
    (h,) = torch.autograd.grad(detector.discrepancy(flat).sum(), flat)
    assert float(g.abs().max()) > float(h.abs().max())
    sure = model.centres[:1].view(1, 1, SIDE, SIDE)
    assert float(detector.evasion(sure)) < -5
    assert float(detector.score(sure)) < 1e-3


@pytest.mark.parametrize("name", ["deep", "squeezing"])
def test_the_adaptive_attack_is_wrong_and_unsuspicious_at_once(fitted, name):
    detector = fitted[name]
    model = detector.model
    detector.threshold(blobs(99, seed=4)[0], fpr=0.05)
    x, y = blobs(30, seed=8)
    eps = 0.45
    blind = evade(model, x, y, detector=Given(model), eps=eps, steps=30, random_start=False)
    aware = evade(model, x, y, detector=detector, eps=eps, steps=60)
    assert float((aware - x).abs().max()) <= eps + 1e-6
    both = fooled(model, aware, y)
    assert float(both.float().mean()) > 0.9
    hidden = both & ~detector.alarm(aware)
    assert float(detector.score(aware)[both].mean()) < float(detector.score(blind).mean())
    assert float(hidden.float().mean()) > 0.3
    still = evade(model, x, y, detector=detector, eps=0.0, steps=2)
    assert torch.equal(still, x)


def test_the_adaptive_attack_aims_at_a_target(fitted):
    detector = fitted["deep"]
    x, y = blobs(12, seed=8)
    target = (y + 1) % 3
    out = evade(detector.model, x, y, detector=detector, eps=0.6, steps=40, target=target)
    assert float(fooled(detector.model, out, y, target).float().mean()) > 0.8
    with pytest.raises(ValueError, match="another model"):
        evade(Nearest(), x, y, detector=detector, eps=0.1)


# ---------------------------------------------------------------- the figure of merit

def test_roc_auc_with_ties_is_scikit_learns():
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 12, (80,), generator=draws), torch.randint(4, 16, (50,), generator=draws)
    expected = sklearn.metrics.roc_auc_score([0] * 80 + [1] * 50, torch.cat([a, b]))
    area = roc_auc(a, b)
    assert area.value == pytest.approx(expected, abs=1e-12)
    assert area.low < area.value < area.high
    mirrored = roc_auc(b, a)
    assert mirrored.value == pytest.approx(1 - area.value)
    assert mirrored.low == pytest.approx(1 - area.high, abs=2e-4)


def test_the_interval_covers_at_its_rate_and_is_not_empty_at_one():
    perfect = roc_auc(torch.zeros(50), torch.ones(50))
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert 0.9 < perfect.low < 0.999
    truth = 0.9214  # Φ(2/√2)
    draws = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        area = roc_auc(torch.randn(60, generator=draws), 2 + torch.randn(60, generator=draws))
        covered += area.low <= truth <= area.high
    assert 0.92 <= covered / 300 <= 0.99
    with pytest.raises(ValueError, match="both kinds"):
        roc_auc(torch.zeros(0), torch.ones(3))
    with pytest.raises(ValueError, match="scores hold NaN"):
        roc_auc(torch.zeros(2), torch.tensor([1.0, torch.nan]))
