"""Self-explaining networks on cases that can be computed by hand, and what a wrong sign or a no-op would give."""
import math

import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import MisleadingModel, generator, logits
from kit.diverse import (
    SelfExplaining,
    broken_promise,
    contributions,
    local_lipschitz,
    pull_apart,
    relevances,
    robustness,
    self_explaining_training,
)
from kit.diverse.self_explaining import left_over, self_explaining_figures
from kit.explain import gradient_times_input, infidelity
from kit.models import Recipe

CPU = torch.device("cpu")
BUILD = {"classes": 3, "channels": 1, "size": 8, "concepts": 4, "width": 2, "hidden": 5}


class Given(nn.Module):
    """h and θ as functions of the flat image."""

    def __init__(self, concepts, theta):
        super().__init__()
        self.h, self.t = concepts, theta

    def concepts(self, x):
        return self.h(x.flatten(1))

    def theta(self, x):
        return self.t(x.flatten(1))

    def forward(self, x):
        return torch.einsum("nck,nk->nc", self.theta(x), self.concepts(x))


def images(n=6, size=2, dtype=torch.float64):
    return 0.3 + 0.4 * torch.rand(n, 1, size, size, generator=generator(3), dtype=torch.float64).to(dtype)


W = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 1.0, -1.0]], dtype=torch.float64)


def linear():
    return Given(lambda x: x, lambda x: W.expand(len(x), -1, -1))


def twisted(a=0.7):
    """h = x and θ_ci = W_ci + a x_1: what is left over is a Σ_i x_i on the first pixel, and nothing elsewhere."""
    return Given(lambda x: x, lambda x: W + a * x[:, :1, None].expand(-1, 2, 4))


def network(seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SelfExplaining(**BUILD).to(dtype).eval()


# --- the loss -------------------------------------------------------------------------------------------------------


def test_constant_relevances_of_pixels_are_the_weights_and_cost_nothing():
    x = images()
    assert torch.equal(robustness(linear(), x), torch.zeros(6, dtype=torch.float64))
    assert torch.equal(relevances(linear(), x, torch.ones(6, dtype=torch.int64)), W[1].expand(6, -1))


def test_log_probabilities_charge_a_linear_model_its_own_mean():
    x = images()
    p = logits(linear(), x).softmax(1)
    wanted = -(p @ W)  # of each class the same, on the four pixels
    assert torch.allclose(left_over(linear(), x, "log-probabilities").flatten(2), wanted[:, None].expand(-1, 2, -1))
    assert torch.allclose(robustness(linear(), x, of="log-probabilities"), math.sqrt(2) * wanted.norm(dim=1))
    with pytest.raises(ValueError, match="'logits' or 'log-probabilities'"):
        robustness(linear(), x, of="probabilities")


def test_the_loss_of_a_case_by_hand():
    x = images()
    rest = left_over(twisted(), x).flatten(2)
    wanted = torch.zeros(6, 2, 4, dtype=torch.float64)
    wanted[:, :, 0] = 0.7 * x.flatten(1).sum(1)[:, None]
    assert torch.allclose(rest, wanted)  # its sign as well
    assert torch.allclose(robustness(twisted(), x), 0.7 * math.sqrt(2) * x.flatten(1).sum(1))


@pytest.mark.parametrize("of", ["logits", "log-probabilities"])
def test_the_loss_is_the_definition_on_a_network(of):
    """∇f − θᵀJ_h, each by its own Jacobian."""
    model, x = network(), images(5, 8)

    def answer(v):
        z = model(v[None])[0]
        return z if of == "logits" else z.log_softmax(0)

    J_f, J_h = (torch.func.vmap(torch.func.jacrev(f))(x) for f in (answer, lambda v: model.concepts(v[None])[0]))
    wanted = J_f - torch.einsum("nck,nk...->nc...", model.theta(x), J_h)
    assert torch.allclose(left_over(model, x, of), wanted, atol=1e-12)
    assert torch.allclose(robustness(model, x, of=of), wanted.flatten(1).norm(dim=1))
    assert robustness(model, x, of=of).min() > 0


def test_an_images_loss_is_its_own():
    model, x = network(), images(5, 8)
    assert torch.allclose(robustness(model, x)[3:4], robustness(model, x[3:4]))


def test_the_loss_reaches_concepts_and_relevances_alike():
    """With h detached, the loss could not be lowered by what the concepts are: the gradient is that of differences."""
    model, x = network(), images(3, 8)
    for weight in (model.encoder.linear.bias, model.parametriser.linear1.bias):
        (g,) = torch.autograd.grad(left_over(model, x).flatten(1).norm(dim=1).mean(), weight)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[0] += sign * 1e-5
            ends.append(robustness(model, x).mean())
            with torch.no_grad():
                weight[0] -= sign * 1e-5
        assert float(g[0]) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-4)
        assert float(g[0]) != 0


