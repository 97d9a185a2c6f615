"""Maps: along a path, through a softmax, from activations, and what measures make of them."""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kit.lab.checks import Case, exercise
from kit.lab.exercises.gradient import waves
from kit.lab.exercises.lrp import shared


def path_cases(g: torch.Generator) -> Iterator[Case]:
    for steps in (2, 5):
        x = torch.rand(3, 1, 4, 4, generator=g)
        slow = waves(g, x.shape)
        yield (lambda v, slow=slow: slow(v / 8)), x, 0.3 * torch.rand(x.shape, generator=g), steps


def along(gradient: Callable[[Tensor], Tensor], x: Tensor, b: Tensor, steps: int, at: float = 0.5) -> Tensor:
    """The mean gradient at b + t (x − b), t = (k + at)/steps."""
    return torch.stack([gradient(b + (k + at) / steps * (x - b)) for k in range(steps)]).mean(0)


exercise(
    "integrated-gradients", "integrated_gradients(gradient, x, b, steps) -> (x − b) times the mean of gradient at the "
    "points "
    "b + t (x − b), t = (k + ½)/steps for k = 0 … steps − 1",
    lambda gradient, x, b, steps: (x - b) * along(gradient, x, b, steps), path_cases,
    [
        ("no-op", lambda gradient, x, b, steps: 0 * x,
         ["the map is empty.", "mean gradient along the path, times x − b."]),
        ("gradient × input", lambda gradient, x, b, steps: (x - b) * gradient(x),
         ["that is the gradient at x alone.", "take it at `steps` points between b and x, and average."]),
        ("no difference", along,
         ["that is a mean gradient: it does not add up to a change of the score.", "times x − b."]),
        ("black by habit", lambda gradient, x, b, steps: x * along(gradient, x, b, steps),
         ["with another baseline the sum is not z(x) − z(b).", "x − b, not x: b need not be black."]),
        ("left ends", lambda gradient, x, b, steps: (x - b) * along(gradient, x, b, steps, 0.0),
         ["your points begin at the baseline itself: the sum is off by a slope.",
          "the middle of each piece: (k + ½)/steps."]),
        ("sum for mean", lambda gradient, x, b, steps: steps * (x - b) * along(gradient, x, b, steps),
         ["your map grows with the steps.", "the integral over t from 0 to 1 is a mean."]),
        ("sign error", lambda gradient, x, b, steps: (b - x) * along(gradient, x, b, steps),
         ["the sum is z(b) − z(x).", "x − b."]),
    ],
)


def logit_slopes(g: torch.Generator) -> Iterator[Case]:
    for n, k, d in ((4, 3, 5), (6, 7, 4)):
        yield (torch.randn(n, k, d, generator=g), (2 * torch.randn(n, k, generator=g)).softmax(1),
               torch.randint(k, (n,), generator=g))


def of_log_p(J: Tensor, p: Tensor, c: Tensor) -> Tensor:
    return J[range(len(J)), c] - (p[:, :, None] * J).sum(1)


exercise(
    "log-p-gradient", "log_p_gradient(J, p, c) -> (N, d), the gradient of log p_c, for the gradients J (N, K, d) of "
    "all logits "
    "and probabilities p (N, K)",
    of_log_p, logit_slopes,
    [
        ("no-op", lambda J, p, c: J[range(len(J)), c],
         ["that is the logit's.", "log p_c = z_c − log Σ exp z_k: the sum has a gradient too."]),
        ("of the probability", lambda J, p, c: p[range(len(J)), c, None] * of_log_p(J, p, c),
         ["that is the gradient of p_c.", "∇p_c = p_c ∇log p_c: leave the factor out."]),
        ("mean of all", lambda J, p, c: J[range(len(J)), c] - J.mean(1),
         ["the classes do not count alike.", "the mean of the other gradients is weighted by p_k."]),
        ("without c", lambda J, p, c: of_log_p(J, p, c) + p[range(len(J)), c, None] * J[range(len(J)), c],
         ["the sum runs over all classes, c among them.", "∇z_c − Σ_k p_k ∇z_k."]),
        ("sign error", lambda J, p, c: -of_log_p(J, p, c),
         ["that is the gradient of the cross-entropy.", "log p_c, not −log p_c."]),
    ],
)


