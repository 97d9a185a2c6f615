"""Reading and replacing inside networks that do something unusual: the right value, or a refusal by name."""
import copy

import pytest
import torch
from torch import nn

from kit.core import features, generator, operations, relus, replace, smooth_relu
from kit.core.network import calls


class Net(nn.Module):
    """Two convolutions and a linear layer; `join` says what happens between them."""

    def __init__(self, join):
        super().__init__()
        self.join, self.relu, self.lstm = join, nn.ReLU(), nn.LSTM(4, 4, batch_first=True)
        self.a, self.b, self.idle = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(2, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.join(self, x).mean((2, 3)))


def plain(m, x):
    return m.b(m.a(x).relu()).relu()


def functions_in_place(m, x):
    return m.b(m.a(x).relu_()).relu_()


def for_its_effect(m, x):
    h = m.a(x)
    h.clamp_(min=0)
    h = m.b(h)
    torch.nn.functional.relu(h, inplace=True)
    return h


def a_view_in_place(m, x):
    h = m.a(x)
    h.view(-1).relu_()
    return m.b(h).relu()


def made(join):
    torch.manual_seed(0)
    return Net(join).double().eval()


@pytest.fixture
def x():
    return torch.rand(2, 3, 8, 8, dtype=torch.double, generator=generator(1))


@pytest.mark.parametrize("join", [functions_in_place, for_its_effect, a_view_in_place])
@pytest.mark.parametrize("graph", [True, False])
def test_what_is_overwritten_later_is_read_as_it_was(x, join, graph):
    model, wanted = made(join), made(plain)
    with torch.set_grad_enabled(graph), features(model, ["a", "b"]) as f, features(wanted, ["a", "b"]) as g:
        z, z_wanted = model(x), wanted(x)
    assert torch.equal(z, z_wanted)
    assert all(torch.equal(f[name], g[name]) and bool((f[name] < 0).any()) for name in ("a", "b"))
    if graph:
        for name in ("a", "b"):
            (slope,) = torch.autograd.grad(z[:, 0].sum(), f[name], retain_graph=True)
            (slope_wanted,) = torch.autograd.grad(z_wanted[:, 0].sum(), g[name], retain_graph=True)
            assert torch.allclose(slope, slope_wanted)
            assert bool((slope != 0).any())


def test_inputs_are_read_before_they_are_overwritten(x):
    def residual(m, x):
        h = m.a(x).relu()
        out = m.b(h)
        h += 1
        return out + h

    model = made(residual)
    with torch.no_grad(), features(model, ["b"], inputs=True) as f:
        model(x)
        assert torch.equal(f["b"], model.a(x).relu())


def test_under_inference_mode_too(x):
    model = made(functions_in_place)
    with torch.inference_mode(), features(model, ["a"]) as f:
        model(x)
        assert torch.equal(f["a"], model.a(x))


@pytest.mark.parametrize(("join", "layer", "message"), [
    (lambda m, x: m.b(m.b(m.a(x))), "b", "'b' is called more than once"),
    (plain, "idle", "'idle' takes no part"),
    (lambda m, x: m.lstm(m.a(x).mean(3).transpose(1, 2))[0].transpose(1, 2)[..., None], "lstm", "returns a tuple"),
    (lambda m, x: plain(m, x.sub_(0.5)), "a", "overwrites its input"),
    (plain, "c", "no layer 'c'; it has"), (plain, "", "no layer ''"),
])
@pytest.mark.parametrize("way", [features, lambda model, layers: replace(model, dict.fromkeys(layers, torch.tanh))])
def test_what_cannot_be_read_or_replaced_is_refused_by_name(x, join, layer, message, way):
    model = made(join)
    with pytest.raises(ValueError, match=message), way(model, [layer]):
        model(x)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if layer == "b":
        model(x)


def test_a_pass_that_failed_leaves_the_next_one_alone(x):
    model = made(plain)
    with features(model, ["a"]) as f:
        with pytest.raises(RuntimeError, match="channels"):
            model(x[:, :2])
        model(x)
        model(x[:1])
        assert len(f["a"]) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*")
