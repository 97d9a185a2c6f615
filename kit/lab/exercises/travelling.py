"""Transfer attacks: momentum, scaled copies, the transfer rate, attention that falls; and the game of ATTA."""
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.oracles import momentum
from kit.lab.checks import Case, exercise


def momentum_cases(g: torch.Generator) -> Iterator[Case]:
    size = 10.0 ** torch.arange(-2.0, 1.0)[:, None, None, None]  # gradients of unlike lengths
    for mu in (0.9, 0.5):
        yield torch.randn(3, 3, 4, 4, generator=g), size * torch.randn(3, 3, 4, 4, generator=g), mu


def accumulated(m: Tensor, g: Tensor, mu: float) -> Tensor:
    return momentum(lambda f, v, memory: (v, g), mu)(lambda v: v, g, {"m": m})[1]


def lengths(g: Tensor) -> Tensor:
    return g.abs().mean((1, 2, 3), keepdim=True)


exercise(
    "momentum-step",
    "momentum_step(m, g, mu) -> (N, C, H, W), μ m + g / mean|g|, the mean over each image's own values",
    accumulated, momentum_cases,
    [
        ("no-op", lambda m, g, mu: g / lengths(g),
         ["yours forgets the steps before.", "add μ m to the scaled gradient."]),
        ("not scaled", lambda m, g, mu: mu * m + g,
         ["a long gradient drowns the memory, a short one is lost in it.", "divide g by the mean of its |values|."]),
        ("one length for all", lambda m, g, mu: mu * m + g / g.abs().mean(),
         ["what one image adds depends on the others.", "the mean over the axes 1, 2, 3, with keepdim=True."]),
        ("sum for mean", lambda m, g, mu: mu * m + g / g.abs().sum((1, 2, 3), keepdim=True),
         ["the new gradient hardly counts beside m.", "divide by the mean of |g|, not by the sum."]),
        ("l2 for the mean", lambda m, g, mu: mu * m + g / g.flatten(1).norm(dim=1)[:, None, None, None],
         ["yours divides by the Euclidean length.", "MI divides by the mean of |g|."]),
        ("running mean", lambda m, g, mu: mu * m + (1 - mu) * g / lengths(g),
         ["yours is a weighted mean; MI adds.", "no factor 1 − μ before the gradient."]),
        ("sign error", lambda m, g, mu: mu * m - g / lengths(g),
         ["yours goes down the loss.", "the attacker climbs: plus."]),
    ],
)


def fooled_cases(g: torch.Generator) -> Iterator[Case]:
    for rate in (0.6, 0.9):
        own = torch.rand(40, generator=g) < rate
        own[:2] = torch.tensor([True, False])
        others = torch.rand(4, 40, generator=g) < 0.2 + 0.3 * own
        others[:2, 0], others[2, 1] = True, True
        yield own, others


exercise(
    "transfer-ratio",
    "transfer_ratio(own, others) -> the mean fooling rate of the victims over that of the source; own (N,) and "
    "others (V, N) bool: which images fool the source, and which fool each victim",
    lambda own, others: others.float().mean() / own.float().mean(), fooled_cases,
    [
        ("no-op", lambda own, others: others.float().mean(),
         ["that is the victims' fooling rate, without the source.", "divide by own.float().mean()."]),
        ("upside down", lambda own, others: own.float().mean() / others.float().mean(),
         ["yours falls where more images travel.", "the victims' rate is above the line."]),
        ("any victim", lambda own, others: others.any(0).float().mean() / own.float().mean(),
         ["yours counts an image once, however many victims it fools.", "the mean over victims, not `any`."]),
        ("only where the source is fooled", lambda own, others: others[:, own].float().mean(),
         ["an image can fool a victim and not the source.", "each rate over all N images, and then their ratio."]),
        ("difference for ratio", lambda own, others: own.float().mean() - others.float().mean(),
         ["yours is a difference.", "divide the rates."]),
        ("accuracy for the fooling rate",
         lambda own, others: (~others).float().mean() / (~own).float().mean(),
         ["yours counts the images that are still right.", "own and others say which images fool: no `~`."]),
    ],
)


def copies_cases(g: torch.Generator) -> Iterator[Case]:
    for copies in (3, 5):
        yield 0.6 * torch.rand(2, 3, 4, 4, generator=g), copies


def copied(x: Tensor, copies: int, about: Tensor | float = 0.5, first: int = 0) -> Tensor:
    return torch.stack([about + (x - about) / 2**i for i in range(first, first + copies)])