def draw_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (5, 12):
        yield (0.5 + torch.randn(n, 3, 3, 4, 4, generator=g),)


exercise(
    "squared-smoothgrad", "squared_smoothgrad(G) -> (N, H, W), the mean over the draws of the squared gradients G "
    "(draws, N, C, "
    "H, W), summed over the channels",
    lambda G: G.square().mean(0).sum(1), draw_cases,
    [
        ("no-op", lambda G: G.mean(0).sum(1), ["nothing is squared.", "square first, then the mean over the draws."]),
        ("square of the mean", lambda G: G.mean(0).square().sum(1),
         ["that is the square of SmoothGrad: what turns its sign from draw to draw cancels.",
          "square first, then the mean."]),
        ("variance", lambda G: G.var(0, correction=0).sum(1),
         ["that is the variance alone.", "E g² = (E g)² + var g."]),
        ("sum for mean", lambda G: G.square().sum(0).sum(1),
         ["your map grows with the draws.", "the mean over the draws."]),
        ("largest channel", lambda G: G.square().mean(0).amax(1), ["one channel is shown.", "sum over the channels."]),
        ("absolute value", lambda G: G.abs().mean(0).sum(1), ["the sizes, not the squares.", "g², not |g|."]),
    ],
)


def two_logits(g: torch.Generator) -> Iterator[Case]:
    for n, k in ((5, 4), (9, 10)):
        yield torch.randn(n, k, generator=g), 1, 3


exercise(
    "rather-than", "rather(z, c, d) -> (N,), the score that says c rather than d, for logits z (N, K)",
    lambda z, c, d: z[:, c] - z[:, d], two_logits,
    [
        ("no-op", lambda z, c, d: z[:, c],
         ["that says c, rather than nothing.", "what speaks for d as well is to cancel."]),
        ("sign error", lambda z, c, d: z[:, d] - z[:, c], ["that says d rather than c.", "z_c first."]),
        ("probabilities", lambda z, c, d: z.softmax(1)[:, c] - z.softmax(1)[:, d],
         ["the other classes speak with you.", "the logits themselves."]),
        ("absolute value", lambda z, c, d: (z[:, c] - z[:, d]).abs(),
         ["which of the two leads is lost.", "keep the sign."]),
        ("added", lambda z, c, d: z[:, c] + z[:, d], ["that says either.", "minus."]),
    ],
)


def layer_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d, k in ((3, 5, 4), (4, 8, 6)):
        yield torch.randn(n, d, generator=g), torch.randn(d, k, generator=g), torch.randn(n, k, generator=g)


def by_size(a: Tensor, w: Tensor, R: Tensor) -> Tensor:
    return a.abs() * ((R / (a.abs() @ w.abs())) @ w.abs().T)


def by_square(a: Tensor, w: Tensor, R: Tensor) -> Tensor:
    return a**2 * ((R / (a**2 @ w**2)) @ (w**2).T)


exercise(
    "lrp-absolute", "lrp_absolute(a, w, R) -> R_j = Σ_k |a_j w_jk| / Σ_i |a_i w_ik| R_k, for activations a (N, d), "
    "weights "
    "w (d, k), relevance R (N, k)",
    by_size, layer_cases,
    [
        ("no-op", lambda a, w, R: 0 * a, ["nothing is handed down.", "each input gets its share of every R_k."]),
        ("with signs", lambda a, w, R: shared(a, w, R, a @ w),
         ["those are shares with a sign: LRP-0.", "|a_j w_jk|, above and below the line."]),
        ("above the line alone", lambda a, w, R: a.abs() * ((R / (a @ w)) @ w.abs().T),
         ["your shares do not add up to one.", "the same sizes below: Σ_i |a_i w_ik|."]),
        ("|R| for R", lambda a, w, R: by_size(a, w, R.abs()),
         ["what spoke against the class speaks for it.", "R keeps its sign."]),
        ("squares", by_square, ["large contributions get too much.", "|a w|, not its square."]),
        ("without the activation", lambda a, w, R: by_size(torch.ones_like(a), w, R),
         ["an input that is off gets as much as one that is on.", "the contribution is a_j w_jk."]),
    ],
)


