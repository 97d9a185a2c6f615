"""Complete verification against what is known exactly: every activation pattern enumerated, and closed forms."""
from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from kit.certify import crown
from kit.certify.verify import (
    SAFE,
    UNKNOWN,
    UNSAFE,
    Chain,
    Reluplex,
    around,
    branching,
    chain,
    exact_distance,
    margins,
    mixed_integer,
    networks,
    published,
    search,
    tableau,
    verify,
)
from kit.certify.verify.branching import FEW, costliest, raised, together, unsafe
from kit.certify.verify.linear import Found, Hidden, hidden_bounds, outputs_below
from kit.certify.verify.programs import intervals
from kit.core import fooled, generator, logits
from kit.data import MissingData


def small(seed: int, *sizes: int) -> Chain:
    """A chain with random weights."""
    source = generator(seed)
    W = [torch.randn(m, n, generator=source).double() for n, m in itertools.pairwise(sizes)]
    return Chain(W, [0.5 * torch.randn(m, generator=source).double() for m in sizes[1:]])


def box(seed: int, d: int) -> tuple[Tensor, Tensor]:
    source = generator(1000 + seed)
    return -torch.rand(d, generator=source).double(), torch.rand(d, generator=source).double()


def least(net: Chain, low: Tensor, high: Tensor) -> float:
    """min over the box of the largest output, by enumeration: one linear program for each of the 2ⁿ patterns."""
    best = np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=net.relus):
        on = torch.tensor(pattern).double().split([len(b) for b in net.b[:-1]])
        M, c, rows, ends = net.W[0], net.b[0], [], []
        for i, o in enumerate(on):
            sign = 2 * o - 1  # sign · z ≥ 0
            rows.append(-sign[:, None] * M)
            ends.append(sign * c)
            M, c = net.W[i + 1] @ (o[:, None] * M), net.W[i + 1] @ (o * c) + net.b[i + 1]
        A = torch.cat([torch.cat([*rows, M]), torch.cat([torch.zeros(net.relus), -torch.ones(len(c))])[:, None]], 1)
        found = linprog([0.0] * len(low) + [1.0], A.numpy(), torch.cat([*ends, -c]).numpy(),
                        bounds=[*zip(low.tolist(), high.tolist(), strict=True), (None, None)])
        best = min(best, found.fun if found.status == 0 else np.inf)
    return best


def tiny() -> tuple[Chain, Tensor, Tensor]:
    """The network of METHOD 3.5: over [−1, 1]² its largest value is 2; the triangles give 46/9, CROWN 6."""
    W = [[[-1.0, 1], [2, -2]], [[1.0, 2], [-1, 2]], [[-2.0, 2]]]
    b = [[-1.0, 0], [0.0, -1], [0.0]]
    net = Chain([torch.tensor(w).double() for w in W], [torch.tensor(v).double() for v in b])
    return net, -torch.ones(2).double(), torch.ones(2).double()


@pytest.mark.parametrize("split", ["input", "relu"])
@pytest.mark.parametrize(("seed", "outputs"), [(s, m) for s in range(3) for m in (1, 2, 3)])
def test_answers_turn_exactly_where_enumeration_says(seed, outputs, split):
    net, (low, high) = small(seed, 3, 3, 3, outputs), box(seed, 3)
    exact = least(net, low, high)
    one = torch.eye(outputs).double()
    for margin, answer in ((0.02, "safe"), (-0.001, "unsafe")):
        asked = net.ended(one, torch.full((outputs,), margin - exact).double())
        found = search(asked, low, high, split=split, max_nodes=4000)
        assert found.answer == answer
        if answer == "unsafe":
            assert found.x is not None
            assert (low <= found.x).all()
            assert (found.x <= high).all()
            assert float(asked(found.x[None]).max()) <= 0
        else:
            assert 0 < found.bound <= margin + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_the_mixed_integer_program_is_the_enumeration_and_its_relaxation_is_below(seed):
    net, (low, high) = small(seed, 3, 3, 3, 2), box(seed, 3)
    exact = least(net, low, high)
    for bounds in ("interval", "linear"):
        found = mixed_integer(net, low, high, bounds=bounds)
        assert found.solved
        assert found.value == pytest.approx(exact, abs=1e-5)
        assert float(net(found.x[None]).max()) == pytest.approx(exact, abs=1e-5)
        assert mixed_integer(net, low, high, bounds=bounds, relaxed=True).value <= exact + 1e-6


