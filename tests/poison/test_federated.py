"""Federated learning against what can be said about it by hand: one loop of SGD, one attacker alone, equal updates."""
import math
from functools import partial

import pytest
import torch
from torch import nn

from kit.core import accuracy, generator
from kit.models.families import mlp
from kit.poison.backdoor import Trigger
from kit.poison.federated import (
    Attacker,
    FoolsGold,
    bounded,
    dirichlet_clients,
    federated,
    geometric_median,
    local_training,
    mean,
    median,
    pieces,
    union,
)

SHAPE = (1, 8, 8)
PLAIN = {"lr": 0.1, "momentum": 0.9, "decay": 5e-4}


@pytest.fixture
def images():
    """Three classes, each a bright row of its own, with noise."""
    y = torch.arange(120) % 3
    x = torch.rand(120, *SHAPE, generator=generator(0)) * 0.3
    x[torch.arange(120), 0, 2 + y] += 0.6
    return x, y


@pytest.fixture
def net():
    return mlp(classes=3, size=8, width=8)


@pytest.fixture
def clients(images):
    return dirichlet_clients(images[1], 12, 1.0, generator=generator(1))


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Who holds what

@pytest.mark.parametrize("alpha", [0.05, 0.5, 100.0])
def test_every_image_is_with_one_client_and_every_client_has_one(alpha):
    y = torch.arange(200) % 10
    held = dirichlet_clients(y, 60, alpha, generator=generator(0))
    assert len(held) == 60
    assert min(map(len, held)) >= 1
    assert torch.cat(held).sort().values.tolist() == list(range(200))


def test_a_small_alpha_gives_a_class_to_few_and_a_large_one_the_same_to_all():
    y = torch.arange(4000) % 10

    def share_of_the_commonest(alpha):
        held = dirichlet_clients(y, 20, alpha, generator=generator(0))
        return sum(float(y[own].bincount(minlength=10).max()) / len(own) for own in held) / 20

    few, half, even = map(share_of_the_commonest, (0.05, 0.5, 1000.0))
    assert few > 0.6 > half > 0.2 > even
    assert even == pytest.approx(0.1, abs=0.02)


def test_a_seed_repeats_the_dealing_and_another_does_not():
    y = torch.arange(300) % 10
    first, again, other = (dirichlet_clients(y, 10, generator=generator(s)) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(a.tolist() == b.tolist() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("y", "n", "alpha", "word"), [
    (torch.zeros(5).long(), 6, 0.5, "take fewer clients"), (torch.zeros(5).long(), 0, 0.5, "1 or more"),
    (torch.zeros(5).long(), 2, 0.0, "alpha above 0"),
])  # fmt: skip
def test_what_cannot_be_dealt_is_refused(y, n, alpha, word):
    with pytest.raises(ValueError, match=word):
        dirichlet_clients(y, n, alpha)


# Local training

def test_clients_side_by_side_learn_what_each_learns_by_torch_s_own_sgd(net, images):
    x, y = images
    rows = torch.randint(120, (4, 3, 7), generator=generator(3))
    theta = local_training(net, x[rows], y[rows], **PLAIN)
    for i in range(3):
        alone = mlp(classes=3, size=8, width=8)
        alone.load_state_dict(net.state_dict())
        sgd = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for s in range(4):
            sgd.zero_grad()
            nn.functional.cross_entropy(alone(x[rows[s, i]]), y[rows[s, i]]).backward()
            sgd.step()
        for name, p in alone.named_parameters():
            torch.testing.assert_close(theta[name][i], p.detach(), atol=1e-5, rtol=1e-4)


def test_a_round_is_the_start_plus_eta_times_the_mean_of_the_updates(net, images, clients):
    x, y = images
    seen = []

    def spying(updates, who):
        seen.append((updates, who))
        return mean(updates, who)

    g = federated(net, x, y, clients, rounds=1, per_round=5, eta=0.3, aggregate=spying).model
    torch.testing.assert_close(flat(g), flat(net) + 0.3 * seen[0][0].mean(0))
    assert len(set(seen[0][1].tolist())) == 5


# The loop

def test_honest_clients_learn_the_task_and_the_caller_s_model_is_left_as_it_was(net, images, clients):
    x, y = images
    before, training, state = flat(net), net.training, torch.get_rng_state()
    done = federated(net, x, y, clients, rounds=12, per_round=6, watch=lambda r, m: (r, accuracy(m, x, y)))
    assert [r for r, _ in done.history] == list(range(1, 13))
    assert done.history[-1][1] > 0.95 > accuracy(net, x, y)
    assert torch.equal(flat(net), before)
    assert net.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())