def test_a_concept_twice_hides_what_the_relevances_say():
    """θ + s(x) for one copy of a concept and −s(x) for the other: the same f, the same loss, any explanation."""
    model, x = network(), images(5, 8)

    def shift(v):
        return 5 * v.flatten(1)[:, :1, None]

    class Twice(nn.Module):
        def concepts(self, v):
            return torch.cat([model.concepts(v)] * 2, 1)

        def theta(self, v):
            return torch.cat([model.theta(v) + shift(v), -shift(v).expand(-1, 3, 4)], 2)

        def forward(self, v):
            return torch.einsum("nck,nk->nc", self.theta(v), self.concepts(v))

    assert torch.allclose(Twice()(x), model(x))
    assert torch.allclose(robustness(Twice(), x), robustness(model, x))
    assert (relevances(Twice(), x)[:, :4] - relevances(model, x)).abs().min() > 1


# --- explanations ---------------------------------------------------------------------------------------------------


def test_contributions_add_up_to_the_logit():
    model, x = network(), images(5, 8)
    z, target = logits(model, x), torch.tensor([0, 1, 2, 0, 1])
    assert torch.allclose(contributions(model, x, target).sum(1), z.gather(1, target[:, None])[:, 0])
    assert torch.allclose(contributions(model, x).sum(1), z.amax(1))
    assert torch.allclose(contributions(model, x), relevances(model, x) * model.concepts(x))
    assert (model.concepts(x) > 0).all()
    assert (model.concepts(x) < 1).all()
    assert (model.theta(x).abs() < 1).all()
    assert model.decode(model.concepts(x)).shape == x.shape


# --- what they are worth --------------------------------------------------------------------------------------------


def test_the_constant_of_a_linear_explanation_is_found():
    """E = w·x with w of ±1: the largest ratio is ‖w‖₂, where every pixel has moved by eps with the sign of w."""
    w = torch.tensor([1.0, -1.0, -1.0, 1.0] * 4, dtype=torch.float64)
    x = images(4, 4)

    def explain(model, v, target, *, create_graph=False):
        return (v.flatten(1) @ w)[:, None]

    found = local_lipschitz(explain, nn.Sequential(nn.Flatten(), nn.Linear(16, 2).double()), x, relative=False)
    assert torch.allclose(found, torch.full((4,), 4.0, dtype=torch.float64), rtol=5e-3)
    assert found.max() <= 4 + 1e-9
    few = local_lipschitz(explain, nn.Sequential(nn.Flatten(), nn.Linear(16, 2).double()), x, relative=False, steps=0)
    assert few.max() < 3.9  # random points do not find it
    assert few.min() > 0
    part = local_lipschitz(explain, nn.Sequential(nn.Flatten(), nn.Linear(16, 2).double()), x)
    assert torch.allclose(part, found / (x.flatten(1) @ w).abs(), rtol=5e-3)


def test_stability_by_what_the_concepts_do():
    """E = 3 h: by h the constant is 3, whatever h is; constant relevances have 0."""
    model, x = network(), images(4, 8)

    def explain(m, v, target, *, create_graph=False):
        return 3 * m.concepts(v)

    found = local_lipschitz(explain, model, x, by=model.concepts, relative=False, steps=3)
    assert torch.allclose(found, torch.full((4,), 3.0, dtype=torch.float64))
    still = local_lipschitz(relevances, linear(), images(), steps=0)
    assert torch.equal(still, torch.zeros(6, dtype=torch.float64))
    with pytest.warns(MisleadingModel, match="gradient is exactly zero for 6"):
        local_lipschitz(relevances, linear(), images(), steps=1)
    with pytest.raises(ValueError, match="eps must be in"):
        local_lipschitz(relevances, model, x, eps=0.0)


def test_the_search_stays_where_it_may_and_leaves_images_alone():
    model, x = network(), images(4, 8)
    before, seen = x.clone(), []

    def explain(m, v, target, *, create_graph=False):
        seen.append(v.detach().clone())
        return relevances(m, v, target, create_graph=create_graph)

    local_lipschitz(explain, model, x, eps=0.05, steps=4)
    assert torch.equal(x, before)
    assert len(seen) >= 8 + 4
    assert max(float((v - x).abs().max()) for v in seen) <= 0.05 + 1e-9
    assert all(p.grad is None for p in model.parameters())


def test_a_promise_is_kept_by_a_linear_model_and_broken_with_the_wrong_sign():
    x = images(5, 8)
    w = torch.randn(2, 64, generator=generator(1), dtype=torch.float64)
    honest = Given(lambda v: v, lambda v: w.expand(len(v), -1, -1))
    assert broken_promise(honest, x).max() < 1e-9
    answer = broken_promise(honest, x, generator=generator(5))
    drawn = infidelity(honest, x, gradient_times_input(honest, x), generator=generator(5))
    assert torch.allclose(answer, drawn, atol=1e-9)  # the same squares, the same measure

    class Liar(Given):
        def theta(self, v):
            return -super().theta(v)

        def forward(self, v):
            return -super().forward(v)

    assert torch.equal(broken_promise(Liar(honest.h, honest.t), x), torch.ones(5, dtype=torch.float64))
    assert 0.001 < broken_promise(network(), x).mean() < 1


