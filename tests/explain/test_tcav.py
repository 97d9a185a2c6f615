"""TCAV where the answer is known: linear layers, whose derivative is a row of the head, and planted directions."""
import numpy as np
import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import generator, logits
from kit.explain import TCAV, ConceptTest
from kit.explain.tcav import corrected, planes, sensitivities, summary, t_test


@pytest.fixture
def colours():
    """A network of three pooled colours; class 0 grows with red and falls with green."""
    conv = nn.Conv2d(3, 3, 1, bias=False)
    conv.weight.data = torch.eye(3)[:, :, None, None]
    head = nn.Linear(3, 2, bias=False)
    head.weight.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.5]])
    model = nn.Sequential()
    for name, part in (("maps", conv), ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("head", head)):
        model.add_module(name, part)
    base = 0.3 + 0.1 * torch.rand(60, 3, 4, 4, generator=generator(0))
    more = []
    for k in range(3):
        image = 0.3 + 0.1 * torch.rand(40, 3, 4, 4, generator=generator(k + 1))
        image[:, k] += 0.4
        more.append(image)
    return model, base, more


class Squares(nn.Module):
    """Logits (Σ s_c A_c², 0) with A the mean colours of the quarters: ∂z_0/∂A = 2 s A, which differs between images."""

    def __init__(self):
        super().__init__()
        self.maps = nn.AvgPool2d(2)
        self.s = nn.Parameter(torch.tensor([1.0, -1.0, 0.0]))

    def forward(self, x):
        z = (self.s[:, None, None] * (self.maps(x) - 0.5).square()).flatten(1).sum(1)
        return torch.stack([z, torch.zeros_like(z)], 1)


def zeros(x):
    return torch.zeros(len(x), dtype=torch.int64)


# --- one vector ------------------------------------------------------------------------------------------------------


def test_the_vector_points_to_the_concept_and_the_score_has_its_sign(colours):
    model, base, more = colours
    x, y = base[40:], zeros(base[40:])
    for k, score in ((0, 1.0), (1, 0.0)):
        found = TCAV(model, "maps").fit(more[k], base[:40])
        assert found.accuracy == 1.0
        assert float(found.cav.norm()) == pytest.approx(1, abs=1e-5)
        assert float(found.cav[k].mean()) > 5 * float(found.cav.mean((1, 2)).abs().sort().values[1])
        assert found.score(x, y) == score
    exact = model.head.weight.data[0][:, None, None] / 16 * found.cav  # ∂z_0/∂A is the head's row over the 16 places
    assert torch.allclose(found.derivatives(x, y), exact.sum().expand(20), atol=1e-6)
    assert found.score(x, y, "mean") == pytest.approx(float(exact.sum()), abs=1e-6)


def test_nothing_below_the_layer_is_kept_for_the_backward_pass(colours):
    """No input requires a gradient before the layer, and each does after it; what works in place after it may."""
    model, base, more = colours
    seen = []

    class Inside(nn.Module):
        def forward(self, h):
            seen.append(h.requires_grad)
            return h.clone()

    class InPlace(nn.Module):
        def forward(self, h):
            seen.append(h.requires_grad)
            return h.mul_(1.0)

    wrapped = nn.Sequential()
    for name, part in (("before", Inside()), *model.named_children()):
        wrapped.add_module(name, part)
        if name == "maps":
            wrapped.add_module("after", InPlace())
    x, v = base[:5], torch.eye(3)[:, :, None, None]
    found = sensitivities(wrapped, "maps", x, zeros(x), v)
    assert torch.allclose(found, model.head.weight.data[0].expand(5, 3), atol=1e-6)
    assert seen[-2:] == [False, True]
    assert torch.is_grad_enabled()


def test_what_is_no_concept_is_not_told_from_random_images(colours):
    model, base, _ = colours
    found = [TCAV(model, "maps", seed=s).fit(base[:30], base[30:]).accuracy for s in range(5)]
    assert sum(found) / 5 < 0.75


