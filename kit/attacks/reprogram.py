"""Somebody else's model: one frame around every image makes a network do another task, and none of its weights changes.

    x'   = Pad(x) + ½ tanh(W ⊙ M)             the image in the middle, the program W around it: M = 0 on x, 1 elsewhere
    h_k  = 1/m Σ_{j ∈ G_k} p_j(x')            p = softmax f; G_k are the m outputs that stand for the class k
    F(W) = mean over the images of −(1 − h_y)^γ log h_y

Pad is mid-grey, ½, so that x' lies in [0, 1], the pixels of x are in it as they were, and W = 0 is the padded image.
With γ = 0 the loss is the cross-entropy, with γ > 0 the focal loss, which cares less for what is right already.

    white box     W follows ∇F                                     Elsayed et al., Adversarial reprogramming of neural
                                                                   networks, ICLR 2019
    black box     ĝ = b/q Σ_j (F(W + βu_j) − F(W)) u_j / β         BAR: Tsai, Chen & Ho, Transfer learning without
                  u_j uniform on the unit sphere                   knowing, ICML 2020

What is not theirs: pixels are in [0, 1] (theirs in −1 to 1); the mapping maximises probabilities where they count
answers; W lives in blocks of `cell` pixels where one says so.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.scores.directions import random_gradient
from kit.core import (
    QueryCounter,
    adam,
    alike,
    asking,
    borrowed,
    check_images,
    check_labels,
    check_model,
    check_settings,
    chunk_size,
    gradient,
    laid_out,
    normal,
)
from kit.core.checks import check_fits
from kit.core.fitted import Fitted
from kit.core.loop import Memory

GREY = 0.5  # what surrounds the image, and half of what tanh may add to it


class Step(NamedTuple):
    """What `fit` saw: the answers it had asked for until then, F + λ‖…‖² on that batch, and the share of the
    development images that were labelled rightly (None where it did not look)."""

    queries: int
    loss: float
    accuracy: float | None


def frequency_mapping(p: Tensor, y: Tensor, classes: int, m: int = 1) -> Tensor:
    """G (classes, m): for each class m outputs of the source, none of them twice. p (N, K) are its probabilities.

    G maximises Σ_k Σ_{j ∈ G_k} (the mean of p_j over the images of class k), exactly, as an assignment. BAR counts how
    often j is the answer, and lets classes choose in turn; means also tell outputs apart that are never the answer.
    Raises ValueError where the source has fewer than classes · m outputs, or a class has no image.
    """
    from scipy.optimize import linear_sum_assignment

    if p.dim() != 2 or y.shape != p.shape[:1] or y.dtype != torch.int64 or m < 1:
        raise ValueError(f"p must be (N, K), y an int64 tensor (N,) and m 1 or more, not {tuple(p.shape)}, {y.dtype} "
                         f"{tuple(y.shape)} and {m}")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"y holds {int(y.min())} … {int(y.max())}, there are the classes 0 … {classes - 1}")
    if classes * m > p.shape[1]:
        raise ValueError(f"{classes} classes of {m} outputs each need {classes * m} outputs, and the model has "
                         f"{p.shape[1]}: choose a smaller m, or a model with more classes")
    counts = y.bincount(minlength=classes)
    if not bool((counts > 0).all()):
        raise ValueError(f"class {int((counts == 0).nonzero()[0])} has no image to choose its outputs by: give one, or "
                         "mapping=")
    share = torch.zeros(classes, p.shape[1], dtype=p.dtype, device=p.device).index_add_(0, y, p) / counts[:, None]
    columns = linear_sum_assignment(share.repeat_interleave(m, 0).cpu().numpy(), maximize=True)[1]
    return torch.from_numpy(columns).view(classes, m).to(p.device)


def log_shares(z: Tensor, mapping: Tensor) -> Tensor:
    """log h (N, classes), from the source's logits z (N, K): the mean probability of the outputs of each class."""
    return z.log_softmax(1)[:, mapping].logsumexp(2) - torch.tensor(mapping.shape[1]).log().to(z)


def focal(log_h: Tensor, y: Tensor, gamma: float = 0.0) -> Tensor:
    """−(1 − h_y)^γ log h_y, (N,)."""
    right = log_h.gather(1, y[:, None])[:, 0]
    return -right if gamma == 0 else -right * (-right.expm1()).clamp_min(0) ** gamma


