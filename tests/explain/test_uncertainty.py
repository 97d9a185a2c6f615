"""What is not known, in two parts: closed forms for each, and networks of which the parts are known."""
import importlib
import math

import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import generator
from kit.data.scenes import DARK_NOISE, LIGHT_NOISE, WALL, distances
from kit.explain import (
    answers,
    entropies,
    error_kept,
    gaussian_nll,
    mc_dropout,
    noisy_logits_nll,
    reliability,
    temperature,
    variances,
)

uncertainty = importlib.import_module("kit.explain.uncertainty")
LN2 = math.log(2)


def dropped_linear(p=0.25, seed=0):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(p), nn.Linear(12, 2, bias=False))
    net[2].weight.data = torch.randn(2, 12, generator=generator(seed))
    return net.train()


def images(n, channels=1, h=3, w=4):
    return torch.rand(n, channels, h, w, generator=generator(7))


# --- several answers


def test_dropout_of_a_linear_networks_inputs_has_the_mean_and_the_variance_of_theory():
    net, x, p = dropped_linear(), images(2), 0.25
    z = mc_dropout(net, x, passes=20000, generator=generator(1))
    w, v = net[2].weight.data, x.flatten(1)
    assert torch.allclose(z.mean(1), v @ w.T, atol=0.03)
    assert torch.allclose(z.var(1), p / (1 - p) * v.square() @ w.square().T, rtol=0.05)


def test_an_image_has_its_own_draws_and_the_network_keeps_its_mode():
    net, x = dropped_linear(), images(3)
    state = torch.get_rng_state()
    z = mc_dropout(net, x, passes=4, generator=generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net.modules()] == [True] * 4
    assert torch.allclose(z[:1], mc_dropout(net, x[:1], passes=4, generator=generator(3)), atol=1e-6)
    assert torch.equal(z, mc_dropout(net, x, passes=4, generator=generator(3)))
    assert not torch.equal(z, mc_dropout(net, x, passes=4, generator=generator(4)))
    assert not torch.equal(z[:, 0], z[:, 1])


def test_dropout_of_channels_leaves_out_whole_ones_and_batch_norm_stays_as_it_is():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout2d(0.5)).train()
    net[0].running_mean += 0.5
    before = net[0].running_mean.clone()
    h = mc_dropout(net, images(2, channels=4), passes=40, generator=generator(0)).flatten(3)
    gone = (h == 0).all(3)
    assert torch.equal(gone, (h == 0).any(3))
    assert 0.35 < float(gone.float().mean()) < 0.65
    assert torch.equal(net[0].running_mean, before)
    kept = net.eval()(images(2, channels=4)).flatten(2)[:, None].expand_as(h)
    assert torch.allclose(h[~gone], 2 * kept[~gone])


def test_networks_without_dropout_and_other_mistakes_are_told():
    with pytest.raises(ValueError, match="no dropout"):
        mc_dropout(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), images(1))
    with pytest.raises(ValueError, match="leaves nothing"):
        mc_dropout(dropped_linear(p=1.0), images(1))
    with pytest.raises(ValueError, match="1 at least, is needed"):
        mc_dropout(dropped_linear(), images(1), passes=0)
    with pytest.raises(ValueError, match="255"):
        mc_dropout(dropped_linear(), 255 * images(1))
    with pytest.raises(ValueError, match="at least one network"):
        answers([], images(1))
    with pytest.raises(ValueError, match="one question"):
        answers([nn.Flatten(), nn.Identity()], images(1))


def test_an_ensemble_answers_member_by_member():
    nets, x = [dropped_linear(seed=s) for s in range(3)], images(5)
    z = answers(nets, x)
    assert z.shape == (5, 3, 2)
    assert all(net.training for net in nets)
    for t, net in enumerate(nets):
        assert torch.allclose(z[:, t], x.flatten(1) @ net[2].weight.data.T, atol=1e-6)


# --- two parts


def test_what_two_members_disagree_about_is_modelling_and_what_both_leave_open_is_sensing():
    p = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [1.0, 0.0]]])
    found = entropies(p)
    assert torch.allclose(found.total, torch.tensor([LN2, LN2, 0.0]))
    assert torch.allclose(found.sensing, torch.tensor([0.0, LN2, 0.0]))
    assert torch.allclose(found.modelling, torch.tensor([LN2, 0.0, 0.0]))


def test_entropies_of_a_map_are_those_of_its_pixels():
    z = torch.randn(2, 5, 3, 4, 6, generator=generator(0))
    p = z.softmax(2)
    whole, one = entropies(p), entropies(p[:, :, :, 1:2, 2:3].flatten(3)[..., 0])
    assert whole.total.shape == (2, 4, 6)
    for part, pixel in zip(whole, one, strict=True):
        assert torch.allclose(part[:, 1, 2], pixel, atol=1e-6)
    assert torch.allclose(whole.total, whole.sensing + whole.modelling, atol=1e-6)
    with pytest.raises(ValueError, match="softmax"):
        entropies(z)


