"""`per_image` and create_graph: what an attack on an explanation stands on."""
import torch
from torch import nn

from kit.core import passes, per_image


@per_image
def squared_gradient(model, x, target=None, *, create_graph=False):
    v = x if create_graph else x.detach().requires_grad_()
    z = model(v).square().sum(1)
    (g,) = torch.autograd.grad(z.sum(), v, create_graph=create_graph)
    return g.square().sum((1, 2, 3))


def test_the_graph_reaches_the_images_through_every_chunk(monkeypatch):
    monkeypatch.setitem(passes.PIXELS, "cpu", 1)  # chunks of 8
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()
    x = torch.rand(19, 1, 2, 2, dtype=torch.double, requires_grad=True)
    result = squared_gradient(model, x, create_graph=True)
    (g,) = torch.autograd.grad(result.sum(), x)
    w = model[1].weight.detach()
    gram = 2 * w.T @ w  # ∇‖Wx‖² = 2 WᵀW x, and the gradient of its square is 2 (2 WᵀW)² x
    assert torch.allclose(g.flatten(1), 2 * x.detach().flatten(1) @ gram @ gram)


def test_without_create_graph_nothing_hangs_on_the_result():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(2, 1, 2, 2, requires_grad=True)
    result = squared_gradient(model, x)
    assert not result.requires_grad
    assert x.grad is None
    assert model[1].weight.grad is None