def test_a_seed_repeats_a_training_and_another_does_not(net, images, clients):
    runs = [flat(federated(net, *images, clients, rounds=2, generator=generator(s)).model) for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_every_round_draws_batches_of_its_own(net, images, clients):
    """A server that never moves: what differs between two rounds is what the clients drew."""
    sent = []

    def still(updates, who):
        sent.append(updates[who.argsort()])
        return 0 * updates[0]

    federated(net, *images, clients, rounds=2, per_round=12, steps=1, batch=4, aggregate=still)
    apart = (sent[0] - sent[1]).abs().amax(1)
    assert int((apart > 1e-6).sum()) >= 9  # a client with few images may draw the same


def test_the_cost_is_linear_in_clients_and_steps(net, images, clients):
    passed = []
    net.head.register_forward_hook(lambda module, args, output: passed.append(1))  # once a step, for all clients

    def passes(**how):
        passed.clear()
        federated(net, *images, clients, **how)
        return len(passed) - 2  # the model is asked twice about two images first

    assert passes(rounds=1, per_round=4, steps=3) == 3
    assert passes(rounds=2, per_round=8, steps=5) == 10


def test_who_attacks_changes_neither_what_the_others_draw_nor_what_they_learn(net, images, clients):
    sent = {}

    def spying(name):
        def kept(updates, who):
            sent.setdefault(name, dict(zip(who.tolist(), updates, strict=True)))
            return mean(updates, who)
        return kept

    bad = Attacker(3, Trigger.patch(SHAPE), share=0.5)
    federated(net, *images, clients, rounds=1, per_round=12, aggregate=spying("honest"))
    federated(net, *images, clients, rounds=1, per_round=12, aggregate=spying("attacked"), attackers=[bad])
    for i in range(12):
        same = torch.allclose(sent["honest"][i], sent["attacked"][i], atol=1e-6)
        assert same == (i != 3)


# The attack

def test_an_attacker_scaled_by_n_over_eta_alone_among_the_idle_makes_the_global_model_its_own(net, images, clients):
    x, y = images
    own = {}

    def others_idle(updates, who):
        row = who.tolist().index(4)
        own["theta"] = flat(net) + updates[row] * 0.5 / 6
        return torch.where(who[:, None] == 4, updates, 0.0).mean(0)

    bad = Attacker(4, Trigger.patch(SHAPE), target=1, scale=6 / 0.5, share=0.5)
    g = federated(net, x, y, clients, rounds=1, per_round=6, eta=0.5, aggregate=others_idle, attackers=[bad]).model
    torch.testing.assert_close(flat(g), own["theta"], atol=1e-5, rtol=1e-4)
    alone = federated(net, x, y, clients, rounds=1, per_round=1,
                      attackers=[Attacker(4, Trigger.patch(SHAPE), target=1, share=0.5)]).model  # fmt: skip
    torch.testing.assert_close(flat(g), flat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("eta", "scale"), [(1.0, 1.0), (0.5, 1.0), (1.0, 3.0)])
def test_among_n_idle_clients_an_attacker_moves_the_model_by_scale_eta_over_n(images, net, clients, eta, scale):
    def moved(n):
        bad = Attacker(0, Trigger.patch(SHAPE), 2, share=0.5, scale=scale)
        g = federated(net, *images, clients, rounds=1, per_round=n, eta=eta, attackers=[bad],
                      aggregate=lambda u, who: torch.where(who[:, None] == 0, u, 0.0).mean(0)).model  # fmt: skip
        return flat(g) - flat(net)

    alone = moved(1) / (eta * scale)
    assert alone.norm() > 0.1
    for n in (3, 12):
        torch.testing.assert_close(moved(n), alone * scale * eta / n, atol=1e-5, rtol=1e-3)


def test_an_attacker_only_attacks_in_its_rounds_and_is_chosen_then(net, images, clients):
    chosen = []

    def spying(updates, who):
        chosen.append(who.tolist())
        return mean(updates, who)

    bad = Attacker(7, Trigger.patch(SHAPE), rounds=[2, 3])
    federated(net, *images, clients, rounds=4, per_round=2, aggregate=spying, attackers=[bad], generator=generator(5))
    chosen_without = []
    federated(net, *images, clients, rounds=4, per_round=2, generator=generator(5),
              aggregate=lambda u, who: (chosen_without.append(who.tolist()), mean(u, who))[1])  # fmt: skip
    assert 7 in chosen[1]
    assert 7 in chosen[2]
    assert (chosen[0], chosen[3]) == (chosen_without[0], chosen_without[3])


def test_a_poisoned_batch_has_its_share_none_of_them_of_the_target_class_and_the_rest_is_as_it_was(images):
    x, y = images[0][:20], images[1][:20]
    trigger = Trigger.patch(SHAPE)
    px, py = Attacker(0, trigger, target=1, share=0.3).poisoned(x, y)
    changed = (px != x).flatten(1).any(1)
    assert int(changed.sum()) == 6
    assert (y[changed] != 1).all()
    assert (py[changed] == 1).all()
    assert torch.equal(px[changed], trigger(x[changed]))
    assert torch.equal(py[~changed], y[~changed])
    rest_x, rest_y = Attacker(0, trigger, target=1, share=0.0).poisoned(x, y)
    assert torch.equal(rest_x, x)
    assert torch.equal(rest_y, y)


def test_four_pieces_are_disjoint_and_make_the_papers_trigger():
    parts = pieces((1, 28, 28))
    whole = union(parts)
    assert whole.norm == sum(p.norm for p in parts) == 16
    rows, columns = whole.mask[0].nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == [0, 3]
    assert sorted(set(columns.tolist())) == [0, 1, 2, 3, 6, 7, 8, 9]
    black = torch.zeros(1, 1, 28, 28)
    assert torch.equal(whole(black), sum(p(black) for p in parts))
    cifar = union(pieces((3, 32, 32), length=6, gap=(3, 3)))
    assert sorted(set(cifar.mask[0].nonzero()[:, 1].tolist())) == [*range(6), *range(9, 15)]
    with pytest.raises(ValueError, match="disjoint"):
        union([parts[0], parts[0]])
    with pytest.raises(ValueError, match="do not fit"):
        pieces((1, 8, 8))


def test_an_attacker_trains_with_its_own_rate_and_steps_and_is_scaled_only_when_it_attacks(net, images, clients):
    def sent(**how):
        kept = {}

        def spying(updates, who):
            kept.setdefault("first", dict(zip(who.tolist(), updates, strict=True)))
            return mean(updates, who)

        federated(net, *images, clients, rounds=1, per_round=12, aggregate=spying, **how)
        return kept["first"]

    nothing = {"trigger": Trigger.patch(SHAPE), "share": 0.0}  # a client as any other, but for how it trains
    usual, slow, short = sent(), sent(lr=0.02), sent(steps=2)
    torch.testing.assert_close(sent(attackers=[Attacker(3, lr=0.02, **nothing)])[3], slow[3], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(sent(attackers=[Attacker(3, steps=2, **nothing)])[3], short[3], atol=1e-6, rtol=1e-4)
    scaled = sent(attackers=[Attacker(3, scale=10.0, **nothing)])
    torch.testing.assert_close(scaled[3], 10 * usual[3], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(scaled[4], usual[4])
    later = sent(attackers=[Attacker(3, scale=10.0, rounds=[2], **nothing)])
    torch.testing.assert_close(later[3], usual[3])


def test_a_share_of_a_batch_is_rounded_up_as_on_paper(images):
    x, y = images
    px, _ = Attacker(0, Trigger.patch(SHAPE), target=2, share=0.07).poisoned(x[:100], y[:100])
    assert int((px != x[:100]).flatten(1).any(1).sum()) == 7
    px, _ = Attacker(0, Trigger.patch(SHAPE), target=2, share=0.071).poisoned(x[:100], y[:100])
    assert int((px != x[:100]).flatten(1).any(1).sum()) == 8


# Servers

WHO = torch.arange(5)


@pytest.mark.parametrize("server", [mean, median, geometric_median, bounded(1e9)])
def test_equal_updates_are_their_own_aggregate(server):
    row = torch.randn(7, generator=generator(0))
    torch.testing.assert_close(server(row.expand(5, 7), WHO), row)


def test_servers_against_their_definitions():
    u = torch.randn(6, 9, generator=generator(0), dtype=torch.float64)
    who = torch.arange(6)
    torch.testing.assert_close(mean(u, who), u.mean(0))
    torch.testing.assert_close(median(u, who), torch.quantile(u, 0.5, dim=0))
    cut = torch.stack([r * min(1, 2.0 / float(r.norm())) for r in u]).mean(0)
    torch.testing.assert_close(bounded(2.0)(u, who), cut)
    v = geometric_median(u, who, iterations=300)

    def far(point):
        return float((u - point).norm(dim=1).sum())

    assert all(far(v) <= far(v + 0.01 * torch.randn(9, generator=generator(s), dtype=torch.float64)) for s in range(30))
    assert far(v) < far(u.mean(0))


def test_the_geometric_median_of_points_on_a_line_is_the_middle_one_and_holds_still_when_an_end_is_moved():
    line = torch.tensor([[-3.0], [-1.0], [0.5], [1.0], [4.0]])
    moved = torch.tensor([[-3.0], [-1.0], [0.5], [1.0], [4e4]])
    for points in (line, moved):
        assert float(geometric_median(points, WHO, iterations=2000)) == pytest.approx(0.5, abs=0.02)
    assert float(mean(moved, WHO)) > 7000


def test_one_client_moves_the_mean_as_far_as_it_likes_and_a_robust_server_only_a_little():
    u = torch.randn(9, 50, generator=generator(0))
    bad = u.clone()
    bad[0] = 1e4
    who = torch.arange(9)
    shift = {s: float((s(bad, who) - s(u, who)).norm()) for s in (mean, median, geometric_median, LIMITED)}
    assert shift[mean] > 7000
    assert max(shift[s] for s in (median, geometric_median)) < 6
    assert shift[LIMITED] <= 2 * 1.0 / 9 + 1e-5


LIMITED = bounded(1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two(n):
    u = torch.randn(n, 11, generator=generator(0))
    torch.testing.assert_close(median(u, torch.arange(n)), torch.quantile(u, 0.5, dim=0))


def test_fools_gold_takes_weight_from_those_who_agree_and_leaves_it_to_the_others():
    g = generator(0)
    honest = torch.randn(6, 400, generator=g)
    aim = torch.randn(400, generator=g)
    sybils = aim + 0.05 * torch.randn(3, 400, generator=g)
    server = FoolsGold()
    out = server(torch.cat([honest, sybils]), torch.arange(9))
    assert server.weights[:6].min() > 0.9
    assert server.weights[6:].max() < 0.1
    torch.testing.assert_close(out, server.weights @ torch.cat([honest, sybils]) / 9)
    cosine = partial(torch.nn.functional.cosine_similarity, dim=0)
    assert cosine(out, aim) < 0.1 < cosine(mean(torch.cat([honest, sybils]), torch.arange(9)), aim)


def test_fools_gold_is_algorithm_1_entry_by_entry():
    """In the words of the paper: cosines, pardoning, 1 − max, rescaled, logit + 1/2, clipped."""
    g = generator(4)
    common = torch.randn(60, generator=g)
    u = torch.randn(5, 60, generator=g) + torch.tensor([0.0, 0.6, 1.0, 1.0, 0.9])[:, None] * common
    server = FoolsGold()
    out = server(u, WHO)
    rows = [[float(a @ b / a.norm() / b.norm()) if i != j else -9.0 for j, b in enumerate(u)] for i, a in enumerate(u)]
    v = [max(row) for row in rows]
    pardoned = [[c * v[i] / v[j] if v[j] > v[i] else c for j, c in enumerate(row)] for i, row in enumerate(rows)]
    alpha = [1 - max(row) for row in pardoned]
    alpha = [min(a / max(alpha), 0.99) for a in alpha]
    weights = torch.tensor([min(max(math.log(a / (1 - a)) + 0.5, 0.0), 1.0) for a in alpha])
    torch.testing.assert_close(server.weights, weights, atol=1e-4, rtol=1e-4)
    assert ((weights > 0.01) & (weights < 0.99)).any()  # no weight at an end tells the formula from another
    torch.testing.assert_close(out, (weights[:, None] * u).sum(0) / 5, atol=1e-4, rtol=1e-3)
    assert torch.equal(FoolsGold()(u[:1], WHO[:1]), u[0])


def test_fools_gold_remembers_by_client_what_was_sent_in_other_rounds():
    g = generator(0)
    a, b = torch.randn(2, 300, generator=g)
    server = FoolsGold()
    server(torch.stack([a, torch.randn(300, generator=g)]), torch.tensor([0, 1]))
    server(torch.stack([a, b]), torch.tensor([2, 3]))
    server(torch.stack([torch.zeros(300), torch.zeros(300), b]), torch.tensor([0, 2, 3]))
    assert server.weights[:2].max() < 0.1 < server.weights[2]


# Users' mistakes

@pytest.mark.parametrize(("how", "word"), [
    ({"per_round": 13}, "between 1 and the 12 clients"), ({"rounds": 0}, "rounds must be 1 or more"),
    ({"attackers": [Attacker(12, Trigger.patch(SHAPE))]}, "different clients 0 … 11"),
    ({"attackers": [Attacker(1, Trigger.patch(SHAPE)), Attacker(1, Trigger.patch(SHAPE))]}, "different clients"),
    ({"attackers": [Attacker(i, Trigger.patch(SHAPE)) for i in range(3)], "per_round": 2}, "do not fit into 2 places"),
    ({"lr": 1e30}, "not finite"), ({"lr": -1.0}, "lr must be more than 0"), ({"batch": 0}, "batch must be 1 or more"),
    ({"steps": 0}, "steps must be 1 or more"), ({"rounds": 2.5}, "whole number"),
    ({"attackers": [Attacker(1, Trigger.patch(SHAPE), target=9)]}, "target of attacker 1=9, but the classes are 0 … 2"),
    ({"clients": [torch.tensor([0]), torch.tensor([], dtype=torch.int64)], "per_round": 1}, "one at least"),
    ({"clients": [torch.tensor([0]), torch.tensor([-1])], "per_round": 1}, "0 … 119"),
    ({"clients": [[0], [1]], "per_round": 1}, "a tensor of rows"),
    ({"y": torch.zeros(5, dtype=torch.int64)}, "one label per image"),
    ({"y": torch.full((120,), 7)}, "the model has the classes 0 … 2"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_one_sentence(net, images, clients, how, word):
    with pytest.raises((ValueError, TypeError), match=word):
        federated(net, **{"x": images[0], "y": images[1], "clients": clients, "rounds": 2, "per_round": 4} | how)


@pytest.mark.parametrize(("make", "word"), [
    (lambda: Attacker(0, Trigger.patch(SHAPE), share=1.5), "between 0 and 1"),
    (lambda: Attacker(0, Trigger.patch(SHAPE), share=-0.1), "between 0 and 1"),
    (lambda: Attacker(0, Trigger.patch(SHAPE), steps=0), "steps must be 1 or more"),
    (lambda: Attacker(0, Trigger.patch(SHAPE), scale=float("nan")), "scale must be finite"),
    (lambda: bounded(float("nan")), "above 0"), (lambda: union([]), "one part or more"),
    (lambda: union([Trigger.patch(SHAPE), Trigger.patch((1, 9, 9))]), "of one shape"),
    (lambda: dirichlet_clients(torch.zeros(9).long(), 3, float("nan")), "alpha above 0"),
])  # fmt: skip
def test_what_is_no_attacker_no_bound_and_no_union_is_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_batch_norm_and_images_out_of_range_are_refused(images, clients):
    from kit.models.families import cnn7

    x, y = images
    with pytest.raises(ValueError, match="without batch norm"):
        federated(cnn7(classes=3, size=8), x, y, clients, rounds=1)
    with pytest.raises(ValueError, match="divide them by 255"):
        federated(mlp(classes=3, size=8), x * 255, y, clients, rounds=1)
    with pytest.raises(ValueError, match="above 0"):
        bounded(0.0)


def test_an_attacker_needs_a_trigger_and_rounds_and_the_dealing_labels():
    with pytest.raises(TypeError, match="trigger must be a Trigger"):
        Attacker(0, None)
    with pytest.raises(TypeError, match=r"as in \[3\]"):
        Attacker(0, pieces((1, 28, 28))[0], rounds=3)
    with pytest.raises(TypeError, match="tensor of labels"):
        dirichlet_clients([0, 1, 2], 2, 1.0)