def test_a_promise_that_says_nothing():
    """h = 1 and θ = the logits: the sum is exact, and no change of the image changes a concept."""
    w = torch.randn(2, 64, generator=generator(1), dtype=torch.float64)
    empty = Given(lambda v: torch.ones_like(v[:, :1]), lambda v: (v @ w.T)[:, :, None])
    x = images(5, 8)
    assert torch.allclose(contributions(empty, x)[:, 0], logits(empty, x).amax(1))
    assert torch.equal(broken_promise(empty, x), torch.ones(5, dtype=torch.float64))


def test_answer_and_relevances_part():
    model, x = kit.models.load("senn0/digits"), kit.data.load("digits", "test", n=24).x
    y = logits(model, x).argmax(1)
    theta, z = model.theta(x), logits(model, x)
    rows = torch.arange(len(x))

    def apart(a, b):
        return ((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).detach()

    moved = pull_apart(model, x, y, eps=0.1)
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert (logits(model, moved).argmax(1) == y).float().mean() > 0.9
    kept = apart(model.theta(moved)[rows, y], theta[rows, y])
    noise = (x + 0.1 * (2 * torch.rand(x.shape, generator=generator(2)) - 1)).clamp(0, 1)
    assert kept.mean() > 2 * apart(model.theta(noise)[rows, y], theta[rows, y]).mean()
    assert apart(logits(model, moved), z).mean() < kept.mean()
    turned = pull_apart(model, x, y, eps=0.1, keep="relevances")
    wrong = logits(model, turned).argmax(1) != y
    assert wrong.float().mean() > 0.2
    careless = pull_apart(model, x, y, eps=0.1, keep="relevances", lam=0.0)
    assert apart(model.theta(turned), theta).mean() < 0.95 * apart(model.theta(careless), theta).mean()
    with pytest.raises(ValueError, match="'answer' or 'relevances'"):
        pull_apart(model, x, y, eps=0.1, keep="both")


# --- training -------------------------------------------------------------------------------------------------------


def test_training_lowers_what_it_is_told_to():
    data = kit.data.load("digits", "train", n=300)
    recipe = Recipe("digits", "self_explaining", {"concepts": 6, "width": 3, "hidden": 8}, epochs=16, batch=32)
    made = {lam: self_explaining_training(recipe, data.x, data.y, device=CPU, lam=lam).eval() for lam in (0.0, 1.0)}
    plain, robust = (self_explaining_figures(recipe, m, data.x, data.y) for m in made.values())
    assert robust["robustness"] < 0.5 * plain["robustness"]
    assert plain["accuracy"] > 0.7
    sparse = self_explaining_training(recipe, data.x, data.y, device=CPU, lam=0.0, xi=0.3).eval()
    assert sparse.concepts(data.x).mean() < 0.5 * made[0.0].concepts(data.x).mean()
    drawn = self_explaining_training(recipe, data.x, data.y, device=CPU, lam=0.0, rho=100.0).eval()
    assert self_explaining_figures(recipe, drawn, data.x, data.y)["mse"] < plain["mse"]
    with pytest.raises(ValueError, match="xi=-1"):
        self_explaining_training(recipe, data.x, data.y, device=CPU, xi=-1.0)


@pytest.mark.parametrize("name", ["senn0/digits", "senn-small/digits", "senn-large/digits"])
def test_shipped_networks_are_what_the_manifest_says(name):
    data, entry = kit.data.load("digits", "test"), kit.models.entry(name)
    found = self_explaining_figures(None, kit.models.load(name), data.x, data.y)
    for key in ("accuracy", "robustness", "mse"):
        assert found[key] == pytest.approx(entry[key], rel=0.02, abs=0.011), key


def test_the_loss_is_the_sum_of_its_four_parts(monkeypatch):
    kept = {}
    monkeypatch.setattr("kit.diverse.self_explaining.fit", lambda r, x, y, loss, **how: kept.update(loss=loss))
    model, x, y = kit.models.load("senn0/digits"), torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])
    self_explaining_training(None, x, y, lam=0.5, rho=2.0, xi=0.25)
    h = model.concepts(x)
    wanted = (nn.functional.cross_entropy(model(x), y) + 0.5 * robustness(model, x).mean()
              + 2.0 * (model.decode(h) - x).square().mean() + 0.25 * h.abs().sum() / 3)
    torch.testing.assert_close(kept["loss"](model, x, y, None), wanted)
