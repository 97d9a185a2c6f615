import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest, norm
from torch import nn

from kit.core import check_model, chunk_size, generator
from kit.defend import ABSTAIN, Smoothed
from kit.defend.smoothing import clopper_pearson, enough_to_certify, enough_to_decide
from kit.defend.smoothing.binomial import hopeless, looks


class Halves(nn.Module):
    """Two classes, the sign of w·(x − ½) − b: under noise everything about it is known."""

    def __init__(self, w, b=0.0):
        super().__init__()
        self.w, self.b, self.seen = w, b, []

    def forward(self, x):
        self.seen.append(x)
        score = (x - 0.5).flatten(1) @ self.w - self.b
        return torch.stack([score, -score], 1)


@pytest.fixture
def halves():
    return Halves(torch.randn(48, generator=generator(1)))


@pytest.fixture
def x():
    return 0.2 + 0.6 * torch.rand(30, 3, 4, 4, generator=generator(2))


def distance(model, x):
    """To the boundary: of a linear classifier σ Φ⁻¹(P(f(x + ε) = g(x))) is exactly this."""
    z = model(x)
    return (z[:, 0].abs() / model.w.norm()).double(), z.argmax(1)


def test_certificates_of_a_linear_classifier(halves, x):
    exact, label = distance(halves, x)
    smoothed = Smoothed(halves, sigma=0.3)
    found, radius = smoothed.certify(x, n0=100, n=4000, alpha=0.001)
    clear = exact > 0.1
    assert torch.equal(found[clear], label[clear])
    assert (radius <= exact).all()
    sure = found != ABSTAIN
    assert (radius[~sure] == 0).all()
    k = 4000 * torch.as_tensor(norm.cdf(exact / 0.3))  # what the bound says when the count is its expectation
    expected = 0.3 * norm.ppf(clopper_pearson(k.round().numpy(), 4000, 0.001))
    assert (radius[clear] - torch.as_tensor(expected)[clear]).abs().max() < 0.05
    assert (radius[clear] > 0.6 * exact[clear].clamp(max=0.8)).float().mean() > 0.8  # and not by being timid


def test_votes_are_the_probability(halves, x):
    exact, label = distance(halves, x)
    counts = Smoothed(halves, sigma=0.3).counts(x, 3000)
    assert (counts.sum(1) == 3000).all()
    share = counts.gather(1, label[:, None])[:, 0] / 3000
    assert (share - torch.as_tensor(norm.cdf(exact / 0.3))).abs().max() < 0.04


def test_ceiling():
    sure = Smoothed(Halves(torch.zeros(48), -1.0), sigma=0.5)
    assert [round(sure.ceiling(n) / 0.5, 2) for n in (100, 1000, 10_000)] == [1.50, 2.46, 3.20]
    found, radius = sure.certify(torch.full((1, 3, 4, 4), 0.5), n=100)
    assert found.item() == 0
    assert radius.item() == pytest.approx(sure.ceiling(100), rel=1e-5)


def test_bounds_and_tests_against_scipy(halves, x):
    for k, n in ((0, 20), (1, 20), (13, 20), (20, 20), (950, 1000)):
        exact = binomtest(k, n, alternative="greater").proportion_ci(0.99, method="exact").low
        assert clopper_pearson(torch.tensor(k).numpy(), n, 0.01) == pytest.approx(exact, abs=1e-9)
    smoothed = Smoothed(halves, sigma=1.0)
    counts, answers = smoothed.counts(x, 60), smoothed.predict(x, n=60, alpha=0.05)
    for row, answer in zip(counts.tolist(), answers.tolist(), strict=True):
        sure = binomtest(max(row), sum(row), 0.5).pvalue <= 0.05
        assert answer == (row.index(max(row)) if sure else ABSTAIN)
    assert (answers == ABSTAIN).any()
    assert (answers != ABSTAIN).any()


