"""Where an attack takes hold: what a layer loses, what its drawings say, and what each contributes."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kit.data
import kit.fire
import kit.models
from kit.attacks import pgd
from kit.core import accuracy, generator, logits
from kit.fire import InterpretGAN, diagnose
from kit.fire.diagnosis import (
    bits_kept,
    equal_noise,
    equally_accurate,
    gains,
    information_lost,
    nearest_flip,
    other_answers,
    rank_kept,
)
from kit.fire.diagnosis.drawing import answered, unread
from kit.fire.diagnosis.layers import relative
from kit.models import Recipe, fit

MAX, AVERAGE = nn.MaxPool2d(2), nn.AvgPool2d(2)
BITS = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).view(16, 1, 2, 2)


# --- what a layer loses -----------------------------------------------------------------------------------------------


def test_pooling_keeps_the_bits_of_its_closed_form():
    """Of four fair bits: H(1/16) and H(Bin(4, ½)); a permutation keeps all four, a constant none."""
    binomial = torch.tensor([math.comb(4, k) / 16 for k in range(5)])
    assert bits_kept(MAX, BITS) == pytest.approx(-(1 / 16 * math.log2(1 / 16) + 15 / 16 * math.log2(15 / 16)))
    assert bits_kept(MAX, BITS) == pytest.approx(0.337, abs=5e-4)
    assert bits_kept(AVERAGE, BITS) == pytest.approx(float(-(binomial * binomial.log2()).sum()))
    assert bits_kept(AVERAGE, BITS) == pytest.approx(2.031, abs=5e-4)
    assert bits_kept(lambda x: x.flatten(1)[:, [2, 0, 3, 1]], BITS) == 4
    assert bits_kept(lambda x: 0 * x, BITS) == 0


@pytest.mark.parametrize("k", [2, 3])
def test_gains_of_poolings(k):
    """In l2 max pooling passes a change of one value on whole, average pooling 1/k of one; in l∞ both pass all on."""
    x = torch.rand(3, 1, k, k, generator=generator(k), dtype=torch.float64)
    assert gains(nn.MaxPool2d(k), x) == pytest.approx((1.0, 1.0))
    assert gains(nn.AvgPool2d(k), x) == pytest.approx((1 / k, 1.0))
    for pool in (nn.MaxPool2d(k), nn.AvgPool2d(k)):
        assert rank_kept(pool, x) == pytest.approx(1 / k**2)  # the same number of directions: rank does not tell them


def test_random_signs_move_a_maximum_and_not_a_mean():
    """±ε on four equal values: the mean moves by 0 on average, with a deviation of ε/2, the greatest by 0.875 ε."""
    eps = 0.1
    x = 0.5 + eps * (2 * BITS.double() - 1)
    assert float((AVERAGE(x) - 0.5).mean()) == pytest.approx(0, abs=1e-12)
    assert float((AVERAGE(x) - 0.5).std(unbiased=False)) == pytest.approx(eps / 2)
    assert float((MAX(x) - 0.5).mean()) == pytest.approx(0.875 * eps)


def test_information_lost_of_layers_whose_loss_is_known():
    h = torch.randn(4000, 8, generator=generator(0), dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator(1), dtype=torch.float64))[0]
    permuted = h[:, torch.randperm(8, generator=generator(2))]
    few = h[:12]  # fewer than would determine the decoder: still nothing is lost
    for same in (permuted, h @ rotation):
        assert information_lost([h, same])[0] == pytest.approx(0, abs=1e-9)
    assert information_lost([few, few @ rotation])[0] == pytest.approx(0, abs=1e-9)
    assert information_lost([h, h[:, :6]])[0] == pytest.approx(2 / 8, abs=0.02)
    assert information_lost([h, 0 * h])[0] == pytest.approx(1, abs=0.01)
    first, second = information_lost([h, h[:, :6], h[:, :3]])
    assert (first, second) == pytest.approx((2 / 8, 3 / 6), abs=0.02)
    with pytest.raises(ValueError, match="8 at least"):
        information_lost([h[:7], h[:7]])
    for sets in ([], [h], [h, h[:10]]):
        with pytest.raises(ValueError, match="two sets"):
            information_lost(sets)
    with pytest.raises(ValueError, match="NaN"):
        information_lost([h, h * torch.nan])
    for wrong in (BITS[:0], BITS * torch.nan, BITS.long()):
        for measure in (bits_kept, gains, rank_kept):
            with pytest.raises(ValueError, match="rows"):
                measure(MAX, wrong)


def test_features_of_another_level_are_told_from_fewer():
    """The decoder has a constant, and is measured on rows that it was not fitted on."""
    h = torch.randn(400, 6, generator=generator(0), dtype=torch.float64)
    assert information_lost([h + 50, h[:, :3] - 20])[0] == pytest.approx(0.5, abs=0.06)
    strange = torch.randn(400, 150, generator=generator(1), dtype=torch.float64)
    assert information_lost([h, strange])[0] > 1  # worse than the mean, off the rows that it knows by heart


def test_information_lost_by_poolings_of_gaussian_noise():
    """Of four independent N(0, 1): the mean explains ¼ of each, 1 of 4; the greatest (1/4)² / Var max = 0.127."""
    h = torch.randn(4000, 1, 2, 2, generator=generator(3), dtype=torch.float64)
    assert information_lost([h, AVERAGE(h)])[0] == pytest.approx(1 - 0.25, abs=0.02)
    assert information_lost([h, MAX(h)])[0] == pytest.approx(1 - 0.127, abs=0.02)


# --- the diagnosis ----------------------------------------------------------------------------------------------------


class Turned(nn.Module):
    """A permutation of the pixels."""

    def __init__(self, d):
        super().__init__()
        self.register_buffer("order", torch.randperm(d, generator=generator(5)))

    def forward(self, h):
        return h[:, self.order]


def linear(seed, d=16, classes=3):
    layer = nn.Linear(d, classes)
    layer.weight.data = torch.randn(classes, d, generator=generator(seed))
    layer.bias.data = -layer.weight.data.sum(1) / 2
    return layer


class Exact:
    """Draws what a network of a permutation and a cut of the last pixels says, by their inverses."""

    noise, layers = 2, ["flat", "turned", "cut"]

    def __init__(self):
        self.model = nn.Sequential()
        self.model.add_module("flat", nn.Flatten())
        self.model.add_module("turned", Turned(16))
        self.model.add_module("cut", Cut(10))
        self.model.add_module("head", linear(6, 10))

    def draw(self, layer, h, n):
        if layer == "cut":
            h = F.pad(h, (0, 6), value=0.5)
        if layer != "flat":
            h = h[:, self.model.turned.order.argsort()]
        return h.view(-1, 1, 4, 4)


class Cut(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, h):
        return h[:, : self.keep]


def setting(n=400):
    gan, judge = Exact(), nn.Sequential(nn.Flatten(), linear(7))
    x = torch.rand(n, 1, 4, 4, generator=generator(8))
    return gan, judge, x, pgd(judge, x, answered(judge, x), eps=0.2, steps=5)


def test_a_layer_that_permutes_contributes_nothing_and_loses_nothing():
    gan, judge, x, x_adv = setting()
    found = diagnose(gan, x, x_adv, judge=judge, generator=generator(1))
    share = float((answered(judge, x_adv) != answered(judge, x)).float().mean())
    flat, turned, cut = found.vulnerability()
    assert share > 0.3
    assert float(found.flipped[:, 0].float().mean()) == pytest.approx(share)
    assert (flat.value, turned.value) == (0, 0)
    assert cut.value < -0.05  # the attack's changes at the pixels that are cut are gone
    assert found.lost[:2] == pytest.approx([0, 0], abs=1e-6)
    assert found.lost[2] > 0.2
    torch.testing.assert_close(found.moved[:, 0], found.moved[:, 2])
    assert not found.floor[:, :3].any()
    assert found.floor[:, 3].float().mean() > 0.1
    assert sum(v.value for v in found.vulnerability()) == pytest.approx(
        float(found.flipped[:, -1].double().mean() - found.flipped[:, 0].double().mean()))


def test_the_control_moves_as_far_and_flips_less():
    gan, judge, x, x_adv = setting()
    found = diagnose(gan, x, x_adv, judge=judge, generator=generator(1))
    torch.testing.assert_close(found.moved[:, 0], found.moved_by_noise[:, 0])
    assert found.by_noise[:, 0].float().mean() < 0.6 * found.flipped[:, 0].float().mean()
    nothing = diagnose(gan, x, x, judge=judge)
    assert not nothing.flipped.any()
    assert not nothing.by_noise.any()
    assert math.isnan(nothing.rank_correlation())


def test_rank_correlation_has_the_sign_of_the_claim():
    gan, judge, x, x_adv = setting()
    found = diagnose(gan, x, x_adv, judge=judge)
    flipped = torch.tensor([[0, 0, 1, 1.0], [0, 0, 0, 1.0], [0, 0, 0, 1.0]])
    rising = found._replace(flipped=flipped, lost=[0.0, 0.1, 0.2])
    assert rising.rank_correlation() == pytest.approx(1)
    assert rising._replace(lost=[0.2, 0.1, 0.0]).rank_correlation() == pytest.approx(-1)


def test_what_the_diagnosis_refuses():
    gan, judge, x, x_adv = setting(20)
    for attacked in (gan.model, copy.deepcopy(gan.model)):
        with pytest.raises(ValueError, match="another network"):
            diagnose(gan, x, x_adv, judge=attacked)
    with pytest.raises(TypeError, match="fitted InterpretGAN"):
        diagnose(gan.model, x, x_adv, judge=judge)
    with pytest.raises(TypeError, match="generator must"):
        diagnose(gan, x, x_adv, judge=judge, generator=3)
    with pytest.raises(TypeError, match="float64"):
        diagnose(gan, x, x_adv.double(), judge=judge)
    with pytest.raises(ValueError, match="same images"):
        diagnose(gan, x, x_adv[:5], judge=judge)


def test_noise_of_equal_size():
    x = torch.rand(30, 1, 5, 5, generator=generator(0))
    x_adv = (x + 0.3 * torch.randn(x.shape, generator=generator(1))).clamp(0, 1).clamp(x - 0.5, x + 0.5)
    noisy = equal_noise(x, x_adv, generator(2))
    sizes = [(v - x).abs().flatten(1).sort(1).values for v in (x_adv, noisy)]
    torch.testing.assert_close(*sizes)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    direction = [F.normalize((v - x).flatten(1)) for v in (x_adv, noisy)]
    assert (direction[0] * direction[1]).sum(1).abs().mean() < 0.35
    torch.testing.assert_close(equal_noise(x[:4], x_adv[:4], generator(2)), equal_noise(x[:4], x_adv[:4], generator(2)))
    with pytest.raises(ValueError, match="same images"):
        equal_noise(x, x_adv[:3])
    with pytest.raises(ValueError, match="NaN"):
        equal_noise(x, x_adv * torch.nan)
    assert (noisy > x).float().mean() == pytest.approx(0.5, abs=0.08)
    with pytest.raises(ValueError, match=r"up to 0\.5"):
        equal_noise(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


def test_the_nearest_flip_of_a_linear_rest_is_its_margin():
    model = Exact().model
    x = torch.rand(30, 1, 4, 4, generator=generator(9))
    z = logits(model, x)
    y, w = z.argmax(1), model.head.weight.detach()
    h = x.flatten(1)[:, model.turned.order][:, :10]
    far = torch.stack([(z.gather(1, y[:, None])[:, 0] - z[:, k]) / (w[y] - w[k]).norm(dim=1) for k in range(3)], 1)
    exact = far.nan_to_num(torch.inf).scatter(1, y[:, None], torch.inf).amin(1) / h.norm(dim=1)
    found = nearest_flip(model, x, y, layer="cut")
    torch.testing.assert_close(found, exact, rtol=0.03, atol=1e-4)
    assert (found >= exact * (1 - 1e-4)).all()
    assert (nearest_flip(model, x, (y + 1) % 3, layer="cut") == 0).all()
    torch.testing.assert_close(nearest_flip(model, x[3:5], y[3:5], layer="cut"), found[3:5])


def test_a_rest_that_reads_nothing_is_never_flipped():
    """Of some images, whose features are below a ReLU: no step moves them, and the others are as they were."""
    model = nn.Sequential()
    model.add_module("flat", nn.Sequential(nn.Flatten(), Shifted()))
    model.add_module("rest", nn.Sequential(nn.ReLU(), linear(6)))
    model.rest[1].bias.data = torch.tensor([-0.1, 0.0, 0.1])
    x = torch.rand(6, 1, 4, 4, generator=generator(9))
    x[::2] = 0.0
    y = logits(model, x).argmax(1)
    assert (y[::2] == 2).all()
    found = nearest_flip(model, x, y, layer="flat")
    assert found[::2].isinf().all()
    assert found[1::2].isfinite().all()
    torch.testing.assert_close(nearest_flip(model, x[1:2], y[1:2], layer="flat"), found[1:2])
    zero = torch.zeros(2, 3)
    assert relative(zero, zero).tolist() == [0, 0]


class Shifted(nn.Module):
    """What is black is below zero."""

    def forward(self, h):
        return h - 0.01


# --- the generators ---------------------------------------------------------------------------------------------------


def test_only_what_the_layer_does_not_read_is_free():
    """h = P x: what a drawing does in the null space of P costs nothing, what it does elsewhere costs its square."""
    x, other = torch.rand(2, 50, 16, generator=generator(3))
    P = torch.linalg.qr(torch.randn(16, 6, generator=generator(4)))[0]
    h, free = x @ P, other @ (torch.eye(16) - P @ P.T)
    assert unread((x + free) @ P, h, h).max() < 1e-9
    total = (h - h.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(unread((x + P[:, 0]) @ P, h, h), (1 / total).expand(50))
    torch.testing.assert_close(unread(h.mean(0).expand_as(h), h, h).mean(), torch.tensor(1.0))


class Drawer(nn.Module):
    """G(h, n) of one layer: something smooth of both, in [0, 1]."""

    def __init__(self, d, noise, seed):
        super().__init__()
        self.a = nn.Parameter(torch.randn(d, 16, generator=generator(seed)))
        self.b = nn.Parameter(torch.randn(noise, 16, generator=generator(seed + 1)))

    def forward(self, h, n):
        return (h.flatten(1) @ self.a + n @ self.b).sigmoid().view(-1, 1, 4, 4)


class Both(nn.ModuleDict):
    def forward(self, layer, h, n):
        return self[layer](h, n)


class Players(nn.Module):
    def __init__(self):
        super().__init__()
        self.drawers = Both({"first": Drawer(6, 2, 10), "head": Drawer(3, 2, 20)})
        self.judge = nn.Linear(16, 1)

    def critic(self, x):
        return self.judge(x.flatten(1)).tanh()[:, 0]


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_a_turn_of_both_players_has_the_gradients_of_the_two_formulas(spread):
    """Image by image, as the package writes them; each player descends its own loss and none of the other's."""
    model = nn.Sequential()
    model.add_module("first", nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh()))
    model.add_module("head", nn.Linear(6, 3))
    torch.manual_seed(0)
    game, x = Players(), torch.rand(6, 1, 4, 4, generator=generator(1))
    weights = list(game.parameters())
    gan = InterpretGAN(model, noise=2, lam=0.7, spread=spread)
    total, gradients = gan.both_players(game, weights, x, None, generator(2))

    source = generator(2)
    n, other = torch.randn(6, 2, generator=source), torch.randn(6, 2, generator=source)
    h = {"first": model.first(x).detach(), "head": model(x).detach()}
    drawing = critic = 0
    for i in range(6):
        layer = ("first", "head")[i % 2]
        own, one = h[layer][i : i + 1], game.drawers(layer, h[layer][i : i + 1], n[i : i + 1])
        again = {"first": model.first(one), "head": model(one)}
        variance = h[layer].var(0, unbiased=False).sum()
        p = h["head"][i].softmax(0)
        drawing = drawing + F.softplus(-game.critic(one)).sum() + 0.7 * (
            (again[layer] - own).square().sum() / variance
            + (p * (p.log() - again["head"][0].log_softmax(0))).sum())
        apart = (game.drawers(layer, own, other[i : i + 1]) - one).abs().mean() / (other[i] - n[i]).abs().mean()
        drawing = drawing - spread * apart
        real = x[i : i + 1].clone().requires_grad_()
        says = game.critic(real)
        slope = torch.autograd.grad(says.sum(), real, create_graph=True)[0]
        critic = critic + (F.softplus(-says) + F.softplus(game.critic(one.detach()))).sum() + slope.square().sum() / 2
    drawing, critic = drawing / 6, critic / 6
    torch.testing.assert_close(total, drawing + critic)
    for (name, weight), found in zip(game.named_parameters(), gradients, strict=True):
        exact = torch.autograd.grad(drawing if "drawers" in name else critic, weight, retain_graph=True)[0]
        torch.testing.assert_close(found, exact, msg=name)


