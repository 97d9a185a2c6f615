"""Objectives that read hidden layers, against their formulas and on planted attention."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.attacks import Transformation, ata, atta, bim, tap, tap_ata
from kit.attacks.transfer import attention, blocks, channel_weights, middle
from kit.core import Ensemble, Trace, cross_entropy, features, generator, margin
from kit.explain import grad_cam
from kit.models import FAMILIES

EPS = 8 / 255


def test_attention_is_grad_cam_of_the_true_label(resnet, scenes):
    x, y = scenes
    H = attention(resnet, x, y, layers=["block1"])["block1"]
    assert H.shape == (12, 32, 32)
    assert torch.allclose(H, grad_cam(resnet, x, y, layer="block1"), atol=1e-6)
    assert list(attention(resnet, x, y)) == ["block2"]


class Half(nn.Module):
    """It sees its label's evidence in one half of the image, and knows it: a planted attention.

    There A_0 = relu(x_0 + κ x_2) and A_1 = relu(x_2); z_0 = s ΣA_0 − c ΣA_1, z_1 = s ΣA_0 + c ΣA_1. The margin depends
    on A_1 alone, so BIM leaves x_0 as it is; H = relu(s A_0 − c A_1) moves by s κ − c through x_2, by s through x_0.
    """

    def __init__(self, right, s=1.0, c=0.1, kappa=0.2):
        super().__init__()
        self.block1, self.right, self.s, self.c, self.kappa = nn.Identity(), right, s, c, kappa

    def forward(self, x):
        here = torch.zeros(8).index_fill(0, torch.arange(4, 8) if self.right else torch.arange(4), 1.0)
        A = self.block1(torch.stack([F.relu(x[:, 0] + self.kappa * x[:, 2]) * here, F.relu(x[:, 2]) * here], 1))
        a, b = A.sum((2, 3)).T
        return torch.stack([self.s * a - self.c * b, self.s * a + self.c * b], 1)


@pytest.mark.parametrize("right", [False, True])
def test_ata_moves_planted_attention_and_bim_does_not(right):
    model, other = Half(right), Half(not right)
    x = 0.4 + 0.2 * torch.rand(6, 3, 8, 8, generator=generator(2))
    y = torch.zeros(6, dtype=torch.int64)
    inside = slice(4, 8) if right else slice(4)
    clean = attention(model, x, y)["block1"]
    want = torch.zeros_like(clean)
    want[:, :, inside] = (x[:, 0] + 0.2 * x[:, 2] - 0.1 * x[:, 2])[:, :, inside]
    assert torch.allclose(clean, want, atol=1e-6)

    def moved(model, x_adv):
        return (attention(model, x_adv, y)["block1"] - attention(model, x, y)["block1"]).flatten(1).norm(dim=1)

    plain, sought, held = (
        bim(model, x, y, eps=0.1, loss=margin),
        ata(model, x, y, eps=0.1, lam=1.0, loss=margin),
        ata(model, x, y, eps=0.1, lam=-1.0, loss=margin),
    )
    assert torch.equal(plain[:, 0], x[:, 0])
    assert (moved(model, plain) > 0).all()
    assert (moved(model, sought) > 5 * moved(model, plain)).all()
    assert (moved(model, held) < moved(model, plain)).all()  # the wrong sign holds it
    assert torch.allclose(margin(model(sought), y), margin(model(plain), y), atol=1e-5)  # and the loss is no worse
    assert (moved(other, sought) <= moved(other, plain) + 1e-6).all()  # who attends elsewhere is not moved


def naive_ata(model, x_adv, x, y, lam, layers):
    def maps(v):
        with features(model, layers) as A:
            z = model(v)
        found = []
        for name in layers:
            g = torch.stack([torch.autograd.grad(z[i, y[i]], A[name], retain_graph=True)[0][i] for i in range(len(v))])
            found.append(F.relu((g.mean((2, 3), keepdim=True) * A[name]).sum(1)))
        return z, found

    (z, H), (_, H0) = maps(x_adv.clone().requires_grad_()), maps(x.clone().requires_grad_())
    return cross_entropy(z, y) + lam * sum(((a - b) ** 2).sum((1, 2)).sqrt() for a, b in zip(H, H0, strict=True))


def naive_tap(model, x_adv, x, y, lam, eta):
    a, b = x_adv, x
    value = cross_entropy(model(x_adv), y) + eta * F.conv2d(
        (x - x_adv).flatten(0, 1)[:, None], torch.ones(1, 1, 3, 3) / 9, padding=1).abs().view(len(x), -1).sum(1)
    for name, stage in model.named_children():
        a, b = stage(a), stage(b)
        if name.startswith("block"):
            value = value + lam * (a.sign() * a.abs().sqrt() - b.sign() * b.abs().sqrt()).square().flatten(1).sum(1)
    return value


def test_the_objectives_are_the_formulas(resnet, scenes):
    x, y = scenes[0][:4], scenes[1][:4]
    layers = ["block2", "block3"]
    for attack, naive in (
        (lambda **o: ata(resnet, x, y, eps=EPS, lam=3.0, layers=layers, **o),
         lambda v: naive_ata(resnet, v, x, y, 3.0, layers)),
        (lambda **o: tap(resnet, x, y, eps=EPS, **o), lambda v: naive_tap(resnet, v, x, y, 0.005, 0.01)),
        (lambda **o: tap_ata(resnet, x, y, eps=EPS, lam=3.0, layers=layers, **o),
         lambda v: naive_tap(resnet, v, x, y, 0.005, 0.01) + naive_ata(resnet, v, x, y, 3.0, layers)
         - cross_entropy(resnet(v), y)),
    ):
        trace = Trace(images=True)
        x_adv = attack(trace=trace, steps=4)
        assert torch.allclose(trace.values[0], cross_entropy(resnet(x), y), atol=1e-5)
        for k in (1, 3):
            assert torch.allclose(trace.values[k], naive(trace.images[k]).detach(), rtol=1e-4, atol=1e-4)
        assert (naive(x_adv) > trace.values[0]).all()
        steps = (trace.images[2] - trace.images[1]).sign()
        v = trace.images[1].clone().requires_grad_()
        g = torch.autograd.grad(naive(v).sum(), v)[0]  # α through `grad` without a graph is a constant
        free = (x > 0.1) & (x < 0.9)
        assert float((steps == g.sign())[free].float().mean()) > 0.995


def test_weights_by_the_probability_and_in_their_range(resnet, scenes):
    """∂p_y/∂A is p_y times what y gains more than the mean of all, Σ_k p_k; unit weights reach 1."""
    x, y = scenes[0][:4], scenes[1][:4]
    with features(resnet, ["block2"]) as A:
        z = resnet(x.clone().requires_grad_())
    maps = dict(A)
    raw = channel_weights(z, maps, y)["block2"]
    unit = channel_weights(z, maps, y, unit=True)["block2"]
    assert torch.allclose(unit.abs().amax(1), torch.ones(4))
    assert torch.allclose(unit * raw.abs().amax(1, keepdim=True), raw)
    p = z.softmax(1)
    each = torch.stack([channel_weights(z, maps, torch.full_like(y, k))["block2"] for k in range(z.shape[1])], 1)
    by_hand = torch.einsum("nk,nkc->nc", p[torch.arange(4), y, None] * (F.one_hot(y, z.shape[1]) - p), each)
    assert torch.allclose(channel_weights(z, maps, y, of="probability")["block2"], by_hand, rtol=1e-4, atol=1e-9)
    for options in ({"unit": True}, {"of": "probability"}):
        for attack, rival in ((ata, bim), (tap_ata, tap)):
            assert torch.equal(attack(resnet, x, y, eps=EPS, lam=0.0, **options), rival(resnet, x, y, eps=EPS))
            assert not torch.equal(attack(resnet, x, y, eps=EPS, lam=10.0, **options),
                                   attack(resnet, x, y, eps=EPS, lam=10.0))
    with pytest.raises(ValueError, match="'logit' or of the 'probability', not 'odds'"):
        ata(resnet, x, y, eps=EPS, of="odds")


def test_the_second_order_is_nothing_until_relu_is_smooth(resnet, scenes):
    x, y = scenes

    def apart(**options):
        first, second = (ata(resnet, x, y, eps=EPS, lam=10.0, create_graph=graph, **options) for graph in (False, True))
        return float(((first - second).abs() > 1e-5).float().mean())

    assert apart() < 5e-3  # signs of gradients near zero may turn by rounding
    assert apart(smooth=1e-2) > 0.01
    x_in = x.clone().requires_grad_()
    assert not ata(resnet, x_in, y, eps=EPS, create_graph=True).requires_grad


@pytest.mark.parametrize("attack", [ata, tap_ata])
def test_ata_moves_attention_of_a_trained_network_further_than_its_rival(resnet, scenes, attack):
    x, y = scenes
    rival = {ata: bim, tap_ata: tap}[attack]

    def moved(x_adv):
        H, G = attention(resnet, x_adv, y), attention(resnet, x, y)
        return sum((H[k] - G[k]).flatten(1).norm(dim=1) for k in H)

    far, near = moved(attack(resnet, x, y, eps=EPS, lam=30.0)), moved(rival(resnet, x, y, eps=EPS))
    assert (far > near).float().mean() > 0.9
    assert float(far.mean()) > 1.1 * float(near.mean())


def test_layers_have_defaults_that_depend_on_the_family():
    for family in ("vgg", "resnet", "densenet", "inception", "mobilenet"):
        model = FAMILIES[family]()
        assert blocks(model) == ["block1", "block2", "block3"]
        assert middle(model) == ["block2"]
    pair = Ensemble([FAMILIES["vgg"](), FAMILIES["cnn7"](channels=3, size=32)])
    assert middle(pair) == ["models.0.block2", "models.1.layer3"]
    with pytest.raises(ValueError, match="name its layers"):
        blocks(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))


def test_through_a_transformation_the_terms_of_atta_are_added(resnet, scenes):
    """With no term of their own they are `atta`; through the identity γ = 1 is a loss that counts twice."""
    x, y = scenes[0][:4], scenes[1][:4]
    theta = torch.cat([Transformation.start("random", 3, 3, 3, generator(seed)).theta for seed in range(4)])
    T = Transformation(theta)  # one for each image
    plain = atta(resnet, x, y, T=T, eps=EPS, gamma=2.0)
    assert not torch.equal(plain, bim(resnet, x, y, eps=EPS))
    assert torch.equal(tap(resnet, x, y, eps=EPS, T=T, gamma=2.0, lam=0.0, eta=0.0), plain)
    assert torch.equal(ata(resnet, x, y, eps=EPS, T=T, gamma=2.0, lam=0.0), plain)
    off = {"lam": 0.0, "lam_tap": 0.0, "eta": 0.0}
    assert torch.equal(tap_ata(resnet, x, y, eps=EPS, T=T, gamma=2.0, **off), plain)
    same = nn.Identity()
    for attack, halved in ((ata, {"lam": 4.0}), (tap, {"lam": 0.004, "eta": 0.01}),
                           (tap_ata, {"lam": 4.0, "lam_tap": 0.004, "eta": 0.01})):
        twice = attack(resnet, x, y, eps=EPS, T=same, steps=2, **{k: 2 * v for k, v in halved.items()})
        once = attack(resnet, x, y, eps=EPS, steps=2, **halved)
        assert float((twice - once).abs().lt(1e-6).float().mean()) > 0.99
