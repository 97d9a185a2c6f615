"""Run the benchmarks named on the command line, or all of them, on one thread."""
import importlib
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    families = sorted(p.stem.removeprefix("bench_") for p in Path(__file__).parent.glob("bench_*.py"))
    unknown = sorted(set(names) - set(families))
    if unknown:
        sys.exit(f"no benchmark {unknown[0]!r}: choose among {', '.join(families)}")
    for family in names or families:
        for task in importlib.import_module(f"tests.bench.bench_{family}").tasks():
            task.measure()  # each task is shown when it is done, so that a stopped run loses nothing
            table = Table("method", "× bound", "seconds", "result", "wanted", title=f"{family}: {task.name}")
            for name, ratio, seconds, quality in task.rows:
                wanted = f"≤ {task.target:g}" if name == "kit" and task.target else ""
                table.add_row(name, f"{ratio:.2f}", f"{seconds:.3f}", quality, wanted)
            Console().print(table)


main(sys.argv[1:])
