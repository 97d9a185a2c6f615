"""Agreement with captum and zennit where they are right, and conservation where they are not (residual networks)."""
import warnings

import pytest
import torch
from torch import nn

from kit.core import generator
from kit.explain import (
    alpha_beta,
    completeness,
    epsilon,
    flat,
    gamma,
    grad_cam,
    gradient_times_input,
    integrated_gradients,
    lrp,
    occlusion,
    saliency,
    zplus,
)
from kit.models.families import FAMILIES

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def network(family):
    torch.manual_seed(0)
    model = FAMILIES[family](classes=5, channels=3, width=4, norm=False, mean=(0.0,), std=(1.0,))
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(m.weight)
            m.bias.data.zero_()
    return model.eval()


@pytest.fixture
def x():
    return torch.rand(4, 3, 16, 16, generator=generator(1))


TARGET = torch.tensor([0, 1, 2, 4])


def test_captum(x):
    attr = pytest.importorskip("captum.attr")
    model = network("resnet")
    theirs = attr.Saliency(model).attribute(x, target=TARGET).amax(1)
    assert torch.allclose(saliency(model, x, TARGET), theirs, atol=1e-5)
    theirs = attr.InputXGradient(model).attribute(x, target=TARGET).sum(1).detach()
    assert torch.allclose(gradient_times_input(model, x, TARGET), theirs, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = integrated_gradients(model, x, TARGET, steps=200, complete=False)
    theirs = attr.IntegratedGradients(model).attribute(x, target=TARGET, n_steps=200).sum(1).detach()
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05
    theirs = attr.Occlusion(model).attribute(x, (3, 4, 4), (3, 4, 4), baselines=0.5, target=TARGET)[:, 0]
    assert torch.allclose(occlusion(model, x, TARGET, size=4, stride=4), theirs, atol=1e-4)
    layer = attr.LayerGradCam(model, model.block2)
    theirs = attr.LayerAttribution.interpolate(
        layer.attribute(x, target=TARGET, relu_attributions=True), (16, 16), "bilinear")[:, 0].detach()
    assert torch.allclose(grad_cam(model, x, TARGET, layer="block2"), theirs, atol=1e-4)


def zennit_lrp(model, x, rule):
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite
    from zennit.rules import Norm, Pass
    from zennit.types import Activation, AvgPool, Linear

    composite = LayerMapComposite([(Activation, Pass()), (AvgPool, Norm()), (Linear, rule)])
    with Gradient(model=model, composite=composite) as attributor:
        return attributor(x.clone().requires_grad_(), one_hot(model, x))[1].sum(1).detach()


def one_hot(model, x):
    """Relevance starts as the logit itself, as in kit."""
    z = model(x).detach()
    return torch.zeros_like(z).scatter(1, TARGET[:, None], z.gather(1, TARGET[:, None]))


@pytest.mark.parametrize("name", ["epsilon", "gamma", "alpha2beta1", "zplus", "flat"])
def test_zennit_on_a_plain_network(x, name):
    rules = pytest.importorskip("zennit.rules")
    ours, theirs = {
        "epsilon": (epsilon(1e-7), rules.Epsilon(1e-9)), "gamma": (gamma(0.25), rules.Gamma(0.25)),
        "alpha2beta1": (alpha_beta(2, 1), rules.AlphaBeta(2, 1)), "zplus": (zplus(), rules.ZPlus()),
        "flat": ({"first": flat(), "conv": zplus(), "linear": zplus()}, None),
    }[name]
    model = network("vgg")
    if name == "flat":
        from zennit.composites import SpecialFirstLayerMapComposite
        from zennit.types import Activation, AvgPool, Linear

        composite = SpecialFirstLayerMapComposite(
            [(Activation, rules.Pass()), (AvgPool, rules.Norm()), (Linear, rules.ZPlus())], [(Linear, rules.Flat())])
        from zennit.attribution import Gradient

        with Gradient(model=model, composite=composite) as attributor:
            R = attributor(x.clone().requires_grad_(), one_hot(model, x))[1].sum(1).detach()
    else:
        R = zennit_lrp(model, x, theirs)
    found = lrp(model, x, TARGET, rules=ours)
    assert float((found - R).norm() / R.norm()) < (0.03 if name == "alpha2beta1" else 1e-4)
    if name == "alpha2beta1":
        # The 2.1 % are three hidden units, with 0.4 % of the relevance, all of whose contributions are positive. zennit
        # hands down α R for them and takes back nothing, so that relevance is made; kit hands down R. Told to do the
        # same, it agrees.
        found = lrp(model, x, TARGET, rules=two_minus_one)
        assert float((found - R).norm() / R.norm()) < 1e-4


def two_minus_one(step, R):
    """α2β1 for x ≥ 0 without biases, with both terms also where one has nothing to share."""
    if (step.x < 0).any():
        raise ValueError("for inputs that are not negative")
    plus, minus = step.weight.clamp(min=0), step.weight.clamp(max=0)
    return step.x * (2 * step.down(R / (step.up(step.x, plus) + 1e-9), plus)[0]
                     - step.down(R / (step.up(step.x, minus) - 1e-9), minus)[0])


def test_where_a_residual_network_leaks_elsewhere_it_conserves_here(x):
    rules = pytest.importorskip("zennit.rules")
    model = network("resnet")
    z = model(x).detach().gather(1, TARGET[:, None])[:, 0]
    theirs = (zennit_lrp(model, x, rules.Epsilon(1e-9)).sum((1, 2)) - z).abs() / z.abs()
    ours = completeness(model, x, lrp(model, x, TARGET, rules=epsilon(1e-9)), TARGET, baseline=None)
    assert float(ours.max()) < 1e-3
    assert float(theirs.min()) > 0.05
