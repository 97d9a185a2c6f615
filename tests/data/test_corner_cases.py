import pytest
import torch
from torch import nn

from kit.core import fooled
from kit.data.corner_cases import (
    TRANSFORMATIONS,
    brightness,
    complement,
    contrast,
    rotate,
    scale,
    search,
    shear,
    synthesise,
    transform,
    translate,
)

EVERY = pytest.mark.parametrize("t", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)


def images(n=3, c=2, h=9, w=12, dtype=torch.float32):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0), dtype=dtype)


@EVERY
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 9, 12), (1, 1, 1, 1)])
def test_identity_gives_back_the_image_bit_by_bit(t, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(t(x, t.identity), x)


@EVERY
def test_extreme_changes_every_image_and_stays_in_the_box(t):
    x = images()
    out = transform(x, {t.name: t.extreme})
    assert out.shape == x.shape
    assert bool((out != x).flatten(1).any(1).all())
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert t.unit


@EVERY
def test_differentiable_in_the_image_and_in_the_parameter(t):
    x = (0.2 + 0.5 * images(2, 1, 4, 5, torch.float64)).requires_grad_()
    v = torch.tensor([t.identity + 0.13 * (t.extreme - t.identity)] * 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: t(x, v), (x, v))


@EVERY
def test_one_parameter_per_image_and_no_influence_of_batch_mates(t):
    x = images()
    values = torch.linspace(t.identity, t.extreme, 5)[1:4]
    together = t(x, values)
    for i in range(3):
        assert torch.equal(together[i:i + 1], t(x[i:i + 1], float(values[i])))


def test_a_quarter_turn_counter_clockwise():
    x = images(h=9, w=9)
    torch.testing.assert_close(rotate(x, 90.0), torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate(x, -90.0), torch.rot90(x, -1, (2, 3)), atol=1e-5, rtol=0)


def test_translation_moves_right_and_down_and_leaves_black():
    x = images()
    expected = torch.zeros_like(x)
    expected[..., 2:, 2:] = x[..., :-2, :-2]
    assert torch.equal(translate(x, 2.0), expected)
    half = translate(x, 0.5)
    torch.testing.assert_close(half[..., 3, 4], (x[..., 2:4, 3:5]).mean((2, 3)))


def test_scale_about_the_centre():
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 8] = 1  # four pixels right of the centre
    assert float(scale(x, 0.5)[..., 4, 6]) == 1
    x = torch.ones(1, 1, 8, 8)
    small = scale(x, 0.5)
    assert torch.equal(small[..., 2:6, 2:6], torch.ones(1, 1, 4, 4))
    assert float(small[..., 0, :].sum()) == 0
    assert torch.equal(scale(x, 2.0)[..., 1:-1, 1:-1], torch.ones(1, 1, 6, 6))


def test_shear_reads_each_pixel_where_it_says():
    x = images(1, 1, 9, 9)
    out = shear(x, 0.5)
    assert torch.equal(out[..., 4, :], x[..., 4, :])
    assert torch.equal(out[..., 2, 4], x[..., 2, 3])  # two rows above the centre: one column to the left
    torch.testing.assert_close(out[..., 5, 4], (x[..., 5, 4] + x[..., 5, 5]) / 2)


def test_grey_levels_in_closed_form():
    x = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    flat = lambda z: z.flatten().tolist()  # noqa: E731
    assert flat(brightness(x, 0.25)) == [0.25, 0.5, 0.75, 1.0]
    assert flat(contrast(x, 2.0)) == [0.0, 0.0, 0.5, 1.0]
    assert flat(contrast(x, 0.5)) == [0.25, 0.375, 0.5, 0.75]
    assert flat(complement(x)) == [1.0, 0.75, 0.5, 0.0]


def test_a_combination_is_applied_in_its_order():
    x = images(h=9, w=9)
    out = transform(x, {"complement": 1.0, "rotation": 30.0})
    assert torch.equal(out, rotate(complement(x), 30.0).clamp(0, 1))
    assert not torch.allclose(out, transform(x, {"rotation": 30.0, "complement": 1.0}))


class Bright(nn.Module):
    """Class 1 where the mean pixel is over a half."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def seeds():
    levels = torch.linspace(0.05, 0.45, 9)
    return levels.view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous(), torch.zeros(9, dtype=torch.int64)


def test_search_stops_at_the_first_parameter_past_the_threshold():
    x, y = seeds()
    found = search(Bright(), x, y, "brightness", error=0.5, steps=95)
    # 5 of the 9 levels 0.05, 0.10 … 0.45 pass a half when the shift exceeds 0.25
    assert found.reached
    assert found.parameters["brightness"] == pytest.approx(0.26, abs=1e-6)
    assert found.error == pytest.approx(5 / 9)
    assert list(found.errors) == sorted(found.errors)
    assert max(found.errors[:-1]) < 0.5
    assert "pixel range" in found.describe()


def test_search_says_when_the_threshold_is_not_reached():
    x, y = seeds()
    found = search(Bright(), x, y, "rotation", error=0.5, steps=5)  # it only darkens: never wrong
    assert not found.reached
    assert found.error == 0
    assert len(found.errors) == 5


def test_what_is_not_graded_is_tried_alone():
    x, y = seeds()
    found = search(Bright(), x, y, "complement")
    assert found.parameters == {"complement": 1.0}
    assert found.fractions == (1.0,)
    both = search(Bright(), 1 - x, y + 1, ("complement", "brightness"), error=1.0, steps=10)
    assert both.parameters["complement"] == 1.0


def test_corner_cases_start_from_rightly_classified_seeds_and_count_honestly():
    x, y = seeds()
    y[-1] = 1  # this seed is wrong from the start
    model = Bright()
    found = search(model, x[:-1], y[:-1], "brightness", error=0.5, steps=95)
    cases = synthesise(model, x, y, found)
    assert len(cases.x) == 8
    assert torch.equal(cases.success, fooled(model, cases.x, cases.y))
    assert cases.rate == pytest.approx(found.error)
    assert len(cases.successful) == int(cases.success.sum()) == 4


@pytest.mark.parametrize(("call", "message"), [
    (lambda x, y: transform(x, {"melting": 1.0}), "there is no transformation 'melting'"),
    (lambda x, y: search(Bright(), x, y, []), "at least one"),
    (lambda x, y: search(Bright(), x, y, "scale", error=1.5), "share"),
    (lambda x, y: search(Bright(), x, y, "scale", steps=0), "1 or more"),
    (lambda x, y: rotate(x, torch.zeros(2)), "one per image"),
    (lambda x, y: transform(x * 255, {"scale": 0.5}), "divide them by 255"),
    (lambda x, y: synthesise(Bright(), x, y + 1, search(Bright(), x, y, "scale", steps=1)), "every seed wrong"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*seeds())
