"""ADV² where the answer is known: maps that cannot move, maps that move by a known amount, optima by search."""
from contextlib import nullcontext
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.attacks import pgd
from kit.core import MisleadingModel, differentiate, fooled, generator, logits, per_image, smooth_relu
from kit.data import load
from kit.explain import RTS, cam, grad_cam, iou, l1_distance, saliency
from kit.fire import adv2, map_distance, random_patches
from kit.fire.adv2.descent import unit
from kit.models import load as network


@per_image
def grad(model, x, target=None, *, create_graph=False):
    """GRAD as in the paper: max over the channels of |∂NLL/∂x|, which a linear-softmax network lets move."""
    v = x if x.requires_grad else x.detach().requires_grad_()
    loss = F.cross_entropy(model(v), target, reduction="none")
    return differentiate(loss, v, create_graph=create_graph).abs().amax(1)


def layers(*parts):
    return nn.Sequential(nn.Flatten(), *parts).double().eval()


def images(n, h, w, seed=0):
    return 0.3 + 0.4 * torch.rand(n, 1, h, w, generator=generator(seed), dtype=torch.float64)


def test_the_map_of_a_linear_network_does_not_move(linear):
    """∂z_t/∂x = w_t wherever x is: the class is reached, and the map stays as far as |w_t| is from |w_y|."""
    model, x, y = linear
    _, target = two_best(model, x)
    with pytest.warns(MisleadingModel, match=f"does not move with the image for {len(x)} of {len(x)}"):
        x_adv = adv2(model, x, target, saliency, eps=0.2, steps=20)
    assert fooled(model, x_adv, y, target).all()
    w = model[1].weight.abs().view(5, 3, 4, 4).amax(1)
    assert torch.allclose(l1_distance(saliency(model, x_adv, target), saliency(model, x, y)),
                          l1_distance(w[target], w[y]), atol=1e-6)


def test_two_classes_have_one_map_whatever_it_is_to_be():
    """∂NLL_t/∂x = (1 − p_t)(w_other − w_t): scaled to [0, 1] it is the same for all x and both classes."""
    model, x = layers(nn.Linear(12, 2)), images(6, 3, 4)
    y, _ = two_best(model, x)
    x_adv = adv2(model, x, 1 - y, grad, eps=0.3, steps=30)
    assert fooled(model, x_adv, y).all()
    assert map_distance(grad(model, x_adv, 1 - y), grad(model, x, y)).max() < 1e-20
    patch = random_patches(x, generator=generator(1))
    x_adv = adv2(model, x, 1 - y, grad, eps=0.3, steps=30, map_target=patch)
    exact = map_distance(model[1].weight.diff(dim=0).abs().view(1, 3, 4), patch)
    assert torch.allclose(map_distance(grad(model, x_adv, 1 - y), patch), exact)


@pytest.mark.parametrize("u", [0.0, 2.0, 6.0, 15.0])
def test_three_classes_move_as_far_as_the_ball_lets_them(u):
    """z_t reads the pixels A, z_1 − z_2 = 2 u Σ_B (x − ½). The map for t is |w_t| = 20 on A, and u |2q − 1| on B with
    q = p_1/(p_1 + p_2), so |2q − 1| = tanh(|z_1 − z_2|/2) ≤ tanh(|B| u (d + eps)) where x is ½ + d: that, and no more.
    """
    A, B = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    A[:3], B[3:6] = 1, 1
    model = layers(nn.Linear(8, 3))
    model[1].weight.data = torch.stack([20 * A, u * B, -u * B])
    model[1].bias.data = -model[1].weight.data.sum(1) / 2 + torch.tensor([-2.0, 0, 0])  # grey is not of class t = 0
    eps, d = 0.1, 0.01
    x = (0.5 + d * B).view(1, 1, 2, 4)
    target, wanted = torch.zeros(1, dtype=torch.int64), (A + B).view(1, 2, 4)
    with nullcontext() if u else pytest.warns(MisleadingModel, match="does not move"):
        x_adv = adv2(model, x, target, grad, eps=eps, map_target=wanted, smooth=None, steps=60)
    assert fooled(model, x_adv, 1 - target, target).all()
    bright = u / 20 * torch.tanh(torch.tensor(3 * u * (d + eps)))
    R = unit(grad(model, x_adv, target))
    assert R[0, 0, 3] == pytest.approx(float(bright), 0.01)


