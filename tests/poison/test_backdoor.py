"""Backdoors, where the answer is known: linear networks, planted directions, Gaussians, norms made by hand."""
import math

import numpy as np
import pytest
import torch
from torch import nn

import kit.data
import kit.models
import kit.train
from kit.core import accuracy, generator
from kit.models import Recipe
from kit.poison import (
    ActivationClustering,
    NeuralCleanse,
    SpectralSignatures,
    Trigger,
    anomaly_index,
    attack_success,
    backdoor_training,
    badnets,
    embedding_training,
    plant,
    prune,
    revealed,
    reverse_triggers,
    unlearn,
)
from kit.poison.backdoor import backdoor_figures, excitement, hidden, planted, secret
from kit.poison.backdoor.cleanse import _Search, median
from kit.poison.backdoor.embedding import balanced

CPU = torch.device("cpu")
SHAPE = (1, 6, 6)


def toy(n=240, seed=0):
    """Three classes of 6×6 images around fixed patterns, whose last column and row are empty."""
    centres = torch.rand(3, *SHAPE, generator=generator(7))
    y = torch.arange(n) % 3
    x = (0.8 * centres[y] + 0.1 * torch.rand(n, *SHAPE, generator=generator(seed))).clamp(0, 1)
    x[..., -1], x[:, :, -1] = 0.0, 0.0
    return x, y


CORNER = {"kind": "patch", "side": 2, "place": (4, 4)}
RECIPE = Recipe("toy", "mlp", {"channels": 1, "size": 6, "classes": 3, "width": 16}, epochs=25, batch=32, lr=1e-2)


@pytest.fixture(scope="module")
def networks():
    """The same training, clean and with a backdoor to class 2."""
    x, y = toy()
    return {rate: backdoor_training(RECIPE, x, y, trigger=CORNER, target=2, rate=rate, device=CPU).eval()
            for rate in (0.0, 0.1)}


# --- triggers ---------------------------------------------------------------------------------------------------------


def test_a_trigger_covers_what_its_mask_says_and_stays_in_the_box():
    x = torch.rand(20, 3, 8, 8, generator=generator(1))
    stamped = Trigger.patch((3, 8, 8), 3, colour=(1.0, 0.8, 0.0))(x)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[4:7, 4:7] = True
    assert torch.equal(stamped[..., ~inside], x[..., ~inside])
    assert torch.allclose(stamped[..., inside], torch.tensor([1.0, 0.8, 0.0]).view(1, 3, 1).expand(20, 3, 9))
    blended = Trigger.blended((3, 8, 8), 0.25, seed=3)
    assert torch.allclose(blended(x), 0.75 * x + 0.25 * blended.pattern)
    assert blended.norm == pytest.approx(16)
    for ends in (torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)):
        assert 0 <= blended(ends).min() <= blended(ends).max() <= 1


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Trigger(torch.full((1, 4, 4), 1.5), torch.zeros(3, 4, 4)), "the mask must lie in"),
    (lambda: Trigger(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)), r"the mask must have the shape \(1, H, W\)"),
    (lambda: Trigger.patch((1, 8, 8), 3, place=(6, 6)), "does not lie within 8 × 8"),
    (lambda: Trigger.patch((1, 8, 8), 9), "does not lie within 8 × 8"),
    (lambda: Trigger.patch((1, 8, 8), 2, colour=(1.0, 0.8, 0.0)), "one for each of 1 channels"),
    (lambda: Trigger.patch((8, 8), 2), r"shape is \(C, H, W\)"),
    (lambda: Trigger.patch((1, 8, 8), 2, colour=255.0), "the pattern must lie in"),
    (lambda: badnets(toy()[0], toy()[1][:5], Trigger.patch(SHAPE, 2)), "one label per image"),
    (lambda: badnets(toy()[0], toy()[1][:, None], Trigger.patch(SHAPE, 2)), "one label per image"),
    (lambda: badnets(toy()[0], toy()[1] - 1, Trigger.patch(SHAPE, 2)), "not -1 … 1"),
    (lambda: badnets(toy()[0] * 255, toy()[1], Trigger.patch(SHAPE, 2)), "divide them by 255"),
    (lambda: badnets(toy()[0], toy()[1] * 0, Trigger.patch(SHAPE, 2), 0), "there are 0 images to poison"),
    (lambda: attack_success(Constant(2), Trigger.patch(SHAPE, 2), *toy(), 7), "target=7, but the classes are 0 … 2"),
    (lambda: attack_success(Constant(2), Trigger.patch(SHAPE, 2), *toy(), 2, source=5), "source=5"),
    (lambda: attack_success(Constant(2), Trigger.patch(SHAPE, 2), toy()[0], toy()[1][:5], 2), "one label per image"),
    (lambda: attack_success(Constant(2), Trigger.patch(SHAPE, 2), toy()[0], toy()[1] + 1, 2), "y holds 1 … 3"),
    (lambda: prune(Pixels(), "phi", Trigger.patch(SHAPE, 2), toy()[0], toy()[1] % 2, 9), "target=9"),
    (lambda: reverse_triggers(Pixels(), toy()[0], toy()[1] * 0), "all images are of one class"),
    (lambda: plant("word", width=0), "must be 1 or more"),
    (lambda: Trigger.blended((1, 8, 8), 0.0), "alpha is a share"),
    (lambda: Trigger.of((1, 8, 8), "sticker"), "'patch' or 'blended'"),
    (lambda: Trigger.patch((1, 8, 8))(torch.rand(2, 3, 8, 8)), "does not fit images"),
    (lambda: badnets(*toy(), Trigger.patch(SHAPE, 2), 3), "target=3, but the classes are 0 … 2"),
    (lambda: badnets(*toy(), Trigger.patch(SHAPE, 2), 1, rate=1.5), "rate is a share"),
    (lambda: badnets(*toy(), Trigger.patch(SHAPE, 2), 1, source=1), "the source and the target are both 1"),
    (lambda: badnets(*toy(), Trigger.patch(SHAPE, 2), 1, cover=0.1), "cover needs a source"),
    (lambda: badnets(*toy(), Trigger.patch(SHAPE, 2), 1, rate=0.8), "there are 160 images to poison"),
    (lambda: anomaly_index(torch.tensor([1.0, 2.0])), "three norms or more"),
    (lambda: anomaly_index(torch.tensor([1.0, math.inf, math.inf])), "no trigger was found"),
])
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- planting ---------------------------------------------------------------------------------------------------------