def test_jitter_is_in_deviations_of_each_feature():
    gan = InterpretGAN(half_reading()[0], ["left"], jitter=0.5)
    h = torch.randn(4000, 3, generator=generator(0)) * torch.tensor([1.0, 10.0, 0.0])
    moved = (gan.disturbed(h, generator(1)) - h).std(0) / h.std(0).clamp_min(1e-9)
    assert moved.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=0.03)
    assert InterpretGAN(half_reading()[0], ["left"]).disturbed(h, generator(1)) is h


def test_generators_begin_from_their_seed_and_need_more_than_one_image():
    model, x = half_reading()

    def drawn(seed):
        gan = InterpretGAN(model, ["left"], width=2).fit(x[:4], epochs=1, batch=4, seed=seed)
        return gan.explain(x[:2], generator=generator(0))["left"]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.allclose(drawn(1), drawn(2))
    gan = InterpretGAN(model, ["left"], width=2)
    for images, batch in ((x[:1], 4), (x[:4], 1)):
        with pytest.raises(ValueError, match="two images"):
            gan.fit(images, epochs=1, batch=batch)
    with pytest.raises(ValueError, match="square"):
        gan.fit(torch.rand(4, 1, 8, 4), epochs=1)


def half_reading():
    """A network that reads the left half of an image, 8 × 8, in four steps; and images whose halves are independent."""
    model = nn.Sequential()
    model.add_module("left", nn.Sequential(nn.Flatten(), Halved(), nn.Linear(32, 6), nn.ReLU()))
    model.add_module("head", nn.Linear(6, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(p.numel())) / p.shape[-1] ** 0.5)
    shade = torch.rand(300, 2, generator=generator(2))
    x = torch.cat([s.view(-1, 1, 1, 1).expand(-1, 1, 8, 4) for s in shade.unbind(1)], 3)
    return model.eval(), x