def test_variances_add_up_to_that_of_the_mixture():
    g = generator(0)
    mu, s = torch.randn(1, 4, generator=g, dtype=torch.float64), torch.randn(1, 4, generator=g, dtype=torch.float64)
    found = variances(mu, s)
    y = mu + (0.5 * s).exp() * torch.randn(200_000, 4, generator=g, dtype=torch.float64)
    assert float(found.total) == pytest.approx(float(y.var()), rel=0.02)
    assert float(found.sensing) == pytest.approx(float(s.exp().mean()))
    assert float(found.modelling) == pytest.approx(float((mu - mu.mean()).square().mean()))
    with pytest.raises(ValueError, match="one shape"):
        variances(mu, s[:, :3])


def test_more_data_takes_modelling_away_and_leaves_sensing():
    """Least squares on measurements made anew: the variance of a prediction is σ² x'(X'X)⁻¹x, and falls as 1 / n."""
    g, sigma, found = generator(0), 0.5, {}
    for n in (50, 800):
        X = torch.randn(n, 3, generator=g, dtype=torch.float64)
        at = torch.randn(200, 3, generator=g, dtype=torch.float64)
        mu, s = [], []
        for _ in range(200):
            y = X.sum(1) + sigma * torch.randn(n, generator=g, dtype=torch.float64)
            w = torch.linalg.lstsq(X, y[:, None]).solution[:, 0]
            mu.append(at @ w)
            s.append(torch.full((200,), float((X @ w - y).square().mean().log()), dtype=torch.float64))
        theory = sigma**2 * torch.einsum("ni,ij,nj->n", at, torch.linalg.inv(X.T @ X), at).mean()
        found[n] = [float(v.mean()) for v in variances(torch.stack(mu, 1), torch.stack(s, 1))] + [float(theory)]
    for n, (_, sensing, modelling, theory) in found.items():
        assert sensing == pytest.approx(sigma**2, rel=0.1), n
        assert modelling == pytest.approx(theory, rel=0.3), n
    assert found[50][2] > 8 * found[800][2]


# --- losses


def test_the_gaussian_loss_is_torchs_and_least_at_the_mean_squared_error():
    g = generator(0)
    mu, s, y = (torch.randn(500, generator=g, dtype=torch.float64) for _ in range(3))
    theirs = nn.GaussianNLLLoss(reduction="none", eps=0)(mu, y, s.exp())
    assert torch.allclose(gaussian_nll(mu, s, y), theirs)
    best = float((y - mu).square().mean().log())
    at = {d: float(gaussian_nll(mu, torch.full_like(mu, best + d), y).mean()) for d in (-0.1, 0.0, 0.1)}
    assert at[0.0] < min(at[-0.1], at[0.1])


