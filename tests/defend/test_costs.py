"""The worlds against simulation, against enumeration, and against integrals by numbers."""
import math
from itertools import product

import pytest
import torch
from scipy import integrate, stats
from torch import nn

from kit.attacks import fgsm, pgd
from kit.core import fooled, generator
from kit.defend.costs import (
    Bits,
    Gaussian,
    Parity,
    Weak,
    linear_accuracy,
    margins,
    robust_fit,
    robust_share,
    signs,
)

PAPER = Weak(p=0.95, eta=4 / 1000**0.5, d=1000)
N = 20_000


def near(share, n=N):
    """Four standard errors of a share of n."""
    return pytest.approx(share, abs=4 * math.sqrt(max(share * (1 - share), 1 / n) / n))


# --- any linear rule -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gaussian_and_a_linear_rule(norm):
    g = generator(0)
    w, mean = torch.randn(6, generator=g, dtype=torch.float64), torch.full((6,), 0.5, dtype=torch.float64)
    w = w.abs()
    y = signs(N, g)
    x = y[:, None] * mean + 0.8 * torch.randn(N, 6, generator=g, dtype=torch.float64)
    clean = linear_accuracy(w, mean, 0.8)
    for eps in (0.1, 0.3):
        exact = float(linear_accuracy(w, mean, 0.8, eps=eps, norm=norm))
        assert robust_share(w, x, y, eps=eps, norm=norm) == near(exact)
        assert exact < float(clean) - 0.01


