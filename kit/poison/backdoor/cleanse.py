"""Neural Cleanse: for every class, the smallest trigger that sends the other images there. A planted one is smaller.

    min_{m, Δ}  mean_i CE(f((1 − m) ∘ x_i + m ∘ Δ), t) + λ ‖m‖₁        for each class t, over images not of class t

    anomaly index of class t:  (median − ‖m_t‖₁) / (1.4826 · MAD)      suspicious above 2: small, not merely unusual

Source: Wang et al., Neural Cleanse: identifying and mitigating backdoor attacks in neural networks, IEEE S&P 2019,
sections IV and V; the schedule of λ, and all constants, are those of the authors' code.
"""
from __future__ import annotations

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import adam, borrowed, check_images, check_labels, check_model, chunk_size, laid_out, logits
from kit.core.checks import check_settings
from kit.core.fitted import Fitted
from kit.core.loop import differentiate, leaf
from kit.core.seeding import Draws, uniform
from kit.poison.backdoor.trigger import Trigger

FIRST_LAM, RISE, FALL = 1e-3, 2.0, 2.0**1.5  # λ where it begins, and what it is multiplied and divided by
BETTER = 0.99  # of the best ‖m‖₁: what is less is progress
NORMAL = 1.4826  # × MAD is the standard deviation of a Gaussian
THRESHOLD = 2.0


class Triggers(NamedTuple):
    """What was found for each class: masks (K, 1, H, W), patterns (K, C, H, W), ‖m‖₁ (K,), and the share of the given
    images not of that class that it sends there (K,), measured on the masks that are returned. Where no trigger reached
    the success that was asked for, ‖m‖₁ is infinite, and the mask is the last that was tried."""

    masks: Tensor
    patterns: Tensor
    norms: Tensor
    success: Tensor

    def trigger(self, k: int) -> Trigger:
        """The trigger of class k."""
        return Trigger(self.masks[k], self.patterns[k])


def reverse_triggers(
    model: nn.Module, x: Tensor, y: Tensor, *, epochs: int = 100, batch: int = 32, lr: float = 0.1,
    success: float = 0.99, patience: int = 5, generator: torch.Generator | None = None,
) -> Triggers:
    """The smallest trigger towards each of the K classes, all classes in one batch.

        m, Δ = (tanh θ + 1)/2,  θ random for each class    Adam with β = (.5, .9)    λ = 0 until the trigger works

    An epoch is one pass over the images in random order, the same for all classes. After `patience` epochs in a row in
    which the trigger worked on `success` of the images, λ becomes 0.001, then is doubled each time; after as many in
    which it did not, it is divided by 2^1.5. An epoch ends with a step, so that its last mask is tried once more on all
    images: kept is the smallest that worked then. A class is done when that has not shrunk by 1 % in 2 · patience
    epochs, after λ has gone both up and down.

    x, y are clean images with their labels, a hundred or more: those of class t take no part in the search for t.
    What is found for one class does not depend on the others. Cost: at most epochs · K forward and backward passes
    of x, and as many forward passes.
    Raises ValueError where a class is all that there is.
    """
    check_images(x)
    check_settings({"epochs": epochs, "batch": batch, "lr": lr, "generator": generator})
    if not 0 < success <= 1 or patience < 1:
        raise ValueError(f"success is a share above 0 and up to 1, patience 1 or more, not {success:g} and {patience}")
    with borrowed(model, x):
        classes = check_model(model, x)
        check_labels(y, x, classes)
        if len(y.unique()) < 2:
            raise ValueError("all images are of one class, so that no trigger can be sought for it: give others too")
        search = _Search(model, x, classes, generator)
        for _ in range(epochs):
            worked = search.epoch(y, batch, lr)
            search.keep(worked, y, success)
            search.judge(worked, success, patience)
            if not len(search.live):
                break
        return search.found(y)


