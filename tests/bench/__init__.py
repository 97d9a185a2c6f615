"""Speed, as ratios measured in one run: `make bench`, or `python -m tests.bench gradient` for one family.

A file bench_<family>.py has a function `tasks()` that yields `Task`s. A task's bound is the time of the passes that no
implementation can avoid, run bare; every method is timed in turn with it, and its ratio to it is the figure to quote.
"""
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


@dataclass
class Task:
    """One line of work: `bound()` runs the unavoidable passes, `methods` are ours ("kit") and the peers' ways to do it.

    `quality` turns a method's result into a short text (success, distance, correlation) that stands beside its time.
    """

    name: str
    bound: Callable[[], object]
    methods: dict[str, Callable[[], object]]
    quality: Callable[[object], str] = lambda result: ""
    target: float | None = None
    repeats: int = 5
    rows: list[tuple[str, float, float, str]] = field(default_factory=list)

    def measure(self) -> None:
        """Time the bound and each method in turn, so that a drift of the machine's speed falls on all alike."""
        runs = {"bound": self.bound, **self.methods}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        results = {name: run() for name, run in runs.items()}
        for _ in range(self.repeats):
            for name, run in runs.items():
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
        bound = statistics.median(seconds["bound"])
        for name in self.methods:
            ratio = statistics.median(s / b for s, b in zip(seconds[name], seconds["bound"], strict=True))
            self.rows.append((name, ratio, ratio * bound, self.quality(results[name])))


def bare_passes(model: nn.Module, x: Tensor, y: Tensor, steps: int = 1, backward: bool = True) -> None:
    """Eager float32 forward and backward passes to the input alone, on chunks of 128, and nothing else."""
    for part, labels in zip(x.split(128), y.split(128), strict=True):
        for _ in range(steps):
            if not backward:
                with torch.no_grad():
                    model(part)
                continue
            v = part.detach().requires_grad_()
            torch.autograd.grad(nn.functional.cross_entropy(model(v), labels, reduction="sum"), v)


def peak_memory(run: Callable[[], object]) -> float:
    """The most memory that tensors made in `run` hold at once, in MB, by the allocator's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    held = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 1e6
