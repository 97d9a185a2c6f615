"""MASK against its objective written out, against truth that is known, and against its own derivative."""
import math

import numpy as np
import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import Trace, generator, logits
from kit.explain import Descent, energy_inside, mask
from kit.explain.mask import enlarged, gaussian_blur, total_variation


class Reads(nn.Module):
    """Class 0 by the mean of one square, class 1 by that of another, and nothing else."""

    def __init__(self, size=24, gain=12.0):
        super().__init__()
        self.gain = gain
        self.where = torch.zeros(2, size, size, dtype=torch.bool)
        self.where[0, 2:8, 2:8], self.where[1, 14:20, 14:20] = True, True

    def forward(self, x):
        seen = [x.mean(1)[:, at].mean(1) for at in self.where]
        return self.gain * torch.stack([*seen, torch.full_like(seen[0], 0.5)], 1)


@pytest.fixture
def bright():
    """Both squares white on black: the model says 0 or 1 because of the one that is asked for."""
    model = Reads()
    x = 0.1 * torch.rand(2, 1, 24, 24, generator=generator(1))
    x[:, :, model.where.any(0)] = 1
    return model, x


@pytest.mark.parametrize("variant", ["delete", "preserve"])
def test_the_mask_of_one_class_leaves_the_other_object_out(bright, variant):
    model, x = bright
    target = torch.tensor([0, 1])
    R = mask(model, x, target, variant=variant, reference=0.0, cell=2, lam=2e-3, steps=150)
    here, there = model.where[target], model.where[1 - target]
    assert (energy_inside(R, here) > 4 * 36 / 576).all()
    assert (energy_inside(R, there) < 0.05).all()
    assert (R[here].view(2, -1).mean(1) > 0.3).all()


@pytest.mark.parametrize("variant", ["delete", "preserve"])
def test_what_the_mask_names_does_what_it_promises(bright, variant):
    """Deleted, the class is gone although little is deleted; kept alone, it stays although little is kept."""
    model, x = bright
    target = torch.tensor([0, 1])
    R = mask(model, x, target, variant=variant, reference=0.0, cell=2, lam=2e-3, steps=150)
    kept = (R if variant == "preserve" else 1 - R)[:, None] * x
    before, after = (logits(model, v).softmax(1).gather(1, target[:, None])[:, 0] for v in (x, kept))
    assert (R.mean((1, 2)) < 0.35).all()
    assert (after < 0.2).all() if variant == "delete" else (after > before + 0.1).all()


def written_out(model, x, m, target, lam, lam_tv, beta, cell, away, keeps):
    """The objective from its formula, an image and a cell at a time: the authors' for 28 × 28 cells."""
    values = []
    for i in range(len(x)):
        h, w = m[i].shape
        tv = 0.0
        for a in range(h):
            for b in range(w):
                down = m[i, a + 1, b] - m[i, a, b] if a + 1 < h else 0.0
                across = m[i, a, b + 1] - m[i, a, b] if b + 1 < w else 0.0
                tv += float(down**2 + across**2) ** (beta / 2)
        big = torch.kron(m[i], torch.ones(cell, cell, dtype=m.dtype))
        side, sigma = len(big), 5 / 8 * cell
        blur = torch.zeros(side, side, dtype=m.dtype)  # a Gaussian cut at 4 σ, what is beyond the edge added to it
        for u in range(side):
            near = range(u - math.ceil(4 * sigma), u + math.ceil(4 * sigma) + 1)
            weights = [math.exp(-((v - u) ** 2) / (2 * sigma**2)) for v in near]
            for v, weight in zip(near, weights, strict=True):
                blur[u, min(max(v, 0), side - 1)] += weight / sum(weights)
        M = blur @ big @ blur.T
        p = float(model((M * x[i] + (1 - M) * away[i])[None]).softmax(1)[0, target[i]])
        size = float(m[i].sum() if keeps else (1 - m[i]).sum())
        values.append(lam * size + lam_tv * tv + (-p if keeps else p))
    return torch.tensor(values, dtype=m.dtype)