def test_the_tiny_network_has_the_known_values():
    net, low, high = tiny()
    assert mixed_integer(net, low, high).value == pytest.approx(-2)
    assert mixed_integer(net, low, high, relaxed=True, bounds="linear").value == pytest.approx(-46 / 9)
    hidden = hidden_bounds(net, low[None], high[None], net.rounding(low, high))
    assert float(outputs_below(net, low[None], high[None], hidden).bound) == pytest.approx(-6)


@pytest.mark.parametrize("seed", range(10))
def test_bounds_hold_at_every_point_for_any_alpha_and_beta(seed):
    net, (low, high) = small(seed, 3, 5, 5, 2), box(seed, 3)
    source = generator(seed)
    x = low + (high - low) * torch.rand(4000, 3, generator=source).double()
    hidden = hidden_bounds(net, low[None], high[None], net.rounding(low, high))
    for z, l, u in zip(net.hidden(x), hidden.low, hidden.high, strict=False):
        assert (l <= z).all()
        assert (z <= u).all()
    inside = x
    phase = [torch.zeros(1, 5).double() for _ in range(2)]
    for j in hidden.unstable()[0][0].nonzero()[:2, 0].tolist():  # two ReLUs decided: a bound on the points of that part
        side = 1.0 if (net.hidden(inside)[0][:, j] > 0).double().mean() > 0.5 else -1.0
        phase[0][0, j] = side
        inside = inside[side * net.hidden(inside)[0][:, j] >= 0]
    alpha = [torch.rand(1, 2, 5, generator=source).double() for _ in range(2)]
    beta = [torch.rand(1, 2, 5, generator=source).double() for _ in range(2)]
    found = outputs_below(net, low[None], high[None], hidden.decided(phase), alpha=alpha, beta=beta, phase=phase)
    assert len(inside) > 20
    assert (net(inside) >= found.bound - 1e-9).all()
    plain = outputs_below(net, low[None], high[None], hidden, alpha=alpha)
    assert (net(x) >= plain.bound - 1e-9).all()


def test_a_beta_proves_what_no_slope_can():
    """|x| as two ReLUs: each side's bound needs that the other side's x are not in it."""
    low, high = -torch.ones(1).double(), torch.ones(1).double()
    two = Chain([torch.tensor([[1.0], [-1]]).double(), torch.tensor([[1.0, 1]]).double()],
                [torch.zeros(2).double(), torch.tensor([-1e-3]).double()])  # |x| − 0.001: unsafe at 0 alone
    assert search(two, low, high, split="relu").answer == "unsafe"
    far = two.ended(torch.ones(1, 1).double(), torch.tensor([2e-3]).double())  # |x| + 0.001
    assert search(far, low, high, split="relu").answer == "safe"


def test_a_budget_that_is_spent_is_unknown_and_never_wrong():
    for seed in range(3):
        net, (low, high) = small(seed, 4, 6, 6, 1), box(seed, 4)
        exact = mixed_integer(net, low, high).value
        asked = net.ended(torch.ones(1, 1).double(), torch.tensor([1e-4 - exact]).double())  # safe, by a hair
        for split in ("input", "relu"):
            answers = [search(asked, low, high, split=split, max_nodes=n).answer for n in (1, 5, 20)]
            assert set(answers) <= {"unknown", "safe"}
            assert answers[0] == "unknown"
            assert search(asked, low, high, split=split, seconds=0.0).answer == "unknown"


