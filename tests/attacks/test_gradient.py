"""On a linear network the best perturbation of each norm is known: attacks must reach it, and no more."""
import pytest
import torch
from torch import nn

import kit.core.passes
from kit.attacks import bim, fgm, fgsm, mi_fgsm, pgd
from kit.core import MisleadingModel, QueryCounter, Trace, ball, cross_entropy, fooled, generator, logits, margin

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
ATTACKS = [fgsm, fgm, bim, mi_fgsm, pgd]


def exact_distance(model, x, y, norm):
    """min_k (z_y − z_k) / ‖w_y − w_k‖_q, the distance to the nearest other class, and that class (the box is far)."""
    z, w = model(x), model[1].weight
    gaps = z.gather(1, y[:, None]) - z
    lengths = torch.linalg.vector_norm(w[y][:, None] - w[None], DUAL[norm], dim=2)
    return (gaps / lengths).masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).detach().min(1)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("attack", [bim, mi_fgsm, pgd])
def test_success_on_a_linear_model_is_the_closed_form(linear, attack, norm):
    model, x, y = linear
    exact, nearest = exact_distance(model, x, y, norm)
    assert float(exact.max()) < 0.45

    options = {"step": exact / 4} if attack is pgd else {}  # a short step forgets the random start slowly

    def gap(z, target):  # to the nearest class; the loss of the strongest other class may lead to a farther one
        return (z.gather(1, y[:, None]) - z.gather(1, target[:, None]))[:, 0]

    for eps, hits in ((exact * 1.02, True), (exact * 0.98, False)):
        x_adv = attack(model, x, y, eps=eps, norm=norm, target=nearest, loss=gap, steps=100, **options)
        assert torch.equal(fooled(model, x_adv, y), torch.full_like(y, hits, dtype=torch.bool))
        assert (ball(norm, eps).norm(x_adv - x) <= eps * (1 + 1e-5) + 1e-7).all()


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("attack", ATTACKS)
def test_two_classes_have_one_boundary_and_all_attacks_find_it(linear, attack, norm):
    model, x, _ = linear
    pair = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    pair[1].weight.data, pair[1].bias.data = model[1].weight[:2].detach(), model[1].bias[:2].detach()
    y = pair(x).argmax(1)
    gap = (pair(x)[:, 0] - pair(x)[:, 1]).abs().detach()
    exact = gap / torch.linalg.vector_norm(pair[1].weight[0] - pair[1].weight[1], DUAL[norm]).detach()
    options = {"steps": 60, "step": exact / 4} if attack is pgd else {}  # a short step forgets the random start slowly
    assert fooled(pair, attack(pair, x, y, eps=exact * 1.001 + 1e-6, norm=norm, **options), y).all()
    assert not fooled(pair, attack(pair, x, y, eps=exact * 0.999, norm=norm, **options), y).any()
    target = 1 - y
    x_adv = attack(pair, x, y, eps=exact * 1.001 + 1e-6, norm=norm, target=target, **options)
    assert fooled(pair, x_adv, y, target).all()


@pytest.mark.parametrize("norm", DUAL)
def test_the_box_is_part_of_the_problem(norm):
    """With pixels at the box the closed form is a greedy filling (l1, linf) or a convex problem (l2)."""
    source = generator(5)
    w = torch.randn(30, generator=source)
    x = torch.rand(20, 1, 5, 6, generator=source).round(decimals=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 2))
    model[1].weight.data, model[1].bias.data = torch.stack([torch.zeros(30), w]), torch.zeros(2)
    y = torch.zeros(20, dtype=torch.int64)
    eps = {"linf": 0.3, "l2": 1.2, "l1": 3.0}[norm]
    x_adv = pgd(model, x, y, eps=eps, norm=norm, loss=margin, steps=200, step=eps / 10)
    gain = ((x_adv - x).flatten(1) * w).sum(1)
    room = torch.where(w > 0, 1 - x.flatten(1), x.flatten(1))
    if norm == "linf":
        best = (torch.minimum(room, torch.tensor(eps)) * w.abs()).sum(1)
    elif norm == "l1":
        slope, order = w.abs().sort(descending=True)
        filled = room[:, order]
        best = (torch.minimum(filled, (eps - (filled.cumsum(1) - filled)).clamp_min(0)) * slope).sum(1)
    else:
        s = torch.full((20, 1), 1e-3)
        for _ in range(200):  # min(s |w|, room) has the norm eps for one s: bisection by doubling and shrinking
            s = torch.where(torch.minimum(s * w.abs(), room).norm(dim=1, keepdim=True) < eps, s * 1.1, s / 1.05)
        best = (torch.minimum(s * w.abs(), room) * w.abs()).sum(1)
    tolerance = {"linf": 1e-4, "l1": 0.03, "l2": 0.06}[norm]
    assert ((gain - best).abs() <= tolerance * best).all(), (gain / best)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("attack", ATTACKS)
