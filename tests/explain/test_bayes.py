"""BayesLIME and BayesSHAP: the posterior by NumPy and by Monte Carlo, its calibration, the limit of many samples."""
import numpy as np
import pytest
import torch
from scipy import stats

from kit.core import generator
from kit.explain import bayes, bayes_table, lime_table, shapley, surrogate
from kit.explain.bayes import Posterior
from kit.explain.games import Game

W = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)


def played(value, players=5):
    """A game that also keeps what was asked."""
    asked, answers = [], []

    def ask(b):
        asked.append(b.double())
        answers.append(value(b.double()))
        return answers[-1]

    return Game(players, ask, 64, None, 0), asked, answers


def noisy(sigma, seed):
    source = generator(seed)
    return lambda b: 0.3 + b @ W + sigma * torch.randn(len(b), generator=source, dtype=torch.float64)


def curved(b):
    return b[:, 0] * b[:, 1] + (b @ W).tanh() + 0.5 * b[:, 2] * b[:, 3] * b[:, 4]


def test_bayes_lime_is_the_conjugate_posterior_of_numpy():
    """Written again with the design matrix: an intercept without a prior, Π, and the normal-inverse-gamma update."""
    game, asked, answers = played(curved)
    found = bayes(game, samples=90, prior=0.7, generator=generator(3))
    b, y = torch.cat(asked).numpy(), torch.cat(answers).numpy()
    pi = np.exp(-((1 - np.sqrt(b.mean(1))) ** 2) / (2 * 0.25**2))
    Z = np.column_stack([np.ones(90), b])
    precision = Z.T @ (pi[:, None] * Z) + 0.7 * np.diag([0, 1, 1, 1, 1, 1])
    mean = np.linalg.solve(precision, Z.T @ (pi * y))
    rest = (pi * (y - Z @ mean) ** 2).sum() + 0.7 * (mean[1:] ** 2).sum()
    assert np.allclose(found.weights, mean[1:])
    assert np.allclose(found.spread, np.linalg.inv(precision)[1:, 1:])
    assert found.freedom == 89
    assert np.isclose(found.variance, rest / 89)
    ours = found.interval(0.9)[0]
    theirs = stats.t(89, mean[1], np.sqrt(rest / 89 * np.linalg.inv(precision)[1, 1])).interval(0.9)
    assert np.allclose(ours, theirs)
    assert torch.allclose(found.weights, surrogate(game, samples=90, ridge=0.7, generator=generator(3)).weights)


def test_bayes_shap_is_the_posterior_of_the_weights_that_sum_to_the_difference():
    """With the last weight put in terms of the others: a regression of its own, with the prior along the plane."""
    game, asked, answers = played(curved)
    found = bayes(game, kernel="shap", samples=60, prior=0.7, generator=generator(3))
    b, y = torch.cat(asked).numpy(), torch.cat(answers).numpy()
    total, b, y = y[1] - y[0], b[2:], y[2:] - y[0]
    assert len(b) == 58
    assert set(b.sum(1)) <= {1, 2, 3, 4}
    Z, rest_y = b[:, :4] - b[:, 4:], y - total * b[:, 4]
    prior = 0.7 * (np.eye(4) + np.ones((4, 4)))  # ‖φ‖² with φ₅ = total − Σ others
    precision, pull = Z.T @ Z + prior, Z.T @ rest_y + 0.7 * total * np.ones(4)
    mean = np.linalg.solve(precision, pull)
    phi = np.append(mean, total - mean.sum())
    assert np.allclose(found.weights, phi)
    assert np.isclose(float(found.weights.sum()), total)
    assert np.allclose(found.spread[:4, :4], np.linalg.inv(precision))
    assert np.allclose(found.spread.sum(1), 0, atol=1e-12)
    assert np.isclose(found.variance * found.freedom, ((y - b @ phi) ** 2).sum() + 0.7 * (phi**2).sum())
    assert found.freedom == 59


def test_the_draws_have_the_posteriors_moments_and_quantiles():
    game, _, _ = played(curved)
    for kernel in ("lime", "shap"):
        found = bayes(game, kernel=kernel, samples=40, generator=generator(1))
        drawn = found.draws(40000, generator(2))
        expected = found.variance * found.freedom / (found.freedom - 2) * found.spread
        assert torch.allclose(drawn.T.cov(), expected, atol=0.03 * float(expected.abs().max()))
        low, high = drawn.quantile(0.025, 0), drawn.quantile(0.975, 0)
        near = 0.04 * found.half_width()
        assert ((low - found.interval()[:, 0]).abs() < near).all()
        assert ((high - found.interval()[:, 1]).abs() < near).all()
    assert torch.equal(found.draws(5), found.draws(5))


