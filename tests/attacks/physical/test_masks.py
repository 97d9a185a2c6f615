import math

import pytest
import torch

from kit.attacks.physical import bars, face, glasses, graffiti, squares, turn


@pytest.mark.parametrize("draw", [bars, squares, graffiti, turn])
def test_what_is_stuck_on_lies_on_the_sign_and_leaves_most_of_it(draw):
    sign, sticker = face(64), draw(64)
    assert sticker.shape == (1, 1, 64, 64)
    assert set(sticker.unique().tolist()) == {0.0, 1.0}
    assert (sticker <= sign).float().mean() > 0.995
    assert 0.06 < float(sticker.sum() / sign.sum()) < 0.5


def test_faces_have_the_area_of_their_shape():
    for sides, area in ((0, math.pi * 0.64), (4, 2 * 0.64), (8, 4 * math.sin(math.pi / 4) * 0.64)):
        mask = face(256, 0.8, sides)
        assert float(mask.mean()) * 4 == pytest.approx(area, rel=0.02)
    eight = face(256, 0.8, 8)[0, 0]
    assert torch.equal(eight, eight.flip(0))
    assert torch.equal(eight, eight.T)  # it stands on a side
    three = face(201, 0.8, 3)[0, 0]
    assert three[135].sum() > three[60].sum()  # broad below


def test_masks_are_the_same_thing_at_every_size():
    for draw in (face, bars, squares, graffiti, glasses, turn):
        assert float(draw(256).mean()) == pytest.approx(float(draw(64).mean()), rel=0.25)


def test_the_words_can_be_told_and_others_are_refused():
    one, two = graffiti(64)[0, 0], graffiti(64, words=("HATE", "LOVE"))[0, 0]
    assert not torch.equal(one, two)
    top, bottom = one[:32].any(0), one[32:].any(0)
    for row in (top, bottom):  # four letters, with gaps between them
        assert int((row[1:] & ~row[:-1]).sum()) == 4
    with pytest.raises(ValueError, match="no letter 'X'"):
        graffiti(64, words=("X", "LOVE"))
    with pytest.raises(ValueError, match="draw it larger"):
        graffiti(64, thick=-1.0)


@pytest.mark.parametrize(("draw", "words"), [
    (lambda: face(8, sides=2), "3 sides or more, not 2"), (lambda: face(8, sides=-4), "3 sides"),
    (lambda: face(0), "size must be"), (lambda: bars(8.5), "size must be"), (lambda: glasses((8, 8)), "size must be"),
    (lambda: graffiti(32, words=("LOVE",)), "words must be two"), (lambda: graffiti(32, words="LOVE"), "words must be"),
    (lambda: graffiti(32, words=("", "LOVE")), "words must be two"),
])
def test_what_cannot_be_drawn_is_said(draw, words):
    with pytest.raises(ValueError, match=words):
        draw()


def test_glasses_leave_the_lenses_free():
    mask = glasses(64)[0, 0]
    assert mask[25, 19] == 0
    assert mask[25, 44] == 0
    assert mask[25, 32] == 1
    assert torch.equal(mask, mask.flip(1))
    assert 0.05 < float(mask.mean()) < 0.3
    beside = glasses(400, thick=0.2)[0, 0, 116:196, 220]  # between the rims, 0.4 high around the eyes
    assert float(beside.mean()) == pytest.approx(0.2 / 0.4, abs=0.03)
