"""Transfer attacks that read hidden layers: what is maximised gains a term beside the loss ℓ.

    TAP   ℓ + λ Σ_k ‖P(A_k(x)) − P(A_k(x'))‖₂² + η Σ |box ∗ (x − x')|,   P(v) = sign(v) |v|^α
    ATA   ℓ + λ Σ_k ‖H_k(x') − H_k(x)‖₂,   H_k the attention map of layer k, by the logit or the probability of y

Networks that differ in much look at the same parts of an image, so what turns one's features or attention away may
turn another's. How the gradient is taken is free: mu and kernel add MI and TI of `kit.attacks.transfer`. Arguments are
those of `kit.attacks.gradient`, with the default step eps/steps and the same errors; `layers` are names of layers.
Terms are sums over features, places and pixels, and one number per image.
"""
import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.gradient import Steps
from kit.attacks.transfer.ingredients import travel
from kit.core import Ensemble, Goal, cross_entropy, features, laid_out, leaf, per_image, smooth_relu
from kit.core.goal import Loss
from kit.core.loop import check_differentiable
from kit.core.network import layers_named


def blocks(model: nn.Module) -> list[str]:
    """The names of a network's stages (`block1`, … or `layer1`, …); of an ensemble, those of each of its members.

    Raises ValueError for a network that does not name them so.
    """
    if isinstance(model, Ensemble):
        return [f"models.{i}.{name}" for i, member in enumerate(model.models) for name in blocks(member)]
    layers_named(model, [])
    names = [name for name, _ in model.named_modules() if name]
    found = [name for name in names if re.fullmatch(r"(network\.|model\.)?(block|layer)\d+", name)]
    if found:
        return found
    known = ", ".join(names)
    raise ValueError(f"the model has no block1, block2, …: name its layers with layers=[…]; it has {known}")


