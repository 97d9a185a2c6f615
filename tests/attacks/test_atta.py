"""A toy in which the answer is known: f reads a fine pattern more than it should, and a blur would cure it."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kit.core.passes
from kit.attacks import Transformation, at_si_ni_ti_dim, atta, bim, si_ni_ti_dim, train_transformation
from kit.core import Trace, cross_entropy, fooled, generator, gradient, logits

EPS = 0.1


class Patterned(nn.Module):
    """z = (−s, s) with s = a·mean(x − ½) + b·⟨checkerboard, x⟩/64: with b > a, the worst x' moves along the board."""

    def __init__(self, a=40.0, b=60.0):
        super().__init__()
        board = (torch.arange(8)[:, None] + torch.arange(8)[None]) % 2 * 2.0 - 1
        self.w = nn.Parameter((a + b * board) / 64)

    def forward(self, x):
        s = ((x[:, 0] - 0.5) * self.w).sum((1, 2))
        return torch.stack([-s, s], 1)


def blur(x):
    """The mean of 2 × 2 pixels, which sees nothing of the board."""
    return F.avg_pool2d(F.pad(x, (1, 0, 1, 0), mode="replicate"), 2, 1)


class Blurred(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(blur(x))


@pytest.fixture
def toy():
    y = torch.arange(12) % 2
    noise = torch.rand(12, 1, 8, 8, generator=generator(4)) - 0.5
    x = 0.5 + 0.06 * (2 * y - 1).view(-1, 1, 1, 1) + 0.02 * noise
    model = Patterned().eval()
    assert not fooled(model, x, y).any()
    return model, x, y


@pytest.fixture
def deep():
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 5)
    model = nn.Sequential(*layers).eval()
    x = torch.rand(9, 3, 12, 12, generator=generator(2))
    return model, x, logits(model, x).argmax(1)


GAME = {"eps": EPS, "lr": 0.01, "alpha2": 0.1, "outer": 20, "inner": 5}


@pytest.mark.parametrize("start", ["identity", "random"])
@pytest.mark.parametrize("shared", [False, True])
def test_T_takes_the_attack_away_and_keeps_the_images(toy, shared, start):
    model, x, y = toy
    options = GAME | ({"outer": 60, "lr": 0.03} if start == "random" else {})
    T = train_transformation(model, x, y, shared=shared, start=start, **options)
    assert len(T) == (1 if shared else len(x))
    x_adv = bim(model, x, y, eps=EPS)
    assert fooled(model, x_adv, y).all()  # a T that does nothing, or learns the opposite, leaves it so
    through = nn.Sequential(T, model)
    assert not fooled(through, x_adv, y).any()
    assert not fooled(through, x, y).any()
    assert (cross_entropy(logits(through, x), y) < 0.5).all()


def test_the_game_goes_up_and_down(toy):
    model, x, y = toy
    trace = Trace()
    train_transformation(model, x, y, trace=trace, **GAME)
    rounds = trace.values.view(GAME["outer"], GAME["inner"] + 1, len(x))
    assert torch.allclose(rounds[0, 0], cross_entropy(model(x), y), atol=1e-5)  # T is the identity, x' is x
    assert (rounds[:2, -1] > rounds[:2, 0]).all()  # the attacker climbs
    before, after = rounds[:-1, -1], rounds[1:, 0]  # of one step of T, on the same x'
    assert (after < before)[before > 0.05].all()
    assert (rounds[-1, -1] < rounds[0, -1] - 0.3).all()  # and wins the game


