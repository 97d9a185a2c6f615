"""Outcomes, image by image: the table of a paper on transfer, its summary, and how they are kept."""
import json

import numpy as np
import pytest
from scipy.stats import binomtest

from kit.report import Measured, Outcomes, holm, mean, paired, share, wilson

NAMES = ("source", "attack", "victim")


def right(count, n=100):
    """The victim has the last `count` of n images right."""
    return np.arange(n) >= n - count


def some(found):
    return Outcomes(NAMES, {(s, a, v): values for (s, a), row in found.items() for v, values in row.items()})


FOUND = some({
    ("a", "BIM"): {"a": right(0), "b": right(60), "both": right(30)},
    ("a", "ATA"): {"a": right(0), "b": right(20), "both": right(29)},
    ("b", "BIM"): {"a": right(40), "b": right(5), "both": right(30)},
    ("b", "ATA"): {"a": right(70), "b": right(5), "both": right(30)},
})  # fmt: skip
OTHERS = FOUND.where(victim=("a", "b")).apart("source", "victim")


def shown(found, **given):
    return found.table(("source", "attack"), "victim", **given)


def test_cells_hold_the_share_its_interval_the_best_and_what_is_real():
    found = shown(FOUND, ours="ATA")
    assert found.columns == ["source", "attack", "a", "b", "both"]
    bim, ata, other, worse = found.rows
    low, high = wilson(60, 100)
    assert bim[3] == f"60.0 [{100 * low:.0f}, {100 * high:.0f}] ▲"
    assert other[2].endswith("▼")  # here BIM is the better one
    assert "▲" not in bim[4]  # one image of a hundred
    assert "<strong>20.0" in found.html()
    assert "<strong>60.0" not in found.html()
    assert found.html().count("<strong>0.0") == 2  # a tie is bold twice
    assert "▲" not in ata[3]
    assert "▼" not in worse[2]  # marks stand with the others


def test_the_opposite_is_what_is_left_and_the_other_end_is_best():
    found = shown(~FOUND, better="higher", ours="ATA", intervals=False)
    assert [row[3].split()[0] for row in found.rows] == ["40.0", "80.0", "95.0", "95.0"]
    assert "<strong>80.0" in found.html()
    assert found.rows[0][3].endswith("▲")
    assert "<strong>40.0" in shown(~FOUND, intervals=False).html()


def test_the_summary_averages_over_other_networks_image_by_image():
    means = OTHERS.means("attack")
    assert means["BIM"].shape == (100,)
    assert (means["BIM"].mean(), means["ATA"].mean()) == pytest.approx((0.5, 0.45))
    rows = OTHERS.summary("attack", ours="ATA").rows
    assert rows[0][1:] == [OTHERS.estimates("attack")["BIM"].text(), OTHERS.gain("attack", "BIM", "ATA").text()]
    assert rows[0][2].startswith("5.0 [")
    assert rows[1][2] == ""
    rows = (~OTHERS).summary("attack", ours="ATA", better="higher", what="fooling rate").rows
    assert rows[0][2].startswith("5.0 [")
    assert (~OTHERS).gain("attack", "ATA", "BIM").value == pytest.approx(0.05)
    assert OTHERS.gain("attack", "ATA", "BIM").value == pytest.approx(-0.05)


def test_a_gain_is_paired():
    a, b = np.arange(100) < 50, np.arange(100) < 51
    found = Outcomes(("attack",), {"A": a, "B": b}).gain("attack", "B", "A")
    assert found.value == pytest.approx(0.01)
    assert found.low >= 0  # image by image the difference is never negative
    assert found == mean(b.astype(float) - a)


