"""HopSkipJump and Boundary: the distance to a plane, which is known, and the steps that lead there."""
import pytest
import torch

from kit.attacks import boundary, hopskipjump
from kit.core import Progress, QueryCounter, ball, fooled
from tests.attacks.decision.conftest import exact


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hopskipjump_comes_to_the_exact_distance(plane, norm):
    model, x, y, _ = plane
    found = hopskipjump(model, x, y, norm=norm, max_queries=1500)
    assert fooled(model, found, y).all()
    ratio = ball(norm, 1.0).norm(found - x) / exact(plane, norm)
    assert ratio.min() >= 1
    assert ratio.max() < 1.3
    assert ratio.mean() < 1.15


def test_each_norm_is_nearer_in_itself(plane):
    model, x, y, _ = plane
    a, b = (hopskipjump(model, x, y, norm=norm, max_queries=1000) - x for norm in ("l2", "linf"))
    assert (ball("l2", 1.0).norm(a) < ball("l2", 1.0).norm(b)).float().mean() > 0.9
    assert (ball("linf", 1.0).norm(a) > ball("linf", 1.0).norm(b)).float().mean() > 0.9
    with pytest.raises(ValueError, match="norm must be 'l2' or 'linf'"):
        hopskipjump(model, x, y, norm="l1")


def test_boundary_comes_to_the_exact_distance(plane):
    model, x, y, _ = plane
    found = boundary(model, x, y, max_queries=2000)
    assert fooled(model, found, y).all()
    ratio = (found - x).flatten(1).norm(dim=1) / exact(plane)
    assert ratio.min() >= 1
    assert ratio.max() < 1.3


@pytest.mark.parametrize("probes", [20, 60])
def test_hopskipjump_asks_root_t_times_as_many_probes(plane, probes):
    model, x, y, _ = plane
    asked = []

    def record(v):
        asked.append(len(v))
        return model(v)

    hopskipjump(record, x[:1], y[:1], probes=probes, max_queries=12 * probes)
    estimates = [n for n in asked if n > 1]  # each in one pass, since it is less than a chunk; all else is one by one
    assert estimates[:3] == [int(probes * t**0.5) for t in (1, 2, 3)]


def test_the_last_estimate_leaves_what_the_steps_after_it_take(plane):
    model, x, y, _ = plane
    for budget in (150, 260, 700):
        counter, trace = QueryCounter(model, len(x)), Progress(x)
        hopskipjump(counter, x, y, max_queries=budget, trace=trace)
        assert (counter.counts >= budget - 15).all()
        assert (counter.counts <= budget).all()


def test_boundary_steps_shrink_where_they_fail_and_grow_where_they_do_not(plane):
    """With steps that are far too long, and far too short, it comes as near as with those it is given."""
    model, x, y, _ = plane
    for settings in ({"around": 0.9, "towards": 0.5}, {"around": 0.003, "towards": 0.001}):
        found = boundary(model, x[:6], y[:6], max_queries=2000, **settings)
        assert ((found - x[:6]).flatten(1).norm(dim=1) / exact(plane)[:6]).median() < 1.3


def test_boundary_asks_about_the_sphere_at_one_step_in_five(plane):
    """What lies as far from x as the nearest wrong image so far does not come nearer: it measures how flat it is."""
    model, x, y, _ = plane
    asked = []

    def record(v):
        z = model(v)
        asked.append((float((v - x[:1]).norm()), int(z.argmax(1)) != int(y[0])))
        return z

    boundary(record, x[:1], y[:1], max_queries=600)
    best, there = torch.inf, 0
    for far, wrong in asked:
        there += abs(far / best - 1) < 1e-9
        best = min(best, far) if wrong else best
    assert there == pytest.approx(len(asked) / 6, rel=0.1)  # one of six questions
