"""On a linear network the distance to the boundary is known: a minimal attack must find it. JSMA and CW in l0 against
all perturbations of a tiny network; what the other libraries get wrong (shifts, the box, batch-mates) as tests here."""
import itertools
from functools import partial

import pytest
import torch
from torch import nn

import kit.core.passes
from kit.attacks import cw, deepfool, distance, ead, jsma, lbfgs, least_likely, next_class, success_curve
from kit.attacks.minimal.deepfool import _best_pair
from kit.core import MisleadingModel, QueryCounter, fooled, generator, logits
from kit.core.loop import gradients

DUAL = {"linf": 1, "l2": 2}
QUICK = {"steps": 100, "rounds": 5, "c": 0.1}
ATTACKS = {
    "deepfool": deepfool,
    "deepfool linf": partial(deepfool, norm="linf"),
    "cw": partial(cw, **QUICK),
    "cw linf": partial(cw, norm="linf", steps=50, rounds=4, lr=0.01),
    "cw l0": partial(cw, norm="l0", steps=30),
    "ead": partial(ead, steps=50, rounds=5, c=0.1),
    "lbfgs": partial(lbfgs, steps=20, rounds=6),
    "jsma": partial(jsma, gamma=1.0),
}
TARGETED = [name for name in ATTACKS if not name.startswith("deepfool")]


def exact_distance(model, x, y, norm):
    """min_k (z_y − z_k) / ‖w_y − w_k‖_q, and that class (the box is far)."""
    z, w = model(x), model[1].weight
    gaps = z.gather(1, y[:, None]) - z
    lengths = torch.linalg.vector_norm(w[y][:, None] - w[None], DUAL[norm], dim=2)
    return (gaps / lengths).masked_fill(nn.functional.one_hot(y, z.shape[1]).bool(), torch.inf).detach().min(1)


def small_network(seed=0, classes=5):
    """A network on 3×4×4 images in which every class can be reached, and the labels it gives to random images."""
    source = generator(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, classes))
    with torch.no_grad():
        for layer in (model[0], model[3]):
            weight = torch.randn(layer.weight.shape, generator=source)
            layer.weight.copy_(1.5 * weight / weight[0].numel() ** 0.5)
        model[0].bias.copy_(-model[0].weight.sum((1, 2, 3)) / 2)
        model[3].bias.zero_()
    x = torch.rand(16, 3, 4, 4, generator=source)
    return model.eval(), x, logits(model, x).argmax(1)


@pytest.mark.parametrize(("attack", "norm", "bound"), [
    (deepfool, "l2", 1.03), (partial(deepfool, norm="linf"), "linf", 1.03), (partial(deepfool, top=4), "l2", 1.03),
    (partial(cw, **QUICK), "l2", 1.01), (partial(cw, norm="linf", steps=100, rounds=6), "linf", 1.1),
    (partial(ead, beta=0.001, steps=100, rounds=7, c=0.1), "l2", 1.05), (lbfgs, "l2", 1.05),
])
def test_the_distance_on_a_linear_model_is_the_closed_form(attack, norm, bound):
    source = generator(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)).requires_grad_(False)
    model[1].weight.copy_(torch.randn(10, 64, generator=source))
    x = 0.35 + 0.3 * torch.rand(40, 1, 8, 8, generator=source)
    y = logits(model, x).argmax(1)
    exact, nearest = exact_distance(model, x, y, norm)
    ratio = distance(model, x, attack(model, x, y), y, norm=norm) / exact
    assert ratio.isfinite().all()
    assert float(ratio.min()) >= 1 - 1e-4
    assert float(ratio.median()) <= bound
    assert float(ratio.max()) <= 1.15
    if getattr(attack, "func", attack) is not deepfool:  # the nearest class as a target is as near
        aimed = distance(model, x, attack(model, x, y, target=nearest), y, norm=norm, target=nearest) / exact
        assert float(aimed.median()) <= bound


def test_deepfool_with_two_classes_is_the_papers_algorithm_1():
    model, x, y = small_network(1, classes=2)
    v = x[:1].clone()
    for _ in range(50):
        v = v.detach().requires_grad_()
        f = (model(v) * torch.tensor([1.0, -1.0])).sum()
        if (f > 0) != (y[0] == 0):
            break
        g = torch.autograd.grad(f, v)[0]
        v = (v - 1.02 * f * g / g.square().sum()).clamp(0, 1)
    assert torch.allclose(deepfool(model, x[:1], y[:1]), v.detach(), atol=1e-3)


