"""Projections against a general solver, steps against their definition."""
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from kit.core import ball, generator
from kit.core.balls import L1, L2, Linf

NORMS = {"linf": (Linf, 0.2), "l2": (L2, 0.7), "l1": (L1, 1.5)}


def points(n=6, seed=0, spread=0.6):
    source = generator(seed)
    x = torch.rand(n, 1, 3, 3, generator=source, dtype=torch.float64)
    return x, x + spread * torch.randn(n, 1, 3, 3, generator=source, dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point_of_ball_and_box(norm):
    kind, eps = NORMS[norm]
    x, z = points()
    ours = ball(norm, eps).project(z, x)
    for i in range(len(x)):
        a, b = x[i].flatten().numpy(), z[i].flatten().numpy()
        # δ = p − q with p, q ≥ 0 makes every one of the balls smooth or linear for the solver
        p_room, q_room = 1 - a, a
        start = np.full(18, 1e-3)
        used = {
            "linf": None, "l2": lambda v: eps**2 - ((v[:9] - v[9:]) ** 2).sum(), "l1": lambda v: eps - v.sum(),
        }[norm]
        cap = eps if norm == "linf" else np.inf
        found = minimize(
            lambda v, a=a, b=b: ((a + v[:9] - v[9:] - b) ** 2).sum(), start, method="SLSQP",
            bounds=[(0, min(r, cap)) for r in np.concatenate([p_room, q_room])],
            constraints=[] if used is None else [{"type": "ineq", "fun": used}],
            options={"ftol": 1e-14, "maxiter": 500})
        reached = ((ours[i].flatten().numpy() - b) ** 2).sum()
        assert reached <= found.fun + 1e-7
    assert (kind.norm(ours - x) <= eps + 1e-9).all()
    assert (ours >= 0).all()
    assert (ours <= 1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_projection_leaves_points_inside_alone(norm):
    x, _ = points()
    x = x * 0.5 + 0.25
    z = x + 0.01
    assert torch.allclose(ball(norm, NORMS[norm][1]).project(z, x), z, atol=1e-12)


def test_projection_where_rounding_fills_the_ball_by_the_box():
    """One pixel, its room in the box a rounding more than eps: all that the ball allows is in the box, or not quite."""
    x = 0.1 + 0.8 * torch.rand(5000, 1, 1, 1, generator=generator(2))
    room = (1 - x).flatten()
    eps = room.nextafter(torch.zeros_like(room))
    found = L2(eps).project(x + 3, x)
    assert torch.allclose((found - x).flatten(), eps, rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_step_climbs_most_within_its_length(norm):
    kind, _ = NORMS[norm]
    source = generator(1)
    z = torch.full((4, 1, 3, 3), 0.5)
    g = torch.randn(4, 1, 3, 3, generator=source)
    d = kind.step(z, g, 0.1) - z
    assert torch.allclose(kind.norm(d), torch.full((4,), 0.1), atol=1e-6)
    dual = {"linf": g.abs().flatten(1).sum(1), "l2": g.flatten(1).norm(dim=1), "l1": g.abs().flatten(1).amax(1)}[norm]
    assert torch.allclose((d * g).flatten(1).sum(1), 0.1 * dual, atol=1e-6)


def test_l1_step_fills_the_room_that_the_box_leaves():
    z = torch.tensor([0.9, 0.5, 0.5]).view(1, 1, 1, 3)
    g = torch.tensor([3.0, -2.0, 1.0]).view(1, 1, 1, 3)
    assert torch.allclose(L1.step(z, g, 0.3).flatten(), torch.tensor([1.0, 0.3, 0.5]))


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_fill_the_ball_and_repeat(norm):
    kind, eps = NORMS[norm]
    x = torch.full((200, 1, 2, 2), 0.5)
    within = ball(norm, eps * 0.3)
    r = kind.norm(within.random(x, generator(0)) - x) / (eps * 0.3)
    assert r.max() <= 1 + 1e-5
    assert abs(float((r**4).mean()) - 0.5) < 0.1  # the radius of a uniform point in 4 dimensions: r⁴ is uniform
    assert torch.equal(within.random(x, generator(0)), within.random(x, generator(0)))


def test_one_eps_per_image():
    x, z = points()
    eps = torch.linspace(0.1, 0.6, len(x), dtype=x.dtype)
    for norm, (kind, _) in NORMS.items():
        together = ball(norm, eps).project(z, x)
        alone = torch.cat([ball(norm, float(e)).project(z[i:i + 1], x[i:i + 1]) for i, e in enumerate(eps)])
        assert torch.allclose(together, alone, atol=1e-9), norm
        assert (kind.norm(together - x) <= eps + 1e-9).all()


@pytest.mark.parametrize(("norm", "eps", "words"), [
    ("inf", 0.1, "norm must be"), ("linf", 8, "8/255"), ("l2", -1.0, "zero or more"),
    ("linf", float("nan"), "zero or more"),
])
def test_senseless_balls_are_refused(norm, eps, words):
    with pytest.raises(ValueError, match=words):
        ball(norm, eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_zero_gradient_does_not_move_in_any_precision(norm, dtype):
    x = torch.full((2, 1, 3, 3), 0.5, dtype=dtype)
    g = torch.zeros_like(x)
    g[1] = 1
    moved = ball(norm, 0.5).step(x, g, 0.1) - x
    assert not moved[0].any()
    assert bool(moved[1].any())
    assert bool(moved.isfinite().all())