class Halved(nn.Module):
    def forward(self, h):
        return h.view(-1, 8, 8)[:, :, :4].flatten(1)


def test_what_is_not_read_is_drawn_from_noise():
    """Where f reads the left half alone, drawings agree with the image there, and differ with n on the right."""
    model, x = half_reading()
    gan = InterpretGAN(model, ["left"], width=8, noise=4, lam=3.0).fit(x, epochs=60, batch=50, lr=5e-3)
    drawn = torch.stack([gan.explain(x[:60], generator=generator(s))["left"] for s in range(6)])
    left, right = drawn[..., :4].mean((3, 4, 2)) , drawn[..., 4:].mean((3, 4, 2))
    truth = x[:60, 0, 0, 0]
    assert torch.corrcoef(torch.stack([left.mean(0).flatten(), truth]))[0, 1] > 0.9
    assert left.std(0).mean() < 0.5 * right.std(0).mean()
    assert right.std(0).mean() > 0.03


@pytest.fixture(scope="module")
def shipped():
    return InterpretGAN.shipped("digits/cnn7")


@pytest.fixture(scope="module")
def digits():
    return kit.data.load("digits", "test", n=200)


def test_the_class_follows_permuted_features_and_a_generator_that_ignores_them_is_caught(shipped, digits):
    deaf = copy.copy(shipped)
    deaf.drawers = copy.deepcopy(shipped.fitted())
    for drawer in deaf.drawers.each:
        last = [m for m in drawer.read.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)
    for follows, stays in shipped.follows(digits.x, generator=generator(0)).values():
        assert follows > 0.7
        assert stays < 0.1
    for follows, _ in deaf.follows(digits.x, generator=generator(0)).values():
        assert follows < 0.3