def test_calls_repeat_and_mistakes_are_named(colours):
    model, base, more = colours
    first, again = (TCAV(model, "maps").fit(more[0], base) for _ in range(2))
    assert torch.equal(first.cav, again.cav)
    before = logits(model, base)
    with pytest.raises(ValueError, match="not 3"):
        TCAV(model, "maps").fit(more[0][:3], base)
    with pytest.raises(ValueError, match="call fit"):
        TCAV(model, "maps").score(base, zeros(base))
    with pytest.raises(ValueError, match="no layer"):
        TCAV(model, "elsewhere")
    with pytest.raises(ValueError, match="kind must be 'sign', 'ratio' or 'mean'"):
        first.score(base, zeros(base), "size")
    assert torch.equal(logits(model, base), before)


def test_images_that_do_not_fit_are_named_and_nothing_is_left_behind(colours):
    model, base, more = colours
    model.train()
    for concept, random, message in [
        (more[0].numpy(), base, "'concept' must be a torch tensor"),
        (more[0], base.numpy(), "'random' must be a torch"),
        (more[0][:, :, :3], base, "make them alike"), (more[0], base.double(), "make them alike"),
        (more[0].double(), base.double(), "use x.to"), (more[0] * 255, base, "divide them by 255"),
        (more[0][:0], base, "6 images of the concept"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            TCAV(model, "maps").fit(concept, random)
        with pytest.raises((ValueError, TypeError), match=message if "6 images" not in message else "6 at least"):
            ConceptTest(model, "maps", images=20).fit({"concept": concept}, random)
    with pytest.raises(ValueError, match="name a concept"):
        ConceptTest(model, "maps").fit(more[0], base)
    assert model.training
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_images_made_in_inference_mode_serve(colours):
    model, base, more = colours
    test = ConceptTest(model, "maps", runs=3, images=20).fit({"red": more[0]}, base)
    with torch.inference_mode():
        inside = test.derivatives(base + 0, zeros(base))
    assert torch.equal(inside, test.derivatives(base, zeros(base)))


# --- derivatives and their summaries ---------------------------------------------------------------------------------


def test_derivatives_of_many_vectors_are_those_of_each_by_finite_differences():
    model = Squares().double()
    x = torch.rand(130, 3, 4, 4, generator=generator(0)).double()  # more than a chunk
    v = torch.randn(7, 3, 2, 2, generator=generator(1)).double()
    S = sensitivities(model, "maps", x, zeros(x), v)
    assert S.shape == (130, 7)
    h = 1e-4
    for k in range(7):
        wide = h * v[k].repeat_interleave(2, 1).repeat_interleave(2, 2)  # moves A by h v, as A is a mean of 2 × 2
        moved = model(x + wide)[:, 0] - model(x - wide)[:, 0]
        assert torch.allclose(S[:, k], moved / (2 * h), atol=1e-6)
    assert torch.equal(sensitivities(model, "maps", x, zeros(x) + 1, v), torch.zeros(130, 7).double())
    assert (S > 0).any()
    assert (S < 0).any()


def test_a_vector_for_all_places_is_the_one_that_repeats_it():
    model, x = Squares(), torch.rand(5, 3, 4, 4, generator=generator(0))
    v = torch.randn(4, 3, 1, 1, generator=generator(1))
    everywhere = sensitivities(model, "maps", x, zeros(x), v.expand(4, 3, 2, 2))
    assert torch.allclose(sensitivities(model, "maps", x, zeros(x), v), everywhere, atol=1e-6)


def test_the_three_summaries():
    S = torch.tensor([[3.0, -1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, -2.0, 0.0], [1.0, 0.0, 0.0]])
    assert summary(S, "sign").tolist() == [0.75, 0.0, 0.0]
    assert summary(S, "ratio").tolist() == pytest.approx([5 / 6, 0.0, 0.5])
    assert summary(S, "mean").tolist() == [1.0, -1.0, 0.0]
    assert summary(-S, "ratio").tolist() == pytest.approx([1 / 6, 1.0, 0.5])


# --- planes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cloud():
    """Points of two kinds apart by 4 along a known unit vector, in noise of deviation ½; the sets of three runs."""
    u = torch.randn(12, generator=generator(0))
    u = u / u.norm()
    points = torch.randn(90, 12, generator=generator(1)) / 2
    points[:45] += 4 * u
    first = torch.stack([torch.randperm(45, generator=generator(r))[:30] for r in range(3)])
    return u, points, torch.stack([first, 45 + first.flip(0)], 1)


@pytest.mark.parametrize("classifier", ["hinge", "logistic", "ridge", "means"])
def test_every_classifier_finds_the_planted_direction_and_its_opposite(cloud, classifier):
    u, points, sets = cloud
    v, right = planes(points, sets, classifier=classifier)
    assert torch.allclose(v.norm(dim=1), torch.ones(3), atol=1e-5)
    assert (v @ u > 0.8).all()
    assert (right > 0.9).all()
    back, _ = planes(points, sets.flip(1), classifier=classifier)  # concept and counterpart change places
    assert (back @ u < -0.8).all()
    if classifier in ("ridge", "means"):
        assert torch.allclose(back, -v, atol=1e-5)
    _, chance = planes(torch.randn(90, 12, generator=generator(3)), sets, classifier=classifier)
    assert (chance < 0.9).all()
    assert 0.2 < float(chance.mean()) < 0.8


def test_ridge_is_least_squares_and_means_the_difference_of_means(cloud):
    from sklearn.linear_model import Ridge

    _, points, sets = cloud
    ours, right = planes(points, sets, classifier="ridge", alpha=0.02)
    means = planes(points, sets, classifier="means")[0]
    for v, (a, b) in enumerate(sets):
        x = torch.cat([points[a[10:]], points[b[10:]]]).double()
        y = np.repeat([1.0, -1.0], 20)
        size = 0.02 * float((x - x.mean(0)).square().sum())
        theirs = Ridge(alpha=size).fit(x.numpy(), y)
        w = torch.from_numpy(theirs.coef_)
        assert torch.allclose(ours[v].double(), w / w.norm(), atol=1e-5)
        held = torch.cat([points[a[:10]], points[b[:10]]]).double().numpy()
        assert float(right[v]) == ((theirs.predict(held) > 0) == (np.arange(20) < 10)).mean()
        apart = x[:20].mean(0) - x[20:].mean(0)
        assert torch.allclose(means[v].double(), apart / apart.norm(), atol=1e-5)


@pytest.mark.parametrize("classifier", ["ridge", "means"])
def test_points_that_are_in_no_set_move_neither_vector_nor_boundary(cloud, classifier):
    _, points, sets = cloud
    v, right = planes(points, sets, classifier=classifier)
    far, same = planes(torch.cat([points, 40 + points]), sets, classifier=classifier)
    assert torch.allclose(far, v, atol=1e-3)
    assert torch.equal(same, right)
    assert (right > 0.9).all()


def test_points_that_are_all_the_same_have_a_vector_of_zeros():
    w, _ = planes(torch.full((12, 4), 0.5), torch.arange(12).reshape(1, 2, 6))
    assert torch.equal(w, torch.zeros(1, 4).to(w))


def test_accuracy_is_of_images_that_were_held_out():
    """In more dimensions than points any labels can be separated: only what is held out says that nothing is there."""
    points = torch.randn(60, 400, generator=generator(0))
    sets = torch.stack([torch.randperm(60, generator=generator(r)).view(2, 30) for r in range(20)])
    _, right = planes(points, sets, classifier="ridge")
    assert 0.35 < float(right.mean()) < 0.65


# --- the test --------------------------------------------------------------------------------------------------------


def test_t_test_is_scipys_and_ties_are_no_accident():
    from scipy.stats import ttest_ind

    a, b = torch.rand(4, 10, generator=generator(0)).double(), torch.rand(15, generator=generator(1)).double()
    assert t_test(a, b) == pytest.approx([float(ttest_ind(row, b).pvalue) for row in a.numpy()])
    same = torch.ones(2, 10).double()
    same[1] = 0.0
    assert t_test(same, torch.ones(5).double()) == [1.0, 0.0]


def test_corrections():
    """Holm's by hand: 4 · 0.01, 3 · 0.013, which may not be less than it, 2 · 0.03, and 0.04 as it is, but not less."""
    p = [0.03, 0.01, 0.04, 0.013]
    assert corrected(p, "holm") == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert corrected(p, "bonferroni") == pytest.approx([0.12, 0.04, 0.16, 0.052])
    assert corrected([0.6, 0.9], "bonferroni") == [1.0, 1.0]
    with pytest.raises(ValueError, match="correction must be"):
        corrected(p, "none")


def test_concepts_with_influence_are_told_from_chance_in_both_directions(colours):
    model, base, more = colours
    x, y = base[:12], zeros(base[:12])
    named = dict(zip(("red", "green", "blue"), more, strict=True))
    found = ConceptTest(model, "maps", runs=12, images=24, controls=39).fit(named, base).test(x, y, kind="mean")
    assert list(found) == ["red", "green", "blue"]
    assert found["red"].score > 0 > found["green"].score
    assert abs(found["blue"].score) < 0.1 * found["red"].score
    assert min(t.accuracy for t in found.values()) == 1.0  # blue too: it can be told apart, and does not matter
    assert found["red"].corrected < 1e-4
    assert found["green"].corrected < 1e-4
    assert found["red"].runs.shape == (12,)
    assert all(t.corrected >= t.p for t in found.values())
    ranked = ConceptTest(model, "maps", runs=12, images=24, controls=39).fit(named, base).test(
        x, y, kind="mean", null="concepts")
    assert ranked["red"].p == ranked["green"].p == 1 / 40
    assert ranked["blue"].p > 1 / 40
    other = ConceptTest(model, "maps", runs=12, images=24).fit(named, base).test(x, y + 1, kind="mean")
    assert other["blue"].score > 0
    assert other["blue"].corrected < 1e-4


def test_vectors_of_zeros_and_random_sets_in_the_concepts_place_are_not_significant(colours):
    model, base, more = colours
    x, y = base[:12], zeros(base[:12])
    test = ConceptTest(model, "maps", runs=10, images=20, controls=9).fit({"red": more[0]}, base)
    own = test.cavs.clone()
    test.cavs[0] = 0
    assert test.test(x, y, kind="mean")["red"].score == 0
    assert test.test(x, y, kind="mean", null="concepts")["red"].p > 0.1
    test.cavs = own.clone()
    test.cavs[:2] = own[:2].flip(0)  # the random runs and the concept change places
    assert test.test(x, y, kind="mean", null="concepts")["red"].p > 0.1
    test.cavs = -own
    assert test.test(x, y)["red"].score == 0.0
    test.cavs = own
    assert test.test(x, y)["red"].score == 1.0


def test_runs_share_the_concepts_images_and_so_the_t_test_alarms_too_often(colours):
    """A random concept is no concept. The rank among others like it is uniform; the t-test is not: it takes what is
    common to one set of images, in all of its runs, for more than chance."""
    model, base, _ = colours
    pool = torch.cat([base, 0.3 + 0.1 * torch.rand(240, 3, 4, 4, generator=generator(9))])
    test = ConceptTest(model, "maps", runs=20, images=12, controls=60, classifier="means")
    test.fit({"none": pool[:12]}, pool[12:])
    alarms = test.false_alarms(base[:12], zeros(base[:12]), kind="mean")
    assert alarms.shape == (60,)
    assert not test.false_alarms(base[:12], zeros(base[:12]), kind="mean", level=0.0).any()
    assert float(alarms.double().mean()) > 0.3  # 0.05 would be right
    p = []
    for k in range(12):
        own = pool[12 * k:12 * k + 12]
        rest = torch.cat([pool[:12 * k], pool[12 * k + 12:]])
        one = ConceptTest(model, "maps", runs=5, images=12, controls=19, classifier="means").fit({"none": own}, rest)
        p.append(one.test(base[:12], zeros(base[:12]), kind="mean", null="concepts")["none"].p)
    assert sum(v <= 0.05 for v in p) <= 3
    assert 0.25 < sum(p) / 12 < 0.8


def test_relative_vectors_point_away_from_the_other_concepts(colours):
    """Red against green rises with red and falls with green; against random images it only rises with red."""
    model, base, more = colours
    named = {"red": more[0], "green": more[1]}
    plain, relative = (
        ConceptTest(model, "maps", runs=5, images=24, against=a, classifier="means").fit(named, base).cavs[0].mean(
            (0, 2, 3)) for a in ("random", "others"))
    assert abs(float(plain[1])) < 0.1 * float(plain[0])
    assert float(relative[1]) == pytest.approx(-float(relative[0]), rel=0.1)
    with pytest.raises(ValueError, match="relative ones need two"):
        ConceptTest(model, "maps", against="others").fit({"red": more[0]}, base)


def test_pooled_vectors_have_one_value_for_each_channel(colours):
    model, base, more = colours
    test = ConceptTest(model, "maps", runs=4, images=24, pool=True).fit({"red": more[0]}, base)
    assert test.cavs.shape == (2, 4, 3, 1, 1)
    S = test.derivatives(base[:5], zeros(base[:5]))
    assert S.shape == (5, 2, 4)
    exact = (test.cavs[:, :, :, 0, 0] * model.head.weight.data[0]).sum(2)  # the mean over places moves by v
    assert torch.allclose(S[0], exact, atol=1e-6)
    flat = ConceptTest(model, "flat", runs=4, images=24).fit({"red": more[0]}, base)
    assert torch.allclose(flat.derivatives(base[:5], zeros(base[:5])), S, atol=1e-5)  # pooled by the network itself


def test_it_is_kept_and_read_again(colours, tmp_path):
    model, base, more = colours
    named = {"red/1": more[0], "green": more[1]}
    test = ConceptTest(model, "maps", runs=4, images=20, controls=3, alpha=0.1).fit(named, base)
    test.save(tmp_path / "test.safetensors")
    again = ConceptTest.load(tmp_path / "test.safetensors", model)
    assert again.settings() == test.settings()
    assert torch.equal(again.cavs, test.cavs)
    assert torch.equal(again.chance(base, zeros(base)), test.chance(base, zeros(base)))
    first, second = (t.test(base, zeros(base)) for t in (test, again))
    assert list(first) == list(second) == ["red/1", "green"]
    assert first["green"].accuracy == second["green"].accuracy
    ConceptTest(model, "maps").save(tmp_path / "empty.safetensors")
    assert ConceptTest.load(tmp_path / "empty.safetensors", model).names == []


def test_a_set_is_never_set_against_its_own_images(colours, monkeypatch):
    """Controls and random runs draw both kinds from one pool, and no image may be in both."""
    model, base, more = colours
    seen = []

    def kept(points, sets, **options):
        seen.append(sets)
        return planes(points, sets, **options)

    monkeypatch.setattr("kit.explain.tcav.planes", kept)
    ConceptTest(model, "maps", runs=6, images=20, controls=5).fit({"red": more[0]}, base)
    (sets,) = seen
    assert sets.shape == (7 * 6, 2, 20)
    for a, b in sets.tolist():
        assert len({*a, *b}) == 40
    of = sets.view(7, 6, 2, 20)
    assert int(of[0, :, 0].max()) < 40 <= int(of[1:].min())  # the concept's images come first, then the pool
    for each in (of[0, :, 1], of[1, :, 0], of[1, :, 1]):  # counterparts and random sets are drawn anew in each run
        assert len({tuple(sorted(a)) for a in each.tolist()}) == 6
    assert all(len({tuple(sorted(a)) for a in control[:, 0].tolist()}) == 1 for control in of[2:])
    assert len({tuple(sorted(control[0, 0].tolist())) for control in of[2:]}) == 5


def test_runs_differ_calls_repeat_and_seeds_count(colours):
    model, base, more = colours
    named = {"red": more[0]}
    a, b, c = (ConceptTest(model, "maps", runs=4, images=20, seed=s).fit(named, base).cavs for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)
    assert float((a[0, 0] - a[0, 1]).abs().max()) > 1e-3


def test_mistakes_are_named(colours):
    model, base, more = colours
    for wrong, message in (({"runs": 1}, "runs is at least 2"), ({"alpha": -1.0}, "alpha is a penalty"),
                           ({"alpha": float("nan")}, "alpha is a penalty"),
                           ({"classifier": "svm"}, "classifier must be 'hinge'"),
                           ({"against": "all"}, "against must be")):
        with pytest.raises(ValueError, match=message):
            ConceptTest(model, "maps", **wrong)
    with pytest.raises(TypeError, match="whole numbers"):
        ConceptTest(model, "maps", runs=10.0)
    with pytest.raises(ValueError, match="alpha is a penalty"):
        TCAV(model, "maps", alpha=0)
    with pytest.raises(ValueError, match="name a concept"):
        ConceptTest(model, "maps").fit({}, base)
    with pytest.raises(ValueError, match="give more, or set images lower"):
        ConceptTest(model, "maps", images=40).fit({"red": more[0]}, base[:50])
    with pytest.raises(ValueError, match="6 at least"):
        ConceptTest(model, "maps").fit({"red": more[0][:5]}, base)
    with pytest.raises(ValueError, match="call fit"):
        ConceptTest(model, "maps").test(base, zeros(base))
    fitted = ConceptTest(model, "maps", images=20).fit({"red": more[0]}, base)
    with pytest.raises(ValueError, match="fit with controls=99"):
        fitted.test(base, zeros(base), null="concepts")
    with pytest.raises(ValueError, match="null must be"):
        fitted.test(base, zeros(base), null="chance")


# --- planted networks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grounds():
    return kit.data.load("scenes", "test", n=600), kit.data.load("scenes", "train", n=200)


@pytest.mark.parametrize(("name", "label", "factor", "near"), [
    ("planted/background", 2, "background", False), ("planted/texture", 1, "texture", True),
    ("scenes/resnet", 6, "shape", False)])
def test_a_planted_concept_comes_first_and_not_in_random_weights(grounds, name, label, factor, near):
    other, fit = (d if not near else kit.data.load("scenes", split, n=len(d), near=True)
                  for d, split in zip(grounds, ("test", "train"), strict=True))
    x = fit.x[fit.concepts[factor] == label][:20]
    named = {key: other.x[other.concepts[key] == k][:40]
             for key, k in (("shape", 6), ("texture", 1), ("background", 2))}
    named["none"] = other.x[-40:]
    y = torch.full((len(x),), label)
    for seed in range(2):
        test = ConceptTest(kit.models.load(name), "block2", controls=39, runs=10, images=40, pool=True, seed=seed)
        test.fit(named, other.x[:400])
        found, ranked = (test.test(x, y, kind="mean", null=null) for null in ("runs", "concepts"))
        assert max(ranked, key=lambda c: ranked[c].score) == factor
        assert test.test(x, y)[factor].score == 1.0
        assert found[factor].corrected < 0.05
        assert ranked[factor].p == 1 / 40
        assert ranked["none"].p > 0.05
        assert found[factor].accuracy > found["none"].accuracy
    torch.manual_seed(3)
    blind = ConceptTest(kit.models.build(name).eval(), "block2", controls=39, runs=10, images=40, pool=True)
    assert blind.fit(named, other.x[:400]).test(x, y, kind="mean", null="concepts")[factor].p > 0.05
