"""Each rule against the shares written out on dense matrices; whole networks against conservation and the gradient."""
import copy
import warnings

import pytest
import torch
from torch import nn

from kit.core import fold_batch_norm, generator, logits
from kit.explain import (
    alpha_beta,
    completeness,
    epsilon,
    flat,
    gamma,
    gradient_times_input,
    lrp,
    relevance_lost,
    zbox,
    zplus,
)
from kit.explain.lrp import STANDARD
from kit.models.families import FAMILIES, Add, resnet

CONSERVING = {
    "epsilon": epsilon(1e-9), "gamma": gamma(), "alpha2beta1": alpha_beta(2, 1), "zplus": zplus(), "flat": flat(),
    "zplus composite": {"first": zbox(), "conv": zplus(), "linear": epsilon(), "add": zplus()},
    "flat first": {"first": flat(), "conv": gamma(1.0), "linear": epsilon()},
}


def shares(rule, z_jk, bias, low, high, w):
    """(outputs, inputs): what each input gets of the relevance of each output, written out from the definitions."""
    z_k = z_jk.sum(1) + bias
    plus, minus = z_jk.clamp(min=0), z_jk.clamp(max=0)
    if rule == "epsilon":
        return z_jk / z_k[:, None]
    if rule == "gamma":
        favoured = torch.where(z_k[:, None] >= 0, plus, minus)
        with_bias = torch.where(z_k >= 0, bias.clamp(min=0), bias.clamp(max=0))
        return (z_jk + 0.25 * favoured) / (z_k + 0.25 * (favoured.sum(1) + with_bias))[:, None]
    if rule in ("alpha2beta1", "zplus"):
        up, down = plus.sum(1) + bias.clamp(min=0), minus.sum(1) + bias.clamp(max=0)
        a = 2.0 if rule == "alpha2beta1" else 1.0
        only = plus / up[:, None]
        both = torch.where(down[:, None] < 0, a * only - (a - 1) * minus / down[:, None], only)
        return torch.where(up[:, None] > 0, both, minus / down[:, None])
    if rule == "flat":
        there = (w != 0).to(z_jk.dtype)
        return there / there.sum(1, keepdim=True)
    numerator = z_jk - low * w.clamp(min=0) - high * w.clamp(max=0)
    return numerator / numerator.sum(1, keepdim=True)


RULES = {"epsilon": epsilon(1e-12), "gamma": gamma(), "alpha2beta1": alpha_beta(2), "zplus": zplus(), "flat": flat(),
         "zbox": zbox()}
LAYERS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 6)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Flatten()),
    "grouped": lambda: nn.Sequential(nn.Conv2d(2, 4, 2, groups=2, dilation=2), nn.Flatten()),
    "average pooling": lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 6), nn.Unflatten(1, (6, 1, 1)), nn.Flatten()),
}


@pytest.mark.parametrize("layer", ["linear", "convolution", "grouped"])
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_the_share_that_its_jacobian_gives(rule, layer):
    """Two layers, with ReLU between: inputs of both signs never reach the upper, and biases do."""
    torch.manual_seed(0)
    lower = LAYERS[layer]().double()
    x = torch.rand(3, 2, 5, 5, dtype=torch.double, generator=generator(1))
    upper = nn.Linear(lower(x).shape[1], 4).double()
    model = nn.Sequential(lower, nn.ReLU(), upper)
    target = torch.tensor([0, 3, 1])
    top = zplus() if rule in ("zbox", "flat") else RULES[rule]
    R = lrp(model, x, target, rules={"first": RULES[rule], "2": top})
    for i in range(3):
        h = lower(x[i : i + 1]).relu().detach()
        W2 = torch.autograd.functional.jacobian(upper, h)[0, :, 0]
        b2 = upper(torch.zeros_like(h))[0].detach()
        name = "zplus" if rule in ("zbox", "flat") else rule
        start = torch.zeros(4, dtype=torch.double)
        start[target[i]] = upper(h)[0, target[i]].detach()
        R_h = start @ shares(name, W2 * h[0], b2, 0, 1, W2)
        W1 = torch.autograd.functional.jacobian(lower, x[i : i + 1])[0].flatten(1)
        b1 = lower(torch.zeros_like(x[:1]))[0].detach()
        R_x = R_h @ shares(rule, W1 * x[i].flatten(), b1, 0.0, 1.0, W1)
        assert torch.allclose(R[i], R_x.view(2, 5, 5).sum(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "alpha2beta1", "zplus"])