def one_sided(
    f: Callable[[Tensor], Tensor], w: Tensor, *, q: int, beta: float, b: float | None = None, draws: Any = None,
) -> tuple[Tensor, Tensor]:
    """F(W) (), and ĝ = b/q Σ_j (F(W + βu_j) − F(W)) u_j/β, of the shape of W, from values alone.

    f takes several programs (J, …) and returns F of each (J,). u_j is uniform on the unit sphere of the d numbers of W,
    and b = d where it is None. Where F is linear, the mean of ĝ is b/d ∇F.
    Cost: q + 1 values of F.
    """
    d = w.numel()
    u = F.normalize(normal(w.new_empty(q, d), draws), dim=1).mul_(d**0.5).view(1, q, *w.shape)
    many = torch.tensor([q], device=w.device)
    with torch.no_grad():
        value = f(w[None])
        total = random_gradient(lambda v, of: f(v), w[None], u, many, beta / d**0.5, value)  # Σ_j, with b = d
    return value[0], total[0] / q * ((d if b is None else b) / d)


class Reprogram(Fitted):
    """A model put to another use: `Reprogram(model, shape=(3, 32, 32), classes=3).fit(x, y).predict(x_new)`.

    model      images (N, C, H, W) in [0, 1] → logits (N, K), or logarithms of probabilities: it may be a service
    shape      (C, H, W) of the images that it takes       classes   of the new task
    m          outputs that stand for one class            gamma     of the focal loss; 0 is the cross-entropy
    cell       W is the same in blocks of so many pixels, (C, H/cell, W/cell) numbers: fewer to find by questions

    Afterwards `program` is W, `mapping` is G (classes, m), `history` says what was seen when, a list of `Step`, and
    `queries` how many answers `fit` asked for.
    """

    def __init__(
        self, model: nn.Module, *, shape: tuple[int, int, int] | list[int], classes: int, m: int = 1,
        gamma: float = 0.0, cell: int = 1,
    ):
        for name, value in (("classes", classes), ("m", m), ("cell", cell)):
            if not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
        if not isinstance(shape, Sequence) or len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape must be (C, H, W), what the model takes, not {shape!r}")
        if classes < 2:
            raise ValueError(f"classes must be 2 or more, not {classes}")
        if m < 1:
            raise ValueError(f"m must be 1 or more outputs for each class, not {m}")
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, not {gamma}")
        if cell < 1 or shape[1] % cell or shape[2] % cell:
            raise ValueError(f"cell must divide the {shape[1]} × {shape[2]} pixels of the frame, and {cell} does not")
        self.model, self.shape, self.classes, self.m, self.gamma = model, list(shape), classes, m, gamma
        self.cell = cell
        self.program: Tensor | None = None
        self.mapping: Tensor | None = None
        self.inside: tuple[int, int] | None = None
        self.history: list[Step] = []
        self.queries = 0

    # --- the program around an image --------------------------------------------------------------------------------

    def mask(self, x: Tensor) -> Tensor:
        """M (C, H, W): 0 on the embedded image, 1 on the frame."""
        top, left, bottom, right = self._margins(x)
        return F.pad(torch.zeros(1, *x.shape[2:]), [left, right, top, bottom], value=1.0).expand(*self.shape).to(x)

    def embed(self, x: Tensor, program: Tensor | None = None) -> Tensor:
        """x' (N, C, H, W) in [0, 1]: the images x, grey or of C channels, in the middle of the program, or of the one
        given (C, H/cell, W/cell). With several programs (J, …), (J, N, C, H, W)."""
        w = self._fitted(x)[0] if program is None else program
        like = (self.shape[0], self.shape[1] // self.cell, self.shape[2] // self.cell)
        if w.dim() not in (3, 4) or w.shape[-3:] != like:
            raise ValueError(f"a program has the shape {like}, or several (J, …), not {tuple(w.shape)}")
        top, left, bottom, right = self._margins(x)
        padded = F.pad(x.expand(-1, self.shape[0], -1, -1), [left, right, top, bottom], value=GREY)
        frame = self._frame(w, x)
        return padded + (frame if w.dim() == 3 else frame[:, None])

    def _frame(self, w: Tensor, x: Tensor) -> Tensor:
        """½ tanh(W ⊙ M), of the shape (…, C, H, W)."""
        for axis in (-2, -1):
            w = w.repeat_interleave(self.cell, axis)
        return GREY * torch.tanh(w * self.mask(x))

    def _margins(self, x: Tensor) -> tuple[int, int, int, int]:
        """Rows above, columns to the left, rows below, columns to the right. Raises ValueError where none is left."""
        if x.dim() != 4:
            check_images(x)
        (channels, height, width), (c, h, w) = self.shape, x.shape[1:]
        if c not in (1, channels) or h > height or w > width or (h, w) == (height, width):
            raise ValueError(f"images of shape {(c, h, w)} leave no frame in {tuple(self.shape)}: they must have 1 "
                             f"channel or {channels}, and be smaller (torch.nn.functional.interpolate)")
        top, left = (height - h) // 2, (width - w) // 2
        return top, left, height - h - top, width - w - left

    def _fitted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.program is None or self.mapping is None:
            raise ValueError("there is no program yet: call fit(images, labels) first")
        if self.inside not in (None, (x.shape[-2], x.shape[-1])):
            raise ValueError(f"the program was fitted around images of {self.inside}, not {tuple(x.shape[-2:])}")
        return self.program, self.mapping

    # --- answers ----------------------------------------------------------------------------------------------------

    def logits(self, x: Tensor) -> Tensor:
        """log h (N, classes). Cost: one forward pass. Raises ValueError before `fit`, for images of other sizes."""
        check_images(x)
        w, mapping = self._fitted(x)
        with borrowed(self.model, x), torch.no_grad():
            check_fits(self.model, x)
            z = self._ask(self.embed(x, w.to(x)), torch.arange(len(x), device=x.device))
        return log_shares(z, mapping)

    def predict(self, x: Tensor) -> Tensor:
        """The new task's labels (N,). Cost: one forward pass."""
        return self.logits(x).argmax(1)

    def _ask(self, x_in: Tensor, rows: Tensor, counter: QueryCounter | None = None) -> Tensor:
        """The logits of x', where x'_i is about the image rows[i], a chunk at a time; `counter` stands before the
        model, which may be a counter itself."""
        z = []
        for part, of in zip(x_in.split(chunk_size(x_in)), rows.split(chunk_size(x_in)), strict=True):
            with asking(self.model, of), counter.on(of) if counter else nullcontext():
                z.append((counter or self.model)(laid_out(part)))
        return torch.cat(z)

    # --- fitting ----------------------------------------------------------------------------------------------------

    def fit(
        self, x: Tensor, y: Tensor, *, x_dev: Tensor | None = None, y_dev: Tensor | None = None, steps: int = 300,
        batch: int = 64, lr: float = 0.05, decay: float = 1.0, lam: float = 0.0, q: int | None = None,
        beta: float = 0.1, every: int = 20, mapping: Tensor | None = None, generator: torch.Generator | None = None,
    ) -> Self:
        """min_W F(W) + λ ‖½ tanh(W ⊙ M)‖² by `steps` steps of Adam, on `batch` images each, drawn epoch by epoch.

        q         None: white box, ∇F by autograd. A number: black box, `one_sided` along q directions with the probe
                  β and b = d (Adam divides by it); the model is asked under no_grad, and nothing is differentiated
        mapping   G (classes, m), distinct outputs; None: `frequency_mapping` of the answers to the padded images
        x_dev     with y_dev: of the programs at every `every`th step and at the end, the one that labels most of these
                  images rightly is kept, of equals the earliest. Without them it is the last
        decay     the factor of the learning rate after each pass through the images

        λ is in nats per unit of the sum of squares over the frame. Queries: N for the mapping, (q + 1) · batch a step
        (white box: batch), and the development images at every look. All are counted, in `queries`, and by a
        `QueryCounter` given as the model, whose images are those of training and then those of development.
        Cost: as many forward passes, and, white box, a backward pass of each batch.
        Raises ValueError or TypeError for images, labels and numbers that make no sense.
        """
        _check_numbers(steps=steps, batch=batch, lr=lr, lam=lam, q=q, beta=beta, every=every, generator=generator,
                       decay=decay)
        x, y, x_dev, y_dev = self._checked(x, y, x_dev, y_dev)
        batch, source, images = min(batch, len(x)), alike(generator), torch.arange(len(x) + len(x_dev), device=x.device)
        counter = QueryCounter(self.model, len(images))
        w = x.new_zeros(int(self._free(x).sum()))
        memory: Memory = {}
        history: list[Step] = []
        best, kept = -1.0, w
        with borrowed(self.model, x):
            inner = self.model.model if isinstance(self.model, QueryCounter) else self.model
            outputs = check_model(inner, self.embed(x[:2], self._filled(w, x)))

            def answers(programs: Tensor, x: Tensor, rows: Tensor) -> Tensor:
                """The logits (J, n, K) of images x (n, …) in each of the programs (J, d)."""
                x_in = self.embed(x, self._filled(programs, x)).flatten(0, 1)
                return self._ask(x_in, rows.repeat(len(programs)), counter).unflatten(0, (len(programs), -1))

            if mapping is None:
                with torch.no_grad():
                    p = answers(w[None], x, images[:len(x)])[0].softmax(1)
                mapping = frequency_mapping(p, y, self.classes, self.m)
            G = self._checked_mapping(mapping, outputs)

            def objective(programs: Tensor, rows: Tensor) -> Tensor:
                """F + λ‖…‖² of each of the programs (J, d) on the images of these rows, (J,)."""
                log_h = log_shares(answers(programs, x[rows], rows).flatten(0, 1), G)
                value = focal(log_h, y[rows].repeat(len(programs)), self.gamma).unflatten(0, (len(programs), -1))
                return value.mean(1) + lam * self._size(programs, x)

            def look(program: Tensor) -> float:
                with torch.no_grad():
                    z = answers(program[None], x_dev, images[len(x):])[0]
                return float((log_shares(z, G).argmax(1) == y_dev).float().mean())

            for k, rows in enumerate(_batches(len(x), batch, steps, source)):
                seen = look(w) if len(x_dev) and k % every == 0 else None
                if seen is not None and seen > best:
                    best, kept = seen, w
                f = partial(objective, rows=rows.to(x.device))
                if q is None:
                    value, g = (t[0] for t in gradient(f, w[None]))
                else:
                    value, g = one_sided(f, w, q=q, beta=beta, draws=source)
                if not bool(value.isfinite()) or not bool(g.isfinite().all()):
                    raise ValueError(f"the loss or its gradient is NaN or infinite at step {k}: check the model, or "
                                     "lower lr=")
                history.append(Step(counter.total, float(value), seen))
                w = adam(lr * decay ** (k * batch // len(x)))(w[None], -g[None], memory)[0]
            if len(x_dev):
                seen = look(w)
                history.append(Step(counter.total, history[-1].loss, seen))
                w = w if seen > best else kept
        self.program, self.mapping, self.inside = self._filled(w, x), G, (x.shape[2], x.shape[3])
        self.history, self.queries = history, counter.total
        return self

    def _free(self, x: Tensor) -> Tensor:
        """Which numbers of W are seen, (C, H/cell, W/cell) bool: those whose block is not all within the image."""
        return F.max_pool2d(self.mask(x), self.cell) > 0

    def _filled(self, w: Tensor, x: Tensor) -> Tensor:
        """W (…, C, H/cell, W/cell) from the numbers of it that are seen, w (…, d); the others are 0."""
        free = self._free(x)
        whole = w.new_zeros(*w.shape[:-1], free.numel())
        return whole.index_copy(-1, free.flatten().nonzero()[:, 0], w).unflatten(-1, free.shape)

    def _size(self, programs: Tensor, x: Tensor) -> Tensor:
        """‖½ tanh(W ⊙ M)‖² of each of the programs (J, d)."""
        return self._frame(self._filled(programs, x), x).square().flatten(1).sum(1)

    def _checked(self, x: Any, y: Any, x_dev: Any, y_dev: Any) -> tuple[Tensor, ...]:
        """The images and labels; those of development are empty where there are none."""
        if (x_dev is None) != (y_dev is None):
            raise ValueError("x_dev and y_dev belong together: give both, or none")
        check_images(x)
        check_labels(y, x, self.classes)
        self._margins(x)
        if x_dev is None:
            return x.detach(), y, x[:0].detach(), y[:0]
        check_images(x_dev)
        check_labels(y_dev, x_dev, self.classes, "y_dev")
        if x_dev.shape[1:] != x.shape[1:]:
            raise ValueError(f"x_dev must have the shape {tuple(x.shape[1:])}, as x has, not {tuple(x_dev.shape[1:])}")
        return x.detach(), y, x_dev.detach(), y_dev

    def _checked_mapping(self, mapping: Tensor, outputs: int) -> Tensor:
        """Raises ValueError unless it is (classes, m) outputs of the model, none of them twice."""
        shape = (self.classes, self.m)
        if not isinstance(mapping, Tensor) or mapping.shape != shape or mapping.dtype != torch.int64:
            given = f"{mapping.dtype} {tuple(mapping.shape)}" if isinstance(mapping, Tensor) else repr(mapping)
            raise ValueError(f"mapping must be an int64 tensor {shape}, the outputs of each class, not {given}")
        if int(mapping.min()) < 0 or int(mapping.max()) >= outputs or len(mapping.unique()) < mapping.numel():
            raise ValueError(f"mapping must hold outputs 0 … {outputs - 1} of the model, none of them twice")
        return mapping

    # --- keeping ----------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        if self.program is None or self.mapping is None or self.inside is None:
            return {}
        return {"program": self.program, "mapping": self.mapping, "inside": torch.tensor(self.inside)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            self.program, self.mapping = tensors["program"], tensors["mapping"]
            h, w = tensors["inside"].tolist()
            self.inside = (h, w)


def _check_numbers(every: int, beta: float, decay: float, **others: Any) -> None:
    """Raises ValueError or TypeError for settings of `fit` that are out of range."""
    check_settings({**others, "beta": beta})
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a whole number of steps, 1 or more, not {every!r}")
    for name, value, most in (("beta", beta, math.inf), ("decay", decay, 1.0)):
        if not 0 < value <= most:
            raise ValueError(f"{name} must be more than 0{f' and at most {most:g}' * (most < math.inf)}, not {value}")


def _batches(images: int, batch: int, steps: int, source: torch.Generator) -> Iterator[Tensor]:
    """The rows of `steps` batches: permutations one after the other, cut."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(images, generator=source)])
        yield order[:batch]
        order = order[batch:]
