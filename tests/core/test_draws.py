"""Each place of a batch has its own stream, whoever else draws and however the batch is cut."""
import pytest
import torch

from kit.core import Draws, generator, normal, uniform


def test_a_place_draws_the_same_whoever_else_is_there():
    x = torch.empty(9, 2, 3)
    for draw in (uniform, normal):
        whole = draw(x, Draws(9))
        assert torch.equal(whole[:4], draw(x[:4], Draws(4)))
        chunks = Draws(9)
        assert torch.equal(whole, torch.cat([draw(x[rows], chunks[rows]) for rows in (slice(0, 5), slice(5, 9))]))
        assert not torch.equal(whole[0], whole[1])
        assert not torch.equal(whole, draw(x, Draws(9, generator(1))))


def test_those_that_are_left_go_on_where_they_were():
    x = torch.empty(4, 3)
    draws = Draws(4)
    first, second = uniform(x, draws), uniform(x, draws)
    again = Draws(4)
    uniform(x, again)
    left = torch.tensor([3, 1])
    assert torch.equal(second[left], uniform(x[left], again[left]))
    assert torch.equal(uniform(x[2:3], again[torch.tensor([False, False, True, False])]), second[2:3])
    assert not torch.equal(first, second)
    third = uniform(x, draws)
    uniform(x[:1], again[[0]])
    assert torch.equal(uniform(x[:1], again[0]), third[:1])


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(IndexError, match="mask"):
        Draws(4)[torch.tensor([True, False])]


def test_what_all_draw_alike_does_not_depend_on_the_chunk():
    draws = Draws(6, generator(3))
    a, b = (torch.rand(3, generator=part.alike()) for part in (draws[:2], draws[2:]))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(3, generator=Draws(6, generator(4)).alike()))


def test_range_spread_and_dtype():
    x = torch.empty(50, 200, dtype=torch.float64)
    u, n = uniform(x, Draws(50), -2, 1), normal(x, Draws(50), 3.0)
    assert u.dtype == torch.float64
    assert -2 <= u.min() < -1.99
    assert 0.99 < u.max() <= 1
    assert n.std() == pytest.approx(3, rel=0.03)
    assert abs(n.mean()) < 0.1


def test_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="3 rows cannot be drawn from the streams of 2 images"):
        uniform(torch.empty(3, 1), Draws(2))
