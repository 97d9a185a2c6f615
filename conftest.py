"""How the committed notebooks are compared: `pytest --nbval notebooks -n 2 --dist loadscope`.

Each notebook runs again in this interpreter, in its own folder, on one thread and without a GPU, as under
`kit run --in-place`. Its outputs are compared in their order: text, numbers within the tolerances of
`kit.run.compare`, records, and what every figure shows. A cell that was never executed fails. No cell leaves the
comparison or loosens it but those in `LOOSE`.
"""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

from kit.run.compare import DEFAULT, Tolerance, differences

# The cells whose numbers may differ by more than `kit.run.compare` lets through, each with its reason.
LOOSE: dict[tuple[str, str], tuple[Tolerance, str]] = {
    ("notebooks/attacks/atta.ipynb", "atta-09"): (Tolerance(rel=0.3, abs=0.1), "the game of T and x' is chaotic"),
    ("notebooks/attacks/atta.ipynb", "atta-46"): (Tolerance(rel=0.3, abs=0.1), "the game of T and x' is chaotic"),
    ("notebooks/attacks/atta.ipynb", "atta-28"): (Tolerance(rel=0.6, abs=0.5), "it prints ratios of measured times"),
}


def tolerance(notebook: str, cell: str) -> Tolerance:
    """What a cell's numbers may differ by: that of `LOOSE`, or the default."""
    return LOOSE.get((notebook, cell), (DEFAULT, ""))[0]


def pytest_configure(config: Any) -> None:
    if not getattr(config.option, "nbval", False):
        return
    from jupyter_client.kernelspec import KernelSpec
    from nbval.kernel import NbvalKernelspecManager, RunningKernel
    from nbval.plugin import IPyNbCell, IPyNbFile

    from kit.run.job import kernel_environment
    from kit.run.kernel import kernel_spec, started
    from kit.run.notebooks import warm_up

    if getattr(IPyNbCell, "approximate", False):
        return
    if not hasattr(config, "workerinput"):  # once, before xdist starts its workers
        warm_up()
    setup, runtest = IPyNbFile.setup, IPyNbCell.runtest

    def compare(self: Any, found: Any, committed: Any, skip_compare: Any = None) -> bool:
        notebook = self.path.relative_to(config.rootpath).as_posix()
        self.comparison_traceback = differences(committed, found, tolerance(notebook, self.cell.get("id", "")))
        return not self.comparison_traceback

    def here(self: Any, kernel_name: str) -> KernelSpec:
        """With a history that is not written to disk."""
        return KernelSpec(resource_dir="", **kernel_spec("--HistoryManager.hist_file=:memory:"))

    def execute(self: Any, source: str, allow_stdin: bool | None = None) -> str:
        """With history, because without it IPython does not see the semicolon that hides a cell's last value."""
        return self.kc.execute(source, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)

    def start(self: Any) -> None:
        with mock.patch.dict(os.environ, kernel_environment(1, gpu=False, shipped=True)):
            started(lambda: setup(self))

    def run(self: Any) -> None:
        """Every cell is executed and compared, whatever nbval's tags and comments in it say."""
        if self.cell.source.strip() and self.cell.execution_count is None:
            self.raise_cell_error("this cell was never executed: run make baseline")
        tagged = "raises-exception" in self.cell.metadata.get("tags", [])
        self.options.update(skip=False, check=True, check_exception=tagged)
        runtest(self)

    IPyNbCell.approximate = True
    NbvalKernelspecManager.get_kernel_spec, RunningKernel.execute_cell_input = here, execute
    IPyNbCell.compare_outputs, IPyNbFile.setup, IPyNbCell.runtest = compare, start, run
