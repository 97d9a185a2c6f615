"""One notebook: what is asked (`prepare`), its process (`perform`), what became of it (`Result`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kit.run.files import (
    PACKAGE,
    ROOT,
    UserError,
    code_key,
    code_of,
    injected,
    measured_beside,
    needs,
    parameters,
    read,
    run_key,
    stamp,
    up_to_date,
    versions,
)

# Sums are taken in the order of AVX2, which nearly every processor since 2015 has: one with AVX-512 adds in another
# order, and after some hundred steps of an attack other images are fooled.
ONE_ARITHMETIC = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Zen",
}  # fmt: skip


@dataclass
class Result:
    """What became of one notebook. `cpu` are its kernel's CPU seconds, `memory` its peak resident memory in MiB."""

    notebook: Path
    output: Path  # the executed notebook, or for a failure the partial one
    status: str  # "ok", "up to date", "failed", "timed out" or "stopped"
    seconds: float = 0.0
    memory: int = 0
    device: str = ""
    error: str = ""
    cell: str = ""
    detail: str = ""
    cpu: float = 0.0

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
    kernel: int | None = None  # its process
    started: float | None = None
    result: Result | None = None
    source: str = ""
    share: float = 0.0  # of its cells that are done
    needs: dict[str, float] = field(default_factory=dict)  # of a worker of a cluster

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


@lru_cache(maxsize=1)
def has_avx2() -> bool:
    """Whether this is a Linux machine whose processor has AVX2; told to use it without having it, torch would crash."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "avx2" in cpu.read_text(encoding="utf-8", errors="replace").split()


def kernel_environment(threads: int, *, gpu: bool, shipped: bool = False) -> dict[str, str]:
    """The variables that a notebook's kernel needs so that its numbers do not depend on who starts it.

    The runner and the regressions share them: `kit` is importable, figures go into the notebook, each library computes
    on `threads` threads, and with the instructions that processors have in common. Committed numbers are those of a CPU
    and of the networks that come with `kit`: with `gpu=False` no GPU is seen, with `shipped` none of the networks that
    this user trained.
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
    if has_avx2():
        variables |= ONE_ARITHMETIC
    if not gpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if shipped:
        variables["KIT_MODELS"] = os.devnull
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


def beside(notebook: Path, kind: str) -> str:
    """The name of a notebook's failed or partial output: `<name>.failed.ipynb`, unless a notebook is called that."""
    while notebook.with_name(f"{notebook.stem}.{kind}.ipynb").exists():
        kind += "_"
    return f"{notebook.stem}.{kind}.ipynb"


def _groups(path: Path) -> int:
    """How many groups of figures a full run finds kept, which it need not measure."""
    try:
        return len(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return 0


def _other_figures(notebook: Path, copy: Path) -> bool:
    """Whether what the full profile keeps beside a notebook was changed, or deleted, after this copy was executed."""
    kept = measured_beside(notebook)
    if not kept.exists():
        return kept.name in code_of(read(copy))
    return kept.stat().st_mtime_ns > copy.stat().st_mtime_ns


def prepare(notebook: Path, given: dict[str, Any], folder: Path, in_place: bool, force: bool) -> Job:
    nb = read(notebook)
    try:
        defaults = parameters(nb)
    except (SyntaxError, ValueError):
        raise UserError(f"the parameters cell of {notebook} must hold plain assignments of constants") from None
    stale = any(injected(cell) for cell in nb["cells"])  # parameters of another run: these take their place
    if defaults is None or not set(given) <= set(defaults):
        raise UserError(f"{notebook} needs a code cell tagged `parameters` that sets profile, device and seed")
    place = relative(notebook)
    target = notebook if in_place else folder / place
    if not in_place and target.resolve() == notebook:
        raise UserError(f"the output of {notebook} would overwrite it: choose another output folder")
    key = run_key(nb, given, prose=not in_place, path=notebook)
    earlier: dict[str, Any] = {}
    good = False
    if target.exists():
        try:
            previous = read(target)
            earlier, good = stamp(previous), up_to_date(previous, key, prose=not in_place)
            if given["profile"] == "full":
                good = good and not _other_figures(notebook, target)
        except UserError:  # a damaged output is simply made again
            pass
    request = {
        "notebook": str(notebook),
        "target": str(target),
        "partial": str(folder / place.with_name(beside(notebook, "partial"))),
        "inject": given if stale or given != {name: defaults[name] for name in given} else {},
        "in_place": in_place,
        "stamp": {
            **versions(),
            "profile": given["profile"],
            "seed": given["seed"],
            "commit": _commit(),
            "source": code_key(nb),
            "key": key,
            **({"kept": 0 if force else _groups(measured_beside(notebook))} if given["profile"] == "full" else {}),
        },
    }
    return Job(
        notebook=notebook,
        target=target,
        failed=folder / place.with_name(beside(notebook, "failed")),
        request=request,
        expected=earlier.get("seconds") or (stamp(nb).get("seconds") if given["profile"] == "quick" else None),
        up_to_date=good and not force,
        earlier=earlier,
        needs=needs(nb, notebook, given["profile"], given["device"]),
    )


def kill(job: Job) -> None:
    """End a job's process and everything it has started, its kernel also where the process died before it."""
    import psutil

    for pid, program in ((job.process and job.process.pid, "kit.run.execute"), (job.kernel, "ipykernel")):
        try:
            process = psutil.Process(pid or 0)
            if not any(program in word for word in process.cmdline()):  # its number was given to another process
                continue
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        end(process.pid)


def end(pid: int) -> None:
    """Kill a process and everything it has started."""
    import psutil

    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


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
            kill(job)
        assert process.stdin is not None
        assert process.stdout is not None

        def expire() -> None:
            expired.set()
            kill(job)

        timer = threading.Timer(limit, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(job.request) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                last = json.loads(line)
                job.kernel = last.get("kernel", job.kernel)
                if "of" in last:
                    job.share, job.source = (last["cell"] - 1) / last["of"], last["source"]
        except (BrokenPipeError, json.JSONDecodeError):  # killed in the middle of a line
            last = {}
        finally:
            timer.cancel()
            kill(job)
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
        return Result(job.notebook, partial, **last | {"detail": last["detail"] or ("" if last["cell"] else words)})
    error = "its process ended without a word, most often because memory ran out"
    return Result(job.notebook, partial, "failed", seconds, error=error, cell=job.source, detail=words)
