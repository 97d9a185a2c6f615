"""The kernel of a notebook, the same for the runner and for the regressions.

It is this interpreter, whatever an installed kernel points to, and loads this module as an IPython extension. Figures
then keep what they show beside their image, and the kernel ends with the process that started it.
"""
from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any


def kernel_spec(*options: str) -> dict[str, Any]:
    """The kernel's entry as jupyter_client takes it, with further options of the kernel."""
    from ipykernel.kernelspec import get_kernel_dict

    return get_kernel_dict(extra_arguments=[f"--IPKernelApp.extra_extensions={__name__}", *options])


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
    end_with_the_parent()
