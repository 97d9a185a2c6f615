"""The kernel of a notebook, the same for the runner and for the regressions.

It is this interpreter, whatever an installed kernel points to, and loads this module as an IPython extension. Figures
then keep what they show beside their image, a cell that writes without end fails, and the kernel ends with the process
that started it.
"""
from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Any


def kernel_spec(*options: str) -> dict[str, Any]:
    """The kernel's entry as jupyter_client takes it, with further options of the kernel."""
    from ipykernel.kernelspec import get_kernel_dict

    return get_kernel_dict(extra_arguments=[f"--IPKernelApp.extra_extensions={__name__}", *options])


def started(start: Callable[[], Any], tries: int = 3) -> Any:
    """What `start` returns, called again where the kernel that it starts died before its first answer.

    A kernel is told its ports before it takes them, and another process may take one in between: it then dies.
    """
    try:
        return start()
    except RuntimeError as error:
        if tries == 1 or "died before replying" not in str(error):
            raise
    return started(start, tries - 1)


OUTPUT_LIMIT = 10_000_000  # characters that a cell may write; each displayed object counts a thousand at least


def bound(shell: Any) -> None:
    """Let a cell fail that writes more than `OUTPUT_LIMIT`, before what waits to be sent fills the memory."""
    written = 0

    def start(info: Any) -> None:
        nonlocal written
        written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        if written > OUTPUT_LIMIT:
            limit = f"{OUTPUT_LIMIT // 1_000_000} MB"
            raise RuntimeError(f"the cell wrote more than {limit} of output: let it print less")

    def counted(write: Any) -> Any:
        def write_within(text: str) -> Any:
            count(len(text))
            return write(text)

        return write_within

    def published(publish: Any) -> Any:
        def publish_within(data: dict[str, Any], *args: Any, **options: Any) -> Any:
            count(max(1000, sum(len(value) for value in data.values() if isinstance(value, str))))
            return publish(data, *args, **options)

        return publish_within

    for stream in (sys.stdout, sys.stderr):
        stream.write = counted(stream.write)  # type: ignore[method-assign]
    shell.display_pub.publish = published(shell.display_pub.publish)
    shell.events.register("pre_run_cell", start)


def end_with_the_parent() -> None:
    """Ask Linux to kill this process when its parent ends, also where Python code no longer runs (a long C call)."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def load_ipython_extension(shell: Any) -> None:
    def bundle(figure: Any) -> dict[str, Any]:
        from kit.report.plotted import bundle

        return bundle(figure)

    shell.display_formatter.mimebundle_formatter.for_type_by_name("matplotlib.figure", "Figure", bundle)
    bound(shell)
    end_with_the_parent()