class _Search:
    """The state of all classes at once. Each row of a tensor is a class; `live` are those that are not done."""

    def __init__(self, model: nn.Module, x: Tensor, classes: int, source: torch.Generator | None):
        draws = Draws(classes, source)
        self.model, self.x = model, x
        self.order = draws.alike()
        self.live = torch.arange(classes, device=x.device)
        start = uniform(x.new_empty(classes, x.shape[1] + 1, *x.shape[2:]), draws)
        self.theta = torch.atanh((2 * start - 1) * (1 - 1e-4))
        self.m, self.u, self.t = torch.zeros_like(self.theta), torch.zeros_like(self.theta), 0
        self.lam = x.new_zeros(classes)
        self.ups, self.downs, self.still = (x.new_zeros(classes) for _ in range(3))
        self.raised, self.lowered = (torch.zeros(classes, dtype=torch.bool, device=x.device) for _ in range(2))
        self.best, self.before = x.new_full((classes,), torch.inf), x.new_full((classes,), torch.inf)
        self.kept, self.share = self.theta.clone(), x.new_zeros(classes)

    def epoch(self, y: Tensor, batch: int, lr: float) -> Tensor:
        """One pass over the images for the live classes; returns on which share the trigger of each worked (L,)."""
        live, rule = self.live, adam(lr, betas=(0.5, 0.9))
        hits, counted = self.x.new_zeros(2, len(live))
        memory = {"m": self.m[live], "u": self.u[live], "t": torch.tensor(float(self.t))}
        theta = self.theta[live]
        for rows in torch.randperm(len(self.x), generator=self.order).to(y.device).split(batch):
            takes_part = (y[rows] != live[:, None]).to(self.x)  # (L, B): images of class t say nothing about t
            g, hit = self.gradient(theta, self.x[rows], takes_part)
            theta = rule(theta, -g, memory)
            hits, counted = hits + hit, counted + takes_part.sum(1)
        self.theta[live], self.m[live], self.u[live], self.t = theta, memory["m"], memory["u"], int(memory["t"])
        return hits / counted.clamp_min(1)

    def gradient(self, theta: Tensor, x: Tensor, takes_part: Tensor) -> tuple[Tensor, Tensor]:
        """∇θ of each class's objective (L, C + 1, H, W), and on how many images its trigger worked (L,)."""
        gradients, hits = [], []
        for part in torch.arange(len(theta), device=x.device).split(max(1, 8 * chunk_size(x) // len(x))):
            v, w, t = leaf(theta[part]), takes_part[part], self.live[part]
            m, pattern = opened(v)
            stamped = (1 - m[:, None]) * x + (m * pattern)[:, None]  # (L, B, C, H, W)
            z = self.model(laid_out(stamped.flatten(0, 1)))
            aim = t.repeat_interleave(len(x))
            losses = F.cross_entropy(z, aim, reduction="none").view_as(w)
            value = (losses * w).sum(1) / w.sum(1).clamp_min(1) + self.lam[t] * m.flatten(1).sum(1)
            gradients.append(differentiate(value, v))
            hits.append(((z.argmax(1) == aim).view_as(w) * w).sum(1).detach())
        return torch.cat(gradients), torch.cat(hits)

    def keep(self, worked: Tensor, y: Tensor, success: float) -> None:
        """After an epoch that worked: its last mask, where it is smaller than the kept one and works on its own."""
        norms = opened(self.theta)[0].flatten(1).sum(1)
        for t in self.live[(worked >= success) & (norms < self.best)[self.live]].tolist():
            share = self.tried(self.theta[t], t, y)
            if share >= success:
                self.best[t], self.kept[t], self.share[t] = norms[t], self.theta[t], share

    def tried(self, theta: Tensor, t: int, y: Tensor) -> Tensor:
        """The share of all images not of class t that this trigger sends there."""
        m, pattern = opened(theta[None])
        return (logits(self.model, Trigger(m[0], pattern[0])(self.x[y != t])).argmax(1) == t).to(self.x).mean()

    def judge(self, worked: Tensor, success: float, patience: int) -> None:
        """After an epoch: move λ, drop the classes that are done."""
        live, reached = self.live, worked >= success
        progress = self.best[live] < BETTER * self.before[live]
        self.still[live] = torch.where(progress | self.best[live].isinf(), 0, self.still[live] + 1)
        self.before[live] = torch.where(progress, self.best[live], self.before[live])
        begins = self.lam[live] == 0
        self.ups[live] = torch.where(reached, self.ups[live] + 1, 0)
        self.downs[live] = torch.where(reached | begins, 0, self.downs[live] + 1)
        up, down = self.ups[live] >= patience, self.downs[live] >= patience
        raised = torch.where(begins, FIRST_LAM, self.lam[live] * RISE)
        self.lam[live] = torch.where(up, raised, torch.where(down, self.lam[live] / FALL, self.lam[live]))
        self.ups[live], self.downs[live] = torch.where(up, 0, self.ups[live]), torch.where(down, 0, self.downs[live])
        self.raised[live] |= up & ~begins
        self.lowered[live] |= down
        self.live = live[~((self.still[live] >= 2 * patience) & self.raised[live] & self.lowered[live])]

    def found(self, y: Tensor) -> Triggers:
        """What was kept; for a class of which nothing was, the last that was tried."""
        for t in self.best.isinf().nonzero()[:, 0].tolist():
            self.kept[t], self.share[t] = self.theta[t], self.tried(self.theta[t], t, y)
        return Triggers(*opened(self.kept), self.best, self.share)


def opened(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Mask (K, 1, H, W) and pattern (K, C, H, W) in [0, 1] of θ (K, 1 + C, H, W)."""
    both = (theta.tanh() + 1) / 2
    return both[:, :1], both[:, 1:]


def anomaly_index(norms: Tensor) -> Tensor:
    """(median − ‖m‖₁) / (1.4826 · MAD) for each class (K,): by how many deviations its trigger is smaller than usual.

    A class whose trigger is larger than the median has a negative index: to be hard to reach is no sign of a backdoor.
    The median of an even number of classes is the mean of the middle two. Classes without a trigger (infinite) count
    as large. Where more than half of the norms are equal, MAD = 0: what is smaller then has an infinite index. Raises
    ValueError for fewer than three classes, and for NaN.
    """
    norms = torch.as_tensor(norms)
    if norms.dim() != 1 or len(norms) < 3 or bool(norms.isnan().any()):
        raise ValueError(f"an outlier needs three norms or more, one for each class and none NaN: {norms.tolist()}")
    middle = median(norms)
    if bool(middle.isinf()):
        raise ValueError("for half of the classes no trigger was found: give more epochs, or ask for less success")
    spread = NORMAL * median((norms - middle).abs())
    away = middle - norms
    return torch.where(away == 0, 0.0, away / spread)


def median(values: Tensor) -> Tensor:
    """The middle value, or the mean of the middle two (torch.median takes the lower one)."""
    ordered, n = values.sort().values, len(values)
    return ordered[[(n - 1) // 2, n // 2]].mean()


class NeuralCleanse(Fitted):
    """Which classes of a model have a backdoor: `NeuralCleanse(model).fit(x, y)`, x clean images and y their labels.

        triggers    what `reverse_triggers` found for each class     index    `anomaly_index` of its norms (K,)
        flagged     the classes with an index above 2, the most suspicious first

    The settings are those of `reverse_triggers`. With K classes of a clean model the largest index exceeds 2 more often
    than a Gaussian would say: measure the rate of false alarms on clean models of the same kind.
    """

    def __init__(
        self, model: nn.Module, *, epochs: int = 100, batch: int = 32, lr: float = 0.1, success: float = 0.99,
        patience: int = 5, seed: int = 0,
    ):
        self.model = model
        self.epochs, self.batch, self.lr = epochs, batch, lr
        self.success, self.patience, self.seed = success, patience, seed
        self._triggers: Triggers | None = None

    def fit(self, x: Tensor, y: Tensor) -> Self:
        self._triggers = reverse_triggers(
            self.model, x, y, epochs=self.epochs, batch=self.batch, lr=self.lr, success=self.success,
            patience=self.patience, generator=torch.Generator().manual_seed(self.seed))
        return self

    @property
    def triggers(self) -> Triggers:
        if self._triggers is None:
            raise ValueError("no triggers are sought yet: call fit(clean images, labels) first")
        return self._triggers

    @property
    def index(self) -> Tensor:
        return anomaly_index(self.triggers.norms)

    @property
    def flagged(self) -> list[int]:
        index = self.index
        order = index.argsort(descending=True)
        return order[index[order] > THRESHOLD].tolist()

    def tensors(self) -> dict[str, Tensor]:
        if self._triggers is None:
            return {}
        masks, patterns, norms, success = self._triggers  # a norm may be infinite, which no file should hold
        return {"masks": masks, "patterns": patterns, "success": success, "worked": norms.isfinite().to(masks)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        masks, worked = tensors["masks"], tensors["worked"].bool()
        norms = torch.where(worked, masks.flatten(1).sum(1), torch.inf)
        self._triggers = Triggers(masks, tensors["patterns"], norms, tensors["success"])
