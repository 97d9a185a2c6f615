"""Layer-wise relevance propagation: share the score among the units of each layer in turn, down to the pixels.

    R_k  relevance of a unit of the layer above      z_k = Σ_j x_j w_jk + b_k      R_j = Σ_k (share of j in k) R_k

A rule says what the share is. All shares of k but the bias's own are handed down, so that the sum stays the same from
layer to layer: conservation. What the bias and the stabiliser ε take is lost to the pixels, as in the papers;
`relevance_lost` says how much, layer by layer.

The model runs once (`kit.explain.trace` notes the functions that it calls); then the relevance goes back over these
notes. What has no rule raises a ValueError that names it; and, as relevance is plain arithmetic on activations, it can
be differentiated (create_graph).
"""
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kit.core import fold_batch_norm, per_image
from kit.explain.gradient import score
from kit.explain.trace import AVERAGES, MOVES, Linear, Notes, pull, weighted

Rule = Callable[[Linear, Tensor], Tensor]

# On a CPU a torch.where or a bool mask costs as much as a convolution, and so does memory that was not used before.
# So the arithmetic below has no masks, and works in place where a tensor is its own.
TINY = 1e-30  # makes 0/0 zero


def epsilon(eps: float = 1e-6) -> Rule:
    """LRP-ε: R_j = Σ_k x_j w_jk / (z_k + ε sign z_k) R_k (Bach et al. 2015, equation 58).

    ε is `eps` times the image's mean |z_k|, so that it means the same in every layer.
    """

    def rule(step: Linear, R: Tensor) -> Tensor:
        size = step.z.detach().abs().mean(tuple(range(1, step.z.dim())), keepdim=True)
        return step.shared(R / torch.copysign(eps * size + TINY, step.z.detach()).add_(step.z))

    return rule


