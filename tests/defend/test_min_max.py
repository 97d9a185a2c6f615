"""The trainers against what they must be: closed forms, each other, and loops written out by hand."""
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kit.models
from kit.attacks import bim, fgsm
from kit.core import Linf, fooled, generator, logits
from kit.defend import (
    adversarial_augmentation,
    adversarial_training,
    ensemble_adversarial_training,
    fast_training,
    free_training,
    generated_augmentation,
    masking,
    single_step_training,
    trades,
    yopo_training,
)
from kit.defend.adversarial_training import surviving
from kit.defend.adversarial_training.cheap import halves
from kit.defend.adversarial_training.enlarged import sampled
from kit.models import Recipe
from kit.train import Checkpoint

CPU = torch.device("cpu")
EPS = 0.1
TOY = Recipe("none", "mlp", {"channels": 1, "size": 4, "classes": 3, "width": 8}, epochs=3, batch=10, lr=1e-2)
STILL = replace(TOY, lr=1e-12, weight_decay=0.0, epochs=1)  # the weights stay where they are


def images(n=30, classes=3):
    g = generator(0)
    return 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=g), torch.randint(classes, (n,), generator=g)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("how", [{"steps": 1, "step": EPS, "random_start": False}, {"steps": 9}])
def test_of_a_linear_network_it_is_plain_training_with_an_l1_norm_taken_from_the_margin(how):
    x, y = images(40, 2)

    def closed_form(model, xb, yb, g):
        w = model[1].weight
        z = model(xb)
        lead = (z[:, 1] - z[:, 0]) * (2 * yb - 1)
        return F.softplus(EPS * (w[1] - w[0]).abs().sum() - lead).mean()

    ours = adversarial_training(TOY, x, y, device=CPU, eps=EPS, start=linear(), **how)
    exact = kit.models.fit(TOY, x, y, device=CPU, loss=closed_form, start=linear())
    plain = kit.models.fit(TOY, x, y, device=CPU, start=linear())
    if not how.get("random_start", True):  # the random start draws from the generator that also orders the images
        torch.testing.assert_close(weights(ours), weights(exact), rtol=0, atol=1e-5)
    assert (weights(ours) - weights(exact)).norm() < 0.2 * (weights(ours) - weights(plain)).norm()


def test_the_joint_loss_is_the_lectures():
    x, y = images()

    def regularised(model, xb, yb, g):
        x_adv = fgsm(model, xb, yb, eps=EPS)
        return 0.3 * F.cross_entropy(model(xb), yb) + 0.7 * F.cross_entropy(model(x_adv), yb)

    ours = adversarial_training(
        TOY, x, y, device=CPU, eps=EPS, steps=1, step=EPS, random_start=False, clean=0.3)
    theirs = kit.models.fit(TOY, x, y, device=CPU, loss=regularised)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-6)


def test_fast_is_one_step_from_a_random_start_kept_within_the_ball():
    x, y = images()

    def by_hand(model, xb, yb, g):
        v = (xb + EPS * (2 * torch.rand(xb.shape, generator=g) - 1)).clamp(0, 1).requires_grad_()
        (up,) = torch.autograd.grad(F.cross_entropy(model(v), yb), v)
        v = torch.clamp(v.detach() + 1.25 * EPS * up.sign(), xb - EPS, xb + EPS).clamp(0, 1)
        return F.cross_entropy(model(v), yb)

    ours = fast_training(TOY, x, y, device=CPU, eps=EPS)
    torch.testing.assert_close(weights(ours), weights(kit.models.fit(TOY, x, y, device=CPU, loss=by_hand)),
                               rtol=0, atol=1e-6)


def test_without_a_share_for_the_worst_case_they_are_plain_training():
    x, y = images()
    plain = weights(kit.models.fit(TOY, x, y, device=CPU))
    assert torch.equal(weights(trades(TOY, x, y, device=CPU, eps=EPS, beta=0)), plain)
    assert torch.equal(weights(adversarial_training(TOY, x, y, device=CPU, eps=EPS, clean=1.0)), plain)
    torch.testing.assert_close(weights(free_training(TOY, x, y, device=CPU, eps=0.0, m=1)), plain)
    assert (weights(trades(TOY, x, y, device=CPU, eps=EPS)) - plain).norm() > 0.01