@per_image
def signed(model, x, target=None, *, create_graph=False):
    """The gradient itself, of one channel: without |·|, whose kink at 0 no small step crosses."""
    v = x if x.requires_grad else x.detach().requires_grad_()
    return differentiate(model(v).gather(1, target[:, None])[:, 0], v, create_graph=create_graph)[:, 0]


def test_two_layers_reach_what_exhaustive_search_finds():
    """All points of a grid on the ball of 4 pixels: the least map distance among those of class t with p_t > ½."""
    model, x, eps = layers(nn.Linear(4, 24), nn.Softplus(4), nn.Linear(24, 3)), images(12, 2, 2), 0.1
    for i in (1, 3):
        model[i].weight.data = 2 * torch.randn(model[i].weight.shape, generator=generator(i), dtype=torch.float64)
    model[1].bias.data = -model[1].weight.sum(1).detach() / 2
    model[3].bias.data = -(model(x) - model[3].bias).mean(0).detach()
    y, target = two_best(model, x)
    benign = signed(model, x, y)
    grid = torch.tensor(list(product(torch.linspace(-eps, eps, 9).tolist(), repeat=4)), dtype=torch.float64)
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for i in range(len(x)):
        points = x[i].flatten() + grid
        slope = torch.sigmoid(4 * model[1](points)) * model[3].weight[target[i]] @ model[1].weight
        off = map_distance(slope.view(-1, 2, 2), benign[i:i + 1].expand(len(points), -1, -1))
        sure = model(points.view(-1, 1, 2, 2)).softmax(1)[:, target[i]] > 0.5
        if bool(sure.any()):
            best[i] = off[sure].min().detach()
    there = best < torch.inf
    assert there.sum() >= 8
    x_adv = adv2(model, x, target, signed, eps=eps, smooth=None, steps=100)
    assert fooled(model, x_adv, y, target)[there].all()
    found, plain = (map_distance(signed(model, v, target), benign)[there]
                    for v in (x_adv, pgd(model, x, y, eps=eps, target=target)))
    assert (plain - best[there]).mean() > 0.03  # where PGD ends, by comparison
    assert (found - best[there]).mean() < 0.002  # a grid of 9 steps does not see better ones between its points
    assert (found - best[there]).amax() < 0.01


def two_best(model, x):
    z = logits(model, x)
    y = z.argmax(1)
    return y, z.scatter(1, y[:, None], -torch.inf).argmax(1)


@pytest.fixture(scope="module")
def case():
    model, x = network("scenes/resnet"), load("scenes", "dev", n=8).x
    return model, x, *two_best(model, x)


@pytest.mark.parametrize(("explain", "smooth"), [
    (partial(cam, relu=False), None), (grad_cam, None), (RTS.shipped("scenes/resnet"), None), (saliency, 1e-4)])
def test_it_deceives_both_where_pgd_deceives_one(case, explain, smooth):
    model, x, y, target = case
    benign = explain(model, x, y)
    plain = pgd(model, x, y, eps=8 / 255, target=target)
    x_adv = adv2(model, x, target, explain, eps=8 / 255, smooth=smooth, steps=40)
    assert fooled(model, x_adv, y, target).all()
    assert (logits(model, x_adv).softmax(1).gather(1, target[:, None]) > 0.5).all()
    near, far = (l1_distance(explain(model, v, target), benign) for v in (x_adv, plain))
    assert near.mean() < 0.7 * far.mean()
    assert iou(explain(model, x_adv, target), benign).mean() > iou(explain(model, plain, target), benign).mean()


def test_the_map_can_be_another_one(case):
    model, x, _, target = case
    patch = random_patches(x, generator=generator(3))
    explain = partial(cam, relu=False)
    x_adv = adv2(model, x, target, explain, eps=16 / 255, smooth=None, steps=40, map_target=patch)
    benign = adv2(model, x, target, explain, eps=16 / 255, smooth=None, steps=40)
    to_patch, to_benign = (l1_distance(explain(model, v, target), patch).mean() for v in (x_adv, benign))
    assert to_patch < 0.8 * to_benign


