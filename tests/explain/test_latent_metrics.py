"""Metrics of disentanglement, each where its answer is known."""
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

import kit.data
from kit.core import generator
from kit.data.factors import table
from kit.explain.latent import binned, dci, factor_vae_score, information, mig, sap
from kit.explain.latent.metrics import _concentration

FOREST = RandomForestClassifier(20, max_features=None)
VOTES = {"votes": 800, "tests": 400}


def grid(*levels):
    return torch.tensor(list(itertools.product(*(range(k) for k in levels))))


@pytest.fixture(scope="module")
def own():
    return table(kit.data.load("factors"))


# --- mutual information ---------------------------------------------------------------------------------------------


def test_a_perfect_code_of_dsprites_has_a_gap_of_902_under_20_bins():
    """Every combination of 3 × 6 × 40 × 32 × 32 once: each factor is uniform, and its column alone is enough."""
    gaps = []
    for k in (3, 6, 40, 32, 32):
        v = grid(k, 2)
        gaps.append(mig(v.double(), v) * 2 - 1)  # the second factor, of two values, has a gap of 1
    assert gaps == pytest.approx([1, 1, math.log(20) / math.log(40), *[gaps[3]] * 2], abs=1e-9)
    assert gaps[3] == pytest.approx(0.850, abs=5e-4)
    assert sum(gaps) / 5 == pytest.approx(0.902, abs=5e-4)


def test_information_of_what_is_independent_is_0_and_never_below():
    """Not by the rounding of H(z) + H(v) − H(z, v) either."""
    for levels in itertools.product((2, 3, 5, 6, 7), repeat=2):
        v = grid(*levels)
        shared, entropy = information(v.double(), v)
        assert float(shared.min()) >= 0
        assert torch.allclose(shared, torch.diag(entropy), atol=1e-12)


def test_a_rotation_by_45_degrees_has_no_gap_and_one_by_none_has_all():
    v = grid(8, 8)
    a = v.double()
    assert mig(a, v) == pytest.approx(1)
    assert mig(torch.stack([a[:, 0] + a[:, 1], a[:, 0] - a[:, 1]], 1), v) == pytest.approx(0, abs=1e-9)
    slight = torch.stack([8 * a[:, 0] + a[:, 1], 8 * a[:, 1] - a[:, 0]], 1)
    assert 0.3 < mig(slight, v) < 1


def test_duplicates_leave_no_gap_and_no_entanglement(own):
    twice = torch.cat([own, own], 1).double()
    assert mig(twice, own) == pytest.approx(0, abs=1e-9)
    assert sap(twice, own) == pytest.approx(0, abs=1e-9)
    found = dci(twice, own, learner=FOREST)
    assert found.disentanglement == pytest.approx(1, abs=0.02)
    assert found.completeness < 0.8  # the half that a second number takes


