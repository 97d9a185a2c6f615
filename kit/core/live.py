"""The images that an attack still works on, each with its own state, and the best it has found for each.

    live = Live(model, x, Goal(y, target), generator)      inside `per_image`, for one chunk
    run = live.again(w=to_w(x), rate=lr)                   all of them, with named state: one row for each image
    z = run.ask(v)                                         logits: laid out, and counted for these images
    g = run.grad(loss, v)                                  of the sum, since each loss depends on its own image alone
    run.nearest(v, size, run.goal.reached(z))              kept in run.found, image by image
    run.drop(done)                                         all named state loses the same rows
"""
from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from kit.core.balls import column
from kit.core.checks import check_gradient
from kit.core.goal import Goal, Loss
from kit.core.loop import Memory, adam, check_differentiable, differentiate, gradients
from kit.core.model import asking
from kit.core.passes import PerImage, chunk_size, laid_out
from kit.core.seeding import Draws


class Found:
    """For each image of a chunk the best that was found: an image that reaches the goal before one that does not, then
    the one of higher score. Where nothing was found it is the image itself."""

    def __init__(self, x: Tensor):
        self.x_adv = x.clone()
        self.score = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        self.reached = torch.zeros_like(self.score, dtype=torch.bool)
        self.asked = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # how often the model answered about it
        self.progress: Progress | None = None
        self.checked = False  # whether the gradient has been looked at

    def see(self, rows: Tensor, x_adv: Tensor, score: Tensor, reached: Tensor) -> None:
        score, before = score.detach().to(self.score), self.reached[rows]
        wins = (reached & ~before) | ((reached == before) & (score > self.score[rows]))
        at = rows[wins]
        if self.progress is not None:
            self.progress.add(rows[wins & reached], self.asked, x_adv.detach()[wins & reached])
        if len(rows) == len(self.x_adv) and bool((rows[1:] > rows[:-1]).all()):  # faster than by index
            self.x_adv = torch.where(column(wins, x_adv), x_adv.detach(), self.x_adv)
        else:
            self.x_adv[at] = x_adv.detach()[wins]
        self.score[at], self.reached[at] = score[wins], reached[wins]


class Progress(PerImage):
    """What each image had after how many queries: `trace=Progress(x)` of an attack that asks for answers.

    `first` (N,) is the number of queries to the first success, inf where there was none, and `distance` (N,) ‖x' − x‖₂
    of what was found there; `to(d)` (N,) is the number of queries to a success within the distance d, and `after(q)`
    (N,) the distance of the nearest success within q queries.
    """

    def __init__(self, x: Tensor):
        self.x, self.rows = x, torch.arange(len(x))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Progress:
        part = copy(self)
        part.x, part.rows = self.x[rows], self.rows[rows]
        if rows.start == 0:  # a new call
            self._seen.clear()
        return part

    def add(self, rows: Tensor, asked: Tensor, x_adv: Tensor) -> None:
        if len(rows):
            size = (x_adv - self.x[rows]).flatten(1).norm(dim=1)
            self._seen.append((self.rows[rows.cpu()], asked[rows].cpu(), size.cpu()))

    def to(self, distance: float) -> Tensor:
        found = torch.full((len(self.rows),), torch.inf)
        for rows, asked, size in reversed(self._seen):
            near = size <= distance
            found[rows[near]] = asked[near].to(found)
        return found

    def after(self, queries: int) -> Tensor:
        """The distance of the nearest success within so many queries, (N,); inf where there was none."""
        found = torch.full((len(self.rows),), torch.inf)
        for rows, asked, size in self._seen:
            early = asked <= queries
            found[rows[early]] = torch.minimum(found[rows[early]], size[early].to(found))
        return found

    @property
    def first(self) -> Tensor:
        return self.to(torch.inf)

    @property
    def distance(self) -> Tensor:
        found = torch.full((len(self.rows),), torch.inf)
        for rows, _, size in reversed(self._seen):
            found[rows] = size.to(found)
        return found


