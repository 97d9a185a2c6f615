import pytest
import torch

from kit.attacks import Camera
from kit.attacks.physical.camera import averaged, blurred, eight_bits, resized, turned
from kit.core import generator

STILL = {"light": (1.0, 1.0), "blur": 0.0, "noise": 0.0}


def pictures(n=3, side=64, seed=0):
    return torch.rand(n, 3, side, side, generator=generator(seed))


def test_a_sharp_still_frontal_view_is_the_picture_in_eight_bits():
    x = pictures(side=32)
    seen = Camera(**STILL).at(5, 0)(x, generator())
    assert torch.allclose(seen, (255 * x).round() / 255, atol=1e-6)


def test_distance_costs_pixels_as_a_mean():
    x = pictures(side=64)
    seen = Camera(**STILL, size=32, sharp=10.0).at(40, 0)(x, generator())  # 8 pixels
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, 8)
    pooled = (255 * pooled).round() / 255
    exact = torch.nn.functional.interpolate(pooled, (32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(seen, exact, atol=1e-5)
    assert seen.std() < 0.6 * x.std()


def test_angle_foreshortens_by_the_pinhole():
    """A frame at ±X appears at X cos φ / (1 ± X sin φ / D): narrower, and the near side wider than the far one."""
    side, X, phi, D = 400, 0.5, 40.0, 4.0
    x = torch.zeros(1, 1, side, side)
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    x[:, :, :, axis.abs() <= X] = 1
    row = turned(x, torch.tensor([phi]), torch.tensor([D]))[0, 0, side // 2]
    seen = axis[row > 0.5]
    c, s = (float(f(torch.deg2rad(torch.tensor(phi)))) for f in (torch.cos, torch.sin))
    assert float(seen.max()) == pytest.approx(X * c / (1 + X * s / D), abs=0.01)
    assert float(seen.min()) == pytest.approx(-X * c / (1 - X * s / D), abs=0.01)
    mirrored = turned(x, torch.tensor([-phi]), torch.tensor([D]))[0, 0, side // 2].flip(0)
    assert torch.allclose(row, mirrored, atol=1e-4)
    column = turned(x.mT, torch.tensor([phi]), torch.tensor([D]))[0, 0]
    near, far = axis[column[:, side // 4] > 0.5].max(), axis[column[:, 3 * side // 4] > 0.5].max()
    assert near > X > far  # the left side is turned towards the camera


def test_light_multiplies_noise_is_drawn_and_eight_bits_round():
    x = torch.full((200, 1, 32, 32), 0.4)
    bright = Camera(**{**STILL, "light": (0.5, 1.5)}).at(5, 0)(x, generator(0))
    gain = bright.mean((1, 2, 3)) / 0.4
    assert gain.min() < 0.55
    assert gain.max() > 1.45
    assert float(gain.mean()) == pytest.approx(1.0, abs=0.05)
    noisy = Camera(**{**STILL, "noise": 0.05}).at(25, 0)(x, generator(0))
    assert float((noisy - 0.4).std()) == pytest.approx(0.05, rel=0.05)
    assert torch.allclose(255 * noisy, (255 * noisy).round(), atol=1e-3)
    assert not torch.equal(noisy, Camera(**{**STILL, "noise": 0.05}).at(25, 0)(x, generator(1)))


def test_blur_spreads_a_point_by_its_deviation():
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 16, 16] = 1
    spread = blurred(torch.tensor([33.0]), 1.5)[0]
    row = (spread @ x[0, 0] @ spread.T).sum(0)
    j = torch.arange(33.0)
    assert float((row * (j - 16) ** 2).sum().sqrt()) == pytest.approx(1.5, rel=0.01)
    soft, sharp = (Camera(**{**STILL, "blur": b}).at(25, 0)(pictures(), generator()).std() for b in (1.5, 0.0))
    assert soft < 0.7 * sharp


def test_the_matrices_are_means():
    pixels = torch.tensor([5.0, 16.0, 24.0])
    for matrix in (averaged(32, pixels), blurred(pixels, 0.7)):
        sums = matrix.sum(2)
        for row, r in zip(sums, pixels.long().tolist(), strict=True):
            assert torch.allclose(row[:r], torch.ones(r), atol=1e-5)
    assert torch.allclose(resized(pixels, 24, 16).sum(2), torch.ones(3, 16), atol=1e-5)
    assert (averaged(32, pixels)[0, 5:] == 0).all()


def test_each_image_has_its_own_view_and_the_gradient_passes():
    x = pictures(4).requires_grad_()
    seen = Camera()(x, generator(3))
    assert seen.shape == (4, 3, 32, 32)
    assert seen.min() >= 0
    assert seen.max() <= 1
    seen[1].sum().backward()
    moved = x.grad.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, False]
    v = torch.tensor([0.1234], requires_grad=True)
    eight_bits(v).backward()
    assert float(v.grad) == 1
    same = x[:1].detach().expand(2, -1, -1, -1)
    a, b = Camera()(same, generator(3))
    assert not torch.equal(a, b)
    assert torch.equal(Camera()(same, generator(3))[0], a)


@pytest.mark.parametrize(("wrong", "words"), [
    ({"distance": (0, 3)}, "distance"), ({"distance": (9, 3)}, "distance"), ({"angle": (-90, 0)}, "angle"),
    ({"light": (0, 1)}, "light"), ({"blur": -1}, "blur"), ({"noise": float("nan")}, "noise"), ({"size": 0}, "size"),
    ({"half": 6.0}, "farther off"), ({"distance": 5.0}, r"\(low, high\)"), ({"angle": (0, 1, 2)}, r"\(low, high\)"),
    ({"light": (0.5, float("nan"))}, "light"), ({"size": 32.5}, "whole number"),
])
def test_settings_that_make_no_sense_get_one_sentence(wrong, words):
    with pytest.raises(ValueError, match=words):
        Camera(**wrong)


def test_images_must_be_square():
    with pytest.raises(ValueError, match="square"):
        Camera()(torch.rand(1, 3, 8, 9))
    with pytest.raises(TypeError, match="generator"):
        Camera()(pictures(), 3)
    with pytest.raises(ValueError, match="divide them by 255"):
        Camera()(255 * pictures())


def test_the_smallest_pictures_are_seen_too():
    x = torch.full((2, 1, 2, 2), 0.2)
    x[1] = 0.6
    assert Camera(**STILL, size=3).at(5, 0)(x).flatten(1).unique(dim=1)[:, 0].tolist() == pytest.approx([0.2, 0.6])
