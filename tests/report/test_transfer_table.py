"""The table of a paper on transfer, on outcomes that are written down by hand."""
import numpy as np
import pytest
from scipy.stats import binomtest

from kit.report import holm, paired, transfer_means, transfer_summary, transfer_table, wilson


def right(count, n=100):
    """The victim has the last `count` of n images right."""
    return np.arange(n) >= n - count


OUTCOME = {
    ("a", "BIM"): {"a": right(0), "b": right(60), "both": right(30)},
    ("a", "ATA"): {"a": right(0), "b": right(20), "both": right(29)},
    ("b", "BIM"): {"a": right(40), "b": right(5), "both": right(30)},
    ("b", "ATA"): {"a": right(70), "b": right(5), "both": right(30)},
}


def test_cells_hold_the_metric_its_interval_the_best_and_what_is_real():
    found = transfer_table(OUTCOME, ours="ATA")
    assert found.columns == ["source", "attack", "a", "b", "both"]
    bim, ata, other, worse = found.rows
    low, high = wilson(60, 100)
    assert bim[3] == f"60.0 [{100 * low:.0f}, {100 * high:.0f}] ▲"
    assert other[2].endswith("▼")  # here BIM is the better one
    assert "▲" not in bim[4]  # one image of a hundred
    assert "<strong>20.0" in found.html()
    assert "<strong>60.0" not in found.html()
    assert "**20.0" in found.markdown()
    assert "**20.0" in repr(found)
    assert found.html().count("<strong>0.0") == 2  # a tie is bold twice
    assert "▲" not in ata[3]
    assert "▼" not in worse[2]  # marks stand with the others


def test_the_fooling_rate_is_what_accuracy_leaves():
    found = transfer_table(OUTCOME, metric="fooling rate", intervals=False)
    assert [row[3] for row in found.rows] == ["40.0", "80.0", "95.0", "95.0"]
    assert "<strong>80.0" in found.html()


def test_the_summary_averages_over_other_networks_image_by_image():
    means = transfer_means(OUTCOME, victims=["a", "b"])
    assert means["BIM"].shape == (100,)
    assert means["BIM"].mean() == pytest.approx(0.5)
    assert means["ATA"].mean() == pytest.approx(0.45)
    rows = transfer_summary(OUTCOME, ours="ATA", victims=["a", "b"]).rows
    assert rows[0][2].startswith("5.0 [")
    assert rows[1][2] == ""
    rows = transfer_summary(OUTCOME, ours="ATA", victims=["a", "b"], metric="fooling rate").rows
    assert rows[0][1].startswith("50.0")
    assert rows[0][2].startswith("5.0 [")


def test_holm_steps_down():
    assert holm({1: 0.01, 2: 0.02, 3: 0.04}) == {1, 2, 3}
    assert holm({1: 0.04, 2: 0.02, 3: 0.03}) == set()
    assert holm({1: 0.001, 2: 0.03, 3: 0.2}) == {1}
    assert holm({}) == set()


def test_marks_need_more_than_one_test_would():
    """Nine images of 100 fooled by one attack alone: significant once, not among thirty comparisons."""
    base, more = right(50), right(41)
    assert paired(base, more) == pytest.approx(binomtest(0, 9).pvalue)
    assert paired(base, more) < 0.05
    one = {("s", "BIM"): {"v": base}, ("s", "ATA"): {"v": more}}
    assert "▲" in transfer_table(one, ours="ATA").rows[0][2]
    many = {("s", "BIM"): {f"v{i}": base if i == 0 else right(50) for i in range(30)},
            ("s", "ATA"): {f"v{i}": more if i == 0 else right(50) for i in range(30)}}
    assert "▲" not in transfer_table(many, ours="ATA").rows[0][2]
    assert "▲" not in transfer_table(one, ours="ATA", against=["TAP"]).rows[0][2]


def test_outcomes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="same N images"):
        transfer_table({("a", "BIM"): {"a": right(3), "b": right(3, 50)}})
    with pytest.raises(ValueError, match="metric"):
        transfer_table(OUTCOME, metric="success")
    with pytest.raises(ValueError, match="no outcomes"):
        transfer_table({})
