"""Votes whose outcome is known: independent errors, copies, planted faults in common, and what abstention cannot do."""
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import Ensemble, fooled
from kit.detect import REFUSED, roc_auc
from kit.diverse import NVersion, independent_vote, majority, mutual_faults, shared, votes


def says(*rows):
    return torch.tensor(rows)


def erring(p, n, N=20_000, classes=2, seed=0):
    """n versions that err independently with rate p, and the labels (all 0)."""
    random = np.random.default_rng(seed)
    wrong = random.random((N, n)) < p
    return torch.tensor(wrong * random.integers(1, classes, (N, n))), torch.zeros(N, dtype=torch.int64)


class Named(nn.Module):
    """Logits that name the class written in the first pixel, in tenths, plus `off`; `sure` is their size."""

    def __init__(self, off=0, sure=20.0, classes=4):
        super().__init__()
        self.off, self.sure, self.classes = off, sure, classes

    def forward(self, x):
        k = ((x[:, 0, 0, 0] * 10).round().long() + self.off) % self.classes
        return self.sure * nn.functional.one_hot(k, self.classes).to(x)


def images(*classes):
    x = torch.zeros(len(classes), 1, 2, 2)
    x[:, 0, 0, 0] = torch.tensor(classes) / 10
    return x


# --- the vote -------------------------------------------------------------------------------------------------------


def test_a_majority_answers_and_a_split_does_not():
    said = says([1, 1, 2], [0, 1, 2], [3, 3, 3], [2, 0, 0], [REFUSED, 1, 1], [REFUSED, REFUSED, 1])
    assert majority(said).tolist() == [1, REFUSED, 3, 0, 1, REFUSED]
    assert majority(said, 3).tolist() == [REFUSED, REFUSED, 3, REFUSED, REFUSED, REFUSED]
    assert majority(says([1, 1, 0, 0])).tolist() == [REFUSED]  # two of four are no majority


@pytest.mark.parametrize("n", [3, 5])
def test_independent_errors_vote_as_the_binomial_says(n):
    """3p² − 2p³ for three: .1 becomes .028. Copies stay at p."""
    p = 0.1
    wanted = {3: 3 * p**2 - 2 * p**3, 5: 10 * p**3 * (1 - p) ** 2 + 5 * p**4 * (1 - p) + p**5}[n]
    assert independent_vote([p] * n) == pytest.approx(wanted)
    said, y = erring(p, n)
    wrong = float((majority(said) != y).float().mean())
    assert wrong == pytest.approx(wanted, abs=4 * (wanted / len(y)) ** 0.5)
    copies = said[:, :1].expand(-1, n)
    assert float((majority(copies) != y).float().mean()) == float((said[:, 0] != y).float().mean())


def test_unequal_errors_are_counted_by_enumeration():
    q = [0.1, 0.3, 0.25, 0.6]
    for quorum in (3, 4):
        wanted = sum(
            np.prod([e if bad else 1 - e for e, bad in zip(q, pattern, strict=True)])
            for pattern in itertools.product([0, 1], repeat=4) if sum(pattern) >= quorum)
        assert independent_vote(q, quorum) == pytest.approx(wanted)
    assert independent_vote([0.3]) == pytest.approx(0.3)


def rates(said, y, quorum):
    answer = majority(said, quorum)
    given = answer != REFUSED
    return int((given & (answer != y)).sum()), int((given & (answer == y)).sum()), int(given.sum())


def test_what_abstention_does_and_what_it_does_not():
    """A larger quorum never adds an answer, right or wrong; all of n are wrong at most as often as the best one. But
    the error among the answered can rise: the wrong answers may be the unanimous ones."""
    random = np.random.default_rng(1)
    for _ in range(20):
        said = torch.tensor(random.integers(0, 3, (200, 5)))
        y = torch.tensor(random.integers(0, 3, 200))
        wrong, right, given = (list(v) for v in zip(*(rates(said, y, q) for q in (3, 4, 5)), strict=True))
        for counts in (wrong, right, given):
            assert counts == sorted(counts, reverse=True)
        each = (said != y[:, None]).sum(0)
        assert wrong[2] <= int(each.min())
        assert 3 * wrong[0] <= int(each.sum())  # every wrong answer needs three wrong versions
    said, y = says([1, 1, 1], [0, 0, 2], [0, 2, 0]), says(0, 0, 0)
    assert [rates(said, y, q)[::2] for q in (2, 3)] == [(1, 3), (1, 1)]  # one wrong in three answers, then in one


def test_a_vote_may_err_more_than_its_versions():
    """Faults laid out in pairs: each version errs on two of three images, the vote on all: no worse is possible."""
    said, y = says([1, 1, 0], [1, 0, 1], [0, 1, 1]), says(0, 0, 0)
    assert (majority(said) != y).all()
    assert float((said != 0).float().mean()) == pytest.approx(2 / 3)


# --- faults in common -----------------------------------------------------------------------------------------------