def test_the_closed_form_is_the_integral_of_the_density_of_the_margin():
    w, mean, eps = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.4, -0.3, 0.2]).double(), 0.15
    left = float(w @ mean - eps * w.abs().sum())
    area, _ = integrate.quad(stats.norm(left, 0.7 * float(w.norm())).pdf, 0, 40)
    assert float(linear_accuracy(w, mean, 0.7, eps=eps)) == pytest.approx(area, abs=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_worst_change_is_the_one_that_attacks_find(norm):
    """As an image that no box cuts: FGSM finds it at once in ℓ∞, PGD in every norm, and nothing is left to find."""
    world, eps = Weak(0.9, 0.2, 15), 0.3
    x, y = world.sample(400, generator(1))
    w = world.bayes()
    scale = 1 / 40  # features of ± 20 lie in the box
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    model[1].weight.data, model[1].bias.data = torch.stack([-w, w]) / scale, torch.stack([w, -w]).sum(1) * 0.5 / scale
    images, label = (0.5 + scale * x).view(-1, 1, 4, 4), (y > 0).long()
    left = margins(w, x, y, eps=eps, norm=norm) > 0
    assert 0.1 < left.double().mean() < 0.9
    x_adv = pgd(model, images, label, eps=scale * eps, norm=norm, steps=20)
    assert (~fooled(model, x_adv, label) == left)[margins(w, x, y, eps=eps, norm=norm).abs() > 0.01].all()
    if norm == "linf":
        assert torch.equal(~fooled(model, fgsm(model, images, label, eps=scale * eps), label), left)


def test_fitting_a_linear_rule_to_its_worst_case():
    """The gradient of the convex objective vanishes, and under attack the rule is better than the plain one."""
    world = Weak(0.9, 0.3, 20)
    x, y = world.sample(4000, generator(0))
    plain, robust = robust_fit(x, y), robust_fit(x, y, eps=0.25)
    for w, eps in ((plain, 0.0), (robust, 0.25)):
        v = w.clone().requires_grad_()
        loss = nn.functional.softplus(-margins(v, x, y, eps=eps)).mean()
        near_by = [nn.functional.softplus(-margins(w * f, x, y, eps=eps)).mean() for f in (0.9, 1.1)]
        assert all(loss < other for other in near_by)
    assert world.accuracy(robust, 0.25) > world.accuracy(plain, 0.25) + 0.02
    assert world.accuracy(plain) > world.accuracy(robust)
    assert robust[1:].abs().sum() / robust[0] < 0.5 * plain[1:].abs().sum() / plain[0]


# --- one strong feature, many weak ones -------------------------------------------------------------------------------


def test_the_figures_of_the_paper():
    """Of η = 4/√d: Φ(4) without an attack and 1 − Φ(4) at ε = 2η; and those of Bayes' rule."""
    four = stats.norm.cdf(4)
    assert float(PAPER.accuracy(PAPER.mean())) == pytest.approx(four)
    assert float(PAPER.accuracy(PAPER.mean(), 2 * PAPER.eta)) == pytest.approx(1 - four)
    assert float(PAPER.accuracy(PAPER.bayes())) == pytest.approx(0.999987, abs=1e-6)
    assert float(PAPER.accuracy(PAPER.bayes(), 2 * PAPER.eta)) == pytest.approx(9.3e-5, abs=1e-6)
    strong = PAPER.rule(1.0, 0.0)
    assert [float(PAPER.accuracy(strong, eps)) for eps in (0.0, 0.5, 0.999, 1.0)] == [0.95, 0.95, 0.95, 0.0]


@pytest.mark.parametrize("rule", ["mean", "bayes", "strong", "mixed"])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_weak_features_against_simulation(rule, eps):
    world = Weak(0.8, 0.3, 30)
    w = {"mean": world.mean(), "bayes": world.bayes(), "strong": world.rule(1.0, 0.0),
         "mixed": world.rule(3.0, -0.2)}[rule]
    x, y = world.sample(N, generator(3))
    assert robust_share(w, x, y, eps=eps) == near(float(world.accuracy(w, eps)))


def test_the_best_rule_is_the_best_and_drops_the_weak_features():
    world = Weak(0.85, 0.25, 40)
    tried = torch.stack([world.rule(s, v) for s in torch.linspace(0, 6, 25).tolist() for v in (0.0, 0.1, 0.5, 1.0)])
    for eps in (0.0, 0.1, 0.2):
        best = world.accuracy(world.best(eps), eps)
        assert best >= world.accuracy(tried, eps).max() - 1e-6
        assert best > world.p + 0.01 or eps == 0.2  # where the strong feature alone is the best already
    assert float(world.accuracy(world.best(0.0))) == pytest.approx(float(world.accuracy(world.bayes())), abs=1e-6)
    for eps in (0.25, 0.6):
        assert torch.equal(world.best(eps), world.rule(1.0, 0.0))
        assert world.accuracy(tried, eps).max() <= world.p + 1e-12


def test_their_theorem_bounds_every_rule():
    world = Weak(0.9, 0.2, 60)
    g = generator(5)
    for _ in range(30):
        w = torch.cat([3 * torch.rand(1, generator=g).double(), torch.rand(60, generator=g).double()])
        clean, robust = float(world.accuracy(w)), float(world.accuracy(w, 2 * world.eta))
        assert robust <= world.bound(1 - clean) + 1e-9
    assert world.bound(0.01) == pytest.approx(0.09)


def test_more_weight_on_the_change_trades_accuracy_for_robustness():
    world, eps = Weak(0.9, 0.3, 40), 0.2
    rules = [world.trade_off(eps, beta) for beta in (0.0, 0.5, 1.0, 3.0, 12.0)]
    clean, robust = ([float(world.accuracy(w, e)) for w in rules] for e in (0.0, eps))
    assert clean == sorted(clean, reverse=True)
    assert clean[0] > clean[-1] + 0.02
    assert robust[2] == max(robust)
    assert robust[2] > robust[0] + 0.02
    between = [c - r for c, r in zip(clean, robust, strict=True)]
    assert between == sorted(between, reverse=True)
    exact = [float(world.accuracy(world.bayes(), e)) for e in (0.0, eps)]
    assert [clean[0], robust[0]] == pytest.approx(exact, abs=1e-3)


# --- few samples ------------------------------------------------------------------------------------------------------


def test_the_figures_of_the_card():
    world = Gaussian(1000, 1000**0.25)
    clean = [world.accuracy(n) for n in (1, 10, 100)]
    robust = [world.accuracy(n, 0.25) for n in (1, 10, 100)]
    assert clean == pytest.approx([0.838, 0.997, 1.0], abs=5e-4)
    assert robust == pytest.approx([0.445, 0.948, 1.0], abs=5e-4)


@pytest.mark.parametrize("n", [1, 4, 20])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_rule_of_n_samples_against_simulation(n, eps):
    """Of 300 rules drawn by their law, each judged exactly; and of rules learnt from samples."""
    world, g = Gaussian(400, 4.0), generator(n)
    theta, w = world.learnt(n, 300, g)
    each = linear_accuracy(w * theta, torch.ones(400).double(), world.sigma, eps=eps)
    assert float(each.mean()) == pytest.approx(world.accuracy(n, eps), abs=0.006)
    found = []
    for k in range(40):
        x, y = world.sample(theta[k], n, g)
        held, label = world.sample(theta[k], 200, g)
        found.append(robust_share((y @ x) / n, held, label, eps=eps))
    assert sum(found) / 40 == pytest.approx(world.accuracy(n, eps), abs=0.03)


@pytest.mark.parametrize("n", [1, 10])
def test_the_standard_accuracy_against_its_double_integral(n):
    """w·θ = d + τ√d g and ‖w‖² = (√d + τ g)² + τ² χ²_{d−1}: exact, where the closed form takes ‖w‖² for its mean."""
    world = Gaussian(300, 300**0.25)
    tau = world.sigma / n**0.5

    def value(chi, g):
        along = world.d**0.5 + tau * g
        size = math.sqrt(along**2 + tau**2 * chi)
        return stats.norm.cdf(world.d**0.5 * along / (world.sigma * size)) * stats.norm.pdf(g) * law.pdf(chi)

    law = stats.chi2(world.d - 1)
    exact, _ = integrate.dblquad(value, -6, 6, law.ppf(1e-6), law.ppf(1 - 1e-6), epsabs=1e-5)
    assert world.accuracy(n) == pytest.approx(exact, abs=2 / world.d)


def test_how_large_a_weight_is():
    world = Gaussian(100, 3.0)
    for n in (1, 9, 100):
        tau = world.sigma / n**0.5
        exact, _ = integrate.quad(lambda z, tau=tau: abs(1 + tau * z) * stats.norm.pdf(z), -12, 12)
        assert world.spread(n) == pytest.approx(exact, abs=1e-6)


def test_robustness_needs_more_samples():
    world = Gaussian(1000, 1000**0.25)
    values = [world.accuracy(2.0**k, 0.5) for k in range(-2, 20)]
    assert values == sorted(values)
    needed = [world.needed(0.99, eps) for eps in (0.0, 0.25, 0.5)]
    assert needed == sorted(needed)
    assert needed[2] > 5 * needed[0]
    for eps, n in zip((0.0, 0.25, 0.5), needed, strict=True):
        assert world.accuracy(n, eps) == pytest.approx(0.99, abs=1e-6)
    assert world.needed(0.99, 1.5) == math.inf


# --- bits -------------------------------------------------------------------------------------------------------------


def by_hand(world, n, eps):
    """Every training set of one feature, and every image of all features."""
    p = {1: 0.5 + world.tau, -1: 0.5 - world.tau}
    right = 0.0
    for votes in product((1, -1), repeat=n):
        total = sum(votes)
        chance = math.prod(p[v] for v in votes)
        right += chance * (1.0 if total > 0 else 0.5 if total == 0 else 0.0)
    agree = {1: right * p[1] + (1 - right) * p[-1]}
    agree[-1] = 1 - agree[1]
    found = 0.0
    for image in product((1, -1), repeat=world.d):
        ahead = sum(image) - eps * world.d
        found += math.prod(agree[a] for a in image) * (1.0 if ahead > 1e-9 else 0.5 if abs(ahead) < 1e-9 else 0.0)
    return found


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("eps", [0.0, 0.2, 0.5])
def test_bits_against_enumeration(n, eps):
    world = Bits(8, 0.2)
    assert world.accuracy(n, eps) == pytest.approx(by_hand(world, n, eps), abs=1e-12)


def test_bits_against_simulation_and_rounded():
    world, g, n, eps = Bits(101, 0.1), generator(2), 9, 0.1
    theta, found, after = signs(101, g), [], []
    for _ in range(60):
        w = world.learnt(*world.sample(theta, n, g), g)
        x, y = world.sample(theta, 300, g)
        found.append(robust_share(w, x, y, eps=eps))
        worst = x - 0.9 * y[:, None] * w.sign()  # ε = 0.9, and then sign(·)
        after.append(robust_share(w, worst.sign(), y))
    assert sum(found) / 60 == pytest.approx(world.accuracy(n, eps), abs=0.03)
    assert sum(after) / 60 == pytest.approx(world.accuracy(n, 0.9, rounded=True), abs=0.03)
    assert world.accuracy(n, 0.9, rounded=True) == world.accuracy(n) > 0.7
    assert world.accuracy(n, 0.9) < 1e-6
    assert world.accuracy(n, 1.5, rounded=True) == world.accuracy(n, 1.5)


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_parity_against_every_rule_of_the_sum(k):
    world = Parity(k, 0.5 / k)
    for units in range(1, k + 2):
        best = 0.0
        for answers in product((1, -1), repeat=k + 1):
            if sum(a != b for a, b in zip(answers, answers[1:], strict=False)) <= units:
                right = sum(math.comb(k, m) for m in range(k + 1) if answers[m] == (-1) ** m)
                best = max(best, right / 2**k)
        assert world.accuracy(units, world.eta) == best
        assert world.accuracy(units) == 1.0
    assert world.accuracy(k, world.eta) == 1.0


def test_one_threshold_is_right_on_what_the_middle_binomial_says():
    for k in (2, 3, 8, 11):
        exact = 0.5 + math.comb(k - 1, (k - 1) // 2) / 2**k
        assert Parity(k, 0.01).accuracy(1, 0.01) == pytest.approx(exact)


@pytest.mark.parametrize("units", [1, 3, 6])
def test_the_rule_holds_under_the_worst_change_of_its_sum(units):
    world, eps = Parity(6, 0.05), 0.1
    x, y = world.sample(6000, generator(4))
    share, answers = world.followed(units)
    total = x[:, :-1].sum(1)

    def says(t):
        return torch.tensor(answers).double()[((6 - t) / 2).round().long().clamp(0, 6)]

    right = (says(total) == y) & (says(total - 6 * eps) == y) & (says(total + 6 * eps) == y)
    assert float(right.double().mean()) == near(share, 6000)
    weak = x[:, -1] - eps * y
    assert (weak * y < 0).all()  # and the weak feature says the opposite


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Weak(p=1.0), "p is a share"), (lambda: Weak(eta=0.0), "eta must be above 0"),
    (lambda: Gaussian(sigma=-1.0), "sigma must be above 0"), (lambda: Bits(tau=0.7), "tau is above 0"),
    (lambda: Parity(8, 0.2), "eta is above 0 and below 1/k"), (lambda: Parity(4, 0.1).accuracy(2, 0.3), "eps is from"),
    (lambda: linear_accuracy(torch.ones(2), torch.ones(2), 0.0), "sigma must be above 0"),
    (lambda: Gaussian().needed(1.0), "accuracy is a share"), (lambda: Gaussian().accuracy(0), "n must be above 0"),
])
def test_worlds_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
