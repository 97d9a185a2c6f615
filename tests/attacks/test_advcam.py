"""Camouflage: each of its terms alone, and that it keeps to its mask."""
import pytest
import torch
from torch import nn

from kit.attacks import advcam
from kit.attacks.advcam import gram, smoothness, style_loss
from kit.core import features, fooled, generator, logits, margin

LAYERS = ["block1", "block2"]
pytestmark = pytest.mark.filterwarnings("ignore::kit.core.checks.MisleadingModel")


def net(seed=1):
    model = nn.Sequential()
    model.add_module("block1", nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()))
    model.add_module("block2", nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(8, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(seed)) * 2 / max(1, p[0].numel()) ** 0.5)
    return model.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def case():
    model = net()
    x = torch.rand(5, 3, 10, 12, generator=generator(0), dtype=torch.float64)
    model.head.bias.sub_(logits(model, x).mean(0))
    return model, x, logits(model, x).argmax(1)


def read(model, x, mask=None):
    with features(model, LAYERS) as maps, torch.no_grad():
        model(x)
    return [maps[name] for name in LAYERS], [gram(maps[name], mask) for name in LAYERS]


def test_gram_counts_what_stands_together_in_the_mask():
    A = torch.rand(2, 3, 4, 4, generator=generator(2), dtype=torch.float64)
    flat = A.flatten(2)
    assert torch.allclose(gram(A), flat @ flat.transpose(1, 2) / 16)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :4] = 1
    half = A[..., :2].flatten(2)
    assert torch.allclose(gram(A, mask), half @ half.transpose(1, 2) / 8)
    assert torch.allclose(gram(A.flip(3)), gram(A))  # not where


def test_the_style_of_an_image_is_its_own(case):
    model, x, _ = case
    maps, grams = read(model, x)
    assert style_loss(maps, grams).abs().max() == 0
    other = read(model, x.flip(0) * 0.3)[0]
    assert (style_loss(other, grams) > 0.1).all()


def test_smoothness_of_a_ramp():
    x = (torch.arange(4.0) * 0.2)[None, None, None].expand(1, 2, 5, 4).double()
    mask = torch.ones(1, 1, 5, 4, dtype=torch.float64)
    assert smoothness(x, mask)[0] == pytest.approx(2 * 15 * 0.04 / 2 / 40)
    assert smoothness(torch.ones_like(x), mask)[0] == 0
    mask[..., 1:] = 0
    assert smoothness(x, mask)[0] == 0


def test_content_alone_keeps_the_image(case):
    model, x, y = case
    kept = advcam(model, x, y, style=x.flip(0), layers=LAYERS, lam=0.0, lam_style=0.0, lam_tv=0.0, steps=5)
    assert torch.equal(kept, x)


def test_style_alone_brings_the_style_and_smoothness_smooths(case):
    model, x, y = case
    style = 0.2 + 0.3 * x[:1].round()
    grams = read(model, style)[1]
    drawn = advcam(model, x, y, style=style, layers=LAYERS, lam=0.0, lam_content=0.0, lam_tv=0.0, steps=60)
    before, after = (style_loss(read(model, v)[0], grams) for v in (x, drawn))
    assert (after < 0.2 * before).all()
    smooth = advcam(model, x, y, style=style, layers=LAYERS, lam=0.0, lam_content=0.0, lam_style=0.0, lam_tv=1.0,
                    steps=30)
    whole = torch.ones_like(x[:1, :1])
    assert (smoothness(smooth, whole) < 0.5 * smoothness(x, whole)).all()


def test_the_mask_is_kept_to_the_last_bit_and_the_attack_works_in_it(case):
    model, x, y = case
    mask = torch.zeros(1, 1, 10, 12, dtype=torch.float64)
    mask[..., 2:8, 3:10] = 1
    mask[..., 2, 3:10] = 0.5
    x_adv = advcam(model, x, y, style=x.flip(0), layers=LAYERS, mask=mask, lam=5.0, steps=60, lr=0.05)
    outside = (mask == 0).expand_as(x)
    assert torch.equal(x_adv[outside], x[outside])
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert fooled(model, x_adv, y).sum() >= 3
    control = advcam(model, x, y, style=x.flip(0), layers=LAYERS, mask=mask, lam=0.0, steps=60, lr=0.05)
    assert fooled(model, control, y).sum() < fooled(model, x_adv, y).sum()
    assert not torch.equal(control, x)


def test_a_target_is_reached_and_the_least_conspicuous_is_returned(case):
    model, x, y = case
    target = (y + 1) % 4
    options = {"style": x[:1], "layers": LAYERS, "lam": 5.0, "lr": 0.05}
    few, many = (advcam(model, x, y, target=target, steps=steps, **options) for steps in (40, 80))
    reached = fooled(model, few, y, target)
    assert reached.sum() >= 3
    assert fooled(model, many, y, target)[reached].all()
    grams, whole = read(model, x[:1])[1], torch.ones_like(x[:1, :1])

    def cost(v):
        A, B = read(model, v)[0], read(model, x)[0]
        content = (A[1] - B[1]).square().flatten(1).sum(1) / B[1].square().flatten(1).sum(1)
        return style_loss(A, grams) + 0.5 * content + 0.1 * smoothness(v, whole)

    assert (cost(many)[reached] <= cost(few)[reached] + 1e-9).all()