def test_an_even_vote_abstains():
    coin = Smoothed(Halves(torch.ones(48)), sigma=0.5)
    middle = torch.full((4, 3, 4, 4), 0.5)
    assert (coin.predict(middle) == ABSTAIN).all()
    found, radius = coin.certify(middle, n=500)
    assert (found == ABSTAIN).all()
    assert (radius == 0).all()


def test_noise_is_as_stated_and_never_used_twice():
    model = Halves(torch.ones(48))
    Smoothed(model, sigma=0.25).certify(torch.full((1, 3, 4, 4), 0.9), n0=50, n=150)
    noise = torch.cat(model.seen) - 0.9
    noise = noise[noise.flatten(1).abs().amax(1) > 0.01]  # the image itself is asked about when the model is checked
    assert len(noise) == 200
    assert len(noise.flatten(1).unique(dim=0)) == 200  # the votes that choose and those that count are others
    assert noise.std().item() == pytest.approx(0.25, rel=0.03)
    assert abs(noise.mean().item()) < 0.01
    assert (noise + 0.9).max() > 1.2  # not clipped


def test_an_image_does_not_depend_on_the_others(halves, x):
    smoothed = Smoothed(halves, sigma=0.5, draws=5)
    before = torch.get_rng_state()
    whole, alone = smoothed.counts(x, 50), torch.cat([smoothed.counts(x[i:i + 1], 50) for i in range(len(x))])
    assert torch.equal(whole, alone)
    torch.testing.assert_close(smoothed(x), torch.cat([smoothed(x[i:i + 1]) for i in range(len(x))]))
    assert torch.equal(torch.get_rng_state(), before)
    fresh = Smoothed(halves, sigma=0.5, draws=5, generator=generator(4))
    assert not torch.equal(fresh(x), fresh(x))
    source = generator(4)
    assert not torch.equal(smoothed.counts(x, 50, source), smoothed.counts(x, 50, source))


def test_as_a_victim(halves, x):
    smoothed = Smoothed(halves, sigma=0.5, draws=400)
    x = x.requires_grad_()
    assert check_model(smoothed, x.detach()) == 2
    z = smoothed(x)
    p = torch.stack([halves(x + e).softmax(1) for e in smoothed.noise(x, 400, generator())]).mean(0)
    torch.testing.assert_close(z.exp(), p)
    exact, label = distance(halves, x)
    assert torch.equal(z.argmax(1)[exact > 0.1], label[exact > 0.1])
    (g,) = torch.autograd.grad(z[:, 0].sum(), x)
    assert (g.flatten(1) @ halves.w > 0).all()