def test_saliency_needs_the_smoothed_relu_and_only_the_attack_has_it(case):
    model, x, _, target = case
    with pytest.warns(MisleadingModel, match="does not move with the image for 8 of 8"):
        adv2(model, x, target, saliency, eps=8 / 255, smooth=None, steps=1, warm=1)
    before = saliency(model, x)
    adv2(model, x, target, saliency, eps=8 / 255, steps=1, warm=1)
    assert torch.equal(saliency(model, x), before)
    with smooth_relu(1e-4):
        assert not torch.allclose(saliency(model, x), before)


def test_every_iterate_is_in_ball_and_box_and_each_image_keeps_its_best(case):
    """Read off what the explainer is asked: with its graph at each step, without it where the best is looked for."""
    model, x, _, target = case
    x = x.round(decimals=1)  # some pixels on the edge of the box
    eps, steps, looked = 8 / 255, [], []

    def watched(model, v, classes, *, create_graph=False):
        (steps if create_graph else looked).append(v.detach().clone())
        return saliency(model, v, classes, create_graph=create_graph)

    def spoils(v, classes):  # every second image is led elsewhere in the second half
        return 1e6 * (len(steps) > 10) * v.flatten(1).mean(1) * (torch.arange(len(v)) % 2)

    x_adv = adv2(model, x, target, watched, eps=eps, steps=20, extra=spoils)
    benign, *looked = looked
    assert torch.equal(benign, x)
    assert len(steps) == 20
    assert len(looked) == 5
    for v in (*steps, *looked):
        assert v.min() >= 0
        assert v.max() <= 1
        assert (v - x).abs().max() <= eps + 1e-7
    assert not torch.equal(steps[-1], steps[-2])
    m = saliency(model, x)
    off = torch.stack([map_distance(saliency(model, v, target), m) for v in looked])
    good = torch.stack([logits(model, v).softmax(1).gather(1, target[:, None])[:, 0] > 0.5 for v in looked])
    kept = torch.where(good, off, torch.inf).argmin(0)
    assert len(kept.unique()) > 1
    assert torch.equal(x_adv, torch.stack(looked)[kept, torch.arange(len(x))])


def test_an_extra_term_is_minimised_too(case):
    """Here the mean of the image, which nothing else pulls."""
    model, x, _, target = case
    plain, darker = (adv2(model, x, target, grad_cam, eps=8 / 255, smooth=None, steps=10, extra=extra)
                     for extra in (None, lambda v, t: 1000 * v.flatten(1).mean(1)))
    assert (darker.flatten(1).mean(1) < plain.flatten(1).mean(1)).all()
    assert (darker - plain).mean() < -0.008


def test_random_patches_are_discs_and_boxes_inside():
    x = torch.zeros(200, 3, 32, 40)
    m = random_patches(x, generator=generator(0))
    assert torch.equal(m, random_patches(x, generator=generator(0)))
    inside = m > 0.5
    assert m[inside].min() >= 0.9
    assert m[~inside].max() <= 0.1
    assert not inside[:, [0, -1]].any() or inside[:, [0, -1]].float().mean() < 0.02
    area, r = inside.flatten(1).sum(1), torch.tensor([30.0, 60.0]) / 224 * 32
    assert area.min() >= 0.8 * torch.pi * r[0] ** 2
    assert area.max() <= 1.1 * (2 * r[1]) ** 2
    centre = (inside.float() * torch.arange(40)).flatten(1).sum(1) / area
    assert centre.min() < 12
    assert centre.max() > 28


@pytest.mark.parametrize(("changed", "words"), [
    ({"map_target": torch.zeros(8, 5, 5)}, r"maps \(8, 32, 32\)"), ({"map_target": torch.zeros(3, 32, 32)}, "3 rows"),
    ({"sure": 1.0}, "sure"), ({"warm": -1}, "warm"), ({"smoothing": 1.5}, "smoothing"), ({"ramp": 0.0}, "ramp"),
])
def test_mistakes_get_one_sentence(case, changed, words):
    model, x, _, target = case
    with pytest.raises(ValueError, match=words):
        adv2(model, x, target, saliency, eps=0.03, **changed)


def test_a_target_is_needed(case):
    model, x, *_ = case
    with pytest.raises(TypeError, match="target must be a torch tensor"):
        adv2(model, x, None, saliency, eps=0.03)
