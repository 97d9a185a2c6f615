"""Explanations beside the bare passes, and beside captum, zennit and pytorch-grad-cam where they are installed."""
import copy
import importlib.util

import torch
from torch import nn

import kit.data
import kit.models
from kit.core import features, logits
from kit.explain import (
    RTS,
    ConceptTest,
    completeness,
    epsilon,
    grad_cam,
    integrated_gradients,
    lrp,
    occlusion,
    rank_correlation,
    smoothgrad,
)
from tests.bench import Task, bare_passes, peak_memory

HAS = {name: importlib.util.find_spec(name) is not None for name in ("captum", "zennit", "pytorch_grad_cam")}


def tasks():
    data = kit.data.load("scenes", "test", n=128)
    x = data.x
    few = x[:16]
    model = kit.models.load("scenes/resnet").requires_grad_(False)
    c = logits(model, x).argmax(1)

    def agrees(ours, x, c):
        """The rank correlation of a result with ours, both signed and summed over the channels."""

        def quality(result):
            R = result.sum(1) if result.dim() == 4 else result
            return f"ρ {float(rank_correlation(R.detach(), ours, absolute=False).mean()):.3f}"

        return quality

    many = few.repeat(8, 1, 1, 1)
    ours = integrated_gradients(model, few, c[:16])

    def gap(result):
        R = (result.sum(1) if result.dim() == 4 else result).detach()
        return f"gap {float(completeness(model, few, R, c[:16]).median()):.1%}, {agrees(ours, few, c[:16])(result)}"

    def path(model=model):
        for _ in range(0, 50, 8):
            bare_passes(model, many[: 16 * min(8, 50 - _)], c[:16].repeat(8)[: 16 * min(8, 50 - _)])

    yield Task("Integrated Gradients, 50 steps, 16 images", path, {
        "kit": lambda: integrated_gradients(model, few, c[:16]), **path_peers(model, few, c[:16])}, gap, target=1.1)

    def memory(run):
        return lambda: ", ".join(f"{peak_memory(lambda k=k: run(k)):.0f} MB with {k} steps" for k in (25, 200))

    yield Task("Integrated Gradients, memory, 16 images", path, {
        name: memory(run) for name, run in path_memory(model, few, c[:16]).items()}, str, repeats=1)

    yield Task("SmoothGrad, 50 samples, 16 images", path, {
        "kit": lambda: smoothgrad(model, few, c[:16]), **noise_peers(model, few, c[:16])}, target=1.1)

    def to_layer():
        with features(model, ["block3"]) as f:
            z = model(x.clone().requires_grad_())
        torch.autograd.grad(z.gather(1, c[:, None]).sum(), f["block3"])

    yield Task("Grad-CAM, 128 images", to_layer, {"kit": lambda: grad_cam(model, x, c, layer="block3"), **cam_peers(
        model, x, c)}, agrees(grad_cam(model, x, c), x, c), target=1.05, repeats=9)

    test = ConceptTest(model, "block3", runs=20, images=24, pool=True).fit(
        {f"the first {k}": x[k:k + 24] for k in range(5)}, x)
    cavs = test.cavs[:5, :, :, 0, 0].flatten(0, 1)

    def to_derivatives():
        for part in x.split(64):
            with features(model, ["block3"]) as f:
                z = model(part.clone().requires_grad_())
            torch.autograd.grad(z[:, 0].sum(), f["block3"])

    first = torch.zeros_like(c)
    yield Task("TCAV, 120 vectors, 128 images, once the vectors are there", to_derivatives, {
        "kit": lambda: test.derivatives(x, first), **vector_peers(model, x, cavs)}, target=1.1, repeats=15)

    for name in ("scenes/resnet", "scenes/vgg"):
        rts, some = RTS.shipped(name), x[:64]

        yield Task(f"RTS, {name}, 64 images, beside a pass of its encoder",
                   lambda rts=rts, some=some: bare_passes(rts.model, some, c[:64], backward=False), {
                       "kit": lambda rts=rts, some=some: rts.explain(some, c[:64])}, target=3.0, repeats=15)

    for family in ("vgg", "resnet"):
        net = kit.models.load(f"scenes/{family}").requires_grad_(False)
        for name, bound, options in (("ε", bare_passes, {"rules": epsilon()}), ("z^B, γ, ε", gamma_passes, {})):
            ours = lrp(net, x, c, **options)

            yield Task(f"LRP {name}, scenes/{family}, 128 images", lambda net=net, bound=bound: bound(net, x, c), {
                "kit": lambda net=net, options=options: lrp(net, x, c, **options),
                **relevance_peers(net, x, c, name == "ε")}, agrees(ours, x, c), target=1.5, repeats=9)

    def hidden():
        corners = [(i, j) for i in range(0, 25, 4) for j in range(0, 25, 4)]
        for k in range(0, len(corners) + 1, 8):
            bare_passes(model, many[: 16 * min(8, len(corners) + 1 - k)], c[:16].repeat(8), backward=False)

    yield Task("occlusion, 8×8 every 4, 16 images", hidden, {
        "kit": lambda: occlusion(model, few, c[:16], size=8, stride=4), **occlusion_peers(model, few, c[:16])},
        agrees(occlusion(model, few, c[:16], size=8, stride=4), few, c[:16]), target=1.1)