def gamma(gamma: float = 0.25) -> Rule:
    """LRP-γ: with z_jk = x_j w_jk, R_j = Σ_k (z_jk + γ z_jk⁺) / (z_k + γ z_k⁺) R_k, where z_k⁺ sums the positive z_jk.

    Montavon et al. 2019, section 10.2.1, write it for x ≥ 0 and z_k > 0. Where z_k < 0 the negative z_jk are favoured
    in the same way, so that the divisor is never near zero.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be zero or more, not {gamma}")

    def rule(step: Linear, R: Tensor) -> Tensor:
        plus, minus = step.weight + gamma * step.weight.clamp(min=0), step.weight + gamma * step.weight.clamp(max=0)
        z_plus = _part_up(step, plus, minus, None if step.bias is None else step.bias + gamma * step.bias.clamp(min=0))
        R_plus = _where_positive(R, step.z)
        R_minus = R - R_plus
        if not _any(R_minus):  # a ReLU follows
            return _part_down(step, R_plus.div_(z_plus.add_(TINY)), plus, minus)
        z_minus = ((2 + gamma) * step.z).sub_(z_plus)  # z + γ z⁻, since z⁺ + z⁻ = z
        found = _part_down(step, R_plus.div_(z_plus.add_(TINY)), plus, minus)
        return found.add_(_part_down(step, R_minus.div_(z_minus.sub_(TINY)), minus, plus))

    return rule


def alpha_beta(alpha: float = 2.0, beta: float | None = None) -> Rule:
    """LRP-αβ: R_j = Σ_k (α z_jk⁺ / z_k⁺ − β z_jk⁻ / z_k⁻) R_k with α − β = 1 (Bach et al. 2015, equation 60).

    z_k⁺ and z_k⁻ sum the positive and the negative z_jk = x_j w_jk, the bias with them. A unit that has only one of
    the two hands all its relevance to that one, so that nothing is lost there.
    """
    beta = alpha - 1 if beta is None else beta
    if alpha < 1 or abs(alpha - beta - 1) > 1e-6:
        raise ValueError(f"alpha − beta must be 1 with alpha ≥ 1, not {alpha} − {beta}")

    def rule(step: Linear, R: Tensor) -> Tensor:
        plus, minus = step.weight.clamp(min=0), step.weight.clamp(max=0)
        z_plus = _part_up(step, plus, minus, None if step.bias is None else step.bias.clamp(min=0))
        z_minus = step.z - z_plus
        R_plus = _where_positive(R, z_plus)
        R_both = _where_positive(R_plus, -1e-5 * z_plus - z_minus)  # what is smaller is the rounding of two sums
        R_minus = R - R_plus - beta * R_both
        found = _part_down(step, R_plus.add_((alpha - 1) * R_both).div_(z_plus.add_(TINY)), plus, minus)
        return found.add_(_part_down(step, R_minus.div_(z_minus.sub_(TINY)), minus, plus))

    return rule


def zplus() -> Rule:
    """LRP-z⁺: R_j = Σ_k z_jk⁺ / z_k⁺ R_k, which is αβ with α = 1 (Montavon et al. 2017, deep Taylor decomposition)."""
    return alpha_beta(1.0, 0.0)


def flat() -> Rule:
    """LRP-flat: each input of k gets the same share, whatever it is (Lapuschkin et al. 2019)."""

    def rule(step: Linear, R: Tensor) -> Tensor:
        ones = torch.ones_like(step.weight)
        return step.down(R / step.up(torch.ones_like(step.x), ones), ones)

    return rule


def zbox() -> Rule:
    """LRP-z^B, for the layer that sees the pixels, which lie between l and h (Montavon et al. 2017, section 4.2):

    R_i = Σ_k (x_i w_ik − l_i w_ik⁺ − h_i w_ik⁻) / Σ_i (the same) R_k. The bias takes nothing. l and h are 0 and 1 as
    the model's normalisation maps them.
    """

    def rule(step: Linear, R: Tensor) -> Tensor:
        if step.box is None:
            raise ValueError('the z^B rule is for the first weighted layer, which sees the pixels: use it as "first"')
        low, high = step.box
        plus, minus = step.weight.clamp(min=0), step.weight.clamp(max=0)
        s = R / (step.z - (step.up(low, plus, step.bias) + step.up(high, minus))).add_(TINY)
        if step.x.shape[1] == step.weight.shape[1]:  # in one go, since a convolution to few channels is slow
            all_down, plus_down = step.down(s, torch.cat([step.weight, plus], 1)).chunk(2, 1)
        else:  # grouped
            all_down, plus_down = step.down(s, step.weight), step.down(s, plus)
        return (step.x - high) * all_down + (high - low) * plus_down

    return rule


def _any(R: Tensor) -> bool:
    """Whether an entry is not zero."""
    return bool(R.detach().amin() != 0) or bool(R.detach().amax() != 0)


def _where_positive(R: Tensor, z: Tensor) -> Tensor:
    """R where z > 0, else 0."""
    return torch.ops.aten.threshold_backward(R, z, 0)


def _part_up(step: Linear, for_plus: Tensor, for_minus: Tensor, bias: Tensor | None) -> Tensor:
    """W₊ x⁺ + W₋ x⁻ + b, the second only where an x is negative."""
    if not step.signed:
        return step.up(step.x, for_plus, bias)
    return step.up(step.x.clamp(min=0), for_plus, bias) + step.up(step.x.clamp(max=0), for_minus)


def _part_down(step: Linear, s: Tensor, for_plus: Tensor, for_minus: Tensor) -> Tensor:
    """x⁺ W₊ᵀ s + x⁻ W₋ᵀ s; where nothing is to be handed down, nothing is computed."""
    if not _any(s):
        return torch.zeros_like(step.x)
    if not step.signed:
        return step.down(s, for_plus).mul_(step.x)
    return step.down(s, for_plus).mul_(step.x.clamp(min=0)).add_(step.down(s, for_minus).mul_(step.x.clamp(max=0)))


STANDARD: dict[str, Rule] = {"first": zbox(), "conv": gamma(0.25), "linear": epsilon(), "add": epsilon()}
Rules = Rule | Mapping[str, Rule]


class _Composite:
    """Which rule a step gets: the longest layer name that begins its own; else "first", else its kind; else ε."""

    def __init__(self, rules: Rules, model: nn.Module):
        self.rules = rules
        self.names = {id(p): n.rpartition(".")[0] for n, p in model.named_parameters()}
        if isinstance(rules, Mapping):
            layers = set(self.names.values())
            for key in rules:
                if key not in STANDARD and not any(_begins(name, key) for name in layers):
                    known = ", ".join(sorted(layers))
                    raise ValueError(f"no weighted layer is called {key!r}: use first, conv, linear, add, or {known}")

    def rule(self, kind: str, step: Linear) -> Rule:
        if not isinstance(self.rules, Mapping):
            return self.rules
        name = self.names.get(id(step.weight), "")
        own = [key for key in self.rules if key not in STANDARD and _begins(name, key)]
        if own:
            return self.rules[max(own, key=len)]
        if step.box is not None and "first" in self.rules:
            return self.rules["first"]
        return self.rules.get(kind, epsilon())


def _begins(name: str, key: str) -> bool:
    return name == key or name.startswith(key + ".")


def _propagate(model, x, target, rules, create_graph, lost: dict[str, Tensor] | None = None) -> Tensor:
    """The relevance of x (N, C, H, W); in `lost`, what each weighted step took of it for its bias and ε, (N,)."""
    composite = _Composite(rules, model)
    with torch.set_grad_enabled(create_graph):
        with Notes(x) as mode:
            z = model(x)
        top = score(z, target)
        target = z.detach().argmax(1) if target is None else target
        R = {id(z): torch.zeros_like(z).scatter(1, target[:, None], top[:, None])}
        for note in reversed(mode.notes):
            above = R.pop(id(note.output), None)
            if above is None:
                continue
            if found := weighted(note):
                kind, step = found
                step.box = None if kind == "add" else mode.box.get(id(note.inputs[0]))
                below = composite.rule(kind, step)(step, above)
                parts = list(below) if kind == "add" else [below]
                if lost is not None:
                    name = composite.names.get(id(step.weight), f"addition {len(lost)}")
                    lost[name] = lost.get(name, 0) + _total(above) - sum(_total(part) for part in parts)
            elif note.name in AVERAGES:
                empty = (note.output == 0) & (above != 0)  # shared evenly, since there is nothing to weigh it by
                parts = [note.inputs[0] * pull(note, above * ~empty / (note.output + TINY))[0]]
                if bool(empty.any()):
                    parts = [parts[0] + pull(note, above * empty)[0]]
            elif note.name in MOVES:
                parts = pull(note, above)
            else:
                parts = [above]
            for i, part in zip(note.inputs, parts, strict=True):
                R[id(i)] = R[id(i)] + part if id(i) in R else part
    if id(x) not in R:
        raise ValueError("no relevance reached the images: the model's answer does not depend on them")
    return R[id(x)]


def _total(R: Tensor) -> Tensor:
    return R.flatten(1).sum(1)


def _folded(model: nn.Module) -> nn.Module:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    return fold_batch_norm(model) if any(isinstance(m, norms) for m in model.modules()) else model


def lrp(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, rules: Rules = STANDARD, create_graph: bool = False,
) -> Tensor:
    """Layer-wise relevance propagation: R (N, H, W), the sum over the channels of the pixels' relevance. Signed.

    The relevance starts as the logit z_c of the target, or of the predicted class. `rules` is one rule for all steps,
    or a composite: rules by "first" (the layer that sees the pixels), "conv", "linear", "add", or by the name of a
    layer or block, where the most exact one wins; what is not named gets ε. The default is z^B, γ, ε from the pixels
    up, and ε for additions. ReLU and its like hand relevance on, a max-pooling to the winner, average poolings by ε.
    Batch norm is folded first.

    Conservation: Σ_pixels R = z_c − what biases and stabilisers took (see `relevance_lost`).
    Cost: one forward pass and one backward pass for ε; γ needs one more forward pass, and a second backward pass
    through the layers that no ReLU follows, whose z_k have both signs. Raises ValueError for an operation without a
    rule.
    Source: Bach et al., PLoS ONE 2015; Montavon et al., Layer-wise relevance propagation: an overview, 2019.
    """
    return _lrp(_folded(model), x, target, rules=rules, create_graph=create_graph)


@per_image
def _lrp(model, x, target=None, *, rules, create_graph):
    return _propagate(model, x, target, rules, create_graph).sum(1)


def relevance_lost(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, rules: Rules = STANDARD,
) -> dict[str, Tensor]:
    """What each weighted layer or addition kept of the relevance, for its bias and stabiliser: name -> (N,), top first.

    Its sum over the layers and the sum of the pixels' relevance make the logit. Cost and errors as for `lrp`.
    """
    return _lost(_folded(model), x, target, rules=rules)


@per_image
def _lost(model, x, target=None, *, rules):
    lost: dict[str, Tensor] = {}
    _propagate(model, x, target, rules, False, lost)
    return lost