exercise(
    "scaled-copies",
    "scaled_copies(x, copies) -> (copies, N, C, H, W), images in [0, 1] whose contrast to mid-grey ½ is halved "
    "0, 1, …, copies − 1 times",
    copied, copies_cases,
    [
        ("no-op", lambda x, copies: torch.stack([x] * copies),
         ["all your copies are alike.", "copy i has the contrast 1/2^i."]),
        ("towards black", lambda x, copies: copied(x, copies, 0.0),
         ["your copies grow dark.", "½ + (x − ½)/2^i: towards grey."]),
        ("towards the image's mean", lambda x, copies: copied(x, copies, x.mean((1, 2, 3), keepdim=True)),
         ["your copies keep their brightness.", "towards ½, the same for all images."]),
        ("one too far", lambda x, copies: copied(x, copies, first=1),
         ["the image itself is missing.", "halve 0, 1, …, copies − 1 times."]),
        ("divided by the number", lambda x, copies: torch.stack([0.5 + (x - 0.5) / (i + 1) for i in range(copies)]),
         ["your third copy has a third of the contrast.", "halve each time: 1, ½, ¼, and so on."]),
        ("sign error", lambda x, copies: 1 - copied(x, copies),
         ["your copies are negatives.", "½ plus (x − ½)/2^i."]),
    ],
)


def attention_cases(g: torch.Generator) -> Iterator[Case]:
    for _ in range(2):
        yield torch.rand(3, 5, 5, generator=g), torch.rand(3, 5, 5, generator=g)


exercise(
    "attention-fall",
    "attention_fall(before, after) -> (N,), the l2 norm of what falls between two attention maps (N, h, w)",
    lambda before, after: (before - after).relu().flatten(1).norm(dim=1), attention_cases,
    [
        ("no-op", lambda before, after: before.flatten(1).norm(dim=1),
         ["yours reads one map only.", "the difference of the two."]),
        ("both ways", lambda before, after: (after - before).flatten(1).norm(dim=1),
         ["that is ATA's own norm, in which rises count as much.", "set what rises to zero first."]),
        ("sign error", lambda before, after: (after - before).relu().flatten(1).norm(dim=1),
         ["yours measures what rises.", "before − after, and its positive part."]),
        ("squared", lambda before, after: (before - after).relu().square().flatten(1).sum(1),
         ["yours is the square of the norm.", "the root of the sum of squares."]),
        ("mean for sum", lambda before, after: (before - after).relu().square().flatten(1).mean(1).sqrt(),
         ["yours is a root mean square.", "sum over the places."]),
        ("l1 for l2", lambda before, after: (before - after).relu().flatten(1).sum(1),
         ["yours adds up what falls.", "square it, add, take the root."]),
        ("net fall", lambda before, after: (before.flatten(1).norm(dim=1) - after.flatten(1).norm(dim=1)).relu(),
         ["yours compares the maps' sizes: what falls here and rises there cancels.",
          "take the positive part place by place, then the norm."]),
    ],
)


def affine_cases(g: torch.Generator) -> Iterator[Case]:
    for slope in (0.01, 0.3):
        W, b = torch.randn(24, 6, generator=g), torch.randn(24, generator=g)
        one, other = torch.rand(2, 2, 6, generator=g)
        for sign in (1, -1):  # the largest gap is positive for one of the two
            yield two_layers(W, b, slope, sign), one, other


def two_layers(W: Tensor, b: Tensor, slope: float, sign: int) -> Callable[[Tensor], Tensor]:
    return lambda x: sign * F.leaky_relu(F.linear(x, W, b), slope) @ W + 1