def test_one_round_is_algorithm_1_by_hand(deep):
    model, x, y = deep
    T0 = Transformation.start("random", 3, 3, 3, generator(6))
    beta, alpha1, alpha2, lr = 0.7, 2.0, 0.3, 0.02
    x_adv = x[:1]
    m = u = torch.zeros_like(x_adv)
    for k in (1, 2):
        v = x_adv.clone().requires_grad_()
        loss = -F.cross_entropy(model(T0(v)), y[:1]) - beta * F.cross_entropy(model(v), y[:1])
        g = torch.autograd.grad(loss, v)[0]
        m, u = 0.9 * m + 0.1 * g, 0.999 * u + 0.001 * g * g
        move = 0.01 * (m / (1 - 0.9**k)) / ((u / (1 - 0.999**k)).sqrt() + 1e-8)
        x_adv = (x[:1] + (x_adv - move - x[:1]).clamp(-EPS, EPS)).clamp(0, 1)
    theta = T0.theta.clone().requires_grad_()
    T = T0.at(theta)
    loss = F.cross_entropy(model(T(x_adv)), y[:1]) + alpha1 * F.cross_entropy(model(T(x[:1])), y[:1])
    g = torch.autograd.grad(loss + alpha2 * (x_adv - T(x_adv)).square().sum(), theta)[0]
    expected = T0.theta - lr * g / (g.abs() + 1e-8)  # the first step of Adam
    found = train_transformation(model, x, y, eps=EPS, start="random", generator=generator(6), outer=1, inner=2,
                                 lr=lr, step=0.01, beta=beta, alpha1=alpha1, alpha2=alpha2)
    assert torch.allclose(found.theta[:1], expected, atol=2e-4)
    assert not torch.allclose(found.theta[:1], T0.theta, atol=1e-3)


def test_attacking_through_T_survives_a_defence_that_was_never_seen(toy):
    model, x, y = toy
    defended = Blurred(model)
    assert not fooled(defended, x, y).any()
    T = train_transformation(model, x, y, shared=True, **GAME)
    assert not fooled(defended, bim(model, x, y, eps=EPS), y).any()
    x_adv = atta(model, x, y, T=T, eps=EPS, gamma=2.0)
    assert fooled(defended, x_adv, y).all()
    assert fooled(model, x_adv, y).all()
    assert ((x_adv - x).abs() <= EPS + 1e-6).all()
    assert not fooled(defended, atta(model, x, y, T=nn.Identity(), eps=EPS, gamma=2.0), y).any()


def test_without_gamma_it_is_the_attack_it_extends(deep):
    model, x, y = deep
    T = Transformation.start("random", 3, 3, 3)
    assert torch.equal(atta(model, x, y, T=T, eps=EPS, gamma=0.0), bim(model, x, y, eps=EPS))
    one, two = generator(3), generator(3)
    plain = si_ni_ti_dim(model, x, y, eps=EPS, generator=one)
    assert torch.equal(at_si_ni_ti_dim(model, x, y, T=T, eps=EPS, gamma=0.0, generator=two), plain)
    assert not torch.equal(at_si_ni_ti_dim(model, x, y, T=T, eps=EPS, generator=generator(3)), plain)
    aimed = {"eps": EPS, "target": (y + 1) % 5}
    assert torch.equal(atta(model, x, y, T=T, gamma=0.0, **aimed), bim(model, x, y, **aimed))


def test_the_attack_climbs_both_terms_as_written(deep):
    model, x, y = deep
    T = Transformation.start("random", 3, 5, 4, generator(8))
    trace = Trace()
    x_adv = atta(model, x, y, T=T, eps=EPS, steps=1, gamma=0.5, trace=trace)
    value, g = gradient(lambda v: cross_entropy(model(v), y) + 0.5 * cross_entropy(model(T(v)), y), x)
    assert torch.allclose(trace.values[0], value, atol=1e-5)
    sure = g.abs() > 1e-6
    assert torch.equal((x_adv - (x + EPS * g.sign()).clamp(0, 1)).abs()[sure] < 1e-6, torch.ones_like(g[sure]).bool())


def test_images_are_independent_and_calls_repeat(deep, monkeypatch):
    model, x, y = deep
    options = {"eps": EPS, "start": "random", "outer": 3, "inner": 2}
    T = train_transformation(model, x, y, **options)
    assert torch.equal(T.theta, train_transformation(model, x, y, **options).theta)
    x_adv = atta(model, x, y, T=T, eps=EPS)
    monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)
    monkeypatch.setattr(kit.core.passes, "chunk_size", lambda x: 4)
    assert torch.allclose(T.theta, train_transformation(model, x, y, **options).theta, atol=1e-4)
    assert torch.allclose(x_adv, atta(model, x, y, T=T, eps=EPS), atol=1e-5)
    alone = train_transformation(model, x[7:8], y[7:8], **options)
    assert torch.allclose(T.theta[7:8], alone.theta, atol=1e-4)
    assert torch.allclose(x_adv[7:8], atta(model, x[7:8], y[7:8], T=T[7:8], eps=EPS), atol=1e-5)
    assert not torch.allclose(T.theta[7], T.theta[6], atol=1e-3)  # each image has learnt its own


