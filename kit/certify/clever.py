"""CLEVER: how near the nearest error may be, by extreme value theory. An estimate, and no proof of anything.

    |g(x') − g(x)| ≤ L ‖x' − x‖_p  within the ball,   g = z_y − z_k,   L = max ‖∇g‖_q,   1/p + 1/q = 1

so that no x' nearer than g(x)/L changes the answer. L is not known: it is guessed from gradients at random points, as
the right end of the distribution that the greatest of many of them follow, a reverse Weibull. What no sample met, a
kink or a narrow valley, is not in the guess, which may be far too large.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import asking, ball, chunk_size, chunks, laid_out, logits, per_image
from kit.core.checks import warn
from kit.core.loop import check_differentiable, gradients
from kit.core.seeding import Draws

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
REJECTED = 0.05  # a fit with a smaller p-value is rejected


@per_image
def clever(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float | Tensor, norm: str = "linf", target: Tensor | None = None,
    batches: int = 50, samples: int = 64, generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """(estimate of the distance to the nearest error (N,), p-value of the fit it rests on (N,)).

    min over k ≠ y of min(g_k(x)/L̂_k, eps), with a `target` g of that class alone; 0 where x is not classified y. L̂_k
    is the location of a reverse Weibull, fitted to the greatest ‖∇g_k‖_q of each of `batches` times `samples` points
    of the ball ∩ [0, 1] (uniform in the ball, then projected onto the box). Nothing is said beyond `eps`, the radius
    of that ball.

    The p-value is that of a Kolmogorov–Smirnov test of the fit for the class that decides, 1 where the gradient is
    constant and nothing had to be fitted. Below 0.05 the maxima do not follow the law, as where a ReLU network has few
    slopes in the ball: then it warns (MisleadingModel), and L̂ is the greatest slope seen, which is too small. An
    estimate is never a certificate, whatever its p-value.

    Raises ValueError for a target that is the image's own label, and for fewer than 10 batches, which fit anything.
    Cost: `batches` times `samples` forward passes, and K − 1 times as many backward passes (one with a target).
    Source: Weng et al., Evaluating the robustness of neural networks: an extreme value theory approach, ICLR 2018. We
    sample the ball of every norm alike, where the authors' code takes the sphere in l1 and no uniform points in l2.
    """
    if batches < 10:
        raise ValueError(f"batches must be 10 or more, not {batches}: a distribution is fitted to their maxima")
    if target is not None and bool((target == y).any()):
        raise ValueError("target holds an image's own label: it must be another class for every image")
    assert isinstance(generator, Draws)
    z = logits(model, x)
    others = _others(y, z.shape[1]) if target is None else target[:, None]
    lead = z.gather(1, y[:, None]) - z.gather(1, others)
    sizes = torch.as_tensor(eps).to(x).expand(len(x))
    estimate, p, flat = torch.zeros_like(sizes), torch.ones_like(sizes), False
    right = ((z.argmax(1) == y) & (lead > 0).all(1)).nonzero()[:, 0]
    groups = right.split(max(1, chunk_size(x) // samples)) if len(right) else ()  # whose points make one chunk
    for rows in groups:
        again = rows.repeat(samples)
        around, points = ball(norm, sizes[again]), x[again]
        with asking(model, rows):
            maxima = [slopes(model, around.random(points, generator[again]), y[again], others[again], norm)
                      .unflatten(0, (samples, len(rows))).amax(0) for _ in range(batches)]
        seen = torch.stack(maxima, 1).double().cpu().numpy()
        flat = flat or not seen.any(1).all()
        for i, columns, ahead in zip(rows.tolist(), seen, lead[rows].double().cpu().numpy(), strict=True):
            ends, fits = np.array([right_end(column) for column in columns.T]).T
            distance = ahead / np.maximum(ends, np.finfo(float).tiny)
            k = int(distance.argmin())
            estimate[i], p[i] = min(float(distance[k]), float(sizes[i])), float(fits[k])
    if flat:
        warn("the gradient is exactly zero at every sampled point, so that no slope is seen: the model may hide it "
             "(rounding, a saturated output), and the estimate is the radius of the ball")
    if bad := int((p < REJECTED).sum()):
        warn(f"the maxima of {bad} of {len(x)} images do not follow the law that CLEVER fits to them: their estimates "
             "are the lead over the greatest slope seen, and no extrapolation")
    return estimate, p


def _others(y: Tensor, classes: int) -> Tensor:
    """The classes other than y (N,), in order: (N, K − 1)."""
    k = torch.arange(classes - 1, device=y.device)
    return k + (k >= y[:, None])


def slopes(model: nn.Module, x: Tensor, y: Tensor, others: Tensor, norm: str) -> Tensor:
    """‖∇(z_y − z_k)‖_q at every x (N, C, H, W) for every k of its `others` (N, M): (N, M). Cost: one forward pass and
    M backward passes."""
    found = []
    for rows in chunks(x):
        v = laid_out(x[rows]).detach().requires_grad_()
        z = model(v)
        check_differentiable(z)
        own, other = F.one_hot(y[rows], z.shape[1])[:, None], F.one_hot(others[rows], z.shape[1])
        apart = (own - other).transpose(0, 1).to(z)
        found.append(gradients(z, v, apart).flatten(2).norm(p=DUAL[norm], dim=2).T)
    return torch.cat(found)


def right_end(maxima: np.ndarray) -> tuple[float, float]:
    """(location of the reverse Weibull that fits the maxima (B,), p-value of its Kolmogorov–Smirnov test).

    By maximum likelihood. Maxima that are all alike, as those of a linear network, need no fit: (that value, 1). Where
    the fit is rejected, does not end in finite numbers, or has fewer than ten values to go by, the greatest maximum
    stands in for the location, with the p-value that the fit had, or 0.
    """
    from scipy import stats

    greatest = float(maxima.max())
    if greatest - float(maxima.min()) <= ALIKE * greatest:
        return greatest, 1.0
    if len(np.unique((maxima / (ALIKE * greatest)).round())) < FEWEST:  # a ReLU network's slopes come in steps
        return greatest, 0.0
    width = float(maxima.std())
    scaled = (maxima - greatest) / width
    with np.errstate(all="ignore"):
        shape, location, scale = stats.weibull_max.fit(scaled, 3.0, loc=1.0, scale=3.0)
        p = float(stats.kstest(scaled, "weibull_max", (shape, location, scale)).pvalue)
    if not (np.isfinite(p) and location >= 0 and shape < STRAIGHT):
        return greatest, 0.0
    return (greatest + width * location if p >= REJECTED else greatest), p


ALIKE = 1e-5  # relative: what rounding does to a gradient
FEWEST = 10
STRAIGHT = 1e3  # with a larger shape the law is Gumbel's, which has no right end
