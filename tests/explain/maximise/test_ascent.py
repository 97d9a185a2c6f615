"""The search against pictures that are known in closed form."""
import math

import pytest
import torch
from torch import nn

from kit.core import Trace, generator, logits
from kit.explain import Unit, maximise, multifaceted
from kit.explain.maximise import IMAGENET_COLOURS
from kit.explain.maximise.ascent import waking, woken
from kit.explain.maximise.facets import facets

STILL = {"jitter": 0, "zoom": 0.0, "degrees": 0.0}  # no transformation
SHAPE = (3, 6, 8)


def linear(seed=0, scale=1.0, classes=4):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), classes)).double()
    model[1].weight.data = scale * torch.randn(classes, math.prod(SHAPE), generator=generator(seed), dtype=torch.double)
    return model.eval(), model[1].weight.detach().view(classes, *SHAPE)


def test_with_l2_it_is_the_weights_and_pixels_and_fourier_agree():
    """argmax w·x − λ‖x − ½‖² = ½ + w/2λ where that lies in the box."""
    model, w = linear()
    lam = 2 * float(w.abs().max())
    for options in ({"fourier": False, "lr": 0.01}, {"lr": 0.1}, {"lr": 0.1, "colours": IMAGENET_COLOURS}):
        x = maximise(model, [2, 0], start=SHAPE, lam=lam, steps=400, **STILL, **options)
        assert torch.allclose(x, 0.5 + w[[2, 0]] / (2 * lam), atol=5e-3)


def test_with_l2_and_the_box():
    model, w = linear()
    x = maximise(model, 1, start=SHAPE, lam=0.7, steps=400, lr=0.01, fourier=False, **STILL)
    wanted = (0.5 + w[1:2] / 1.4).clamp(0, 1)
    assert 0.1 < float((wanted == 1).double().mean()) < 0.9
    assert torch.allclose(x, wanted, atol=3e-3)


@pytest.mark.parametrize(("options", "near"), [({"fourier": False}, 0.0), ({"lr": 0.5}, 0.02)])
def test_with_the_box_alone_it_is_black_and_white(options, near):
    model, w = linear()
    x = maximise(model, 3, start=SHAPE, steps=200, **STILL, **options)
    best = (w[3:4] > 0).double()
    gained, possible = (x * w[3]).sum(), (best * w[3]).sum()
    assert float(gained) >= float(possible) - near * float(w[3].abs().sum())
    assert near or torch.equal(x, best)


def test_total_variation_flattens_and_its_weight_decides():
    """One pixel pays w and costs λ_tv (2 + √2) v when it sticks out by v: it stays grey where that is dearer."""
    w = torch.zeros(1, 1, 7, 7, dtype=torch.double)
    w[..., 3, 3] = 1.0
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, 2, bias=False)).double()
    model[1].weight.data = torch.stack([w.flatten(), -w.flatten()])
    price = 1 / (2 + math.sqrt(2))
    found = [maximise(model, 0, start=(1, 7, 7), lam_tv=share * price, fourier=False, lr=0.005, steps=300, sigma=0.0,
                      lam=1e-3, **STILL)[0, 0] for share in (0.5, 2.0)]
    assert float(found[0][3, 3]) > 0.95
    assert float(found[1][3, 3]) < 0.56


def test_the_robust_picture_is_the_one_that_survives_the_jitter():
    """Weights ± 1 in turn, moved by −1, 0 or 1: their mean is −w/3, so that the best picture is the opposite one."""
    w = torch.ones(1, 1, 6, 12, dtype=torch.double)
    w[..., 1::2] = -1
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 2, bias=False)).double()
    model[1].weight.data = torch.stack([w.flatten(), -w.flatten()])
    for jitter, wanted in ((0, 1 / 4), (1, -1 / 12)):
        x = maximise(model, 0, start=(1, 6, 12), seeds=8, fourier=False, lam=2.0, steps=250, lr=0.01, zoom=0.0,
                     degrees=0.0, jitter=jitter)
        assert float(((x - 0.5) * w)[..., 1:-1, 1:-1].mean()) == pytest.approx(wanted, abs=0.015)


