import numpy as np
import pytest

from kit.defend.game import informed, solve


def test_rock_paper_scissors_is_worth_nothing_and_all_three_are_played_alike():
    M = np.array([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]])
    found = solve(M)
    assert found.value == pytest.approx(0, abs=1e-9)
    assert found.attacker == pytest.approx([1 / 3] * 3)
    assert found.defender == pytest.approx([1 / 3] * 3)
    assert (found.maximin, found.minimax) == (-1, 1)


def test_a_game_of_two_without_a_saddle_point():
    """[[a, b], [c, d]] with a, d < b, c: v = (ad − bc)/(a + d − b − c), here (0.02 − 0.72)/(0.3 − 1.7)."""
    found = solve(np.array([[0.1, 0.9], [0.8, 0.2]]))
    assert found.value == pytest.approx(0.5)
    assert found.attacker == pytest.approx([0.6 / 1.4, 0.8 / 1.4])  # the defender is indifferent between his columns
    assert found.defender == pytest.approx([0.5, 0.5])
    assert (found.maximin, found.minimax) == (0.2, 0.8)
    assert (found.best_defender, found.best_attacker) == (1, 1)


def test_dominated_rows_and_columns_are_not_played():
    M = np.array([[0.1, 0.9, 0.05], [0.8, 0.2, 0.15], [0.9, 0.95, 0.3]])  # the last of each is worse than another
    found = solve(M)
    assert found.value == pytest.approx(0.5)
    assert found.attacker[2] == pytest.approx(0, abs=1e-9)
    assert found.defender[2] == pytest.approx(0, abs=1e-9)


def test_a_saddle_point_is_played_purely_and_sides_are_not_exchanged():
    found = solve(np.array([[0.4, 0.1], [0.7, 0.9]]))  # row 0, and so column 0
    assert found.value == pytest.approx(0.4)
    assert found.maximin == found.minimax == 0.4
    assert found.attacker == pytest.approx([1, 0])
    assert found.defender == pytest.approx([1, 0])


def test_neither_side_can_do_better_than_its_mixture_promises():
    source = np.random.default_rng(0)
    for A, D in ((3, 5), (6, 2), (1, 4), (4, 1)):
        M = source.random((A, D))
        found = solve(M)
        assert found.attacker.sum() == pytest.approx(1)
        assert found.defender.sum() == pytest.approx(1)
        assert (M @ found.defender).min() == pytest.approx(found.value)
        assert (found.attacker @ M).max() == pytest.approx(found.value)
        assert found.maximin <= found.value + 1e-12
        assert found.value <= found.minimax + 1e-12


def test_who_sees_the_image_chooses_for_each():
    """Two images, two defenders: attack 0 takes the first image of defender 0 and the second of defender 1, attack 1
    the others. On the mean all is a half; who sees the image takes it from either defender."""
    held = np.array([[[0, 1], [1, 0]], [[1, 0], [0, 1]]], dtype=float)  # (A, D, N)
    assert solve(held.mean(2)).value == pytest.approx(0.5)
    value, q = informed(held)
    assert value == pytest.approx(0.5)  # the draw is secret: he is right about it half the time
    assert q == pytest.approx([0.5, 0.5])
    assert held.min(0).mean(1).max() == 0  # no defender alone keeps any


def test_informed_is_never_more_and_is_the_same_without_a_choice():
    source = np.random.default_rng(1)
    for _ in range(5):
        held = (source.random((3, 4, 30)) < 0.6).astype(float)
        value, q = informed(held)
        assert value == pytest.approx((np.einsum("adn,d->an", held, q)).min(0).mean())
        assert held.min(0).mean(1).max() - 1e-9 <= value <= solve(held.mean(2)).value + 1e-9
        one, _ = informed(held[:1])
        assert one == pytest.approx(held[0].mean(1).max())
        assert informed(np.repeat(held, 3, axis=2))[0] == pytest.approx(value)  # images count, and not their order
        assert informed(held[..., ::-1])[0] == pytest.approx(value)


def test_what_makes_no_sense():
    for wrong in (np.zeros((0, 2)), np.zeros(3), np.array([[np.nan]])):
        with pytest.raises(ValueError, match="finite matrix"):
            solve(wrong)
    with pytest.raises(ValueError, match="attackers, defenders, images"):
        informed(np.zeros((2, 2)))
