"""Weighted steps against their formulas, product by product: W is read off `up` itself, one pixel at a time."""
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import generator
from kit.core.network import operations
from kit.core.steps import Linear, weighted, where_positive

LAYERS = {
    "linear": lambda: nn.Linear(5, 4),
    "without a bias": lambda: nn.Linear(5, 4, bias=False),
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strides": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2),
}


def step(kind: str, low: float) -> Linear:
    """A layer's step at two images with pixels between `low` and 1."""
    layer = LAYERS[kind]().double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator(i)))
    shape = (2, 5) if isinstance(layer, nn.Linear) else (2, 4, 5, 6)
    x = low + (1 - low) * torch.rand(shape, generator=generator(7), dtype=torch.float64)
    _, listed = operations(nn.Sequential(layer, nn.Flatten()), x)
    found = weighted(listed[0])
    assert found is not None
    return found


def products(of: Linear) -> tuple[Tensor, Tensor]:
    """z_jk = x_j w_jk (N, J, K), and b_k (K,)."""
    n, pixels = len(of.x), of.x[0].numel()
    each = torch.eye(pixels, dtype=of.x.dtype).view(pixels, *of.x.shape[1:])
    W = of.up(each, of.weight).detach().flatten(1)
    b = (of.z - of.up(of.x, of.weight)).detach()[0].flatten()
    return of.x.detach().view(n, pixels, 1) * W, b


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.detach().flatten(1), b.flatten(1), rtol=1e-9, atol=1e-9)


every = pytest.mark.parametrize("kind", LAYERS)


@every
def test_up_and_down_are_w_and_its_transpose(kind):
    of = step(kind, -1.0)
    assert close(of.up(of.x, of.weight, of.bias), of.z)
    s = torch.randn(of.z.shape, generator=generator(3), dtype=torch.float64)
    other = torch.randn(of.weight.shape, generator=generator(4), dtype=torch.float64)
    found = of.down(s, of.weight, other)
    for W, down in zip((of.weight, other), found, strict=True):
        x = of.x.detach().requires_grad_()
        assert close(down, torch.autograd.grad(of.up(x, W), x, s)[0])
    assert close(of.shared(s), of.x * found[0])


@every
@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (1.25, 1.0)])
def test_parts_weigh_the_products_by_their_sign(kind, low, a, b):
    of = step(kind, low)
    assert of.signed == (low < 0)
    z, bias = products(of)
    plus, minus, bias_plus, bias_minus = z.clamp(min=0), z.clamp(max=0), bias.clamp(min=0), bias.clamp(max=0)
    R = torch.rand(of.z.shape, generator=generator(5), dtype=torch.float64) + 0.1
    R[..., 0] = 0  # as where_positive leaves it
    first, second = of.parts(a, b)
    shares = []
    for part, p, q in ((first, a, b), (second, b, a)):
        weighed = p * plus + q * minus
        total = weighed.sum(1) + p * bias_plus + q * bias_minus
        assert close(part.z, total)
        shares.append((weighed / torch.where(total == 0, 1, total)[:, None] * R.flatten(1)[:, None]).sum(2))
    assert close(first.shared(R.clone()), shares[0])
    assert close(second.shared(R.clone()), shares[1])
    assert close(of.hand_down((first, R.clone()), (second, 2 * R)), shares[0] + 2 * shares[1])
    assert close(of.hand_down((first, 0 * R), (second, R.clone())), shares[1])
    assert close(of.hand_down((first, -R)), -shares[0])
    assert not of.hand_down((first, 0 * R), (second, 0 * R)).any()


def test_nothing_over_nothing_is_zero():
    """A unit that has no positive product hands nothing down, as its part is 0/0; R is small."""
    of = step("without a bias", 0.0)
    of.weight = -of.weight.abs()
    plus, _ = of.parts(1, 0)
    assert not plus.z.any()
    assert torch.equal(plus.shared(torch.rand(2, 4, dtype=torch.float64)), torch.zeros(2, 5, dtype=torch.float64))


def test_where_positive():
    R, z = torch.tensor([1.0, 2.0, 3.0, -4.0]), torch.tensor([-1.0, 0.0, 1e-30, 2.0])
    assert where_positive(R, z).tolist() == [0, 0, 3, -4]


class Sum(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_an_addition_shares_by_the_summands():
    x = torch.randn(2, 3, generator=generator(0), dtype=torch.float64)
    _, listed = operations(Sum(lambda x: F.relu(x) + torch.sin(x)), x)
    of = weighted(listed[-1])
    assert of is not None
    assert of.kind == "add"
    summands = torch.stack([F.relu(x), torch.sin(x)])
    assert close(of.x, summands)
    assert close(of.up(of.x, of.weight), summands.sum(0))
    s = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)
    assert all(close(a, b) for a, b in zip(of.shared(s), summands * s, strict=True))
    assert close(of.down(s, 2 * of.weight)[0], torch.stack([2 * s, 2 * s]))


@pytest.mark.parametrize("function", [
    lambda x: torch.add(F.relu(x), torch.sin(x), alpha=2), lambda x: F.relu(x) + 1, lambda x: F.relu(x) * torch.sin(x),
    lambda x: F.relu(x) + torch.sin(x)[:1], lambda x: F.linear(x, x),
])
def test_what_is_no_weighted_step_of_x_alone_is_none(function):
    x = torch.randn(2, 2, generator=generator(0), dtype=torch.float64)
    assert weighted(operations(Sum(function), x)[1][-1]) is None


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
def test_padding_by_name():
    conv = nn.Conv2d(1, 2, (3, 5), padding="same", dilation=(2, 1))
    x = torch.rand(1, 1, 8, 8)
    of = weighted(operations(nn.Sequential(conv, nn.Flatten()), x)[1][0])
    assert of is not None
    assert torch.allclose(of.up(x, of.weight, of.bias), conv(x))
    valid = weighted(operations(nn.Sequential(nn.Conv2d(1, 2, 3, padding="valid"), nn.Flatten()), x)[1][0])
    assert valid is not None
    assert torch.allclose(valid.up(x, valid.weight, valid.bias), valid.z)
    with pytest.raises(ValueError, match="padding='same' and an even kernel"):
        weighted(operations(nn.Sequential(nn.Conv2d(1, 2, 2, padding="same"), nn.Flatten()), x)[1][0])
