import pytest
import torch
from torch import nn

from kit.core import features, fold_batch_norm
from kit.models import RECIPES, build
from kit.models.decoders import Critic, Drawer
from kit.models.families import FAMILIES, Add, Concat

SMALL = ["vgg", "resnet", "densenet", "inception", "mobilenet"]


def stirred(model):
    """Batch norms as training leaves them: means, variances and scales that are not 0 and 1."""
    g = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low in ((m.running_mean, -0.5), (m.running_var, 0.5), (m.weight.data, 0.5), (m.bias.data, -0.5)):
                t.copy_(low + torch.rand(t.shape, generator=g))
    return model.eval()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_folded_is_the_same_function(family):
    channels, size = (1, 28) if family in ("cnn7", "mlp", "small") else (3, 32)
    model = stirred(FAMILIES[family](channels=channels, size=size, mean=(0.5,) * channels, std=(0.25,) * channels))
    x = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norm(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    bare = FAMILIES[family](channels=channels, size=size, norm=False, mean=(0.5,) * channels, std=(0.25,) * channels)
    bare.load_state_dict(folded.state_dict())
    torch.testing.assert_close(bare.eval()(x), folded(x))


@pytest.mark.parametrize("family", SMALL)
def test_stages_have_the_same_names(family):
    model = FAMILIES[family](norm=False)
    x = torch.rand(2, 3, 32, 32)
    with features(model, ["stem", "block1", "block2", "block3"]) as f:
        z = model(x)
    assert z.shape == (2, 10)
    assert all(f[k].ndim == 4 for k in f)
    # Class activation maps: logits are the linear layer on the mean of the last maps.
    torch.testing.assert_close(z, model.head.linear(f["block3"].mean((2, 3))))
    assert f["block3"].shape[-1] >= 4
    assert FAMILIES[family](norm=False, width=8)(torch.rand(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_relus_additions_and_concatenations_are_modules_used_once(family):
    channels, size = (1, 28) if family in ("cnn7", "mlp", "small") else (3, 32)
    model = FAMILIES[family](channels=channels, size=size, norm=False)
    calls: dict[str, int] = {}
    for name, m in model.named_modules():
        if isinstance(m, (nn.ReLU, Add, Concat, nn.Conv2d, nn.Linear)):
            assert not getattr(m, "inplace", False)
            m.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
    model(torch.rand(1, channels, size, size))
    leaves = [n for n, m in model.named_modules() if isinstance(m, (nn.ReLU, Add, Concat, nn.Conv2d, nn.Linear))]
    assert calls == dict.fromkeys(leaves, 1)
    graph = torch.fx.Tracer().trace(model)
    functions = {n.target for n in graph.nodes if n.op in ("call_function", "call_method")}
    assert not functions & {torch.relu, nn.functional.relu, "relu", "add"}


def test_cnn7_has_six_hidden_layers_and_logits():
    model = FAMILIES["cnn7"](norm=False)
    layers = [f"layer{i}" for i in range(1, 7)]
    with features(model, layers) as f:
        z = model(torch.rand(2, 1, 28, 28))
    assert [f[k].ndim for k in layers] == [4, 4, 4, 4, 2, 2]
    assert all(t.min() >= 0 for t in f.values())
    assert z.shape == (2, 10)


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith(("scenes", "digits", "mnist"))])
def test_sizes(name):
    assert 20_000 <= sum(p.numel() for p in build(name).parameters()) <= 300_000


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith(("svhn", "cifar10"))])
def test_recipes_for_real_sets_build(name):
    assert build(name)(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("size", "eighth"), [(28, 4), (30, 4), (32, 4), (40, 5)])
def test_a_critic_looks_at_images_of_any_size(size, eighth):
    critic = Critic(3, size, width=4)
    assert critic(torch.rand(5, 3, size, size)).shape == (5,)
    assert critic.layers[-1].in_features == 8 * eighth**2


@pytest.mark.parametrize("shape", [(10,), (5, 28, 28), (5, 14, 14), (5, 9, 9), (5, 7, 7), (5, 4, 4), (5, 20, 20)])
def test_a_drawer_draws_from_features_of_any_size(shape):
    drawer = Drawer(shape, 1, 28, width=4, noise=2)
    h, n = torch.rand(3, *shape), torch.rand(3, 2)
    drawn = drawer(h, n)
    assert drawn.shape == (3, 1, 28, 28)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert not torch.allclose(drawn, drawer(2 * h, n))
