"""Transfer attacks: made on a network at hand, meant for one that is not.

Plain iterations overfit the source. Four remedies change how the gradient is taken, and each wraps the one oracle:

    MI  momentum (the rule)               m ← μ m + g / mean|g|
    NI  look ahead                        g read at x' + step μ m
    TI  translation                       g ← W ∗ g, W a Gaussian kernel
    SI  scale                             g ← Σ_i ∇_x' ℓ(s_i(x')), s_i halving the contrast i times
    DI  input diversity                   g read through a random resizing and padding

`travel` composes them for any objective; `ni_fgsm`, `tim`, `dim`, `sim`, `si_ni_ti_dim` are choices of its arguments.
The other two change the objective, which gains terms that read hidden layers:

    TAP   ℓ + λ Σ_k ‖P(A_k(x)) − P(A_k(x'))‖₂² + η Σ |box ∗ (x − x')|,   P(v) = sign(v) |v|^α
    ATA   ℓ + λ Σ_k ‖H_k(x') − H_k(x)‖₂,   H_k the attention map of layer k

Arguments are those of `kit.attacks.gradient`, with the default step eps/steps and the same errors; `layers` are names
of layers; mu and kernel add MI and TI. Terms are sums over features, places and pixels, and one number per image.
"""
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.gradient import _gain, _stride
from kit.core import Ensemble, Trace, ball, cross_entropy, features, generator, per_image, smooth_relu
from kit.core.balls import column
from kit.core.loop import Memory, Oracle, gradient, momentum, optimise, steepest

Objective = Callable[[Tensor, int], Tensor]
RATIO = 330 / 299  # DIM: from 299 pixels up to 330
GREY, BLACK = 0.5, 0.0


# --- how the gradient is taken --------------------------------------------------------------------------------------