class Maps(nn.Module):
    """Maps of a convolution, pooled, and a linear layer."""

    def __init__(self, bias=0.0, relu=nn.ReLU):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 5, 3, padding=1), relu()
        self.head = nn.Linear(5, 3)
        for i, p in enumerate(self.parameters()):
            p.data = torch.randn(p.shape, generator=generator(i))
        self.conv.bias.data -= bias

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


def test_every_kind_of_unit_is_what_it_says():
    model, x = Maps().double().eval(), torch.rand(4, 3, 6, 7, generator=generator(9), dtype=torch.double)
    with torch.no_grad():
        z, A = model(x), model.relu(model.conv(x))
    v = torch.randn(2, 5, generator=generator(8), dtype=torch.double)
    cases = [
        (Unit([2, 0]), z[:, [2, 0]]), (Unit([1, 4], "relu"), A.mean((2, 3))[:, [1, 4]]),
        (Unit(3, "relu", (2, 5)), A[:, [3], 2, 5]), (Unit(3, "relu", "centre"), A[:, [3], 3, 3]),
        (Unit(v, "relu"), A.mean((2, 3)) @ v.T), (Unit(v, "relu", (0, 0)), A[:, :, 0, 0] @ v.T),
        (Unit(torch.tensor([1.0, -1, 0])), z[:, :1] - z[:, 1:2]), (Unit(1, "head"), z[:, 1:2]),
    ]
    for unit, wanted in cases:
        assert len(unit) == wanted.shape[1]
        assert torch.allclose(unit.table(model, x), wanted)
        rows = torch.arange(4) % len(unit)
        assert torch.allclose(unit[rows].of(model, x), wanted[torch.arange(4), rows])
        images = maximise(model, unit, start=(3, 6, 7), steps=60, lr=0.1, seeds=2, **STILL)
        assert images.shape == (2 * len(unit), 3, 6, 7)
        grey = unit.each(2).of(model, torch.full_like(images, 0.5))
        assert bool((unit.each(2).of(model, images) > grey + 0.1).all())  # a no-op, a sign


class Relu6(nn.Module):
    def forward(self, x):
        return nn.functional.relu6(x)


@pytest.mark.parametrize("relu", [nn.ReLU, nn.ReLU6, lambda: nn.ReLU6(inplace=True), Relu6])
def test_a_silent_channel_is_woken(relu):
    """All of the maps are zero at the start, and so is the plain gradient."""
    model = Maps(bias=4.0, relu=relu).double().eval()
    start = torch.full((1, 3, 6, 7), 0.5, dtype=torch.double)
    unit = Unit(1, "relu")
    assert float(unit.of(model, start).detach()) == 0
    x = maximise(model, unit, start=start, fourier=False, steps=200, lr=0.1, **STILL)
    assert float(unit.of(model, x).detach()) > 0.1


def test_only_silent_images_are_woken_and_only_upwards():
    z = torch.tensor([[-1.0, -2.0], [-1.0, 2.0]])
    g = torch.tensor([[3.0, -4.0], [3.0, 5.0]])
    assert woken(g, z).tolist() == [[3.0, 0.0], [0.0, 5.0]]


def test_silence_is_broken_in_the_first_sixteen_steps_alone():
    """All noise is off and Adam's step is tiny, so that the unit stays silent: after step 16 nothing moves it but
    Adam's memory of the gradient, which fades."""
    model = Maps(bias=40.0).double().eval()
    start = torch.full((1, 3, 6, 7), 0.5, dtype=torch.double)
    options = {"start": start, "fourier": False, "sigma": 0.0, "lr": 1e-4, **STILL}
    after = [maximise(model, Unit(1, "relu"), steps=k, **options) for k in (8, 16, 200, 400)]
    moved = [float((b - a).abs().mean()) for a, b in zip([start, *after], after, strict=False)]
    assert moved[0] > 0
    assert moved[1] > 0
    assert moved[3] < 0.01 * moved[1]


