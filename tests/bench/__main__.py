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
        table = Table("task", "method", "× bound", "seconds", "result", "wanted", title=f"kit.{family}")
        for task in importlib.import_module(f"tests.bench.bench_{family}").tasks():
            task.measure()
            for name, ratio, seconds, quality in task.rows:
                wanted = f"≤ {task.target:g}" if name == "kit" and task.target else ""
                table.add_row(task.name, name, f"{ratio:.2f}", f"{seconds:.3f}", quality, wanted)
        Console().print(table)


main(sys.argv[1:])