def test_transformations_in_a_batch_are_those_one_by_one():
    x = torch.rand(4, 3, 9, 7, generator=generator(1))
    single = Transformation.start("random", 3, 5, 6, generator(2))
    theta = single.theta + 0.05 * torch.randn(4, single.theta.shape[1], generator=generator(3))
    T = single.at(theta)
    for i in range(4):
        W1, b1, W2, b2 = (part[i] for part in T.parts())
        z = F.conv2d(F.leaky_relu(F.conv2d(x[i:i + 1], W1, b1, padding=1), 0.01), W2, b2, padding=2)
        assert torch.allclose(T(x)[i:i + 1], z, atol=1e-5)
        assert torch.allclose(T[i:i + 1](x[i:i + 1]), z, atol=1e-5)


def test_T_starts_as_the_identity_and_is_not_affine():
    x = torch.rand(2, 3, 9, 9, generator=generator(5))
    assert torch.equal(Transformation.start("identity", 3, 7, 5)(x), x)
    T = Transformation.start("random", 3, 3, 3)
    sum_, zero = T(x[:1] + x[1:]), torch.zeros_like(x[:1])
    assert float((T(x[:1]) + T(x[1:]) - T(zero) - sum_).abs().max()) > 1e-3


def test_a_shared_T_sees_every_batch_and_repeats(toy):
    model, x, y = toy
    options = GAME | {"shared": True, "batch": 5}
    trace = Trace()
    T = train_transformation(model, x, y, epochs=2, trace=trace, **options)
    assert trace.values.shape == (GAME["outer"] * (GAME["inner"] + 1), 2 * len(x))
    assert torch.equal(T.theta, train_transformation(model, x, y, epochs=2, **options).theta)
    assert not torch.equal(T.theta, train_transformation(model, x, y, epochs=1, **options).theta)


def test_nothing_leaks(deep):
    model, x, y = deep
    model.train()
    before = [p.clone() for p in model.parameters()], x.clone(), torch.get_rng_state()
    for shared in (False, True):
        T = train_transformation(model, x, y, eps=EPS, outer=2, inner=2, shared=shared, start="random")
        x_adv = atta(model, x, y, T=T, eps=EPS, steps=2)
        assert not T.theta.requires_grad
        assert not x_adv.requires_grad
    assert model.training
    assert all(p.grad is None and p.requires_grad and torch.equal(p, q)
               for p, q in zip(model.parameters(), before[0], strict=True))
    assert torch.equal(x, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    with pytest.raises(ValueError, match="y holds"):
        train_transformation(model, x, y + 9, eps=EPS, shared=True)
    assert model.training


def test_mistakes_get_one_sentence(deep):
    model, x, y = deep
    T = train_transformation(model, x[:4], y[:4], eps=EPS, outer=1, inner=1)
    with pytest.raises(ValueError, match="4 rows for 9 images"):
        atta(model, x, y, T=T, eps=EPS)
    with pytest.raises(ValueError, match="4 transformations for 9 images"):
        T(x)
    for wrong, said in (({"kernel": 4}, "odd kernel"), ({"width": 2}, "width of 3"), ({"start": "zero"}, "start must"),
                        ({"outer": 0}, "outer"), ({"eps": 16}, "16/255")):
        with pytest.raises(ValueError, match=said):
            train_transformation(model, x, y, **({"eps": EPS} | wrong))
    with pytest.raises(ValueError, match="divide"):
        train_transformation(model, x * 255, y, eps=EPS)
    with pytest.raises(ValueError, match="theta must be"):
        Transformation(torch.zeros(1, 5))