def test_other_answers_is_a_permutation_that_leaves_no_answer():
    answer = torch.tensor([0, 0, 1, 2, 2, 1, 0, 3])
    order = other_answers(answer)
    assert sorted(order.tolist()) == list(range(8))
    assert (answer[order] != answer).all()
    with pytest.raises(ValueError, match="one answer"):
        other_answers(torch.zeros(5, dtype=torch.int64))
    for wrong in (answer[:0], answer.float()):
        with pytest.raises(ValueError, match="class numbers"):
            other_answers(wrong)


def test_explanations_have_the_noise_of_their_place(shipped, digits):
    x = digits.x[:6]
    one, again = (shipped.explain(x, generator=generator(1)) for _ in range(2))
    other, first = shipped.explain(x, generator=generator(2)), shipped.explain(x[:2], generator=generator(1))
    assert list(one) == shipped.layers
    for layer, drawn in one.items():
        assert drawn.shape == x.shape
        assert torch.equal(drawn, again[layer])
        torch.testing.assert_close(drawn[:2], first[layer])
        assert 0 <= drawn.min() <= drawn.max() <= 1
    assert (one["head"] - other["head"]).abs().mean() > 1e-3


def test_it_is_kept_and_knows_its_network(shipped, digits, tmp_path):
    path = tmp_path / "gan.safetensors"
    shipped.save(path)
    again = InterpretGAN.load(path, shipped.model)
    x = digits.x[:3]
    for a, b in zip(shipped.explain(x).values(), again.explain(x).values(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="other weights"):
        InterpretGAN.load(path, kit.models.load("at/digits"))
    with pytest.raises(ValueError, match="not fitted"):
        InterpretGAN(shipped.model).explain(x)


def test_shipped_generators_are_those_of_the_networks_weights(monkeypatch):
    with pytest.raises(ValueError, match="but for digits/cnn7"):
        InterpretGAN.shipped("digits/mlp")
    load = kit.models.load
    monkeypatch.setattr(kit.models, "load", lambda name, *where: load(
        {"digits/cnn7": "at/digits"}.get(name, name), *where))
    with pytest.raises(ValueError, match="other weights"):
        InterpretGAN.shipped("digits/cnn7")


def test_what_cannot_be_drawn_is_told(shipped, digits):
    x = digits.x[:4]
    h, n = shipped.read(x)["layer4"], shipped.noise_for(x)
    for wrong, words in (((h[:, :3], n), "features of layer4"), ((h, n[:2]), "8 numbers"), ((h, n[:, :3]), "8 numbers"),
                         ((h * torch.nan, n), "NaN"), ((h.long(), n), "floats")):
        with pytest.raises(ValueError, match=words):
            shipped.draw("layer4", *wrong)
    torch.testing.assert_close(shipped.draw("layer4", h, n.double()), shipped.draw("layer4", h, n))
    with pytest.raises(TypeError, match="generator must"):
        shipped.explain(x, generator=3)
    with pytest.raises(TypeError, match="use x.to"):
        shipped.explain(x.double())
    with pytest.raises(TypeError, match="shipped"):
        InterpretGAN("digits/cnn7")


@pytest.mark.parametrize(("wrong", "message"), [
    ({"layers": "layer1"}, "layers must name"), ({"layers": ["layer9"]}, "layer9"), ({"noise": 0}, "noise"),
    ({"lam": -1.0}, "lam"), ({"jitter": math.nan}, "jitter"), ({"spread": "3"}, "spread"), ({"noise": True}, "noise")])
def test_settings_that_are_refused(shipped, wrong, message):
    with pytest.raises(ValueError, match=message):
        InterpretGAN(shipped.model, **wrong)
    with pytest.raises(ValueError, match="no generator"):
        shipped.draw("layer9", torch.zeros(1, 10), torch.zeros(1, 8))


# --- two networks of equal accuracy -----------------------------------------------------------------------------------


def test_equally_accurate_networks_are_those_of_the_nearest_epochs():
    data, dev = kit.data.load("digits", "train", n=200), kit.data.load("digits", "dev", n=100)
    build = {"channels": 1, "size": 28, "width": 4}
    recipes = {p: Recipe("digits", "pooled", build | {"pool": p}, epochs=3, batch=20) for p in ("max", "average")}
    found = equally_accurate(recipes, data, dev, seed=1, device=torch.device("cpu"))
    gaps = []
    for p, r in recipes.items():
        plain = fit(r, data.x, data.y, seed=1, device=torch.device("cpu"))
        for a, b in zip(plain.parameters(), found[p][0].parameters(), strict=True):
            assert torch.equal(a, b)
        each = []
        fit(r, data.x, data.y, seed=1, device=torch.device("cpu"),
            watch=lambda epoch, net, each=each: each.append(accuracy(net.eval(), dev.x, dev.y)))
        gaps.append(each)
    nearest = min(abs(a - b) for a in gaps[0] for b in gaps[1])
    ours = [accuracy(pair[1], dev.x, dev.y) for pair in found.values()]
    assert abs(ours[0] - ours[1]) == pytest.approx(nearest)
    with pytest.raises(ValueError, match="two recipes"):
        equally_accurate({"max": recipes["max"]}, data, dev, device=torch.device("cpu"))


def test_the_pair_differs_in_its_pooling_alone():
    pair = {p: kit.models.build(Recipe("digits", "pooled", {"pool": p})) for p in ("max", "average")}
    assert [sum(v.numel() for v in net.parameters()) for net in pair.values()] == [11690, 11690]
    pair["average"].load_state_dict(pair["max"].state_dict())
    x = torch.rand(2, 1, 28, 28, generator=generator(1))
    with torch.no_grad():
        h = [net.block1(x) for net in pair.values()]
    assert h[0].shape == (2, 32, 6, 6)
    assert (h[0] > h[1]).any()
    assert (h[0] >= h[1]).all()
    with pytest.raises(ValueError, match="'max' or 'average'"):
        kit.models.build(Recipe("digits", "pooled", {"pool": "min"}))


def test_both_are_exported():
    assert kit.fire.InterpretGAN is InterpretGAN
    assert kit.fire.diagnose is diagnose