def test_what_makes_no_sense(halves, x):
    with pytest.raises(ValueError, match="sigma must be positive"):
        Smoothed(halves, sigma=0)
    with pytest.raises(ValueError, match="at least one noisy copy"):
        Smoothed(halves).counts(x, 0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        Smoothed(halves).predict(3 * x)
    assert math.isfinite(Smoothed(halves)(x).min().item())


class Sometimes(Halves):
    """No finite answer where the noise lifts the first pixel above a limit."""

    limit, value = 0.9, torch.nan

    def forward(self, x):
        return torch.where(x[:, 0, 0, :1] > self.limit, self.value, super().forward(x))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_copies_without_an_answer_vote_for_no_class(halves, value):
    x = torch.full((2, 3, 4, 4), 0.5) + 0.3 * torch.sign(halves.w).view(3, 4, 4)  # far inside a class
    x[:, 0, 0, 0] = torch.tensor([0.4, 0.4499])
    broken = Sometimes(halves.w)
    broken.value = value
    whole, some = Smoothed(halves, sigma=0.05), Smoothed(broken, sigma=0.05)
    assert torch.equal(some.counts(x, 400), whole.counts(x, 400))
    broken.limit = 0.45  # the first image has no answer to a sixth of its copies, the second to half of them
    votes = some.counts(x, 400).sum(1)
    assert 300 < votes[0] < 370
    assert 170 < votes[1] < 230
    (found, radius), (_, most) = some.certify(x, n=400), whole.certify(x, n=400)
    assert found.tolist() == [0, ABSTAIN]
    assert 0 < radius[0] < most[0]
    assert radius[1] == 0
    assert some.predict(x, n=100).tolist() == [0, ABSTAIN]
    broken.limit = -1.0
    for ask in (some.certify, some.predict):
        with pytest.raises(ValueError, match="returned NaN or infinity"):
            ask(x)


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001])
def test_too_few_copies_to_be_sure_are_refused_and_one_more_is_enough(alpha):
    sure = Smoothed(Halves(torch.zeros(48), -1.0), sigma=0.5)
    x = torch.full((2, 3, 4, 4), 0.5)
    for ask, least in ((sure.predict, enough_to_decide(alpha)), (lambda x, **k: sure.certify(x, 5, **k)[0],
                                                                enough_to_certify(alpha))):
        assert (ask(x, n=least, alpha=alpha) == 0).all()
        if least > 1:
            with pytest.raises(ValueError, match=f"give n={least} or more"):
                ask(x, n=least - 1, alpha=alpha)
    assert sure.ceiling(enough_to_certify(alpha), alpha) > 0
    assert sure.ceiling(max(1, enough_to_certify(alpha) - 1), alpha) == 0 or alpha == 0.5


@pytest.mark.parametrize("numbers", [{"alpha": 0.0}, {"alpha": 1.0}, {"alpha": math.nan}, {"n": 0}, {"n": 20.5}])
def test_numbers_that_make_no_sense(halves, x, numbers):
    for ask in (Smoothed(halves).predict, Smoothed(halves).certify):
        with pytest.raises(ValueError, match="alpha is a probability|at least one noisy copy"):
            ask(x, **numbers)
    with pytest.raises(ValueError, match="at least one noisy copy"):
        Smoothed(halves).certify(x, n0=0)


# --- what a certificate promises, over many repetitions --------------------------------------------------------------


class Counted(Smoothed):
    """Each "image" is a repetition: its votes are drawn from known probabilities (K,), without any network."""

    def __init__(self, p, seed=0, sigma=1.0):
        super().__init__(nn.Identity(), sigma)
        self.p, self.source, self.asked = torch.tensor(p), generator(seed), 0

    def _asked(self, x):
        return nullcontext()

    def _counts(self, x, n, source, bar):
        self.asked += len(x) * n
        votes = torch.multinomial(self.p, len(x) * n, replacement=True, generator=self.source)
        return F.one_hot(votes, len(self.p)).view(len(x), n, -1).sum(1)


MANY = 4000


def repeated(p, n0=20, n=200, alpha=0.05, early=True):
    """(class, radius, votes drawn for each) of so many repetitions."""
    vote = Counted(p)
    found, radius = vote.certify(torch.zeros(MANY, 1, 1, 1), n0=n0, n=n, alpha=alpha, early=early)
    return found, radius, vote.asked / MANY


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("p", [[0.8, 0.2], [0.55, 0.25, 0.2], [0.97, 0.02, 0.01]])
def test_no_more_than_alpha_of_the_certificates_are_wrong(p, early):
    found, radius, _ = repeated(p, early=early)
    wrong = (found == 0) & (radius > norm.ppf(p[0]))
    assert wrong.float().mean() < 0.05 + 3 * (0.05 * 0.95 / MANY) ** 0.5
    assert (found > 0).float().mean() < 0.001
    if p[0] == 0.8:
        assert wrong.float().mean() > 0.02  # a bound that is sure of more than it was asked for would be timid


