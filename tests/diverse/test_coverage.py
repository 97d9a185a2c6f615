"""Coverage of networks made by hand, the choice that is best by eye, and correlations that are known."""
import numpy as np
import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.diverse import Ranges, activated, corners, covered, guides, most_covering, neurons, sections, watched


class ByHand(nn.Module):
    """Three channels that are x, x − ½ and −x behind a ReLU, and two classes from their sums."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 3, 1), nn.ReLU()
        self.conv.weight.data = torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1, 1)
        self.conv.bias.data = torch.tensor([0.0, -0.5, 0.0])

    def forward(self, x):
        a = self.relu(self.conv(x))
        return torch.stack([a[:, 0].sum((1, 2)), a[:, 1].sum((1, 2))], 1) / 4


def flat(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def test_neurons_are_the_means_of_channels_and_the_probabilities():
    x = flat(0.25, 0.75)
    a = neurons(ByHand(), x)
    assert watched(ByHand(), x) == ["relu"]
    assert torch.allclose(a[:, :3], torch.tensor([[0.25, 0.0, 0.0], [0.75, 0.25, 0.0]]))
    assert torch.allclose(a[:, 3:].sum(1), torch.ones(2))
    assert torch.allclose(neurons(ByHand(), x, layers=["relu"]), a[:, :3])


def test_scaling_is_within_the_layer_and_the_image():
    """An image ten times as dark activates the same neurons: the scale of each is its own."""
    x = flat(1.0, 0.1)
    a = neurons(ByHand(), x, layers=["relu"], scaled=True)
    assert torch.allclose(a, torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    got = activated(ByHand(), x, layers=["relu"], threshold=0.25)
    assert got.tolist() == [[True, True, False], [True, False, False]]
    assert activated(ByHand(), x, layers=["relu"], threshold=0.6).tolist() == [[True, False, False]] * 2
    assert not activated(ByHand(), flat(0.0), layers=["relu"]).any()  # a constant layer activates nothing


def test_one_pixel_is_averaged_over_the_channel():
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0] = 1
    a = neurons(ByHand(), x, layers=["relu"], scaled=True)
    assert torch.allclose(a, torch.tensor([[0.25, 0.125, 0.0]]))


def test_sections_and_corners():
    train = torch.tensor([[0.0, 2.0], [1.0, 2.0]])
    ranges = Ranges.of(train)
    a = torch.tensor([[0.0, 2.0], [0.49, 2.0], [1.0, 3.0], [-0.1, 1.0]])
    part = sections(a, ranges, 2).view(4, 2, 2)
    assert part[:, 0].tolist() == [[True, False], [True, False], [False, True], [False, False]]
    assert part[:, 1].tolist() == [[True, False], [True, False], [False, False], [False, False]]
    assert corners(a, ranges).tolist() == [
        [False, False, False, False], [False, False, False, False], [False, False, False, True],
        [True, True, False, False]]
    assert covered(part.flatten(1)) == 0.75
    assert covered(corners(a, ranges)) == 0.75
    assert not corners(train, ranges).any()  # the training images never leave their own ranges
    with pytest.raises(ValueError, match="1 or more, not 0"):
        sections(a, ranges, 0)


def test_covering_more_is_chosen_first():
    hit = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]], bool)
    assert most_covering(hit, 2) == [3, 0]
    assert covered(hit[most_covering(hit, 2)]) == 1
    assert sorted(most_covering(hit, 4)) == [0, 1, 2, 3]
    assert most_covering(hit, 3) == [3, 0, 1]  # all is covered, and counts anew
    with pytest.raises(ValueError, match="1 to 4"):
        most_covering(hit, 5)


def test_a_guide_that_guides():
    """Images that hit a cell of their own fail, the others hit the first cell and do not; turned about, it is −1."""
    fails = np.arange(60) % 5 == 0
    hit = np.zeros((60, 61), bool)
    hit[:, 60] = True
    hit[np.flatnonzero(fails), np.flatnonzero(fails)] = True
    found = guides(hit, fails, 5)
    assert found.n == 12
    assert found.value == pytest.approx(1)
    assert found.low > 0.99
    assert guides(hit, ~fails, 5).value == pytest.approx(-1)


def test_groups_take_their_means_off():
    """Two sources, one covering and failing more: over all it is a guide, within them coverage says nothing."""
    rng = np.random.default_rng(0)
    hit = np.concatenate([rng.random((200, 40)) < 0.02, rng.random((200, 40)) < 0.2])
    fails = np.concatenate([rng.random(200) < 0.1, rng.random(200) < 0.8])
    of = ["few"] * 200 + ["many"] * 200
    over_all, within = guides(hit, fails, 5), guides(hit, fails, 5, of)
    assert over_all.low > 0.4
    assert within.low < 0 < within.high
    assert over_all.n == within.n == 80


def test_what_does_not_vary_has_no_correlation():
    assert guides(np.ones((30, 4), bool), np.arange(30) % 3 == 0, 5) is None
    with pytest.raises(ValueError, match="30 images make 1 of 20"):
        guides(np.ones((30, 4), bool), np.ones(30), 20)
    with pytest.raises(ValueError, match=r"hit is \(N, cells\)"):
        guides(np.ones((30, 4), bool), np.ones(29), 5)


@pytest.mark.parametrize("name", ["digits/cnn7", "digits/mlp", "scenes/inception", "scenes/vgg"])
def test_shipped_networks_can_be_watched(name):
    """Training images lie within their ranges and every part of them; noise leaves the ranges."""
    model, d = kit.models.load(name), kit.data.load(name.split("/")[0], "test", n=30, seed=0)
    a = neurons(model, d.x)
    ranges = Ranges.of(a)
    assert not corners(a, ranges).any()
    assert sections(a, ranges).sum(1).eq(a.shape[1]).all()
    noise = torch.rand(d.x.shape, generator=torch.Generator().manual_seed(0))
    assert covered(corners(neurons(model, noise), ranges)) > 0.1
    assert activated(model, d.x).shape == a.shape


def test_a_network_without_relus_needs_names():
    with pytest.raises(ValueError, match="name the layers to watch"):
        watched(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(1, 1, 2, 2))


def test_what_cannot_be_covered_says_so():
    a, hit, failed = torch.rand(12, 5), np.eye(12, dtype=bool), np.arange(12) % 2
    for what in (lambda: sections(a, Ranges.of(a), 2.5), lambda: sections(a[:, :1], Ranges.of(a)),
                 lambda: Ranges.of(a[:0]), lambda: Ranges.of(a * torch.nan), lambda: covered(hit[0]),
                 lambda: covered(hit[:, :0]), lambda: guides(hit, failed, 0), lambda: guides(hit, failed, -1),
                 lambda: guides(hit, failed, 2.5), lambda: guides(hit, failed, 2, resamples=0)):
        with pytest.raises(ValueError, match="k is|ranges|hit is|size and"):
            what()
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(TypeError, match="floats"):
        watched(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