class Watched(nn.Sequential):
    """A small network that notes what it is given."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        self.seen = []
        self[0].register_forward_hook(lambda module, args, output: self.seen.append(args[0].detach().clone()))


def test_free_steps_on_the_gradient_that_it_learns_from_and_keeps_the_perturbation():
    x, y = images(20)
    model = Watched()
    free_training(STILL, x, y, device=CPU, eps=EPS, step=EPS / 2, m=3, start=model)
    seen = torch.stack(model.seen)
    assert len(seen) == 2 * 3  # two batches, three times each, and no pass more
    order = torch.randperm(20, generator=generator(0))
    first, second = x[order[:10]], x[order[10:]]
    fixed = Watched()
    torch.testing.assert_close(seen[0], first)
    for k in (1, 2):
        torch.testing.assert_close(
            seen[k], bim(fixed, first, y[order[:10]], eps=EPS, step=EPS / 2, steps=k), rtol=0, atol=1e-6)
    last = bim(fixed, first, y[order[:10]], eps=EPS, step=EPS / 2, steps=3) - first
    torch.testing.assert_close(seen[3], second + last, rtol=0, atol=1e-6)  # the stale one, by place


def test_free_learns_m_times_from_each_batch():
    x, y = images(20)
    steps = []
    free_training(TOY, x, y, device=CPU, eps=EPS, m=4, progress=lambda step, n, loss: steps.append((step, n)))
    assert steps[-1] == (3 * 2 * 4, 3 * 2 * 4)


def test_yopo_with_one_cheap_step_passes_through_the_images_of_pgd():
    x, y = images(10)
    model = Watched()
    yopo_training(STILL, x, y, device=CPU, eps=EPS, step=EPS / 3, m=4, n=1, start=model)
    order = torch.randperm(10, generator=(g := generator(0)))
    xb, yb = x[order], y[order]
    v, fixed, within = Linf(EPS).random(xb, g), Watched(), Linf(EPS)
    assert len(model.seen) == 4
    for seen in model.seen:
        torch.testing.assert_close(seen, v, rtol=0, atol=1e-6)
        v = v.requires_grad_()
        (up,) = torch.autograd.grad(F.cross_entropy(fixed(v), yb), v)
        v = within.project(v.detach() + EPS / 3 * up.sign(), xb)


def test_yopos_cheap_steps_are_through_the_first_layer_alone():
    x, y = images(10)
    few, many = Watched(), Watched()
    yopo_training(STILL, x, y, device=CPU, eps=EPS, step=EPS / 10, m=2, n=3, start=many)
    yopo_training(STILL, x, y, device=CPU, eps=EPS, step=3 * EPS / 10, m=2, n=1, start=few)
    assert len(many.seen) == 2 + 2  # of three cheap steps the first has its gradient from the pass itself
    torch.testing.assert_close(many.seen[-1], few.seen[-1], rtol=0, atol=1e-6)  # the first layer is linear
    first, rest = halves(Watched())
    assert [type(m) for m in first] == [nn.Flatten, nn.Linear]
    assert [type(m) for m in rest] == [nn.ReLU, nn.Linear]
    with pytest.raises(ValueError, match="no layer 'conv'"):
        halves(Watched(), "conv")


def test_yopo_learns_from_the_mean_gradient_of_its_passes():
    x, y = images(10)
    one = replace(TOY, epochs=1)

    def mean(model, xb, yb, g):
        v, within, total = Linf(EPS).random(xb, g), Linf(EPS), 0
        for _ in range(3):
            v = v.requires_grad_()
            value = F.cross_entropy(model(v), yb)
            (up,) = torch.autograd.grad(value, v, retain_graph=True)
            v, total = within.project(v.detach() + EPS / 2 * up.sign(), xb), total + value / 3
        return total

    ours = yopo_training(one, x, y, device=CPU, eps=EPS, step=EPS / 2, m=3, n=1)
    torch.testing.assert_close(weights(ours), weights(kit.models.fit(one, x, y, device=CPU, loss=mean)),
                               rtol=0, atol=1e-5)


def test_trades_leaves_the_image_where_its_gradient_is_zero():
    x, y = images(10)
    model = Watched()
    trades(STILL, x, y, device=CPU, eps=EPS, steps=2, start=model)
    clean, *climb, again, last = model.seen
    assert len(climb) == 2
    assert 0 < (climb[0] - clean).abs().max() < 0.006  # 0.001 N(0, 1)
    torch.testing.assert_close(again, clean)
    assert (last - clean).abs().max() <= EPS + 1e-6
    fixed, p = Watched(), logits(Watched(), clean).softmax(1)

    def apart(v):
        return F.kl_div(logits(fixed, v).log_softmax(1), p, reduction="sum")

    assert apart(last) > apart(climb[1]) > apart(climb[0])
    with torch.no_grad():  # to one side of the plain loss: both arguments are learnt
        assert apart(last) > apart(Linf(EPS).random(clean, generator(1)))


# --- going on, and stopping ------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("trainer", "how"), [
    (adversarial_training, {"steps": 2, "clean": 0.5, "ramp": 0.5}), (adversarial_training, {"steps": 2, "norm": "l2"}),
    (fast_training, {}), (free_training, {"m": 3, "ramp": 0.5}), (yopo_training, {"m": 2, "n": 2}),
    (trades, {"steps": 2}), (generated_augmentation, {"rank": 3}), (single_step_training, {"ramp": 0.5}),
    (ensemble_adversarial_training, {"static": ["other"]}), (adversarial_augmentation, {"source": "other", "steps": 2}),
])
def test_a_training_that_was_stopped_ends_in_the_same_weights(tmp_path, monkeypatch, trainer, how):
    other = Watched().eval()
    monkeypatch.setattr(kit.models, "load", lambda name, device=None: other)
    x, y = images()
    how = {"device": CPU, **({"eps": EPS} if trainer is not generated_augmentation else {}), **how}
    whole = weights(trainer(TOY, x, y, **how))
    kept = Checkpoint(tmp_path, "toy", {})

    def stop(step, steps, loss):
        if step == steps - 1:
            raise Stopped

    with pytest.raises(Stopped):
        trainer(TOY, x, y, checkpoint=kept, progress=stop, **how)
    assert kept.load()["epoch"] == 2
    assert torch.equal(weights(trainer(TOY, x, y, checkpoint=kept, **how)), whole)


KILLED = """
import os, signal, sys
import torch
from kit.core import generator
from kit.defend import free_training
from kit.models import Recipe
from kit.train import Checkpoint
torch.set_num_threads(1)
x = 0.3 + 0.4 * torch.rand(30, 1, 4, 4, generator=generator(0))
y = torch.randint(3, (30,), generator=generator(1))
r = Recipe("none", "mlp", {"channels": 1, "size": 4, "classes": 3, "width": 8}, epochs=4, batch=10, lr=1e-2)
def progress(step, steps, loss):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
model = free_training(r, x, y, device=torch.device("cpu"), eps=0.1, m=2, progress=progress,
                      checkpoint=Checkpoint(sys.argv[1], "toy", {}))
