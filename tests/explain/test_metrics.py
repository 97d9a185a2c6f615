"""Each measure on maps for which its value is known, and on models that look at known pixels."""
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from kit.core import QueryCounter, generator
from kit.explain import (
    completeness,
    deletion,
    energy_inside,
    gradient_times_input,
    infidelity,
    insertion,
    iou,
    l1_distance,
    max_sensitivity,
    pointing_game,
    randomised,
    rank_correlation,
    saliency,
    sparsity,
    ssim,
)
from kit.models.families import resnet


@pytest.fixture
def counter():
    """A model whose logit 0 is 40 × the mean of the left half − 20, white images, and the left half as the truth."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    model[1].weight.data.zero_()
    model[1].weight.data[0] = torch.tensor([1.0] * 4 + [0.0] * 4).repeat(8) * 40 / 32
    model[1].bias.data.copy_(torch.tensor([-20.0, 0.0]))
    x = torch.ones(2, 1, 8, 8)
    truth = torch.zeros(2, 8, 8)
    truth[..., :4] = 1
    return model, x, truth


def test_deletion_and_insertion_of_a_model_that_counts_pixels(counter):
    """p = σ(40 (share of the left half that is there − 1/2)), which the two orders reach at known shares."""
    model, x, truth = counter
    target = torch.zeros(2, dtype=torch.long)
    share = torch.linspace(0, 1, 33)
    falls = torch.sigmoid(40 * ((1 - 2 * share).clamp(min=0) - 0.5))
    right = deletion(model, x, truth, target, curve=True)
    wrong = deletion(model, x, -truth, target, curve=True)
    assert torch.allclose(right, falls.expand(2, -1), atol=1e-4)
    assert torch.allclose(wrong, torch.sigmoid(40 * ((2 - 2 * share).clamp(max=1) - 0.5)).expand(2, -1), atol=1e-4)
    assert torch.allclose(deletion(model, x, truth, target), torch.trapezoid(falls, share).expand(2), atol=1e-4)
    back = insertion(model, x, truth, target, fill=0.0, curve=True)
    assert torch.allclose(back, torch.sigmoid(40 * ((2 * share).clamp(max=1) - 0.5)).expand(2, -1), atol=1e-4)
    assert float(insertion(model, x, truth, target, fill=0.0).mean()) > float(
        insertion(model, x, -truth, target, fill=0.0).mean()) + 0.4


def test_the_class_followed_is_the_one_predicted_on_the_whole_image(counter):
    model, x, truth = counter
    zeros = torch.zeros(2, dtype=torch.long)
    assert torch.equal(insertion(model, x, truth, fill=0.0), insertion(model, x, truth, zeros, fill=0.0))
    assert torch.equal(deletion(model, x, truth), deletion(model, x, truth, zeros))


def test_curves_cost_what_they_say(counter):
    model, x, truth = counter
    asked = QueryCounter(model, 2)
    deletion(asked, x, truth, torch.zeros(2, dtype=torch.long), steps=10)
    assert asked.counts.tolist() == [11, 11]


def test_insertion_starts_from_a_blur(counter):
    """A blur keeps a plain image, so that nothing is there to insert, and takes a fine grid away."""
    model, _, truth = counter
    plain = insertion(model, torch.full((1, 1, 8, 8), 0.9), truth[:1], torch.tensor([0]), curve=True)
    assert torch.allclose(plain, plain[:, :1].expand_as(plain), atol=1e-5)


def test_pointing_energy_and_iou():
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    R = torch.zeros(3, 4, 4)
    R[0, 1, 1], R[1, 0, 1], R[1, 2, 2] = 2.0, 3.0, 1.0
    R[0, 3, 3] = -5.0
    assert pointing_game(R, mask).tolist() == [True, False, False]
    assert pointing_game(R, mask, tolerance=1).tolist() == [True, True, False]
    assert energy_inside(R, mask).tolist() == [1, 0.25, 0]
    assert energy_inside(torch.ones(3, 4, 4), mask).tolist() == [0.25] * 3
    inside = mask.float() + 0.1 * torch.rand(3, 4, 4, generator=generator(0))
    assert iou(inside, mask).tolist() == [1, 1, 1]
    assert iou(mask, -inside).tolist() == [0, 0, 0]
    assert iou(inside, inside * 2 + 1).tolist() == [1, 1, 1]
    pixel = torch.zeros_like(mask)
    pixel[:, 2, 2] = True
    assert iou(pixel, pixel).tolist() == [1, 1, 1]
    assert iou(pixel, mask).tolist() == [0.25] * 3
    shifted = inside.roll(1, 2)
    assert torch.allclose(iou(shifted, mask), torch.full((3,), 2 / 6))


def test_l1_distance_and_sparsity():
    a = torch.tensor([[[0.0, 1], [2, 4]], [[1, 1], [1, 1]]])
    assert l1_distance(a, 3 * a + 1).tolist() == [0, 0]
    assert l1_distance(a, -a)[0] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert sparsity(a)[1] == pytest.approx(0, abs=1e-6)
    one = torch.zeros(1, 2, 2)
    one[0, 0, 0] = -3
    assert float(sparsity(one)) == pytest.approx(0.75)
    assert 0 < float(sparsity(a)[0]) < 0.75


def test_completeness_of_a_linear_model(linear):
    model, x, y = linear
    R = gradient_times_input(model, x, y)
    assert float(completeness(model, x, R, y).max()) < 1e-3
    assert torch.allclose(completeness(model, x, 2 * R, y), torch.ones(len(x)), atol=1e-3)
    assert float(completeness(model, x, R, y, baseline=None).median()) > 1e-2  # the logit has its bias, too


def test_infidelity_is_zero_for_the_exact_parts_of_a_linear_model(linear):
    model, x, y = linear
    R = gradient_times_input(model, x, y)
    assert float(infidelity(model, x, R, y).max()) < 1e-5
    assert float(infidelity(model, x, 7 * R, y).max()) < 1e-5
    assert torch.allclose(infidelity(model, x, -R, y), torch.ones(len(x)))
    assert float(infidelity(model, x, R.flip(1), y).mean()) > 0.2
    assert torch.equal(infidelity(model, x, 0 * R, y), torch.ones(len(x)))  # an empty map says nothing
    one, two = (infidelity(model, x, R.flip(1), y, generator=generator(s)) for s in (1, 2))
    assert not torch.equal(one, two)


def test_several_maps_of_an_image_share_the_passes_of_infidelity(linear):
    model, x, y = linear
    R = gradient_times_input(model, x, y)
    several = torch.stack([R, -R, R.flip(1)], 1)
    counted = QueryCounter(model, len(x))
    together = infidelity(counted, x, several, y, samples=8)
    alone = torch.stack([infidelity(model, x, m, y, samples=8) for m in several.unbind(1)], 1)
    assert torch.allclose(together, alone, atol=1e-5)
    assert together[:, 0].max() < 0.01 < 0.2 < together[:, 2].mean()
    assert counted.counts.tolist() == [9] * len(x)
    with pytest.raises(ValueError, match="shape"):
        infidelity(model, x, several[..., 1:], y)


def test_max_sensitivity(linear):
    """The gradient of a linear model does not move; gradient × input moves with the input."""
    model, x, y = linear
    assert float(max_sensitivity(saliency, model, x, y).max()) < 1e-5
    near, far = (max_sensitivity(gradient_times_input, model, x, y, radius=r) for r in (0.01, 0.04))
    assert torch.allclose(4 * near, far, rtol=1e-2)
    assert float(near.min()) > 0


@pytest.fixture
def small():
    torch.manual_seed(0)
    return resnet(classes=4, width=4, norm=False).eval()


def test_randomising_goes_from_the_top_and_keeps_the_values(small):
    x = torch.rand(2, 3, 16, 16)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    stages = list(randomised(small))
    assert stages[0][0] == "head.linear"
    assert stages[-1][0] == "stem.conv"
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    for i, (_, model) in enumerate(stages):
        changed = {k.rpartition(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == {name for name, _ in stages[: i + 1]}
        for k, v in model.state_dict().items():
            assert torch.equal(v.flatten().sort().values, before[k].flatten().sort().values)
    for name, model in randomised(small, cascading=False):
        assert {k.rpartition(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])} == {name}
        assert not torch.allclose(model(x), small(x))
    names = [name for name, _ in randomised(small, layers=["block1", "block3"])]
    assert names == ["block3", "block1"]
    with pytest.raises(ValueError, match="no layer 'block9'"):
        list(randomised(small, layers=["block9"]))


def test_randomising_repeats_and_draws_from_its_generator(small):
    one, again, other = ([m.state_dict()["stem.conv.weight"] for _, m in randomised(small, generator=generator(s))][-1]
                         for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_ssim_is_the_published_one():
    a, b = torch.rand(3, 24, 24, generator=generator(0)), torch.rand(3, 24, 24, generator=generator(1))
    b[0] = a[0]
    b[1] = 0.5 * a[1] + 0.5 * b[1]
    ours = ssim(a, b)
    for i in range(3):
        u, v = ((m[i] - m[i].min()) / (m[i].max() - m[i].min()) for m in (a, b))
        theirs = structural_similarity(u.double().numpy(), v.double().numpy(), win_size=7, data_range=1.0)
        assert float(ours[i]) == pytest.approx(theirs, abs=2e-2)  # theirs leaves a border of the mean out
    assert float(ours[0]) == pytest.approx(1)
    assert ours[0] > ours[1] > ours[2]


def test_rank_correlation():
    a = torch.rand(2, 5, 5, generator=generator(0)) - 0.5
    assert torch.allclose(rank_correlation(a, a**3), torch.ones(2))
    assert torch.allclose(rank_correlation(a, -a), torch.ones(2))
    assert torch.allclose(rank_correlation(a, -a, absolute=False), -torch.ones(2))
    assert rank_correlation(a, torch.ones(2, 5, 5)).tolist() == [0, 0]
    ties, order = torch.tensor([[[1.0, 1, 2, 3]]]), torch.tensor([[[1.0, 2, 3, 4]]])
    assert float(rank_correlation(ties, order)) == pytest.approx(0.9486833)


def test_mistakes_are_named(counter):
    model, x, truth = counter
    with pytest.raises(ValueError, match=r"must have the shape \(2, 8, 8\)"):
        deletion(model, x, truth[:, :4])
    with pytest.raises(ValueError, match="steps must be between"):
        deletion(model, x, truth, steps=100)
    with pytest.raises(TypeError, match="mask must be bool"):
        energy_inside(truth, truth)
    with pytest.raises(ValueError, match="one shape"):
        ssim(truth, truth[:1])
    with pytest.raises(ValueError, match="share must lie"):
        iou(truth, truth, share=0)
