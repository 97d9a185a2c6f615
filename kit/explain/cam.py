"""Class activation maps: which of the places that the last feature maps distinguish speak for a class.

    A_k (h, w)   the feature maps of a layer      z_c   the logit of class c = `target`, or of the predicted class

Both return (N, H, W): the map (h, w), resized bilinearly to the image. Shared arguments:

    layer     the name of the layer whose output is A; None is the last one that still has places (h·w > 1)
    relu      keep only what speaks for the class (the map then has no sign)
    create_graph    keep the graph of the map to x, so that an attack can differentiate it
"""
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import features, per_image
from kit.core.loop import differentiate
from kit.core.model import asking
from kit.core.network import calls
from kit.explain.gradient import score, variable

NO_MAPS = "has no feature maps (N, K, h, w) of a convolution: explain it by gradients or LRP"


@per_image
def cam(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, layer: str | None = None, relu: bool = True,
    create_graph: bool = False,
) -> Tensor:
    """Class activation map: R = Σ_k w_ck A_k, w the weights of the linear layer after the global average pooling.

    Without ReLU its mean over the places is z_c − b_c. Where the logits themselves are the pooled maps, R = A_c.
    Cost: one forward pass, and one of a single image. Raises ValueError for a model that does not end so (`grad_cam`
    explains it).
    Source: Zhou et al., Learning deep features for discriminative localization, CVPR 2016, equation 2.
    """
    with torch.set_grad_enabled(create_graph):
        z, A, linear, entered = _forward(model, x, layer)
        target = z.detach().argmax(1) if target is None else target
        pooled = A.mean((2, 3))
        if linear is not None and entered is not None and _same(pooled, entered) and linear.out_features == z.shape[1]:
            R = torch.einsum("nk,nkhw->nhw", linear.weight[target], A)
        elif _same(pooled, z):
            R = A[torch.arange(len(x), device=x.device), target]
        else:
            raise ValueError("CAM needs a model that ends in global average pooling and one linear layer, and the maps "
                             "that are pooled: use grad_cam, which needs neither")
        return _resized(R, x, relu)


@per_image
def grad_cam(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, layer: str | None = None, relu: bool = True,
    counterfactual: bool = False, create_graph: bool = False,
) -> Tensor:
    """Grad-CAM: R = ReLU(Σ_k α_k A_k), α_k the mean over the places of ∂z_c/∂A_k.

    With `counterfactual`, −α_k: the places whose absence would raise the score. On a model that ends in global average
    pooling over h·w places and a linear layer, it is 1/(h·w) times `cam`.
    Cost: one forward pass, one backward pass from the logits to the layer, and a forward pass of a single image.
    Source: Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2; counterfactual: section 3.3.
    """
    z, A, *_ = _forward(model, variable(x, create_graph), layer)
    g = differentiate(score(z, target), A, create_graph=create_graph)
    return _resized(attended(A if create_graph else A.detach(), -g if counterfactual else g), x, relu)


def attended(A: Tensor, g: Tensor) -> Tensor:
    """Σ_k α_k A_k (N, h, w) of feature maps A (N, K, h, w), α_k the mean over the places of their gradient g."""
    return torch.einsum("nk,nkhw->nhw", g.mean((2, 3)), A)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _resized(R: Tensor, x: Tensor, relu: bool) -> Tensor:
    R = F.relu(R) if relu else R
    return F.interpolate(R[:, None], x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def _forward(model: nn.Module, x: Tensor, layer: str | None) -> tuple[Tensor, Tensor, nn.Linear | None, Tensor | None]:
    """The logits, the feature maps of the layer, and the last linear layer with its input."""
    with torch.no_grad(), asking(model, torch.arange(1)):
        called = calls(model, x[:1])
    layer = _last_maps(called) if layer is None else layer
    names = [name for name, *_ in called]
    linears = [n for n, module, _ in called if isinstance(module, nn.Linear) and n and names.count(n) == 1][-1:]
    with features(model, [layer]) as maps, features(model, linears, inputs=True) as entered:
        z = model(x)
    A = maps[layer]
    if A.dim() != 4:
        raise ValueError(f"the layer {layer!r} {NO_MAPS}")
    if _like(A.shape[1:3], x) and not _like(A.shape[2:], x):
        raise ValueError(f"the maps of the layer {layer!r}, {tuple(A.shape)}, have their channels last: name a layer "
                         "whose output is (N, K, h, w)")
    if not linears:
        return z, A, None, None
    return z, A, cast(nn.Linear, model.get_submodule(linears[0])), entered[linears[0]]


def _last_maps(called: list[tuple[str, nn.Module, Any]]) -> str:
    """The last layer that is called once and returns maps with places, after a convolution."""
    first = next((i for i, (_, module, _) in enumerate(called) if isinstance(module, nn.Conv2d)), len(called))
    names = [name for name, *_ in called]
    for name, _, output in reversed(called[first:]):
        if name and names.count(name) == 1 and isinstance(output, Tensor) and output.dim() == 4 and (
                output[0, 0].numel() > 1):
            return name
    raise ValueError(f"this model {NO_MAPS}")


def _like(places: torch.Size, x: Tensor) -> bool:
    """Whether the places (h, w) cover the image: their ratio is the image's, to one place."""
    (h, w), (height, width) = places, x.shape[2:]
    return abs(h * width - w * height) <= max(height, width)
