"""Executing notebooks: `run(paths, profile="quick")`.

Each notebook runs in a process of its own (`kit.run.execute`), with a time limit and its share of the cores. What is
up to date is skipped, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kit.run.files import (
    DEFAULTS,
    PACKAGE,
    ROOT,
    UserError,
    chapters,
    code_key,
    executed,
    parameters,
    read,
    run_key,
    stamp,
    versions,
)

LIMIT = {"quick": 900.0, "full": 24 * 3600.0}  # seconds a notebook may take unless told otherwise
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class Result:
    """What became of one notebook. `memory` is its kernel's peak resident memory in MiB."""

    notebook: Path
    output: Path  # the executed notebook, or for a failure the partial one
    status: str  # "ok", "up to date", "failed", "timed out" or "stopped"
    seconds: float = 0.0
    memory: int = 0
    device: str = ""
    error: str = ""
    cell: str = ""
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.status in ("ok", "up to date")


@dataclass
class Job:
    notebook: Path
    target: Path
    failed: Path
    request: dict[str, Any]  # what kit.run.execute is told
    expected: float | None  # seconds an earlier run took
    up_to_date: bool = False
    earlier: dict[str, Any] = field(default_factory=dict)  # that run's stamp
    process: subprocess.Popen[str] | None = None
    started: float | None = None
    result: Result | None = None
    source: str = ""
    share: float = 0.0  # of its cells that are done

    @property
    def partial(self) -> Path:
        return Path(self.request["partial"])

    def left(self, typical: float) -> float:
        """Seconds this job still takes, by what it took before, or else by how far its cells have come."""
        if self.result is not None:
            return 0.0
        expected = self.expected or typical
        if self.started is None:
            return expected
        elapsed = time.monotonic() - self.started
        if self.expected is None and self.share > 0:
            expected = elapsed / self.share
        return max(expected - elapsed, 1.0)


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernel_environment(threads: int, *, gpu: bool) -> dict[str, str]:
    """The variables that a notebook's kernel needs so that its numbers do not depend on who starts it.

    The runner and the regressions share them: `kit` is importable, figures go into the notebook, each library computes
    on `threads` threads, and with `gpu=False` no GPU is seen, because committed numbers are those of a CPU.
    """
    path = os.environ.get("PYTHONPATH")
    variables = {
        "PYTHONPATH": str(PACKAGE.parent) + (os.pathsep + path if path else ""),
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    for library in ("OMP", "MKL", "OPENBLAS"):
        variables[f"{library}_NUM_THREADS"] = str(threads)
    if not gpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def warm_up() -> None:
    """Let matplotlib build its list of fonts, which on a new machine it announces on stderr, before a notebook does."""
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], capture_output=True, check=False)


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """The commit of the code, with a plus where `kit` has changed since; None outside a git checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(PACKAGE.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "kit") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _check(profile: str, device: str, seed: int, jobs: int, timeout: float | None, in_place: bool) -> None:
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
    if device == "cuda":
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


def _relative(notebook: Path) -> Path:
    """Where a notebook lies under the run folder: as in the repository, else as under the current folder."""
    for base in (ROOT, Path.cwd()):
        if notebook.is_relative_to(base):
            return notebook.relative_to(base)
    return Path(notebook.name)


def _prepare(notebook: Path, given: dict[str, Any], folder: Path, in_place: bool, force: bool) -> Job:
    nb = read(notebook)
    try:
        defaults = parameters(nb)
    except (SyntaxError, ValueError):
        raise UserError(f"the parameters cell of {notebook} must hold plain assignments of constants") from None
    if defaults is None or not set(given) <= set(defaults):
        raise UserError(f"{notebook} needs a code cell tagged `parameters` that sets profile, device and seed")
    relative = _relative(notebook)
    target = notebook if in_place else folder / relative
    if not in_place and target.resolve() == notebook:
        raise UserError(f"the output of {notebook} would overwrite it: choose another output folder")
    earlier: dict[str, Any] = {}
    complete = False
    if target.exists():
        try:
            previous = read(target)
            earlier, complete = stamp(previous), executed(previous)
        except UserError:  # a damaged output is simply made again
            pass
    key = run_key(nb, given, prose=not in_place)
    request = {
        "notebook": str(notebook),
        "target": str(target),
        "partial": str(folder / relative.with_suffix(".partial.ipynb")),
        "inject": given if given != {name: defaults[name] for name in given} else {},
        "in_place": in_place,
        "stamp": {
            **versions(),
            "profile": given["profile"],
            "seed": given["seed"],
            "commit": _commit(),
            "source": code_key(nb),
            "key": key,
        },
    }
    return Job(
        notebook=notebook,
        target=target,
        failed=folder / relative.with_suffix(".failed.ipynb"),
        request=request,
        expected=earlier.get("seconds") or (stamp(nb).get("seconds") if given["profile"] == "quick" else None),
        up_to_date=complete and earlier.get("key") == key and not force,
        earlier=earlier,
    )


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and everything it has started."""
    import psutil

    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    process.kill()
    for child in tree:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def _execute(job: Job, environment: dict[str, str], limit: float, stopping: threading.Event) -> Result:
    """Run one job to its end and say what became of it."""
    if stopping.is_set():
        return Result(job.notebook, job.target, "stopped")
    job.started = time.monotonic()
    expired = threading.Event()
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kit.run.execute"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends its children
        )
        job.process = process
        if stopping.is_set():
            _kill(process)
        assert process.stdin is not None
        assert process.stdout is not None

        def expire() -> None:
            expired.set()
            _kill(process)

        timer = threading.Timer(limit, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(job.request) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                last = json.loads(line)
                if "of" in last:
                    job.share, job.source = (last["cell"] - 1) / last["of"], last["source"]
        except (BrokenPipeError, json.JSONDecodeError):  # killed in the middle of a line
            last = {}
        finally:
            timer.cancel()
            _kill(process)
            process.wait()
            for pipe in (process.stdout, process.stdin):
                pipe.close()
        log.seek(0)
        words = log.read().strip()
    seconds = round(time.monotonic() - job.started, 1)
    if last.get("status") == "ok":
        job.failed.unlink(missing_ok=True)  # of an earlier attempt
        return Result(job.notebook, job.target, **last)
    partial = job.target
    if job.partial.exists() and not stopping.is_set():
        partial = job.failed
        os.replace(job.partial, partial)
    if stopping.is_set():
        job.partial.unlink(missing_ok=True)
        return Result(job.notebook, job.target, "stopped", seconds)
    if expired.is_set():
        error = f"stopped after its time limit of {limit:g} s: raise it with --timeout"
        return Result(job.notebook, partial, "timed out", seconds, error=error, cell=job.source)
    if last.get("status") == "failed":
        return Result(job.notebook, partial, **last)
    error = "its process ended without a word, most often because memory ran out"
    return Result(job.notebook, partial, "failed", seconds, error=error, cell=job.source, detail=words)


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
    """Let a polite kill or a closed terminal stop the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), signal.default_int_handler) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


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
) -> list[Result]:
    """Execute notebooks, several at once if `jobs` says so, and return what became of each, in the order given.

    `paths` are notebooks or folders of them; none means every chapter in the order of the book. The executed copies
    go to `out` (default `runs/<profile>`), each moved into place when it is complete; of a failure the partial
    notebook is kept there as `<name>.failed.ipynb`. An output that was made from the same notebook, the same `kit`,
    the same parameters and the same versions is up to date and skipped unless `force`. `timeout` is in seconds and
    per notebook (default 900 for quick, 86400 for full). Threads per notebook: cores // jobs.

    With `in_place` the notebooks' own outputs are refreshed, under the default parameters only: on one thread,
    without a GPU, with output on stderr an error, and with a file whose outputs did not change left as it is.

    A notebook that fails does not stop the others. `UserError` for a mistake in the call, before anything runs.
    Ctrl-C (or SIGTERM) ends every process this call started and raises `KeyboardInterrupt`. `finished` is called
    with each result as it comes.
    """
    _check(profile, device, seed, jobs, timeout, in_place)
    given = {"profile": profile, "device": device, "seed": seed}
    folder = Path(out).resolve() if out is not None else ROOT / "runs" / profile
    work = [_prepare(notebook, given, folder, in_place, force) for notebook in _find(paths)]
    targets = [job.target for job in work]
    for job in work:
        if targets.count(job.target) > 1:
            raise UserError(f"two notebooks would both be written to {job.target}: run them one at a time")
        if job.up_to_date:
            keep = {name: job.earlier[name] for name in ("seconds", "memory", "device") if job.earlier.get(name)}
            job.result = Result(job.notebook, job.target, "up to date", **keep)
            if finished:
                finished(job.result)
    todo = [job for job in work if not job.up_to_date]
    if todo:
        _run_all(todo, min(jobs, len(todo)), jobs, timeout or LIMIT[profile], device, in_place, console, finished)
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
) -> None:
    threads = 1 if in_place else max(1, cores() // jobs)
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit():  # who runs something beside us asks for fewer
        threads = max(1, min(threads, int(asked)))
    gpu = not in_place and device != "cpu"
    stopping = threading.Event()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g} of {task.total:g}  {task.fields[left]}"),
        console=console,
        disable=console is None,
        transient=True,
    )
    with tempfile.TemporaryDirectory(prefix="kit-run-") as runtime, _terminable(), progress:
        environment = {**os.environ, **kernel_environment(threads, gpu=gpu), "JUPYTER_RUNTIME_DIR": runtime}
        bar = progress.add_task("notebooks", total=len(todo), left="")
        warm_up()

        def one(job: Job) -> None:
            try:
                job.result = _execute(job, environment, limit, stopping)
            except OSError as error:
                text = f"{error.strerror}: {error.filename or job.target}"
                job.result = Result(job.notebook, job.target, "failed", error=text)
            if finished and not stopping.is_set():
                finished(job.result)

        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(one, job) for job in todo]
            try:
                while wait(futures, timeout=0.5).not_done:
                    progress.update(
                        bar,
                        completed=sum(job.result is not None for job in todo),
                        left=f"about {_clock(_left(todo, workers))} left",
                    )
            except KeyboardInterrupt:
                stopping.set()
                for job in todo:
                    if job.process is not None:
                        _kill(job.process)
                raise
        for future in futures:
            future.result()