def test_inputs_and_outputs_of_both_signs(rule):
    """One linear layer that sees x − 1/2, and negative outputs: every sign occurs."""
    from kit.core import Normalize

    torch.manual_seed(0)
    model = nn.Sequential(Normalize((0.5,), (0.25,)), nn.Flatten(), nn.Linear(9, 6)).double()
    x = torch.rand(6, 1, 3, 3, dtype=torch.double, generator=generator(1))
    W, b = model[2].weight.detach(), model[2].bias.detach()
    target = torch.arange(6)
    R = lrp(model, x, target, rules=RULES[rule])
    z = model(x).detach().diagonal()
    assert (z < 0).any()
    assert (z > 0).any()
    for i in range(6):
        v = (x[i].flatten() - 0.5) / 0.25
        wanted = z[i] * shares(rule, W * v, b, 0, 1, W)[i]
        assert torch.allclose(R[i].flatten(), wanted, rtol=1e-6, atol=1e-9)


def test_the_box_rule_uses_the_range_after_normalisation():
    from kit.core import Normalize

    torch.manual_seed(0)
    model = nn.Sequential(Normalize((0.4, 0.6), (0.2, 0.3)), nn.Flatten(), nn.Linear(8, 3)).double()
    x = torch.rand(2, 2, 2, 2, dtype=torch.double, generator=generator(1))
    low, high = (model[0](torch.full_like(x[:1], end)).flatten() for end in (0.0, 1.0))
    W = model[2].weight.detach()
    R = lrp(model, x, torch.tensor([0, 2]), rules=zbox())
    for i, k in enumerate((0, 2)):
        wanted = model(x)[i, k].detach() * shares("zbox", W * model[0](x)[i].flatten(), 0 * W[:, 0], low, high, W)[k]
        assert torch.allclose(R[i], wanted.view(2, 2, 2).sum(0))


def bias_free(model, seed=0):
    torch.manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
            m.bias.data.zero_()
            nn.init.kaiming_normal_(m.weight)
    return model.eval()


def network(name):
    torch.manual_seed(0)
    if name == "plain":
        return bias_free(nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding="same"), nn.ReLU(),
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 5)))
    size = {"size": 16} if name in ("cnn7", "mlp", "small", "pooled") else {}
    return bias_free(FAMILIES[name](classes=5, channels=3, width=4, norm=False, mean=(0.0,), std=(1.0,), **size))


@pytest.mark.parametrize("rules", CONSERVING)
@pytest.mark.parametrize("name", ["plain", *FAMILIES])
def test_relevance_is_conserved(name, rules):
    """Σ_pixels R = z_c to 1e-4 on bias-free networks of every family, under every rule."""
    model = network(name).double()
    x = torch.rand(4, 3, 16, 16, dtype=torch.double, generator=generator(1)) * 0.9 + 0.05
    R = lrp(model, x, rules=CONSERVING[rules])
    assert float(completeness(model, x, R, baseline=None).max()) < 1e-4


@pytest.mark.parametrize("name", ["plain", "resnet"])
def test_relevance_is_conserved_in_single_precision_by_the_standard_rules(name):
    model = network(name)
    x = torch.rand(4, 3, 16, 16, generator=generator(1))
    assert float(completeness(model, x, lrp(model, x), baseline=None).max()) < 1e-4


