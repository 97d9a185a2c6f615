"""Gradient attacks: one step, the flip that a linear model promises, a random start, projected steps, the share."""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kit.core import Linf, generator
from kit.lab.checks import Case, exercise


def step_cases(g: torch.Generator) -> Iterator[Case]:
    for grey in (4, 16, 40):
        x = torch.rand(5, 1, 6, 6, generator=g)
        yield x.where(torch.rand(x.shape, generator=g) > 0.2, x.round()), torch.randn(x.shape, generator=g), grey


def stepped(x: Tensor, gradient: Tensor, grey: float) -> Tensor:
    return Linf.step(x, gradient, grey / 255).clamp(0, 1)


exercise(
    "fgsm-step", "fgsm_step(x, gradient, grey) -> x', one step of `grey` grey levels up the loss, within [0, 1]",
    stepped, step_cases,
    [
        ("no-op", lambda x, gradient, grey: x,
         ["it gives x back as it was.",
          "every pixel should move, by grey/255 at most: x + grey/255 · sign(gradient)."]),
        ("sign error", lambda x, gradient, grey: stepped(x, -gradient, grey),
         ["your step goes down.", "an attacker makes the loss larger: plus the sign of the gradient, not minus."]),
        ("eps in the wrong units", lambda x, gradient, grey: stepped(x, gradient, 255 * grey),
         ["every pixel ends at black or white: in what units is your ε?",
          "pixels lie in [0, 1] and `grey` counts levels of 255: divide by 255."]),
        ("gradient for its sign", lambda x, gradient, grey: (x + grey / 255 * gradient).clamp(0, 1),
         ["your pixels move by different amounts.",
          "in the l∞ ball each pixel may move by ε: take the gradient's sign."]),
        ("no box", lambda x, gradient, grey: x + grey / 255 * gradient.sign(),
         ["some of your pixels are no grey levels any more.", "an image lies in [0, 1]: `.clamp(0, 1)` at the end."]),
    ],
)


def linear_cases(g: torch.Generator) -> Iterator[Case]:
    for d in (3, 20):
        w, x = torch.randn(d, generator=g), torch.rand(8, d, generator=g)
        yield w, -(x @ w).median() - 0.01, x


