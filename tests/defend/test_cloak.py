import pytest
import torch
from torch import nn

from kit.attacks import pgd
from kit.core import accuracy, fooled, generator, logits
from kit.defend import DeepCloak


def planted():
    """Eight features, each twice a pixel of its own; z is their weighted sum and its negative.

    Feature 5 weighs so much that any attack moves it far, and says nothing: its pixel is 0.5 in all images.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 2)).double().requires_grad_(False)
    model[1].weight.copy_(2 * torch.eye(8))
    model[1].bias.copy_(torch.full((8,), -1.0))
    w = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 20.0, 1.0, 1.0]).double()
    model[2].weight.copy_(torch.stack([w, -w]))
    model[2].bias.zero_()
    return model.eval()


@pytest.fixture
def pairs():
    """A class where all pixels are 0.7 and one where they are 0.3; the attack moves pixel 5 most, in l2."""
    y = torch.tensor([0, 1]).repeat(8)
    x = torch.where(y == 0, 0.7, 0.3).double()[:, None, None, None].expand(-1, 1, 2, 4).clone()
    x += 0.05 * torch.rand(x.shape, generator=generator(0)).double()
    x[:, 0, 1, 1] = 0.5
    model = planted()
    x_adv = pgd(model, x, y, eps=0.3, norm="l2", steps=20, random_start=False)
    assert fooled(model, x_adv, y).all()
    return model, x, y, x_adv


def test_the_feature_that_only_the_attack_moves_is_masked_first(pairs):
    model, x, y, x_adv = pairs
    cloak = DeepCloak(model, "1", share=1 / 8).fit(x, x_adv)
    assert cloak.mask().tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    assert accuracy(cloak, x, y) == 1
    assert accuracy(cloak, x_adv, y) == 1
    for j in {*range(8)} - {5}:  # any other mask of that size is of no use
        other = DeepCloak(model, "1", share=1 / 8)
        other.scores = torch.eye(8)[j]
        assert accuracy(other, x_adv, y) == 0


def test_scores_are_the_sum_of_the_changes(pairs):
    model, x, _, x_adv = pairs
    cloak = DeepCloak(model, "1").fit(x, x_adv)
    torch.testing.assert_close(cloak.scores, 2 * (x_adv - x).abs().flatten(1).sum(0))
    order = torch.tensor([3.0, 1, 4, 1.5, 9, 2, 6, 5])
    cloak.scores = order
    for k, share in ((0, 0.0), (1, 0.1), (2, 0.25), (4, 0.5), (8, 1.0)):
        cloak.share = share
        gone = cloak.mask() == 0
        assert gone.sum() == k
        assert not k or order[gone].min() == order.sort(descending=True).values[k - 1]


def test_masking_nothing_is_the_model_and_masking_all_is_a_constant(pairs):
    model, x, _, x_adv = pairs
    cloak = DeepCloak(model, "1", share=0).fit(x, x_adv)
    assert torch.equal(logits(cloak, x), logits(model, x))
    cloak.share = 1
    assert not logits(cloak, x).any()


def test_chunks_and_mates_do_not_matter_and_the_mask_has_the_layers_shape():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    x, v = (torch.rand(300, 3, 8, 8, generator=generator(i)).double() for i in (0, 1))
    model.train()
    cloak = DeepCloak(model, "2", share=0.2).fit(x, v)
    assert model.training
    whole = cloak.scores.clone()
    parts = sum(cloak.fit(x[rows], v[rows]).scores for rows in torch.arange(300).split(7))
    torch.testing.assert_close(whole, parts)
    assert cloak.mask().shape == (4, 6, 6)
    assert (cloak.mask() == 0).sum() == 29
    model.eval()
    torch.testing.assert_close(torch.cat([cloak(row[None]) for row in x[:5]]), cloak(x[:5]))


def test_an_attack_that_knows_the_mask_goes_around_it(pairs):
    model, x, y, x_adv = pairs
    cloak = DeepCloak(model, "1", share=1 / 8).fit(x, x_adv)
    again = pgd(cloak, x, y, eps=1.0, norm="l2", steps=20, random_start=False)
    assert fooled(cloak, again, y).all()
    assert torch.equal(again[:, 0, 1, 1], x[:, 0, 1, 1])  # what is masked has no gradient


def test_it_is_saved_for_its_model(pairs, tmp_path):
    model, x, _, x_adv = pairs
    cloak = DeepCloak(model, "1", share=0.25).fit(x, x_adv)
    cloak.save(tmp_path / "cloak")
    again = DeepCloak.load(tmp_path / "cloak", model)
    assert again.share == 0.25
    assert torch.equal(again(x), cloak(x))
    other = planted()
    other[2].weight.mul_(2)
    with pytest.raises(ValueError, match="other weights"):
        DeepCloak.load(tmp_path / "cloak", other)


def test_what_makes_no_sense(pairs):
    model, x, _, x_adv = pairs
    for make, message in (
        (lambda: DeepCloak(model, "9"), "no layer '9'"), (lambda: DeepCloak(model, "1", share=1.5), "share must be"),
        (lambda: DeepCloak(model, "1").fit(x, x_adv[:3]), "each image needs its attacked version"),
        (lambda: DeepCloak(model, "1").fit(x, 300 * x_adv), r"\[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(RuntimeError, match="call fit"):
        DeepCloak(model, "1")(x)
