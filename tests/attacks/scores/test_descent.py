"""ZOO and AutoZOOM: exact distances on linear networks, exact counts, estimators that equal their theory."""
import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.attacks import autozoom, zoo
from kit.attacks.scores import descent
from kit.core import Goal, Live, Progress, QueryCounter, fooled, generator
from tests.attacks.scores.blind import Blind


@pytest.fixture(scope="module")
def case():
    """A linear network on 6 × 7 pixels, far from the box, and each image's l2 distance to the nearest other class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(42, 5)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(3), dtype=p.dtype) / 3)
    x = 0.3 + 0.4 * torch.rand(8, 1, 6, 7, generator=generator(5), dtype=torch.float64)
    z, w = model(x).detach(), model[1].weight.detach()
    y = z.argmax(1)
    gaps = (z.gather(1, y[:, None]) - z) / (w[y][:, None] - w[None]).norm(dim=2)
    return Blind(model), x, y, gaps.masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).amin(1)


def ratio(case, x_adv):
    model, x, y, exact = case
    assert fooled(model, x_adv, y).all()
    return (x_adv - x).flatten(1).norm(dim=1) / exact


@pytest.mark.parametrize("settings", [
    {}, {"solver": "newton"}, {"box": "clip", "lr": 0.01}, {"batch": 42},
    {"space": ((0, 3), (150, 6)), "max_queries": 12001},
], ids=str)
def test_zoo_comes_to_the_exact_distance(case, settings):
    model, x, y, _ = case
    found = ratio(case, zoo(model, x, y, **{"batch": 16, "max_queries": 9001, "lr": 0.02} | settings))
    assert found.min() >= 1
    assert found.max() < 1.06


@pytest.mark.parametrize("settings", [{"space": 6}, {"space": 6, "box": "clip"}, {"space": 6, "q": 10}], ids=str)
def test_autozoom_comes_to_the_exact_distance_where_its_space_is_the_images(case, settings):
    model, x, y, _ = case
    found = ratio(case, autozoom(model, x, y, **{"max_queries": 5001, "lr": 0.01} | settings))
    assert found.min() >= 1
    assert found.max() < 1.2


def test_a_small_space_costs_distance_and_its_own_least_distance_is_reached(case):
    """Within maps of 3 × 4, enlarged by E, the least change of x that takes z_y − z_j to 0 has a closed form."""
    model, x, y, _ = case
    space = (3, 4)
    E = torch.stack([descent.enlarged(e[None], space, x[:1])[0].flatten() for e in torch.eye(12, dtype=x.dtype)], 1)
    w, z = model.inner[1].weight, model(x)
    gaps = (z.gather(1, y[:, None]) - z)
    pull = (w[y][:, None] - w[None]) @ E  # ∂gap/∂v
    norm = (pull @ torch.linalg.inv(E.T @ E) * pull).sum(2).sqrt()
    exact = (gaps / norm).masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).amin(1).detach()
    x_adv = autozoom(model, x, y, space=3, max_queries=4001, lr=0.02, box="clip")
    assert fooled(model, x_adv, y).all()
    found = (x_adv - x).flatten(1).norm(dim=1) / exact
    inside = (x_adv.flatten(1).amin(1) > 0) & (x_adv.flatten(1).amax(1) < 1)
    assert inside.sum() >= 3
    assert found[inside].min() >= 1
    assert found[inside].max() < 1.1


@pytest.mark.parametrize("attack", [
    lambda model, x, y, target: zoo(model, x, y, target=target, batch=42, max_queries=6000, lr=0.02),
    lambda model, x, y, target: autozoom(model, x, y, target=target, space=6, max_queries=2000, lr=0.02),
])
def test_towards_a_target(case, attack):
    model, x, y, _ = case
    target = (y + 1) % 5
    assert fooled(model, attack(model, x, y, target), y, target).all()


def test_zoo_counts_what_it_asks_and_never_asks_more(case):
    model, x, y, _ = case
    for budget in (1, 2, 35, 36, 100):
        counter = QueryCounter(model, len(x))
        zoo(counter, x, y, batch=16, max_queries=budget)
        counts = counter.counts
        assert (counts == counts[0]).all()
        assert budget - 1 <= counts[0] <= budget
    already = y.clone()
    already[0] = (y[0] + 1) % 5
    counter = QueryCounter(model, len(x))
    zoo(counter, x, already, batch=16, max_queries=68)
    assert counter.counts.tolist() == [1] + [68] * 7  # x; twice v and 2 · 16 probes around it; and v


def test_autozoom_asks_two_until_the_first_success_and_q_more_after(case):
    model, x, y, _ = case
    asked = []

    class Record(nn.Module):
        def forward(self, v):
            asked.append(len(v))
            return model(v)

    counter, trace = QueryCounter(Record(), 1), Progress(x[:1])
    autozoom(counter, x[:1], y[:1], space=6, q=5, max_queries=600, lr=0.02, trace=trace)
    first = int(trace.first)
    assert 2 <= first < 590
    assert first % 2 == 0  # x, and then v and one probe in turn: the success is seen at a v
    assert counter.total == int(counter.counts) <= 600
    sizes = asked[2:]  # after the two passes that look at the model
    assert sizes[:first] == [1] * first
    assert sizes[first:first + 4] == [5, 1, 5, 1]
    for budget in (1, 2, 3, 40):
        counter = QueryCounter(model, len(x))
        autozoom(counter, x, y, space=6, max_queries=budget)
        assert (counter.counts <= budget).all()
        assert (counter.counts >= budget - 1).all()


def test_the_trace_tells_what_was_there_by_when(case):
    model, x, y, exact = case
    trace = Progress(x)
    x_adv = autozoom(model, x, y, space=6, max_queries=1500, lr=0.02, trace=trace)
    size = (x_adv - x).flatten(1).norm(dim=1)
    assert torch.equal(trace.first, trace.to(torch.inf))
    assert (trace.distance >= size - 1e-6).all()
    assert trace.to(float(trace.distance[0]))[0] == trace.first[0]
    near = trace.to(float(size.max()))
    assert (near >= trace.first).all()
    assert near.isfinite().all()
    assert trace.to(float(0.9 * exact.min())).isinf().all()
    alone = Progress(x[:1])
    autozoom(model, x[:1], y[:1], space=6, max_queries=int(trace.first[0]), lr=0.02, trace=alone)
    assert alone.first[0] == trace.first[0]


def live_at(case, channels=1, size=(8, 8), n=3):
    x = torch.full((n, channels, *size), 0.5)
    live = Live(nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], 3)), x,
                Goal(torch.zeros(n, dtype=torch.long)), None)
    live.v = torch.zeros(n, channels * size[0] * size[1])
    return live


def test_importance_follows_what_has_changed_and_is_looked_at_anew(case):
    live = live_at(case, n=200)
    everywhere = descent._chosen(live, 8, (8, 8), 1, True)
    assert everywhere.flatten().unique().numel() == 64
    assert all(len(set(row.tolist())) == 8 for row in everywhere)
    live.v = torch.zeros(200, 1, 8, 8)
    live.v[:, :, 2, 3] = -1.0
    live.v = live.v.flatten(1)
    near = descent._chosen(live, 1, (8, 8), 1, True)
    assert (near == 2 * 8 + 3).float().mean() > 0.85  # one place has 1/(1 + 63/1000) of the weight
    assert len(descent._chosen(live, 1, (8, 8), 1, False).unique()) > 40


def test_newton_divides_by_the_curvature_and_adam_does_not(case):
    model, x, y, _ = case
    a, b = (zoo(model, x, y, solver=s, batch=42, max_queries=500, lr=0.02) for s in ("adam", "newton"))
    assert not torch.equal(a, b)


class Decoder(nn.Module):
    """Codes of 4 numbers as bands of the image, on grey."""

    shape = (4,)

    def forward(self, v):
        return 0.5 + v[:, None, :, None].repeat_interleave(2, 2).expand(-1, 1, 8, 5)


def test_a_decoder_is_an_attack_space_and_begins_at_x():
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.ones(40), -torch.ones(40)]))
        model[1].weight[:, :10] *= -1  # the first band against the others
    x = torch.full((3, 1, 8, 5), 0.5, dtype=torch.float64)
    x[:, :, 2:] += torch.tensor([0.01, 0.02, 0.04]).view(3, 1, 1, 1)
    y = model(x).argmax(1)
    x_adv = autozoom(model, x, y, space=Decoder(), max_queries=800, lr=0.02)
    delta = (x_adv - x)[:, 0]
    assert fooled(model, x_adv, y).all()
    assert torch.allclose(delta[:, ::2], delta[:, 1::2], atol=0.02)  # bands, up to the box's curve
    assert (delta[:, 0] > 0).all()
    assert (delta[:, 2:] < 0).all()
    with pytest.raises(ValueError, match=r"makes images of \(1, 8, 5\), and these are \(1, 6, 7\)"):
        autozoom(nn.Sequential(nn.Flatten(), nn.Linear(42, 2)).double(), x[:, :, :6, :1].expand(-1, -1, -1, 7), y,
                 space=Decoder())


def test_a_decoder_is_used_in_evaluation_mode_and_left_as_it_was(case):
    model, x, y, *_ = case

    class Decoder(nn.Module):
        shape = (5,)

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, x[0].numel()), nn.BatchNorm1d(x[0].numel()), nn.Dropout(0.5))

        def forward(self, v):
            return self.layers(v).view(-1, *x.shape[1:])

    decoder = Decoder().to(x.dtype)
    found = autozoom(model, x, y, space=decoder, max_queries=40)
    assert decoder.training
    assert decoder.layers[1].num_batches_tracked == 0
    assert torch.equal(found, autozoom(model, x, y, space=decoder.eval(), max_queries=40))
    with pytest.raises(TypeError, match="the images are torch.float64 and the model torch.float32"):
        autozoom(model, x, y, space=Decoder(), max_queries=40)
    with pytest.raises(TypeError, match="a decoder must say in `shape`"):
        autozoom(model, x, y, space=nn.Linear(5, 5).double(), max_queries=40)
    with pytest.raises(ValueError, match="whole number from 1 to"):
        autozoom(model, x, y, space=2.5, max_queries=40)


def test_the_shipped_autoencoder_knows_digits_and_its_codes_are_an_attack_space():
    autoencoder, model = kit.models.load("autozoom/digits"), kit.models.load("digits/mlp")
    data = kit.data.load("digits", "test", n=40)
    with torch.no_grad():
        again, codes = autoencoder(data.x), autoencoder.encoder(data.x)
        other = autoencoder.decoder(codes.flip(3))
    assert codes.shape[1:] == autoencoder.decoder.shape == (1, 14, 14)
    assert (again - data.x).square().mean() < 0.002 < 0.02 < (other - data.x).square().mean()
    right = model(data.x).argmax(1) == data.y
    x, y = data.x[right][:4], data.y[right][:4]
    x_adv = autozoom(model, x, y, space=autoencoder.decoder, lr=0.1, max_queries=600, box="clip")
    assert fooled(model, x_adv, y).sum() >= 3
    assert not torch.allclose(x_adv, autozoom(model, x, y, space=14, lr=0.1, max_queries=600, box="clip"))


def test_what_makes_no_sense_is_said(case):
    model, x, y, _ = case
    for settings, words in (({"solver": "sgd"}, "'adam' or 'newton'"), ({"box": "none"}, "'tanh' or 'clip'"),
                            ({"space": ((0, 9),)}, "from 1 to the image's 6 rows"), ({"max_queries": 0}, "1 or more")):
        with pytest.raises(ValueError, match=words):
            zoo(model, x, y, **settings)
    with pytest.raises(ValueError, match="from 1 to the image's 6 rows"):
        autozoom(model, x, y, space=0)