def test_independent_faults_have_ratio_one_and_copies_have_one_over_p():
    said, y = erring(0.1, 4, classes=5)
    found = mutual_faults(said, y)
    assert found.both.value == pytest.approx(0.01, abs=2e-3)
    assert found.independent.value == pytest.approx(0.01, abs=2e-3)
    assert found.ratio.low < 1 < found.ratio.high
    assert found.ratio.high - found.ratio.low < 0.3
    assert found.same.value == pytest.approx(found.both.value / 4, abs=1e-3)  # of four wrong classes one is the same
    copies = mutual_faults(said[:, [0, 0]], y)
    p = float((said[:, 0] != 0).float().mean())
    assert copies.both.value == copies.same.value == pytest.approx(p)
    assert copies.ratio.value == pytest.approx(1 / p)
    assert copies.ratio.low > 9


def test_versions_that_are_drawn_alike_share_the_hard_images():
    """With a probability θ(x) of being wrong about each image, ρ = 1 + Var θ / p², whatever the versions: Eckhardt and
    Lee 1985. Where the hard images of one kind of version are easy for the other, it is less than 1."""
    random, N = np.random.default_rng(4), 40_000
    theta = random.choice([0.02, 0.6], N, p=[0.9, 0.1])
    said = (random.random((N, 3)) < theta[:, None]).astype(int)
    y, p = np.zeros(N, dtype=int), float(theta.mean())
    wanted = 1 + float(theta.var()) / p**2
    found = mutual_faults(said, y, resamples=300)
    assert wanted > 5
    assert found.ratio.value == pytest.approx(wanted, rel=0.05)
    assert found.ratio.low < wanted < found.ratio.high
    hard_elsewhere = (random.random((N, 1)) < theta[::-1][:, None]).astype(int)
    hard_elsewhere[theta > 0.5] = 0
    assert mutual_faults(np.hstack([said[:, :1], hard_elsewhere]), y, resamples=300).ratio.high < 1


def test_faults_that_avoid_each_other_lie_below_one():
    wrong = torch.zeros(1000, 2, dtype=torch.int64)
    wrong[:100, 0] = 1
    wrong[95:195, 1] = 1
    found = mutual_faults(wrong, torch.zeros(1000, dtype=torch.int64))
    assert found.both.value == pytest.approx(0.005)
    assert found.independent.value == pytest.approx(0.01)
    assert found.ratio.value == pytest.approx(0.5)
    assert found.ratio.high < 1.1


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(60):
        said, y = erring(0.2, 3, N=400, seed=seed)
        found = mutual_faults(said, y, resamples=300)
        hits += found.ratio.low <= 1 <= found.ratio.high
    assert hits >= 50


def test_only_the_named_pairs_count():
    said, y = erring(0.2, 3, N=2000)
    said[:, 2] = said[:, 0]
    twins, others = mutual_faults(said, y, [(0, 2)]), mutual_faults(said, y, [(0, 1), (1, 2)])
    assert twins.ratio.value > 3 * others.ratio.value
    gap = shared(said, y, [(0, 2)]) - shared(said, y, [(0, 1), (1, 2)])
    assert gap.mean() == pytest.approx(twins.both.value - others.both.value)
    alike = shared(said, y, [(0, 2)], same=True)
    assert alike.mean() == pytest.approx(twins.same.value)
    assert alike.shape == (2000,)


def test_a_vote_of_three_errs_where_two_have_the_same_fault():
    """1[wrong] = Σ over pairs 1[same fault] − 2 · 1[all three have it]."""
    random = np.random.default_rng(2)
    said, y = torch.tensor(random.integers(0, 3, (500, 3))), torch.tensor(random.integers(0, 3, 500))
    answer = majority(said)
    wrong = ((answer != REFUSED) & (answer != y)).double().mean()
    pairs = 3 * mutual_faults(said, y).same.value
    all_three = ((said == said[:, :1]).all(1) & (said[:, 0] != y)).double().mean()
    assert float(wrong) == pytest.approx(pairs - 2 * float(all_three))


# --- the detector ---------------------------------------------------------------------------------------------------


def test_sure_versions_score_the_share_of_pairs_that_disagree():
    two_of_three = NVersion(Ensemble([Named(), Named(), Named(1)]))
    x = images(0, 1, 2, 3)
    assert torch.allclose(two_of_three.score(x), torch.full((4,), 2 / 3), atol=1e-6)
    assert torch.allclose(NVersion(Ensemble([Named(), Named()])).score(x), torch.zeros(4), atol=1e-6)
    assert torch.allclose(NVersion(Ensemble([Named(), Named(1)])).score(x), torch.ones(4), atol=1e-6)
    unsure = NVersion(Ensemble([Named(sure=0.0), Named(sure=0.0)]))
    assert torch.allclose(unsure.score(x), torch.full((4,), 3 / 4))  # two draws of four classes differ so often