@pytest.mark.parametrize("p", [[0.5, 0.5], [0.5, 0.25, 0.25], [0.34, 0.33, 0.33]])
def test_votes_that_choose_the_class_do_not_count_for_it(p):
    """No class has more than half, so that every certificate is wrong. The lead of the votes that chose would count."""
    found, radius, _ = repeated(p, n0=20, n=40)
    assert (found != ABSTAIN).float().mean() < 0.05 + 3 * (0.05 * 0.95 / MANY) ** 0.5
    assert (radius[found == ABSTAIN] == 0).all()
    if len(p) == 2:
        counts = torch.distributions.Binomial(40, torch.tensor(0.5)).sample((MANY,)).numpy()
        reused = clopper_pearson(abs(counts - 20) + 20, 40, 0.05) > 0.5
        assert reused.mean() > 1.5 * float((found != ABSTAIN).float().mean())


def test_an_early_stop_saves_where_nothing_is_to_be_won():
    clear, whole = repeated([0.3, 0.3, 0.4], n=800), repeated([0.3, 0.3, 0.4], n=800, early=False)
    assert (clear[0] == ABSTAIN).all()
    assert (whole[0] == ABSTAIN).all()
    assert whole[2] == 820
    assert clear[2] < 420
    sure = repeated([0.9, 0.1], n=800)
    assert sure[2] == 820
    assert (sure[0] == 0).all()


def test_an_early_stop_gives_up_a_majority_with_probability_alpha_at_most():
    for p in (0.5, 0.52):
        k = torch.distributions.Binomial(1, torch.tensor(p)).sample((20_000, 400)).cumsum(1).numpy()
        lost = [hopeless(k[:, t - 1], t, 400, 0.05) for t in looks(400)[:-1]]
        share = np.any(lost, axis=0).mean()
        assert share < 0.05
        assert p > 0.5 or share > 0.01  # and it is a test, not a formality
    assert looks(400) == [25, 50, 100, 200, 400]
    assert looks(1) == [1]
    assert looks(20) == [1, 2, 5, 10, 20]


def test_an_early_stop_changes_no_other_image(halves, x):
    smoothed = Smoothed(halves, sigma=1.0)
    some, radius = smoothed.certify(x, n=400)
    every, full = smoothed.certify(x, n=400, early=False)
    assert torch.equal(some, every)
    assert torch.equal(radius, full)
    model = Three()
    far = torch.full((1, 3, 4, 4), 0.2)
    mixed = torch.cat([far, torch.full((3, 3, 4, 4), 0.5)])
    found, r = Smoothed(model, sigma=0.5).certify(mixed, n=800)
    assert 900 < model.asked < 0.75 * 900 * 4  # three images of four are given up
    alone, s = Smoothed(model, sigma=0.5).certify(far, n=800)
    assert found.tolist() == [alone.item(), ABSTAIN, ABSTAIN, ABSTAIN]
    assert r[0] == s[0] > 0


class Three(nn.Module):
    """Sure of class 0 for dark images, else one of three classes by the sign of two pixels that say nothing else."""

    asked = 0

    def forward(self, x):
        self.asked += len(x)
        z = torch.stack([x[:, 0, 0, 0], x[:, 1, 0, 0], x[:, 2, 0, 0]], 1)
        dark = (x.mean((1, 2, 3)) < 0.35).float()
        return z + 100 * dark[:, None] * torch.tensor([1.0, 0.0, 0.0])


def test_copies_stream_in_chunks_and_a_bar_counts_them(halves, x, capsys):
    smoothed = Smoothed(halves, sigma=0.5)
    smoothed.certify(x, n0=50, n=5000, progress=True)
    assert "copy" in capsys.readouterr().err
    halves.seen.clear()
    smoothed.certify(x[:1], n0=50, n=20_000)
    assert capsys.readouterr().err == ""
    sizes = [len(seen) for seen in halves.seen]
    assert max(sizes) == chunk_size(x)
    assert sum(sizes) < 20_050 + 10
    assert len(sizes) < 15  # one image fills a chunk with its copies