def cam_cases(g: torch.Generator) -> Iterator[Case]:
    for n, k in ((3, 5), (4, 8)):
        yield torch.rand(n, k, 4, 4, generator=g), torch.randn(n, k, 4, 4, generator=g)


def weighted(A: Tensor, G: Tensor) -> Tensor:
    return (G.mean((2, 3), keepdim=True) * A).sum(1)


exercise(
    "grad-cam", "grad_cam(A, G) -> (N, h, w), max(0, Σ_k α_k A_k) with α_k the mean over the places of G_k; "
    "activations A and "
    "gradients G (N, K, h, w)",
    lambda A, G: weighted(A, G).clamp_min(0), cam_cases,
    [
        ("no-op", lambda A, G: A.sum(1), ["the class does not appear.", "each channel counts by its mean gradient."]),
        ("no ReLU", weighted, ["some of your places are negative.", "`.clamp_min(0)` at the end."]),
        ("place by place", lambda A, G: (G * A).sum(1).clamp_min(0),
         ["each place has a weight of its own: that is gradient × activation.", "average G over the places first."]),
        ("ReLU of the weights", lambda A, G: (G.mean((2, 3), keepdim=True).clamp_min(0) * A).sum(1),
         ["channels that speak against the class are left out.", "cut the sum, not the weights."]),
        ("absolute value", lambda A, G: weighted(A, G).abs(),
         ["places that speak against are shown as for.", "max(0, ·), not | · |."]),
        ("sum over the places", lambda A, G: 16 * weighted(A, G).clamp_min(0),
         ["your weights are sums.", "the mean over the places."]),
    ],
)


def pair_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (3, 5):
        yield torch.randn(n, 6, 6, generator=g).clamp_min(0), torch.randn(n, 6, 6, generator=g)


exercise(
    "guided-grad-cam", "guided_grad_cam(cam, guided) -> (N, H, W), a map with the class of Grad-CAM and the detail of "
    "guided "
    "backpropagation: zero where either is",
    lambda cam, guided: cam * guided, pair_cases,
    [
        ("no-op", lambda cam, guided: cam, ["that is Grad-CAM.", "weigh each pixel of the other map by it."]),
        ("guided alone", lambda cam, guided: guided, ["that map hardly knows the class.", "times Grad-CAM."]),
        ("mean", lambda cam, guided: (cam + guided) / 2,
         ["it is not zero where one of them is.", "a product, not a mean."]),
        ("masked", lambda cam, guided: guided.where(cam > 0, guided.new_zeros(())),
         ["how much Grad-CAM says is lost.", "multiply by its value, not by whether it is there."]),
        ("|R| for R", lambda cam, guided: cam * guided.abs(),
         ["the sign of the gradient is lost.", "the product as it is."]),
    ],
)


def share_cases(g: torch.Generator) -> Iterator[Case]:
    for share in (0.1, 0.25):
        yield torch.rand(4, 10, 10, generator=g) ** 2 * torch.tensor([1.0, 0.2, 3.0, 0.5]).view(-1, 1, 1), share


def top(R: Tensor, share: float) -> Tensor:
    flat = R.flatten(1)
    best = flat.topk(round(share * flat.shape[1])).indices
    return torch.zeros_like(flat).scatter(1, best, 1.0).view_as(R)


exercise(
    "top-mask", "top_mask(R, share) -> (N, H, W), 1 on the highest `share` of the pixels of each map R (N, H, W), 0 "
    "elsewhere",
    top, share_cases,
    [
        ("no-op", lambda R, share: torch.zeros_like(R), ["nothing is hidden.", "`topk` on the flattened maps."]),
        ("least pixels", lambda R, share: top(-R, share), ["those are the lowest.", "the highest: topk of R."]),
        ("of the maximum", lambda R, share: ((1 - share) * R.amax((1, 2), keepdim=True) <= R).float(),
         ["the number of pixels differs from map to map.", "a share of the pixels, not of the largest value."]),
        ("over the batch", lambda R, share: (R.flatten().topk(round(share * R.numel())).values[-1] <= R).float(),
         ["one map takes the pixels of the others.", "flatten(1), then topk image by image."]),
        ("values", lambda R, share: R * top(R, share), ["a mask is 0 or 1.", "where, not how much."]),
    ],
)


