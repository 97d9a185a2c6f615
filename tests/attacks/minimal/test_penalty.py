"""The elastic net against its closed form on a linear network, and what only attacks by a penalty have: κ, c, τ."""
import torch
from torch import nn

from kit.attacks import cw, distance, ead
from kit.attacks.minimal.penalty import to_w, to_x
from kit.core import fooled, logits, margin

QUICK = {"steps": 100, "rounds": 5, "c": 0.1}


def test_the_change_of_variables_ends_in_the_box():
    x = torch.linspace(0, 1, 21)
    assert torch.allclose(to_x(to_w(x)), x, atol=1e-6)
    w = torch.linspace(-9, 9, 50)
    assert to_x(w).min() == 0
    assert to_x(w).max() == 1
    assert (to_x(w).diff() >= 0).all()


def exact_elastic(model, x, y, beta):
    """min ‖δ‖₂² + β ‖δ‖₁ with w·δ = gap has δ_i = sign(w_i) (s |w_i| − β)₊ / 2 for one s, found by bisection."""
    z, w = model(x).detach().double(), model[1].weight.detach().double()
    gaps, slopes = z.gather(1, y[:, None]) - z, (w[None] - w[y][:, None]).abs()
    low, high = torch.zeros_like(gaps), torch.full_like(gaps, 100.0)
    for _ in range(80):
        s = (low + high) / 2
        enough = ((s[..., None] * slopes - beta).clamp_min(0) / 2 * slopes).sum(2) >= gaps
        low, high = torch.where(enough, low, s), torch.where(enough, s, high)
    delta = (high[..., None] * slopes - beta).clamp_min(0) / 2
    size = delta.square().sum(2) + beta * delta.sum(2)
    return size.masked_fill(nn.functional.one_hot(y, z.shape[1]).bool(), torch.inf).amin(1)


def test_ead_minimises_the_elastic_net(linear):
    model, x, y = linear
    for beta in (0.01, 1.0):
        delta = (ead(model, x, y, beta=beta, steps=100, rounds=7, c=0.1) - x).flatten(1)
        ratio = (delta.square().sum(1) + beta * delta.abs().sum(1)) / exact_elastic(model, x, y, beta)
        assert float(ratio.min()) >= 1 - 1e-4
        assert float(ratio.median()) <= 1.05
    options = {"steps": 100, "rounds": 5, "c": 0.1, "decision": "l1"}
    dense, sparse = ((ead(model, x, y, beta=b, **options) - x).abs() > 1e-6 for b in (0.001, 1.0))
    assert sparse.sum() < 0.5 * dense.sum()


def test_confidence_is_reached_and_costs_distance(linear):
    model, x, y = linear
    plain, sure = (cw(model, x, y, kappa=k, **QUICK) for k in (0.0, 0.5))
    hit = fooled(model, sure, y)
    assert hit.float().mean() > 0.9
    assert margin(logits(model, sure), y)[hit].min() >= 0.499
    assert (distance(model, x, sure, y) > distance(model, x, plain, y))[hit].all()


def test_a_step_much_longer_than_the_distance_is_cut_to_it(linear):
    model, x, y = linear
    z, w = logits(model, x), model[1].weight.detach()
    lengths = (w[y][:, None] - w[None]).abs().sum(2)
    exact = ((z.gather(1, y[:, None]) - z) / lengths).masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).amin(1)
    # lr 0.1 moves a grey pixel by 0.06, and half of the distances are below 0.003
    found = distance(model, x, cw(model, x, y, norm="linf", steps=100, rounds=6, lr=0.1), y, norm="linf")
    assert float((found / exact).median()) < 1.05