torch.save(torch.cat([p.detach().flatten() for p in model.parameters()]), sys.argv[3])
"""


def test_a_training_that_was_killed_ends_in_the_same_weights(tmp_path):
    """In its third epoch, by a signal that no program can catch; the same call goes on, and begins nothing anew."""
    def run(folder, killed_at, out):
        command = [sys.executable, "-c", KILLED, str(tmp_path / folder), str(killed_at), str(tmp_path / out)]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    whole, killed = run("whole", -1, "whole.pt"), run("cut", 15, "none.pt")
    assert whole.returncode == 0, whole.stderr
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "none.pt").exists()
    assert len(list((tmp_path / "cut").iterdir())) == 1  # one file, and nothing half written beside it
    again = run("cut", 12, "again.pt")  # of its 24 steps the first 12 lie behind it: the 12th does not come again
    assert again.returncode == 0, again.stderr
    assert torch.equal(torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "again.pt"))


def test_a_loss_that_diverges_names_its_step():
    x, y = images()
    calls = []

    def loss(model, xb, yb, g):
        calls.append(1)
        return model(xb).sum() * (torch.nan if len(calls) == 5 else 1.0)

    with pytest.raises(ValueError, match="the loss is nan at step 5, in epoch 2: lower the recipe's lr"):
        kit.models.fit(TOY, x, y, device=CPU, loss=loss)


def test_after_every_epoch_somebody_may_look():
    x, y = images()
    seen = []
    kit.models.fit(TOY, x, y, device=CPU, watch=lambda epoch, model: seen.append((epoch, weights(model))))
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert not torch.equal(seen[0][1], seen[2][1])


@pytest.mark.parametrize(("trainer", "how", "message"), [
    (adversarial_training, {"clean": 2}, "clean is a share"), (adversarial_training, {"steps": 0}, "steps must be 1"),
    (adversarial_training, {"eps": -0.1}, "eps must be at least 0"), (fast_training, {"step": 0.0}, "step must"),
    (free_training, {"m": 0}, "m must be a whole number"), (yopo_training, {"n": 1.5}, "n must be a whole number"),
    (trades, {"beta": -1.0}, "beta must be at least 0"), (adversarial_training, {"ramp": 2.0}, "ramp is a share"),
])
def test_settings_that_make_no_sense(trainer, how, message):
    x, y = images()
    with pytest.raises(ValueError, match=message):
        trainer(TOY, x, y, device=CPU, **how)


def test_who_survives_several_attacks():
    """Each attack is asked about those that are left; what leaves the ball is no answer, and the worst comes last."""
    model, (x, _) = linear().eval(), images(40)
    model[1].bias.data -= model[1](torch.full((1, 16), 0.5))[0].detach()  # both classes are in the box
    y = logits(model, x).argmax(1)
    y[:5] = 1 - y[:5]  # wrong before any attack
    asked = []

    def counted(attack):
        def asks(m, v, k):
            asked.append(len(v))
            return attack(m, v, k)
        return asks

    far = counted(lambda m, v, k: fgsm(m, v, k, eps=3 * EPS))
    small = counted(lambda m, v, k: fgsm(m, v, k, eps=EPS / 8))
    large = counted(lambda m, v, k: fgsm(m, v, k, eps=EPS / 3))
    found = surviving(model, x, y, {"far": far, "small": small, "large": large, "none": counted(lambda m, v, k: v)},
                      eps=EPS)
    assert found["clean"].tolist() == [False] * 5 + [True] * 35
    assert torch.equal(found["far"], found["clean"])
    assert torch.equal(found["small"], found["clean"] & ~fooled(model, fgsm(model, x, y, eps=EPS / 8), y))
    assert torch.equal(found["large"], found["clean"] & ~fooled(model, fgsm(model, x, y, eps=EPS / 3), y))
    assert torch.equal(found["none"], found["large"])
    assert asked == [35, 35, int(found["small"].sum()), int(found["large"].sum())]
    assert 0 < found["large"].sum() < found["small"].sum() < 35


# --- larger training sets --------------------------------------------------------------------------------------------


def test_the_attacks_that_are_added_are_those_on_the_source(monkeypatch):
    x, y = images(20)
    source, model = Watched().eval(), Watched()
    monkeypatch.setattr(kit.models, "load", lambda name, device=None: source)
    adversarial_augmentation(STILL, x, y, device=CPU, source="other", eps=EPS, steps=5, start=model)
    seen = torch.cat(model.seen)
    assert len(seen) == 40
    far = (seen[:, None] - x[None]).flatten(2).abs().amax(2).min(1).values
    assert (far < 1e-6).sum() == 20
    assert far.max() <= EPS + 1e-6


def test_generated_images_have_the_moments_of_their_class():
    g = generator(0)
    y = torch.arange(2).repeat(200)
    axis = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    x = 0.3 + 0.4 * y.view(-1, 1, 1, 1) + 0.05 * torch.randn(400, 1, 1, 1, generator=g) * axis
    made = sampled(x, y, y.repeat(5), 1, g)
    for k in (0, 1):
        own, new = x[y == k].flatten(1), made[y.repeat(5) == k].flatten(1)
        torch.testing.assert_close(new.mean(0), own.mean(0), rtol=0, atol=0.01)
        torch.testing.assert_close(new.std(0), own.std(0), rtol=0, atol=0.01)
        assert torch.linalg.matrix_rank(new - own.mean(0), atol=1e-3) == 1


# --- masked gradients ------------------------------------------------------------------------------------------------


class Saturated(nn.Module):
    """The same labels, and a cross-entropy without a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return 1e6 * self.model(x)


@pytest.mark.filterwarnings("ignore::kit.core.MisleadingModel")
def test_a_hidden_gradient_shows():
    x, _ = images(40)
    model = linear().eval()
    model[1].bias.data -= model[1](torch.full((1, 16), 0.5))[0].detach()  # both classes are in the box
    y = logits(model, x).argmax(1)
    honest = masking(model, x, y, eps=EPS, source=model)
    assert not any(sign.suspicious for sign in honest)
    assert len(honest) == 6
    hidden = masking(Saturated(model), x, y, eps=EPS, source=model)
    shown = {sign.text.split(":")[0] for sign in hidden if sign.suspicious}
    assert "Square, without a gradient, against the gradient" in shown
    assert "made against another network, against made against this one" in shown
    assert fooled(model, fgsm(model, x, y, eps=EPS), y).any()