def flip(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return (x @ w + b).abs() / w.abs().sum()


exercise(
    "fgsm-flip", "fgsm_flip(w, b, x) -> (N,), the least ε at which x + ε·(± sign w) changes the sign of w·x + b",
    flip, linear_cases,
    [
        ("no-op", lambda w, b, x: torch.zeros(len(x)),
         ["an ε of 0 changes nothing.", "by how much does one step of ε move w·x + b? Set that equal to |w·x + b|."]),
        ("l2 norm", lambda w, b, x: (x @ w + b).abs() / w.norm(),
         ["that is the distance in l2; FGSM moves every pixel by ε.",
          "the step changes w·x by ε Σ|w_i|: the dual norm of l∞ is l1."]),
        ("mean for sum", lambda w, b, x: (x @ w + b).abs() / w.abs().mean(),
         ["your ε is as many times too large as there are pixels.", "all pixels push together: Σ|w_i|, not its mean."]),
        ("signed", lambda w, b, x: (x @ w + b) / w.abs().sum(),
         ["some of your radii are negative.", "a distance has no sign: |w·x + b|."]),
        ("no bias", lambda w, b, x: (x @ w).abs() / w.abs().sum(),
         ["your radius does not depend on b.", "what has to be overcome is |w·x + b|."]),
    ],
)


def start_cases(g: torch.Generator) -> Iterator[Case]:
    for low in (0.3, 0.0):
        x = low + 0.05 * torch.rand(6, 3, 24, 24, generator=g)
        yield x, 0.1, generator(int(torch.randint(1000, (), generator=g)))


def spread(v: Tensor, x: Tensor, eps: float, _: torch.Generator) -> Tensor:
    """What can be read off random points: quantiles of δ/ε, the spread over the images."""
    delta = (v - x) / eps
    quantiles = torch.quantile(delta.flatten(), torch.linspace(0, 1, 7))
    return torch.cat([quantiles, delta.std(0).mean()[None]])


def drawn(x: Tensor, source: torch.Generator) -> Tensor:
    return 2 * torch.rand(x.shape, generator=source) - 1


exercise(
    "pgd-start", "pgd_start(x, eps, generator) -> x', uniform in the l∞ ball of radius ε around x, within [0, 1]",
    lambda x, eps, source: Linf(eps).random(x, source), start_cases,
    [
        ("missing random start", lambda x, eps, source: x,
         ["your start is x itself.", "PGD begins at a random point: x + ε·u with u uniform in [−1, 1]."]),
        ("half the ball", lambda x, eps, source: (x + eps * torch.rand(x.shape, generator=source)).clamp(0, 1),
         ["all your pixels get brighter.", "`torch.rand` lies in [0, 1]: 2·rand − 1 lies in [−1, 1]."]),
        ("corners", lambda x, eps, source: (x + eps * drawn(x, source).sign()).clamp(0, 1),
         ["your pixels move by ±ε exactly.", "uniform in the ball, not on its corners: leave the sign out."]),
        ("Gaussian", lambda x, eps, source: (x + eps * torch.randn(x.shape, generator=source)).clamp(0, 1),
         ["some of your pixels are further than ε from x.", "a Gaussian has no bound: draw uniformly from [−ε, ε]."]),
        ("one draw for all", lambda x, eps, source: (x + eps * drawn(x[:1], source)).clamp(0, 1),
         ["all images get the same start.", "draw numbers of the shape of x, not of one image."]),
        ("no box", lambda x, eps, source: x + eps * drawn(x, source),
         ["some of your pixels are below 0 or above 1.", "clamp to [0, 1] after the noise is added."]),
    ],
    reads=spread, atol=0.06, rtol=0.0,
)


def waves(g: torch.Generator, shape: tuple[int, ...]):
    """The gradient of a wavy loss, so that its direction turns on the way; of some values nothing depends."""
    phase, size = 6.28 * torch.rand(shape, generator=g), (torch.rand(shape, generator=g) > 0.1).float()
    return lambda v: size * torch.cos(40 * v + phase)


def bim_cases(g: torch.Generator) -> Iterator[Case]:
    for eps, step, steps in ((0.06, 0.03, 5), (0.2, 0.09, 4)):
        x = torch.rand(4, 1, 5, 5, generator=g)
        yield waves(g, x.shape), x, eps, step, steps


def iterated(gradient, x: Tensor, eps: float, step: float, steps: int, *, sign: int = 1,
             project=Linf.project) -> Tensor:
    v = x
    for _ in range(steps):
        v = project(Linf(eps), v + sign * step * gradient(v).sign(), x)
    return v


exercise(
    "bim", "bim(gradient, x, eps, step, steps) -> x', `steps` times a step of the gradient's sign, then the projection "
    "onto ball and box; gradient(x') is that of the loss",
    iterated, bim_cases,
    [
        ("no-op", lambda gradient, x, eps, step, steps: x,
         ["it gives x back as it was.", "`steps` steps are to be taken."]),
        ("sign error", lambda *a: iterated(*a, sign=-1),
         ["your steps go down.", "the loss is to grow: x' + step · sign(gradient(x'))."]),
        ("one step", lambda gradient, x, eps, step, steps: iterated(gradient, x, eps, step, 1),
         ["that is what one step gives.", "is the `return` inside of the loop, or does every step begin at x again?"]),
        ("one large step", lambda gradient, x, eps, step, steps: iterated(gradient, x, eps, eps, 1),
         ["that is FGSM.", "take `steps` steps of length `step`, and a new gradient before each."]),
        ("no projection", lambda *a: iterated(*a, project=lambda ball, v, x: v.clamp(0, 1)),
         ["some pixels are further than ε from x: is the ball around the x that the attack began with?",
          "after each step: x + clamp(x' − x, −ε, ε)."]),
        ("no box", lambda *a: iterated(*a, project=lambda ball, v, x: x + (v - x).clamp(-ball.eps, ball.eps)),
         ["some pixels are below 0 or above 1.", "clamp to [0, 1] after the projection onto the ball."]),
    ],
)


def answer_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (40, 60):
        y = torch.randint(4, (n,), generator=g)
        z = torch.randn(n, 4, generator=g)
        z[torch.arange(n), y] += 2.0
        yield z, z + torch.randn(n, 4, generator=g), y


def fooled_share(z: Tensor, z_adv: Tensor, y: Tensor) -> Tensor:
    right = z.argmax(1) == y
    return (right & (z_adv.argmax(1) != y)).sum() / right.sum()


exercise(
    "fooled-share", "fooled_share(z, z_adv, y) -> the share, of the images that were right before, that are wrong now",
    fooled_share, answer_cases,
    [
        ("no-op", lambda z, z_adv, y: 0.0, ["nothing is counted.", "count where z's argmax is y and z_adv's is not."]),
        ("counts what was wrong before", lambda z, z_adv, y: (z_adv.argmax(1) != y).float().mean(),
         ["an image that was wrong before is no success of the attack.",
          "count only the images with z.argmax(1) == y, above and below the line."]),
        ("of all images", lambda z, z_adv, y: ((z.argmax(1) == y) & (z_adv.argmax(1) != y)).float().mean(),
         ["of how many images is that the share?", "divide by the number of images that were right before."]),
        ("accuracy", lambda z, z_adv, y: (z_adv.argmax(1) == y).float().mean(),
         ["that is the accuracy under attack.", "an attack succeeds where the answer becomes wrong."]),
        ("what survived", lambda z, z_adv, y: 1 - fooled_share(z, z_adv, y),
         ["that is the share that held.", "count the answers that are wrong now: !=, not ==."]),
    ],
)


def slope_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (4, 7):
        spread = torch.rand(n, 1, 6, 6, generator=g) * torch.rand(n, 1, 1, 1, generator=g)
        yield (spread * torch.randn(n, 3, 6, 6, generator=g),)


def sign_gain(g: Tensor) -> Tensor:
    flat = g.flatten(1)
    return flat.norm(p=1, dim=1) / flat.norm(dim=1)


exercise(
    "sign-gain", "sign_gain(g) -> (N,), how many times farther s = sign g climbs along a gradient g (N, C, H, W) than "
    "random signs do (root mean square of g·s)",
    sign_gain, slope_cases,
    [
        ("no-op", lambda g: g.new_full((len(g),), g[0].numel() ** 0.5),
         ["√d is right only where all |g_i| are equal.",
          "g·sign g is Σ|g_i|; random signs give a root mean square of ‖g‖₂."]),
        ("upside down", lambda g: 1 / sign_gain(g),
         ["yours says that random signs climb farther.", "‖g‖₁ above the line."]),
        ("not the root", lambda g: g.flatten(1).norm(p=1, dim=1) / g.flatten(1).square().sum(1),
         ["yours depends on the scale of g.", "the mean square of g·s is Σ g_i²: take its root."]),
        ("mean for sum", lambda g: g.flatten(1).abs().mean(1) / g.flatten(1).norm(dim=1),
         ["below one: has the sign direction lost?", "all pixels climb together: Σ|g_i|, not its mean."]),
        ("over the batch", lambda g: (g.abs().sum() / g.norm()).expand(len(g)),
         ["it says the same of every image.", "norms of each image: flatten(1), then dim=1."]),
    ],
)


def logit_cases(g: torch.Generator) -> Iterator[Case]:
    for n, k in ((12, 4), (20, 10)):
        z = 2 * torch.randn(n, k, generator=g)
        yield z, z.argmax(1).where(torch.rand(n, generator=g) < 0.7, torch.randint(k, (n,), generator=g))


def others(z: Tensor, y: Tensor) -> Tensor:
    """The logits without that of y, (N, K − 1)."""
    return z[torch.arange(z.shape[1]) != y[:, None]].view(len(z), -1)


def own(z: Tensor, y: Tensor) -> Tensor:
    return z.gather(1, y[:, None])[:, 0]


exercise(
    "margin-loss", "margin(z, y) -> (N,), max over j ≠ y of z_j − z_y, for logits z (N, K): positive where the answer "
    "is wrong",
    lambda z, y: others(z, y).amax(1) - own(z, y), logit_cases,
    [
        ("no-op", lambda z, y: 0 * own(z, y), ["always zero.", "the best of the other logits less that of y."]),
        ("y among the others", lambda z, y: z.amax(1) - own(z, y),
         ["yours is never negative: it has no slope while the answer is right.", "leave y out of the maximum: j ≠ y."]),
        ("sign error", lambda z, y: own(z, y) - others(z, y).amax(1),
         ["yours is positive where the network is right.", "an attack climbs it: the others minus z_y."]),
        ("mean of the others", lambda z, y: others(z, y).mean(1) - own(z, y),
         ["an answer flips as soon as one other class leads.", "the largest of the others, not their mean."]),
        ("probabilities", lambda z, y: others(z.softmax(1), y).amax(1) - own(z.softmax(1), y),
         ["where the network is sure, yours is flat.", "take the logits as they are, without softmax."]),
    ],
)


def averaged(A: Tensor, gradient: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    return torch.stack([M.T @ gradient(M @ v) for M in A]).mean(0)


def view_cases(g: torch.Generator) -> Iterator[Case]:
    for k, d in ((3, 4), (5, 6)):
        yield torch.randn(k, d, d, generator=g), waves(g, (d,)), torch.rand(d, generator=g)


exercise(
    "eot-gradient", "eot_gradient(A, gradient, v) -> (d,), of the mean of ℓ(A_k v) over the views A (K, d, d) of a "
    "pattern "
    "v (d,); gradient(u) is that of ℓ at u",
    averaged, view_cases,
    [
        ("no-op", lambda A, gradient, v: gradient(v),
         ["the views do not appear.", "differentiate each ℓ(A_k v), then average."]),
        ("no chain rule", lambda A, gradient, v: torch.stack([gradient(M @ v) for M in A]).mean(0),
         ["those are gradients by the views, not by the pattern.",
          "the chain rule: A_kᵀ times the gradient at A_k v."]),
        ("view of the mean", lambda A, gradient, v: A.mean(0).T @ gradient(A.mean(0) @ v),
         ["that is one view: the mean of all.", "average what each view gives, not the views."]),
        ("sum for mean", lambda A, gradient, v: len(A) * averaged(A, gradient, v),
         ["yours grows with the number of views.", "it is the gradient of a mean: divide by K."]),
        ("one view", lambda A, gradient, v: A[0].T @ gradient(A[0] @ v),
         ["only the first view counts.", "the mean over all K views."]),
    ],
)
