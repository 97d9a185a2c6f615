"""A grid of independent runs, computed side by side: on this machine, or on the cluster that `KIT_CLUSTER` names."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

CLUSTER = "KIT_CLUSTER"  # the address of a dask scheduler; `kit run --cluster` sets it for its notebooks
WORKERS = "KIT_CLUSTER_WORKERS"  # the addresses of those workers that were found to be the same as the others


def computed(function: Callable[..., Any], cells: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    """(cell, function(*arguments)) of every cell, each as it is done.

    Where `KIT_CLUSTER` is set on the workers of that cluster, else in as many processes as this one has threads
    (OMP_NUM_THREADS), each on one; one after another where there is one thread, one cell, or a GPU in use, which the
    processes would have to share. A cell depends on its arguments alone, so that where it is computed changes nothing.
    Raises what a cell raises, with a note of which it was: side by side once all others are there. RuntimeError where a
    process was killed, when those that were done have been given.
    """
    address, threads = os.environ.get(CLUSTER), int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    if len(cells) < 2 or _gpu_in_use() or not (address or threads > 1):
        for cell, arguments in cells.items():
            _, value, failed = _one(function, cell, arguments)
            if failed:
                raise failed
            yield cell, value
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    first: BaseException | None = None
    with ExitStack() as stack:
        jobs = -1 if address else threads
        stack.enter_context(_cluster(stack, address) if address else _processes())
        side_by_side = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        found = side_by_side(delayed(_one)(function, cell, arguments) for cell, arguments in cells.items())
        try:
            for cell, value, failed in found:
                first = first or failed
                if not failed:
                    yield cell, value
        except TerminatedWorkerError:
            raise RuntimeError("a process that computed cells of a grid was killed, as happens when memory runs out: "
                               "run again with a smaller OMP_NUM_THREADS; what was done by then is kept") from None
    if first:
        raise first


def _one(function: Callable[..., Any], cell: str, arguments: tuple[Any, ...]) -> tuple[str, Any, Exception | None]:
    """A cell with its value, or with what it raised."""
    try:
        return cell, function(*arguments), None
    except Exception as error:
        error.add_note(f"in the cell {cell!r} of a grid")
        return cell, None, error


def _gpu_in_use() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def _processes() -> AbstractContextManager:
    from joblib import parallel_config

    return parallel_config(backend="loky", inner_max_num_threads=1)


def _cluster(stack: ExitStack, address: str) -> AbstractContextManager:
    from joblib import parallel_config

    try:
        from distributed import Client
    except ImportError:
        raise ImportError(f"{CLUSTER} is set, and dask is missing: run .venv/bin/pip install -e '.[scale]'") from None
    client = stack.enter_context(Client(address, timeout=30, set_as_default=False))
    same = os.environ.get(WORKERS)
    return parallel_config(backend="dask", client=client, **({"workers": same.split()} if same else {}))