def gamma_passes(net, x, c):
    """What γ cannot do without: the answer; z⁺, as much again; and the way down, twice where z has both signs.

    These are the convolutions that no ReLU follows: the last of a residual block and that of its shortcut.
    """
    ends: list = []
    hooks = [m.conv.register_forward_hook(lambda _, given, z: ends.append((given[0], z)))
             for m in net.modules() if isinstance(m, nn.Sequential) and hasattr(m, "conv") and not hasattr(m, "relu")]
    v = x.clone().requires_grad_()
    try:
        z = net(v)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        net(x)
    for given, z_k in ends:
        torch.autograd.grad(z_k, given, torch.ones_like(z_k), retain_graph=True)
    torch.autograd.grad(z.gather(1, c[:, None]).sum(), v)


def path_peers(model, x, c):
    found = {}
    if HAS["captum"]:
        from captum.attr import IntegratedGradients

        method = IntegratedGradients(model)
        found["captum"] = lambda: method.attribute(x, target=c, n_steps=50)
        found["captum, chunked"] = lambda: method.attribute(x, target=c, n_steps=50, internal_batch_size=128)
    if HAS["zennit"]:
        from zennit.attribution import IntegratedGradients as Zennit

        with Zennit(model, n_iter=50) as attributor:
            found["zennit"] = lambda: attributor(x, torch.eye(10)[c])[1]
    return found


def path_memory(model, x, c):
    """Integrated Gradients as functions of the number of steps."""
    found = {"kit": lambda steps: integrated_gradients(model, x, c, steps=steps)}
    if HAS["captum"]:
        from captum.attr import IntegratedGradients

        method = IntegratedGradients(model)
        found["captum"] = lambda steps: method.attribute(x, target=c, n_steps=steps)
        found["captum, chunked"] = lambda steps: method.attribute(x, target=c, n_steps=steps, internal_batch_size=128)
    return found


def noise_peers(model, x, c):
    if not HAS["zennit"]:
        return {}
    from zennit.attribution import SmoothGrad

    attributor = SmoothGrad(model, noise_level=0.15, n_iter=50)
    return {"zennit": lambda: attributor(x, torch.eye(10)[c])[1]}


def cam_peers(model, x, c):
    found = {}
    if HAS["captum"]:
        from captum.attr import LayerAttribution, LayerGradCam

        method = LayerGradCam(model, model.block3)
        found["captum"] = lambda: LayerAttribution.interpolate(
            method.attribute(x, target=c, relu_attributions=True), (32, 32), "bilinear")
    if HAS["pytorch_grad_cam"]:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        own = copy.deepcopy(model)  # it leaves its hooks on the model
        cam = GradCAM(own, [own.block3])
        found["pytorch-grad-cam"] = lambda: torch.as_tensor(
            cam(x.clone().requires_grad_(), [ClassifierOutputTarget(int(k)) for k in c]))
    return found


def vector_peers(model, x, cavs):
    """captum asks again for every layer, not for every vector; its vectors have one value for each unit."""
    if not HAS["captum"]:
        return {}
    from captum.attr import LayerGradientXActivation

    method = LayerGradientXActivation(model, model.block3, multiply_by_inputs=False)
    wide = cavs.repeat_interleave(64, 1)
    return {"captum": lambda: method.attribute(x, target=0).flatten(1) @ wide.T}


def relevance_peers(model, x, c, plain):
    if not HAS["zennit"]:
        return {}
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonGammaBox, LayerMapComposite
    from zennit.rules import Epsilon, Pass
    from zennit.types import Activation, AvgPool, Linear

    plainly = LayerMapComposite([(Activation, Pass()), (Linear, Epsilon(1e-6)), (AvgPool, Epsilon(1e-6))])
    composite = plainly if plain else EpsilonGammaBox(low=-2.0, high=2.0)

    def run():
        with Gradient(model=model, composite=composite) as attributor:
            return attributor(x.clone().requires_grad_(), nn.functional.one_hot(c, 10).float())[1]

    return {"zennit": run}


def occlusion_peers(model, x, c):
    if not HAS["captum"]:
        return {}
    from captum.attr import Occlusion

    method = Occlusion(model)
    return {"captum": lambda: method.attribute(
        x, (3, 8, 8), (3, 4, 4), baselines=0.5, target=c, perturbations_per_eval=8)}