def test_compiled_and_scripted_networks_are_refused(x):
    scripted = torch.jit.trace(made(plain), x)
    for model, layer in ((torch.compile(made(plain), backend="eager"), "_orig_mod.a"), (scripted, "a")):
        with pytest.raises(ValueError, match="the model is compiled"), features(model, [layer]):
            pass
        with pytest.raises(ValueError, match="the model is compiled"):
            operations(model, x)
    inner = made(plain)
    inner.a.compile(backend="eager")
    with pytest.raises(ValueError, match="'a' is compiled"), features(inner, ["b"]):
        pass


def test_replacing_goes_on_with_the_other_tensor_and_has_its_gradient(x):
    model = made(functions_in_place)
    own = torch.randn(2, 4, 6, 6, dtype=torch.double, generator=generator(2)).requires_grad_()
    before = own.detach().clone()
    with replace(model, {"a": lambda h: own}):
        z = model(x)
    wanted = model.head(model.b(own.relu()).relu().mean((2, 3)))
    assert torch.equal(z, wanted)
    assert torch.equal(own, before)
    for found, g in zip(*(torch.autograd.grad(out[:, 1].sum(), own) for out in (z, wanted)), strict=True):
        assert torch.equal(found, g)
    wanted = model.head(2 * functions_in_place(model, x).mean((2, 3)))
    with replace(model, {"b": lambda h: 2 * h}):
        assert torch.allclose(model(x), wanted)
    with pytest.raises(ValueError, match="'a' returns the shape"), replace(model, {"a": lambda h: h[:1]}):
        model(x)


def test_calls_are_in_order_and_operations_name_their_layers(x):
    model = made(lambda m, x: m.b(m.b(m.relu(m.a(x)))) + 1)
    assert [name for name, *_ in calls(model, x)] == ["a", "relu", "b", "b", "head", ""]
    z, listed = operations(model, x)
    assert torch.equal(z, model(x))
    assert [(op.name, op.layer) for op in listed] == [
        ("conv2d", "a"), ("relu", "relu"), ("conv2d", "b"), ("conv2d", "b"), ("add", ""), ("mean", ""),
        ("linear", "head")]
    for op in listed:
        assert torch.equal(op.of(op.inputs), op.output)
        assert op.alone
    s = torch.randn(2, 4, dtype=torch.double, generator=generator(3))
    assert torch.allclose(listed[5].pulled(s)[0], (s / 36)[:, :, None, None].expand(2, 4, 6, 6))


@pytest.mark.parametrize("join", [plain, functions_in_place, for_its_effect])
def test_relus_keep_the_logits_and_take_another_backward_pass(x, join):
    def doubled(g, z):
        return 2 * g * (z > 0)

    model = made(join)
    v = x.clone().requires_grad_()
    with relus(doubled) as mode:
        z = model(v)
    in_place_by_clamp = join is for_its_effect  # a clamp is no ReLU
    assert mode.seen == 2 - in_place_by_clamp
    assert torch.equal(z, made(plain)(x))
    (slope,) = torch.autograd.grad(z[:, 0].sum(), v)
    v = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(made(plain)(v)[:, 0].sum(), v)
    assert torch.allclose(slope, (2 if in_place_by_clamp else 4) * wanted)


def test_a_smooth_relu_in_place_has_the_second_derivative_of_one_that_is_not(x):
    direction, found = torch.ones_like(x), []
    for join in (plain, functions_in_place):
        v = x.clone().requires_grad_()
        with smooth_relu(tau=1e-2):
            z = made(join)(v)
        (g,) = torch.autograd.grad(z[:, 0].sum(), v, create_graph=True)
        found.append(torch.autograd.grad((g * direction).sum(), v)[0])
    assert torch.allclose(*found)
    assert float(found[0].abs().max()) > 1e-3


def test_nothing_is_changed(x):
    model = made(functions_in_place)
    before, state = copy.deepcopy(x), {k: v.clone() for k, v in model.state_dict().items()}
    with features(model, ["a"]), replace(model, {"b": torch.tanh}):
        model(x)
    operations(model, x)
    assert torch.equal(x, before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_function_has_no_layers(x):
    with pytest.raises(TypeError, match="a function: pass the network itself"), features(lambda v: v, ["a"]):
        pass