@pytest.mark.parametrize("name", ["plain", "resnet", "densenet", "inception"])
def test_without_epsilon_it_is_gradient_times_input(name):
    """On a bias-free ReLU network LRP-0 is x · ∇z, however the layers are joined."""
    model = network(name).double()
    x = torch.rand(3, 3, 16, 16, dtype=torch.double, generator=generator(1))
    target = torch.tensor([0, 1, 4])
    R = lrp(model, x, target, rules=epsilon(1e-12))
    assert torch.allclose(R, gradient_times_input(model, x, target), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_what_is_lost_is_accounted_for(name):
    """With biases and batch norm, Σ_pixels R + Σ_layers lost = z_c, in every family."""
    torch.manual_seed(0)
    size = {"size": 16} if name in ("cnn7", "mlp", "small", "pooled") else {}
    model = FAMILIES[name](classes=5, channels=3, width=4, **size).double()
    x = torch.rand(8, 3, 16, 16, dtype=torch.double, generator=generator(1))
    model.train()(x)  # give batch norm something to fold
    model.eval()
    R, lost = lrp(model, x), relevance_lost(model, x)
    z = logits(model, x).amax(1)
    total = R.sum((1, 2)) + torch.stack(list(lost.values())).sum(0)
    assert torch.allclose(total, z, rtol=1e-6)
    assert not torch.allclose(R.sum((1, 2)), z, rtol=1e-2)  # the biases do take some
    assert torch.allclose(R, lrp(fold_batch_norm(model, x), x))


def test_functional_models_and_in_place_operations_need_no_modules():
    class Functional(nn.Module):
        def __init__(self, plain):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 3)
            self.relu, self.plain, self.add = nn.ReLU(inplace=not plain), plain, Add()

        def forward(self, x):
            h = self.relu(self.a(x))
            if self.plain:
                h = torch.cat([self.relu(self.add(self.b(h), h)), h], 1)
                return self.c(nn.functional.adaptive_avg_pool2d(h, 1).flatten(1))
            g = self.b(h)
            g += h
            h = torch.cat((g.relu_(), h), dim=1)
            return self.c(h.mean((2, 3)))

    torch.manual_seed(0)
    one, two = Functional(True).eval(), Functional(False).eval()
    two.load_state_dict(one.state_dict())
    x = torch.rand(3, 3, 8, 8)
    assert torch.allclose(lrp(one, x), lrp(two, x), atol=1e-5)


def test_the_most_exact_name_wins():
    model = network("resnet")
    x = torch.rand(2, 3, 16, 16, generator=generator(1))
    base = {"first": zbox(), "conv": gamma(), "linear": epsilon()}
    assert torch.allclose(lrp(model, x, rules=base), lrp(model, x))
    named = lrp(model, x, rules=base | {"block2": flat()})
    deeper = lrp(model, x, rules=base | {"block2": flat(), "block2.conv1": gamma(), "block2.conv2.conv": gamma(),
                                         "block2.shortcut": gamma()})
    assert not torch.allclose(named, lrp(model, x), atol=1e-3)
    assert torch.allclose(deeper, lrp(model, x), atol=1e-6)
    with pytest.raises(ValueError, match="no weighted layer is called 'block9'"):
        lrp(model, x, rules={"block9": flat()})