def middle(model: nn.Module) -> list[str]:
    """The stage in the middle: `block2` of the families, `layer3` of cnn7, one for each member of an ensemble."""
    if isinstance(model, Ensemble):
        return [f"models.{i}.{name}" for i, member in enumerate(model.models) for name in middle(member)]
    stages = blocks(model)
    return [stages[(len(stages) - 1) // 2]]


def channel_weights(
    z: Tensor, A: dict[str, Tensor], y: Tensor, create_graph: bool = False, *, of: str = "logit", unit: bool = False,
) -> dict[str, Tensor]:
    """α (N, C) of each layer: the mean over the places of ∂s/∂A_c, s = z_y or, with of="probability", softmax(z)_y.

    With `unit` each image's are divided by the largest, so that they lie in [−1, 1]. Part of a backward pass.
    Raises ValueError for another word, and for a layer that has no feature maps.
    """
    if of not in ("logit", "probability"):
        raise ValueError(f"attention is of the 'logit' or of the 'probability', not {of!r}")
    for name, maps in A.items():
        if maps.dim() != 4:
            raise ValueError(f"the layer {name!r} has no feature maps (N, C, h, w): name another in layers")
    score = (z.softmax(1) if of == "probability" else z).gather(1, y[:, None]).sum()
    slopes = torch.autograd.grad(score, list(A.values()), create_graph=create_graph, retain_graph=True)
    alpha = {name: g.mean((2, 3)) for name, g in zip(A, slopes, strict=True)}
    if unit:
        alpha = {name: a / a.abs().amax(1, keepdim=True).clamp_min(1e-30) for name, a in alpha.items()}
    return alpha


def attention_maps(
    z: Tensor, A: dict[str, Tensor], y: Tensor, create_graph: bool = False, *, of: str = "logit", unit: bool = False,
) -> dict[str, Tensor]:
    """H_k (N, h, w) = ReLU(Σ_c α_c A_c), α as `channel_weights` gives them: part of a backward pass."""
    alpha = channel_weights(z, A, y, create_graph, of=of, unit=unit)
    return {name: F.relu(torch.einsum("nc,nchw->nhw", alpha[name], maps)) for name, maps in A.items()}


@per_image
def attention(model: nn.Module, x: Tensor, y: Tensor, *, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The attention maps H_k^y (N, h, w) of each layer, for the logit of y: Grad-CAM before it is resized.

    Cost: one forward pass and the backward pass from the logits to the first of the layers.
    """
    with features(model, layers or middle(model)) as A:
        z = model(x.detach().requires_grad_())
    return {name: H.detach() for name, H in attention_maps(z, A, y).items()}


def _read(model: nn.Module, v: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    with features(model, layers) as A:
        z = model(laid_out(v))
    if v.requires_grad:
        check_differentiable(z)
    return z, dict(A)


def powers(A: dict[str, Tensor], layers: Sequence[str], alpha: float) -> dict[str, Tensor]:
    """P(A_k) = sign(A_k)(|A_k| + 1e-12)^α, as the slope of |v|^α at 0 is infinite."""
    return {name: A[name].sign() * (A[name].abs() + 1e-12) ** alpha for name in layers}


def _gain(
    model: nn.Module, goal: Goal, z: Tensor, v: Tensor, loss: Loss, T: nn.Module | None, gamma: float,
) -> Tensor:
    """ℓ(f(x'), y), and with a transformation T what ATTA adds to it, γ ℓ(f(T(x')), y)."""
    value = goal.gain(z, loss)
    return value if T is None else value + gamma * goal.gain(model(laid_out(T(v))), loss)


def _apart(P: dict[str, Tensor], clean: dict[str, Tensor]) -> Tensor:
    """Σ_k ‖P_k(x') − P_k(x)‖₂², (N,)."""
    return torch.stack([(P[name] - clean[name].detach()).square().flatten(1).sum(1) for name in P]).sum(0)


def _rough(delta: Tensor, s: int) -> Tensor:
    """Σ_i |(δ averaged over s×s)_i|, (N,)."""
    return F.avg_pool2d(delta, s, 1, s // 2).abs().flatten(1).sum(1)


def _turned(H: dict[str, Tensor], clean: dict[str, Tensor]) -> Tensor:
    """Σ_k ‖H_k(x') − H_k(x)‖₂, (N,)."""
    return torch.stack([
        torch.linalg.vector_norm((H[name] - clean[name].detach()).flatten(1), dim=1) for name in H]).sum(0)


@per_image
def tap(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, lam: float = 0.005, eta: float = 0.01,
    alpha: float = 0.5, s: int = 3, layers: Sequence[str] | None = None, mu: float = 0.0, kernel: int = 1,
    target: Tensor | None = None, loss: Loss = cross_entropy, T: nn.Module | None = None, gamma: float = 1.0,
    **how: Unpack[Steps],
) -> Tensor:
    """Transferable adversarial perturbations: drive the features of every stage apart, by a smooth perturbation.

        max ℓ(f(x'), y) + λ Σ_k ‖P(A_k(x)) − P(A_k(x'))‖₂² + η Σ_i |(x − x' averaged over s×s)_i|

    with P(v) = sign(v)(|v| + 1e-12)^α. The default `layers` are all stages (`blocks`); the box runs over every pixel.
    With lam = eta = 0 it is `bim`. T, γ add the term of `kit.attacks.atta` (then lam = eta = 0 is `atta`).
    Cost: `steps` forward and backward passes and one forward pass; with T twice as many.
    Source: Zhou et al., Transferable adversarial perturbations, ECCV 2018; the constants are those of its
    reimplementations, which agree.
    """
    layers, goal = layers or blocks(model), Goal(y, target)
    clean = powers(_read(model, x, layers)[1], layers, alpha)

    def objective(v: Tensor, k: int) -> Tensor:
        z, A = _read(model, v, layers)
        value = _gain(model, goal, z, v, loss, T, gamma)
        return value + lam * _apart(powers(A, layers, alpha), clean) + eta * _rough(v - x, s)

    return travel(objective, x, eps=eps, mu=mu, kernel=kernel, **how)


@per_image
def ata(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, lam: float = 1.0,
    layers: Sequence[str] | None = None, of: str = "logit", unit: bool = False, create_graph: bool = False,
    smooth: float | None = None, mu: float = 0.0, kernel: int = 1, target: Tensor | None = None,
    loss: Loss = cross_entropy, T: nn.Module | None = None, gamma: float = 1.0, **how: Unpack[Steps],
) -> Tensor:
    """Attention-guided transfer attack: raise the loss, and change what the network attends to.

        max ℓ(f(x'), y) + λ Σ_k ‖H_k^y(x') − H_k^y(x)‖₂
        H_k^y = ReLU(Σ_c α_c A_c),   α_c = 1/(h w) Σ_mn ∂f(x)[y]/∂A_c[m, n],   f(x)[y] the logit

    The default `layers` are the stage in the middle (`block2` of the families). The paper leaves two things open: with
    of="probability" f(x)[y] is softmax(z)_y, and with `unit` α is divided by its largest entry. A targeted attack keeps
    the attention of y, and maximises −ℓ(f(x'), target). With create_graph, α is differentiated too; in a network of
    ReLUs that changes nothing for the logit, since α is constant where the ReLUs do not switch, unless smooth = τ lets
    them differentiate smoothly (`kit.core.smooth_relu`; for the loss too, so compare with lam = 0 and the same τ). With
    lam = 0 and no smooth it is `bim`, bit for bit. T, γ add the term of `kit.attacks.atta`, and lam = 0 is then `atta`.
    Cost: `steps` forward and backward passes and as many backward passes from the logits to the layers, and both once;
    with T `steps` forward and backward passes more.
    Source: Wu et al., Boosting the transferability of adversarial samples via attention, CVPR 2020, algorithm 1.
    """
    layers, goal = layers or middle(model), Goal(y, target)

    def look(v: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z, A = _read(model, v, layers)
        return z, attention_maps(z, A, y, create_graph, of=of, unit=unit)

    def objective(v: Tensor, k: int) -> Tensor:
        z, H = look(v)
        return _gain(model, goal, z, v, loss, T, gamma) + lam * _turned(H, clean)

    with smooth_relu(smooth) if smooth else nullcontext():
        clean = look(leaf(x))[1]
        return travel(objective, x.detach(), eps=eps, mu=mu, kernel=kernel, **how)


@per_image
def tap_ata(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, lam: float = 1.0,
    layers: Sequence[str] | None = None, of: str = "logit", unit: bool = False, lam_tap: float = 0.005,
    eta: float = 0.01, alpha: float = 0.5, s: int = 3, layers_tap: Sequence[str] | None = None, mu: float = 0.0,
    kernel: int = 1, target: Tensor | None = None, loss: Loss = cross_entropy, T: nn.Module | None = None,
    gamma: float = 1.0, **how: Unpack[Steps],
) -> Tensor:
    """TAP with ATA's term added to its objective; lam, layers, of and unit are ATA's. With lam = 0 it is `tap`.
    T, γ add that of `kit.attacks.atta`.

    Cost: that of `ata`, and one forward pass. Source: Wu et al., CVPR 2020; the thesis, "Complementary effect".
    """
    layers, stages, goal = layers or middle(model), layers_tap or blocks(model), Goal(y, target)

    def look(v: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        z, A = _read(model, v, sorted({*layers, *stages}))
        return z, attention_maps(z, {name: A[name] for name in layers}, y, of=of, unit=unit), powers(A, stages, alpha)

    def objective(v: Tensor, k: int) -> Tensor:
        z, H, P = look(v)
        return (_gain(model, goal, z, v, loss, T, gamma) + lam * _turned(H, clean_H) + lam_tap * _apart(P, clean_P)
                + eta * _rough(v - x, s))

    _, clean_H, clean_P = look(leaf(x))
    return travel(objective, x, eps=eps, mu=mu, kernel=kernel, **how)
