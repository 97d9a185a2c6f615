"""The loop on problems whose answer is known."""
import pytest
import torch

from kit.core import MisleadingModel, Trace, adam, ball, gradient, momentum, optimise, steepest

A = torch.tensor([[0.2, 0.7], [0.9, 0.4]])


def bowl(x, k):
    return -((x - A) ** 2).sum(1)


def test_each_rule_finds_the_top_of_a_bowl():
    l2 = ball("l2", 1.0)
    for rule in (lambda v, g, memory: v + 0.1 * g, steepest(l2, 0.02), adam(0.05)):
        end = optimise(bowl, torch.zeros_like(A), steps=200, rule=rule, keep="best")
        assert torch.allclose(end, A, atol=0.02)


def test_projection():
    walk = {"steps": 50, "rule": lambda v, g, m: v + 0.1 * g}
    end = optimise(bowl, torch.zeros_like(A), project=lambda v: v.clamp(max=0.5), **walk)
    assert torch.allclose(end, A.clamp(max=0.5), atol=1e-4)


def test_best_is_kept_per_image_where_the_last_is_worse():
    rule = steepest(ball("linf", 1.0), 0.3)
    start = torch.zeros_like(A)
    best = optimise(bowl, start, steps=7, rule=rule, keep="best")
    trace = Trace(images=True)
    last = optimise(bowl, start, steps=7, rule=rule, trace=trace)
    assert (bowl(best, 0) >= trace._values[0]).all()
    assert torch.allclose(bowl(best, 0), torch.maximum(torch.stack(trace._values).amax(0), bowl(last, 0)))
    assert not torch.equal(best, last)


def test_objective_reads_the_step_and_oracle_the_memory():
    seen = []

    def look_ahead(f, v, memory):
        point = v + memory["m"] if "m" in memory else v
        return gradient(f, point)

    def objective(x, k):
        seen.append(k)
        return bowl(x, k)

    optimise(objective, torch.zeros_like(A), steps=3, rule=steepest(ball("linf", 1.0), 0.1),
             oracle=momentum(look_ahead))
    assert seen == [0, 1, 2]


def test_momentum_follows_its_formula():
    gradients = [torch.tensor([[3.0, -1.0]]), torch.tensor([[-8.0, 4.0]])]
    given, memory, v, step = iter(gradients), {}, torch.zeros(1, 2), steepest(ball("l2", 1.0), 1.0)
    oracle = momentum(lambda f, v, memory: (torch.zeros(1), next(given)), mu=0.5)
    for _ in gradients:
        v = step(v, oracle(None, v, memory)[1], memory)
    m1 = gradients[0] / 2
    m2 = 0.5 * m1 + gradients[1] / 6
    assert torch.allclose(memory["m"], m2)
    assert torch.allclose(v, m1 / m1.norm() + m2 / m2.norm())


def test_bad_objectives_are_refused():
    v = torch.zeros(2, 3)
    rule = steepest(ball("linf", 1.0), 0.1)
    with pytest.raises(ValueError, match="one number per image"):
        optimise(lambda x, k: x.sum(), v, steps=1, rule=rule)
    with pytest.raises(ValueError, match="NaN"):
        optimise(lambda x, k: (x * torch.nan).sum(1), v, steps=1, rule=rule)
    with pytest.warns(MisleadingModel, match="exactly zero for 2 of 2"):
        optimise(lambda x, k: (x * 0).sum(1), v, steps=1, rule=rule)
    with pytest.raises(ValueError, match="steps"):
        optimise(lambda x, k: x.sum(1), v, steps=0, rule=rule)
    with pytest.raises(ValueError, match="keep"):
        optimise(lambda x, k: x.sum(1), v, steps=1, rule=rule, keep="first")


def test_adam_is_torchs():
    """Bias corrections included, for one rate and for one per image."""
    slopes = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    for lr in (0.1, torch.tensor([0.1, 0.02])):
        rule, memory, v = adam(lr), {}, torch.zeros(2, 3)
        mine = [v := rule(v, g, memory) for g in slopes][-1]
        for i in range(2):
            theirs = torch.nn.Parameter(torch.zeros(3))
            optimiser = torch.optim.Adam([theirs], lr=0.1 if isinstance(lr, float) else float(lr[i]), maximize=True)
            for g in slopes:
                theirs.grad = g[i].clone()
                optimiser.step()
            assert torch.allclose(mine[i], theirs.detach(), atol=1e-6)
