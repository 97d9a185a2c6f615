"""Attacks through the prediction interface: what they ask, and what they find where the answer is known."""
import pytest
import torch
from torch import nn

from kit.attacks import simba, square
from kit.attacks.scores.search import share
from kit.core import MisleadingModel, QueryCounter, ball, fooled, generator
from tests.attacks.scores.blind import Blind


def exact_distance(model, x, y):
    """The smallest l∞ radius at which a linear network changes its answer (the box is far)."""
    z, w = model(x), model[1].weight
    gaps = (z.gather(1, y[:, None]) - z) / (w[y][:, None] - w[None]).abs().sum(2)
    return gaps.masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).detach().amin(1)


def test_square_succeeds_above_the_exact_distance_and_never_below(linear):
    model, x, y = linear
    exact = exact_distance(model, x, y)
    above = square(Blind(model), x, y, eps=1.3 * exact, max_queries=1500, p=0.3)
    assert fooled(model, above, y).float().mean() >= 0.95
    assert not fooled(model, square(Blind(model), x, y, eps=0.99 * exact, max_queries=300, p=0.3), y).any()
    assert (ball("linf", 1.0).norm(above - x) <= 1.3 * exact * (1 + 1e-5)).all()


def test_square_towards_a_target(linear):
    model, x, y = linear
    target = (y + 1) % 5
    x_adv = square(model, x, y, eps=0.2, target=target, max_queries=1500, p=0.3)
    assert fooled(model, x_adv, y, target).float().mean() > 0.9
    assert fooled(model, x_adv, y, target).sum() > fooled(model, square(model, x, y, eps=0.2, max_queries=1500), y,
                                                          target).sum()


def test_queries_are_counted_image_by_image_and_the_budget_is_exact(linear):
    model, x, y = linear
    counter = QueryCounter(model, len(x))
    already = y.clone()
    already[:5] = (y[:5] + 1) % 5  # wrong as they are: one query, and the image comes back
    exact = exact_distance(model, x, y)
    x_adv = square(counter, x, already, eps=torch.where(torch.arange(40) < 20, 2.0, 0.5) * exact, max_queries=60, p=0.3)
    hit = fooled(model, x_adv, already)
    assert (counter.counts[:5] == 1).all()
    assert torch.equal(x_adv[:5], x[:5])
    assert (counter.counts[~hit] == 60).all()
    assert not hit[20:].any()
    assert 0 < counter.counts[hit].float().mean() < 60


def proposals(size, queries, channels=1):
    """The stripes, which here nothing is better than, and what is proposed after them."""
    asked = []

    class Record(nn.Module):
        def forward(self, v):
            asked.append(v.clone())
            return torch.tensor([[2.0, 0.0]]).expand(len(v), 2)

    x = torch.full((1, channels, *size), 0.5)
    square(Record(), x, torch.zeros(1, dtype=torch.int64), eps=0.1, max_queries=queries)
    return asked[1 - queries], asked[2 - queries:]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_is_proposed_and_every_proposal_changes_a_square(channels):
    start, rest = proposals((7, 9), 300, channels)
    assert torch.allclose((start - 0.5).abs(), torch.full_like(start, 0.1))
    assert (start == start[:, :, :1]).all()  # stripes from top to bottom
    changed = torch.stack([(v != start)[0].any(0) for v in rest])
    assert changed.any(0).all()
    assert changed.flatten(1).any(1).all()
    for one in changed[:50]:
        rows, columns = one.any(1).nonzero()[:, 0], one.any(0).nonzero()[:, 0]
        side = max(1, round((0.05 * 63) ** 0.5))
        assert rows[-1] - rows[0] < side
        assert columns[-1] - columns[0] < side


def test_the_schedule_is_the_papers():
    assert [share(q, 10000, 0.8) for q in (5, 20, 100, 300, 700, 1500, 3000, 5000, 7000, 9000)] == [
        0.8 / 2**k for k in range(10)]


def test_it_needs_no_gradient_and_repeats(linear):
    model, x, y = linear
    a = square(Blind(model), x, y, eps=0.05, max_queries=50)
    assert torch.equal(a, square(model, x, y, eps=0.05, max_queries=50))
    assert not torch.equal(a, square(model, x, y, eps=0.05, max_queries=50, generator=generator(1)))
    with pytest.raises(ValueError, match="max_queries must be 1 or more"):
        square(model, x, y, eps=0.05, max_queries=0)


def test_a_randomised_model_is_pointed_out(linear):
    model, x, y = linear
    with pytest.warns(MisleadingModel, match="differently when asked twice"):
        square(lambda v: model(v) + torch.rand(len(v), 5), x, y, eps=0.1, max_queries=2)


def test_simba_walks_pixel_by_pixel_and_counts_exactly():
    """Two classes, and the first leads by Σ w_i x_i: each positive weight costs two queries, each other one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, -2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]))
    x = torch.full((1, 1, 2, 2), 0.5)
    counter = QueryCounter(model, 1)
    x_adv = simba(counter, x, torch.tensor([0]), step=0.24, max_queries=100)
    assert fooled(model, x_adv, torch.tensor([0])).all()
    delta = (x_adv - x).flatten() / 0.24
    assert sorted(delta.abs().round().tolist())[-1] >= 1
    assert (delta * torch.tensor([-1.0, 1.0, -1.0, -1.0]) >= 0).all()  # up for the negative weight alone
    kept = delta.abs().round()
    steps = int(kept.sum())
    up = int(kept[1])  # kept at the first asking
    assert int(counter.counts) == 1 + 2 * (steps - up) + up


def test_simba_keeps_only_what_is_better_and_stays_in_its_ball(linear):
    model, x, y = linear
    exact = exact_distance(model, x, y)
    x_adv = simba(Blind(model), x, y, step=0.3, eps=1.5 * exact, max_queries=500)
    assert fooled(model, x_adv, y).float().mean() >= 0.95
    assert (ball("linf", 1.0).norm(x_adv - x) <= 1.5 * exact * (1 + 1e-5)).all()
    assert not fooled(model, simba(Blind(model), x, y, step=0.3, eps=0.99 * exact, max_queries=300), y).any()
    before = None
    for budget in (1, 9, 33):
        value = nn.functional.cross_entropy(
            model(simba(model, x, y, step=1e-3, max_queries=budget)), y, reduction="none").detach()
        assert before is None or ((value >= before).all() and (value > before).any())
        before = value
