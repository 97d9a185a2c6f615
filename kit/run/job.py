"""One notebook: what is asked (`prepare`), its process (`perform`), what became of it (`Result`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kit.run.files import PACKAGE, ROOT, UserError, code_key, executed, parameters, read, run_key, stamp, versions


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


def relative(notebook: Path) -> Path:
    """Where a notebook lies under the run folder: as in the repository, else as under the current folder."""
    for base in (ROOT, Path.cwd()):
        if notebook.is_relative_to(base):
            return notebook.relative_to(base)
    return Path(notebook.name)


def prepare(notebook: Path, given: dict[str, Any], folder: Path, in_place: bool, force: bool) -> Job:
    nb = read(notebook)
    try:
        defaults = parameters(nb)
    except (SyntaxError, ValueError):
        raise UserError(f"the parameters cell of {notebook} must hold plain assignments of constants") from None
    if defaults is None or not set(given) <= set(defaults):
        raise UserError(f"{notebook} needs a code cell tagged `parameters` that sets profile, device and seed")
    place = relative(notebook)
    target = notebook if in_place else folder / place
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
        "partial": str(folder / place.with_suffix(".partial.ipynb")),
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
        failed=folder / place.with_suffix(".failed.ipynb"),
        request=request,
        expected=earlier.get("seconds") or (stamp(nb).get("seconds") if given["profile"] == "quick" else None),
        up_to_date=complete and earlier.get("key") == key and not force,
        earlier=earlier,
    )


def kill(process: subprocess.Popen[str]) -> None:
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


def perform(job: Job, environment: dict[str, str], limit: float, stopping: threading.Event) -> Result:
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
            kill(process)
        assert process.stdin is not None
        assert process.stdout is not None

        def expire() -> None:
            expired.set()
            kill(process)

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
            kill(process)
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