def test_settings_are_chosen_by_their_parts():
    assert list(FOUND.where(source="a", victim="b")) == [("a", "BIM", "b"), ("a", "ATA", "b")]
    assert list(FOUND.apart("source", "victim").where(attack="ATA")) == [
        ("a", "ATA", "b"), ("a", "ATA", "both"), ("b", "ATA", "a"), ("b", "ATA", "both")]  # fmt: skip
    assert len(FOUND) == 12
    with pytest.raises(ValueError, match="source, attack, victim, and no 'net'"):
        FOUND.where(net="a")


@pytest.mark.parametrize("n", [1, 7, 8, 9, 500])
def test_what_is_kept_comes_back(n):
    truth = Outcomes(("a", "b"), {("x", "γ = 1"): np.arange(n) % 3 == 0, ("y", "1"): np.arange(n) % 2 == 0})
    again = Outcomes.unpacked(json.loads(json.dumps(truth.packed())))
    assert (again.names, again.n, list(again)) == (("a", "b"), n, list(truth))
    assert all((again[setting] == values).all() and values.dtype == bool for setting, values in truth.items())
    numbers = Outcomes(("a",), {"x": np.linspace(-1, 1, n), "y": np.zeros(n)})
    again = Outcomes.unpacked(json.loads(json.dumps(numbers.packed())))
    assert all(again[setting] == pytest.approx(values, rel=1e-6) for setting, values in numbers.items())
    apart = [Outcomes(truth.names, {setting: values}).packed() for setting, values in truth.items()]
    assert Outcomes.unpacked(*apart).packed() == truth.packed()
    if n == 500:
        assert len(json.dumps(truth.packed())) < 2 * 126 + 110  # four images a digit


def test_the_full_profile_keeps_and_the_quick_one_reads_and_compares(tmp_path):
    path = tmp_path / "measured.json"
    large = Outcomes(("attack",), {"BIM": right(40), "ATA": right(50)})
    assert large.kept(Measured(path, write=True), "digits") is large
    small = Outcomes(("attack",), {"BIM": right(40)[:50]})
    quick = Measured(path, write=False)
    back = small.kept(quick, "digits")
    assert (back["ATA"] == right(50)).all()
    assert small.agreement(back) == 1
    small["BIM"] = ~right(40)[:50]
    assert small.agreement(back) == 0
    assert "BIM" in path.read_text()


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
    one = some({("s", "BIM"): {"v": base}, ("s", "ATA"): {"v": more}})
    assert "▲" in shown(one, ours="ATA").rows[0][2]
    many = some({("s", "BIM"): {f"v{i}": base if i == 0 else right(50) for i in range(30)},
                 ("s", "ATA"): {f"v{i}": more if i == 0 else right(50) for i in range(30)}})  # fmt: skip
    assert "▲" not in shown(many, ours="ATA").rows[0][2]
    assert "▲" not in shown(one, ours="ATA", against=["TAP"]).rows[0][2]


def test_outcomes_that_do_not_fit_are_refused():
    found = Outcomes(("attack", "victim"))
    with pytest.raises(ValueError, match="no outcomes"):
        found.n  # noqa: B018
    found["BIM", "a"] = right(3)
    for setting, values, words in (
        (("BIM", "b"), right(3, 50), "the 100 images"), (("BIM", "b"), np.ones((2, 100)), r"\(N,\)"),
        ("BIM", right(3), "names its attack, victim"), (("a/b", "c"), right(3), "without a slash"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            found[setting] = values
    with pytest.raises(ValueError, match="fall into the cell"):
        shown(Outcomes((*NAMES, "steps"), {("a", "b", "c", k): right(3) for k in "12"}))
    with pytest.raises(ValueError, match="'higher' or 'lower'"):
        shown(FOUND, better="more")


def test_estimates_are_written_one_way():
    assert share(1, 4).text() == "25.0 [4.6, 69.9]"
    assert share(1, 4)[1:3] == wilson(1, 4)
    assert mean([0.0, 1.0]).n == 2
    assert mean([1, 1, 1]).text(scale=1, decimals=2, sign=True) == "+1.00 [+1.00, +1.00]"