def gap(T: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    return T(a) + T(b) - T(torch.zeros_like(a)) - T(a + b)


exercise(
    "affine-gap",
    "affine_gap(T, a, b) -> a number, the largest |T(a) + T(b) − T(0) − T(a + b)|: zero for every affine T",
    lambda T, a, b: gap(T, a, b).abs().amax(), affine_cases,
    [
        ("no-op", lambda T, a, b: torch.tensor(0.0),
         ["yours calls every T affine.", "compute T at a, b, 0 and a + b."]),
        ("linear for affine", lambda T, a, b: (T(a) + T(b) - T(a + b)).abs().amax(),
         ["yours is not zero for a T with a bias.", "take T(0) off."]),
        ("sign error", lambda T, a, b: (T(a) + T(b) + T(0 * a) - T(a + b)).abs().amax(),
         ["T(0) is counted in three of your terms.", "minus T(0)."]),
        ("no absolute value", lambda T, a, b: gap(T, a, b).amax(),
         ["a gap may be negative.", "`abs` before the largest."]),
        ("mean for max", lambda T, a, b: gap(T, a, b).abs().mean(),
         ["yours is the mean gap.", "the largest of all values."]),
        ("the middle for the sum", lambda T, a, b: (T(a) + T(b) - 2 * T((a + b) / 2)).abs().amax(),
         ["yours asks whether the line from a to b is kept straight.", "T(a + b) and T(0)."]),
    ],
)


def through_cases(g: torch.Generator) -> Iterator[Case]:
    for gamma in (1.0, 0.3):
        H = torch.randn(5, 5, generator=g)
        yield _slope(H + H.T, torch.randn(5, generator=g)), torch.randn(5, generator=g), torch.randn(
            5, 5, generator=g), gamma


def _slope(H: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: H @ v + b


exercise(
    "gradient-through",
    "gradient_through(gradient, x, A, gamma) -> (d,), the gradient of ℓ(x) + γ ℓ(A x) by x, for a linear "
    "transformation A (d, d); gradient(v) is that of ℓ at v",
    lambda gradient, x, A, gamma: gradient(x) + gamma * A.T @ gradient(A @ x), through_cases,
    [
        ("no-op", lambda gradient, x, A, gamma: gradient(x),
         ["that is BIM's gradient, with γ = 0.", "add γ times the gradient through A."]),
        ("only through A", lambda gradient, x, A, gamma: A.T @ gradient(A @ x),
         ["the network that sees x itself is forgotten.", "gradient(x) plus γ times yours."]),
        ("not transposed", lambda gradient, x, A, gamma: gradient(x) + gamma * A @ gradient(A @ x),
         ["the chain rule goes back through A.", "A.T @ gradient(A @ x)."]),
        ("straight through", lambda gradient, x, A, gamma: gradient(x) + gamma * gradient(A @ x),
         ["yours takes A for the identity on the way back.", "multiply by A.T."]),
        ("read at x", lambda gradient, x, A, gamma: gradient(x) + gamma * A.T @ gradient(x),
         ["the second network sees A x.", "gradient(A @ x), then back through A."]),
        ("mean for sum", lambda gradient, x, A, gamma: (gradient(x) + gamma * A.T @ gradient(A @ x)) / (1 + gamma),
         ["yours is a weighted mean of the two.", "ℓ(x) + γ ℓ(A x): do not divide."]),
        ("sign error", lambda gradient, x, A, gamma: gradient(x) - gamma * A.T @ gradient(A @ x),
         ["yours helps the network behind A.", "plus γ: both losses are raised."]),
    ],
)


def opponent_cases(g: torch.Generator) -> Iterator[Case]:
    for alpha1, alpha2 in ((0.5, 2.0), (2.0, 0.1)):
        images = [torch.rand(4, 3, 5, 5, generator=g) for _ in range(2)]
        z = [torch.randn(4, 3, generator=g) for _ in range(2)]
        yield z[0], z[1], torch.randint(3, (4,), generator=g), images[0], images[1], alpha1, alpha2


def opponent(
    z_adv: Tensor, z_clean: Tensor, y: Tensor, x_adv: Tensor, seen: Tensor, alpha1: float, alpha2: float,
    first: float = 1.0,
) -> Tensor:
    away = (x_adv - seen).square().flatten(1).sum(1)
    return (first * F.cross_entropy(z_adv, y, reduction="none")
            + alpha1 * F.cross_entropy(z_clean, y, reduction="none") + alpha2 * away)


exercise(
    "opponent-loss",
    "opponent_loss(z_adv, z_clean, y, x_adv, seen, alpha1, alpha2) -> (N,), what T minimises: J(f(T(x')), y) + "
    "α₁ J(f(T(x)), y) + α₂ ‖x' − T(x')‖², for logits z_adv of T(x') and z_clean of T(x), x_adv = x', seen = T(x')",
    opponent, opponent_cases,
    [
        ("no-op", lambda z, c, y, v, s, a1, a2: F.cross_entropy(z, y, reduction="none"),
         ["that is the first of three terms.", "add the clean images' loss and the distance."]),
        ("mean for sum", lambda z, c, y, v, s, a1, a2: opponent(z, c, y, v, s, a1, a2 / v[0].numel()),
         ["on a mean over the pixels α₂ hardly holds T back: it may ruin the image.",
          "sum the squares over channels and pixels."]),
        ("sign error", lambda z, c, y, v, s, a1, a2: opponent(z, c, y, v, s, a1, a2, -1.0),
         ["yours helps the attacker.", "T wants f(T(x')) to be right: plus J."]),
        ("no square", lambda z, c, y, v, s, a1, a2: opponent(z, c, y, v, s, a1, 0.0)
         + a2 * (v - s).flatten(1).norm(dim=1),
         ["yours takes the distance, not its square.", "no root."]),
        ("clean images forgotten", lambda z, c, y, v, s, a1, a2: opponent(z, c, y, v, s, 0.0, a2),
         ["yours lets T change the answers to clean images.", "add α₁ J(f(T(x)), y)."]),
        ("the two α exchanged", lambda z, c, y, v, s, a1, a2: opponent(z, c, y, v, s, a2, a1),
         ["each α is at the other's term.", "α₁ at the clean loss, α₂ at the distance."]),
    ],
)