def test_the_vote_answers_abstains_and_hands_on():
    vote = NVersion(Ensemble([Named(), Named(1), Named(1)]))
    x = images(0, 1, 3)
    assert vote.votes(x).tolist() == [[0, 1, 1], [1, 2, 2], [3, 0, 0]]
    assert vote.predict(x).tolist() == [1, 2, 0]
    assert not vote.alarm(x).any()
    every = NVersion(vote.model, quorum=3)
    assert every.alarm(x).all()
    assert every.predict(x).tolist() == [REFUSED] * 3
    assert every.predict(x, fail_safe=lambda refused: torch.full((len(refused),), 7)).tolist() == [7, 7, 7]


def test_the_vote_is_not_the_mean_of_the_logits():
    """One version that is very sure outweighs two in the mean, and not in the vote."""
    nets = Ensemble([Named(sure=100.0), Named(1), Named(1)])
    assert nets(images(0)).argmax(1).tolist() == [0]
    assert NVersion(nets).predict(images(0)).tolist() == [1]


def test_a_version_without_an_answer_is_outvoted():
    class Silent(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 4), torch.nan).to(x)

    nets = [Silent(), Named(), Named()]
    x = images(2, 1)
    assert votes(nets, x).tolist() == [[REFUSED, 2, 2], [REFUSED, 1, 1]]
    assert NVersion(Ensemble(nets)).predict(x).tolist() == [2, 1]
    assert NVersion(Ensemble([Silent(), Silent(), Named()])).predict(x).tolist() == [REFUSED] * 2


@pytest.fixture(scope="module")
def three():
    nets = [kit.models.load(f"digits/{n}").requires_grad_(False) for n in ("cnn7", "mlp")]
    return Ensemble([*nets, kit.models.load("average/digits").requires_grad_(False)])


def test_a_threshold_adds_to_the_vote(three):
    """After it an image is refused for its score too; never is one answered that was not."""
    vote, dev = NVersion(three), kit.data.load("digits", "dev")
    test = kit.data.load("digits", "test", n=200)
    before = vote.alarm(test.x)
    vote.threshold(dev.x, fpr=0.05)
    after = vote.alarm(test.x)
    assert bool((after >= before).all())
    assert int(after.sum()) > int(before.sum())
    assert torch.equal(vote.predict(test.x) == REFUSED, after)


def test_disagreement_rises_where_the_versions_come_to_err(three):
    test = kit.data.load("digits", "test", n=200)
    noisy = (test.x + torch.randn(test.x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    vote = NVersion(three)
    assert roc_auc(vote.score(test.x), vote.score(noisy)).value > 0.8
    assert float(fooled(three, noisy, test.y).float().mean()) > 0.1


def test_saved_and_loaded(three, tmp_path):
    vote, x = NVersion(three, quorum=3), kit.data.load("digits", "test", n=20).x
    vote.threshold(kit.data.load("digits", "dev").x)
    vote.save(tmp_path / "vote.safetensors")
    again = NVersion.load(tmp_path / "vote.safetensors", three)
    assert again.quorum == 3
    assert again.tau == vote.tau
    assert torch.equal(again.predict(x), vote.predict(x))


def test_mistakes(three):
    with pytest.raises(TypeError, match=r"kit\.core\.Ensemble, not a Named"):
        NVersion(Named())
    with pytest.raises(ValueError, match="two versions"):
        NVersion(Ensemble([Named()]))
    with pytest.raises(ValueError, match="a quorum of 3 versions is 2 to 3, not 1"):
        NVersion(three, quorum=1)
    with pytest.raises(ValueError, match="3 to 4, not 2"):
        majority(says([0, 0, 1, 1]), 2)
    with pytest.raises(ValueError, match="images, versions"):
        majority(says(1, 2))
    said, y = erring(0.1, 3, N=50)
    with pytest.raises(ValueError, match="labels"):
        mutual_faults(said, y[:9])
    with pytest.raises(ValueError, match="two different ones of 3"):
        mutual_faults(said, y, [(0, 3)])
    with pytest.raises(ValueError, match="at least one pair"):
        shared(said, y, [])
    with pytest.raises(ValueError, match="nothing to share"):
        mutual_faults(torch.zeros(9, 2), torch.zeros(9))
    with pytest.raises(ValueError, match="rates between 0 and 1"):
        independent_vote([0.1, 1.2])


def test_bytes_can_abstain():
    said = torch.tensor([[0, 1, 2], [1, 1, 0]])
    assert majority(said.to(torch.uint8)).tolist() == [REFUSED, 1]


def test_no_answer_twice_is_not_the_same_answer():
    said, y = torch.tensor([[REFUSED, REFUSED], [1, 1]]), torch.tensor([0, 0])
    assert shared(said, y).tolist() == [1, 1]
    assert shared(said, y, same=True).tolist() == [0, 1]
    assert mutual_faults(said, y, resamples=10).same.value == 0.5


def test_a_quorum_is_whole_and_versions_answer_one_question():
    with pytest.raises(ValueError, match="quorum"):
        majority(torch.zeros(2, 3, dtype=torch.long), 2.5)
    few, many = (nn.Sequential(nn.Flatten(), nn.Linear(192, k)).eval() for k in (4, 5))
    with pytest.raises(ValueError, match="one question"):
        NVersion(Ensemble([few, many])).score(torch.rand(2, 3, 8, 8))
