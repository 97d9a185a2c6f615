"""How far the logits can move at most for one unit at the image: global Lipschitz bounds, from the weights alone.

    ‖z_i(x) − z_i(x')‖_p ≤ L_i ‖x − x'‖_p       L_i = ‖W_i‖_p L_{i−1} through a layer,  L_i = L_{i−1} through a ReLU

    |(z_j − z_k)(x) − (z_j − z_k)(x')| ≤ L_jk ‖x − x'‖_p,    L_jk = ‖w_j − w_k‖_q L,   1/p + 1/q = 1

where L is that of what enters the last layer. It holds for all images at once, not in a ball, which is why it is
loose; it is sound up to rounding. Source: Szegedy et al., Intriguing properties of neural networks, 2013, section 4.3;
the certificate: Hein and Andriushchenko 2017, and Tsuzuki et al., Lipschitz-margin training, NeurIPS 2018.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from kit.certify.bounds.layers import Elementwise, Layers, MaxPool, ReLU, Reshape, Step, Weighted
from kit.certify.bounds.relaxed import pulled_back
from kit.certify.clever import DUAL
from kit.core import borrowed, check_images, logits, per_image
from kit.core.steps import Convolution

LOOSER = 1 + 1e-6  # what the rounding of single precision may take from a product of norms


def lipschitz(model: nn.Module, x: Tensor, *, norm: str = "linf") -> Tensor:
    """(K, K): L_jk with |(z_j − z_k)(x) − (z_j − z_k)(x')| ≤ L_jk ‖x − x'‖ for all images shaped like x (N, C, H, W).

    The product of the operator norms of the layers; in l∞ and l1 they are exact, also of convolutions with their
    padding (the greatest sum of |weights| that meet at an output, or at an input). In l2 that of a linear layer is its
    largest singular value, that of a convolution `convolution_norm`. Sums of branches add; of a concatenation the
    greater counts in l∞, and in l2 the squares add. The affine steps after the last ReLU are taken together with
    z_j − z_k. Raises ValueError for a norm without a name here, and for a step that bounds have no rule for.
    Cost: a forward and a backward pass for each step; in l2 a singular value decomposition for each frequency; K
    backward passes of the last layer.
    """
    check_images(x)
    if norm not in DUAL:
        raise ValueError(f"norm must be one of {', '.join(DUAL)}, not {norm!r}")
    with borrowed(model, x):
        layers = Layers(model, x)
        with torch.no_grad():
            L = {0: 1.0}
            for step in layers.steps:
                L[step.output] = grown(step, [L[i] for i in step.inputs], norm)
            eye = torch.eye(layers.classes).to(x)
            apart = (eye[:, None] - eye[None]).reshape(1, -1, layers.classes)
            held, _ = pulled_back(layers, apart, layers.output, {}, stop=[step.output for step in layers.bent])
            found = sum(A.flatten(2).double().norm(p=DUAL[norm], dim=2)[0] * L[i] for i, A in held.items())
    return (LOOSER * torch.as_tensor(found)).view(layers.classes, layers.classes).to(x)


@per_image
def lipschitz_radius(model: nn.Module, x: Tensor, y: Tensor, *, norm: str = "linf") -> Tensor:
    """The radius (N,) within which no x' is classified otherwise: min over k of (z_y − z_k)(x)/L_yk, 0 where x is not
    classified y. A proof, if a weak one, and of all of space: nothing of it is cut by [0, 1].

    Cost: as `lipschitz`, once for each chunk, and a forward pass.
    """
    z = logits(model, x)
    L = lipschitz(model, x, norm=norm)[y]
    lead = z.gather(1, y[:, None]) - z
    radius = torch.where(lead > 0, lead / L, 0.0)  # two classes that are one: 0 / 0 is a lead of nothing
    return radius.scatter(1, y[:, None], torch.inf).amin(1)


def grown(step: Step, L: list[float], norm: str) -> float:
    """L of a step's output, from those of its inputs: Σ_i ‖A_i‖ L_i for an affine step Σ_i A_i h_i + b."""
    if isinstance(step, ReLU | Reshape):
        return L[0]
    if isinstance(step, Elementwise):
        return float(step.weights()[0].abs().max()) * L[0]
    if isinstance(step, MaxPool):  # |max h − max h'| ≤ max |h − h'| in each window, and a value is in several windows
        read = step.gathered(torch.ones(1, step.shape[0], step.size, *step.shape[1:], dtype=torch.float64)).max()
        return L[0] * {"linf": 1.0, "l2": float(read) ** 0.5, "l1": float(read)}[norm]
    ones = [torch.ones(1, *shape, dtype=torch.float64, device=step.op.output.device) for shape in step.shapes]
    if norm == "linf":
        return float(absolute(step, [value * one for value, one in zip(L, ones, strict=True)]).max())
    columns = column_sums(step, ones)
    if norm == "l1":
        return sum(column * value for column, value in zip(columns, L, strict=True))
    if isinstance(step, Weighted) and isinstance(step.step, Convolution):
        return convolution_norm(step.step) * L[0]
    if isinstance(step, Weighted):
        return float(torch.linalg.matrix_norm(step.step.weight.detach().double(), 2)) * L[0]
    rows = [float(absolute(step, [one * (i == j) for j, one in enumerate(ones)]).max()) for i in range(len(L))]
    parts = [(row * column) ** 0.5 * value for row, column, value in zip(rows, columns, L, strict=True)]
    joined = step.op.name in ("cat", "concat", "concatenate")
    return sum(part**2 for part in parts) ** 0.5 if joined else sum(parts)  # ‖A‖₂² ≤ ‖A‖_∞ ‖A‖₁ (Schur)


def absolute(step: Step, h: list[Tensor]) -> Tensor:
    """Σ_i |A_i| h_i of an affine step: its rows' sums of absolute weights, for h = 1."""
    if isinstance(step, Weighted):
        return step.step.up(h[0], step.step.weight.detach().double().abs())
    return step.of(h) - step.of([torch.zeros_like(t) for t in h])  # all its weights are zero or more


def column_sums(step: Step, ones: list[Tensor]) -> list[float]:
    """The greatest column sum of |A_i|, for each input."""
    with torch.enable_grad():
        probes = [one.requires_grad_() for one in ones]
        found = torch.autograd.grad(absolute(step, probes).sum(), probes)
    for one in ones:
        one.requires_grad_(False)
    return [float(g.max()) for g in found]


def convolution_norm(step: Convolution) -> float:
    """An upper bound on ‖W x‖₂/‖x‖₂ of a convolution with zero padding: the greatest singular value over frequencies.

    Padded with zeros onto a torus that is large enough, the image meets the same kernel, and a convolution on a torus
    is a matrix (channels out, channels in) for each frequency; leaving outputs away only lowers the norm. A stride s
    makes s × s images of one. Power iteration comes near the norm from below, and so proves nothing; this is from
    above, and equal but for what the edges lose. Source: Sedghi, Gupta and Long, The singular values of convolutional
    layers, ICLR 2019, for the torus.
    """
    W = step.weight.detach().double().cpu()
    (up, left), (down, right) = step.stride, step.dilation
    high, wide = ((k - 1) * d + 1 for k, d in zip(W.shape[2:], step.dilation, strict=True))
    kernel = W.new_zeros(*W.shape[:2], -(-high // up) * up, -(-wide // left) * left)
    kernel[:, :, :high:down, :wide:right] = W
    phases = kernel.unflatten(3, (-1, left)).unflatten(2, (-1, up)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    torus = [-(-(n + 2 * p) // s) + k for n, p, s, k in zip(
        step.x.shape[2:], step.padding, step.stride, phases.shape[2:], strict=True)]
    transfer = torch.fft.rfft2(phases, s=torus).unflatten(0, (step.groups, -1)).permute(3, 4, 0, 1, 2).flatten(0, 2)
    return float(torch.linalg.svdvals(transfer).max())
