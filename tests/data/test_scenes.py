import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kit.data
from kit.data import scenes
from kit.data.scenes import (
    _PATTERNS,
    _TEXTURES,
    COLOURS,
    DARK,
    LIGHT,
    LUMA,
    PATTERNS,
    SHAPES,
    TEXTURES,
    _pixel_noise,
    _word,
    render,
)


@pytest.fixture(scope="module")
def many():
    return scenes(3000, seed=5)


def test_contract(many):
    assert many.x.shape == (3000, 3, 32, 32)
    assert many.x.dtype == torch.float32
    assert many.x.min() >= 0
    assert many.x.max() <= 1
    assert many.y.dtype == torch.int64
    assert many.classes == SHAPES
    assert many.mask.shape == (3000, 32, 32)
    assert many.mask.dtype == torch.bool
    assert torch.equal(many.concepts["shape"], many.y)
    for name, values in many.concepts.items():
        assert values.shape == (3000,)
        if name in many.concept_names:
            assert values.min() >= 0
            assert values.max() < len(many.concept_names[name])


def test_a_scene_is_a_function_of_seed_and_index(many):
    again = scenes(300, seed=5)
    assert torch.equal(again.x, many.x[:300])
    assert torch.equal(again.mask, many.mask[:300])
    some = render(torch.tensor([7, 2999, 0]).numpy(), seed=5)
    assert torch.equal(some.x, many.x[[7, 2999, 0]])
    assert not torch.equal(scenes(10, seed=6).y, many.y[:10])


def test_other_sizes_show_the_same_scene(many):
    large = scenes(200, size=64, seed=5)
    assert torch.equal(large.y, many.y[:200])
    small = F.avg_pool2d(large.x, 2)
    assert (small - many.x[:200]).abs().mean() < 0.03
    overlap = F.avg_pool2d(large.mask.float()[:, None], 2)[:, 0]
    assert (overlap - many.mask[:200].float()).abs().mean() < 0.02
    other = scenes(200, size=64, seed=6)
    assert (F.avg_pool2d(other.x, 2) - many.x[:200]).abs().mean() > 0.1  # what the bounds above would let through


def test_near_is_a_cut_of_the_same_scene_about_its_object(many):
    near, large = scenes(120, seed=5, near=True), scenes(120, size=64, seed=5)
    assert near.x.shape == (120, 3, 32, 32)
    assert torch.equal(near.y, many.y[:120])
    moved = 0
    for i in range(120):
        places = [(a, b) for a in range(33) for b in range(33)
                  if torch.equal(near.x[i, :, 0, :8], large.x[i, :, a, b:b + 8])]
        assert len(places) == 1
        (a, b), = places
        assert torch.equal(near.x[i], large.x[i, :, a:a + 32, b:b + 32])
        assert torch.equal(near.mask[i], large.mask[i, a:a + 32, b:b + 32])
        moved += (a, b) != (16, 16)
    assert moved > 60
    assert near.mask.sum((1, 2)).float().mean() > 2.5 * many.mask[:120].sum((1, 2)).float().mean()
    lost = 1 - near.mask.sum((1, 2)) / large.mask.sum((1, 2))
    assert lost.mean() < 0.15


def test_factors_are_uniform_and_independent(many):
    for name, k in (("shape", 10), ("texture", len(TEXTURES)), ("background", len(PATTERNS)), ("colour", len(COLOURS))):
        share = many.concepts[name].bincount(minlength=k) / 3000
        assert (share - 1 / k).abs().max() < 0.03, name
    # Cramér's V of two independent factors on 3000 images stays near √((a−1)(b−1)/3000/min(a−1, b−1)).
    factors = ["shape", "texture", "colour", "background", "background_colour", "polarity"]
    for i, a in enumerate(factors):
        for b in factors[i + 1 :]:
            assert _cramer(many.concepts[a], many.concepts[b]) < 0.09, (a, b)


def _cramer(a, b):
    table = torch.zeros(int(a.max()) + 1, int(b.max()) + 1).index_put_((a, b), torch.ones(len(a)), accumulate=True)
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / len(a)
    return float((((table - expected) ** 2 / expected).sum() / len(a) / (min(table.shape) - 1)).sqrt())


