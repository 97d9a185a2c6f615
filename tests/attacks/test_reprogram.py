"""Reprogramming where the answer is known: a linear model, which a frame can only shift; a gate that a frame opens."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.attacks import Reprogram, frequency_mapping
from kit.attacks.reprogram import focal, log_shares, one_sided
from kit.core import QueryCounter, generator, logits, normal
from kit.data import load
from kit.models import load as network

SHAPE = (3, 8, 8)


class Gate(nn.Module):
    """z = ± s(frame) · (v · image): what it says of the image is for the frame to decide. Grey frames say nothing."""

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        u = normal(torch.empty(3, 8, 8), generator(1))
        u[:, 2:6, 2:6] = 0
        self.u = nn.Parameter(torch.where(u == 0, 0, u - u[u != 0].mean()))

    def forward(self, x):
        inside = x[:, :, 2:6, 2:6].mean((1, 2)) @ self.v
        z = 8 * inside * (x * self.u).flatten(1).sum(1)
        return torch.stack([z, -z, torch.full_like(z, -30.0)], 1)


class NoGradient(nn.Module):
    """A model that answers, and refuses to be differentiated."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        return self.model(x)


@pytest.fixture
def gated():
    """Images (40, 1, 4, 4) of two classes by the sign of v · their columns, and the gate."""
    x = torch.rand(40, 1, 4, 4, generator=generator(2))
    model = Gate()
    side = x.mean((1, 2)) @ model.v.detach()
    x = x[side.abs() > 0.03]
    return model, x, (x.mean((1, 2)) @ model.v.detach() > 0).long()


@pytest.fixture
def linear_task():
    """A linear source of 4 classes, grey images (200, 1, 4, 4), and labels that a shifted source would give."""
    source = generator(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(4, 192, generator=source))
        model[1].bias.zero_()
    x = torch.rand(200, 1, 4, 4, generator=source)
    z = model(padded(x)).detach()
    z = z - z.mean(0) + 0.5 * torch.randn(z.shape, generator=source)
    return model, x, z.argmax(1)


def padded(x):
    return F.pad(x.expand(-1, 3, -1, -1), [2, 2, 2, 2], value=0.5)


def program(model, w, mapping, **settings):
    reprogram = Reprogram(model, shape=SHAPE, classes=len(mapping), m=mapping.shape[1], **settings)
    reprogram.restore({"program": w, "mapping": mapping, "inside": torch.tensor([4, 4])})
    return reprogram


# --- the image in its program ---------------------------------------------------------------------------------------


def test_without_a_program_it_is_the_padded_model(linear_task):
    model, x, _ = linear_task
    mapping = torch.tensor([[2, 0], [3, 1]])
    found = program(model, torch.zeros(SHAPE), mapping).logits(x)
    p = logits(model, padded(x)).softmax(1)
    torch.testing.assert_close(found.exp(), torch.stack([p[:, [2, 0]].mean(1), p[:, [3, 1]].mean(1)], 1))


