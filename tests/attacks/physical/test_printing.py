import pytest
import torch

from kit.attacks.physical import palette, printability, printed
from kit.core import generator


def test_an_exact_colour_scores_nothing_and_has_a_finite_gradient():
    inks = palette()
    p = inks[:4].T.reshape(1, 3, 2, 2).clone().requires_grad_()
    score = printability(p, inks)
    score.sum().backward()
    assert float(score.detach()) < 1e-5
    assert p.grad.isfinite().all()
    assert torch.equal(printed(p.detach(), inks), p.detach())


def test_the_score_is_the_mean_distance_to_the_nearest_ink_inside_the_mask():
    inks = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    p = torch.rand(2, 3, 3, 4, generator=generator(0))
    mask = torch.zeros(1, 1, 3, 4)
    mask[..., 1, 1:3] = 1
    by_hand = []
    for image in p:
        near = [min(float((image[:, i, j] - c).norm()) for c in inks) for i, j in ((1, 1), (1, 2))]
        by_hand.append(sum(near) / 2)
    assert printability(p, inks, mask).tolist() == pytest.approx(by_hand, rel=1e-4)
    other = torch.where(mask > 0, p, 0.5)  # outside the mask nothing counts, black neither
    assert torch.allclose(printability(other, inks, mask), printability(p, inks, mask))


def test_descending_the_score_reaches_the_inks():
    """With the sign turned it would leave them."""
    inks, p = palette(), torch.rand(1, 3, 8, 8, generator=generator(1))
    before = float(printability(p, inks))
    for _ in range(60):
        p = p.requires_grad_()
        (g,) = torch.autograd.grad(64 * printability(p, inks).sum(), p)
        p = (p - 0.005 * g).clamp(0, 1).detach()
    assert float(printability(p, inks)) < 0.1 * before
    assert float(printability(printed(p, inks), inks)) < 1e-5


def test_a_palette_of_other_channels_is_refused():
    assert palette(1).shape == (3, 1)
    assert len(palette().unique(dim=0)) == 27
    with pytest.raises(ValueError, match="a colour a row"):
        printability(torch.rand(1, 3, 2, 2), palette(1))


def test_a_mask_without_a_pixel_or_of_another_size_is_refused():
    p, inks = torch.rand(2, 3, 4, 4), palette()
    empty = torch.ones(2, 1, 4, 4)
    empty[1] = 0
    with pytest.raises(ValueError, match="no pixel"):
        printability(p, inks, empty)
    for mask in (torch.ones(1, 1, 3, 3), torch.ones(1, 3, 4, 4), torch.ones(3, 1, 4, 4), torch.ones(4, 4)):
        with pytest.raises(ValueError, match=r"\(1 or 2, 1, 4, 4\)"):
            printability(p, inks, mask)
    with pytest.raises(ValueError, match="divide them by 255"):
        printability(255 * p, inks)
