"""The workers of a dask cluster: those of this machine are started here, and a `Crew` knows who has room for what."""

from __future__ import annotations

import logging
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kit.run.files import UserError, code_of, read
from kit.run.job import Job, end, kernel_environment
from kit.run.notebooks import threads_each
from kit.run.worker import facts, setup

PAUSE = 0.5  # seconds between two looks at the workers
ORPHAN = 60  # seconds after which a worker of this machine leaves that finds no scheduler: it started as the run ended
ADDRESS = re.compile(r"(tcp://)?[^/\s]+:([0-9]{1,5})")


def package() -> Any:
    """The package distributed. Raises UserError where it is not installed."""
    try:
        import distributed
    except ImportError:
        raise UserError("--cluster needs dask, which is missing: run .venv/bin/pip install -e '.[scale]'") from None
    return distributed


@dataclass
class Worker:
    address: str
    name: str
    host: str
    threads: int
    cores: int
    offers: dict[str, float]
    declared: set[str]  # of its offers, what dask counts too
    taken: dict[str, dict[str, float]] = field(default_factory=dict)  # by order
    out: str = ""  # why it gets no more notebooks

    def could(self, needs: dict[str, float]) -> bool:
        return all(self.offers.get(name, 0) >= number for name, number in needs.items())

    def room(self, needs: dict[str, float]) -> bool:
        left = {name: offer - sum(t.get(name, 0) for t in self.taken.values()) for name, offer in self.offers.items()}
        fits = all(left.get(name, 0) >= number for name, number in needs.items())
        return not self.out and len(self.taken) < self.threads and fits


class Crew:
    """The workers of a cluster, and the notebooks that they are given."""

    def __init__(self, client: Any, todo: list[Job], profile: str, say: Callable[[str], None]):
        self.client, self.say = client, say
        self.code = "\n".join(code_of(read(job.notebook)) for job in todo)
        self.with_data = profile == "full"
        self.about = setup(self.code)
        self.workers: dict[str, Worker] = {}
        self.refused: dict[str, str] = {}
        self.first: tuple[str, dict[str, str]] | None = None  # whose data the others must have
        self.topic = f"kit-{uuid.uuid4().hex}"
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        client.subscribe_topic(self.topic, lambda event: self.heard.put(event[1]))

    def look(self) -> None:
        """Learn which workers are there. A new one with another version or other data than the rest gets nothing."""
        there = set(self._asked(self.client.nthreads))
        for address in set(self.workers) - there:
            del self.workers[address]
        for address in set(self.refused) - there:
            del self.refused[address]
        new = sorted(there - set(self.workers) - set(self.refused))
        if not new:
            return
        answers = self._asked(self.client.run, facts, self.code, self.with_data, workers=new, on_error="return")
        for address in new:
            found = answers.get(address)
            if isinstance(found, OSError):  # it is gone again
                continue
            if isinstance(found, BaseException):
                self.refused[address] = f"the worker {address} cannot run notebooks, since it says {found!r}: " \
                                        "install the project there as it is here"
            elif wrong := self.mismatch(found):
                self.refused[address] = f"the worker {found['name']} ({address}) {wrong}"
            else:
                self.workers[address] = worker_of(address, found)

    @staticmethod
    def _asked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except OSError as error:
            raise UserError(f"the dask scheduler is gone ({type(error).__name__}): start it again with its workers, "
                            "and the same command goes on from there") from None

    def mismatch(self, found: dict[str, Any]) -> str:
        """In what a worker differs from this machine, or from the data of the first worker; empty if in nothing."""
        if wrong := differing(self.about, found["about"]):
            return f"differs from this machine: {wrong}; let both have the same checkout and environment"
        if self.first is None:
            self.first = found["name"], found["data"]
        if wrong := differing(self.first[1], found["data"]):
            return f"has other data than the worker {self.first[0]}: {wrong}; let KIT_DATA hold the same on both"
        return ""

    def place(self, job: Job) -> Worker | None:
        """The worker with room for a job that has most of it left."""
        free = [worker for worker in self.workers.values() if worker.room(job.needs)]
        return max(free, key=lambda worker: worker.threads - len(worker.taken), default=None)

    def nobody(self) -> str:
        """Why none of the workers that are there gets anything; empty where one does, and where none is there."""
        if any(not worker.out for worker in self.workers.values()):
            return ""
        return "; ".join([*(f"{w.name}: {w.out}" for w in self.workers.values()), *self.refused.values()])

    @property
    def threads(self) -> int:
        return sum(worker.threads for worker in self.workers.values() if not worker.out)

    def threads_of(self, worker: Worker, in_place: bool) -> int:
        """On how many threads a notebook computes there: its share of the cores of that machine."""
        at_once = sum(other.threads for other in self.workers.values() if other.host == worker.host)
        return threads_each(worker.cores, at_once, in_place)