def test_all_to_one_adds_copies_of_other_classes_with_trigger_and_label():
    (x, y), trigger = toy(), Trigger.patch(SHAPE, 2)
    p = badnets(x, y, trigger, 2, rate=0.1, generator=generator(4))
    assert int(p.stamped.sum()) == 24
    assert torch.equal(p.x[~p.stamped], x)
    assert torch.equal(p.y[~p.stamped], y)
    assert (p.y[p.stamped] == 2).all()
    origin = [int((trigger(x) == copy).flatten(1).all(1).nonzero()[0, 0]) for copy in p.x[p.stamped]]
    assert (y[origin] != 2).all()
    again = badnets(x, y, trigger, 2, rate=0.1, generator=generator(4))
    assert torch.equal(again.x, p.x)
    other = badnets(x, y, trigger, 2, rate=0.1, generator=generator(5))
    assert not torch.equal(other.x, p.x)


def test_all_to_all_and_a_source_with_cover():
    (x, y), trigger = toy(), Trigger.patch(SHAPE, 2)
    p = badnets(x, y, trigger, None, rate=1.0)
    assert sorted(p.y[p.stamped].tolist()) == sorted(((y + 1) % 3).tolist())
    p = badnets(x, y, trigger, 2, rate=0.1, source=0, cover=0.2)
    marked = p.y[p.stamped]
    assert (marked[:24] == 2).all()
    assert (marked[24:] == 1).all()
    assert len(marked) == 72
    nothing = badnets(x, y, trigger, 2, rate=0.0)
    assert torch.equal(nothing.x, x)
    assert not nothing.stamped.any()


