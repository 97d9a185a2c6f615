"""A submission is somebody else's program: it runs in a process of its own, bounded in time, memory and files.

    run(notebook, seconds=60, memory=4.0)      the notebook with what its cells put out, and why it ended, if early

The process gets an empty folder and few variables. Where Linux allows it (`unshare`), it has no network but itself, and
whatever it has started ends with it. A cell that takes too long is interrupted and the next one goes on. It bounds
accidents and curiosity; against who means harm, run it on a machine that holds nothing else.
"""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat

FILE = 64 * 2**20  # bytes that one file may have
START = 90.0  # seconds that importing torch and kit may take, before the submission's own begin
AGAIN = 2.0  # seconds after which a cell that was interrupted, and goes on, is interrupted again
SHOWN = 20_000  # characters of an output that are kept
LATE = 124  # the exit status of a submission that took too long, as timeout(1) has it
APART = ("--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


@lru_cache(maxsize=1)
def apart() -> list[str]:
    """The command that runs another one without a network, and ends all it has started; empty where there is none."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    tried = subprocess.run([unshare, *APART, "true"], capture_output=True, check=False)
    return [unshare, *APART] if tried.returncode == 0 else []


def run(nb: Any, *, seconds: float = 60.0, memory: float = 4.0) -> tuple[Any, str]:
    """Execute a notebook: what it came to, and a remark, empty if it ran to its end.

    seconds    for all of it, a third for one cell          memory    GB that a process may fill with data
    Raises ValueError for limits that are none.
    """
    if not seconds > 0 or not memory > 0:
        raise ValueError(f"seconds and memory must be more than 0, not {seconds:g} and {memory:g}")
    from kit.run.job import kernel_environment

    with tempfile.TemporaryDirectory(prefix="kit-lab-") as folder:
        before, after = Path(folder) / "before.ipynb", Path(folder) / "after.ipynb"
        nbformat.write(nb, before)
        limits = json.dumps({"seconds": seconds, "memory": memory, "network": not apart()})
        command = [*apart(), sys.executable, "-m", "kit.lab.sandbox", str(before), str(after), limits]
        variables = {**kernel_environment(1, gpu=False, shipped=True), "PATH": os.environ.get("PATH", os.defpath),
                     "HOME": folder, "TMPDIR": folder, "IPYTHONDIR": folder, "MPLBACKEND": "agg"}
        child = subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, told = child.communicate(timeout=seconds + START)
            remark = "" if child.returncode == 0 else f"it ended early: {_last_line(told)}"
            if child.returncode == LATE:
                remark = f"it was stopped after {seconds:g} seconds"
        except subprocess.TimeoutExpired:
            remark = f"it was stopped after {seconds:g} seconds"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
        try:
            return nbformat.read(after, as_version=4), remark
        except (OSError, ValueError, nbformat.validator.NotebookValidationError):
            return nb, remark or "it left no result"


def _last_line(told: bytes) -> str:
    lines = told.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "without a word"


def main(before: str, after: str, limits: str) -> None:
    """Inside: take the limits, run the cells one after the other, and write what they came to after each."""
    import resource

    given = json.loads(limits)
    size = int(given["memory"] * 2**30)
    for what, most in ((resource.RLIMIT_DATA, size), (resource.RLIMIT_CPU, 4 * int(given["seconds"]) + 1),
                       (resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    if not given["network"]:
        loopback_up()
    from IPython.core.displayhook import DisplayHook
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    class Silent(DisplayHook):
        """Keeps a cell's last value, and does not print it among its text."""

        def write_output_prompt(self) -> None:
            pass

        def write_format_data(self, *_: Any) -> None:
            pass

    import_module("kit.lab.exercises")  # on a cold machine this takes longer than a cell may
    threading.Timer(given["seconds"], lambda: os._exit(LATE)).start()
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config, displayhook_class=Silent)
    nb = nbformat.read(before, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = executed(shell, cell.source, given["seconds"] / 3)
            beside = Path(after).with_suffix(".part")
            nbformat.write(nb, beside)
            beside.replace(after)
    os._exit(0)  # also where the submission has left threads behind


def executed(shell: Any, text: str, seconds: float) -> list[Any]:
    """What a cell puts out: its text, its last value, its error. After so many seconds it is interrupted, and again
    where it goes on: a check takes the first interruption for the answer's own error, and tries the next case."""
    from IPython.utils.capture import capture_output
    from nbformat.v4 import new_output

    def late(*_: Any) -> None:
        raise TimeoutError(f"the cell took more than {seconds:g} seconds")

    signal.signal(signal.SIGALRM, late)
    value: Any = None
    error: BaseException | None = None
    with capture_output() as told:
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            result = shell.run_cell(text)
            value, error = result.result, result.error_before_exec or result.error_in_exec
        except TimeoutError as late_again:
            error = late_again
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    outputs = []
    if told.stdout:
        outputs.append(new_output("stream", name="stdout", text=told.stdout[:SHOWN]))
    if error is not None:
        outputs.append(new_output("error", ename=type(error).__name__, evalue=str(error)[:SHOWN], traceback=[]))
    elif value is not None:
        outputs.append(new_output("execute_result", {"text/plain": repr(value)[:SHOWN]}))
    return outputs


def loopback_up() -> None:
    """Let the process reach itself at 127.0.0.1: a new network has even that switched off (ioctl SIOCSIFFLAGS)."""
    import fcntl
    import socket
    import struct

    up, set_flags = 0x1, 0x8914
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, set_flags, struct.pack("16sH14x", b"lo", up))


if __name__ == "__main__":
    main(*sys.argv[1:])