class Live:
    """The images still worked on: `x`, `goal`, `draws`, `rows` (their places in the chunk), and what `state` names.

    A tensor that is assigned to the object has one row for each of them, and so has what it holds after `drop`; a
    number in `state` becomes one for each. `found` and `lately` are of the whole chunk: the best so far, and which
    images have reached the goal in this run.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, goal: Goal | None = None, draws: Any = None, trace: Progress | None = None,
    ):
        self.model, self.found = model, Found(x)
        self.found.progress = trace
        self._set(torch.arange(len(x), device=x.device), x, goal, draws)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"these images have no {name!r}: name it in again(…)")

    def _set(self, rows: Tensor, x: Tensor, goal: Any, draws: Draws | None) -> None:
        self.rows, self.x, self.goal, self.draws = rows, x, goal, draws
        self.memory: Memory = {}
        self.lately = Flags(len(self.found.score), x.device)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.rows)

    def again(self, rows: Tensor | None = None, **state: float | Tensor) -> Live:
        """Another run on all of these images, or on the rows given, with new state of its own."""
        run = Live.__new__(Live)
        run.model, run.found = self.model, self.found
        at = slice(None) if rows is None else rows
        run._set(self.rows[at], self.x[at], self.goal and self.goal[at], self.draws and self.draws[at])
        for name, value in state.items():
            if not isinstance(value, Tensor):
                value = torch.full_like(run.x[:, 0, 0, 0], value)
            setattr(run, name, value)
        return run

    def among(self, rows: Tensor) -> Live:
        """These rows of the images with their state, for a solver that chooses itself whom it works on."""
        part = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.dim():
                setattr(part, name, value[rows])
        part.goal, part.draws = self.goal and self.goal[rows], self.draws and self.draws[rows]
        part.memory = {}
        return part

    def ask(self, v: Tensor) -> Tensor:
        """The logits of one image v for each, (n, K). Cost: one forward pass."""
        self.found.asked[self.rows] += 1
        with asking(self.model, self.rows):
            z = self.model(laid_out(v))
        if v.requires_grad and torch.is_grad_enabled():
            check_differentiable(z)
        return z

    def answers(self, v: Tensor, of: Tensor) -> Tensor:
        """The logits of images v (m, C, H, W), (m, K), where v_i is about the image of[i], a chunk of them at a time
        and without gradients. Raises ValueError for NaN, which is no answer. Cost: m forward passes of one image."""
        z = []
        with torch.no_grad():
            for part, about in zip(v.split(chunk_size(v)), of.split(chunk_size(v)), strict=True):
                rows = self.rows[about]
                self.found.asked.index_add_(0, rows, torch.ones_like(rows))
                with asking(self.model, rows):
                    z.append(self.model(laid_out(part)))
        answers = torch.cat(z)
        if bool(answers.isnan().any()):
            raise ValueError(f"the model returned NaN for {int(answers.isnan().any(1).sum())} of {len(v)} images that "
                             "an attack asked about: check its weights and its input range")
        return answers

    @property
    def asked(self) -> Tensor:
        """How often the model has answered about each of these images, in this call, (n,)."""
        return self.found.asked[self.rows]

    def lead(self, z: Tensor, v: Tensor) -> Tensor:
        """By how much the attack leads with the logits z of v. Where it is a term beside others, its gradient could
        vanish unseen: the first time it is looked at by itself, for one backward pass more."""
        lead = self.goal.lead(z)
        if not self.found.checked:
            self._check(lead, differentiate(lead, v, keep_graph=True))
        return lead

    def grad(self, value: Tensor, v: Tensor, keep_graph: bool = False) -> Tensor:
        """∇_v Σ value. Cost: one backward pass. The first time it warns of images that cannot move (`check_gradient`);
        those that have reached the goal have no need to."""
        g = differentiate(value, v, keep_graph=keep_graph)
        self._check(value, g)
        return g

    def slopes(self, z: Tensor, v: Tensor, weights: Tensor) -> Tensor:
        """∇_v Σ_k weights_uk z_k for every u: (U, n, K) → (U, n, C, H, W). Cost: U backward passes."""
        g = gradients(z, v, weights)
        self._check(z, g.transpose(0, 1))
        return g

    def _check(self, value: Tensor, g: Tensor) -> None:
        if not self.found.checked:
            check_gradient(value.detach(), g, (self.found.reached | self.lately.up)[self.rows])
            self.found.checked = True

    def best(self, x_adv: Tensor, value: Tensor, reached: Tensor) -> None:
        """Keep, for each image, what reaches the goal before what does not, then the greatest value."""
        self.lately.raised(self.rows, reached)
        self.found.see(self.rows, x_adv, value, reached)

    def nearest(self, x_adv: Tensor, size: Tensor, reached: Tensor) -> None:
        """Keep, for each image, the smallest of those that reach the goal."""
        self.lately.raised(self.rows, reached)
        if bool(reached.any()):
            self.found.see(self.rows[reached], x_adv[reached], -size[reached], reached[reached])

    def propose(self, proposal: Tensor, loss: Loss, whatever: bool = False) -> tuple[Tensor, Tensor]:
        """Ask about one proposal for each image, and let `v` be it where ℓ grows (with `whatever`, everywhere). Returns
        where it was better and where it reaches the goal. `v` begins as x, `value` as −∞. Cost: one query."""
        if "value" not in vars(self):
            self.v, self.value = self.x, torch.full_like(self.x[:, 0, 0, 0], -torch.inf)
        with torch.no_grad():
            z = self.ask(proposal)
        value, reached = self.goal.gain(z, loss), self.goal.reached(z)
        self.best(proposal, value, reached)
        better = (value > self.value) | whatever
        self.v = torch.where(column(better, proposal), proposal, self.v)
        self.value = torch.where(better, value, self.value)
        return better, reached

    def adam(self, v: Tensor, g: Tensor, lr: float | Tensor) -> Tensor:
        """v after a step of Adam down the gradient g; the moments are of this run."""
        return adam(lr)(v.detach(), -g, self.memory)

    def drop(self, done: Tensor) -> None:
        """Leave these images: every row of theirs goes."""
        if not bool(done.any()):
            return
        stays = (~done).nonzero()[:, 0]
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.dim():
                setattr(self, name, value[stays] if value.dim() != 4 else laid_out(value[stays]))
        self.memory = {name: value[stays] if value.dim() else value for name, value in self.memory.items()}
        self.goal, self.draws = self.goal and self.goal[stays], self.draws and self.draws[stays]

    def search(self, name: str, first: float, rounds: int) -> Iterator[Live]:
        """`rounds` runs on all images, in which the number `name` is, image by image, ten times larger until a run has
        reached the goal, and from there on in the middle between the largest that did not and the smallest that did."""
        value = torch.full_like(self.x[:, 0, 0, 0], first)
        rows = self.rows
        low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
        for _ in range(rounds):
            run = self.again(**{name: value})
            yield run
            hit = run.lately.up[rows]
            low, high = torch.where(hit, low, value), torch.where(hit, value, high)
            value = torch.where(high.isinf(), 10 * value, (low + high) / 2)


class Flags:
    """One flag for each image of a chunk, whoever is still worked on."""

    def __init__(self, images: int, device: torch.device):
        self.up = torch.zeros(images, dtype=torch.bool, device=device)

    def raised(self, rows: Tensor, flags: Tensor) -> None:
        self.up[rows] |= flags
