"""OPT and Sign-OPT: the distance along a ray and its gradient, which a plane gives in closed form."""
import pytest
import torch
from torch import nn

from kit.attacks import opt_attack, sign_opt
from kit.attacks.decision import rays
from kit.core import fooled, generator
from tests.attacks.decision.conftest import exact
from tests.attacks.decision.test_labels import at_the_plane


@pytest.mark.parametrize(("attack", "queries", "worst"), [(sign_opt, 2000, 1.3), (opt_attack, 4000, 1.3)])
def test_they_come_to_the_exact_distance(plane, attack, queries, worst):
    model, x, y, _ = plane
    found = attack(model, x, y, max_queries=queries)
    assert fooled(model, found, y).all()
    ratio = (found - x).flatten(1).norm(dim=1) / exact(plane)
    assert ratio.min() >= 1
    assert ratio.max() < worst


def some_rays(plane, n=6):
    """Directions at 30° and more to the normal, and the distance along them."""
    live, normal = at_the_plane(plane, n)
    aside = torch.randn(n, 90, generator=generator(4), dtype=torch.float64)
    aside = nn.functional.normalize(aside - (aside * normal).sum(1, keepdim=True) * normal)
    theta = nn.functional.normalize(normal + torch.linspace(0.6, 1.2, n).double()[:, None] * aside)
    return live, theta.view_as(live.x), live.size / (theta * normal).sum(1), normal


@pytest.mark.parametrize("guess", [0.5, 0.95, 1.0, 1.02, 2.0])
def test_the_distance_along_a_ray_is_found_from_any_guess(plane, guess):
    live, theta, right, _ = some_rays(plane)
    of = torch.arange(6)
    found = rays.distances(live, theta, of, guess * right, torch.full((6,), 1e-4).double())
    assert (found >= right).all()
    assert (found <= right * (1 + 1e-4 * max(1, guess))).all()
    assert torch.allclose((live.found.x_adv - live.x).flatten(1).norm(dim=1), found)


def test_each_distance_is_found_as_finely_as_its_image_asks_for(plane):
    live, theta, right, _ = some_rays(plane)
    precision = torch.tensor([0.1, 1e-3, 1e-5]).double().repeat(2)
    found = rays.distances(live, theta, torch.arange(6), 0.5 * right, precision)
    assert (found >= right).all()
    assert (found <= right * (1 + precision)).all()


def test_it_begins_in_the_direction_that_the_boundary_is_nearest_in(plane):
    """Of two starts the nearer one lies aside, and the boundary is farther on the way to it."""
    live, theta, right, normal = some_rays(plane)
    aside = live.x + 1.1 * right[:, None, None, None] * theta
    ahead = live.x + 2.5 * live.size[:, None, None, None] * normal.view_as(theta)
    least, live.v = live.size, aside
    rays.aim(live, aside[:, None], 1)
    assert torch.allclose(live.size, right, rtol=2e-3)
    live.v = aside
    rays.aim(live, torch.stack([ahead, aside], 1), 1)
    assert torch.allclose(live.size, least, rtol=2e-3)
    assert torch.allclose(live.v.flatten(1), normal, atol=1e-6)


def test_a_ray_ends_at_the_box(plane):
    live, theta, right, _ = some_rays(plane)
    far = rays.ray(live, theta, 100 * right, torch.arange(6))
    assert far.min() == 0
    assert far.max() == 1
    near = rays.ray(live, theta[:2], 0.5 * right[:2], torch.arange(2))
    assert torch.allclose(near, live.x[:2] + 0.5 * right[:2, None, None, None] * theta[:2])


def test_a_ray_that_never_leaves_stays_finite(plane):
    live, theta, right, _ = some_rays(plane)
    found = rays.distances(live, -theta, torch.arange(6), right, torch.full((6,), 1e-4).double())
    assert torch.allclose(found, right * (1 + rays.GROWTH * 2 ** (rays.WIDER - 1)))
    live.most = int(live.asked.max()) + 3  # two more questions for each image, which has three rays
    before, of = live.asked.clone(), torch.arange(6).repeat_interleave(3)
    rays.distances(live, theta.repeat_interleave(3, 0), of, right[of], torch.full((18,), 1e-4).double())
    assert torch.equal(live.asked - before, torch.full((6,), 2))


def test_a_line_search_shortens_towards_the_normal_and_never_lengthens(plane):
    live, theta, right, normal = some_rays(plane)
    live.v, live.size = theta, right * (1 + 1e-9)
    live.alpha, live.beta = (torch.full((6,), v, dtype=torch.float64) for v in (rays.ALPHA[0], 1e-2))
    rays.line_search(live, -normal.view_as(theta))
    assert (live.size < 0.95 * right).all()
    assert ((live.v.flatten(1) * normal).sum(1) > (theta.flatten(1) * normal).sum(1)).all()
    assert torch.allclose(live.size, exact(plane)[:6] / (live.v.flatten(1) * normal).sum(1), rtol=1e-4)
    before = live.size.clone()
    live.v = nn.functional.normalize(normal).view_as(theta)
    live.size = exact(plane)[:6] * (1 + 1e-9)
    rays.line_search(live, theta)  # nothing is shorter than the normal
    assert torch.allclose(live.size, exact(plane)[:6])
    assert torch.allclose(live.beta, torch.full_like(before, 1e-3))