@pytest.mark.parametrize("variant", ["delete", "preserve"])
def test_the_objective_is_the_authors_on_28_by_28_cells(variant):
    """With their settings on 224 pixels: λ₁ = 1e-4 and λ₂ = 1e-2 on sums, β = 3, cells of 8 pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 9, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    model = model.double().eval().requires_grad_(False)
    x = torch.rand(2, 3, 224, 224, generator=generator(1)).double()
    target = torch.tensor([1, 3])
    m, trace = torch.rand(2, 28, 28, generator=generator(2)).double(), Trace()
    state = Descent(x, m)
    mask(model, x, target, variant=variant, state=state, steps=1, jitter=0, trace=trace)
    away = gaussian_blur(x, 10.0)
    wanted = written_out(model, x, m, target, 1e-4, 1e-2, 3, 8, away, variant == "preserve")
    assert torch.allclose(-trace.values[0], wanted, rtol=1e-6)
    assert float((wanted[0] - wanted[1]).abs()) > 1e-6


def test_the_terms_by_hand():
    m = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    assert torch.allclose(total_variation(m, 3.0), torch.tensor([1 + 1.0]), atol=1e-5)  # across, and down
    assert torch.allclose(total_variation(0.5 * m, 3.0), torch.tensor([2 / 8.0]), atol=1e-5)
    x = torch.zeros(1, 3, 12, 10)
    M = enlarged(torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]]), x, 4)
    assert M.shape == (1, 12, 10)
    assert float(M[0, 0, 0]) > 0.8
    assert float(M[0, 11, 9]) < 1e-4
    assert torch.allclose(gaussian_blur(x + 0.3, 3.0), x + 0.3, atol=1e-6)


def test_the_descent_descends_and_every_term_does_something(bright):
    model, x = bright
    target = torch.tensor([0, 1])
    options = {"reference": 0.0, "cell": 2, "steps": 60, "jitter": 0}
    trace = Trace()
    plain = mask(model, x, target, **options, trace=trace)
    assert (trace.values[-1] > trace.values[0] + 1e-3).all()
    assert trace.values.shape == (60, 2)
    small = mask(model, x, target, **options, lam=0.02)
    assert (small.mean((1, 2)) < 0.8 * plain.mean((1, 2))).all()
    rough = mask(model, x, target, **options, lam_tv=0.0)
    smooth = mask(model, x, target, **options, lam_tv=0.1)
    edges = [total_variation(R, 2.0) for R in (rough, smooth)]
    assert (edges[1] < 0.8 * edges[0]).all()
    moved = mask(model, x, target, **options | {"jitter": 6})
    assert not torch.allclose(moved, plain, atol=1e-3)


@pytest.mark.parametrize("reference", ["blur", "noise", 0.5, "image"])
def test_references(bright, reference):
    model, x = bright
    reference = torch.zeros_like(x[:1]) if reference == "image" else reference
    target = torch.tensor([0, 1])
    R = mask(model, x, target, reference=reference, cell=2, steps=40, lam=2e-3)
    assert float(R.min()) >= 0
    assert float(R.max()) <= 1
    inside = energy_inside(R, model.where[target])
    assert (inside > 2 * 36 / 576).all()


def test_the_noise_is_new_at_each_step_and_the_same_for_all_images(bright, monkeypatch):
    model, x = bright
    seen, forward = [], Reads.forward
    monkeypatch.setattr(Reads, "forward", lambda self, v: seen.append(v.detach().clone()) or forward(self, v))
    mask(model, x, reference="noise", cell=2, steps=3, jitter=0, lr=1e-9, state=Descent(x, torch.zeros(1, 12, 12)))
    first, second, third = seen[-3:]
    assert torch.equal(first[0], first[1])
    assert 0 <= float(first.min()) < 0.05 < 0.95 < float(first.max()) <= 1
    assert float((first - second).abs().mean()) > 0.2
    assert float((second - third).abs().mean()) > 0.2


def test_the_generator_decides_the_noise_and_the_shifts(bright):
    model, x = bright
    target = torch.tensor([0, 1])
    for options in ({"reference": "noise", "jitter": 0}, {"reference": 0.0, "jitter": 6}):
        first, again, other = (
            mask(model, x, target, cell=2, steps=5, generator=generator(s), **options) for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("variant", ["delete", "preserve"])
def test_a_constant_image_and_a_saturated_class(variant):
    model = Reads(gain=12.0)
    flat = torch.full((2, 1, 24, 24), 0.7)
    R = mask(model, flat, torch.tensor([0, 1]), variant=variant, steps=60, lam=0.01)
    assert bool(R.isfinite().all())
    assert float(R.max()) < 0.05  # nothing need be seen, nothing can be deleted
    sure = Reads(gain=60.0)
    x = sure.where[:, None].float()
    target = torch.tensor([0, 1])
    assert float(logits(sure, x).softmax(1).amax(1).min()) == 1
    R = mask(sure, x, target, variant=variant, reference=0.0, cell=2, steps=150, lam=2e-3)
    assert (energy_inside(R, sure.where) > 4 * 36 / 576).all()
    assert (R[sure.where].view(2, -1).mean(1) > 0.3).all()


def test_a_call_goes_on_where_another_stood(bright):
    model, x = bright
    target, options = torch.tensor([0, 1]), {"reference": "noise", "cell": 3}
    whole = Descent(x)
    R = mask(model, x, target, steps=12, state=whole, **options)
    parts = Descent(x)
    for steps in (5, 7):
        last = mask(model, x, target, steps=steps, state=parts, **options)
    assert torch.allclose(R, last, atol=1e-5)
    assert torch.allclose(whole.m, parts.m, atol=1e-5)
    assert parts.t.tolist() == [12, 12]
    assert not torch.allclose(R, mask(model, x, target, steps=5, **options), atol=1e-3)
    assert 0 <= float(whole.m.min()) < float(whole.m.max()) <= 1
    whole_kept = mask(model, x, target, steps=1, lr=1e-9, jitter=0, cell=3, state=Descent(x, torch.ones(1, 8, 8)))
    assert float(whole_kept.max()) < 1e-6  # a start of one's own: nothing is deleted yet
    with pytest.raises(ValueError, match="cells"):
        mask(model, x, target, steps=1, cell=3, state=Descent(x, torch.ones(2, 3, 3)))
    parts.t[0] = 3
    with pytest.raises(ValueError, match="not at the same step"):
        mask(model, x, target, steps=1, state=parts, **options)


def test_the_rows_of_a_state_are_a_part_of_the_whole(bright):
    model, x = bright
    target, options = torch.tensor([0, 1]), {"reference": "noise", "cell": 3}
    whole, state = Descent(x), Descent(x)
    R = mask(model, x, target, steps=9, state=whole, **options)
    for steps in (4, 5):
        alone = mask(model, x[1:], target[1:], steps=steps, state=state[1:], **options)
    assert state.t.tolist() == [0, 9]
    assert torch.allclose(alone, R[1:], atol=1e-5)
    mask(model, x[:1], target[:1], steps=9, state=state[:1], **options)
    assert torch.allclose(state.m, whole.m, atol=1e-5)
    assert torch.allclose(state.first, whole.first, atol=1e-5)
    with torch.inference_mode():
        kept = Descent(x, torch.ones(1, 8, 8))
        mask(model, x, target, steps=2, state=kept, **options)
        mask(model, x, target, steps=1, state=kept, **options)
    assert kept.t.tolist() == [3, 3]


def test_a_call_that_was_stopped_between_chunks_is_not_gone_on_with(monkeypatch):
    model = Reads()
    x = torch.rand(3, 1, 24, 24, generator=generator(0))
    monkeypatch.setattr("kit.core.passes.chunk_size", lambda x: 2)
    state, calls, forward = Descent(x), [], Reads.forward

    def stops(self, v):
        calls.append(len(v))
        if len(v) == 1 and calls.count(1) == 8:  # in the chunk of the last image
            raise KeyboardInterrupt
        return forward(self, v)

    monkeypatch.setattr(Reads, "forward", stops)
    with pytest.raises(KeyboardInterrupt):
        mask(model, x, steps=3, state=state)
    assert state.t.tolist() == [3, 3, 0]
    with pytest.raises(ValueError, match="not at the same step"):
        mask(model, x, steps=3, state=state)
    mask(model, x[2:], steps=3, state=state[2:])
    R = mask(model, x, steps=3, state=state)
    assert state.t.tolist() == [6, 6, 6]
    assert torch.allclose(R, mask(model, x, steps=6), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (9, 2)])
def test_images_of_a_few_pixels(size):
    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([4 * x.mean((1, 2, 3)), torch.ones(len(x))], 1)

    R = mask(Mean(), torch.ones(2, 3, *size), torch.tensor([0, 0]), reference=0.0, steps=60, lam=1e-4)
    assert R.shape == (2, *size)
    assert float(R.min()) > 0.3  # to delete the class, all of it must go
    assert float(R.max()) <= 1


def smooth_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(),
                         nn.Linear(4 * 36, 3)).double().eval()


@pytest.mark.parametrize("variant", ["delete", "preserve"])
def test_unrolled_it_is_the_derivative_of_the_whole_map(variant):
    model = smooth_network()
    x = torch.rand(2, 2, 10, 10, dtype=torch.double, generator=generator(1)).mul(0.8).add(0.1).requires_grad_()
    target = torch.tensor([0, 2])
    begin = Descent(x)
    mask(model, x.detach(), target, variant=variant, state=begin, steps=3, cell=2, lr=0.02, lam=0.0)
    begin.m = begin.m * 0.6 + 0.2

    def R(v, **options):
        state = Descent(v)
        state.m, state.first, state.second = (t.clone() for t in (begin.m, begin.first, begin.second))
        state.t = begin.t.clone()
        return mask(model, v, target, variant=variant, state=state, steps=4, cell=2, lr=0.02, lam=0.0, **options)

    direction = torch.randn(x.shape, dtype=torch.double, generator=generator(2))
    probe = torch.randn(2, 10, 10, dtype=torch.double, generator=generator(3))
    (g,) = torch.autograd.grad((R(x, create_graph=True, unroll=4) * probe).sum(), x)
    h = 1e-6
    up, down = (R(x.detach() + s * h * direction) for s in (1, -1))
    slope = ((up - down) * probe).sum() / (2 * h)
    assert float(slope.abs()) > 1e-5
    assert torch.allclose((g * direction).sum(), slope, rtol=1e-3)
    (ahead,) = torch.autograd.grad((R(x, create_graph=True) * probe).sum(), x)
    assert float(ahead.abs().max()) > 0
    assert not torch.allclose(ahead, g, rtol=0.01)
    assert torch.allclose(R(x, create_graph=True), R(x.detach()))


def test_the_graph_has_no_nan_where_nothing_moves():
    model = smooth_network()
    x = torch.full((1, 2, 10, 10), 0.5, dtype=torch.double, requires_grad=True)
    R = mask(model, x, steps=4, lam=0.0, create_graph=True, unroll=4)
    (g,) = torch.autograd.grad(R.sum(), x)
    assert bool(g.isfinite().all())


def test_one_step_ahead_moves_the_map_where_it_is_pushed():
    """What ADV² does: down the gradient of the distance to another map, through one step, the state kept."""
    class Bright(nn.Module):
        def forward(self, x):
            score = 12 * (x.mean((1, 2, 3)) - 0.25)
            return torch.stack([score, torch.zeros_like(score)], 1)

    model, x = Bright(), torch.full((1, 1, 12, 12), 0.7, dtype=torch.double)
    x[..., :6] = 0.3  # what is dark on the left is not worth deleting
    target, options = torch.tensor([0]), {"cell": 2, "reference": 0.0, "lam": 0.01}
    wish = torch.zeros(1, 12, 12, dtype=torch.double)
    wish[..., :6] = 1

    def distance(v):
        return float((mask(model, v, target, steps=60, **options) - wish).square().sum())

    v, state = x, Descent(x)
    mask(model, v, target, steps=60, state=state, **options)
    for _ in range(40):
        v = v.detach().requires_grad_()
        mask(model, v.detach(), target, steps=2, state=state, **options)
        R = mask(model, v, target, steps=1, state=state, create_graph=True, **options)
        (g,) = torch.autograd.grad((R - wish).square().sum(), v)
        v = (v - 0.02 * g.sign()).clamp(0, 1)
    assert distance(v.detach()) < 0.7 * distance(x)


def test_memory_does_not_grow_with_the_steps():
    from tests.bench import peak_memory

    model, x = smooth_network(), torch.rand(1, 2, 10, 10, dtype=torch.double, generator=generator(1))
    few, many = (peak_memory(lambda k=k: mask(model, x, steps=k)) for k in (2, 6))
    assert many < 1.1 * few


def test_on_scenes_it_lies_on_the_object():
    data = kit.data.load("scenes", "test", n=12)
    model = kit.models.load("scenes/vgg")
    data = data[logits(model, data.x).argmax(1) == data.y][:8]
    R = mask(model, data.x, data.y, cell=2, lam=1e-3, steps=60)
    area = data.mask.float().mean((1, 2))
    assert float((energy_inside(R, data.mask) / area).mean()) > 2.5
    assert float((energy_inside(1 - R, data.mask) / area).mean()) < 1  # the sign


def test_mistakes_get_one_sentence(bright):
    model, x = bright
    for options, words in [
        ({"variant": "keep"}, "variant must be"), ({"reference": "grey"}, "reference must be"),
        ({"cell": 0}, "cell must be"), ({"cell": 99}, "cell must be"), ({"jitter": -1}, "jitter must be"),
        ({"jitter": 2.5}, "jitter must be"), ({"reference": torch.zeros(1, 3, 24, 24)}, "reference must be images"),
        ({"reference": torch.zeros(5, 1, 24, 24)}, "5 rows"), ({"unroll": 0}, "unroll"),
        ({"state": Descent(x[:1].repeat(5, 1, 1, 1))}, "5 rows"), ({"lam_tv": float("nan")}, "lam_tv"),
        ({"state": Descent(x[:1])}, "1 rows for 2 images"), ({"reference": float("nan")}, "must lie in"),
        ({"reference": 255.0}, "must lie in"), ({"reference": torch.full((1, 1, 24, 24), 7.0)}, "must lie in"),
        ({"cell": True}, "cell must be"),
    ]:
        with pytest.raises(ValueError, match=words):
            mask(model, x, steps=2, **options)
    for options, words in [({"state": {}}, "state must be"), ({"state": torch.ones(2)}, "state must be"),
                           ({"reference": None}, "reference must be")]:
        with pytest.raises(TypeError, match=words):
            mask(model, x, steps=2, **options)
    for start in (torch.ones(6, 6), torch.ones(3, 6, 6), torch.ones(2, 6, 6).long(), 1.0):
        with pytest.raises(ValueError, match="must be floats"):
            Descent(x, start)
    for start in (torch.full((2, 6, 6), float("nan")), torch.full((1, 6, 6), 1.5)):
        with pytest.raises(ValueError, match="must lie in"):
            Descent(x, start)
    same = [mask(model, x, steps=2, reference=grey, cell=cell)
            for grey, cell in ((0.5, 3), (torch.tensor(0.5), np.int64(3)))]
    assert torch.equal(*same)