def test_a_reader_of_its_own_gives_the_style(case):
    model, x, y = case
    reader = net(7).train()
    options = {"style": x[:1], "layers": LAYERS, "lam": 0.0, "steps": 5}
    assert not torch.allclose(advcam(model, x, y, reader=reader, **options), advcam(model, x, y, **options))
    assert reader.training
    same = advcam(model, x, y, reader=net(), **options)
    assert torch.allclose(same[1:], advcam(model, x, y, **options)[1:])


def test_masks_of_another_dtype(case):
    model, x, y = case
    half = torch.zeros(1, 1, 10, 12, dtype=torch.float64)
    half[..., :6] = 1
    options = {"style": x[:1], "layers": LAYERS, "steps": 3, "lam": 0.0}
    exact = advcam(model, x, y, mask=half, style_mask=half, **options)
    for kind in (torch.bool, torch.float32):
        assert torch.equal(advcam(model, x, y, mask=half.to(kind), style_mask=half.to(kind), **options), exact)
    assert not torch.equal(advcam(model, x, y, mask=half, **options), exact)  # the style is that within its mask


def test_mistakes_get_one_sentence(case):
    model, x, y = case
    good = {"style": x[:1], "layers": LAYERS, "steps": 1}
    for changed, words in (({"style": x[:1, :1]}, "style must be"), ({"layers": []}, "at least one layer"),
                           ({"layers": ["head"]}, "no feature maps"), ({"mask": x[:1]}, "mask must have the shape"),
                           ({"mask": torch.zeros_like(x[:1, :1])}, "above 0 somewhere"),
                           ({"style_mask": 2 + x[:1, :1]}, r"lie in \[0, 1\]"),
                           ({"mask": torch.nan * x[:1, :1]}, r"lie in \[0, 1\]"),
                           ({"style": 255 * x[:1]}, "divide them by 255"), ({"layers": "block1"}, "must be a list"),
                           ({"style": (255 * x[:1]).byte()}, "style is of no use"),
                           ({"lam_tv": float("nan")}, "lam_tv")):
        with pytest.raises((ValueError, TypeError), match=words):
            advcam(model, x, y, **(good | changed))


def test_the_terms_have_the_size_that_they_say(case):
    """A grey mask weighs nothing; the style of nothing is 1 off; what is counted across is counted down."""
    A = torch.rand(2, 3, 4, 4, generator=generator(2), dtype=torch.float64)
    assert torch.allclose(gram(A, torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)), gram(A))
    model, x, _ = case
    maps, grams = read(model, x)
    assert torch.allclose(style_loss([0 * m for m in maps], grams), torch.ones(5, dtype=torch.float64))
    v, mask = x[:1], (x[:1, :1] > 0.5).double()
    assert torch.allclose(smoothness(v, mask), smoothness(v.transpose(2, 3), mask.transpose(2, 3)))
    assert smoothness(v, 0.5 * mask)[0] == pytest.approx(float(smoothness(v, mask)[0]))
    mask[:, :, 1:] = 0
    v = v * 0 + v[..., :1]  # changes down alone, where the mask is not
    assert smoothness(v, mask)[0] == 0


def test_its_own_style_within_its_own_mask_is_no_reason_to_move(case):
    model, x, y = case
    mask = torch.zeros(1, 1, 10, 12, dtype=torch.float64)
    mask[..., 2:8, 3:10] = 1
    options = {"style": x, "layers": LAYERS, "lam": 0.0, "lam_tv": 0.0, "steps": 3, "mask": mask}
    assert (advcam(model, x, y, style_mask=mask, **options) - x).abs().max() < 1e-9
    assert (advcam(model, x, y, **options) - x).abs().max() > 1e-3


def test_content_holds_back_and_kappa_is_how_far_it_leads(case):
    model, x, y = case
    options = {"style": 0.5 * x[:1], "layers": LAYERS, "steps": 30, "lr": 0.05, "lam_tv": 0.0}
    loose, held = (advcam(model, x, y, lam=0.0, lam_content=c, **options) for c in (0.0, 50.0))
    before = read(model, x)[0][1]
    far = [(read(model, v)[0][1] - before).square().sum() for v in (loose, held)]
    assert far[1] < 0.5 * far[0]
    x_adv = advcam(model, x, y, lam=5.0, kappa=0.3, **(options | {"steps": 80}))
    lead = margin(logits(model, x_adv), y)
    assert (lead > 0.3).sum() >= 3
    assert (lead[lead > 0] > 0.3).all()
    wrong = 3 - logits(model, x).flip(1).argmax(1)
    other = (wrong + 1) % 4  # x is not of this class: nothing is left to attack
    ahead = margin(logits(model, x), other) > 0.05
    assert ahead.sum() >= 3
    free, pushed = (advcam(model, x, other, lam=lam, kappa=0.0, **(options | {"steps": 2, "lr": 1e-4}))
                    for lam in (0.0, 5.0))
    assert torch.equal(free[ahead], pushed[ahead])


def test_a_reader_is_asked_in_evaluation_mode(case):
    model, x, y = case
    reader = net(7)
    reader.block1.add_module("drop", nn.Dropout(0.5))
    reader.train()
    options = {"style": x[:1], "layers": LAYERS, "lam": 0.0, "steps": 3, "reader": reader}
    assert torch.equal(advcam(model, x, y, **options), advcam(model, x, y, **options))
