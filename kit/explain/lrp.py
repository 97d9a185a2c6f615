"""Layer-wise relevance propagation: share the score among the units of each layer in turn, down to the pixels.

    R_k  relevance of a unit of the layer above      z_k = Σ_j x_j w_jk + b_k      R_j = Σ_k (share of j in k) R_k

A rule says what the share is. All shares of k but the bias's own are handed down, so that the sum stays the same from
layer to layer: conservation. What the bias and the stabiliser ε take is lost to the pixels, as in the papers;
`relevance_lost` says how much, layer by layer.

The model runs once (`kit.core.operations` lists the functions that it calls); then the relevance goes back over this
list. What has no rule raises a ValueError that names it; and, as relevance is plain arithmetic on activations, it can
be differentiated (create_graph).
"""
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kit.core import operations, per_image
from kit.core.folding import without_norms
from kit.core.network import Operation, layers_named
from kit.core.steps import ADDITIONS, Linear, tiny, weighted, where_positive
from kit.explain.gradient import score

Rule = Callable[[Linear, Tensor], Any]


def epsilon(eps: float = 1e-6) -> Rule:
    """LRP-ε: R_j = Σ_k x_j w_jk / (z_k + ε sign z_k) R_k (Bach et al. 2015, equation 58).

    ε is `eps` times the image's mean |z_k|, so that it means the same in every layer.
    """

    def rule(step: Linear, R: Tensor) -> Any:
        z = step.z.detach()
        size = z.abs().mean(tuple(range(1, z.dim())), keepdim=True)
        return step.shared(R / torch.copysign(eps * size + tiny(z), z).add_(step.z))

    return rule