def ahead(oracle: Oracle, reach: float | Tensor) -> Oracle:
    """NI: the gradient at v + reach · m, where the momentum is about to lead (it may lie outside the box)."""

    def look(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        return oracle(f, v + column(reach, v) * memory["m"] if "m" in memory else v, memory)

    return look


def smoothed(oracle: Oracle, W: Tensor) -> Oracle:
    """TI: the gradient convolved with W (k, k), channel by channel, with zeros around the image."""

    def convolved(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        value, g = oracle(f, v, memory)
        each = W.to(g).expand(g.shape[1], 1, *W.shape)
        return value, F.conv2d(g, each, padding=W.shape[0] // 2, groups=g.shape[1])

    return convolved


def gaussian(k: int) -> Tensor:
    """The normal density at k points from −3 to 3, times itself, with sum 1 (k, k): σ is (k − 1)/6 pixels."""
    w = torch.exp(-torch.linspace(-3, 3, k).square() / 2) if k > 1 else torch.ones(1)
    return torch.outer(w, w) / w.sum() ** 2


def scaled(oracle: Oracle, copies: int, level: float) -> Oracle:
    """SI: the sum of the gradients through level + (v − level)/2^i, i = 0 … copies − 1; the value is that of i = 0."""

    def paler(f, s: float):
        return lambda u: f(level + (u - level) * s)

    def summed(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        value, g = oracle(f, v, memory)
        for i in range(1, copies):
            g = g + oracle(paler(f, 2.0**-i), v, memory)[1]
        return value, g

    return summed


def diverse(oracle: Oracle, p: float, ratio: float, seed: int) -> Oracle:
    """DI: with probability p the gradient through `resized_and_padded`, drawn at each call for all images alike."""
    draws = generator(seed)

    def through(f, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        coin, *place = torch.rand(4, generator=draws).tolist()
        return oracle((lambda u: f(resized_and_padded(u, ratio, place))) if coin < p else f, v, memory)

    return through


def resized_and_padded(x: Tensor, ratio: float, draws: Sequence[float]) -> Tensor:
    """Resize (nearest) to a size from 1 up to `ratio` times, pad to the latter with grey, and resize back (bilinear).

    Three numbers in [0, 1) choose the size and the offsets. The original pads with 0 on images in [−1, 1], which is
    grey, and does not resize back: its networks take any size.
    """
    h, w = x.shape[2:]
    H, W = round(h * ratio), round(w * ratio)
    rows, columns = h + int(draws[0] * (H - h)), w + int(draws[0] * (W - w))
    top, left = int(draws[1] * (H - rows + 1)), int(draws[2] * (W - columns + 1))
    x = F.interpolate(x, (rows, columns), mode="nearest")
    x = F.pad(x, (left, W - columns - left, top, H - rows - top), value=GREY)
    return F.interpolate(x, (h, w), mode="bilinear", align_corners=False)


def travel(
    objective: Objective, x: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, look_ahead: bool = False, kernel: int = 1, copies: int = 1, towards: str = "grey", p: float = 0.0,
    ratio: float = RATIO, norm: str = "linf", seed: int = 0, trace: Trace | None = None,
) -> Tensor:
    """Maximise objective(x', k) -> (N,) over the ball around x, from x, with the chosen ingredients.

    mu > 0 is MI, look_ahead NI, an odd kernel above 1 TI, copies above 1 SI, p > 0 DI; with none of them (mu = 0) the
    steps are those of `bim`. Draws come from `seed`, the same for every image and every chunk. To be called inside
    `per_image`. Cost: `steps` · `copies` forward and backward passes of the objective.
    """
    if kernel < 1 or kernel % 2 == 0 or kernel // 2 >= min(x.shape[2:]):
        raise ValueError(f"kernel must be odd and fit the image, not {kernel}")
    if copies < 1:
        raise ValueError(f"copies must be 1 or more, not {copies}")
    if towards not in ("grey", "black"):
        raise ValueError(f"towards must be 'grey' or 'black', not {towards!r}")
    if not (0 <= p <= 1 and ratio >= 1):
        raise ValueError(f"p must lie in [0, 1] and ratio be 1 or more, not {p} and {ratio}")
    within = ball(norm, eps)
    stride = _stride(step, eps, steps)
    oracle: Oracle = gradient
    if p > 0:
        oracle = diverse(oracle, p, ratio, seed)
    if copies > 1:
        oracle = scaled(oracle, copies, GREY if towards == "grey" else BLACK)
    if kernel > 1:
        oracle = smoothed(oracle, gaussian(kernel))
    if look_ahead:  # in another norm than l∞, a momentum with |m| = 1 everywhere is as long as a step
        oracle = ahead(oracle, mu * stride / float(within.norm(torch.ones_like(x[:1]))))
    rule = momentum(within, stride, mu) if mu else steepest(within, stride)
    return optimise(
        objective, x, steps=steps, rule=rule, oracle=oracle, project=lambda v: within.project(v, x), trace=trace)


@per_image
def _travel(model, x, y, *, eps, step, target, loss, **ingredients) -> Tensor:
    """`travel` on a loss of the model; per image, and the same in every chunk."""

    def objective(x_adv: Tensor, k: int) -> Tensor:
        return _gain(model(x_adv), y, target, loss)

    return travel(objective, x, eps=eps, step=step, **ingredients)


def _seed(source: torch.Generator | None) -> int:
    source = source or generator()
    return int(torch.randint(2**62, (), generator=source, device=source.device))


def _width(kernel: int | None, x: Tensor, original: int) -> int:
    """The kernel asked for, or in proportion to the original at 299 pixels, but 5 at least: 3 does next to nothing."""
    return kernel or max(5, 2 * (original * min(x.shape[2:]) // (2 * 299)) + 1)


def ni_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Nesterov's momentum: `mi_fgsm` with the gradient read at x' + step · μ · m, where the momentum is leading.

    Cost: `steps` forward and backward passes.
    Source: Lin et al., Nesterov accelerated gradient and scale invariance, ICLR 2020, equations 6 to 8.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, look_ahead=True, norm=norm, target=target,
                   loss=loss, trace=trace)


def tim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, kernel: int | None = None, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy,
    trace: Trace | None = None,
) -> Tensor:
    """Translation invariance (TI-MI-FGSM; with mu = 0 TI-BIM): g ← W ∗ g with a Gaussian W, before the momentum.

    W ∗ g is the gradient averaged over shifted images, if the network does not mind shifts. `kernel` is 15 at 299
    pixels, in proportion for other sizes, but 5 at least (so at 28 and 32 pixels). Cost: `steps` forward and backward
    passes. Source: Dong et al., Evading defenses by translation-invariant attacks, CVPR 2019, equations 5 to 8.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, kernel=_width(kernel, x, 15), norm=norm,
                   target=target, loss=loss, trace=trace)


def dim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, p: float = 0.5, ratio: float = RATIO, norm: str = "linf", target: Tensor | None = None,
    loss=cross_entropy, generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """Input diversity (M-DI²-FGSM; with mu = 0 DI²-FGSM): each gradient with probability p through a random resizing.

    The image is resized by a factor in [1, ratio), padded with grey to `ratio`, and resized back; one draw per step
    serves all images, as in the original, so that none depends on another. Cost: `steps` forward and backward passes.
    Source: Xie et al., Improving transferability with input diversity, CVPR 2019, section 3.3.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, p=p, ratio=ratio, norm=norm, target=target,
                   loss=loss, seed=_seed(generator), trace=trace)


def sim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, copies: int = 5, towards: str = "grey", norm: str = "linf", target: Tensor | None = None,
    loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """Scale invariance (SI-MI-FGSM): the sum of the gradients through `copies` images of halved contrast.

    towards="grey" is ½ + (x' − ½)/2^i, what the original does on images in [−1, 1]; towards="black" is x'/2^i, what the
    formula says on images in [0, 1]. Cost: `steps` · `copies` forward and backward passes.
    Source: Lin et al., Nesterov accelerated gradient and scale invariance, ICLR 2020, section 3.3.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, copies=copies, towards=towards, norm=norm,
                   target=target, loss=loss, trace=trace)


def si_ni_ti_dim(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    mu: float = 1.0, look_ahead: bool = True, kernel: int | None = None, copies: int = 5, towards: str = "grey",
    p: float = 0.5, ratio: float = RATIO, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy,
    generator: torch.Generator | None = None, trace: Trace | None = None,
) -> Tensor:
    """All of them: each scaled copy through its own random resizing, at the point ahead; their sum smoothed.

    look_ahead=False, kernel=1, copies=1 and p=0 leave an ingredient out. `kernel` is 7 at 299 pixels, 5 at least.
    Cost: `steps` · `copies` forward and backward passes. Source: Lin et al., ICLR 2020, section 4.3.
    """
    return _travel(model, x, y, eps=eps, step=step, steps=steps, mu=mu, look_ahead=look_ahead,
                   kernel=_width(kernel, x, 7), copies=copies, towards=towards, p=p, ratio=ratio, norm=norm,
                   target=target, loss=loss, seed=_seed(generator), trace=trace)


# --- what is maximised ----------------------------------------------------------------------------------------------


def blocks(model: nn.Module) -> list[str]:
    """The names of a network's stages (`block1`, … or `layer1`, …); of an ensemble, those of each of its members.

    Raises ValueError for a network that does not name them so.
    """
    if isinstance(model, Ensemble):
        return [f"models.{i}.{name}" for i, member in enumerate(model.models) for name in blocks(member)]
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


def attention_maps(z: Tensor, A: dict[str, Tensor], y: Tensor, create_graph: bool = False) -> dict[str, Tensor]:
    """H_k (N, h, w) = ReLU(Σ_c α_c A_c), α_c = mean over the places of ∂z_y/∂A_c: part of a backward pass."""
    for name, maps in A.items():
        if maps.dim() != 4:
            raise ValueError(f"the layer {name!r} has no feature maps (N, C, h, w): name another in layers")
    score = z.gather(1, y[:, None]).sum()
    slopes = torch.autograd.grad(score, list(A.values()), create_graph=create_graph, retain_graph=True)
    return {name: F.relu(torch.einsum("nc,nchw->nhw", g.mean((2, 3)), maps))
            for (name, maps), g in zip(A.items(), slopes, strict=True)}


@per_image
def attention(model: nn.Module, x: Tensor, y: Tensor, *, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The attention maps H_k^y (N, h, w) of each layer, for the logit of y: Grad-CAM before it is resized.

    Cost: one forward pass and the backward pass from the logits to the first of the layers.
    """
    with features(model, layers or middle(model)) as A:
        z = model(x.detach().requires_grad_())
    return {name: H.detach() for name, H in attention_maps(z, A, y).items()}


def _climb(model, x, y, terms, *, layers, target, loss, **options) -> Tensor:
    """`bim` on the loss plus terms; a term is made by term(z, A, x) on the clean image, and read as term(z, A, x')."""

    def forward(v: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        with features(model, layers) as A:
            z = model(v)
        return z, dict(A), v

    added = [make(*forward(x.detach().requires_grad_())) for make in terms]

    def objective(x_adv: Tensor, k: int) -> Tensor:
        z, A, v = forward(x_adv)
        value = _gain(z, y, target, loss)
        for term in added:
            value = value + term(z, A, v)
        return value

    return travel(objective, x.detach(), **options)


def _distance(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.flatten(1), dim=1)


def _attention_term(y: Tensor, lam: float, layers: Sequence[str], create_graph: bool):
    """λ Σ_k ‖H_k^y(x') − H_k^y(x)‖₂"""

    def at(z, A, x):
        return attention_maps(z, {name: A[name] for name in layers}, y, create_graph)

    def make(z, A, x):
        clean = {name: H.detach() for name, H in at(z, A, x).items()}
        return lambda z, A, x_adv: lam * sum(_distance(H - clean[name]) for name, H in at(z, A, x_adv).items())

    return make


def _feature_term(lam: float, eta: float, alpha: float, s: int, layers: Sequence[str]):
    """λ Σ_k ‖P(A_k(x)) − P(A_k(x'))‖₂² + η Σ_i |(x − x' averaged over s×s)_i|"""

    def P(v):
        return v.sign() * (v.abs() + 1e-12) ** alpha  # the slope of |v|^α at 0 is infinite

    def make(z, A, x):
        x, clean = x.detach(), {name: P(A[name]).detach() for name in layers}

        def term(z, A, x_adv):
            apart = sum((clean[name] - P(A[name])).square().flatten(1).sum(1) for name in layers)
            return lam * apart + eta * F.avg_pool2d(x - x_adv, s, 1, s // 2).abs().flatten(1).sum(1)

        return term

    return make


@per_image
def tap(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    lam: float = 0.005, eta: float = 0.01, alpha: float = 0.5, s: int = 3, layers: Sequence[str] | None = None,
    mu: float = 0.0, kernel: int = 1, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy,
    trace: Trace | None = None,
) -> Tensor:
    """Transferable adversarial perturbations: drive the features of every stage apart, by a smooth perturbation.

        max ℓ(f(x'), y) + λ Σ_k ‖P(A_k(x)) − P(A_k(x'))‖₂² + η Σ_i |(x − x' averaged over s×s)_i|

    with P(v) = sign(v)(|v| + 1e-12)^α. The default `layers` are all stages (`blocks`); the box runs over every pixel.
    With lam = eta = 0 it is `bim`. Cost: `steps` forward and backward passes and one forward pass.
    Source: Zhou et al., Transferable adversarial perturbations, ECCV 2018; the constants are those of its
    reimplementations, which agree.
    """
    layers = layers or blocks(model)
    return _climb(model, x, y, [_feature_term(lam, eta, alpha, s, layers)], layers=layers, eps=eps, step=step,
                  steps=steps, mu=mu, kernel=kernel, norm=norm, target=target, loss=loss, trace=trace)


@per_image
def ata(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    lam: float = 1.0, layers: Sequence[str] | None = None, create_graph: bool = False, smooth: float | None = None,
    mu: float = 0.0, kernel: int = 1, norm: str = "linf", target: Tensor | None = None, loss=cross_entropy,
    trace: Trace | None = None,
) -> Tensor:
    """Attention-guided transfer attack: raise the loss, and change what the network attends to.

        max ℓ(f(x'), y) + λ Σ_k ‖H_k^y(x') − H_k^y(x)‖₂
        H_k^y = ReLU(Σ_c α_c A_c),   α_c = 1/(h w) Σ_mn ∂f(x)[y]/∂A_c[m, n],   f(x)[y] the logit

    The default `layers` are the stage in the middle (`block2` of the families). A targeted attack keeps the attention
    of y, and maximises −ℓ(f(x'), target). With create_graph, α is differentiated too; in a network of ReLUs that
    changes nothing, since α is constant where the ReLUs do not switch, unless smooth = τ lets them differentiate
    smoothly (`kit.core.smooth_relu`; for the loss too, so compare with lam = 0 and the same τ). With lam = 0 and no
    smooth it is `bim`, bit for bit.
    Cost: `steps` forward and backward passes and as many backward passes from the logits to the layers, and both once.
    Source: Wu et al., Boosting the transferability of adversarial samples via attention, CVPR 2020, algorithm 1.
    """
    layers = layers or middle(model)
    with smooth_relu(smooth) if smooth else nullcontext():
        return _climb(model, x, y, [_attention_term(y, lam, layers, create_graph)], layers=layers, eps=eps, step=step,
                      steps=steps, mu=mu, kernel=kernel, norm=norm, target=target, loss=loss, trace=trace)


@per_image
def tap_ata(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, step: float | Tensor | None = None, steps: int = 10,
    lam: float = 1.0, layers: Sequence[str] | None = None, lam_tap: float = 0.005, eta: float = 0.01,
    alpha: float = 0.5, s: int = 3, layers_tap: Sequence[str] | None = None, mu: float = 0.0, kernel: int = 1,
    norm: str = "linf", target: Tensor | None = None, loss=cross_entropy, trace: Trace | None = None,
) -> Tensor:
    """TAP with ATA's term added to its objective; lam and layers are ATA's. With lam = 0 it is `tap`.

    Cost: that of `ata`, and one forward pass. Source: Wu et al., CVPR 2020; the thesis, "Complementary effect".
    """
    layers, layers_tap = layers or middle(model), layers_tap or blocks(model)
    terms = [_feature_term(lam_tap, eta, alpha, s, layers_tap), _attention_term(y, lam, layers, False)]
    return _climb(model, x, y, terms, layers=sorted({*layers, *layers_tap}), eps=eps, step=step, steps=steps, mu=mu,
                  kernel=kernel, norm=norm, target=target, loss=loss, trace=trace)