def test_noise_and_jitter_have_the_sizes_that_they_say():
    model, _ = linear()
    grey = torch.full((1, *SHAPE), 0.5, dtype=torch.double)
    still = {"start": grey, "steps": 1, "fourier": False, "lr": 1e-9, **STILL}
    assert torch.allclose(maximise(model, 0, sigma=0.0, **still), grey, atol=1e-6)
    assert float((maximise(model, 0, sigma=0.1, **still) - 0.5).std()) == pytest.approx(0.1, rel=0.2)
    options = {"start": (3, 32, 48), "steps": 1, "zoom": 0.0, "degrees": 0.0}
    big = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 48, 2)).eval()
    plain, two, eight = (maximise(big, 0, seeds=4, **options, jitter=j) for j in (None, 2, 8))
    assert torch.equal(plain, two)
    assert not torch.allclose(plain, eight)


def test_relu6_keeps_its_values_and_the_gradient_of_what_speaks():
    z = (10 * torch.randn(3, 4, generator=generator(0), dtype=torch.double)).requires_grad_()
    plain = nn.ReLU6()(z)
    with waking(woken):
        same = nn.ReLU6()(z)
    assert torch.equal(same, plain)
    w = torch.rand(3, 4, generator=generator(1), dtype=torch.double)
    assert torch.equal(*(torch.autograd.grad((a * w).sum(), z)[0] for a in (same, plain)))


def test_seeds_differ_and_units_do_not_mix():
    model = Maps().double().eval()
    options = {"start": (3, 6, 7), "steps": 5}
    x = maximise(model, [0, 1], seeds=3, **options)
    assert not torch.allclose(x[0], x[1])
    assert torch.allclose(x[:3], maximise(model, 0, seeds=3, **options))  # places alone decide the draws
    assert torch.equal(x, maximise(model, [0, 1], seeds=3, generator=generator(0), **options))
    assert not torch.allclose(x, maximise(model, [0, 1], seeds=3, generator=generator(1), **options))
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


def test_what_is_traced_rises():
    trace, (model, _) = Trace(), linear()
    maximise(model, [0, 1], start=SHAPE, steps=30, trace=trace, **STILL)
    assert trace.values.shape == (30, 2)
    assert bool((trace.values[-1] > trace.values[0] + 1).all())


class TwoModes(nn.Module):
    """The class answers to the nearer of two templates, which have nothing in common; `read` is what it compares."""

    def __init__(self, templates):
        super().__init__()
        self.read = nn.Linear(templates[0].numel(), 2, bias=False)
        self.read.weight.data = templates.flatten(1) - 0.5

    def forward(self, x):
        match = self.read((x - 0.5).flatten(1))
        best = 20 * torch.logsumexp(match / 0.1, 1) * 0.1
        return torch.stack([best, -best], 1)


def test_facets_reach_both_planted_modes_and_one_start_one():
    templates = torch.full((2, 1, 8, 8), 0.5)
    templates[0, 0, :, :4] = torch.eye(8)[:, :4].mul(0.8).add(0.1)
    templates[1, 0, :, 4:] = torch.eye(8)[:, 4:].mul(0.8).add(0.1)
    model = TwoModes(templates).eval()
    kind = torch.arange(60) % 3 == 0  # a third of the images show the second mode
    x = (templates[kind.long()] + 0.1 * torch.randn(60, 1, 8, 8, generator=generator(1))).clamp(0, 1)
    options = {"fourier": False, "lam": 3.0, "steps": 120, "lr": 0.03, "sigma": 0.01, **STILL}

    def mode(pictures):
        """Which template a picture shows: the larger correlation, which must be clear."""
        match = ((pictures - 0.5).flatten(1) @ model.read.weight.T).detach()
        assert bool(((match[:, 0] - match[:, 1]).abs() > 2).all())
        return set(match.argmax(1).tolist())

    pictures, found = multifaceted(model, 0, x, layer="read", k=2, **options)
    assert mode(pictures) == {0, 1}
    assert bool((logits(model, pictures)[:, 0] > 20).all())
    assert sorted(torch.bincount(found.cluster).tolist()) == [20, 40]
    assert len(set(found.cluster[kind].tolist())) == 1
    assert len(mode(maximise(model, 0, start=(1, 8, 8), **options))) == 1
    first = facets(model, "read", x, k=2, nearest=1)
    codes = model.read(x.flatten(1)).detach()
    for c in (0, 1):
        rows = (found.cluster == c).nonzero()[:, 0]
        nearest = rows[(codes[rows] - codes[rows].mean(0)).norm(dim=1).argmin()]
        assert torch.equal(first.means[c], x[nearest])
    own = found.cluster == found.cluster[0]
    near = facets(model, "read", x, k=2, nearest=60)
    assert torch.allclose(near.means[found.cluster[0]], x[own].mean(0), atol=1e-6)  # all of them: the cluster's mean