def gamma(gamma: float = 0.25) -> Rule:
    """LRP-γ: with z_jk = x_j w_jk, R_j = Σ_k (z_jk + γ z_jk⁺) / (z_k + γ z_k⁺) R_k, where z_k⁺ sums the positive z_jk.

    Montavon et al. 2019, section 10.2.1, write it for x ≥ 0 and z_k > 0. Where z_k < 0 the negative z_jk are favoured
    in the same way, so that the divisor is never near zero.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be zero or more, not {gamma}")

    def rule(step: Linear, R: Tensor) -> Tensor:
        favoured, other = step.parts(1 + gamma, 1)
        R_favoured = where_positive(R, step.z)
        return step.hand_down((favoured, R_favoured), (other, R - R_favoured))

    return rule


def alpha_beta(alpha: float = 2.0, beta: float | None = None) -> Rule:
    """LRP-αβ: R_j = Σ_k (α z_jk⁺ / z_k⁺ − β z_jk⁻ / z_k⁻) R_k with α − β = 1 (Bach et al. 2015, equation 60).

    z_k⁺ and z_k⁻ sum the positive and the negative z_jk = x_j w_jk, the bias with them. A unit that has only one of
    the two hands all its relevance to that one, so that nothing is lost there.
    """
    beta = alpha - 1 if beta is None else beta
    if not alpha >= 1 or not abs(alpha - beta - 1) <= 1e-6:
        raise ValueError(f"alpha − beta must be 1 with alpha ≥ 1, not {alpha} − {beta}")

    def rule(step: Linear, R: Tensor) -> Tensor:
        plus, minus = step.parts(1, 0)
        R_plus = where_positive(R, plus.z)
        R_both = where_positive(R_plus, -1e-5 * plus.z - minus.z)  # what is smaller is the rounding of two sums
        return step.hand_down((plus, R_plus + beta * R_both), (minus, R - R_plus - beta * R_both))

    return rule


def zplus() -> Rule:
    """LRP-z⁺: R_j = Σ_k z_jk⁺ / z_k⁺ R_k, which is αβ with α = 1 (Montavon et al. 2017, deep Taylor decomposition)."""
    return alpha_beta(1.0, 0.0)


def flat() -> Rule:
    """LRP-flat: each input of k gets the same share, whatever it is (Lapuschkin et al. 2019)."""

    def rule(step: Linear, R: Tensor) -> Tensor:
        ones = torch.ones_like(step.weight)
        return step.down(R / step.up(torch.ones_like(step.x), ones), ones)[0]

    return rule


def zbox() -> Rule:
    """LRP-z^B, for the layer that sees the pixels, which lie between l and h (Montavon et al. 2017, section 4.2):

    R_i = Σ_k (x_i w_ik − l_i w_ik⁺ − h_i w_ik⁻) / Σ_i (the same) R_k. The bias takes nothing. l and h are 0 and 1 as
    the model's normalisation maps them.
    """

    def rule(step: Linear, R: Tensor) -> Tensor:
        if step.range is None:
            raise ValueError('the z^B rule is for the first weighted layer, which sees the pixels: use it as "first"')
        low, high = step.range
        plus, minus = step.weight.clamp(min=0), step.weight.clamp(max=0)
        s = R / (step.z - (step.up(low, plus, step.bias) + step.up(high, minus))).add_(tiny(R))
        all_down, plus_down = step.down(s, step.weight, plus)
        return (step.x - high) * all_down + (high - low) * plus_down

    return rule


# What the book's networks and torchvision's plain and residual ones call, by the name of the function.
ACTIVATIONS = {"relu", "relu6", "hardtanh", "leaky_relu", "tanh", "dropout", "contiguous", "clone", "to", "float"}
MOVES = {
    "flatten", "unflatten", "reshape", "view", "permute", "transpose", "movedim", "squeeze", "unsqueeze", "pad",
    "getitem", "narrow", "select", "flip", "roll", "pixel_shuffle", "pixel_unshuffle",
    "cat", "concat", "stack", "repeat", "expand", "tile", "max_pool2d", "adaptive_max_pool2d",
}
AVERAGES = {"avg_pool2d", "adaptive_avg_pool2d", "mean"}
SHIFTS, SCALINGS = {"sub", "isub"}, {"mul", "rmul", "imul", "div", "truediv", "itruediv"}
SUPPORTED = "convolution, linear, pooling, ReLU and its like, flatten, slicing, padding, addition, concatenation"


def pixel_ranges(x: Tensor, listed: list[Operation]) -> dict[int, tuple[Tensor, Tensor]]:
    """The least and greatest values of what still are pixels, by id: 0 and 1, as normalisation and moves map them."""
    ranges = {id(x): (torch.zeros_like(x[:1]), torch.ones_like(x[:1]))}
    for op in listed:
        if op.name in SHIFTS | ADDITIONS | SCALINGS | MOVES and op.alone and id(op.inputs[0]) in ranges:
            ends = [op.of([end]) for end in ranges[id(op.inputs[0])]]
            ranges[id(op.output)] = (torch.minimum(*ends), torch.maximum(*ends))
    return ranges


def check_rule(op: Operation, step: Linear | None, pixels: bool) -> None:
    """Refuse an operation that relevance is not handed down through."""
    fine = step is not None or isinstance(op.output, Tensor) and (
        op.name in ACTIVATIONS | AVERAGES and op.alone
        or op.name in MOVES and all(i.is_floating_point() for i in op.inputs)
        or op.name in SCALINGS and op.alone and op.args[0] is op.inputs[0]
        or op.name in SHIFTS | ADDITIONS and op.alone and pixels and op.kwargs.get("alpha", 1) == 1
    )
    if not fine:
        raise ValueError(f"LRP has no rule for {op.name} as this model uses it; its rules: {SUPPORTED}")


STANDARD: dict[str, Rule] = {"first": zbox(), "conv": gamma(0.25), "linear": epsilon(), "add": epsilon()}
Rules = Rule | Mapping[str, Rule]


class _Composite:
    """Which rule a step gets: the longest layer name that begins its own; else "first", else its kind; else ε."""

    def __init__(self, rules: Rules, model: nn.Module):
        self.rules = rules
        if isinstance(rules, Mapping):
            layers_named(model, [])
            layers = {n.rpartition(".")[0] for n, _ in model.named_parameters()}
            for key in rules:
                if key not in STANDARD and not any(_begins(name, key) for name in layers):
                    known = ", ".join(sorted(layers))
                    raise ValueError(f"no weighted layer is called {key!r}: use first, conv, linear, add, or {known}")

    def rule(self, step: Linear) -> Rule:
        if not isinstance(self.rules, Mapping):
            return self.rules
        named = step.kind != "add"  # an addition has no weights that a name could mean
        own = [key for key in self.rules if key not in STANDARD and named and _begins(step.layer, key)]
        if own:
            return self.rules[max(own, key=len)]
        if step.range is not None and "first" in self.rules:
            return self.rules["first"]
        return self.rules.get(step.kind, epsilon())


def _begins(name: str, key: str) -> bool:
    return name == key or name.startswith(key + ".")


def _propagate(model, x, target, rules, create_graph, lost: dict[str, Tensor] | None = None) -> Tensor:
    """The relevance of x (N, C, H, W); in `lost`, what each weighted step took of it for its bias and ε, (N,)."""
    composite = _Composite(rules, model)
    with torch.set_grad_enabled(create_graph):
        z, listed = operations(model, x)
        listed = without_norms(listed)
        ranges, steps = pixel_ranges(x, listed), [weighted(op) for op in listed]
        for op, step in zip(listed, steps, strict=True):
            check_rule(op, step, id(op.inputs[0]) in ranges)
        top = score(z, target)
        target = z.detach().argmax(1) if target is None else target
        R = {id(z): torch.zeros_like(z).scatter(1, target[:, None], top[:, None])}
        for op, step in zip(reversed(listed), reversed(steps), strict=True):
            above = R.pop(id(op.output), None)
            if above is None:
                continue
            inputs = op.inputs if step is None else step.inputs
            if step is not None:
                step.range = ranges.get(id(inputs[0])) if step.kind != "add" else None
                below = composite.rule(step)(step, above)
                parts = list(below) if step.kind == "add" else [below]
                if lost is not None:
                    name = step.layer if step.kind != "add" else f"addition {len(lost)}"
                    lost[name] = lost.get(name, 0) + _total(above) - sum(_total(part) for part in parts)
            elif op.name in AVERAGES:
                parts = [_averaged(op, above)]
            elif op.name in MOVES:
                parts = op.pulled(above)
            else:
                parts = [above]
            for i, part in zip(inputs, parts, strict=True):
                R[id(i)] = R[id(i)] + part if id(i) in R else part
    if id(x) not in R:
        raise ValueError("no relevance reached the images: the model's answer does not depend on them")
    return R[id(x)]


def _averaged(op: Operation, R: Tensor) -> Tensor:
    """Shared by what each input adds to an average; evenly where that is zero, with nothing to weigh it by."""
    empty = (op.output == 0) & (R != 0)
    below = op.inputs[0] * op.pulled(R * ~empty / (op.output + tiny(R)))[0]
    return below + op.pulled(R * empty)[0] if bool(empty.any()) else below


def _total(R: Tensor) -> Tensor:
    return R.flatten(1).sum(1)


@per_image
def lrp(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, rules: Rules = STANDARD, create_graph: bool = False,
) -> Tensor:
    """Layer-wise relevance propagation: R (N, H, W), the sum over the channels of the pixels' relevance. Signed.

    The relevance starts as the logit z_c of the target, or of the predicted class. `rules` is one rule for all steps,
    or a composite: rules by "first" (the layer that sees the pixels), "conv", "linear", "add", or by the name of a
    layer or block, where the most exact one wins; what is not named gets ε. The default is z^B, γ, ε from the pixels
    up, and ε for additions. ReLU and its like hand relevance on, a max-pooling to the winner, average poolings by ε.
    Batch norm is folded into the layer before it.

    Conservation: Σ_pixels R = z_c − what biases and stabilisers took (see `relevance_lost`).
    Cost: one forward pass and one backward pass for ε; γ needs one more forward pass, and a second backward pass
    through the layers that no ReLU follows, whose z_k have both signs; and a pass of a single image, to compare.
    Raises ValueError for an operation without a rule, and for what `kit.core.operations` refuses.
    Source: Bach et al., PLoS ONE 2015; Montavon et al., Layer-wise relevance propagation: an overview, 2019.
    """
    return _propagate(model, x, target, rules, create_graph).sum(1)


@per_image
def relevance_lost(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, rules: Rules = STANDARD,
) -> dict[str, Tensor]:
    """What each weighted layer or addition kept of the relevance, for its bias and stabiliser: name -> (N,), top first.

    Its sum over the layers and the sum of the pixels' relevance make the logit. Cost and errors as for `lrp`.
    """
    lost: dict[str, Tensor] = {}
    _propagate(model, x, target, rules, False, lost)
    return lost
