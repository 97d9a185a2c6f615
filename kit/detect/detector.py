"""What all detectors share: fit, score, a threshold at a stated false-positive rate, prediction with a fail-safe."""
import math
from collections.abc import Callable, Container
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import borrowed, check_images, check_labels, check_model, chunks, laid_out
from kit.core.fitted import Fitted

REFUSED = -1


class Detector(Fitted):
    """Decides whether an image is one that the model was made for.

        score s(x), higher = more suspicious      alarm ⇔ s(x) > τ      τ from held-out clean images, see `threshold`

    An image to which the model has no finite answer has no finite score, and raises an alarm as well. A subclass gives
    `discrepancy(x) -> (N,)`, the score of one chunk, which can be differentiated by x, and where it has something to
    fit, `fit(x, y)`, `tensors` and `restore`. `score` runs it in chunks, in evaluation mode, with nothing leaked.
    """

    numbers: ClassVar[tuple[str, ...]] = ("tau",)

    def __init__(self, model: nn.Module):
        self.model = model
        self.tau: float | None = None

    def fit(self, x: Tensor, y: Tensor) -> Self:
        """Learn from training images x and labels y what is normal. What has nothing to learn returns itself."""
        return self

    def discrepancy(self, x: Tensor) -> Tensor:
        """s(x) for one chunk of images, differentiable by x: (N,)."""
        raise TypeError(f"{type(self).__name__} does not say how an image is scored: it needs discrepancy(x)")

    def label(self, x: Tensor) -> Tensor:
        """What is answered where there is no alarm, one chunk (N,): the model's class, REFUSED if not finite."""
        return predicted(self.model(x))

    def evasion(self, x: Tensor) -> Tensor:
        """What an attacker lowers instead of s(x) (N,): s itself, unless its gradient vanishes where he needs it."""
        return self.discrepancy(x)

    def score(self, x: Tensor) -> Tensor:
        """s(x) (N,), higher = more suspicious, in chunks, without gradients; NaN where the model has no answer."""
        return self._in_chunks(self.discrepancy, x)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        check_images(x)
        with borrowed(self.model, x), torch.no_grad():
            check_model(Answered(self.model), x)
            return torch.cat([function(laid_out(x[rows])) for rows in chunks(x)])

    def threshold(self, x: Tensor, fpr: float = 0.05) -> float:
        """Set and return τ, the ⌈(n + 1)(1 − FPR)⌉-th smallest score of n clean images that were not fitted on.

        Then a further clean image raises an alarm with probability at most FPR (exchangeability is all that is
        needed). Raises ValueError where n is too small to promise that rate, or a score is NaN or infinite. Never
        choose τ on what is to be detected.
        """
        if not 0 < fpr < 1:
            raise ValueError(f"fpr is a rate between 0 and 1, not {fpr:g}")
        check_images(x)
        rank = math.ceil((len(x) + 1) * (1 - fpr) - 1e-9)
        if rank > len(x):
            raise ValueError(f"{len(x)} clean images cannot promise a false-positive rate of {fpr:g}: "
                             f"give at least {math.ceil(1 / fpr) - 1}")
        scores = self.score(x)
        if not bool(scores.isfinite().all()):
            raise ValueError(f"{int((~scores.isfinite()).sum())} of {len(x)} clean images have a score that is NaN or "
                             "infinite: check the model, and what it does with them")
        self.tau = float(scores.sort().values[rank - 1])
        return self.tau

    def alarm(self, x: Tensor) -> Tensor:
        """Whether each image is refused: (N,) bool, true unless s(x) is finite and at most τ."""
        if self.tau is None:
            raise ValueError("there is no threshold yet: call threshold(clean held-out images, fpr=…) first")
        scores = self.score(x)
        return ~(scores.isfinite() & (scores <= self.tau))

    def predict(self, x: Tensor, fail_safe: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The model's labels (N,), and for refused images REFUSED (−1), or what `fail_safe(refused images)` answers.

        Refused is what raises an alarm, and what the model has no finite answer to.

        The fail-safe action is whatever is safe to do where the model is not to be trusted: ask a person, another
        model, stop. Cost: one forward pass more than `score`.
        """
        alarm = self.alarm(x)
        labels = self._in_chunks(self.label, x)
        refused = alarm | (labels == REFUSED)
        labels[refused] = REFUSED
        if fail_safe is not None and bool(refused.any()):
            answers = fail_safe(x[refused])
            if answers.shape != labels[refused].shape:
                raise ValueError(f"fail_safe must answer one label per refused image, {int(refused.sum())} of them, "
                                 f"not a tensor of shape {tuple(answers.shape)}")
            labels[refused] = answers.to(labels)
        return labels


class Answered(nn.Module):
    """A model whose missing answers are zeros: to check all else about it. One image's NaN is that image's own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z.nan_to_num(0.0, 0.0, 0.0) if isinstance(z, Tensor) else z


def predicted(z: Tensor) -> Tensor:
    """argmax of logits (N, K), and REFUSED where they are not all finite: (N,)."""
    return torch.where(z.isfinite().all(1), z.argmax(1), REFUSED)


def rightly_classified(model: nn.Module, x: Tensor, y: Tensor, per_class: int) -> tuple[Tensor, Tensor]:
    """The first `per_class` images of each class that the model classifies rightly, and their labels, class by class.

    These are what a detector is fitted on: where the model errs, its features say nothing about the label.
    """
    check_images(x)
    rows: dict[int, list[int]] = {int(k): [] for k in y.unique()}
    with borrowed(model, x), torch.no_grad():
        check_labels(y, x, check_model(model, x))
        for part in chunks(x):
            right = model(laid_out(x[part])).argmax(1) == y[part]
            for i in torch.where(right)[0].tolist():
                chosen = rows[int(y[part][i])]
                if len(chosen) < per_class:
                    chosen.append(part.start + i)
            if all(len(chosen) == per_class for chosen in rows.values()):
                break
    for k, chosen in rows.items():
        if len(chosen) < 2:
            raise ValueError(f"class {k} has fewer than 2 images that the model classifies rightly: give more images")
    index = torch.tensor([i for chosen in rows.values() for i in chosen], device=x.device)
    return x[index], y[index]


def by_class(classes: Tensor, fitted: Container[int], value: Callable[[Tensor, int], Tensor]) -> Tensor:
    """value(rows, k) (n,) for the rows of each class k, put back in order (N,); NaN for the rows of REFUSED.

    Raises ValueError for a class of which nothing was fitted.
    """
    order, values = [], []
    for k in classes.unique().tolist():
        rows = torch.where(classes == k)[0]
        if k != REFUSED and k not in fitted:
            raise ValueError(f"the model predicts class {k}, of which no image was fitted on")
        order.append(rows)
        values.append(torch.full(rows.shape, torch.nan, device=rows.device) if k == REFUSED else value(rows, k))
    return torch.cat(values)[torch.cat(order).argsort()]


class AUC(NamedTuple):
    """The area under a ROC curve and a 95 % interval of it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def roc_auc(clean: Tensor, suspicious: Tensor, z: float = 1.96) -> AUC:
    """P(s(suspicious) > s(clean)) + ½ P(equal), over all pairs, with an interval that holds at 1 too.

    The interval is the set of θ with |θ − AUC| ≤ z √V(θ), V being Hanley and McNeil's variance at θ with the two
    sample sizes averaged (Newcombe 2006, part 2, method 5). It takes the images as independent.
    """
    n, m = len(clean), len(suspicious)
    if not n or not m:
        raise ValueError(f"an area needs scores of both kinds, not {n} clean and {m} suspicious ones")
    if bool(clean.isnan().any()) or bool(suspicious.isnan().any()):
        raise ValueError("scores hold NaN, which has no place in an order; such an image raises an alarm at any τ")
    a, b = (s.detach().cpu().double().numpy() for s in (clean, suspicious))
    a = np.sort(a)
    auc = float((np.searchsorted(a, b, "left") + np.searchsorted(a, b, "right")).mean() / (2 * n))
    mean = (n + m) / 2 - 1
    theta = np.linspace(0, 1, 20001)
    variance = theta * (1 - theta) * (1 + mean * (1 - theta) / (2 - theta) + mean * theta / (1 + theta)) / (n * m)
    inside = theta[np.abs(theta - auc) <= z * np.sqrt(variance) + 2.5e-5]
    return AUC(auc, float(min(inside.min(), auc)), float(max(inside.max(), auc)))