def test_information_is_the_entropy_of_what_a_code_tells():
    v = grid(4, 2)
    shared, entropy = information(torch.stack([v[:, 0] // 2, torch.zeros(8)], 1).double(), v)
    assert entropy.tolist() == pytest.approx([math.log(4), math.log(2)])
    assert shared.flatten().tolist() == pytest.approx([math.log(2), 0, 0, 0], abs=1e-9)


def test_bins_are_equal_and_the_last_holds_the_largest():
    assert binned(torch.tensor([[0.0], [0.99], [1.0], [2.0]]), 2).flatten().tolist() == [0, 0, 1, 1]
    assert binned(torch.full((3, 1), 5.0)).tolist() == [[0]] * 3


# --- the kit's own set, by enumeration ------------------------------------------------------------------------------


def test_the_true_factors_and_a_permuted_code_are_the_two_ends(own):
    true = own.double()
    assert mig(true, own) == pytest.approx(1)
    assert factor_vae_score(true, own, **VOTES) == 1
    found = dci(true, own, learner=FOREST)
    assert (found.disentanglement, found.completeness) == pytest.approx((1, 1), abs=0.02)
    assert found.informativeness > 0.99
    strange = true[torch.randperm(768, generator=generator(0))]
    assert mig(strange, own) < 0.03
    assert abs(sap(strange, own)) < 0.1
    assert factor_vae_score(strange, own, **VOTES) < 0.45
    assert dci(strange, own, learner=FOREST).informativeness < 0.35


def test_the_order_the_sign_and_further_idle_numbers_change_nothing(own):
    true = own.double()
    other = torch.cat([-true[:, [2, 0, 3, 1]], torch.zeros(768, 2).double()], 1)
    assert mig(other, own) == pytest.approx(1)
    assert factor_vae_score(other, own, **VOTES) == 1
    assert dci(other, own, learner=FOREST).disentanglement == pytest.approx(1, abs=0.02)
    assert sap(other, own) == pytest.approx(sap(true, own), abs=0.05)


def test_a_linear_machine_cannot_tell_eight_values_apart(own):
    """So that a perfect code has less than 1, and less in other units."""
    found = sap(own.double(), own)
    assert 0.25 < found < 0.6
    assert sap(own.double() / 100, own) < found - 0.1


def test_a_factor_in_two_numbers_costs_mig_and_completeness_and_not_the_score(own):
    """Place as the sum and the difference of column and row: the rest as it is."""
    turned = own.double().clone()
    turned[:, 2], turned[:, 3] = own[:, 2] + own[:, 3], own[:, 2] - own[:, 3]
    assert mig(turned, own) == pytest.approx(0.5)
    found = dci(turned, own, learner=FOREST)
    assert found.disentanglement < 0.8
    assert found.informativeness > 0.9


def test_every_number_pruned_is_a_score_of_0(own):
    assert factor_vae_score(0.001 * own.double(), own, **VOTES) == 0
    half = own.double().clone()
    half[:, 2:] *= 0.001
    assert 0.4 < factor_vae_score(half, own, **VOTES) < 0.85


# --- scenes ---------------------------------------------------------------------------------------------------------


def test_the_true_factors_of_scenes_are_a_perfect_code():
    """Drawn independently, so that two of them share no more than (K − 1)(K' − 1) / 2n nats by chance."""
    data = kit.data.load("scenes", "test")
    names = ("shape", "texture", "colour", "background", "background_colour", "polarity")
    v = torch.stack([data.concepts[n] for n in names] + [binned(data.concepts["rotation"])], 1)
    true = torch.stack([data.concepts[n].double() for n in (*names, "rotation")], 1)
    assert 0.97 < mig(true, v) < 1
    assert factor_vae_score(true, v, **VOTES) == 1
    assert dci(true[:, :6], v[:, :6], learner=FOREST).disentanglement > 0.95
    assert mig(true.flip(0), v) < 0.03


# --- how it counts --------------------------------------------------------------------------------------------------


def test_the_score_is_counted_on_votes_of_its_own():
    """Of a code that says nothing, the majority learnt from few votes is right by chance only in further ones."""
    v = grid(8, 8, 8)
    strange = torch.randn(512, 6, generator=generator(0), dtype=torch.float64)
    found = [factor_vae_score(strange, v, batch=8, votes=12, tests=600, seed=s) for s in range(4)]
    assert sum(found) / 4 == pytest.approx(1 / 3, abs=0.06)
    assert found[0] == factor_vae_score(strange, v, batch=8, votes=12, tests=600, seed=0)
    assert len(set(found)) > 1


def test_a_number_counts_in_units_of_its_own_spread_and_is_pruned_by_it():
    v = grid(4, 4)
    own = v.double()
    for code in (own * torch.tensor([0.1, 30.0]), own * torch.tensor([30.0, 0.1])):
        assert factor_vae_score(code, v, batch=8, **VOTES) == 1
    spread = float(own[:, 0].std(unbiased=False))
    for size, score in ((0.06, 1.0), (0.04, 0.5)):
        found = factor_vae_score(own * torch.tensor([size / spread, 1.0]), v, batch=8, **VOTES)
        assert found == pytest.approx(score, abs=0.1)


def test_concentration_weighs_rows_by_their_share_and_counts_in_the_base_of_their_length():
    R = np.array([[0.6, 0.0, 0.0], [0.1, 0.1, 0.1]])
    assert _concentration(R) == pytest.approx(0.6 / 0.9)
    assert _concentration(R.T) == pytest.approx(
        (0.7 * (1 - (-(6 / 7) * math.log2(6 / 7) - (1 / 7) * math.log2(1 / 7))) + 0.1 + 0.1) / 0.9)


def test_accuracies_are_those_of_rows_that_were_held_out():
    """A number that is noise: a forest knows its own rows by heart, and the others by chance."""
    v = grid(4, 4).repeat(20, 1)
    noise = torch.randn(320, 1, generator=generator(0), dtype=torch.float64)
    assert dci(noise, v, learner=FOREST).informativeness < 0.45


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codes", "factors", "words"), [
    (torch.zeros(5, 2), torch.zeros(4, 2).long(), "two tables"), (torch.zeros(5), torch.zeros(5).long(), "two tables"),
    (torch.zeros(5, 2), torch.rand(5, 2), "cut quantities"), (torch.zeros(5, 2), -torch.ones(5, 2).long(), "from 0"),
    (torch.full((4, 1), torch.nan), grid(2, 2), "NaN"), (torch.zeros(4, 1), torch.zeros(4, 1).long(), "no entropy"),
])
@pytest.mark.parametrize("metric", [mig, factor_vae_score, sap, dci])
def test_mistakes_get_one_sentence(metric, codes, factors, words):
    with pytest.raises(ValueError, match=words):
        metric(codes, factors)


@pytest.mark.parametrize(("call", "words"), [
    (lambda c, v: mig(c, v, bins=0), "bins=0"), (lambda c, v: mig(c, v, bins=2.5), "bins=2.5"),
    (lambda c, v: binned(c * torch.nan), "NaN"), (lambda c, v: binned(c[:0]), "a row"),
    (lambda c, v: factor_vae_score(c, v, batch=1), "batch=1"), (lambda c, v: factor_vae_score(c, v, votes=0), "votes"),
    (lambda c, v: factor_vae_score(c, v, tests=0), "tests=0"), (lambda c, v: sap(c[3:6], v[3:6]), "3 rows"),
    (lambda c, v: dci(c.numpy(), v), "torch tensors"),
])
def test_settings_that_are_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(torch.randn(16, 2, generator=generator(0)), grid(4, 4))