@pytest.mark.parametrize("split", ["input", "relu"])
def test_what_an_unknown_answer_proves_is_true_of_the_whole_box(split, monkeypatch):
    """A search that notices no point, so that parts far below zero and parts near it are left."""
    monkeypatch.setattr(branching, "unsafe", lambda chain, x, rounding: torch.zeros(len(x), dtype=torch.bool))
    for seed in range(2):
        net, (low, high) = small(seed, 3, 4, 4, 1), box(seed, 3)
        exact = mixed_integer(net, low, high).value
        asked, exact = net.ended(torch.ones(1, 1).double(), torch.tensor([-5.0 - exact]).double()), -5.0
        for batch, nodes in ((1, (1, 3, 10)), (4, (5, 60))):
            found = [search(asked, low, high, split=split, max_nodes=n, batch=batch) for n in nodes]
            assert {f.answer for f in found} == {"unknown"}
            assert all(f.bound <= exact + 1e-6 for f in found)
            assert found[-1].bound > exact - 3
        assert search(asked, low, high, split=split, max_nodes=0).bound == -np.inf


def test_slopes_are_raised_from_crowns():
    low, high = torch.tensor([[-1.0, -2]]), torch.tensor([[2.0, 1]])
    assert Hidden([low], [high]).alpha()[0].tolist() == [[1, 0]]  # the line with less between it and the ReLU
    for seed in range(5):
        net, (low, high) = small(seed, 3, 6, 6, 2), box(seed, 3)
        low, high, off = low[None], high[None], net.rounding(low, high)
        hidden = hidden_bounds(net, low, high, off)
        crowns, _ = together(outputs_below(net, low, high, hidden), low, high, off[-1])
        bounds = [raised(net, low, high, hidden, off[-1], steps)[0] for steps in (0, 1, 8)]
        assert torch.equal(bounds[0], crowns)
        assert bounds[0] <= bounds[1] <= bounds[2]
        assert bounds[0] < bounds[2]


def test_the_costliest_relu_is_the_one_whose_lines_are_farthest_from_it():
    """Above by u l/(u − l) at most, below by min(u, −l), of which half is counted; and only where it is undecided."""
    def of(*each: tuple[float, float, float]) -> int:
        low, high, A = (torch.tensor(v).double() for v in zip(*each, strict=True))
        return int(costliest(Found(torch.zeros(1, 1), A, [A[None, None]]), Hidden([low[None]], [high[None]])))

    assert of((-1, 10, 1), (-2, 2, 1)) == 1  # 0.5 and 1
    assert of((-10, 1, 1), (-2, 2, 1)) == 1
    assert of((-1, 10, 1), (-1, 10, -1)) == 1  # 0.5 and 10/11
    assert of((-2, 2, 1), (-1, 10, -1)) == 0  # 1 and 10/11
    assert of((-4, 4, 0.1), (-2, 2, -2)) == 1  # 0.2 and 2
    assert of((0, 9, 5), (-9, 0, -5), (-1, 1, 0), (0, 0, 1)) == 2


def test_bounds_of_hidden_layers_are_those_of_their_units():
    """Every undecided unit has CROWN's bound, where the interval's is no better."""
    tighter = 0
    for seed in range(4):
        net, (low, high) = small(seed, 3, 6, 6, 6, 1), box(seed, 3)
        off, loose = net.rounding(low, high), intervals(net, low, high)
        hidden = hidden_bounds(net, low[None], high[None], off)
        for i in (1, 2):
            before = Hidden(hidden.low[:i], hidden.high[:i])
            ends = [outputs_below(Chain([*net.W[:i], s * net.W[i]], [*net.b[:i], s * net.b[i]]),
                                  low[None], high[None], before).bound for s in (1, -1)]
            free = hidden.unstable()[i]
            assert (hidden.low[i] >= ends[0] - off[i] - 1e-12)[free].all()
            assert (hidden.high[i] <= off[i] - ends[1] + 1e-12)[free].all()
            tighter += int((hidden.low[i] > loose.low[i] + 0.01).sum())
    assert tighter > 10


def test_what_rounding_decides_is_unknown():
    net, low, high = tiny()
    on_the_edge = net.ended(torch.ones(1, 1).double(), torch.tensor([2.0]).double())
    for split in ("input", "relu"):
        assert search(on_the_edge, low, high, split=split, max_nodes=400).answer == "unknown"