def test_noise_on_the_logits_excuses_a_wrong_answer_because_probabilities_are_averaged():
    z, y = torch.tensor([[-1.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    loss = {sigma: float(noisy_logits_nll(z, torch.full_like(z, 2 * math.log(sigma)), y, draws=200_000))
            for sigma in (1e-6, 2.0)}
    assert loss[1e-6] == pytest.approx(math.log(1 + math.e**2), abs=1e-4)  # 2.13
    assert loss[2.0] == pytest.approx(1.29, abs=0.02)  # a mean of losses would give 2.57


def test_noisy_logits_are_drawn_for_each_image_class_and_pixel():
    g = generator(0)
    z, s = torch.randn(2, 3, 4, 5, generator=g), torch.zeros(2, 3, 4, 5)
    y = torch.randint(3, (2, 4, 5), generator=g)
    found = noisy_logits_nll(z, s, y, draws=30, generator=generator(1))
    assert found.shape == y.shape
    assert torch.equal(found, noisy_logits_nll(z, s, y, draws=30, generator=generator(1)))
    one = noisy_logits_nll(z, torch.full_like(s, -60.0), y, draws=3)
    assert torch.allclose(one, nn.functional.cross_entropy(z, y, reduction="none"), atol=1e-5)


# --- calibration


def test_a_constant_confidence_is_off_by_its_distance_from_the_accuracy():
    p = torch.tensor([[0.8, 0.2]]).expand(10, 2)
    found = reliability(p, torch.tensor([0] * 6 + [1] * 4))
    assert found.error == pytest.approx(0.2, abs=1e-6)
    assert sorted(found.share.tolist())[-2:] == [0, 1]
    assert reliability(torch.tensor([[0.5, 0.5], [0.75, 0.25]]), torch.tensor([0, 0]), bins=4).share.tolist() == [
        0, 0.5, 0.5, 0]  # (lo, hi]: an edge belongs to the bin below it
    with pytest.raises(ValueError, match="one label"):
        reliability(p, torch.zeros(3))
    with pytest.raises(ValueError, match="bins"):
        reliability(p, torch.zeros(10), bins=0)


def test_the_temperature_of_scaled_logits_is_the_scale():
    z = 2 * torch.randn(20_000, 4, generator=generator(0))
    y = torch.multinomial(z.softmax(1), 1, generator=generator(1))[:, 0]
    assert temperature(z, y) == pytest.approx(1, abs=0.05)
    for scale in (3.0, 0.25):
        assert temperature(scale * z, y) == pytest.approx(scale * temperature(z, y), rel=1e-3)


def test_what_is_kept_first_is_what_was_most_certain():
    error, sure = torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([9.0, 1.0, 5.0, 2.0])
    assert error_kept(error, sure, (0.25, 0.5, 1.0)).tolist() == [1.0, 1.5, 2.5]
    with pytest.raises(ValueError, match="above 0"):
        error_kept(error, sure, (0.0,))


@pytest.mark.parametrize(("call", "words"), [
    (lambda p, y: reliability(5 * p, y), "sum to 1"), (lambda p, y: reliability(p - 1, y), "sum to 1"),
    (lambda p, y: reliability(p, y + 3), "class numbers"), (lambda p, y: reliability(p, y, bins=2.5), "bins"),
    (lambda p, y: temperature(p[:4], y), "one label"), (lambda p, y: temperature(p, y + 3), "class numbers"),
    (lambda p, y: temperature(p * torch.nan, y), "NaN"), (lambda p, y: temperature(p[:1], y[:1]), "are right"),
    (lambda p, y: temperature(-p, y), "no temperature"), (lambda p, y: temperature(p[:0], y[:0]), "one label"),
    (lambda p, y: entropies(p[:, None][:, :0]), "sum to 1"), (lambda p, y: entropies(p), "sum to 1"),
    (lambda p, y: variances(p[:, :0], p[:, :0]), "at least one answer"),
    (lambda p, y: noisy_logits_nll(p, p[:, :1], y), "one shape"),
    (lambda p, y: noisy_logits_nll(p, p, y[:2]), "one shape"),
    (lambda p, y: noisy_logits_nll(p, p, y + 3), "class numbers"),
    (lambda p, y: noisy_logits_nll(p, p, y, draws=0), "draws=0"),
    (lambda p, y: gaussian_nll(p[:, :1], p[:, :1], p[:, 0]), "one shape"),
    (lambda p, y: error_kept(p, p[:3], (0.5,)), "one shape"),
    (lambda p, y: answers(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), images(1)), "list of networks"),
    (lambda p, y: mc_dropout(dropped_linear(), images(1), generator=3), "generator must"),
    (lambda p, y: mc_dropout(dropped_linear(), images(1), passes=1.5), "1 at least, is needed"),
    (lambda p, y: distances(images(1)), "masks and factors"),
    (lambda p, y: mc_dropout("net", images(1)), "a network is needed"),
    (lambda p, y: mc_dropout(dropped_linear(), images(1), passes=True), "1 at least, is needed"),
    (lambda p, y: answers(["net"], images(1)), "a network is needed"),
    (lambda p, y: entropies(torch.ones(2, 2, 1, dtype=torch.int64)), "sum to 1"),
    (lambda p, y: variances(p * torch.nan, p), "NaN"), (lambda p, y: variances(y[:, None], y[:, None]), "floats"),
    (lambda p, y: noisy_logits_nll(p, p, y, draws=1.5), "draws=1.5"),
    (lambda p, y: noisy_logits_nll(p, p, y, generator=3), "generator must"),
    (lambda p, y: noisy_logits_nll(p[:0], p[:0], y[:0]), "no labels"),
    (lambda p, y: reliability(p, y, bins=True), "bins"),
    (lambda p, y: error_kept(p, p * torch.nan, (0.5,)), "NaN"), (lambda p, y: error_kept(p, p, ()), "above 0"),
    (lambda p, y: error_kept(p, p, 0.5), "above 0"),
    (lambda p, y: uncertainty.measurements(9, ("rings",)), "rings"),
    (lambda p, y: uncertainty.measurements(9, "ring"), "a list"),
])
def test_mistakes_get_one_sentence(call, words):
    p = torch.tensor([[0.7, 0.2, 0.1]]).expand(10, 3)
    with pytest.raises((ValueError, TypeError), match=words):
        call(p, torch.zeros(10, dtype=torch.int64))


def test_errors_of_bins_do_not_cancel_and_images_have_noise_of_their_own():
    p = torch.tensor([[0.6, 0.4]] * 10 + [[0.9, 0.1]] * 10)
    y = torch.tensor([0] * 9 + [1] + [0] * 6 + [1] * 4)  # right 9 times where it says 6, and 6 times where it says 9
    assert reliability(p, y).error == pytest.approx(0.3, abs=1e-6)
    z = torch.zeros(3, 4)
    loss = noisy_logits_nll(z, z, torch.zeros(3, dtype=torch.int64), draws=3)
    assert len(loss.unique()) == 3


def test_an_image_has_its_own_draws_in_every_chunk():
    x = torch.ones(20, 1, 64, 64)  # 16 go through together
    z = mc_dropout(nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Dropout(0.5)), x, passes=3)
    assert len(z.flatten(1).unique(dim=0)) == 20


# --- the range finder


def test_distances_and_noise_follow_from_the_factors_of_a_scene():
    data = kit.data.load("scenes", "test", n=40)
    d, sigma = distances(data)
    luma = (data.x * torch.tensor([0.2126, 0.7152, 0.0722]).view(1, 3, 1, 1)).sum(1)
    for i in range(len(data)):
        assert (d[i][~data.mask[i]] == WALL).all()
        assert len(d[i][data.mask[i]].unique()) == 1
        assert luma[i][sigma[i] == DARK_NOISE].mean() < luma[i][sigma[i] == LIGHT_NOISE].mean() - 0.1
    on = torch.stack([d[i][data.mask[i]][0] for i in range(len(data))])
    order = data.concepts["scale"].argsort()
    assert (on[order].diff() <= 0).all()
    assert ((on >= 0.4) & (on <= 1)).all()
    torch.testing.assert_close(on, 0.4 + 0.6 * (0.57 - data.concepts["scale"]) / 0.23)
    with pytest.raises(ValueError, match="masks and factors"):
        distances(kit.data.load("digits", "test", n=3))


def test_the_range_finders_network_is_shown_one_noisy_measurement(monkeypatch):
    """Of the scenes that are left; a member begins elsewhere, on the same measurements."""
    seen = []
    monkeypatch.setattr(uncertainty, "fit", lambda r, x, y, loss, seed: seen.append((x, y, loss, seed)))
    data = kit.data.load("scenes", "train", n=60)
    for member in (0, 2):
        uncertainty.sensing_training(None, data.x, data.y, without=("disc", "star"), member=member)
    (x, y, loss, seed), (other_x, other_y, _, other_seed) = seen
    rest = data[(data.y != 0) & (data.y != 3)]
    assert torch.equal(x, rest.x)
    assert torch.equal(x, other_x)
    assert torch.equal(y, other_y)
    assert (seed, other_seed) == (0, 2)
    d, sigma = distances(rest)
    for value in (DARK_NOISE, LIGHT_NOISE):
        assert float((y - d)[sigma == value].std()) == pytest.approx(value, rel=0.03)
    model = lambda v: torch.stack([v[:, 0], v[:, 1]], 1)  # noqa: E731
    exact = gaussian_nll(x[:, 0], x[:, 1], y).mean()
    assert torch.allclose(loss(model, x, y, generator()), exact)


def test_the_figures_of_a_range_finder_that_knows_are_the_truth():
    """It reads d to a tenth, d + 0.1, and knows σ."""
    data = kit.data.load("scenes", "test", n=6)
    d, sigma = distances(data)

    class Knows(nn.Module):
        def forward(self, x):
            return torch.stack([d + 0.1, 2 * sigma.log()], 1)

    found = uncertainty.sensing_figures(None, Knows().eval(), data.x, data.y)
    assert found == pytest.approx({"accuracy": 1, "rmse": 0.1, "light": LIGHT_NOISE, "dark": DARK_NOISE}, rel=1e-5)


def test_the_shipped_networks_read_distance_and_noise_where_they_can():
    data = kit.data.load("scenes", "test", n=60)
    d, sigma = distances(data)
    models = [kit.models.load(f"sensing{k}/scenes") for k in (1, 2, 3, 4, 5)]
    z = answers(models, data.x)
    found = variances(z[:, :, 0], z[:, :, 1])
    inside = nn.functional.max_pool2d(data.mask[:, None].float(), 5, 1, 2)[:, 0] == 0  # far from any edge
    assert float((z[:, :, 0].mean(1) - d)[inside].square().mean().sqrt()) < 0.1
    dark, light = (float(found.sensing[inside & (sigma == v)].sqrt().median()) for v in (DARK_NOISE, LIGHT_NOISE))
    assert 0.2 < dark < 0.3
    assert light < 0.1
    strange = torch.rand(20, 3, 32, 32, generator=generator(0))
    other = answers(models, strange)
    assert variances(other[:, :, 0], other[:, :, 1]).modelling.mean() > 2 * found.modelling.mean()
    z1 = mc_dropout(models[0], data.x[:4], passes=8, generator=generator(0))
    assert z1.shape == (4, 8, 2, 32, 32)
    assert float(z1.var(1).mean()) > 1e-4