@pytest.mark.parametrize("cell", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.3, 1e4])
def test_the_image_is_in_the_program_bit_by_bit_and_all_of_it_in_the_box(cell, scale):
    x = torch.rand(5, 1, 4, 4, generator=generator(0))
    w = scale * normal(torch.empty(3, 8 // cell, 8 // cell), generator(1))
    x_in = program(Gate(), w, torch.tensor([[0], [1]]), cell=cell).embed(x)
    assert torch.equal(x_in[:, :, 2:6, 2:6], x.expand(-1, 3, -1, -1))
    frame = x_in.clone()
    frame[:, :, 2:6, 2:6] = 0.5
    assert torch.equal(frame, frame[:1].expand_as(frame))
    assert (frame != 0.5).sum() == 5 * 3 * 48
    assert x_in.min() >= 0
    assert x_in.max() <= 1
    blocks = w.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    torch.testing.assert_close(frame[0, :, 0], 0.5 + 0.5 * blocks.tanh()[:, 0])


def test_images_off_the_middle_by_an_odd_pixel_and_of_another_shape():
    x = torch.rand(2, 3, 3, 5, generator=generator(0))
    reprogram = Reprogram(Gate(), shape=SHAPE, classes=2)
    x_in = reprogram.embed(x, torch.ones(SHAPE))
    assert torch.equal(x_in[:, :, 2:5, 1:6], x)
    assert reprogram.mask(x).sum() == 3 * (64 - 15)


# --- labels ---------------------------------------------------------------------------------------------------------


def test_the_outputs_of_a_class_are_averaged_and_not_mixed_with_those_of_another():
    p = torch.tensor([[0.4, 0.05, 0.3, 0.05, 0.1, 0.1], [0.02, 0.5, 0.02, 0.06, 0.2, 0.2]])
    mapping = torch.tensor([[0, 2], [1, 4], [5, 3]])
    h = log_shares(p.log() + 3, mapping).exp()
    torch.testing.assert_close(h, torch.tensor([[0.35, 0.075, 0.075], [0.02, 0.35, 0.13]]))


def test_the_mapping_is_the_best_disjoint_one():
    p = torch.randn(60, 5, generator=generator(3)).mul(2).softmax(1)
    y = torch.arange(60) % 2
    mapping = frequency_mapping(p, y, 2, 2)
    mean = torch.stack([p[y == k].mean(0) for k in range(2)])
    best = max(float(mean[0, list(four[:2])].sum() + mean[1, list(four[2:])].sum())
               for four in itertools.permutations(range(5), 4))
    assert len(mapping.unique()) == 4
    assert math.isclose(float(mean.gather(1, mapping).sum()), best, rel_tol=1e-6)


def test_the_focal_loss():
    log_h = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    y = torch.tensor([0, 0])
    torch.testing.assert_close(focal(log_h, y), torch.tensor([0.9, 0.2]).log().neg())
    torch.testing.assert_close(focal(log_h, y, 2.0), -torch.tensor([0.1**2 * math.log(0.9), 0.8**2 * math.log(0.2)]))


# --- the estimate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [None, 3.0])
def test_the_estimate_is_the_gradient_in_the_mean_and_as_scattered_as_it_must_be(b):
    """F linear: E ĝ = b/d ∇F, and with b = d E‖ĝ‖² = ‖∇F‖² (d + q − 1)/q."""
    d, q, source = 6, 3, generator(0)
    g = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0], dtype=torch.float64)
    w = torch.ones_like(g)
    found = []
    for _ in range(4000):
        value, estimate = one_sided(lambda v: v @ g, w, q=q, beta=0.1, b=b, draws=source)
        found.append(estimate)
    found, scale = torch.stack(found), 1 if b is None else b / d
    assert float(value) == float(w @ g)
    torch.testing.assert_close(found.mean(0), scale * g, atol=0.1 * scale, rtol=0)
    expected = scale**2 * float(g.square().sum()) * (d + q - 1) / q
    assert abs(float(found.square().sum(1).mean()) / expected - 1) < 0.05


# --- fitting --------------------------------------------------------------------------------------------------------


