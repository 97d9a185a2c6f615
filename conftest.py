"""How the committed notebooks are compared: `pytest --nbval notebooks -n 2 --dist loadscope`.

Each notebook runs again in this interpreter, in its own folder, on one thread and without a GPU, as under
`kit run --in-place`. Text must be the same. A number may differ by 2 % or by 0.001, or, printed with two digits or
more, by one in its last decimal, which is rounding; what `record` stores has no such allowance. A cell sets its own
tolerance in its metadata: `{"kit": {"tolerance": {"rel": 0.1, "abs": 0.02}}}`.
Images in PNG are not compared. A cell that was never executed fails.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any
from unittest import mock

TOLERANCE = {"rel": 2e-2, "abs": 1e-3}

# A number that stands alone, with its sign and the blanks around it, which move when a digit more is printed.
# Not a part of a word (conv2d), a version (3.11.2) or a hexadecimal.
NUMBER = re.compile(
    r"[ \t]*((?<![\w.])[+\-−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|(?<!\d)\.\d+)(?:[eE][+-]?\d+)?)(?!\w|\.\d)[ \t]*"
)


def value(number: str) -> tuple[float, float]:
    """A printed number, and how much one in its last decimal is worth (0 for an integer, or for a single digit)."""
    plain = number.replace(",", "").replace("−", "-")
    mantissa, _, exponent = plain.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    rounded = (decimals or exponent) and len(re.sub(r"\D", "", mantissa).lstrip("0")) >= 2
    last = 10.0 ** (int(exponent or 0) - decimals) if rounded else 0.0
    return float(plain), last


class Approximate(str):
    """Text whose numbers are equal within a tolerance, and if `printed` also when they differ by rounding."""

    rel: float
    abs: float
    printed: bool

    def __new__(cls, text: str, rel: float, abs: float, printed: bool = True) -> Approximate:
        found = super().__new__(cls, text)
        found.rel, found.abs, found.printed = rel, abs, printed
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return False
        here, there = NUMBER.split(self), NUMBER.split(other)
        if here[::2] != there[::2]:  # the text between the numbers
            return False
        for a, b in zip(here[1::2], there[1::2], strict=True):
            (x, last_x), (y, last_y) = value(a), value(b)
            rounding = 1.001 * max(last_x, last_y) if self.printed else 0.0
            if not math.isclose(x, y, rel_tol=self.rel, abs_tol=max(self.abs, rounding)):
                return False
        return True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def tolerance(cell: Any) -> dict[str, float]:
    """The cell's tolerance: its metadata's `kit.tolerance` over the default."""
    own = cell.metadata.get("kit", {}).get("tolerance", {})
    if not set(own) <= set(TOLERANCE):
        raise ValueError(f"a cell's tolerance sets rel and abs, not {sorted(own)}")
    return {**TOLERANCE, **own}


def pytest_configure(config: Any) -> None:
    if not getattr(config.option, "nbval", False):
        return
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from nbval.kernel import NbvalKernelspecManager, RunningKernel
    from nbval.plugin import IPyNbCell, IPyNbFile

    from kit.run.job import kernel_environment
    from kit.run.notebooks import warm_up

    if getattr(IPyNbCell, "approximate", False):
        return
    if not hasattr(config, "workerinput"):  # once, before xdist starts its workers
        warm_up()
    sanitize, setup, runtest = IPyNbCell.sanitize, IPyNbFile.setup, IPyNbCell.runtest

    def approximate(self: Any, found: Any) -> Any:
        printed = isinstance(found, str)
        text = found if printed else json.dumps(found, indent=1, sort_keys=True)
        return Approximate(sanitize(self, text), **tolerance(self.cell), printed=printed)

    def here(self: Any, kernel_name: str) -> KernelSpec:
        """This interpreter, whatever an installed kernel points to, and a history that is not written to disk."""
        return KernelSpec(resource_dir="", **get_kernel_dict(extra_arguments=["--HistoryManager.hist_file=:memory:"]))

    def execute(self: Any, source: str, allow_stdin: bool | None = None) -> str:
        """With history, because without it IPython does not see the semicolon that hides a cell's last value."""
        return self.kc.execute(source, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)

    def start(self: Any) -> None:
        with mock.patch.dict(os.environ, kernel_environment(1, gpu=False)):
            setup(self)

    def run(self: Any) -> None:
        if self.cell.source.strip() and self.cell.execution_count is None:
            self.raise_cell_error("this cell was never executed: run make baseline")
        runtest(self)

    IPyNbCell.approximate = True
    NbvalKernelspecManager.get_kernel_spec, RunningKernel.execute_cell_input = here, execute
    IPyNbCell.sanitize, IPyNbFile.setup, IPyNbCell.runtest = approximate, start, run