def worker_of(address: str, found: dict[str, Any]) -> Worker:
    offers = dict(found["resources"])
    if "memory" not in offers and found["memory"]:
        offers["memory"] = found["memory"]
    return Worker(address, found["name"], found["host"], found["threads"], found["cores"], offers,
                  set(found["resources"]))


def differing(here: dict[str, str], there: dict[str, str]) -> str:
    """What differs between two tables, in words; hashes by their first digits."""
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    return ", ".join(f"{name} is {there.get(name, 'missing')[:12]} and not {here.get(name, 'missing')[:12]}"
                     for name in names)


@contextmanager
def cluster(address: str, gpus: bool = False) -> Iterator[Any]:
    """A client of the cluster: of one that is there, or of processes of this machine that end with the block."""
    distributed = package()
    form = ADDRESS.fullmatch(address)
    if not address.startswith("local:") and not (form and int(form[2]) < 2**16):
        raise UserError("a cluster is local:N, N workers of this machine, or the address that a dask scheduler prints, "
                        f"tcp://HOST:8786: not {address!r}")
    if not address.startswith("local:"):
        with _silent():
            try:
                client = distributed.Client(address, timeout=10, set_as_default=False)
            except (OSError, ValueError) as error:
                raise UserError(f"no dask scheduler answers at {address} ({type(error).__name__}): start one with "
                                "`dask scheduler`, or let local:N start N workers here") from None
            try:
                yield client
            finally:
                client.close()
        return
    number = address.removeprefix("local:")
    if not re.fullmatch("[1-9][0-9]*", number):
        raise UserError(f"local:N starts N workers on this machine, at least 1: not {address!r}")
    import dask.config

    patient = {f"distributed.comm.timeouts.{name}": "300s" for name in ("connect", "tcp")}  # on a busy machine
    options = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0", "dashboard": False}
    scheduler = {"cls": distributed.Scheduler, "options": options}
    with (
        dask.config.set(patient),
        tempfile.TemporaryDirectory(prefix="kit-workers-", ignore_cleanup_errors=True) as folder,
        _silent(),
        distributed.SpecCluster({}, scheduler, silence_logs=False) as here,
        distributed.Client(here, set_as_default=False) as client,
        _processes(int(number), here.scheduler_address, Path(folder), gpus),
    ):
        yield client


@contextmanager
def _silent() -> Iterator[None]:
    """Without distributed's own words, which tell of a lost connection at length: `Crew` says what it means."""
    logs = [logging.getLogger(name) for name in ("distributed", "distributed.client")]  # each has a level of its own
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


@contextmanager
def _processes(number: int, address: str, folder: Path, gpus: bool) -> Iterator[None]:
    """Workers of one thread on this machine, which share its memory; the first of them have a GPU each.

    One that ends is started anew under another name: the scheduler may still know the old one.
    """
    workers: dict[int, subprocess.Popen[bytes]] = {}
    starts, over = Counter[int](), threading.Event()
    count = _gpus() if gpus else 0

    def start(i: int) -> subprocess.Popen[bytes]:
        name = f"local-{i}" + (f".{starts[i]}" if starts[i] else "")
        starts[i] += 1
        offers = f"memory={psutil.virtual_memory().total / 2**30 / number:.3f}" + (",GPU=1" if i < count else "")
        variables = kernel_environment(1, gpu=i < count) | ({"CUDA_VISIBLE_DEVICES": str(i)} if i < count else {})
        command = [sys.executable, "-m", "dask", "worker", address, "--name", name, "--resources", offers]
        command += ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--no-dashboard", "--host", "127.0.0.1"]
        command += ["--local-directory", str(folder), "--preload", "kit.run.worker", "--death-timeout", str(ORPHAN)]
        with (folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=log,
                                    stderr=log, start_new_session=True)

    def keep() -> None:
        while True:
            for i in range(number):
                if i not in workers or workers[i].poll() is not None:
                    workers[i] = start(i)
            if over.wait(PAUSE):
                return

    watch = threading.Thread(target=keep, daemon=True)
    try:
        watch.start()
        yield
    finally:
        over.set()
        if watch.ident is not None:
            watch.join()
        for process in workers.values():
            end(process.pid)
            process.wait()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