def test_a_linear_model_can_only_be_shifted_and_the_best_shift_is_found(linear_task):
    """A frame adds the same to every image's logits: the optimum over W is one over 4 numbers, and convex."""
    model, x, y = linear_task
    z, c = logits(model, padded(x)), torch.zeros(4, requires_grad=True)
    solver = torch.optim.LBFGS([c], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = F.cross_entropy(z + c, y)
        loss.backward()
        return loss

    solver.step(closure)
    best = float(F.cross_entropy(z + c, y).detach())
    own = torch.arange(4)[:, None]
    start = float(F.cross_entropy(z, y))

    def reached(**how):
        return float(F.cross_entropy(Reprogram(model, shape=SHAPE, classes=4).fit(
            x, y, mapping=own, batch=200, **how).logits(x), y))

    assert best < start - 0.5
    assert best - 1e-5 < reached(steps=300, lr=0.02) < best + 1e-3
    assert best - 1e-5 < reached(steps=300, lr=0.02, q=10) < best + 0.02
    assert reached(steps=300, lr=0.02, lam=1e3) > start - 0.05  # a frame that must stay grey says nothing


@pytest.mark.parametrize("how", [{}, {"q": 8}, {"q": 8, "gamma": 2.0}, {"cell": 2}, {"q": 8, "cell": 2}])
def test_the_frame_opens_the_gate_and_its_opposite_turns_every_answer(gated, how):
    model, x, y = gated
    settings, how = ({k: v for k, v in how.items() if k in group} for group in (("gamma", "cell"), ("q",)))
    reprogram = Reprogram(model, shape=SHAPE, classes=2, **settings).fit(
        x, y, mapping=torch.tensor([[1], [0]]), steps=60, batch=len(x), lr=0.1, **how)
    assert (reprogram.predict(x) == y).all()
    assert reprogram.history[-1].loss < 0.5 * reprogram.history[0].loss
    reprogram.program = -reprogram.program
    assert (reprogram.predict(x) != y).all()


def test_another_mapping_is_another_answer(gated):
    model, x, y = gated
    reprogram = Reprogram(model, shape=SHAPE, classes=2).fit(x, y, steps=40, batch=len(x), lr=0.1)
    assert (reprogram.predict(x) == y).all()
    z = reprogram.logits(x)
    reprogram.mapping = reprogram.mapping.flip(0)
    assert torch.equal(reprogram.logits(x), z.flip(1))
    assert (reprogram.predict(x) != y).all()


@pytest.mark.parametrize("q", [None, 5])
def test_every_question_is_counted_and_for_the_image_it_is_about(gated, q):
    model, x, y = gated
    n, d = len(x) - 10, 10
    counted = QueryCounter(model, len(x))
    reprogram = Reprogram(counted, shape=SHAPE, classes=2).fit(
        x[:n], y[:n], x_dev=x[n:], y_dev=y[n:], steps=7, batch=4, every=3, q=q)
    looks = 4  # before the steps 0, 3 and 6, and at the end
    assert reprogram.queries == counted.total == n + 7 * 4 * (1 if q is None else q + 1) + looks * d
    assert (counted.counts[n:] == looks).all()
    assert (counted.counts[:n] >= 1).all()
    assert [step.queries for step in reprogram.history][-1] == counted.total
    reprogram.predict(x)
    assert counted.total == reprogram.queries + len(x)


def test_by_questions_nothing_is_differentiated(gated):
    model, x, y = gated
    black = Reprogram(NoGradient(model), shape=SHAPE, classes=2)
    with torch.no_grad():  # what checks the model is under no_grad too
        assert (black.fit(x, y, x_dev=x, y_dev=y, steps=60, batch=len(x), lr=0.1, q=8).predict(x) == y).all()
    with pytest.raises(AssertionError):
        Reprogram(NoGradient(model), shape=SHAPE, classes=2).fit(x, y, steps=1)


def test_the_program_that_is_kept_is_the_best_on_the_development_images(gated):
    model, x, y = gated
    reprogram = Reprogram(model, shape=SHAPE, classes=2)
    reprogram.fit(x, y, x_dev=x[:12], y_dev=1 - y[:12], steps=60, batch=len(x), lr=0.1, every=5,
                  mapping=torch.tensor([[0], [1]]))  # whose labels are wrong: the more it learns, the worse
    seen = [step.accuracy for step in reprogram.history if step.accuracy is not None]
    assert len(seen) == 13
    assert seen[-1] == 0
    assert float((reprogram.predict(x[:12]) == 1 - y[:12]).float().mean()) == max(seen) > 0
    last = Reprogram(model, shape=SHAPE, classes=2).fit(
        x, y, steps=60, batch=len(x), lr=0.1, mapping=torch.tensor([[0], [1]]))
    assert (last.predict(x) == y).all()


def test_nothing_of_the_network_changes_and_a_call_repeats():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.rand(20, 1, 4, 4, generator=generator(0)), torch.arange(20) % 2
    state = torch.get_rng_state()
    runs = [Reprogram(model, shape=SHAPE, classes=2).fit(x, y, steps=4, batch=8, q=q, generator=generator(s)).program
            for q, s in ((None, 0), (2, 0), (2, 0), (2, 1))]
    assert torch.equal(runs[1], runs[2])
    assert not torch.equal(runs[1], runs[3])
    assert model.training
    assert all(module.training for module in model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_one_image_or_many_the_answer_is_the_same(gated):
    model, x, y = gated
    reprogram = Reprogram(model, shape=SHAPE, classes=2).fit(x, y, steps=5, batch=8)
    one_by_one = torch.cat([reprogram.logits(image[None]) for image in x])
    torch.testing.assert_close(one_by_one, reprogram.logits(x))


def test_what_was_fitted_is_kept_for_its_model(gated, tmp_path):
    model, x, y = gated
    reprogram = Reprogram(model, shape=SHAPE, classes=2, cell=2).fit(x, y, steps=5)
    reprogram.save(tmp_path / "program.safetensors")
    again = Reprogram.load(tmp_path / "program.safetensors", model)
    assert torch.equal(again.logits(x), reprogram.logits(x))
    assert again.cell == 2
    with pytest.raises(ValueError, match="other weights"):
        Reprogram.load(tmp_path / "program.safetensors", network("scenes/mobilenet"))


def test_digits_from_a_network_of_scenes_and_the_controls():
    """On real images: the program beats the padded network, and labels that are shuffled leave nothing to learn."""
    data = load("digits", "train", n=400)
    x, y = data.x[data.y < 2, :, 3:27:3, 3:27:3], data.y[data.y < 2]
    model = network("scenes/vgg")
    fit = {"steps": 25, "batch": 30, "lr": 0.1}
    reprogram = Reprogram(model, shape=(3, 32, 32), classes=2, m=3)
    right = float((reprogram.fit(x[:60], y[:60], **fit).predict(x[60:]) == y[60:]).float().mean())
    reprogram.fit(x[:60], y[:60][torch.randperm(60, generator=generator(0))], **fit)
    shuffled = float((reprogram.predict(x[60:]) == y[60:]).float().mean())
    assert right > 0.9
    assert shuffled < 0.75


@pytest.mark.parametrize(("wrong", "words"), [
    ({"shape": (3, 8)}, "shape must be"), ({"classes": 1}, "classes must be"), ({"m": 0}, "m must be"),
    ({"m": 2}, "needs? 4 outputs each|need 4 outputs"), ({"gamma": -1.0}, "gamma must be"), ({"cell": 3}, "cell must"),
    ({"x": torch.rand(4, 1, 8, 8)}, "leave no frame"), ({"x": torch.rand(4, 2, 4, 4)}, "leave no frame"),
    ({"x": 255 * torch.rand(4, 1, 4, 4)}, "divide them by 255"), ({"y": torch.tensor([0, 1, 2, 0])}, "holds 0 … 2"),
    ({"y": torch.zeros(4, dtype=torch.int64)}, "class 1 has no image"), ({"steps": 0}, "steps must be"),
    ({"q": 0}, "q must be"), ({"beta": 0.0}, "beta must be"), ({"decay": 0.0}, "decay must be"),
    ({"lr": 0.0}, "lr must be"), ({"x_dev": torch.rand(4, 1, 4, 4)}, "belong together"),
    ({"x_dev": torch.rand(4, 1, 3, 4), "y_dev": torch.zeros(4, dtype=torch.int64)}, "x_dev must have"),
    ({"mapping": torch.tensor([[0], [0]])}, "none of them twice"),
    ({"mapping": torch.tensor([[0], [3]])}, "outputs 0 … 2"),
    ({"mapping": torch.tensor([0, 1])}, r"mapping must be an int64 tensor \(2, 1\)"),
    ({"mapping": [[0], [1]]}, "mapping must be an int64 tensor"), ({"m": 1.5}, "m must be a whole"),
    ({"every": 0}, "every must be"), ({"shape": 3}, "shape must be"), ({"batch": 0}, "batch must be"),
])
def test_mistakes_get_one_sentence(wrong, words):
    settings: dict = {"shape": SHAPE, "classes": 2}
    how: dict = {"x": torch.rand(4, 1, 4, 4, generator=generator(0)), "y": torch.tensor([0, 1, 0, 1]), "steps": 1}
    for name, value in wrong.items():
        (settings if name in ("shape", "classes", "m", "gamma", "cell") else how)[name] = value
    with pytest.raises((ValueError, TypeError), match=words):
        Reprogram(Gate(), **settings).fit(**how)


def test_there_is_no_answer_before_fit():
    with pytest.raises(ValueError, match="call fit"):
        Reprogram(Gate(), shape=SHAPE, classes=2).predict(torch.rand(1, 1, 4, 4))


def test_mistakes_around_a_fit(gated):
    model, x, y = gated
    reprogram = Reprogram(model, shape=SHAPE, classes=2).fit(x, y, steps=2)
    before = reprogram.logits(x)
    for wrong in (255 * x, torch.rand(len(x), 1, 3, 3)[:1], torch.rand(len(x), 1, 9, 9)):
        with pytest.raises(ValueError, match=r"255|must have the shape|leave no frame"):
            reprogram.fit(wrong, y)
    assert set(reprogram.tensors()) == {"program", "mapping", "inside"}  # a fit that failed leaves what was
    assert torch.equal(reprogram.logits(x), before)
    with pytest.raises(ValueError, match="fitted around images"):
        reprogram.predict(torch.rand(2, 1, 3, 3))
    with pytest.raises(ValueError, match=r"x\[None\]"):
        reprogram.embed(x[0])
    with pytest.raises(ValueError, match="a program has the shape"):
        reprogram.embed(x, torch.zeros(3, 4, 4))
    p = torch.full((4, 3), 1 / 3)
    for labels, m, words in (([0, 1, 2, 0], 1, "y holds 0 … 2"), ([0, 1], 1, "p must be"), ([0, 1, 0, 1], 0, "m 1 or")):
        with pytest.raises(ValueError, match=words):
            frequency_mapping(p, torch.tensor(labels), 2, m)


# --- what it says of itself -----------------------------------------------------------------------------------------


def test_probes_are_beta_away():
    """F = ‖w‖² tells the length: (F(w + βu) − F(w)) / β = 2 w·u + β, so that at w = 0 all of ĝ is b/q Σ β u_j."""
    w, seen = torch.zeros(6, dtype=torch.float64), []

    def f(v):
        seen.append(v)
        return v.square().sum(1)

    _, g = one_sided(f, w, q=5, beta=0.1, draws=generator(0))
    far = torch.cat(seen)
    assert torch.allclose(far.norm(dim=1).sort().values, torch.tensor([0.0] + [0.1] * 5, dtype=torch.float64))
    assert torch.allclose(g, 6 / 5 * far.sum(0))


@pytest.mark.parametrize("q", [None, 3])
def test_an_epoch_asks_about_every_image_alike_in_the_generators_order(gated, q):
    model, x, y = gated
    n = len(x) // 4 * 4
    counted = QueryCounter(model, n)
    how = {"steps": 2 * n // 4, "batch": 4, "q": q, "mapping": torch.tensor([[1], [0]])}
    fitted = Reprogram(counted, shape=SHAPE, classes=2).fit(x[:n], y[:n], **how)
    assert (counted.counts == 2 * (1 if q is None else q + 1)).all()
    other = Reprogram(model, shape=SHAPE, classes=2).fit(x[:n], y[:n], generator=generator(1), **how)
    assert not torch.equal(fitted.program, other.program)
    assert (fitted.program[:, 2:6, 2:6] == 0).all()  # what is never seen is never moved
    assert (fitted.program != 0).sum() == 3 * 48


def test_the_first_loss_is_that_of_the_padded_model_and_decay_falls_by_the_epoch(linear_task):
    model, x, y = linear_task
    own = torch.arange(4)[:, None]
    how = {"mapping": own, "batch": 50, "lr": 0.05, "decay": 1e-9}
    runs = [Reprogram(model, shape=SHAPE, classes=4).fit(x, y, steps=steps, **how).program for steps in (3, 4, 8)]
    assert (runs[0] - runs[1]).abs().max() > 1e-3
    torch.testing.assert_close(runs[1], runs[2], atol=1e-6, rtol=0)
    first = Reprogram(model, shape=SHAPE, classes=4).fit(x, y, steps=1, mapping=own, batch=200).history[0]
    assert first.loss == pytest.approx(float(F.cross_entropy(logits(model, padded(x)), y)), rel=1e-5)


def test_of_programs_that_are_as_good_the_earliest_is_kept(linear_task):
    model, x, y = linear_task
    reprogram = Reprogram(model, shape=SHAPE, classes=4).fit(
        x, y, x_dev=x, y_dev=y, steps=4, every=1, lr=1e-9, mapping=torch.arange(4)[:, None])
    assert len({step.accuracy for step in reprogram.history}) == 1
    assert (reprogram.program == 0).all()


def test_a_class_of_few_images_chooses_as_well_as_one_of_many():
    """Means, not sums: the many images of class 0 favour output 1 a little, the one of class 1 needs it."""
    p = torch.tensor([[0.4, 0.5, 0.1]] * 9 + [[0.1, 0.9, 0.0]])
    assert frequency_mapping(p, torch.tensor([0] * 9 + [1]), 2).tolist() == [[0], [1]]