def test_rounding_covers_the_difference_to_exact_arithmetic():
    from fractions import Fraction

    net, (low, high) = small(3, 6, 20, 20, 3), box(3, 6)
    net = Chain([1e3 * W for W in net.W], net.b)
    allowed = net.rounding(low, high)[-1]
    x = low + 0.3 * (high - low)
    exact = [Fraction(v) for v in x.tolist()]
    for i, (W, b) in enumerate(zip(net.W, net.b, strict=True)):
        exact = [max(v, Fraction(0)) if i else v for v in exact]
        exact = [sum((Fraction(w) * v for w, v in zip(row, exact, strict=True)), Fraction(c))
                 for row, c in zip(W.tolist(), b.tolist(), strict=True)]
    for found, true, off in zip(net(x[None])[0].tolist(), exact, allowed.tolist(), strict=True):
        assert abs(Fraction(found) - true) <= Fraction(off)
        assert off < 1e-3 * abs(found)


def test_a_random_search_never_contradicts_safe():
    for seed in range(40):
        net, (low, high) = small(seed, 3, 6, 6, 2), box(seed, 3)
        x = low + (high - low) * torch.rand(3000, 3, generator=generator(seed)).double()
        found = search(net, low, high, max_nodes=500)
        if found.answer == "safe":
            assert not unsafe(net, x, torch.zeros(2).double()).any()


def test_the_other_bounds_of_this_package_are_the_same():
    """CROWN of `kit.certify.bounds`, written for any network, on the same margins."""
    layers = [nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)]
    model = nn.Sequential(*layers).double()
    x = 0.3 + 0.4 * torch.rand(5, 1, 4, 4, generator=generator(0), dtype=torch.float64)
    y = logits(model, x).argmax(1)
    theirs = crown(model, x, y, eps=0.05)
    net = chain(model, x)
    for i in range(5):
        asked, (low, high) = margins(net, int(y[i])), around(x[i].flatten(), 0.05)
        hidden = hidden_bounds(asked, low[None], high[None], asked.rounding(low, high))
        ours = outputs_below(asked, low[None], high[None], hidden).bound[0]
        others = [k for k in range(3) if k != int(y[i])]
        assert (ours >= theirs[i, others] - 1e-6).all()  # ours also takes the interval's bounds where they are better
        assert torch.allclose(ours, theirs[i, others], rtol=0.05, atol=0.02)


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear():
    """Two linear layers without ReLU between: the nearest error is at (z_y − z_k)/‖w_y − w_k‖₁."""
    w = torch.randn(3, 16, generator=generator(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model[1].weight.data, model[1].bias.data = w, -w.sum(1) / 2
    x = 0.4 + 0.2 * torch.rand(12, 1, 4, 4, generator=generator(1))
    z = logits(model, x)
    y = z.argmax(1)
    away = torch.stack([(z[:, y_] - z[:, k]) / (w[y_] - w[k]).abs().sum() if k != y_ else torch.full((12,), torch.inf)
                        for y_ in range(3) for k in range(3)]).view(3, 3, 12)
    exact = away[y, :, torch.arange(12)].amin(1)
    return model, x, y, exact


def test_a_linear_network_turns_at_its_exact_distance(linear):
    model, x, y, exact = linear
    assert (verify(model, x, y, eps=0.999 * exact)[0] == SAFE).all()
    answer, example = verify(model, x, y, eps=1.001 * exact)
    assert (answer == UNSAFE).all()
    assert (logits(model, example).argmax(1) != y).all()
    assert ((example - x).flatten(1).abs().amax(1) <= 1.001 * exact + 1e-6).all()


def test_the_distance_is_bracketed(linear):
    model, x, y, exact = linear
    low, high = exact_distance(model, x, y, largest=0.2, rounds=9)
    assert (low <= exact + 1e-6).all()
    assert (exact - 1e-6 <= high).all()
    assert (high - low < 1e-3).all()


def test_a_misclassified_image_is_its_own_example(linear):
    model, x, y, _ = linear
    wrong = (y + 1) % 3
    answer, example = verify(model, x, wrong, eps=0.0)
    assert (answer == UNSAFE).all()
    assert torch.equal(example, x)
    low, high = exact_distance(model, x, wrong, rounds=2)
    assert not low.any()
    assert not high.any()


def convolutional() -> nn.Module:
    source = generator(2)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
                          nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source) * 0.7)
    return model


