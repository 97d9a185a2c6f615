"""Attacking for Interpretability, where the answer is known: linear classes, networks made by hand, planted factors."""
import math

import pytest
import torch
from torch import Tensor, nn

import kit.data
import kit.models
from kit.core import MisleadingModel, generator, logits
from kit.explain import Afi
from kit.explain.afi import concept_curves, mmd, occluded, occluder, pieces, rotated, segment_concepts, shuffled
from kit.explain.afi.classes import total_variation
from kit.explain.afi.occluder import transformed


class TwoClasses(nn.Module):
    """Logits (w·x + b, 0) behind a layer of feature maps: the first channel is w ∘ x, the second nothing."""

    def __init__(self, w: Tensor, b: float):
        super().__init__()
        self.maps = Products(w)
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        lead = self.maps(x)[:, 0].flatten(1).sum(1) + self.b
        return torch.stack([lead, torch.zeros_like(lead)], 1)


class Products(nn.Module):
    def __init__(self, w: Tensor):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(self.w * x).sum(1), torch.zeros_like(x[:, 0])], 1)


@pytest.fixture
def linear():
    """A linear class, images that it sees, and the largest lead that an occluder has to take from one of them."""
    w = torch.randn(1, 2, 5, 5, generator=generator(1))
    x = 0.4 + 0.2 * torch.rand(30, 2, 5, 5, generator=generator(2))
    b = 0.5 - float((w * x).flatten(1).sum(1).min())
    model = TwoClasses(w, b)
    return model, x, torch.zeros(30, dtype=torch.int64), float(logits(model, x)[:, 0].max())


def test_the_least_occluder_of_a_linear_class_fills_the_pixel_of_the_largest_weight(linear):
    """w·δ must reach the largest lead: the cheapest way in l1 is max lead / ‖w‖∞ on that pixel, with its sign, as long
    as the pixel has room for it."""
    model, x, y, _ = linear
    w = model.maps.w.data
    strong = w.clone()
    strong.view(-1)[7] = -16.0
    model.maps.w.data, model.b = strong, model.b - float(((strong - w) * x).flatten(1).sum(1).min())
    least = float(logits(model, x)[:, 0].max()) / 16
    assert least < 0.4  # there is room
    delta = occluder(model, x, 0, noise=0, degrees=0, share=1.0, steps=150, batch=30)
    assert (logits(model, occluded(x, delta)).argmax(1) == 1).all()
    assert least <= float(delta.abs().sum()) <= 1.1 * least
    assert float(delta.flatten()[7]) < 0  # against the sign it would make the class more certain
    assert float(delta.abs().sum() - delta.flatten()[7].abs()) < 0.05 * least


def test_two_pixels_are_filled_one_after_the_other(linear):
    """Where the strongest pixel is not enough, the next one takes the rest: |δ_j| ≤ 1 and x − δ ≥ 0."""
    model = linear[0]
    w = torch.full((1, 2, 5, 5), 0.01)
    w.view(-1)[3], w.view(-1)[11] = 4.0, 2.0
    x = torch.full((8, 2, 5, 5), 0.5)
    model.maps.w.data, model.b = w, 0.0
    model.b = 2.6 - float(logits(model, x)[0, 0])  # 4 · 0.5 from the first, the other 0.6 from the second
    delta = occluder(model, x, 0, noise=0, degrees=0, share=1.0, steps=200, batch=8).flatten()
    assert float(delta[3]) == pytest.approx(0.5, abs=0.03)
    assert float(delta[11]) == pytest.approx(0.3, abs=0.05)
    assert float(delta.abs().sum()) == pytest.approx(0.8, rel=0.1)


def test_constraints_are_checked_image_by_image(linear):
    model, x, y, _ = linear
    afi = Afi(model, "maps", noise=0.02, degrees=5, steps=60, batch=30).fit(x, y)
    found = afi.check(x)
    assert found.premise.shape == found.plain.shape == (30,)
    gone = logits(model, occluded(x, afi.delta)).argmax(1) == 1
    assert torch.equal(found.plain, gone)
    assert found.shares["all"] >= 0.9
    assert torch.equal(afi.check(x[4:9]).plain, found.plain[4:9])
    first = afi.check(x[:6])  # what is drawn for an image does not depend on how many come with it
    assert all(torch.equal(a, b[:6]) for a, b in zip(first, found, strict=True))