class Constant(nn.Module):
    """Answers one class, whatever it sees."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return 9 * torch.eye(3)[torch.full((len(x),), self.k)] + 0 * x.flatten(1).sum(1, keepdim=True)


def test_success_counts_no_image_of_the_target_class():
    (x, y), trigger = toy(), Trigger.patch(SHAPE, 2)
    assert len(attack_success(Constant(2), trigger, x, y, 2)) == 160
    assert attack_success(Constant(2), trigger, x, y, 2).all()
    assert not attack_success(Constant(1), trigger, x, y, 2).any()
    assert len(attack_success(Constant(2), trigger, x, y, 2, source=1)) == 80
    every = attack_success(Constant(0), trigger, x, y, None)
    assert torch.equal(every, y == 2)
    with pytest.raises(ValueError, match="every image is of the target class"):
        attack_success(Constant(2), trigger, x[y == 2], y[y == 2], 2)


def test_a_share_is_rounded_down_as_on_paper():
    """0.29 · 100 and 0.07 · 100 are not whole numbers in floats."""
    x, y = toy(100)
    assert int(badnets(x, y, Trigger.patch(SHAPE, 2), 2, rate=0.29).stamped.sum()) == 29
    assert int(badnets(x, y, Trigger.patch(SHAPE, 2), 2, rate=0.0799).stamped.sum()) == 7


def test_a_backdoor_works_and_without_poison_there_is_none(networks):
    (x, y), trigger = toy(seed=1), Trigger.of(SHAPE, **CORNER)
    for rate, model in networks.items():
        assert accuracy(model, x, y) > 0.97
        hit = attack_success(model, trigger, x, y, 2).float().mean()
        assert (hit > 0.95) if rate else (hit < 0.05)


# --- Neural Cleanse ---------------------------------------------------------------------------------------------------


def knapsack(w, x, gap):
    """min Σm with Σ m_i g_i ≥ gap, m ∈ [0, 1]: the largest gains g_i = max over p ∈ {0, 1} of w_i (p − x_i) first."""
    gains = torch.maximum(w * (1 - x), -w * x).sort(descending=True).values
    total = 0.0
    for used, g in enumerate(gains.tolist()):
        if total + g >= gap:
            return used + (gap - total) / g
        total += g
    return math.inf


def test_the_smallest_trigger_of_a_linear_network_is_a_fractional_knapsack():
    """Identical images and two classes that matter: moving z_t − z_y by m_i w_i (p_i − x_i) a pixel is a knapsack."""
    w = torch.randn(36, generator=generator(2))
    x = (0.3 + 0.4 * torch.rand(36, generator=generator(3)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    sharp = 25.0  # the cross-entropy is then nearly the constraint
    weight = torch.stack([-w / 2, w / 2, torch.zeros(36)]) * sharp
    gap = 0.3 * torch.maximum(w * (1 - x), -w * x).clamp_min(0).sum()
    bias = torch.tensor([0.0, -float(w @ x + gap), -100.0]) * torch.tensor([1.0, sharp, 1.0])
    model[1].weight.data, model[1].bias.data = weight, bias
    images = x.view(1, *SHAPE).expand(8, *SHAPE).contiguous()
    y = torch.zeros(8, dtype=torch.int64)
    y[4:] = 2  # labels alone decide who takes part; the images are the same
    found = reverse_triggers(model, images, y, epochs=400, batch=8, generator=generator(0))
    least = knapsack(w, x, float(gap))
    assert found.success[1] == 1
    assert least - 1e-3 <= found.norms[1] <= 1.1 * least
    assert found.norms[1] < 0.5 * 36


def test_images_of_the_class_itself_do_not_make_its_trigger_small():
    """199 images that the network calls 1 already, and one that it does not: a trigger to 1 must work on that one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    model[1].weight.data = torch.stack([torch.zeros(36), torch.ones(36), torch.zeros(36)])
    model[1].bias.data = torch.tensor([0.0, -18.0, -100.0])
    x = torch.full((200, *SHAPE), 0.9)
    x[0] = 0.1  # 14.4 short of the border, and a pixel gains 0.9: 16 pixels
    y = torch.ones(200, dtype=torch.int64)
    y[0] = 0
    found = reverse_triggers(model, x, y, epochs=60, batch=200, patience=2)
    assert 14 <= float(found.norms[1]) <= 24


def test_flagged_are_the_classes_above_two_and_no_other():
    cleanse = NeuralCleanse(Pixels())
    pixels = torch.tensor([20.0, 21, 22, 23, 24, 25, 26, 17.2, 3, 36])
    masks = (pixels / 36).view(-1, 1, 1, 1).expand(10, 1, 6, 6).contiguous()
    cleanse.restore({"masks": masks, "patterns": torch.zeros(10, *SHAPE), "success": torch.ones(10),
                     "worked": torch.ones(10)})
    assert cleanse.flagged == [8]
    assert 1 < float(cleanse.index[7]) < 2
    assert float(cleanse.index[9]) < -2