class Odd(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function, self.linear = nn.Conv2d(3, 4, 3), function, nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.function(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(("name", "function"), [
    ("sigmoid", torch.sigmoid), ("mul", lambda h: h * h), ("softmax", lambda h: h.softmax(1)),
    ("add", lambda h: h + 1), ("chunk", lambda h: h.chunk(2, 1)[0].repeat(1, 2, 1, 1)), ("exp_", lambda h: h.exp_()),
    ("interpolate", lambda h: nn.functional.interpolate(h, scale_factor=2.0)), ("rsub", lambda h: 1 - h),
    ("conv_transpose2d", nn.ConvTranspose2d(4, 4, 2)), ("layer_norm", nn.LayerNorm(6)),
])
def test_what_has_no_rule_is_refused_by_name(name, function):
    with pytest.raises(ValueError, match="LRP has no rule for " + name.rstrip("_")):
        lrp(Odd(function).eval(), torch.rand(2, 3, 8, 8))


def test_a_hook_may_read_and_a_detached_answer_is_refused():
    model, x = network("plain"), torch.rand(2, 3, 16, 16)
    before, seen = lrp(model, x), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    assert torch.equal(before, lrp(model, x))
    with pytest.raises(ValueError, match="no relevance reached the images"):
        lrp(Odd(torch.detach).eval(), torch.rand(2, 3, 8, 8))


def test_mistakes_are_named():
    model, x = network("plain"), torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match='use it as "first"'):
        lrp(model, x, rules=zbox())
    with pytest.raises(ValueError, match="alpha − beta must be 1"):
        alpha_beta(2, 2)
    with pytest.raises(ValueError, match="gamma must be zero or more"):
        gamma(-1)


def test_create_graph_gives_the_derivative_of_the_relevance():
    """Against finite differences: an explanation by LRP can be attacked with its true gradient."""
    torch.manual_seed(0)
    model = resnet(classes=3, width=3, norm=False).double().eval()
    x = torch.rand(2, 3, 12, 12, dtype=torch.double, generator=generator(1)).mul(0.8).add(0.1).requires_grad_()
    target = torch.tensor([0, 2])
    direction, probe = (torch.randn(shape, dtype=torch.double, generator=generator(2)) for shape in
                        ((2, 3, 12, 12), (2, 12, 12)))
    R = lrp(model, x, target, create_graph=True)
    (g,) = torch.autograd.grad((R * probe).sum(), x)
    h = 1e-7
    up, down = (lrp(model, x.detach() + s * h * direction, target) for s in (1, -1))
    slope = ((up - down) * probe).sum() / (2 * h)
    assert float(slope.abs()) > 1e-3
    assert torch.allclose((g * direction).sum(), slope, rtol=1e-3)


def test_contract():
    model, x = network("resnet"), torch.rand(70, 3, 16, 16, generator=generator(1))
    R = lrp(model, x)
    assert R.shape == (70, 16, 16)
    assert not R.requires_grad
    assert torch.allclose(R[66:67], lrp(model, x[66:67]), atol=1e-5)
    assert torch.allclose(R, lrp(model, x, logits(model, x).argmax(1)))
    assert not torch.allclose(R, lrp(model, x, (logits(model, x).argmax(1) + 1) % 5), atol=1e-4)
    assert all(p.grad is None for p in model.parameters())


class Calls(nn.Module):
    """Two layers and whatever `body` makes of them."""

    def __init__(self, body, norm=None, channels=3):
        super().__init__()
        self.body, self.conv, self.linear = body, nn.Conv2d(channels, channels, 3, padding=1), nn.Linear(channels, 3)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x):
        return self.linear(self.body(self, x).mean((2, 3)))


LINEAR_MOVES = {
    "a grey image to three channels": (1, lambda m, x: m.conv(torch.cat([x, x, x], 1)).relu()),
    "repeat and expand": (1, lambda m, x: m.conv(x.expand(-1, 3, -1, -1)).relu().repeat(1, 1, 2, 1)),
    "strided slicing": (3, lambda m, x: m.conv(x[:, :, ::2, ::2]).relu()[:, :, 1:, :-1]),
    "one channel, flipped": (3, lambda m, x: m.conv(torch.cat([x[:, :1], x.flip(3)[:, 1:]], 1)).relu()),
    "stacked with itself": (3, lambda m, x: torch.stack([h := m.conv(x).relu(), h], 1).flatten(1, 2)[:, 1:4]),
    "added to itself": (3, lambda m, x: (h := m.conv(x).relu()) + h),
}


@pytest.mark.parametrize("name", LINEAR_MOVES)
def test_what_only_moves_or_copies_hands_relevance_to_where_it_came_from(name):
    """On a bias-free ReLU network LRP-0 is x · ∇z; and z⁺ conserves z."""
    channels, body = LINEAR_MOVES[name]
    model = bias_free(Calls(body)).double()
    x = torch.rand(2, channels, 8, 8, dtype=torch.double, generator=generator(1))
    target = torch.tensor([0, 2])
    wanted = gradient_times_input(model, x, target)
    assert wanted.abs().max() > 1e-3
    assert torch.allclose(lrp(model, x, target, rules=epsilon(1e-12)), wanted, rtol=1e-5, atol=1e-9)
    R = lrp(model, x, target, rules=zplus())
    assert torch.allclose(R.sum((1, 2)), model(x).gather(1, target[:, None])[:, 0], rtol=1e-6)


