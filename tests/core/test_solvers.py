import torch

from kit.core import generator
from kit.core.solvers import conjugate_gradients


def spd(eigenvalues, seed=0):
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.double, generator=generator(seed)))[0]
    return Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.double)) @ Q.T


def test_it_solves_each_row_in_as_many_steps_as_there_are_eigenvalues():
    H, seen = spd([1.0, 1, 1, 5, 5, 20]), []
    v = torch.randn(3, 6, dtype=torch.double, generator=generator(1))
    v[1] = 0
    h, left, curvature = conjugate_gradients(lambda p: p @ H, v, tol=1e-10, steps=50, watch=seen.append)
    assert torch.allclose(h, torch.linalg.solve(H, v.T).T)
    assert len(seen) == 3
    assert torch.equal(seen[-1], h)
    assert float(left.max()) <= 1e-10
    assert float(curvature.min()) > 1


def test_it_stops_before_a_direction_of_negative_curvature():
    H = spd([-1.0, 2, 3, 4])
    v = torch.ones(1, 4, dtype=torch.double)
    h, left, curvature = conjugate_gradients(lambda p: p @ H, v, tol=1e-9, steps=50)
    assert float(curvature) <= 0
    assert float(left) > 1e-3
    value = 0.5 * h @ H @ h.T - h.sum()
    assert float(value) < 0 or not bool(h.any())
    _, left, _ = conjugate_gradients(lambda p: p @ spd([1.0, 9, 25, 70]), v, tol=1e-9, steps=2)
    assert float(left) > 1e-9  # and says how much is left
