"""CAM against its sum written out, Grad-CAM against CAM where theory says that they agree."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.core import features, generator, logits
from kit.explain import cam, grad_cam
from kit.models.families import FAMILIES

POOLED = [name for name in FAMILIES if name not in ("cnn7", "mlp", "small", "pooled")]


def network(name, **options):
    torch.manual_seed(0)
    model = FAMILIES[name](classes=5, channels=3, width=4, norm=False, **options)
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(m.weight)
    return model.eval()


@pytest.fixture
def x():
    return torch.rand(6, 3, 32, 32, generator=generator(1))


@pytest.mark.parametrize("name", POOLED)
def test_grad_cam_is_cam_over_the_number_of_places(name, x):
    model = network(name)
    target = torch.arange(6) % 5
    with features(model, ["block3"]) as f:
        model(x)
    places = f["block3"].shape[2] * f["block3"].shape[3]
    for relu in (True, False):
        one, other = cam(model, x, target, relu=relu), grad_cam(model, x, target, relu=relu)
        assert float(one.abs().max()) > 0.1
        assert torch.allclose(one, other * places, rtol=1e-5, atol=1e-5)


def test_cam_is_the_weighted_sum_of_the_maps_and_its_mean_the_logit(x):
    model = network("vgg")
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    with features(model, ["block3"]) as f, torch.no_grad():
        z = model(x)
    w, b = model.head.linear.weight.detach(), model.head.linear.bias.detach()
    R = torch.stack([sum(w[c, k] * A[k] for k in range(len(A))) for A, c in zip(f["block3"], target, strict=True)])
    assert torch.allclose(R.mean((1, 2)) + b[target], z.gather(1, target[:, None])[:, 0], atol=1e-4)
    wanted = F.interpolate(R[:, None], (32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(cam(model, x, target, relu=False), wanted, atol=1e-4)
    assert torch.allclose(cam(model, x, target, layer="block3", relu=False), wanted, atol=1e-4)
    assert torch.allclose(cam(model, x, target)[0], F.interpolate(R[:1, None].relu(), (32, 32), mode="bilinear")[0, 0],
                          atol=1e-4)


def test_a_model_whose_pooled_maps_are_the_logits(x):
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    target = torch.arange(6) % 5
    A = model[0](x)
    wanted = F.interpolate(A[torch.arange(6), target][:, None], (32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(cam(model, x, target, relu=False), wanted, atol=1e-5)


def test_of_two_linear_layers_cam_reads_the_last(x):
    """As where channels are weighed by a linear layer of their means, before they are pooled for the logits."""
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.weigh, self.maps, self.head = (
                nn.Conv2d(3, 5, 3), nn.Linear(5, 5), nn.Identity(), nn.Linear(5, 5))

        def forward(self, x):
            A = self.conv(x)
            return self.head(self.maps(A * self.weigh(A.mean((2, 3)))[:, :, None, None]).mean((2, 3)))

    torch.manual_seed(0)
    model, target = Weighed().eval(), torch.arange(6) % 5
    R = cam(model, x, target, layer="maps", relu=False)
    assert torch.allclose(R, grad_cam(model, x, target, layer="maps", relu=False) * 30 * 30, atol=1e-5)


def test_grad_cam_at_any_layer_is_its_definition(x):
    model = network("resnet")
    target = torch.tensor([4, 3, 2, 1, 0, 0])
    for layer in ("stem", "block1.conv1", "block2"):
        with features(model, [layer]) as f:
            z = model(x)
        (g,) = torch.autograd.grad(z.gather(1, target[:, None]).sum(), f[layer])
        R = (g.mean((2, 3), keepdim=True) * f[layer]).sum(1)
        for sign in (1, -1):
            wanted = F.interpolate((sign * R)[:, None].relu(), (32, 32), mode="bilinear")[:, 0]
            found = grad_cam(model, x, target, layer=layer, counterfactual=sign < 0)
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
            assert float(found.max()) > 0


def test_planted_evidence_is_found_where_it_is():
    """The score counts bright pixels: the map is where they are, and its counterfactual where they are not."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    model[0].weight.data, model[0].bias.data = torch.tensor([1.0, -1]).view(2, 1, 1, 1), torch.tensor([0.0, 1])
    model[4].weight.data = torch.tensor([[1.0, -1], [-1, 1]])
    x = torch.zeros(1, 1, 8, 8)
    x[..., 2:4, 5:7] = 1
    for explain in (cam, grad_cam):
        R = explain(model, x, torch.tensor([0]))
        assert torch.equal(R[0] > 0, x[0, 0] > 0)
    assert torch.equal(grad_cam(model, x, torch.tensor([0]), counterfactual=True)[0] > 0, x[0, 0] == 0)


