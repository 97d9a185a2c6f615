"""What a worker of a dask cluster is asked: `facts`, of what it is, and `execute_order`, to run a notebook."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import tempfile
import threading
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from kit.report.grids import CLUSTER, WORKERS
from kit.run.execute import FULL_DISK
from kit.run.files import ROOT, installed, measured_beside, package_key, versions, weights_used
from kit.run.job import Job, beside, kernel_environment, kill, perform
from kit.run.kernel import end_with_the_parent
from kit.run.notebooks import cores, warm_up

PAUSE = 0.5  # seconds between two reports of a notebook


def facts(code: str, data: bool, dask_worker: Any) -> dict[str, Any]:
    """What must be the same on all workers, and what this one offers. `code` is that of all notebooks.

    By `Client.run`, which gives the worker itself as `dask_worker`.
    """
    worker = dask_worker
    # What it computes itself, the cells of grids, is to be what a kernel computes: torch is not there yet.
    os.environ |= {name: v for name, v in kernel_environment(1, gpu=True).items() if name != "PYTHONPATH"}
    limit = getattr(worker.memory_manager, "memory_limit", None)
    return {
        "name": str(worker.name), "host": socket.gethostname(), "threads": worker.state.nthreads, "cores": cores(),
        "memory": limit / 2**30 if limit else None, "resources": dict(worker.state.total_resources),
        "about": setup(code), "data": data_at_hand() if data else {},
    }  # fmt: skip


def setup(code: str) -> dict[str, str]:
    """What of this machine a notebook's figures depend on, but for its data."""
    lock = ROOT / "requirements.lock"
    return {
        **installed(), **versions(), "kit": package_key(),
        "requirements.lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "none",
        **{f"the network {name}": key for name, key in weights_used(code).items()},
    }  # fmt: skip


def data_at_hand() -> dict[str, str]:
    """For each data set under KIT_DATA a hash of the names and sizes of its files and of their first and last bytes."""
    from kit.data.real import root

    folder = root()
    return {path.name: _fingerprint(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path.parent).as_posix()} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(4096))
            content.seek(max(0, size - 4096))
            digest.update(content.read(4096))
    return digest.hexdigest()


def dask_setup(worker: Any) -> None:
    """Called by dask when a worker of this machine starts (`--preload`): it ends with the runner, however that ends."""
    end_with_the_parent()


@lru_cache(maxsize=1)
def _warm() -> None:
    warm_up()


def execute_order(order: dict[str, Any]) -> dict[str, Any]:
    """A task: run the order's notebook in a folder of its own; what became of it, with the files that it made."""
    import distributed

    worker = distributed.get_worker()
    key = worker.get_current_task()
    distributed.secede()  # so that the cells of its grids can be computed on this worker too
    _warm()
    try:
        with tempfile.TemporaryDirectory(prefix="kit-run-", dir=worker.local_directory) as folder:
            return _executed(order, Path(folder), worker, key)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        said = f"{FULL_DISK}: free some space for {worker.local_directory}" if full else str(error)
        return {"result": {"status": "failed", "error": said}, "notebook": None, "measured": None}


def _executed(order: dict[str, Any], folder: Path, worker: Any, key: Any) -> dict[str, Any]:
    notebook = folder / "in" / order["place"]
    for name, content in order["files"].items():
        path = (notebook.parent / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise OSError(f"{name} lies outside the project, and is not written there")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    target = notebook if order["request"]["in_place"] else folder / "out" / order["place"]
    request = order["request"] | {"notebook": str(notebook), "target": str(target),
                                  "partial": str(folder / "out" / beside(notebook, "partial"))}
    job = Job(notebook, target, folder / "out" / beside(notebook, "failed"), request, None)
    runtime = folder / "runtime"
    runtime.mkdir()
    variables = kernel_environment(order["threads"], gpu=order["gpu"], shipped=order["request"]["in_place"])
    environment = {**os.environ, **variables, **order["anew"], "JUPYTER_RUNTIME_DIR": str(runtime)}
    if not order["request"]["in_place"]:
        environment |= {CLUSTER: worker.scheduler.address, WORKERS: " ".join(order["workers"])}
    stopping, over = threading.Event(), threading.Event()
    watch = threading.Thread(target=_watch, args=(order, job, worker, key, stopping, over), daemon=True)
    watch.start()
    try:
        result = asdict(perform(job, environment, order["limit"], stopping))
    finally:
        over.set()
        watch.join()
    output = result.pop("output")
    del result["notebook"]
    made = output.read_bytes() if output.is_file() else None
    return {"result": result, "notebook": made, "measured": text_of(measured_beside(notebook))}


def _watch(order: dict[str, Any], job: Job, worker: Any, key: Any, stopping: threading.Event, over: threading.Event
           ) -> None:
    """Send the runner how far the notebook is and what it has measured; end it when nobody waits for it any more."""
    said: tuple[Any, ...] = ()
    while not over.wait(PAUSE):
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            stopping.set()
            kill(job)
            return
        now = (job.share, job.source, text_of(measured_beside(job.notebook)))
        if now != said:
            news = dict(zip(("share", "source", "measured"), now, strict=True))
            worker.log_event(order["topic"], {"order": order["id"], **news})
            said = now


def text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
