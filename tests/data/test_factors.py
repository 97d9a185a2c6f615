"""The factor set: every combination once, each image another one, and drawn as its factors say."""
import itertools

import pytest
import torch

import kit.data
from kit.data import factors
from kit.data.factors import LEVELS, draw, read, table


def test_every_combination_is_there_once():
    data = kit.data.load("factors")
    v = table(data)
    assert data.x.shape == (768, 1, 16, 16)
    assert sorted(map(tuple, v.tolist())) == list(itertools.product(range(3), range(4), range(8), range(8)))
    assert len(data.x.flatten(1).unique(dim=0)) == 768
    assert torch.equal(data.y, v[:, 0])
    assert torch.equal(kit.data.load("factors", "train").x, data.x)
    some = kit.data.load("factors", n=30, seed=1)
    assert torch.equal(some.x, draw(table(some)))
    assert some.y.bincount().tolist() == [10, 10, 10]


def test_an_image_shows_its_factors():
    """The middle of mass moves with column and row alone, the mass grows with the size."""
    data = kit.data.load("factors")
    v, x = table(data), data.x[:, 0].double()
    axis = torch.arange(16).double()
    mass = x.sum((1, 2))
    across, down = (x.sum(1) @ axis) / mass, (x.sum(2) @ axis) / mass
    assert torch.allclose(across, 7.5 + 8 * torch.tensor(factors.PLACES).double()[v[:, 2]], atol=0.35)
    for shape, size in itertools.product(range(3), range(4)):
        rows = (v[:, 0] == shape) & (v[:, 1] == size)
        assert (down[rows].view(8, 8).diff(dim=1) > 0.9).all()
    by_size = mass.view(3, 4, 64).mean(2)
    assert (by_size.diff(dim=1) > 3).all()
    assert (data.x == data.x.clamp(0, 1)).all()
    square = data.x[(v == torch.tensor([0, 3, 0, 0])).all(1)][0, 0]
    assert torch.equal(square, square.T)


def test_the_reader_reads_the_set_without_an_error_and_a_little_noise_with_none_either():
    data = kit.data.load("factors")
    noisy = (data.x + 0.02 * torch.randn(data.x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for x in (data.x, noisy):
        assert torch.equal(read(x), table(data))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: draw(torch.tensor([[3, 0, 0, 0]])), "shape below 3"), (lambda: draw(torch.zeros(1, 3).long()), "N, 4"),
    (lambda: draw(torch.zeros(1, 4)), "whole numbers"), (lambda: read(torch.zeros(1, 1, 28, 28)), "16"),
    (lambda: table(kit.data.load("digits", n=2)), "load\\('factors'\\)"),
    (lambda: kit.data.load("factors", n=769), "768"),
    (lambda: kit.data.load("factors", size=3), "no option 'size'"),
])
def test_mistakes_get_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_all_levels_have_names():
    assert {k: len(v) for k, v in factors.NAMES.items()} == LEVELS