@pytest.mark.parametrize("kernel", ["lime", "shap"])
def test_the_95_percent_interval_covers_known_weights_95_percent_of_the_time(kernel):
    """A linear game, known weights, noise. The ends of KernelSHAP are exact, so its noise leaves them alone."""
    inside = []
    for seed in range(300):
        value = noisy(0.5, seed)

        def ask(b, value=value):
            ends = (b.sum(1) == 0) | (b.sum(1) == 5)
            return torch.where(ends, 0.3 + b.double() @ W, value(b.double())) if kernel == "shap" else value(b.double())

        found = bayes(Game(5, ask, 512, None, 0), kernel=kernel, samples=150, width=10.0, prior=1e-3,
                      generator=generator(1000 + seed))
        low, high = found.interval().T
        inside.append((low <= W) & (high >= W))
    covered = torch.stack(inside).double().mean()
    assert 0.93 < covered < 0.97


def test_as_samples_grow_the_posterior_closes_in_on_the_exact_values():
    game, _, _ = played(curved)
    exact = shapley(game)
    widths = []
    for samples in (100, 1600, 25600):
        found = bayes(game, kernel="shap", samples=samples, generator=generator(5))
        assert ((found.weights - exact).abs() <= 1.5 * found.half_width(0.999)).all()
        widths.append(float(found.half_width().max()))
    assert 3 < widths[0] / widths[1] < 5
    assert 3.5 < widths[1] / widths[2] < 4.5
    assert float((found.weights - exact).abs().max()) < 0.02


def test_needed_is_the_papers_number_of_perturbations():
    game, _, _ = played(noisy(0.5, 0))
    first = bayes(game, samples=4000, width=10.0, generator=generator(0))
    paper = 4 * first.variance / (0.02 / 1.96) ** 2  # π̄ is 1 for so wide a kernel
    assert abs(first.needed(0.02) / paper - 1) < 0.1
    assert abs(first.needed(0.01) / first.needed(0.02) - 4) < 0.01
    assert first.needed(1.0) == 4000
    again = bayes(game, samples=first.needed(0.02), width=10.0, generator=generator(1))
    assert 0.9 < float(again.half_width().max()) / 0.02 < 1.1


def test_a_table_has_the_weights_of_lime_table_and_their_intervals():
    data = np.random.default_rng(0).normal(size=(200, 3)) * [1.0, 2.0, 0.5]

    def linear(rows):
        return rows @ [1.0, -1.0, 2.0]

    found = bayes_table(linear, data[0], data, 0, samples=400, generator=generator(1))
    same = lime_table(linear, data[0], data, 0, samples=400, generator=generator(1))
    assert torch.allclose(found.weights, same.weights)
    low, high = found.interval().T
    truth = torch.from_numpy(data.std(0) * [1.0, -1.0, 2.0])
    assert ((low <= truth) & (truth <= high)).all()
    assert (high - low < 0.1).all()


def test_which_piece_comes_first_is_as_sure_as_the_posterior():
    plain = Posterior(torch.tensor([1.0, -3.0, 0.2]).double(), torch.eye(3).double() * 1e-4, 1.0, 200, 200)
    assert plain.first().tolist() == [0, 1, 0]
    tied = Posterior(torch.tensor([2.0, -2.0, 0.0]).double(), torch.eye(3).double() * 1e-2, 1.0, 200, 200)
    assert torch.allclose(tied.first(4000), torch.tensor([0.5, 0.5, 0.0]).double(), atol=0.03)


def test_what_makes_no_sense_is_refused():
    game, _, _ = played(curved)
    with pytest.raises(ValueError, match="kernel must be"):
        bayes(game, kernel="bayes")
    with pytest.raises(ValueError, match="prior must be"):
        bayes(game, prior=0.0)
    with pytest.raises(ValueError, match="samples must be"):
        bayes(game, samples=3)
    with pytest.raises(ValueError, match="one piece"):
        bayes(Game(1, curved, 64, None, 0), kernel="shap")
    found = bayes(game, samples=50)
    with pytest.raises(ValueError, match="level"):
        found.interval(95)
    with pytest.raises(ValueError, match="width"):
        found.needed(0)