def test_a_chain_computes_what_its_network_does():
    model = convolutional()
    x = torch.rand(20, 1, 4, 4, generator=generator(3))
    net = chain(model, x)
    assert net.relus == 2 * 16 + 5
    assert torch.allclose(net(x.flatten(1).double()), model.double()(x.double()), atol=1e-12)


def test_images_of_a_convolutional_network_agree_with_the_program():
    model = convolutional()
    x = torch.rand(6, 1, 4, 4, generator=generator(3))
    y = logits(model, x).argmax(1)
    net, seen = chain(model, x), set()
    for eps in (0.02, 0.08):
        answer, example = verify(model, x, y, eps=eps)
        assert (fooled(model, example, y) == (answer == UNSAFE)).all()
        for i in range(len(x)):
            low, high = around(x[i].flatten().double(), eps)
            apart = margins(net, int(y[i]))
            each = [Chain([*apart.W[:-1], apart.W[-1][k : k + 1]], [*apart.b[:-1], apart.b[-1][k : k + 1]])
                    for k in range(2)]
            worst = min(mixed_integer(one, low, high).value for one in each)
            assert int(answer[i]) == (SAFE if worst > 0 else UNSAFE)
            seen.add(int(answer[i]))
    assert seen == {SAFE, UNSAFE}


def test_what_is_no_chain_is_refused():
    x = torch.rand(2, 1, 4, 4)
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(ValueError, match="max_pool2d"):
        chain(pooled, x)

    class Branches(nn.Module):
        def forward(self, t):
            return t.flatten(1)[:, :3].relu() + t.flatten(1)[:, 3:6]

    with pytest.raises(ValueError, match=r"branches|neither"):
        chain(Branches(), x)
    with pytest.raises(ValueError, match="split"):
        search(small(0, 2, 2, 1), torch.zeros(2), torch.ones(2), split="both")
    with pytest.raises(ValueError, match="box"):
        search(small(0, 2, 2, 1), torch.ones(2), torch.zeros(2))
    with pytest.raises(ValueError, match="bounds"):
        mixed_integer(small(0, 2, 2, 1), torch.zeros(2), torch.ones(2), bounds="none")


def test_a_time_limit_on_images_is_unknown():
    model = convolutional()
    x = torch.rand(4, 1, 4, 4, generator=generator(3))
    y = logits(model, x).argmax(1)
    hurried, example = verify(model, x, y, eps=0.08, seconds=0.0)
    answer, _ = verify(model, x, y, eps=0.08)
    assert (hurried == UNKNOWN).any()
    assert (hurried == answer)[hurried != UNKNOWN].all()
    assert torch.equal(example[hurried == UNKNOWN], x[hurried == UNKNOWN])


# --- Reluplex -------------------------------------------------------------------------------------------------------


def paper(low: float, high: float) -> Reluplex:
    """The network of the paper's example: y = relu(x) − relu(−x), here with x in [−1, 1]."""
    return tableau([np.array([[1.0], [-1.0]]), np.array([[1.0, -1.0]])], [np.zeros(2), np.zeros(1)],
                   np.array([-1.0]), np.array([1.0]), [(low, high)])


def test_reluplex_finds_the_point_of_the_example():
    found = paper(0.5, 1.0).solve()
    assert found is not None
    assert found["x1"] == pytest.approx(found["y1"])
    assert 0.5 <= found["y1"] <= 1
    assert paper(1.5, 2.0).solve() is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("splits_after", [0, 5])
def test_reluplex_agrees_with_enumeration(seed, splits_after):
    net, (low, high) = small(seed, 2, 3, 3, 1), box(seed, 2)
    exact = least(net, low, high)
    W, b = [w.numpy() for w in net.W], [v.numpy() for v in net.b]
    for limit, there in ((exact + 0.01, True), (exact - 0.01, False)):
        found = tableau(W, b, low.numpy(), high.numpy(), [(-1e3, limit)]).solve(splits_after)
        assert (found is not None) == there
        if found is not None:
            x = torch.tensor([[found["x1"], found["x2"]]]).double()
            assert float(net(x)) == pytest.approx(found["y1"], abs=1e-6)
            assert found["y1"] <= limit + 1e-6


# --- ACAS Xu --------------------------------------------------------------------------------------------------------


def test_missing_networks_say_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv("KIT_DATA", str(tmp_path))
    with pytest.raises(MissingData, match=r"acasxu\.npz"):
        networks()


