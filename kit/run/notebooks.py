"""Executing notebooks: `run(paths, profile="quick")`.

Each notebook runs in a process of its own (`kit.run.job`), with a time limit and its share of the cores. What is up to
date is skipped, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kit.run.files import DEFAULTS, ROOT, UserError, chapters
from kit.run.job import Job, Result, kernel_environment, kill, perform, prepare

LIMIT = {"quick": 900.0, "full": 24 * 3600.0}  # seconds a notebook may take unless told otherwise
DEVICES = ("auto", "cpu", "cuda")


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warm_up() -> None:
    """Let matplotlib build its list of fonts, which on a new machine it announces on stderr, before a notebook does."""
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], capture_output=True, check=False)


def _check(
    profile: str, device: str, seed: int, jobs: int, timeout: float | None, in_place: bool, cluster: str | None
) -> None:
    if profile not in LIMIT:
        raise UserError(f"the profile is quick or full, not {profile!r}")
    if device not in DEVICES:
        raise UserError(f"the device is auto, cpu or cuda, not {device!r}")
    if jobs < 1:
        raise UserError(f"the number of jobs is at least 1, not {jobs}")
    if timeout is not None and timeout <= 0:
        raise UserError(f"the time limit is a positive number of seconds, not {timeout:g}")
    if in_place and {"profile": profile, "device": device, "seed": seed} != DEFAULTS:
        raise UserError("committed outputs are those of the defaults: give --in-place no other profile, device or seed")
    if cluster is not None and jobs != 1:
        raise UserError("the workers of a cluster say how many notebooks run at once: give --cluster without --jobs")
    if device == "cuda" and cluster is None:
        import torch

        if not torch.cuda.is_available():
            raise UserError("cuda was asked for, but torch sees no GPU on this machine: use the device auto or cpu")


def _find(paths: Sequence[str | Path] | None) -> list[Path]:
    """The notebooks meant by `paths`: files, folders of notebooks, or nothing for the whole book."""
    if not paths:
        found = chapters()
        if not found:
            raise UserError(f"there are no notebooks under {ROOT / 'notebooks'}: name one")
        return found
    found = []
    for path in map(Path, paths):
        inside = [p for p in sorted(path.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
        if path.is_dir() and not inside:
            raise UserError(f"there are no notebooks in the folder {path}")
        found += inside if path.is_dir() else [path]
    return list(dict.fromkeys(p.resolve() for p in found))


def _can_be_written(folder: Path) -> None:
    """Raise UserError for a folder that cannot take what a run of hours will have found."""
    try:
        with tempfile.TemporaryFile(dir=next(place for place in (folder, *folder.parents) if place.exists())):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror}): give --out another folder") from None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _left(todo: list[Job], jobs: int) -> float:
    """Seconds until all is done: the work spread over the jobs, but no less than the longest of them."""
    known = [j.expected for j in todo if j.expected]
    known += [j.result.seconds for j in todo if j.result is not None]
    typical = sum(known) / len(known) if known else 30.0
    times = [job.left(typical) for job in todo]
    return max([sum(times) / jobs, *times], default=0.0)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let a polite kill or a closed terminal stop the run as Ctrl-C does; a second one does not disturb the first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        names.remove(signal.SIGHUP)  # nohup: it is to go on after the terminal

    def stop(number: int, frame: Any) -> None:
        for name in names:
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {name: signal.signal(name, stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def shown(todo: list[Job], console: Console | None) -> Iterator[Callable[[int], None]]:
    """A bar of what is done, drawn anew by a call with how many notebooks run at once."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g} of {task.total:g}  {task.fields[left]}"),
        console=console,
        disable=console is None,
        transient=True,
    )
    with progress:
        bar = progress.add_task("notebooks", total=len(todo), left="")

        def show(at_once: int) -> None:
            done = sum(job.result is not None for job in todo)
            progress.update(bar, completed=done, left=f"about {_clock(_left(todo, max(1, at_once)))} left")

        yield show