def test_the_premise_asks_for_the_class_before_and_after_every_change(linear):
    """Where the lead is small, noise or a turn takes the class from some images that have it, others gain it."""
    model, x, _, _ = linear
    model.b = -float((model.maps.w.data * x).flatten(1).sum(1).median())
    y = torch.zeros(30, dtype=torch.int64)
    seen = logits(model, x).argmax(1) == 0
    afi = Afi(model, "maps", noise=0.1, degrees=90).fit(x, y, delta=0.1 * model.maps.w.data.sign())
    premise = afi.check(x).premise
    assert 2 <= int(premise.sum()) < int(seen.sum()) < 30
    assert not (premise & ~seen).any()


def test_an_occluder_of_the_wrong_sign_or_of_nothing_holds_no_constraint(linear):
    model, x, y, _ = linear
    afi = Afi(model, "maps", noise=0.02, degrees=5, steps=60, batch=30).fit(x, y)
    delta = afi.delta
    with pytest.raises(ValueError, match="lowers no feature"):
        afi.fit(x, y, delta=torch.zeros_like(delta))
    assert not afi.check(x).plain.any()
    with pytest.raises(ValueError, match="lowers no feature"):
        Afi(model, "maps", noise=0, degrees=0).fit(x, y, delta=-delta.sign() * (delta != 0))


def test_importance_is_the_mean_loss_of_a_feature_and_never_negative(linear):
    model, x, y, _ = linear
    delta = 0.1 * torch.randn(1, 2, 5, 5, generator=generator(3))
    afi = Afi(model, "maps", noise=0, degrees=0).fit(x, y, delta=delta)
    exact = (model.maps.w.data * delta).sum(1)[0]  # the layer is linear, and the pixels have room
    assert torch.allclose(afi.importance[0], exact.clamp_min(0), atol=1e-5)
    assert (exact < 0).any()
    assert (afi.importance >= 0).all()
    assert afi.importance[1].eq(0).all()
    assert afi.channels.tolist() == [1.0, 0.0]