def test_gradients_in_one_vectorised_pass_and_one_by_one_agree():
    model, x, _ = small_network()
    weights = torch.randn(4, 16, 5, generator=generator(1))

    def found(vectorised):
        v = x.clone().requires_grad_()
        z = model(v)
        if not vectorised:
            return gradients(z, v, weights)
        return torch.func.vmap(lambda w: torch.autograd.grad(z, v, w, retain_graph=True)[0])(weights)

    assert torch.allclose(found(True), found(False), atol=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_images_are_independent_and_calls_repeat(name, monkeypatch):
    model, x, y = small_network()
    model, x, attack = model.double(), x.double(), ATTACKS[name]
    whole = attack(model, x, y)
    assert torch.equal(whole, attack(model, x, y))
    monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)
    assert torch.allclose(whole, attack(model, x, y), atol=1e-6)
    assert torch.allclose(whole[5:6], attack(model, x[5:6], y[5:6]), atol=1e-6)
    assert fooled(model, whole, y).float().mean() >= 0.9
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1


@pytest.mark.parametrize("name", TARGETED)
def test_targets_are_reached(name):
    model, x, y = small_network()
    for target in (next_class(y, 5), least_likely(model, x)):
        x_adv = ATTACKS[name](model, x, y, target=target)
        assert fooled(model, x_adv, y, target).float().mean() >= (0.5 if name == "jsma" else 0.9)
    assert torch.equal(least_likely(model, x), logits(model, x).argmin(1))
    assert torch.equal(next_class(torch.tensor([0, 4]), 5), torch.tensor([1, 0]))


class Shifted(nn.Module):
    def __init__(self, model, shift):
        super().__init__()
        self.model, self.shift = model, shift

    def forward(self, x):
        return self.model(x) + self.shift


@pytest.mark.parametrize("name", ["cw", "cw linf", "ead", "deepfool", "jsma"])
def test_a_shift_of_all_logits_changes_nothing(name):
    model, x, y = small_network()
    model, x, attack = model.double(), x.double(), ATTACKS[name]
    plain = attack(model, x, y)
    for shift in (100.0, -100.0):
        assert torch.allclose(attack(Shifted(model, shift), x, y), plain, atol=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_black_and_white_images_can_be_attacked(name):
    model, x, _ = small_network()
    x = x.round()
    y = logits(model, x).argmax(1)
    x_adv = ATTACKS[name](model, x, y)
    assert fooled(model, x_adv, y).float().mean() >= 0.9
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1


def fewest_pixels(model, image, label):
    """Exhaustive search: every pixel as it is, black or white."""
    grid = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=image.numel()))).view(-1, *image.shape)
    candidates = torch.where(grid < 0, image, grid)
    hit = logits(model, candidates).argmax(1) != label
    return int((grid >= 0).flatten(1).sum(1)[hit].min())


