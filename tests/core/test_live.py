"""The images still worked on: state that shrinks together, the best that is kept, and a search per image."""
import pytest
import torch

from kit.core import Draws, Goal, Live, MisleadingModel, QueryCounter, leaf, uniform


def live(linear, n=6):
    model, x, y = linear
    counter = QueryCounter(model, n)
    return Live(counter, x[:n], Goal(y[:n]), Draws(n)), counter, x[:n], y[:n]


def test_all_state_loses_the_same_rows(linear):
    images, counter, x, y = live(linear)
    run = images.again(rate=0.5, w=x * 2)
    run.adam(run.w, torch.ones_like(x), 0.1)
    run.drop(torch.tensor([True, False, False, True, False, False]))
    left = torch.tensor([1, 2, 4, 5])
    assert torch.equal(run.rows, left)
    assert torch.equal(run.x, x[left])
    assert torch.equal(run.w, 2 * x[left])
    assert torch.equal(run.goal.y, y[left])
    assert run.rate.tolist() == [0.5] * 4
    assert len(run) == len(run.draws) == len(run.memory["m"]) == 4
    run.drop(torch.tensor([False, True, False, False]))
    assert run.rows.tolist() == [1, 4, 5]
    run.ask(run.x)
    assert counter.counts.tolist() == [0, 1, 0, 0, 1, 1]
    assert len(images) == 6  # the run was one of its own


def test_a_subset_keeps_its_places(linear):
    images, counter, x, y = live(linear)
    images.drop(torch.tensor([True, False, False, False, False, False]))
    part = images.again(torch.tensor([1, 3]), c=2.0).among(torch.tensor([1]))
    assert part.rows.tolist() == [4]
    assert torch.equal(part.x, x[4:5])
    assert part.c.tolist() == [2.0]
    part.ask(part.x)
    assert counter.counts.tolist() == [0, 0, 0, 0, 1, 0]


def test_the_best_reaches_the_goal_first_and_has_the_greatest_score_then(linear):
    images, _, x, _ = live(linear, 3)
    no, yes = torch.tensor([False] * 3), torch.tensor([True, False, True])
    images.best(x + 1, torch.tensor([1.0, 1.0, 1.0]), no)
    images.best(x + 2, torch.tensor([0.0, 2.0, 5.0]), yes)  # the first is worse, but reaches the goal
    images.best(x + 3, torch.tensor([9.0, 1.0, 4.0]), yes)
    images.best(x + 4, torch.tensor([99.0, 0.0, 99.0]), no)
    assert [round(float((images.found.x_adv - x)[i].mean())) for i in range(3)] == [3, 2, 2]
    assert images.found.reached.tolist() == [True, False, True]
    assert images.found.score.tolist() == [9.0, 2.0, 5.0]
    assert images.lately.up.tolist() == [True, False, True]


def test_the_nearest_counts_only_where_the_goal_is_reached(linear):
    images, _, x, _ = live(linear, 3)
    hit = torch.tensor([True, False, True])
    images.nearest(x + 1, torch.tensor([3.0, 1.0, 3.0]), hit)
    images.nearest(x + 2, torch.tensor([4.0, 0.5, 2.0]), hit)
    assert [round(float((images.found.x_adv - x)[i].mean())) for i in range(3)] == [1, 0, 2]
    images.drop(torch.tensor([True, False, False]))  # and by index when not all are there
    images.nearest(images.x + 3, torch.tensor([9.0, 1.0]), torch.tensor([True, True]))
    assert [round(float((images.found.x_adv - x)[i].mean())) for i in range(3)] == [1, 3, 3]


def test_the_search_grows_tenfold_and_then_halves(linear):
    images, _, x, _ = live(linear, 3)
    needed, asked = torch.tensor([0.05, 3.0, 1e9]), []
    for run in images.search("c", 0.01, 6):
        asked.append(run.c)
        run.nearest(run.x, run.c, run.c >= needed)
    seen = torch.stack(asked, 1)
    assert seen[0].tolist() == pytest.approx([0.01, 0.1, 0.055, 0.0325, 0.04375, 0.049375])
    assert seen[1].tolist() == pytest.approx([0.01, 0.1, 1.0, 10.0, 5.5, 3.25])
    assert seen[2].tolist() == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])


def test_images_that_cannot_move_are_pointed_out_once_but_not_those_that_need_not(linear):
    images, _, x, _ = live(linear, 3)
    v = leaf(x)
    with pytest.warns(MisleadingModel, match="exactly zero for 3 of 3"):
        images.grad((v * 0).flatten(1).sum(1), v)
    images.grad((v * 0).flatten(1).sum(1), v)
    others, *_ = live(linear, 3)
    others.best(x, torch.zeros(3), torch.tensor([True, True, False]))
    with pytest.warns(MisleadingModel, match="exactly zero for 1 of 3"):
        others.grad((v * 0).flatten(1).sum(1), v)


def test_a_term_beside_others_does_not_hide_a_gradient_that_vanishes(linear):
    model, x, y = linear
    images = Live(lambda v: model((v * 4).round() / 4 + 0 * v), x[:3], Goal(y[:3]))
    v = leaf(x[:3])
    with pytest.warns(MisleadingModel, match="exactly zero for 3 of 3"):
        images.lead(images.ask(v), v)


def test_a_model_without_a_gradient_is_refused(linear):
    images, _, x, _ = live(linear, 3)
    with pytest.raises(ValueError, match="has no gradient"):
        images.grad(torch.zeros(3), leaf(x))


def test_a_name_that_was_never_given_is_said(linear):
    with pytest.raises(AttributeError, match="no 'rate'"):
        _ = live(linear)[0].rate


def test_a_search_goes_on_among_those_that_are_left(linear):
    images, *_ = live(linear, 4)
    images.drop(torch.tensor([False, True, False, False]))
    seen = []
    for run in images.search("c", 1.0, 2):
        seen.append(run.c)
        run.nearest(run.x, run.c, torch.tensor([True, False, True]))
    assert seen[1].tolist() == [0.5, 10.0, 0.5]


def test_another_order_of_the_images_puts_each_where_it_belongs(linear):
    images, _, x, _ = live(linear, 4)
    run = images.again(torch.tensor([3, 2, 1, 0]))
    run.best(run.x + 1, torch.ones(4), torch.ones(4, dtype=torch.bool))
    assert torch.allclose(images.found.x_adv, x + 1)


def test_a_part_has_the_streams_and_the_state_of_its_own_images(linear):
    images, _, x, _ = live(linear, 4)
    images.far = torch.zeros(4, 2, 3, 4, 4)
    part = images.among(torch.tensor([2]))
    assert torch.equal(uniform(part.x, part.draws), uniform(x, Draws(4))[2:3])
    images.drop(torch.tensor([True, False, False, False]))
    assert images.far.shape == (3, 2, 3, 4, 4)