def threads_each(cores: int, at_once: int, in_place: bool) -> int:
    """The threads on which each of several notebooks computes."""
    threads = 1 if in_place else max(1, cores // at_once)
    asked = os.environ.get("OMP_NUM_THREADS", "")  # who runs something beside us asks for fewer
    return max(1, min(threads, int(asked))) if asked.isdigit() else threads


def run(
    paths: Sequence[str | Path] | None = None,
    *,
    profile: str = "quick",
    device: str = "auto",
    seed: int = 0,
    jobs: int = 1,
    out: str | Path | None = None,
    force: bool = False,
    timeout: float | None = None,
    in_place: bool = False,
    console: Console | None = None,
    finished: Callable[[Result], None] | None = None,
    cluster: str | None = None,
) -> list[Result]:
    """Execute notebooks, several at once if `jobs` says so, and return what became of each, in the order given.

    `paths` are notebooks or folders of them; none means every chapter in the order of the book. The executed copies
    go to `out` (default `runs/<profile>`), each moved into place when it is complete; of a failure the partial
    notebook is kept there as `<name>.failed.ipynb`. An output is up to date, and skipped unless `force`, if all that it
    depends on is the same (`kit.run.files.run_key`) and it was not changed since. Under the full profile `force` also
    measures anew what is kept beside the chapters (`kit.report.Measured`). A cell may write 10 MB; one that is tagged
    `raises-exception` may fail. `timeout` is in seconds and per notebook (default 900 for quick, 86400 for full).
    Threads per notebook: cores // jobs.

    With `cluster`, the address of a dask scheduler or "local:N", they run on its workers (`kit.run.cluster`).

    With `in_place` the notebooks' own outputs are refreshed, under the default parameters only: on one thread,
    without a GPU, with output on stderr an error, and with a file whose outputs did not change left as it is.

    A notebook that fails does not stop the others. `UserError` for a mistake in the call, before anything runs.
    Ctrl-C (or SIGTERM) ends every process this call started and raises `KeyboardInterrupt`. `finished` is called
    with each result as it comes.
    """
    _check(profile, device, seed, jobs, timeout, in_place, cluster)
    given = {"profile": profile, "device": device, "seed": seed}
    folder = Path(out).resolve() if out is not None else ROOT / "runs" / profile
    work = [prepare(notebook, given, folder, in_place, force) for notebook in _find(paths)]
    targets = [job.target for job in work]
    for job in work:
        if targets.count(job.target) > 1:
            raise UserError(f"two notebooks would both be written to {job.target}: run them one at a time")
        if job.up_to_date:
            keep = {name: job.earlier[name] for name in ("seconds", "cpu", "memory", "device") if job.earlier.get(name)}
            job.result = Result(job.notebook, job.target, "up to date", **keep)
            if finished:
                finished(job.result)
    todo = [job for job in work if not job.up_to_date]
    if todo:
        if not in_place:
            _can_be_written(folder)
        from kit.report.measured import ANEW  # late: it brings numpy and matplotlib, and a command line starts light

        anew = {ANEW: "1"} if force and profile == "full" else {}
        limit = timeout or LIMIT[profile]
        with _terminable():
            if cluster is not None:
                from kit.run.cluster import run_on_cluster  # late: it brings dask, which only this asks for

                run_on_cluster(cluster, todo, limit, device, in_place, console, finished, anew)
            else:
                _run_all(todo, min(jobs, len(todo)), jobs, limit, device, in_place, console, finished, anew)
    return [job.result for job in work if job.result is not None]


def _run_all(
    todo: list[Job],
    workers: int,
    jobs: int,
    limit: float,
    device: str,
    in_place: bool,
    console: Console | None,
    finished: Callable[[Result], None] | None,
    anew: dict[str, str],
) -> None:
    threads = threads_each(cores(), jobs, in_place)
    gpu = not in_place and device != "cpu"
    stopping = threading.Event()
    with tempfile.TemporaryDirectory(prefix="kit-run-") as runtime, shown(todo, console) as show:
        variables = kernel_environment(threads, gpu=gpu, shipped=in_place)
        environment = {**os.environ, **variables, **anew, "JUPYTER_RUNTIME_DIR": runtime}
        warm_up()

        def one(job: Job) -> None:
            try:
                job.result = perform(job, environment, limit, stopping)
            except OSError as error:
                text = f"{error.strerror}: {error.filename or job.target}"
                job.result = Result(job.notebook, job.target, "failed", error=text)
            if finished and not stopping.is_set():
                finished(job.result)

        with ThreadPoolExecutor(workers) as pool:
            try:
                futures = [pool.submit(one, job) for job in todo]
                while wait(futures, timeout=0.5).not_done:
                    show(workers)
            except KeyboardInterrupt:
                stopping.set()
                for job in todo:
                    kill(job)
                raise
        for future in futures:
            future.result()
