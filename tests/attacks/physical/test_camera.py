import pytest
import torch

from kit.attacks import Camera
from kit.attacks.physical.camera import averaged, blurred, eight_bits, resized, turned
from kit.core import generator
from kit.core.seeding import Draws

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


@pytest.mark.parametrize("mates", [[0], [0, 2], [3, 0]])
def test_with_a_stream_for_each_image_its_view_does_not_depend_on_its_mates(mates):
    """Near mates have more sensor pixels: the noise of image 0 must be the same beside them."""
    x, camera = pictures(4), Camera(distance=(5, 60), noise=0.1)
    together = camera(x, Draws(4, generator(3)))
    alone = camera(x[mates], Draws(4, generator(3))[mates])
    assert torch.allclose(together[mates], alone, atol=1e-6)
    assert not torch.allclose(together, Camera(distance=(5, 60), noise=0.0)(x, Draws(4, generator(3))), atol=0.05)


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


def test_where_it_stands_and_the_light_come_from_the_generator():
    x, camera = pictures(1), Camera(distance=(5, 40), angle=(-60, 60), light=(0.7, 1.2), blur=0.0, noise=0.0)
    a, again, b = (camera(x, generator(s)) for s in (0, 0, 1))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def levels(x):
    """How many different columns there are."""
    return len((255 * x[0, 0]).round().unique(dim=1).T)


def test_the_sensor_has_as_many_pixels_as_it_says():
    """Of a picture whose columns all differ, a sensor keeps as many columns as it has pixels; they are read one to one
    where `size` is that number."""
    x = torch.linspace(0, 1, 64).expand(1, 1, 64, 64).contiguous()
    for size, sharp, distance, pixels in ((16, 5.0, 5, 16), (8, 10.0, 10, 8)):
        seen = Camera(**STILL, size=size, sharp=sharp).at(distance, 0)(x)
        assert torch.equal(seen, eight_bits(seen))
        assert levels(seen) == pixels
    # 4 at the least, however far off: means of 16 columns, and bilinear between them
    far = Camera(**STILL, size=32).at(1000, 0)(x)
    four = eight_bits(torch.nn.functional.adaptive_avg_pool2d(x, 4))
    assert torch.allclose(far, torch.nn.functional.interpolate(four, (32, 32), mode="bilinear"), atol=1e-5)
    # twice `size` at the most: a stripe in 64 points is averaged over 64 / (2 · 8) = 4 of them before the 8 bits
    near = Camera(**STILL, size=8, sharp=1e4).at(5, 0)
    assert torch.equal(near(x), Camera(**STILL, size=8, sharp=10.0).at(5, 0)(x))


def test_a_wide_sign_is_nearer_in_its_own_widths():
    x = pictures(1)
    narrow, wide = (Camera(**STILL, half=h).at(5, 40)(x) for h in (1.25, 2.5))
    assert torch.equal(wide, Camera(**STILL, half=1.25, sharp=12.5).at(2.5, 40)(x))
    assert not torch.equal(narrow, wide)


def test_beyond_its_edge_and_its_horizon_a_plane_goes_on_as_it_ends():
    white = torch.ones(1, 1, 32, 32)
    assert torch.allclose(turned(white, torch.tensor([50.0]), torch.tensor([4.0])), white)
    sides = white.clone()
    sides[..., :16] = 0  # from near at a steep angle the plane's far side would come back mirrored
    row = turned(sides, torch.tensor([80.0]), torch.tensor([1.1]))[0, 0, 16]
    assert (row.diff() >= -1e-6).all()


def test_a_sensor_is_full_at_white():
    """Before the crop is resized: between black and an overexposed half lies what lies between black and white."""
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8:] = 1
    dark, bright = (Camera(**{**STILL, "light": (v, v)}).at(1000, 0)(x) for v in (1.0, 3.0))
    assert torch.allclose(dark, bright)
    assert ((dark > 0.1) & (dark < 0.9)).any()
