"""The slope of distance over log error, on networks whose line is planted."""
import numpy as np
import pytest
import torch
from torch import nn

from kit.diverse import common, log_error, slope


def rights(errors, T=1000):
    """Networks with that many errors of T, each on images of its own."""
    random = np.random.default_rng(0)
    return np.stack([random.permutation(np.arange(T) >= e) for e in errors])


ERRORS = [9, 19, 29, 49, 99, 149, 199, 299]


def planted(errors, b, noise=0.0, at=0.1, N=40, T=1000):
    """distance = at + b log₁₀ error on average, spread over N images."""
    random = np.random.default_rng(1)
    spread = random.normal(0, 0.01, (1, N))
    off = noise * random.normal(size=(len(errors), 1))
    return at + b * log_error(rights(errors, T))[:, None] + spread - spread.mean() + off


@pytest.mark.parametrize("b", [0.03, -0.03])
def test_a_planted_line_is_found_with_its_sign(b):
    found = slope(rights(ERRORS), planted(ERRORS, b))
    assert found.slope.value == pytest.approx(b, abs=1e-9)
    assert found.at[""] == pytest.approx(0.1, abs=1e-9)
    assert found.slope.n == 8
    assert min(found.slope[1:3]) < b < max(found.slope[1:3])
    assert found.slope.low * found.slope.high > 0  # the interval does not hold zero


def test_log_error_counts_half_an_error():
    assert log_error(rights([0, 9, 99])) == pytest.approx(np.log10([0.5 / 1001, 9.5 / 1001, 99.5 / 1001]))
    with pytest.raises(ValueError, match="networks, test images"):
        log_error([True, False])


def test_distances_without_a_line_have_an_interval_that_holds_zero():
    """And one that holds it about as often as it says: 95 % of 100 samples, give or take four standard errors."""
    random, hits = np.random.default_rng(3), 0
    right = rights(ERRORS)
    for seed in range(100):
        off = 0.02 * random.normal(size=(len(ERRORS), 1))
        found = slope(right, 0.1 + off + np.zeros((1, 30)), resamples=200, seed=seed).slope
        hits += found.low <= 0 <= found.high
    assert 80 <= hits <= 100


def test_within_families_the_slope_can_have_the_other_sign():
    """Simpson: each family rises with its error, and the family of larger errors lies lower."""
    few, many = [9, 19, 29, 49], [99, 149, 199, 299]
    distance = np.concatenate([planted(few, 0.03, at=0.2), planted(many, 0.03, at=0.1)])
    families = ["a"] * 4 + ["b"] * 4
    right = rights(few + many)
    over_all, within = slope(right, distance), slope(right, distance, families)
    assert over_all.slope.value < 0 < within.slope.low
    assert within.slope.value == pytest.approx(0.03, abs=2e-3)
    assert within.at["a"] - within.at["b"] == pytest.approx(0.1, abs=5e-3)


def test_few_test_images_widen_the_interval():
    """The error of a network is an estimate too: with the same line, 100 test images say less than 10 000."""
    def width(T):
        errors = [T // 50, T // 25, T // 20, T // 10]
        found = slope(rights(errors, T), planted(errors, 0.03, T=T)).slope
        return found.high - found.low

    assert width(100) > 2 * width(10_000)


class Says(nn.Module):
    """Logits that name the class y + wrong for some images, told apart by their first pixel."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = torch.tensor(wrong)

    def forward(self, x):
        i = (x[:, 0, 0, 0] * 10).round().long()
        return nn.functional.one_hot(self.wrong[i].long(), 2).float()


def test_common_are_the_images_that_all_have_right():
    x = torch.zeros(5, 1, 2, 2)
    x[:, 0, 0, 0] = torch.arange(5) / 10
    y = torch.zeros(5, dtype=torch.int64)
    a, b = Says([0, 1, 0, 0, 0]), Says([0, 0, 0, 1, 0])
    assert common({"a": a, "b": b}, x, y).tolist() == [True, False, True, False, True]
    assert common([a], x, y).tolist() == [True, False, True, True, True]
    with pytest.raises(ValueError, match="no network"):
        common([], x, y)
    with pytest.raises(ValueError, match="no image of 2 is right for all 2 networks"):
        common([a, b], x[[1, 3]], y[:2])


def test_mistakes():
    right, far = rights(ERRORS), planted(ERRORS, 0.03)
    with pytest.raises(ValueError, match="for the 8 networks"):
        slope(right, far[:7])
    with pytest.raises(ValueError, match="three networks"):
        slope(right[:2], far[:2])
    with pytest.raises(ValueError, match="largest that was tried"):
        slope(right, np.where(far > far.mean(), np.inf, far))
    with pytest.raises(ValueError, match="groups has 2 names"):
        slope(right, far, ["a", "b"])
    with pytest.raises(ValueError, match="same error"):
        slope(rights([9] * 4), far[:4])
