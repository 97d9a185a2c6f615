"""Is every image of a ball classified alike? Complete verification, image by image.

    safe:    z_y(x') > z_k(x') for all k ≠ y and all x' with ‖x' − x‖∞ ≤ eps and 0 ≤ x' ≤ 1
    unsafe:  one x' where it is not so
"""
from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from kit.certify.verify.branching import search
from kit.certify.verify.chain import Chain, chain
from kit.certify.verify.linear import hidden_bounds, outputs_below
from kit.core import ball, check_images, check_settings, per_image

SAFE, UNKNOWN, UNSAFE = 1, 0, -1


@per_image
def verify(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, max_nodes: int = 2000, seconds: float = math.inf,
    split: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(1 safe, −1 unsafe, 0 unknown (N,), for an unsafe image another class's image in the ball, else x (N, C, H, W)).

    An image that is misclassified is unsafe, and is its own example. The network is verified in float64, as the
    affine maps and ReLUs that its weights stand for; whatever x's dtype, an example is returned in it, and where
    rounding it to that dtype takes the error away, the answer is unknown. A budget that is spent (`max_nodes` parts
    bounded for a class, or `seconds` for an image) gives unknown.

    Raises ValueError for a network with branches, max-pooling, or layers too large for a matrix (`chain`), and for
    an eps above 1.
    Cost: for each class that is not excluded at once, branch and bound: exponential in the undecided ReLUs at worst.
    Source: Bunel et al., Branch and bound for piecewise linear neural network verification, JMLR 2020.
    """
    ball("linf", eps)
    net = chain(model, x)
    answers, examples = [], []
    for i in range(len(x)):
        radius = float(eps[i] if isinstance(eps, Tensor) else eps)
        answer, point = _one(net, x[i].double().flatten(), int(y[i]), radius, max_nodes, seconds, split)
        example = x[i] if point is None else point.view_as(x[i]).to(x)
        if point is not None and int(net(example.double().flatten()[None]).argmax()) == int(y[i]):
            answer, example = UNKNOWN, x[i]
        answers.append(answer)
        examples.append(example)
    return torch.tensor(answers, device=x.device), torch.stack(examples)


def margins(net: Chain, y: int) -> Chain:
    """The chain of z_y − z_k over all k ≠ y."""
    classes = len(net.b[-1])
    C = torch.zeros(classes, classes).to(net.b[-1]) - torch.eye(classes).to(net.b[-1])
    C[:, y] += 1
    others = [k for k in range(classes) if k != y]
    return net.ended(C[others], torch.zeros(classes - 1).to(net.b[-1]))


def around(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The box [x − eps, x + eps] in [0, 1] (d,)."""
    return (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)


def _one(
    net: Chain, x: Tensor, y: int, eps: float, max_nodes: int, seconds: float, split: str
) -> tuple[int, Tensor | None]:
    apart = margins(net, y)
    low, high = around(x, eps)
    lead = apart(x[None])[0]
    if lead.min() <= 0:
        return UNSAFE, x
    start, rounding = time.perf_counter(), apart.rounding(low, high)
    hidden = hidden_bounds(apart, low[None], high[None], rounding)
    excluded = outputs_below(apart, low[None], high[None], hidden).bound[0] > rounding[-1]
    answer, left = SAFE, seconds - (time.perf_counter() - start)
    for k in (k for k in lead.argsort().tolist() if not excluded[k]):
        one = Chain([*apart.W[:-1], apart.W[-1][k : k + 1]], [*apart.b[:-1], apart.b[-1][k : k + 1]])
        found = search(one, low, high, split=split, max_nodes=max_nodes, seconds=left)
        left -= found.seconds
        if found.answer == "unsafe":
            return UNSAFE, found.x
        if found.answer == "unknown":
            answer = UNKNOWN
    return answer, None


def exact_distance(
    model: nn.Module, x: Tensor, y: Tensor, *, largest: float = 0.3, rounds: int = 8, max_nodes: int = 2000,
    seconds: float = math.inf, known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Between which radii an image's nearest error lies in l∞, by bisection over `verify`: both (N,).

    Below the first every image of the ball is classified as y; at the second there is an error, or nothing is known
    (`largest`, where even that is safe, or where the budget was spent). A misclassified image has (0, 0).
    `known` are two such radii (N,) that were found otherwise, by a bound and by an attack: the search begins between
    them, and `largest` is not asked about. Raises ValueError where they contradict each other.
    Cost: `rounds` + 1 calls of `verify`.
    """
    check_settings({"rounds": rounds})
    check_images(x)
    low, high = torch.zeros(len(x), device=x.device).double(), torch.full((len(x),), largest, device=x.device).double()
    radius = high.clone()
    if known is not None:
        low, high = (side.double().clone() for side in known)
        if low.shape != (len(x),) or high.shape != (len(x),) or not bool((low <= high).all()):
            raise ValueError(f"known are two radii (N,) for each of {len(x)} images, the first at most the second")
        high = high.clamp(max=largest)
        low = torch.minimum(low, high)
        radius = (low + high) / 2
    for _ in range(rounds + 1):
        answer, found = verify(model, x, y, eps=radius.to(x), max_nodes=max_nodes, seconds=seconds)
        low = torch.where(answer == SAFE, radius, low)
        size = (found - x).flatten(1).abs().amax(1).double()
        high = torch.where(answer == UNSAFE, size, torch.where(answer == UNKNOWN, radius, high))
        radius = (low + high) / 2
    return torch.minimum(low, high), high