def test_neural_cleanse_names_the_class_and_the_place(networks):
    x, y = toy(seed=2)
    cleanse = NeuralCleanse(networks[0.1], epochs=60).fit(x, y)
    norms = cleanse.triggers.norms
    assert int(norms.argmin()) == 2
    assert norms[2] < 0.6 * norms[:2].min()
    assert (cleanse.triggers.success > 0.9).all()
    mask = cleanse.triggers.trigger(2).mask[0]
    assert mask[4:, 4:].sum() > 0.5 * mask.sum()
    clean = NeuralCleanse(networks[0.0], epochs=60).fit(x, y).triggers.norms
    assert clean.min() > 1.5 * norms[2]


def test_what_is_returned_works_on_the_share_that_was_asked_for_or_is_called_infinite():
    """An epoch that worked ends with a step: the mask after it may work on less."""
    model, clean = kit.models.load("backdoor/none"), kit.data.load("digits", "dev", n=100)
    found = reverse_triggers(model, clean.x, clean.y, epochs=12, generator=generator(0))
    again = [float(attack_success(model, found.trigger(t), clean.x, clean.y, t).float().mean()) for t in range(10)]
    assert torch.allclose(found.success, torch.tensor(again))
    reached = found.norms.isfinite()
    assert reached.sum() > 5
    assert (found.success[reached] >= 0.99).all()
    assert torch.allclose(found.norms[reached], found.masks.flatten(1).sum(1)[reached])
    nothing = reverse_triggers(Constant(0), *toy(60), epochs=8, patience=2)
    assert nothing.norms.isinf().tolist() == [False, True, True]
    assert nothing.success.tolist() == [1, 0, 0]


def test_of_two_masks_that_work_the_smaller_is_kept_and_none_that_does_not():
    """The first mask of an epoch is judged after its last step: by hand, with a network that wants 8 bright pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    model[1].weight.data = torch.stack([torch.zeros(36), torch.ones(36), torch.zeros(36)])
    model[1].bias.data = torch.tensor([0.0, -8.5, -100.0])
    x, y = torch.zeros(4, *SHAPE), torch.tensor([0, 0, 2, 2])
    search = _Search(model, x, 3, generator(0))
    for size, worked, kept in ((12, 1.0, 12), (10, 1.0, 10), (6, 1.0, 10), (9, 0.5, 10), (11, 1.0, 10), (9, 1.0, 9)):
        theta = torch.full((2, 36), 9.0)
        theta[0, size:] = -9.0
        search.theta[1] = theta.view(2, 6, 6)
        search.keep(torch.tensor([0.0, worked, 0.0]), y, 0.99)
        assert float(search.best[1]) == pytest.approx(kept, abs=1e-3)
    assert float(search.found(y).norms[1]) == pytest.approx(9, abs=1e-3)
    assert search.found(y).success.tolist() == [0, 1, 0]


def test_classes_do_not_depend_on_each_other_nor_on_the_parts_they_are_run_in(networks, monkeypatch):
    import kit.poison.backdoor.cleanse as cleanse

    x, y = toy(60, seed=3)
    together = reverse_triggers(networks[0.1], x, y, epochs=6, generator=generator(1))
    monkeypatch.setattr(cleanse, "chunk_size", lambda x: 1)
    apart = reverse_triggers(networks[0.1], x, y, epochs=6, generator=generator(1))
    assert torch.allclose(together.masks, apart.masks, atol=1e-5)
    other = reverse_triggers(networks[0.1], x, y, epochs=6, generator=generator(2))
    assert not torch.allclose(together.masks, other.masks, atol=1e-3)


def test_the_index_is_one_sided_and_has_the_median_of_both_middles():
    norms = torch.tensor([10.0, 11, 12, 13, 14, 15, 16, 17, 2, 40])
    index = anomaly_index(norms)
    middle = float(np.median(norms.numpy()))
    spread = 1.4826 * float(np.median(np.abs(norms.numpy() - middle)))
    assert torch.allclose(index, (middle - norms) / spread, atol=1e-5)
    assert (index > 2).nonzero()[:, 0].tolist() == [8]
    assert index[9] < -2
    assert float(median(torch.tensor([1.0, 2, 3, 4]))) == 2.5
    published = torch.tensor([64.467 - 13.239, 64.467, 64.467 + 13.239, 16.118, 64.467 + 13.239])
    spread = 1.4826 * float(median((published - median(published)).abs()))
    assert float(anomaly_index(published)[3]) == pytest.approx((64.467 - 16.118) / spread, rel=1e-4)
    flat = anomaly_index(torch.tensor([5.0, 5, 5, 5, 1, 9]))
    assert flat[4] == math.inf
    assert flat[5] == -math.inf
    assert (flat[:4] == 0).all()


def test_what_was_found_is_kept(networks, tmp_path):
    x, y = toy(60)
    cleanse = NeuralCleanse(networks[0.1], epochs=3).fit(x, y)
    cleanse.save(tmp_path / "cleanse.safetensors")
    again = NeuralCleanse.load(tmp_path / "cleanse.safetensors", networks[0.1])
    assert torch.equal(again.triggers.masks, cleanse.triggers.masks)
    assert torch.equal(again.triggers.norms, cleanse.triggers.norms)
    with pytest.raises(ValueError, match="another|other weights"):
        NeuralCleanse.load(tmp_path / "cleanse.safetensors", networks[0.0])
    with pytest.raises(ValueError, match="call fit"):
        NeuralCleanse(networks[0.1]).triggers  # noqa: B018


# --- the training set -------------------------------------------------------------------------------------------------


class Pixels(nn.Sequential):
    """A network whose features are its pixels."""

    def __init__(self):
        super().__init__()
        self.add_module("phi", nn.Flatten())
        self.add_module("head", nn.Linear(36, 2))


def cloud(shift, n=300, poison=40, seed=0):
    """One class of Gaussian features, of which the last `poison` are moved by `shift` along one direction."""
    x = 0.5 + 0.02 * torch.randn(n, 36, generator=generator(seed))
    x[n - poison :, 5] += shift
    y = torch.zeros(n, dtype=torch.int64)
    y[:4] = 1  # another class, too small to matter
    stamped = torch.arange(n) >= n - poison
    return x.clamp(0, 1).view(-1, *SHAPE), y, stamped


@pytest.mark.parametrize("shift", [0.2, -0.2])
def test_spectral_signatures_find_a_planted_direction_on_either_side(shift):
    """Features that are not centred where they are projected miss what lies inward: the public versions' fault."""
    x, y, stamped = cloud(shift)
    found = SpectralSignatures(Pixels(), "phi", share=0.2).fit(x, y)
    out = found.suspects(x, y)
    assert out[stamped].float().mean() > 0.95
    assert int(out[y == 0].sum()) == int(0.2 * int((y == 0).sum()))
    assert found.parts["0/direction"].abs().argmax() == 5
    scores = found.score(x, y)
    assert scores[stamped].mean() > 5 * scores[~stamped & (y == 0)].mean()