def test_mistakes_get_one_sentence():
    model = Maps().double().eval()
    small = {"start": (3, 6, 7), "steps": 2}
    for call, words in [
        (lambda: Unit("flamingo"), "not 'flamingo'"), (lambda: Unit(None), "not None"),
        (lambda: Unit({0, 1}), "not {0, 1}"),
        (lambda: Unit(0, "relu", 3), "place must"), (lambda: Unit(0, "relu", (1.5, 1)), "place must"),
        (lambda: maximise(model, 0, colours=torch.zeros(3, 3), **small), "with an inverse"),
        (lambda: maximise(model, 0, colours=[[1.0]], **small), "a torch tensor"),
        (lambda: facets(model, "relu", torch.rand(5, 3, 6, 7), k=2), "use x.to"),
        (lambda: Unit(torch.tensor([True])), "a unit is a number"),
        (lambda: Unit(-1), "0 or more"), (lambda: Unit([]), "a unit is"), (lambda: Unit(0, place=(1, 1)), "place must"),
        (lambda: Unit(0, "relu", "corner"), "place must"), (lambda: Unit(torch.tensor([float("nan")])), "finite"),
        (lambda: maximise(model, 3, **small), "the logits have 3 units, 0 … 2, and no unit 3"),
        (lambda: maximise(model, Unit(5, "relu"), **small), "'relu' has 5 units"),
        (lambda: maximise(model, Unit(torch.ones(4), "relu"), **small), "the direction 4 entries"),
        (lambda: maximise(model, Unit(0, "relu", (6, 0)), **small), "none at 6, 0"),
        (lambda: maximise(model, Unit(0, "head", (0, 0)), **small), "name one that returns maps"),
        (lambda: maximise(model, Unit(0, "block9"), **small), "no layer 'block9'"),
        (lambda: maximise(model, 0, start=(6, 7)), "start must be"),
        (lambda: maximise(model, 0, start=(3, 6, 0)), "start must be"),
        (lambda: maximise(model, 0, start=(3, 6, 7), seeds=0), "seeds 1 or more"),
        (lambda: maximise(model, 0, start=torch.full((1, 3, 6, 7), 0.5).double(), seeds=2), "in place of seeds"),
        (lambda: maximise(model, [0, 1, 2], start=torch.full((2, 3, 6, 7), 0.5).double()), "unit has 3 rows"),
        (lambda: maximise(model, 0, colours="rgb", **small), "colours must be"),
        (lambda: maximise(model, 0, colours=torch.eye(2), **small), "a matrix"),
        (lambda: maximise(model, 0, colours="imagenet", fourier=False, **small), "belong to the Fourier"),
        (lambda: maximise(model, 0, jitter=-1, **small), "jitter must be"),
        (lambda: maximise(model, 0, zoom=1.0, **small), "zoom lies"),
        (lambda: maximise(model, 0, lam_tv=float("nan"), **small), "lam_tv"),
        (lambda: maximise(model, 0, sigma=-1.0, **small), "sigma"),
        (lambda: facets(model, "relu", torch.rand(3, 3, 6, 7).double(), k=4), "k must be 1 to 3"),
    ]:
        with pytest.raises((ValueError, TypeError), match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