def test_objects_lie_and_turn_as_far_as_they_may(many):
    """All they can be is uniform: a size, a turn by up to 45 degrees, a place from edge to edge of the room."""
    f = many.concepts
    room = 0.98 - f["scale"]
    for values, low, high in ((f["scale"], 0.34, 0.57), (f["rotation"], -math.pi / 4, math.pi / 4),
                              (f["centre_x"] / room, -1, 1), (f["centre_y"] / room, -1, 1)):
        share = (values - low) / (high - low)
        assert -1e-6 < float(share.min()) < 0.01
        assert 0.99 < float(share.max()) < 1 + 1e-6
        assert float(share.mean()) == pytest.approx(0.5, abs=0.02)


def splitmix(state, k):
    """The k-th output of splitmix64 from a state, in integers."""
    z = (state + k * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_random_words_are_those_of_splitmix64():
    """Of the seed the first, of that the index-th, of that the slot-th: scenes stay the same wherever they are drawn.
    The three numbers are the published ones."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix(1234567, k) for k in (1, 2, 3)] == published
    for seed in (0, 5, 2**40):
        for slot in (0, 17):
            words = _word(seed, np.array([0, 1, 300]), slot).tolist()
            assert words == [splitmix(splitmix(splitmix(seed, 1), i), slot) for i in (0, 1, 300)]


def test_pixel_noise_is_triangular_and_of_each_pixel_alone():
    noise = _pixel_noise(3, np.arange(40), 32)
    assert noise.shape == (40, 3, 32, 32)
    assert -1 <= float(noise.min()) < -0.95
    assert 0.95 < float(noise.max()) <= 1
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std()) == pytest.approx(6**-0.5, abs=0.005)
    for step in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1], noise[:, :, 1:] * noise[:, :, :-1],
                 noise[..., 1:] * noise[..., :-1]):
        assert float(step.mean()) == pytest.approx(0, abs=0.005)


def test_textures_and_patterns_show_both_tones_in_their_shares():
    """Half of stripes, checks and waves; of dots a disc of 0.3 of their distance; of a grid the 0.22 of each period
    that its lines take, across and down."""
    axis = (torch.arange(600) + 0.5) / 100
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    _, stripes, dots, checks, _ = (draw(x, y, torch.tensor(0.01), torch.tensor(0.6), torch.tensor(0.2))
                                   for draw in _TEXTURES)
    _, _, waves, _, lines = (draw(x, y, torch.tensor(0.01), torch.tensor(0.6), *torch.tensor([0.2, 0.3, 0.4]))
                             for draw in _PATTERNS)
    whole = checks[:546, :546]  # 7 squares of 0.78
    for mix, share in ((stripes, 0.5), (dots, math.pi * 0.3**2), (whole, 0.5), (waves, 0.5), (lines, 1 - 0.78**2)):
        assert float(mix.mean()) == pytest.approx(share, abs=0.01)
        assert float(((mix == 0) | (mix == 1)).float().mean()) > 0.85
    assert torch.allclose(stripes[:, 60:], stripes[:, :-60], atol=1e-3)
    assert torch.allclose(stripes[:, 30:], 1 - stripes[:, :-30], atol=1e-3)
    assert torch.allclose(stripes[:1].expand_as(stripes), stripes)


def test_spurious_plants_the_background_and_nothing_else(many):
    planted = scenes(3000, seed=5, spurious=0.8)
    for name in ("shape", "texture", "colour", "scale"):
        assert torch.equal(planted.concepts[name], many.concepts[name])
    assert torch.equal(planted.mask, many.mask)
    hit = planted.concepts["planted"].bool()
    assert hit.float().mean() == pytest.approx(0.8, abs=0.03)
    assert torch.equal(planted.concepts["background"][hit], planted.y[hit] % len(PATTERNS))
    assert torch.equal(planted.concepts["background_colour"][hit], planted.y[hit] % len(COLOURS))
    assert torch.equal(planted.x[~hit], many.x[~hit])
    assert _cramer(planted.concepts["background"], planted.y) > 0.7
    assert scenes(50, spurious=1.0).concepts["planted"].all()


def test_mask_is_the_object(many):
    """The object's luma is in one band and the background's in the other, on the side that `polarity` says."""
    luma = (many.x * LUMA.view(3, 1, 1)).sum(1)
    inside = (luma * many.mask).sum((1, 2)) / many.mask.sum((1, 2))
    outside = (luma * ~many.mask).sum((1, 2)) / (~many.mask).sum((1, 2))
    light = many.concepts["polarity"] == 1
    assert ((inside > outside) == light).all()
    assert (inside - outside).abs().min() > 0.6 * (LIGHT[0] - DARK[1])
    area = many.mask.float().mean((1, 2))
    assert area.min() > 0.01
    assert area.max() < 0.35
    border = many.mask[:, [0, -1]].sum() + many.mask[:, :, [0, -1]].sum()
    assert border / many.mask.sum() < 0.01  # objects stay inside the picture


def test_edges_are_anti_aliased():
    """On the objects' edges a pixel is the mean of what it covers, not what lies at its centre."""
    small, large = scenes(100, seed=1), scenes(100, size=256, seed=1)
    covered = F.avg_pool2d(large.mask.float()[:, None], 8)[:, 0]
    edge = (covered > 0.1) & (covered < 0.9)
    assert edge.float().mean() > 0.02
    mean = F.avg_pool2d(large.x, 8)
    smooth = (small.x - mean).abs().mean(1)[edge].mean()
    jagged = (large.x[:, :, 4::8, 4::8] - mean).abs().mean(1)[edge].mean()
    assert smooth < 0.5 * jagged


def test_no_loop_over_images():
    """Thousands a second; the bound leaves room for a busy machine."""
    scenes(64)
    start = time.process_time()
    scenes(2000)
    assert 2000 / (time.process_time() - start) > 1500


def test_bad_arguments():
    with pytest.raises(ValueError, match="probability"):
        scenes(10, spurious=2)
    with pytest.raises(ValueError, match="too small"):
        scenes(10, size=8)
    with pytest.raises(ValueError, match="has no option 'sise'"):
        kit.data.load("scenes", sise=64)


def test_splits_differ_and_options_reach_the_renderer():
    a, b = kit.data.load("scenes", "dev"), kit.data.load("scenes", "test")
    assert len(a) == 1000
    assert len(b) == 2000
    flat = {t.numpy().tobytes() for t in a.x} & {t.numpy().tobytes() for t in b.x}
    assert not flat
    assert kit.data.load("scenes", n=12, size=48, spurious=1.0).x.shape == (12, 3, 48, 48)


@pytest.mark.parametrize("near", [False, True])
def test_frames_lay_an_outline_onto_its_object(near):
    """The outline, drawn in the object's own frame and laid by `frames`, is the mask of the scene."""
    data = scenes(40, size=64, seed=3, near=near)
    grid = F.affine_grid(kit.data.frames(data, near), [40, 1, 64, 64], align_corners=False)
    shapes = torch.stack([kit.data.outline(SHAPES[k], 256) for k in data.y])[:, None].float()
    laid = F.grid_sample(shapes, grid, align_corners=False)[:, 0] > 0.5
    assert (laid == data.mask).float().mean((1, 2)).min() > 0.97
    both = (laid & data.mask).flatten(1).sum(1) / (laid | data.mask).flatten(1).sum(1)
    assert both.min() > 0.85
    with pytest.raises(ValueError, match="no shape 'octagon'"):
        kit.data.outline("octagon", 8)


def test_every_shape_changes_the_shape_and_nothing_else():
    index, seed = np.array([5, 40, 7]), 3
    own = render(index, seed=seed)
    every = kit.data.with_every_shape(index, seed=seed)
    assert every.shape == (3, len(SHAPES), 3, 32, 32)
    for row, y, x, inside in zip(every, own.y.tolist(), own.x, own.mask, strict=True):
        assert torch.equal(row[y], x)
        apart = (row - x).abs().amax((1, 2, 3))
        assert bool((apart[[k for k in range(len(SHAPES)) if k != y]] > 0.1).all())
        far = ~F.max_pool2d(inside[None].float(), 25, 1, 12)[0].bool()
        assert bool(torch.isclose(row[:, :, far], x[:, far], atol=1e-5).all())
