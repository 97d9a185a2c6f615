"""Notebooks on the workers of a dask cluster: `kit run --cluster ADDRESS`, or `local:N`, N processes of this machine.

A notebook is a task. A worker is sent it with the files that it reads and sends back the executed copy and what it
measured, so that the workers need no folder of this machine: each has its own checkout, environment and data, which
must be the same (`facts`). A notebook goes to a worker once that worker has room for it: a slow one takes fewer, and
what was on a worker that is lost goes to the next that is free. A worker runs as many notebooks at once as it has
threads, and of a GPU and of memory no more than it offers (`dask worker --resources "GPU=1 memory=64"`).
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kit.report.measured import kept_in, merged, written
from kit.run.crew import PAUSE, Crew, Worker, cluster
from kit.run.execute import EDITED, FULL_DISK
from kit.run.files import UserError, files_beside, measured_beside, read
from kit.run.job import Job, Result, relative
from kit.run.notebooks import shown
from kit.run.worker import execute_order

LOSSES = 10  # so often a notebook starts again because its worker was lost


@dataclass
class Order:
    """A job on its way: the worker that has it, the notebook as it was sent, and what it had measured when last heard
    of."""

    job: Job
    worker: Worker
    sent: bytes
    measured: dict[str, Any]
    future: Any = None


def run_on_cluster(
    address: str,
    todo: list[Job],
    limit: float,
    device: str,
    in_place: bool,
    console: Console | None,
    finished: Callable[[Result], None] | None,
    anew: dict[str, str],
) -> None:
    """Run the jobs on the workers of a cluster, the longest first; each gets its result.

    Raises UserError before anything runs for a cluster that is not there, for workers that differ, and for a notebook
    that asks for more than any of them offers.
    """
    say, address = console.print if console is not None else (lambda *_, **__: None), address.lower()
    with cluster(address, any(job.needs.get("GPU") for job in todo)) as client:
        crew = Crew(client, todo, todo[0].request["stamp"]["profile"], lambda text: say(text, soft_wrap=True))
        _ready(crew, todo, device, waits=not address.startswith("local:"))
        with shown(todo, console) as show:
            _Run(crew, todo, limit, in_place, anew, finished, show).run()


def _ready(crew: Crew, todo: list[Job], device: str, *, waits: bool) -> None:
    """Wait for the first workers, refuse those that differ, and notebooks that none of them can run."""
    crew.look()
    if waits and not crew.workers and not crew.refused:
        crew.say("The cluster has no worker yet: waiting for one (dask worker, with this address).")
    while not crew.workers and not crew.refused:
        time.sleep(PAUSE)
        crew.look()
    if crew.refused:
        raise UserError("; ".join(crew.refused.values()))
    workers = sorted(crew.workers.values(), key=lambda worker: worker.name)
    for job in todo:
        if device == "auto" and not any(w.offers.get("GPU", 0) >= job.needs.get("GPU", 0) for w in workers):
            del job.needs["GPU"]  # there is none: as on a machine without one
        if not any(worker.could(job.needs) for worker in workers):
            offers = "; ".join(f"{w.name}: {_listed(w.offers)}" for w in workers)
            raise UserError(f"no worker offers what {job.notebook} asks for, {_listed(job.needs)}; they offer {offers}"
                            f". {_advice(job, workers, waits)}")


def _advice(job: Job, workers: list[Worker], waits: bool) -> str:
    asked = ",".join(f"{name}={number:g}" for name, number in job.needs.items())
    start = f"start one with `dask worker --resources {asked}`" if waits else "take a machine that has it"
    gpu = job.needs.get("GPU", 0) > max(worker.offers.get("GPU", 0) for worker in workers)
    return f"Give --device auto or cpu, or {start}" if gpu else start.capitalize()


def _listed(offers: dict[str, float]) -> str:
    units = {"memory": " GiB"}
    return ", ".join(f"{name} {number:.3g}{units.get(name, '')}" for name, number in offers.items()) or "nothing"


class _Run:
    """One run: what waits, what is on its way, and what comes back."""

    def __init__(self, crew: Crew, todo: list[Job], limit: float, in_place: bool, anew: dict[str, str],
                 finished: Callable[[Result], None] | None, show: Callable[[int], None]):
        self.crew, self.limit, self.in_place, self.anew = crew, limit, in_place, anew
        self.finished, self.show = finished, show
        self.waiting = sorted(todo, key=lambda job: -(job.expected or float("inf")))
        self.orders: dict[str, Order] = {}
        self.losses: dict[Path, int] = {}
        self.told: set[str] = set()
        self.alone = False  # without a worker
        self.back = threading.Event()  # a notebook has come back

    def run(self) -> None:
        try:
            while self.waiting or self.orders:
                self.give()
                self.pause()
                self.crew.look()
                self.listen()
                self.collect()
                self.show(self.crew.threads)
        finally:  # a task whose future is cancelled ends its kernel
            for order in self.orders.values():
                with suppress(Exception):
                    order.future.cancel(force=True)

    def pause(self) -> None:
        """Until a notebook is back, but no longer than until the next look at the workers."""
        self.back.wait(PAUSE)
        self.back.clear()

    def give(self) -> None:
        for job in list(self.waiting):
            if worker := self.crew.place(job):
                self.waiting.remove(job)
                try:
                    self.send(job, worker)
                except (OSError, ValueError) as error:
                    self.done(job, Result(job.notebook, job.target, "failed", error=str(error)))
        if self.waiting and not self.orders and (why := self.crew.nobody()):
            for job in self.waiting:
                self.done(job, Result(job.notebook, job.target, "failed", error=f"no worker is left: {why}"))
            self.waiting = []
        if not self.crew.workers and not self.alone:
            self.crew.say("No worker is left: waiting for one.")
        self.alone = not self.crew.workers

    def send(self, job: Job, worker: Worker) -> None:
        beside_it = files_beside(read(job.notebook), job.notebook)
        files = {job.notebook.name: job.notebook.read_bytes()}
        files |= {name: path.read_bytes() for name, path in beside_it.items() if not Path(name).is_absolute()}
        name = uuid.uuid4().hex
        order = {
            "id": name, "topic": self.crew.topic, "place": str(relative(job.notebook)), "files": files,
            "request": job.request, "limit": self.limit, "anew": self.anew, "gpu": bool(job.needs.get("GPU")),
            "threads": self.crew.threads_of(worker, self.in_place), "workers": list(self.crew.workers),
        }  # fmt: skip
        sent = kept_in(measured_beside(job.notebook))
        job.started, job.share = time.monotonic(), 0.0
        worker.taken[name] = job.needs
        counted = {n: number for n, number in job.needs.items() if n in worker.declared}
        future = self.crew.client.submit(execute_order, order, key=f"{job.notebook.stem}-{name}", pure=False,
                                         workers=[worker.address], resources=counted)
        future.add_done_callback(lambda _: self.back.set())
        self.orders[name] = Order(job, worker, files[job.notebook.name], sent, future)

    def listen(self) -> None:
        """What workers have said: how far a notebook is, and the groups that it has measured, which are kept now."""
        while not self.crew.heard.empty():
            event = self.crew.heard.get()
            if order := self.orders.get(event["order"]):
                order.job.share, order.job.source = event["share"], event["source"]
                with suppress(OSError, ValueError):  # it is tried again with the result
                    self.keep(order, event["measured"])
        for address, why in self.crew.refused.items():
            if address not in self.told:
                self.told.add(address)
                self.crew.say(f"{why}. It gets no notebook.")

    def keep(self, order: Order, text: str | None) -> None:
        """Write what a notebook has measured beside it, together with what stands there."""
        found = json.loads(text) if text is not None else {}
        if found == order.measured:
            return
        path = measured_beside(order.job.notebook)
        written(path, merged(kept_in(path), order.measured, found))
        order.measured = found

    def collect(self) -> None:
        for name, order in list(self.orders.items()):
            status, there = order.future.status, order.worker.address in self.crew.workers
            if status == "pending" and there:
                continue
            del self.orders[name]
            order.worker.taken.pop(name, None)
            if status == "finished":
                with suppress(Exception):  # the worker went with its answer
                    answer = order.future.result(timeout=30)
                    order.future.release()
                    self.answered(order, answer)
                    continue
            elif status == "error" and there and not _lost(order.future.exception()):
                error = f"the worker {order.worker.name} could not run it: {order.future.exception()!r}"
                self.done(order.job, Result(order.job.notebook, order.job.target, "failed", error=error))
                continue
            self.lost(order)

    def lost(self, order: Order) -> None:
        """A notebook whose worker is gone waits for another, before all others."""
        job = order.job
        order.future.cancel(force=True)
        job.started, job.share = None, 0.0
        self.losses[job.notebook] = self.losses.get(job.notebook, 0) + 1
        if self.losses[job.notebook] > LOSSES:
            error = f"its worker was lost {LOSSES + 1} times, last {order.worker.name}: does it take too much memory?"
            self.done(job, Result(job.notebook, job.target, "failed", error=error))
            return
        self.crew.say(f"The worker {order.worker.name} was lost: {job.notebook.name} runs again elsewhere.")
        self.waiting.insert(0, job)

    def answered(self, order: Order, answer: dict[str, Any]) -> None:
        job, worker, found = order.job, order.worker, answer["result"]
        try:
            self.keep(order, answer["measured"])
            if found["error"].startswith(FULL_DISK):
                worker.out = found["error"]
                self.crew.say(f"On the worker {worker.name} {found['error']}. It gets no more notebooks.")
                if any(other.could(job.needs) and not other.out for other in self.crew.workers.values()):
                    job.started = None
                    self.waiting.insert(0, job)
                    return
            output = self.gathered(order, answer)
        except ValueError as error:
            found, output = found | {"status": "failed", "error": str(error)}, job.target
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            said = f"{FULL_DISK}: free some space for {job.target.parent} and run again" if full else \
                f"{error.strerror}: {error.filename or job.target}"
            found, output = found | {"status": "failed", "error": said}, job.target
        if found["status"] not in ("ok", "up to date"):
            found["error"] += f" (on the worker {worker.name})"
        self.done(job, Result(job.notebook, output, **found))

    def gathered(self, order: Order, answer: dict[str, Any]) -> Path:
        """Put the notebook that came back into its place."""
        job, content, found = order.job, answer["notebook"], answer["result"]
        good = found["status"] == "ok"
        path = job.target if good else job.failed
        if content is None or (not good and self.in_place and content == order.sent):
            return job.target
        if good and self.in_place and job.notebook.read_bytes() != order.sent:
            found |= {"status": "failed", "error": EDITED}
            return job.target
        if good and not self.in_place or content != order.sent:
            _write(path, content)
        if good:
            job.failed.unlink(missing_ok=True)
        return path

    def done(self, job: Job, result: Result) -> None:
        job.result = result
        if self.finished:
            self.finished(result)


def _lost(error: BaseException | None) -> bool:
    """Whether a task failed because its worker did."""
    return type(error).__name__ in ("KilledWorker", "CancelledError", "FutureCancelledError", "CommClosedError")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