def test_channels_are_weighed_by_what_they_lose():
    """Three channels: the mean colour red, half of green, and blue. The occluder takes red and green alike."""
    conv = nn.Conv2d(3, 3, 1, bias=False)
    conv.weight.data = torch.diag(torch.tensor([1.0, 0.5, 1.0]))[:, :, None, None]
    model = nn.Sequential()
    model.add_module("maps", conv)
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    x = 0.6 + 0.1 * torch.rand(6, 3, 4, 4, generator=generator(0))
    x[:, 2] -= 0.5
    y = logits(model, x).argmax(1)
    delta = torch.tensor([0.2, 0.2, -0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone()
    afi = Afi(model, "maps", noise=0, degrees=0).fit(x, y, delta=delta)
    assert torch.allclose(afi.channels, torch.tensor([2 / 3, 1 / 3, 0.0]), atol=1e-5)
    expected = (2 / 3) * x[:, 0] + (1 / 6) * x[:, 1]
    assert torch.allclose(afi.detect(x), expected, atol=1e-5)
    assert torch.allclose(afi.explain(x), expected, atol=1e-5)  # the layer has the image's size
    made = afi.generate(2, steps=60, lr=0.2, lam=0.0)
    assert made.shape == (2, 3, 4, 4)
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    assert float(made[:, :2].mean()) > 0.9  # what excites f' is red and green
    assert float(made[:, 2].mean()) == pytest.approx(0.5, abs=0.05)  # and blue does not matter
    assert torch.equal(made, afi.generate(2, steps=60, lr=0.2, lam=0.0))
    conv.bias = nn.Parameter(torch.full((3,), -1.0))  # to grey f' answers below zero, and what excites it is the same
    made = Afi(model, "maps", noise=0, degrees=0).fit(x, y, delta=delta).generate(2, steps=60, lr=0.2, lam=0.0)
    assert float(made[:, :2].mean()) > 0.9


def test_controls_take_off_what_any_disturbance_takes(linear):
    """The layer is linear: of the 50 values each of the two of δ comes to each with the same chance, with either sign,
    and the cut at zero leaves half. They rarely meet in one pixel."""
    model, x, y, _ = linear
    w, delta = model.maps.w.data, torch.zeros(1, 2, 5, 5)
    strong = int(w.abs().sum(1).argmax())
    delta[0].flatten(1)[:, strong] = 0.1 * w[0].flatten(1)[:, strong].sign()
    own = Afi(model, "maps", noise=0, degrees=0).fit(x, y, delta=delta)
    afi = Afi(model, "maps", noise=0, degrees=0, controls=400).fit(x, y, delta=delta)
    taken, expected = own.importance - afi.importance, 2 * 0.5 * 0.1 * w[0].abs().sum(0) / 50
    assert torch.allclose(taken[0].mean(), expected.mean(), rtol=0.15)
    assert float((taken[0] - expected).abs().max()) < 0.02
    assert taken[1].eq(0).all()
    again = Afi(model, "maps", noise=0, degrees=0, controls=400).fit(x, y, delta=delta)
    assert torch.equal(afi.importance, again.importance)


def test_an_occluder_that_takes_no_more_than_chance_weighs_nothing():
    """Two channels, red and blue: the occluder takes a little of red in one place. Shuffled, the same value falls on
    blue as often, and takes more there, since blue answers ten times as strongly."""
    conv = nn.Conv2d(2, 2, 1, bias=False)
    conv.weight.data = torch.diag(torch.tensor([1.0, 10.0]))[:, :, None, None]
    model = nn.Sequential()
    model.add_module("maps", conv)
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    x = 0.5 + 0.1 * torch.rand(6, 2, 4, 4, generator=generator(0))
    y, delta = logits(model, x).argmax(1), torch.zeros(1, 2, 4, 4)
    delta[0, 0, 0, 0], delta[0, 1, 3, 3] = 0.3, 0.01
    plain = Afi(model, "maps", noise=0, degrees=0).fit(x, y, delta=delta)
    beyond = Afi(model, "maps", noise=0, degrees=0, controls=200).fit(x, y, delta=delta)
    assert torch.allclose(plain.channels, torch.tensor([0.75, 0.25]), atol=1e-4)
    assert beyond.channels.tolist() == [1.0, 0.0]  # chance takes 0.3 · 10 / 4 of blue on average
    assert float(beyond.importance.sum((1, 2))[1]) < 0
    with pytest.raises(ValueError, match="controls is a number"):
        Afi(model, "maps", controls=-1)


def test_mmd_is_its_formula():
    a, b = torch.randn(5, 3, generator=generator(0)).double(), 1 + torch.randn(7, 3, generator=generator(1)).double()
    points = torch.cat([a, b])
    pairs = [float((p - q).norm()) for i, p in enumerate(points) for j, q in enumerate(points) if i != j]
    h = sorted(pairs)[(len(pairs) - 1) // 2]
    for name, k in (("gaussian", lambda u, v: math.exp(-float((u - v).square().sum()) / (2 * h * h))),
                    ("linear", lambda u, v: float(u @ v))):
        def over(s, t, k=k):
            return [k(u, v) for i, u in enumerate(s) for j, v in enumerate(t) if s is not t or i != j]

        aa, bb, ab = (sum(v) / len(v) for v in (over(a, a), over(b, b), over(a, b)))
        assert mmd(a, b, kernel=name)[0] == pytest.approx(aa + bb - 2 * ab, abs=1e-10)


def test_mmd_tells_samples_apart_and_its_p_is_uniform_where_they_are_alike():
    source = generator(2)
    far = mmd(torch.randn(30, 2, generator=source), 1.5 + torch.randn(30, 2, generator=source), permutations=99)
    assert far[0] > 0.1
    assert far[1] == 0.01
    p = [mmd(*torch.randn(2, 12, 2, generator=source), permutations=99, source=source)[1] for _ in range(100)]
    assert 0.4 < sum(p) / 100 < 0.6
    assert sum(v <= 0.1 for v in p) <= 20


def test_a_concept_that_quietens_the_detector_scores_below_zero(linear):
    model, x, y, _ = linear
    delta = 0.2 * torch.eye(5)[None, None].expand(1, 2, 5, 5) * model.maps.w.data.sign()
    afi = Afi(model, "maps", noise=0, degrees=0).fit(x, y, delta=delta)
    bright = (x + 0.15 * model.maps.w.data.sign()).clamp(0, 1)
    dark = (x - 0.15 * model.maps.w.data.sign()).clamp(0, 1)
    found = afi.concepts({"less": dark, "the same": x[:15], "more": bright}, x, permutations=99)
    assert list(found) == ["more", "the same", "less"]
    assert found["more"].score > 0.5
    assert found["less"].score < -0.5
    assert found["more"].p == found["less"].p == 0.01
    assert found["the same"].p > 0.05


def test_the_control_has_the_same_values_elsewhere():
    delta = torch.randn(1, 3, 6, 6, generator=generator(0))
    other = shuffled(delta, generator(1))
    assert torch.equal(other.abs().flatten().sort().values, delta.abs().flatten().sort().values)
    assert not torch.equal(other, delta)
    assert 20 < int((other > 0).sum()) < 88


def test_nothing_is_drawn_from_the_ambient_random_state(linear):
    model, x, y, _ = linear

    def everything(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        afi = Afi(model, "maps", noise=0.02, degrees=5, steps=20, batch=8).fit(x, y)
        control = Afi(model, "maps", noise=0, degrees=0).fit(x, y, delta=afi.delta)
        p = control.concepts({"bright": (x[:9] + 0.02).clamp(0, 1)}, x, permutations=99)["bright"].p
        assert torch.equal(torch.get_rng_state(), before)
        return afi.delta, shuffled(afi.delta), afi.check(x), p

    one, two = everything(1), everything(2)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert torch.equal(one[2].noise, two[2].noise)
    assert one[3] == two[3]
    assert 0.01 < one[3] < 1


def test_changes_go_either_way():
    """Of U(−a, a) the mean over n draws is within 4 a/√(3n) of 0, and some are near both ends."""
    grey = torch.full((40, 1, 5, 5), 0.5)
    grey[:, :, :2] = 0.8  # an edge: turned to the left it has more light in one half, to the right in the other
    _, noisy, turned = transformed(grey, 0.1, 20, generator(0))
    noise = noisy - grey
    assert noise.abs().max() <= 0.1 + 1e-6
    assert noise.min() < -0.095
    assert noise.max() > 0.095
    assert abs(float(noise.mean())) < 4 * 0.1 / 3000**0.5
    tilt = (turned[..., :2].sum((1, 2, 3)) - turned[..., 3:].sum((1, 2, 3))) / 0.3
    assert tilt.min() < -0.5
    assert tilt.max() > 0.5
    assert 10 <= int((tilt > 0).sum()) <= 30
    none = transformed(grey, 0, 0, generator(0), all_three=True)
    assert all(torch.allclose(v, grey, atol=1e-6) for v in none)


def test_total_variation_counts_edges_down_and_across_alike_whatever_the_size():
    for size in (6, 10):
        stripes = (torch.arange(size) % 2).float().view(1, 1, size, 1).expand(3, 2, size, size + 2)
        for x in (stripes, stripes.transpose(2, 3)):
            assert total_variation(x).tolist() == [2.0] * 3  # an edge everywhere in one direction, in two colours
    x = torch.rand(2, 3, 5, 8, generator=generator(0))
    assert torch.allclose(total_variation(x), total_variation(x.transpose(2, 3)))


def test_rotation():
    x = torch.rand(2, 3, 6, 6, generator=generator(0))
    turned = rotated(x, torch.tensor([0.0, math.pi / 2]))
    assert torch.allclose(turned[0], x[0], atol=1e-5)
    assert torch.allclose(turned[1], torch.rot90(x[1], 1, (1, 2)), atol=1e-5)
    wide = torch.zeros(1, 1, 9, 17)
    wide[0, 0, 4, 8:12] = 1.0  # a bar to the right of the centre points up after a quarter turn, at its length
    up = rotated(wide, torch.tensor([math.pi / 2]))[0, 0]
    assert torch.allclose(up[1:5, 8], torch.ones(4), atol=1e-4)
    assert float(up.sum()) == pytest.approx(4, abs=1e-3)


def test_it_is_kept_and_read_again(linear, tmp_path):
    model, x, y, _ = linear
    afi = Afi(model, "maps", noise=0.02, degrees=5, steps=30, batch=30).fit(x, y)
    afi.save(tmp_path / "afi.safetensors")
    again = Afi.load(tmp_path / "afi.safetensors", model)
    assert torch.equal(again.detect(x), afi.detect(x))
    assert again.settings() == afi.settings()
    assert torch.equal(again.check(x).plain, afi.check(x).plain)


def test_what_users_get_wrong(linear):
    model, x, y, _ = linear
    with pytest.raises(ValueError, match="no layer 'elsewhere'"):
        Afi(model, "elsewhere")
    with pytest.raises(ValueError, match="degrees in"):
        Afi(model, "maps", degrees=-1)
    with pytest.raises(ValueError, match="kernel must be"):
        Afi(model, "maps", kernel="cosine")
    with pytest.raises(ValueError, match="one class"):
        Afi(model, "maps").fit(x, (y + torch.arange(30)) % 2)
    with pytest.raises(ValueError, match="in 0 of these images"):
        Afi(model, "maps").fit(x, y + 1)
    with pytest.raises(ValueError, match="one for all images"):
        Afi(model, "maps").fit(x, y, delta=x[:2])
    with pytest.raises(ValueError, match="call fit"):
        Afi(model, "maps").detect(x)
    with pytest.warns(MisleadingModel, match="constraints hold for"):
        occluder(model, x, 0, steps=2)


@pytest.fixture(scope="module")
def patterns():
    """The network whose class is the background's pattern; scenes to fit on, others, and concepts of those others."""
    fit, other = kit.data.load("scenes", "train", n=3000), kit.data.load("scenes", "test", n=1500)
    fit, other = (d[d.concepts["texture"] == 0] for d in (fit, other))
    concepts = {}
    for factor in ("shape", "colour", "background", "background_colour"):
        for i, name in enumerate(other.concept_names[factor]):
            concepts[f"{factor} {name}"] = other.x[other.concepts[factor] == i][:24]
    return kit.models.load("planted/background"), fit, other, concepts


def test_a_planted_concept_comes_first_and_not_in_random_weights(patterns):
    model, fit, other, concepts = patterns
    y, settings = fit.concepts["background"], {"noise": 0.03, "degrees": 10, "steps": 50, "batch": 12}
    rows = (y == 2).nonzero()[:40, 0]
    afi = Afi(model, "block3", **settings).fit(fit.x[rows], y[rows])
    found = afi.concepts(concepts, other.x[:64], permutations=99)
    assert next(iter(found)) == "background waves"
    assert found["background waves"].score > 0.3
    assert found["background waves"].p == 0.01
    assert max(v.score for name, v in found.items() if not name.startswith("background ")) < 0.2
    unseen = other.x[other.concepts["background"] == 2]
    assert afi.check(unseen).shares["plain"] > 0.9
    control = Afi(model, "block3", **settings).fit(fit.x[rows], y[rows], delta=shuffled(afi.delta))
    assert control.check(unseen).shares["all"] < 0.5
    untrained = kit.models.build("planted/background").eval()
    z = logits(untrained, fit.x[rows]).argmax(1)
    own = z == z.mode().values  # what it calls the class, which says nothing
    blind = Afi(untrained, "block3", noise=0, degrees=0).fit(fit.x[rows][own], z[own], delta=afi.delta)
    found = blind.concepts(concepts, other.x[:64], permutations=0)
    assert next(iter(found)) != "background waves"


def test_curves_find_the_segments_that_decide():
    """The class is the left upper quarter's brightness: with it alone the class is seen, and without it no more."""
    w = torch.zeros(1, 1, 8, 8)
    w[..., :4, :4] = 1.0
    x = torch.rand(10, 1, 8, 8, generator=generator(0)) * 0.2 + 0.8
    model, y = TwoClasses(w, -8.8), torch.zeros(10, dtype=torch.int64)
    quarters = (torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4).expand(10, 8, 8)
    alone, without = concept_curves(model, x, y, quarters, [0, 1, 2, 3])
    assert alone.sum(1).tolist() == [0, 10, 10, 10, 10]
    assert without.sum(1).tolist() == [10, 0, 0, 0, 0]
    late, long = concept_curves(model, x, y, quarters, [3, 2, 1, 0])
    assert late.sum(1).tolist() == [0, 0, 0, 0, 10]
    assert long.sum(1).tolist() == [10, 10, 10, 10, 0]
    with pytest.raises(ValueError, match="once"):
        concept_curves(model, x, y, quarters, [0, 1, 2])


def test_segments_that_look_alike_are_one_concept():
    x = torch.full((6, 3, 8, 8), 0.5)
    x[:, 0, :, :4], x[:, 1, :, 4:] = 1.0, 1.0
    x[3:] = x[3:].flip(3)  # the same two things, in the other places
    halves = (torch.arange(8) // 4 + 4).expand(6, 8, 8)  # numbers need not begin at 0
    conv = nn.Conv2d(3, 3, 1, bias=False)
    conv.weight.data = torch.eye(3)[:, :, None, None]
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    shown, owner = pieces(x, halves)
    assert shown.shape == (12, 3, 8, 8)
    assert owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert torch.equal(shown[1, :, :, 4:], x[0, :, :, 4:])
    assert (shown[1, :, :, :4] == 0.5).all()
    _, concept, maps = segment_concepts(model, "0", x, halves, k=2)
    assert concept[::2][:3].unique().tolist() == concept[1::2][3:].unique().tolist() != concept[1].tolist()
    assert torch.equal(maps[0], maps[4].flip(1))
    assert maps[0, 0, 0] == concept[0]