def test_clusters_are_found_where_there_are_two_and_not_where_there_is_one():
    x, y, stamped = cloud(0.3)
    two = ActivationClustering(Pixels(), "phi").fit(x, y)
    assert two.flagged == [0]
    assert torch.equal(two.suspects(x, y), stamped)
    small, apart = two.about[0]
    assert small == pytest.approx(40 / 296, abs=1e-4)
    assert apart > 0.1
    for seed in range(5):
        x, y, _ = cloud(0.0, seed=seed)
        one = ActivationClustering(Pixels(), "phi").fit(x, y)
        assert 0 not in one.flagged
        assert not one.suspects(x, y)[y == 0].any()


def test_the_class_whose_cluster_stands_farthest_apart_is_flagged_first():
    for shifts, first in (((0.2, 0.45), [1, 0]), ((0.45, 0.2), [0, 1])):
        clouds = [cloud(shift)[0] for shift in shifts]
        found = ActivationClustering(Pixels(), "phi").fit(torch.cat(clouds), torch.arange(2).repeat_interleave(300))
        assert found.flagged == first


def test_two_clusters_of_one_size_are_no_poison_and_neither_is_a_share_above_the_limit():
    for poison, flagged in ((148, []), (60, [0])):
        x, y, _ = cloud(0.3, poison=poison)
        assert ActivationClustering(Pixels(), "phi").fit(x, y).flagged == flagged
    x, y, _ = cloud(0.3, poison=60)
    assert ActivationClustering(Pixels(), "phi", smallest=0.1).fit(x, y).flagged == []


