"""Every test runs on one thread and from one seed, so that its results depend on no test beside or before it."""
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def linear():
    """A linear classifier of 5 classes on 3×4×4 images, 40 images far from the box, and the labels it gives them."""
    source = torch.Generator().manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(5, 48, generator=source))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
    x = 0.45 + 0.1 * torch.rand(60, 3, 4, 4, generator=source)
    best = model(x).topk(2, dim=1)
    clear = (best.values[:, 0] - best.values[:, 1]).topk(40).indices  # not so near the boundary that rounding decides
    return model.eval(), x[clear], best.indices[clear, 0]