def test_jsma_and_cw_l0_against_all_perturbations_of_a_tiny_network():
    source = generator(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
        model[3].bias.zero_()
    x = 0.2 + 0.6 * torch.rand(1000, 1, 3, 3, generator=source)
    lead = logits(model, x).topk(2, 1).values
    x = x[(lead[:, 0] - lead[:, 1]).topk(30).indices]  # the surest answers need most
    y = logits(model, x).argmax(1)
    fewest = torch.tensor([fewest_pixels(model, image, label) for image, label in zip(x, y, strict=True)])
    assert fewest.unique().tolist() == [1, 2]
    few = distance(model, x, cw(model, x, y, norm="l0", steps=100), y, norm="l0")
    assert (few == fewest).float().mean() >= 0.9
    assert (few <= fewest + 1).all()
    # JSMA only brightens or only darkens, two at a time: the better of both
    few = torch.stack([distance(model, x, jsma(model, x, y, theta=t, gamma=1.0), y, norm="l0") for t in (1.0, -1.0)])
    few = few.amin(0)
    assert (few >= fewest).all()
    assert (few <= fewest + 1).float().mean() >= 0.7


def test_jsma_finds_the_best_of_all_pairs():
    source = generator(1)
    for rho in (0.0, 0.9, -0.9):
        a = torch.randn(30, 40, generator=source)
        b = rho * a + (1 - rho**2) ** 0.5 * torch.randn(30, 40, generator=source)
        a, b = (v.masked_fill(torch.arange(40) % 7 == 0, -torch.inf) for v in (a, b))
        a[:2], b[:2] = -torch.inf, -torch.inf
        alpha, beta = a[:, :, None] + a[:, None], b[:, :, None] + b[:, None]
        apart = ~torch.eye(40, dtype=torch.bool)
        best = torch.where((alpha > 0) & (beta > 0) & apart, alpha * beta, 0).flatten(1).amax(1)
        pair, found = _best_pair(a, b)
        assert torch.equal(found, best > 0)
        assert (pair[found][:, 0] != pair[found][:, 1]).all()
        assert torch.allclose((a.gather(1, pair).sum(1) * b.gather(1, pair).sum(1))[found], best[found])


def test_jsma_goes_on_to_the_next_class_where_the_likely_one_is_out_of_reach():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False)
    model[1].weight.copy_(torch.tensor([-0.01, 0.0, 0.4])[:, None].expand(3, 16))
    model[1].bias.copy_(torch.tensor([1.0, 0.9, 0.0]))  # class 1 comes next, but no pixel raises it
    x, y = torch.zeros(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    x_adv = jsma(model, x, y, gamma=0.5)
    assert (logits(model, x_adv).argmax(1) == 2).all()
    assert (distance(model, x, x_adv, y, norm="l0") == 4).all()  # two pairs, as one gives 0.8 against 0.98
    assert torch.equal(jsma(model, x, y, target=torch.ones_like(y)), x)


def test_only_images_still_unfooled_are_computed(linear):
    model, x, y = linear
    wrong = (y + 1) % 5
    labels = torch.where(torch.arange(40) < 10, wrong, y)  # ten of them are misclassified from the start
    counter = QueryCounter(model, 40)
    assert torch.equal(deepfool(counter, x, labels)[:10], x[:10])
    assert (counter.counts[:10] == 1).all()
    assert (counter.counts[10:] == 3).all()  # looked at, one step on a linear model, looked at again
    counter = QueryCounter(model, 40)
    jsma(counter, x, labels)
    assert (counter.counts[:10] == 1).all()
    counter = QueryCounter(model, 40)
    cw(counter, x, y, steps=200, rounds=3)
    assert counter.counts.min() < 600
    assert len(counter.counts.unique()) > 3  # each image ends its descents when it does


def test_distances_and_curves_say_what_was_returned(linear):
    model, x, y = linear
    x_adv = deepfool(model, x, y)
    x_adv[0] = x[0]
    far = distance(model, x, x_adv, y)
    assert far[0] == torch.inf
    assert torch.allclose(far[1:], (x_adv - x).flatten(1).norm(dim=1)[1:])
    eps = torch.tensor([0.0, float(far[1:].median()), 1e9])
    curve = success_curve(far, eps)
    assert curve[0] == 0
    assert abs(float(curve[1]) - 0.5) < 0.05
    assert curve[2] == pytest.approx(39 / 40)
    one, wrong = x.clone(), (y + 1) % 5
    one[:, :2, 1, 1] = 0.5
    assert (distance(model, x, one, wrong, norm="l0")[fooled(model, one, wrong)] == 1).all()


def test_nothing_found_is_said_so():
    model, x, y = small_network()
    never = y.clone()
    constant = Shifted(model, torch.tensor([0.0, 0.0, 0.0, 0.0, -1e4]))
    target = torch.full_like(y, 4)
    for attack in (partial(cw, steps=20, rounds=2), partial(ead, steps=20, rounds=2), partial(lbfgs, rounds=2)):
        x_adv = attack(constant, x, never, target=target)
        assert torch.equal(x_adv, x)
        assert distance(constant, x, x_adv, y, target=target).isinf().all()


@pytest.mark.filterwarnings("ignore::kit.core.checks.MisleadingModel")
def test_a_hidden_gradient_is_pointed_out():
    model, x, y = small_network()

    class Rounded(nn.Module):
        def forward(self, x):
            return model((x * 8).round() / 8 + 0 * x)

    with pytest.warns(MisleadingModel, match="exactly zero for 16 of 16"):
        deepfool(Rounded(), x, y, steps=2)


def test_bad_numbers_are_refused(linear):
    model, x, y = linear
    for call, message in (
        (partial(deepfool, norm="l1"), "DeepFool's norm"), (partial(cw, norm="l1"), "'l2', 'linf' or 'l0'"),
        (partial(jsma, theta=0.0), "theta"), (partial(jsma, gamma=2.0), "gamma"),
        (partial(ead, decision="l2"), "decision"),
    ):
        with pytest.raises(ValueError, match=message):
            call(model, x, y)
    with pytest.raises(ValueError, match="norm must be"):
        distance(model, x, x, y, norm="l3")