def test_grad_cam_reads_a_network_that_does_not_pool_globally(x):
    model = network("cnn7", size=32)
    R = grad_cam(model, x, relu=False)
    assert R.shape == (6, 32, 32)
    with pytest.raises(ValueError, match="use grad_cam"):
        cam(model, x)


@pytest.mark.parametrize("explain", [cam, grad_cam])
def test_contract(explain, x):
    model = network("resnet")
    hooks = [len(m._forward_hooks) for m in model.modules()]
    R = explain(model, x)
    assert R.shape == (6, 32, 32)
    assert not R.requires_grad
    assert float(R.min()) >= 0
    assert torch.allclose(R, explain(model, x, logits(model, x).argmax(1)))
    assert torch.allclose(R[3:4], explain(model, x[3:4]), atol=1e-5)
    assert not torch.allclose(R, explain(model, x, (logits(model, x).argmax(1) + 1) % 5), atol=1e-3)
    with pytest.raises(ValueError, match="no layer 'block9'"):
        explain(model, x, layer="block9")
    with pytest.raises(ValueError, match="no feature maps"):
        explain(network("mlp", size=32), x)
    with pytest.raises(ValueError, match="no feature maps"):
        explain(model, x, layer="head")
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("explain", [cam, grad_cam])
def test_create_graph_gives_the_derivative_of_the_map(explain):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Conv2d(3, 3, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(3, 3)).double().eval()
    layer = {} if explain is cam else {"layer": "1"}
    x = torch.rand(2, 2, 8, 8, dtype=torch.double, generator=generator(1)).mul(0.8).add(0.1).requires_grad_()
    target = torch.tensor([0, 2])
    direction = torch.randn(2, 2, 8, 8, dtype=torch.double, generator=generator(2))
    probe = torch.randn(2, 8, 8, dtype=torch.double, generator=generator(3))
    R = explain(model, x, target, relu=False, create_graph=True, **layer)
    (g,) = torch.autograd.grad((R * probe).sum(), x)
    h = 1e-6
    up, down = (explain(model, x.detach() + s * h * direction, target, relu=False, **layer) for s in (1, -1))
    slope = ((up - down) * probe).sum() / (2 * h)
    assert float(slope.abs()) > 1e-4
    assert torch.allclose((g * direction).sum(), slope, rtol=1e-4)


def test_maps_with_their_channels_last_are_refused(x):
    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, 5)

        def forward(self, x):
            return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))

    with pytest.raises(ValueError, match=r"'norm', \(6, 8, 8, 6\), have their channels last"):
        grad_cam(Permuted().eval(), x)
    assert grad_cam(Permuted().eval(), x, layer="conv").shape == (6, 32, 32)


@pytest.mark.parametrize("explain", [cam, grad_cam])
def test_an_in_place_relu_after_the_layer_changes_nothing(explain, x):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    plain, in_place = nn.Sequential(*layers), nn.Sequential(layers[0], nn.ReLU(inplace=True), *layers[2:])
    options = {"layer": "0"} if explain is grad_cam else {}
    R = explain(plain, x, relu=False, **options)
    assert float(R.abs().max()) > 1e-6
    assert torch.equal(R, explain(in_place, x, relu=False, **options))


def test_the_last_maps_of_layers_called_twice_are_found(x):
    """As in torchvision's residual blocks, whose one ReLU is called twice: the block's output is read."""
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1) for _ in "ab")
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            out = self.b(self.relu(self.a(x)))
            out += x
            return self.relu(out)

    torch.manual_seed(0)
    blocks = nn.Sequential(Block(), Block())
    model = nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    assert torch.equal(grad_cam(model, x), grad_cam(model, x, layer="0.1"))
    with pytest.raises(ValueError, match="more than once"):
        grad_cam(model, x, layer="0.1.relu")
