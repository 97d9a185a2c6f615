import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.core import Ensemble, Normalize, QueryCounter, asking, features, fold_batch_norm, smooth_relu


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        Normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.2]), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_normalize_by_hand_and_absent_from_the_weights():
    layer = Normalize([0.5, 0.0], [0.25, 2.0])
    x = torch.ones(1, 2, 1, 1)
    assert layer(x).flatten().tolist() == [2.0, 0.5]
    assert not layer.state_dict()


def test_queries_are_counted_per_image():
    counter = QueryCounter(nn.Flatten(), 4)
    x = torch.rand(4, 1, 2, 2)
    counter(x)
    counter(torch.cat([x, x]))
    with asking(counter, torch.tensor([1, 3])):
        counter(x[:2])
        with asking(counter, torch.tensor([1])):
            counter(x[:1])
    assert counter.counts.tolist() == [3, 4, 3, 5]
    assert counter.total == 15
    with pytest.raises(ValueError, match=r"counter\.on"):
        counter(x[:3])


def test_features_keep_their_graph_and_remove_their_hooks():
    model = small().eval()
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    with features(model, ["1", "3"]) as f:
        model(x)
        assert torch.equal(f["3"], F.relu(model[2](f["1"])))
        assert torch.autograd.grad(f["1"].sum(), x)[0].abs().sum() > 0
    assert all(not m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="no layer 'nine'; it has 0, 1"), features(model, ["nine"]):
        pass


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, torch.Tensor.relu])
def test_smooth_relu_keeps_values_and_bends_gradients(relu):
    z = torch.tensor([-1.0, -0.005, 0.005, 2.0], dtype=torch.float64)
    plain = relu(z.clone())

    def run(v):
        with smooth_relu(tau=1e-4):
            return relu(v * 1)

    v = z.clone().requires_grad_()
    out = run(v)
    assert torch.equal(out, plain)
    grad = torch.autograd.grad(out.sum(), v, create_graph=True)[0]
    root = (z**2 + 1e-4).sqrt()
    h = torch.where(z < 0, 1 + z / root, z / root)
    assert torch.allclose(grad, h)
    second = torch.autograd.grad(grad.sum(), v)[0]
    assert torch.allclose(second, 1e-4 / root**3)  # d/dz z/√(z²+τ): what a ReLU network lacks
    assert torch.equal(relu(z.clone()), plain)


@pytest.mark.parametrize("cap", [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6, nn.Hardtanh(0.0, 6.0)])
def test_smooth_relu_bends_a_relu6_at_both_its_ends(cap):
    z = torch.tensor([-1.0, 0.005, 2.0, 5.995, 8.0], dtype=torch.float64)
    v = z.clone().requires_grad_()
    with smooth_relu(tau=1e-4):
        out = cap(v * 1)
    assert torch.allclose(out, z.clamp(0, 6))

    def h(z):
        root = (z**2 + 1e-4).sqrt()
        return torch.where(z < 0, 1 + z / root, z / root)

    grad = torch.autograd.grad(out.sum(), v, create_graph=True)[0]
    assert torch.allclose(grad, h(z) - h(z - 6))
    assert (torch.autograd.grad(grad.sum(), v)[0].abs() > 1e-7).all()


def test_folding_keeps_the_function_and_removes_the_norms():
    model = small()
    model(torch.rand(16, 3, 8, 8))
    model(torch.rand(16, 3, 8, 8) * 0.2)
    model.eval()
    x = torch.rand(5, 3, 8, 8)
    folded = fold_batch_norm(model, x)
    assert torch.allclose(folded(x), model(x), atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with pytest.raises(ValueError, match="cannot be folded"):
        fold_batch_norm(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), x)


def test_an_ensemble_is_the_mean_of_logits_or_of_probabilities():
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval() for _ in range(3)]
    x = torch.rand(5, 3, 2, 2)
    z = torch.stack([net(x) for net in nets])
    torch.testing.assert_close(Ensemble(nets)(x), (z[0] + z[1] + z[2]) / 3)
    torch.testing.assert_close(Ensemble(nets, "probabilities")(x).softmax(1), z.softmax(2).mean(0))
    torch.testing.assert_close(Ensemble(nets, "probabilities")(x).exp().sum(1), torch.ones(5))