def test_networks_are_read_with_their_scale(monkeypatch, tmp_path):
    """A file of one random network: its costs by hand, and of a property the box and the outputs that are asked."""
    sizes, source = (5, 4, 4, 4, 4, 4, 4, 5), generator(0)
    W = [torch.randn(m, n, generator=source).double() for n, m in itertools.pairwise(sizes)]
    b = [torch.randn(m, generator=source).double() for m in sizes[1:]]
    low, high, mean, scale = (torch.tensor(v).double() for v in (
        [0.0, -3.14, -3.14, 100, 0], [6e4, 3.14, 3.14, 1200, 1200],
        [2e4, 0.0, 0, 650, 600, 7.5], [6e4, 6.28, 6.28, 1100, 1200, 373]))
    parts = {"min": low, "max": high, "mean": mean, "range": scale,
             **{f"W{i + 1}": w for i, w in enumerate(W)}, **{f"b{i + 1}": v for i, v in enumerate(b)}}
    np.savez(tmp_path / "acasxu.npz", **{f"1_1/{k}": v.numpy() for k, v in parts.items()})
    monkeypatch.setenv("KIT_DATA", str(tmp_path))
    found = networks()
    assert list(found) == ["1_1"]
    network = found["1_1"]
    raw = low + (high - low) * torch.rand(20, 5, generator=source).double()
    h = (raw - mean[:5]) / scale[:5]
    for i, (w, v) in enumerate(zip(W, b, strict=True)):
        h = (h.relu() if i else h) @ w.T + v
    assert torch.allclose(network.costs(raw), 373 * h + 7.5)
    assert torch.allclose(network.raw(network.scaled(raw)), raw)
    beyond = torch.tensor([-1e9, 9.0, -9, 1e9, np.inf]).double()
    cut = torch.stack([low[0], high[1], low[2], high[3], high[4]])
    assert torch.allclose(network.raw(network.scaled(beyond)), cut)
    inside = torch.tensor([6e4, 0.0, 0, 1150, 30]).double()  # far, fast, and the other slow: properties 1 and 2
    x, costs = network.scaled(inside), network.costs(inside[None])[0]
    for prop, wanted in ((1, 1500 - costs[:1]), (2, costs[1:] - costs[0])):
        asked, first, last = network.question(prop)
        assert (first <= x).all()
        assert (x <= last).all()
        assert torch.allclose(373 * asked(x[None])[0], wanted)


@pytest.mark.skipif(not (Path(os.environ.get("KIT_DATA", "/nowhere")) / "acasxu.npz").is_file(),
                    reason="the ACAS Xu networks are not there: set KIT_DATA")
@pytest.mark.parametrize(("prop", "name"), [(1, "1_1"), (1, "1_3"), (4, "1_1"), (2, "1_2"), (2, "2_4"), (3, "1_7")])
def test_published_verdicts(prop, name):
    network = networks()[name]
    found = search(*network.question(prop), seconds=60)
    assert found.answer == published(prop, name)
    if found.x is not None:
        costs = network.costs(network.raw(found.x)[None])[0]
        assert costs.argmax() == 0 if prop == 2 else costs.argmin() == 0


def test_budgets_count_what_was_bounded():
    net, (low, high) = small(1, 4, 8, 8, 1), box(1, 4)
    asked = net.ended(torch.ones(1, 1).double(), torch.tensor([1e-4 - mixed_integer(net, low, high).value]).double())
    assert 0 < search(asked, low, high, max_nodes=10, batch=4).nodes < 20
    assert FEW == 10


def test_the_distance_goes_on_from_what_is_known(linear):
    model, x, y, exact = linear
    known = 0.9 * exact.double(), 1.1 * exact.double()
    low, high = exact_distance(model, x, y, largest=0.5, rounds=3, known=known)
    assert (low >= known[0] - 1e-9).all()
    assert (low <= exact + 1e-6).all()
    assert (exact - 1e-6 <= high).all()
    assert (high - low <= 0.2 * exact / 2**3).all()
    with pytest.raises(ValueError, match="the first at most the second"):
        exact_distance(model, x, y, known=(known[1], known[0]))