def test_a_convolution_and_its_norm_called_twice_are_two_steps():
    """The same network with two copies of the layer: the same relevance."""
    def twice(m, x):
        return m.norm(m.conv(m.norm(m.conv(x)).relu())).relu()

    def unrolled(m, x):
        return m.norm.second(m.conv2(m.norm.first(m.conv(x)).relu())).relu()

    torch.manual_seed(0)
    one = Calls(twice, nn.BatchNorm2d(3)).double().eval()
    one.norm.running_var.fill_(0.2), one.norm.running_mean.fill_(0.1)
    other = Calls(unrolled, nn.ModuleDict({"first": one.norm, "second": one.norm})).double().eval()
    other.load_state_dict(one.state_dict(), strict=False)
    other.conv2, other.norm.first, other.norm.second = copy.deepcopy(one.conv), one.norm, copy.deepcopy(one.norm)
    x = torch.rand(4, 3, 8, 8, dtype=torch.double, generator=generator(1))
    R = lrp(one, x)
    assert torch.allclose(R, lrp(other, x))
    assert torch.allclose(R, lrp(fold_batch_norm(other, x), x))
    with pytest.raises(ValueError, match="it or 'conv' is used more than once"):
        fold_batch_norm(one, x)


def normed(m, x):
    if x.shape[-1] < 4:
        raise ValueError("too small")
    return m.norm(m.conv(x)).relu()


def test_norms_without_weights_and_branches_on_the_input():
    torch.manual_seed(0)
    plain = Calls(normed, nn.BatchNorm2d(3, affine=False)).double().eval()
    plain.norm.running_var.fill_(0.3), plain.norm.running_mean.fill_(0.2)
    with_weights = Calls(normed, nn.BatchNorm2d(3)).double().eval()
    with_weights.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(3, 3, 8, 8, dtype=torch.double, generator=generator(1))
    R = lrp(plain, x)
    assert torch.allclose(R, lrp(with_weights, x))
    batch = Calls(normed, nn.BatchNorm2d(3, track_running_stats=False)).double().eval()
    with pytest.raises(ValueError, match="'norm' cannot be folded: it uses the statistics of the batch"):
        lrp(batch, x)
    with pytest.raises(ValueError, match="cannot be traced"):
        fold_batch_norm(plain, x)


def for_its_effect(m, x):
    h = m.conv(x)
    h.relu_()
    return h


def written_into(m, x):
    h = m.conv(x)
    h[:, 0] = 0
    return h


def past_the_list(m, x):
    h = m.conv(x)
    h.detach().mul_(2)
    return h


@pytest.mark.parametrize(("body", "message"), [
    (for_its_effect, "other logits than its plain forward pass"), (written_into, "writes into a tensor"),
    (past_the_list, "overwritten in place"), (lambda m, x: m.conv(x).data, "no rule for data"),
])
def test_what_cannot_be_followed_is_refused(body, message):
    with pytest.raises(ValueError, match=message):
        lrp(Calls(body).eval(), torch.rand(2, 3, 8, 8))


def test_quantised_and_mixed_precision_networks_are_refused():
    model, x = network("plain"), torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu"), pytest.raises(ValueError, match="without autocast"):
        lrp(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        int8 = torch.ao.quantization.quantize_dynamic(network("plain"), {nn.Linear})
    with pytest.raises(ValueError, match="no rule for linear_dynamic"):
        lrp(int8, x)


@pytest.mark.parametrize("rules", [zplus(), alpha_beta(2), gamma(), STANDARD])
def test_the_map_is_differentiated_under_every_rule(rules):
    torch.manual_seed(0)
    model = Calls(lambda m, x: m.conv(x).tanh()).double().eval()
    x = torch.rand(1, 3, 5, 5, dtype=torch.double, generator=generator(1)).mul(0.8).add(0.1).requires_grad_()
    probe, direction = torch.randn(2, 1, 3, 5, 5, dtype=torch.double, generator=generator(2))
    target, h = torch.tensor([1]), 1e-6
    (g,) = torch.autograd.grad((lrp(model, x, target, rules=rules, create_graph=True) * probe[:, 0]).sum(), x)
    up, down = (lrp(model, x.detach() + s * h * direction, target, rules=rules) for s in (1, -1))
    slope = ((up - down) * probe[:, 0]).sum() / (2 * h)
    assert torch.allclose((g * direction).sum(), slope, rtol=1e-4, atol=1e-7)
    assert abs(float(slope)) > 1e-4
