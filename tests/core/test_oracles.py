"""Oracles asked by hand, with a memory of their own: where they look, and whose chance they use."""
import torch

from kit.core import generator
from kit.core.oracles import ahead, diverse


def test_the_point_ahead_is_where_the_momentum_leads():
    v, m = (torch.randn(2, 1, 3, 3, generator=generator(seed)) for seed in (0, 1))
    reach, seen = torch.tensor([0.1, 0.2]), []

    def look(f, at, memory):
        seen.append(at)
        return f(at), at

    for memory in ({"reach": reach}, {"reach": reach, "m": m}, {"reach": 0.3, "m": m}):
        ahead(look, mu=0.5)(lambda u: u.flatten(1).sum(1), v, memory)
    assert torch.equal(seen[0], v)  # before there is a momentum
    assert torch.allclose(seen[1] - v, torch.stack([0.05 * m[0], 0.1 * m[1]]), atol=1e-6)
    assert torch.allclose(seen[2] - v, 0.15 * m, atol=1e-6)


def test_the_same_draws_give_the_same_transformations():
    v, state = torch.rand(2, 1, 8, 8, generator=generator(0)), torch.get_rng_state()
    f = lambda u: (u.square() * torch.arange(64.0).view(8, 8)).flatten(1).sum(1)  # noqa: E731

    def slopes(seed):
        memory, oracle = {"draws": generator(seed)}, diverse(lambda f, v, memory: (f(v), f(v)), 0.8, 1.5)
        return torch.stack([oracle(f, v, memory)[0] for _ in range(40)])

    first, again = slopes(3), slopes(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, slopes(4))
    assert torch.equal(torch.get_rng_state(), state)  # and nobody else's
    plain = (first == f(v)).all(1).float().mean()
    assert 0 < plain < 0.4  # with probability 1 − p = 0.2 it is as it was