def scene_cases(g: torch.Generator) -> Iterator[Case]:
    for n in (3, 4):
        yield torch.rand(n, 3, 6, 6, generator=g), torch.rand(n, 6, 6, generator=g) > 0.6


def greyed(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None], x, x.mean(1, keepdim=True))


def one_grey(x: Tensor, mask: Tensor) -> Tensor:
    outside = ~mask[:, None]
    mean = (x * outside).sum((1, 2, 3), keepdim=True) / (3 * outside.sum((1, 2, 3), keepdim=True))
    return torch.where(mask[:, None], x, mean)


exercise(
    "grey-background", "grey_background(x, mask) -> images in which every pixel off the object (mask (N, H, W), True "
    "on it) has "
    "lost its colour and kept its brightness, the mean of its channels",
    greyed, scene_cases,
    [
        ("no-op", lambda x, mask: x, ["the background is as it was.", "torch.where(mask[:, None], x, grey)."]),
        ("object", lambda x, mask: greyed(x, ~mask),
         ["the object is grey, the background is not.", "the mask is True on the object: keep x there."]),
        ("whole image", lambda x, mask: greyed(x, torch.zeros_like(mask)),
         ["the object has lost its colour as well.", "keep x on the object."]),
        ("one grey", one_grey,
         ["your background is plain: the pattern went with the colour.", "each pixel keeps its own brightness."]),
        ("middle grey", lambda x, mask: torch.where(mask[:, None], x, torch.tensor(0.5)),
         ["0.5 takes away the pattern and the brightness too.",
          "the mean of the pixel's own channels: x.mean(1, keepdim=True)."]),
    ],
)


def weight_cases(g: torch.Generator) -> Iterator[Case]:
    for spread in (0.3, 2.0):
        yield spread * (torch.rand(60, 50, generator=g) - 0.5), g


def compared(new: Tensor, w: Tensor, g: torch.Generator) -> Tensor:
    """What is read off new weights: spread, shape of the distribution, likeness to the old, whether values are "
    "shared."""
    u, v = (t.double() / t.std() for t in (new, w))
    shared = torch.isclose(new.flatten().sort().values, w.flatten().sort().values).float().mean()
    beyond = (u.abs() > 2).float().mean()
    return torch.stack([new.std().log(), 10 * beyond, (u * v).mean(), shared])


def normal_like(w: Tensor, g: torch.Generator, scale: float | Tensor) -> Tensor:
    return scale * torch.randn(w.shape, generator=g)


exercise(
    "drawn-anew", "drawn_anew(w, source) -> weights of the shape of w, Gaussian with mean 0 and the standard "
    "deviation of w, "
    "drawn from the generator `source`",
    lambda w, g: normal_like(w, g, w.std()), weight_cases,
    [
        ("no-op", lambda w, g: w,
         ["those are the old weights.", "torch.randn(w.shape, generator=source) times w.std()."]),
        ("permuted", lambda w, g: w.flatten()[torch.randperm(w.numel(), generator=g)].view_as(w),
         ["those are the old values in another order.", "draw new ones."]),
        ("unit spread", lambda w, g: normal_like(w, g, 1.0), ["the layer's scale has changed.", "times w.std()."]),
        ("variance", lambda w, g: normal_like(w, g, w.var()),
         ["the spread is the variance.", "times w.std(), not w.var()."]),
        ("added", lambda w, g: w + normal_like(w, g, w.std()),
         ["the old weights are still in it.", "in place of w, not on top."]),
        ("uniform", lambda w, g: 12**0.5 * w.std() * (torch.rand(w.shape, generator=g) - 0.5),
         ["the spread is right, and none lies far out.", "Gaussian: torch.randn."]),
    ],
    reads=compared, rtol=0.0, atol=0.12,
)