def test_images_are_independent_and_calls_repeat(linear, attack, norm, monkeypatch):
    x = linear[1].double()  # in single precision an image on a kink of the ReLUs may go either way
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)).double().eval()
    eps = {"linf": 0.1, "l2": 0.5, "l1": 1.0}[norm]
    options = {"random_start": False} if attack is pgd else {}
    with torch.no_grad():
        y = deep(x).argmax(1)
    whole = attack(deep, x, y, eps=eps, norm=norm, **options)
    assert torch.equal(whole, attack(deep, x, y, eps=eps, norm=norm, **options))
    monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)
    assert torch.allclose(whole, attack(deep, x, y, eps=eps, norm=norm, **options), atol=1e-9)
    alone = attack(deep, x[7:8], y[7:8], eps=eps, norm=norm, **options)
    assert torch.allclose(whole[7:8], alone, atol=1e-9)
    gains = cross_entropy(logits(deep, whole), y) - cross_entropy(logits(deep, x), y)
    assert (gains > 0).all()


def test_families_meet_where_they_should(linear):
    model, x, y = linear
    assert torch.equal(fgm(model, x, y, eps=0.3), fgsm(model, x, y, eps=0.3, norm="l2"))
    one_step = bim(model, x, y, eps=0.1, steps=1)
    assert torch.equal(one_step, fgsm(model, x, y, eps=0.1))
    assert torch.equal(mi_fgsm(model, x, y, eps=0.1, mu=0.0), bim(model, x, y, eps=0.1))
    plain = pgd(model, x, y, eps=0.1, random_start=False, step=0.01, steps=10)
    assert (cross_entropy(logits(model, plain), y) >= cross_entropy(logits(model, bim(model, x, y, eps=0.1)), y)).all()
    assert torch.equal(fgsm(model, x, y, eps=0.0), x)


def test_bim_is_its_six_lines(linear):
    model, x, y = linear
    x_adv = x
    for _ in range(10):
        v = x_adv.clone().requires_grad_()
        g = torch.autograd.grad(nn.functional.cross_entropy(model(v), y, reduction="sum"), v)[0]
        x_adv = (x + (x_adv + 0.01 * g.sign() - x).clamp(-0.05, 0.05)).clamp(0, 1)
    assert torch.allclose(bim(model, x, y, eps=0.05, step=0.01), x_adv, atol=1e-6)


class Ripples(nn.Module):
    """A loss with many local maxima, on which one start is often not enough."""

    def forward(self, x):
        s = x.flatten(1)
        return torch.stack([torch.zeros(len(x)), (25 * s).sin().sum(1) - 1.3 * s.shape[1] + 4 * s.mean(1)], 1)


def test_restarts_help_and_leave_fooled_images_alone():
    x = torch.rand(24, 1, 2, 2, generator=generator(2))
    y = torch.zeros(24, dtype=torch.int64)
    counter = QueryCounter(Ripples(), 24)
    options = {"eps": 0.3, "step": 0.02, "steps": 20}
    once = pgd(Ripples(), x, y, **options)
    often = pgd(counter, x, y, restarts=6, **options)
    hit_once, hit_often = fooled(Ripples(), once, y), fooled(Ripples(), often, y)
    assert hit_often.sum() > hit_once.sum()
    assert hit_often[hit_once].all()
    per_restart = 20 + 1
    assert (counter.counts[hit_once] == per_restart).all()
    assert (counter.counts[~hit_often] == 6 * per_restart).all()
    assert not torch.equal(once, pgd(Ripples(), x, y, generator=generator(9), **options))


def test_trace_tells_the_climb(linear):
    model, x, y = linear
    trace = Trace(images=True)
    x_adv = bim(model, x, y, eps=0.1, steps=5, trace=trace)
    assert trace.values.shape == (5, len(x))
    assert trace.images.shape == (5, *x.shape)
    assert torch.allclose(trace.values[0], cross_entropy(model(x), y), atol=1e-5)
    assert (trace.values[1:] > trace.values[:-1]).all()
    assert not torch.equal(trace.images[-1], x_adv)


@pytest.mark.filterwarnings("ignore::kit.core.checks.MisleadingModel")
def test_a_hidden_gradient_is_pointed_out(linear):
    model, x, y = linear

    class Rounded(nn.Module):
        def forward(self, x):
            return model((x * 8).round() / 8 + 0 * x)

    with pytest.warns(MisleadingModel, match="exactly zero for 40 of 40"):
        fgsm(Rounded(), x, y, eps=0.1)


def test_bad_numbers_are_refused(linear):
    model, x, y = linear
    with pytest.raises(ValueError, match="steps"):
        bim(model, x, y, eps=0.1, steps=0)
    with pytest.raises(ValueError, match="restarts"):
        pgd(model, x, y, eps=0.1, restarts=0)
    with pytest.raises(ValueError, match="8/255"):
        pgd(model, x, y, eps=8)
    with pytest.raises(ValueError, match="target holds"):
        fgsm(model, x, y, eps=0.1, target=y + 5)