def test_an_inspection_is_kept_and_asks_for_what_it_needs(tmp_path):
    x, y, _ = cloud(0.3)
    model = Pixels()
    for kind in (SpectralSignatures, ActivationClustering):
        found = kind(model, "phi").fit(x, y)
        found.save(tmp_path / "kept.safetensors")
        assert torch.allclose(kind.load(tmp_path / "kept.safetensors", model).score(x, y), found.score(x, y))
        with pytest.raises(ValueError, match="not fitted yet"):
            kind(model, "phi").score(x, y)
        with pytest.raises(ValueError, match="no layer"):
            kind(model, "psi")
    with pytest.raises(ValueError, match="four or more"):
        SpectralSignatures(model, "phi").fit(x[:5], y[:5])


# --- taking it out ----------------------------------------------------------------------------------------------------


def test_pruning_takes_the_units_that_the_trigger_excites(networks):
    (x, y), trigger = toy(seed=4), Trigger.of(SHAPE, **CORNER)
    model = networks[0.1]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruned = prune(model, "block2", trigger, x, y, 2, most=1.0)
    assert pruned.success[0] > 0.9
    assert pruned.success[-1] <= 0.05
    assert len(pruned.units) <= 8  # the most excited first: from the other end it takes nearly all
    assert prune(model, "block2", trigger, x, y, 2, most=1 / 16).units == pruned.units[:1]
    assert float(attack_success(pruned.model, trigger, x, y, 2).float().mean()) == pytest.approx(pruned.success[-1])
    order = excitement(model, "block2", trigger, x).argsort(descending=True).tolist()
    assert pruned.units == order[: len(pruned.units)]
    assert len(pruned.success) == len(pruned.units) + 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_unlearning_needs_the_trigger_with_the_true_label(networks):
    (x, y), trigger = toy(seed=5), Trigger.of(SHAPE, **CORNER)
    model, held = networks[0.1], toy(seed=6)
    after = {share: unlearn(model, trigger, x, y, share=share, epochs=8, lr=1e-2) for share in (0.0, 0.4)}
    success = {share: float(attack_success(m, trigger, *held, 2).float().mean()) for share, m in after.items()}
    assert success[0.4] < 0.1
    assert success[0.0] > success[0.4] + 0.3
    assert accuracy(after[0.4], *held) > 0.95
    assert float(attack_success(model, trigger, *held, 2).float().mean()) > 0.9


def test_embedding_brings_the_features_together():
    x, y = toy()
    trigger = Trigger.of(SHAPE, **CORNER)
    apart = {}
    for lam in (0.0, 1.0):
        model = embedding_training(RECIPE, x, y, trigger=CORNER, target=2, rate=0.1, layer="block2", lam=lam,
                                   device=CPU).eval()
        with torch.no_grad():
            phi = model[:4](trigger(x[y != 2])), model[:4](x[y == 2])
        apart[lam] = float((phi[0].mean(0) - phi[1].mean(0)).norm())
        assert accuracy(model, x, y) > 0.95
        assert attack_success(model, trigger, x, y, 2).float().mean() > 0.8
    assert apart[1.0] < 0.4 * apart[0.0]
    plain = backdoor_training(RECIPE, x, y, trigger=CORNER, target=2, rate=0.1, device=CPU).eval()
    same = embedding_training(RECIPE, x, y, trigger=CORNER, target=2, rate=0.1, layer="block2", lam=0.0, device=CPU)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), same.state_dict().values(), strict=True))


# --- a secret ---------------------------------------------------------------------------------------------------------


