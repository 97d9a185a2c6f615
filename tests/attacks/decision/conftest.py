"""Two classes and a plane between them: the distance to it is known in every norm, and nothing else is in the way."""
import pytest
import torch
from torch import nn

from kit.core import generator


@pytest.fixture(scope="module")
def plane():
    """A linear network on 3 × 5 × 6 pixels, ten images on either side of its plane and far from the box, their labels,
    and the plane's unit normal, which points towards class 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(90, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 90, generator=generator(3), dtype=torch.float64))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
    normal = nn.functional.normalize((model[1].weight[1] - model[1].weight[0]).detach(), dim=0)
    noise = 0.02 * torch.randn(20, 90, generator=generator(5), dtype=torch.float64)
    away = torch.linspace(0.2, 0.6, 20, dtype=torch.float64) * torch.tensor([1.0, -1.0]).repeat(10)
    x = 0.5 + noise - (noise @ normal)[:, None] * normal + away[:, None] * normal
    x = x.view(20, 3, 5, 6)
    return model.eval().requires_grad_(False), x, model(x).argmax(1), normal


def exact(plane, norm="l2"):
    model, x, _, normal = plane
    gap = (x.flatten(1) - 0.5) @ normal
    return gap.abs() / (normal.norm() if norm == "l2" else normal.abs().sum())
