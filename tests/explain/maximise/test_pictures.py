"""How pictures are written: round trips, Parseval, colours; and how they are shaken."""
import math

import pytest
import torch
import torch.nn.functional as F

import kit.data
from kit.core import Draws, generator
from kit.explain import colour_basis
from kit.explain.maximise import IMAGENET_COLOURS, Fourier, Pixels, pictures
from kit.explain.maximise.pictures import shaken


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64).mul(0.8).add(0.1)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 11), (1, 5), (1, 1)])
@pytest.mark.parametrize("colours", [None, IMAGENET_COLOURS])
def test_fourier_there_and_back(size, colours):
    x = noise(2, 3, *size)
    picture = Fourier(x, colours)
    v = picture.parameters(x)
    assert v.shape == (2, 3, size[0], size[1] // 2 + 1, 2)
    assert torch.allclose(picture.image(v), x, atol=1e-9)
    assert float((v - picture.parameters(1 - x)).abs().max()) > 0.1
    assert torch.equal(Pixels().image(Pixels().parameters(x)), x)
    assert Pixels().project(torch.tensor([-0.5, 0.25, 1.5])).tolist() == [0, 0.25, 1]


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_parseval(size):
    """The energy of the logits is that of the coefficients, each counted as often as the whole spectrum has it."""
    x = noise(1, 1, *size)
    picture = Fourier(x)
    weight = torch.full((size[1] // 2 + 1,), 2.0, dtype=torch.float64)
    weight[0] = 1
    if size[1] % 2 == 0:
        weight[-1] = 1
    F_ = picture.parameters(x).square().sum(-1) * picture.scale.square() / 16
    assert torch.allclose((F_ * weight).sum(), x.logit().square().sum(), rtol=1e-9)


def test_the_spectrum_is_lucids():
    """As Lucid writes it: coefficients times √(wh)/max(|f|, 1/max(w, h)), the inverse transform over wh, a quarter."""
    x = noise(1, 3, 6, 10)
    v = torch.randn(1, 3, 6, 6, 2, generator=generator(1), dtype=torch.float64)
    h, w = 6, 10
    fy, fx = torch.fft.fftfreq(h)[:, None].double(), torch.fft.rfftfreq(w).double()
    spectrum = torch.view_as_complex(v) * math.sqrt(w * h) / (fx**2 + fy**2).sqrt().clamp_min(1 / max(w, h))
    t = torch.fft.irfft2(spectrum, s=(h, w), norm="backward") / 4  # the backward norm divides by wh
    assert torch.allclose(Fourier(x).image(v), t.sigmoid(), atol=1e-7)


def test_low_frequencies_weigh_more():
    x = noise(1, 1, 16, 16)
    scale = Fourier(x).scale
    assert float(scale[0, 0]) == 16
    assert float(scale[0, 1]) == 16
    assert float(scale[0, 2]) == pytest.approx(8)
    assert float(scale[8, 8]) == pytest.approx(math.sqrt(2))


def test_colour_basis_decorrelates():
    """In the basis of their own covariance the colours of images are uncorrelated and of one variance."""
    x = kit.data.load("scenes", "train", n=64).x.double()
    C = colour_basis(x)
    pixels = x.transpose(0, 1).flatten(1)
    before = torch.corrcoef(pixels)
    after = torch.cov(torch.linalg.solve(C, pixels))
    assert float((before - torch.eye(3)).abs().max()) > 0.1
    assert torch.allclose(after / after[0, 0], torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert float(C.norm(dim=0).max()) == pytest.approx(1)
    assert bool((C.norm(dim=0).diff() < 0).all())  # what varies most comes first
    assert bool((C.sum(0) > 0).all())


def test_colour_basis_of_opposite_colours_keeps_both_and_mistakes_get_one_sentence():
    x = torch.tensor([[0, 1.0], [1, 0], [0.4, 0.4], [0.6, 0.6]]).view(4, 2, 1, 1)  # (1, −1) varies most
    C = colour_basis(x)
    assert float(C[:, 0].norm()) == pytest.approx(1)
    assert float(C[0, 0]) == pytest.approx(-float(C[1, 0]))
    assert colour_basis(x[:, :1]).tolist() == [[1.0]]
    with pytest.raises(ValueError, match="one value everywhere"):
        colour_basis(torch.full((2, 3, 4, 4), 0.5))


def test_a_picture_in_decorrelated_colours_has_the_colours_of_images():
    """White parameters give pixels whose logits are correlated as ImageNet's colours are."""
    x = noise(4, 3, 32, 32)
    v = torch.randn(4, 3, 32, 17, 2, generator=generator(2), dtype=torch.float64)
    t = Fourier(x, IMAGENET_COLOURS).image(v).logit().transpose(0, 1).flatten(1)
    wanted = (IMAGENET_COLOURS @ IMAGENET_COLOURS.T).double()
    found = torch.cov(t)
    assert torch.allclose(found / found.trace(), wanted / wanted.trace(), atol=0.05)
    apart = torch.corrcoef(Fourier(x).image(v).logit().transpose(0, 1).flatten(1))
    assert float((apart - torch.eye(3)).abs().max()) < 0.2


def test_shaken_moves_by_whole_pixels_and_fills_with_grey():
    x = noise(12, 1, 9, 7)
    moved = shaken(x, Draws(12, generator(0)), jitter=2)
    around = F.pad(x, [2] * 4, value=0.5)
    windows = {(i, j): around[:, :, 2 + i:11 + i, 2 + j:9 + j] for i in range(-2, 3) for j in range(-2, 3)}
    at = [[ij for ij, w in windows.items() if torch.allclose(w[n], moved[n], atol=1e-9)] for n in range(12)]
    assert all(len(found) == 1 for found in at)
    assert len({found[0] for found in at}) > 5  # each image its own
    assert torch.equal(shaken(x, None), x)


def test_shaken_reaches_every_shift_equally_often_and_none_beyond():
    x = torch.zeros(500, 1, 9, 9)
    x[..., 4] = 1
    places = shaken(x, Draws(500, generator(0)), jitter=2)[:, 0, 4].argmax(1)
    counts = torch.bincount(places, minlength=9)
    assert int(counts[2:7].sum()) == 500
    assert int(counts[2:7].min()) > 60


def test_the_last_number_of_a_draw_moves_no_further_than_the_others(monkeypatch):
    """u lies in [−1, 1): −1 itself comes once in millions of draws, and times 1.5 it is rounded to −2."""
    monkeypatch.setattr(pictures, "uniform", lambda like, source, low, high: like + low)
    x = noise(1, 1, 5, 6)
    moved = shaken(x, None, jitter=1)
    assert torch.allclose(moved[..., 1:, 1:], x[..., :-1, :-1], atol=1e-9)


def test_shaken_zooms_and_turns():
    """A bar through the middle: its length tells the zoom, its angle the turn; on a wide image too."""
    x = torch.full((1, 1, 41, 61), 0.5, dtype=torch.float64)
    x[:, :, 20, 20:41] = 1

    def bar(options):
        weight = shaken(x, generator(3), **options)[0, 0] - 0.5
        rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(61.0) - 30, indexing="ij")
        points = torch.stack([columns, rows]).flatten(1).double()
        values, vectors = torch.linalg.eigh(points * weight.flatten() @ points.T / weight.sum())
        return math.sqrt(float(values[1])), math.degrees(math.atan2(float(vectors[1, 1]), float(vectors[0, 1]))) % 180

    u = torch.empty(1, 4, dtype=torch.float64).uniform_(generator=generator(3)) * 2 - 1
    long, angle = bar({"zoom": 0.3})
    assert long == pytest.approx(bar({"jitter": 0, "zoom": 1e-9})[0] * (1 + 0.3 * float(u[0, 3])), rel=0.03)
    assert min(angle, 180 - angle) < 0.1
    long, angle = bar({"degrees": 40})
    assert min(abs(angle - a % 180) for a in (-40 * float(u[0, 2]), 180 - 40 * float(u[0, 2]))) < 1.5


def test_a_turn_keeps_distances_in_images_that_are_not_square():
    """A spot 6 pixels from the centre stays 6 pixels from it, and all spots turn by their own angles, of both signs."""
    row, column = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(48) - 23.5, indexing="ij")
    for up, right in ((0.0, 6.0), (6.0, 0.0)):
        spot = torch.exp(-((row + up) ** 2 + (column - right) ** 2) / 8)
        turned = shaken((0.5 + spot / 2).expand(12, 1, 24, 48), generator(3), degrees=40)[:, 0] - 0.5
        weight = turned / turned.sum((1, 2), keepdim=True)
        at = torch.stack([(weight * row).sum((1, 2)), (weight * column).sum((1, 2))], 1)
        assert torch.allclose(at.norm(dim=1), torch.tensor(6.0), atol=0.1)
        angle = torch.atan2(-at[:, 0], at[:, 1]).rad2deg() - (90 if up else 0)
        assert float(angle.abs().max()) < 40.5
        assert float(angle.max()) > 10
        assert float(angle.min()) < -10