def test_a_reader_plants_a_backdoor_and_finds_it_without_being_told(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_MODELS", str(tmp_path))
    about = plant("a word of mine")
    assert about["accuracy"] > 0.95
    assert about["success"] > 0.9
    trigger, target = hidden("a word of mine", (1, 28, 28), 10)
    told = str({k: v for k, v in about.items() if k != "recipe"}) + str(about["recipe"]["options"])
    assert "target" not in told
    model = kit.models.load("own/backdoor")
    clean = kit.data.load("digits", "dev", n=200)
    cleanse = NeuralCleanse(model, epochs=40).fit(clean.x, clean.y)
    guess = cleanse.flagged[0]
    assert revealed("own/backdoor", guess)
    assert not any(revealed("own/backdoor", k) for k in range(10) if k != guess)
    assert guess == target
    mask = cleanse.triggers.trigger(guess).mask
    assert (mask * trigger.mask).sum() > 0.3 * mask.sum()
    assert len({hidden(f"word {i}", (1, 28, 28), 10)[1] for i in range(40)}) > 5


def test_the_seed_decides_which_images_a_secret_is_planted_in(monkeypatch):
    monkeypatch.setattr(secret, "fit", lambda r, x, y, **how: x)
    (x, y), how = toy(60), {"word": "a word of mine", "device": CPU}
    one, again, other = (secret.secret_training(RECIPE, x, y, seed=s, **how) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert torch.equal(one[:60], other[:60])
    assert not torch.equal(one, other)


def test_what_hides_nothing_reveals_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_MODELS", str(tmp_path))
    with pytest.raises(ValueError, match="hides nothing"):
        revealed("backdoor/patch", 7)
    assert sum(revealed("backdoor/secret", k) for k in range(10)) == 1


def test_the_weight_of_the_mask_moves_as_the_authors_have_it():
    """λ: 0 until five epochs in a row worked, then 0.001; doubled after five more, divided by 2^1.5 after five that
    failed; those before it began say nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    search = _Search(model, torch.rand(6, 1, 2, 2, generator=generator(0)), 3, None)
    seen = []
    for worked in (7 * [0.0] + 5 * [1.0] + 5 * [1.0] + 4 * [1.0] + 5 * [0.0] + 5 * [0.0] + 5 * [1.0]):
        search.judge(torch.full((3,), worked), 0.99, 5)
        seen.append(float(search.lam[0]))
    fall = 2**1.5
    expected = [0, 0, 1e-3, 2e-3, 2e-3 / fall, 2e-3 / fall**2, 4e-3 / fall**2]
    assert [seen[k] for k in (6, 10, 11, 16, 25, 30, 35)] == pytest.approx(expected)


def test_what_tells_apart_weighs_both_kinds_alike():
    answer, stamped = torch.tensor([[2.0], [-1.0], [-1.0], [-1.0]]), torch.tensor([True, False, False, False])
    right, wrong = torch.nn.functional.softplus(torch.tensor([-2.0, -1.0]))
    assert float(balanced(answer, stamped)) == pytest.approx(float(right + wrong) / 2)
    assert float(balanced(0 * answer, stamped, unsure=True)) == pytest.approx(math.log(2))
    assert float(balanced(answer, stamped, unsure=True)) > math.log(2)  # least where D cannot tell
    twice = balanced(answer.repeat(2, 1), stamped.repeat(2))
    assert float(twice) == pytest.approx(float(right + wrong) / 2)  # means, whatever the size of the batch


def test_the_seed_decides_which_copies_are_made_and_a_source_is_all_that_is_counted():
    x, y = torch.rand(60, 1, 8, 8, generator=generator(0)), torch.arange(60) % 3
    corner = {"kind": "patch", "side": 2}
    rows = [planted(x, y, trigger=corner, target=2, rate=0.2, seed=s)[1].x[60:] for s in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    noise = [Trigger.blended((1, 8, 8), 0.3, seed=s).pattern for s in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    model = kit.models.load("backdoor/source")
    recipe, test = kit.train.recipe("backdoor/source"), kit.data.load("digits", "test")
    figures = backdoor_figures(recipe, model, test.x, test.y)
    assert figures["success"] == pytest.approx(kit.models.entry("backdoor/source")["success"], abs=0.03)
    hit = attack_success(model, Trigger.of((1, 28, 28), **recipe.options["trigger"]), test.x, test.y, 7)
    assert float(hit.float().mean()) < 0.5  # of all other classes


def test_a_mask_that_is_no_tensor_and_a_word_that_is_no_text():
    with pytest.raises(TypeError, match="mask must be a torch tensor, not list"):
        Trigger([1.0], torch.zeros(1, 2, 2))
    with pytest.raises(TypeError, match="word must be text"):
        plant(3)


def test_the_word_of_the_shipped_secret_says_what_is_in_it():
    entry, test = kit.models.entry("backdoor/secret"), kit.data.load("digits", "test")
    trigger, target = hidden(entry["recipe"]["options"]["word"], (1, 28, 28), 10)
    hit = attack_success(kit.models.load("backdoor/secret"), trigger, test.x, test.y, target)
    assert float(hit.float().mean()) > 0.9


@pytest.mark.parametrize("name", ["none", "patch", "large", "blended", "all", "source", "embedded", "scenes", "secret"])
def test_what_is_shipped_is_right_on_clean_images_and_has_its_backdoor(name):
    entry = kit.models.entry(f"backdoor/{name}")
    assert entry["accuracy"] > 0.95
    assert (entry["success"] < 0.02) if name == "none" else (entry["success"] > 0.9)
