"""Each ingredient against a naive version of itself, and what all transfer attacks keep."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import convolve
from scipy.stats import norm as normal

import kit.core.passes
from kit.attacks import ata, bim, dim, mi_fgsm, ni_fgsm, si_ni_ti_dim, sim, tap, tap_ata, tim
from kit.core import Ensemble, ball, cross_entropy, fooled, gaussian, generator, logits, resized_and_padded
from kit.models import FAMILIES
from kit.models import load as network

ATTACKS = [ni_fgsm, tim, dim, sim, si_ni_ti_dim, tap, ata, tap_ata]
ALONE = {"mu": 1.0, "look_ahead": False, "kernel": 1, "copies": 1, "p": 0.0}
EPS = 8 / 255


def slope(model, v, y):
    v = v.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(v), y).sum(), v)[0]


def by_hand(x, g_of, mu=1.0, step=EPS / 10, steps=10, eps=EPS):
    """MI-FGSM with any gradient: g_of(v, m) is asked at every step."""
    v, m = x, torch.zeros_like(x)
    for _ in range(steps):
        g = g_of(v, m)
        m = mu * m + g / g.abs().mean((1, 2, 3), keepdim=True)
        v = (x + (v + step * m.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return v


def same(a, b):
    """Signs of gradients near zero may turn by rounding, so a few pixels may differ."""
    assert float(((a - b).abs() > 1e-5).float().mean()) < 5e-3, float((a - b).abs().max())


# --- the ingredients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("single", "chosen"), [
    (mi_fgsm, {}), (ni_fgsm, {"look_ahead": True}), (tim, {"kernel": 5}), (sim, {"copies": 5}), (dim, {"p": 0.5}),
])
def test_the_composition_with_one_ingredient_is_that_method(resnet, scenes, single, chosen):
    x, y = scenes
    both = si_ni_ti_dim(resnet, x, y, eps=EPS, **ALONE | chosen), single(resnet, x, y, eps=EPS)
    assert torch.equal(*both)
    if chosen:
        assert not torch.equal(both[0], mi_fgsm(resnet, x, y, eps=EPS))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_with_nothing_it_is_bim(resnet, scenes, norm):
    x, y = scenes
    eps = {"linf": EPS, "l2": 0.5, "l1": 5.0}[norm]
    plain = bim(resnet, x, y, eps=eps, norm=norm)
    assert torch.equal(si_ni_ti_dim(resnet, x, y, eps=eps, norm=norm, **ALONE | {"mu": 0.0}), plain)
    for attack, off in ((ata, {"lam": 0.0}), (tap, {"lam": 0.0, "eta": 0.0})):
        assert torch.equal(attack(resnet, x, y, eps=eps, norm=norm, **off), plain)
        both = {"eps": eps, "norm": norm, "mu": 1.0, "kernel": 5}
        assert torch.equal(attack(resnet, x, y, **both, **off), tim(resnet, x, y, **both))
    assert torch.equal(tap_ata(resnet, x, y, eps=eps, norm=norm, lam=0.0), tap(resnet, x, y, eps=eps, norm=norm))


def test_ni_looks_ahead(resnet, scenes):
    x, y = scenes
    same(ni_fgsm(resnet, x, y, eps=EPS), by_hand(x, lambda v, m: slope(resnet, v + EPS / 10 * m, y)))


def test_ti_convolves_the_gradient(resnet, scenes):
    x, y = scenes
    pdf = normal.pdf(np.linspace(-3, 3, 7))
    W = np.outer(pdf, pdf) / np.outer(pdf, pdf).sum()
    assert torch.allclose(gaussian(7), torch.tensor(W, dtype=torch.float32))

    def g_of(v, m):
        g = slope(resnet, v, y).numpy()
        return torch.from_numpy(np.stack([[convolve(c, W, mode="constant") for c in image] for image in g])).float()

    same(tim(resnet, x, y, eps=EPS, kernel=7), by_hand(x, g_of))


@pytest.mark.parametrize("towards", ["grey", "black"])
def test_si_sums_over_scales(resnet, scenes, towards):
    x, y = scenes
    level = {"grey": 0.5, "black": 0.0}[towards]

    def g_of(v, m):  # the chain rule brings 1/2^i
        return sum(slope(resnet, level + (v - level) / 2**i, y) / 2**i for i in range(3))

    found = sim(resnet, x, y, eps=EPS, copies=3, towards=towards)
    same(found, by_hand(x, g_of))
    assert not torch.equal(found, mi_fgsm(resnet, x, y, eps=EPS))


def test_di_resizes_and_pads(resnet, scenes):
    x, y = scenes
    image = torch.rand(1, 1, 4, 4, generator=generator(0))
    assert torch.equal(resized_and_padded(image, 1.0, [0.5, 0.5, 0.5]), image)
    draws = [0.99, 0.99, 0.0]  # 4 → 6 of 7 pixels, moved down by one, not to the right
    big = torch.full((1, 1, 7, 7), 0.5)
    rows = [int(i * 4 / 6) for i in range(6)]
    big[0, 0, 1:7, 0:6] = image[0, 0][rows][:, rows]
    want = F.interpolate(big, (4, 4), mode="bilinear", align_corners=False)
    assert torch.allclose(resized_and_padded(image, 7 / 4, draws), want)
    one, other = (resized_and_padded(v, 7 / 4, [0.5, *offsets])  # 5 of 7 pixels, moved by two and by one
                  for v, offsets in ((image, (0.99, 0.4)), (image.mT, (0.4, 0.99))))
    assert torch.allclose(one, other.mT)

    source = generator(int(torch.randint(2**62, (), generator=generator(4))))

    def g_of(v, m):
        coin, *draws = torch.rand(4, generator=source).tolist()
        v = v.detach().requires_grad_()
        seen = resized_and_padded(v, 1.25, draws) if coin < 0.7 else v
        return torch.autograd.grad(cross_entropy(resnet(seen), y).sum(), v)[0]

    found = dim(resnet, x, y, eps=EPS, p=0.7, ratio=1.25, generator=generator(4))
    same(found, by_hand(x, g_of))
    assert not torch.equal(found, dim(resnet, x, y, eps=EPS, p=0.7, ratio=1.25, generator=generator(5)))


# --- contracts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_images_are_independent_and_calls_repeat(resnet, scenes, attack, monkeypatch):
    x, y = scenes
    whole = attack(resnet, x, y, eps=EPS, steps=4)
    assert torch.equal(whole, attack(resnet, x, y, eps=EPS, steps=4))
    same(whole[7:8], attack(resnet, x[7:8], y[7:8], eps=EPS, steps=4))
    monkeypatch.setattr(kit.core.passes, "chunk_size", lambda x: 5)
    same(whole, attack(resnet, x, y, eps=EPS, steps=4))  # the draws too are the same in every chunk
    order = torch.arange(11, -1, -1)
    same(whole[order], attack(resnet, x[order], y[order], eps=EPS, steps=4))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_constraints_hold_and_the_loss_is_climbed(resnet, scenes, attack, norm):
    x, y = scenes
    eps = torch.linspace(0.5, 1, 12) * {"linf": 16 / 255, "l2": 1.5, "l1": 30.0}[norm]
    x_adv = attack(resnet, x, y, eps=eps, norm=norm)
    assert (ball(norm, eps).norm(x_adv - x) <= eps * (1 + 1e-5) + 1e-6).all()
    assert x_adv.clamp(0, 1).equal(x_adv)
    gain = cross_entropy(logits(resnet, x_adv), y) - cross_entropy(logits(resnet, x), y)
    assert (gain > 0).float().mean() > 0.9


@pytest.mark.parametrize("attack", ATTACKS)
def test_targets_are_reached(resnet, scenes, attack):
    x, y = scenes
    target = (y + 1) % 10
    x_adv = attack(resnet, x, y, eps=16 / 255, target=target)
    assert fooled(resnet, x_adv, y, target).float().mean() > 0.4
    assert not fooled(resnet, x, y, target).any()


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_leaks(scenes, attack):
    model, (x, y) = FAMILIES["resnet"](norm=True), scenes
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x_in, state = x.clone(), torch.random.get_rng_state()

    def unchanged():
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert all(m.training and not m._forward_hooks for m in model.modules())
        assert torch.equal(x_in, x)
        assert not x_in.requires_grad
        assert torch.equal(state, torch.random.get_rng_state())

    attack(model, x_in, y, eps=EPS, steps=2)
    unchanged()

    def broken(z, y):
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError):
        attack(model, x_in, y, eps=EPS, loss=broken)
    unchanged()


def test_bad_arguments_are_refused(resnet, scenes):
    x, y = scenes
    for options, message in (
        ({"kernel": 4}, "odd"), ({"copies": 0}, "copies"), ({"towards": "white"}, "grey"), ({"p": 1.5}, "p must"),
        ({"ratio": 0.5}, "ratio"), ({"kernel": 99}, "fit the image"),
    ):
        with pytest.raises(ValueError, match=message):
            si_ni_ti_dim(resnet, x, y, eps=EPS, **options)
    with pytest.raises(ValueError, match="no layer 'block9'"):
        ata(resnet, x, y, eps=EPS, layers=["block9"])
    with pytest.raises(ValueError, match="no feature maps"):
        ata(network("digits/mlp"), torch.rand(2, 1, 28, 28), y[:2], eps=EPS, layers=["block1"])


# --- several models as one ------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_mean_of_its_members(resnet, scenes):
    x, y = scenes
    vgg = network("scenes/vgg")
    a, b = logits(resnet, x), logits(vgg, x)
    assert torch.allclose(logits(Ensemble([resnet, vgg]), x), (a + b) / 2, atol=1e-5)
    p = logits(Ensemble([resnet, vgg], "probabilities"), x).exp()
    assert torch.allclose(p, (a.softmax(1) + b.softmax(1)) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="'logits' or 'probabilities'"):
        Ensemble([resnet], "votes")
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


@pytest.mark.parametrize("attack", [bim, si_ni_ti_dim, tap, ata])
def test_an_ensemble_can_be_attacked(resnet, scenes, attack):
    x, y = scenes
    vgg = network("scenes/vgg")
    one, two = attack(resnet, x, y, eps=EPS), attack(Ensemble([resnet, vgg]), x, y, eps=EPS)
    assert cross_entropy(logits(vgg, two), y).mean() > cross_entropy(logits(vgg, one), y).mean()
    assert cross_entropy(logits(resnet, two), y).mean() > cross_entropy(logits(resnet, x), y).mean() + 1
