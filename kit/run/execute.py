"""One notebook in one process: `python -m kit.run.execute`, started by `kit.run.job`.

The job is one line of JSON on stdin. Stdin then stays open as a lifeline: when the runner dies, however it dies, it
closes, and this process ends with its kernel. Events go to stdout, one line of JSON each: `{"kernel": pid}`
once, `{"cell": 3, "of": 12, …}` as cells start, and last `{"status": …}`.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.run.files import VOLATILE, content_key, injected, stamp
from kit.run.kernel import kernel_spec, started

FULL_DISK = "the disk is full"
EDITED = "the notebook was edited while it ran, and is left as it is: run it again"
PROBE = "__import__('kit.run.probe', fromlist=['probe']).probe()"


def _engine(emit: Callable[[dict[str, Any]], None], seen: dict[str, Any]) -> str:
    """Register a papermill engine whose kernel is this interpreter; `seen` receives the probe and the cell at work."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import CellExecutionError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets import default

    class Here(KernelSpecManager):
        """Any kernel name means this interpreter: an installed `python3` may point to another one."""

        def get_kernel_spec(self, kernel_name):
            return KernelSpec(resource_dir="", **kernel_spec())

    class Kernel(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _here(self):
            return Here(parent=self)

    class Client(PapermillNotebookClient):
        async def async_start_new_kernel(self, **kwargs):
            await super().async_start_new_kernel(**kwargs)
            emit({"kernel": self.km.provisioner.pid})

        def execute_cell(self, cell, cell_index, *args, **kwargs):
            if cell.cell_type == "code":
                seen["source"] = cell.source
                seen["count"] = seen.get("count", 0) + 1
                cells = sum(c.cell_type == "code" for c in self.nb.cells)
                emit({"cell": seen["count"], "of": cells, "source": cell.source})
            try:
                done = super().execute_cell(cell, cell_index, *args, **kwargs)
            except CellExecutionError as error:  # not where the cell is tagged raises-exception
                seen["error"] = (f"{error.ename}: {error.evalue}", cell.source, _traceback(cell))
                raise
            finally:
                if cell.cell_type == "code":
                    cell.outputs = coalesce(cell.outputs)
            return done

        def papermill_execute_cells(self):
            seen["nb"] = self.nb
            super().papermill_execute_cells()
            reply = self.wait_for_reply(self.kc.execute("", silent=True, user_expressions={"probe": PROBE}))
            answer = reply["content"].get("user_expressions", {}).get("probe", {})
            if answer.get("status") == "ok":
                seen.update(ast.literal_eval(answer["data"]["text/plain"]))

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, start_timeout=60, **_):
            Client(
                nb_man,
                kernel_manager_class=Kernel,
                kernel_name=kernel_name,
                startup_timeout=start_timeout,
            ).execute()

    papermill_engines.register("kit", Engine)
    return "kit"


def coalesce(outputs: list[Any]) -> list[Any]:
    """The outputs of a cell with all that went to one stream as one output, and stdout before stderr beside it.

    What a carriage return overwrites is dropped. nbclient's own way takes time quadratic in the length of a line.
    """
    found: list[Any] = []
    streams: dict[str, list[str]] = {}
    for output in outputs:
        if output.output_type != "stream":
            found.append(output)
        elif output.name in streams:
            streams[output.name].append(output.text)
        else:
            streams[output.name] = [output.text]
            found.append(output)
    for i, output in enumerate(found):
        if output.output_type == "stream":
            output.text = "\n".join(map(_overwritten, "".join(streams[output.name]).split("\n")))
            if i and output.name == "stdout" and found[i - 1].get("name") == "stderr":
                found[i - 1], found[i] = output, found[i - 1]
    return found


def _overwritten(line: str) -> str:
    text = line.rstrip("\r")
    return text.rpartition("\r")[2] + line[len(text) :]


def _traceback(cell: Any) -> str:
    """What a failed cell shows of its failure; a magic writes it to stderr."""
    errors = ["\n".join(o.traceback) for o in cell.outputs if o.output_type == "error"]
    return "\n".join(errors or [o.text for o in cell.outputs if o.get("name") == "stderr"])


def clean(original: Any, executed: Any, note: dict[str, Any]) -> Any:
    """The original notebook with the outputs of the executed one: nothing else of papermill's or the kernel's is kept.

    The file then depends on its sources and outputs alone. A cell of injected parameters, where there is one, follows
    the parameters cell under a fixed id.
    """
    import copy

    import nbformat

    nb = copy.deepcopy(original)
    nb.nbformat_minor = max(5, nb.nbformat_minor)
    nb.cells = [c for c in nb.cells if not injected(c)]
    given = [c for c in executed.cells if injected(c)]
    runs = [c for c in executed.cells if c.cell_type == "code" and not injected(c)]
    for i, cell in enumerate(nb.cells):
        cell.setdefault("id", f"cell-{i}")
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            run = runs.pop(0)
            cell.outputs, cell.execution_count = run.outputs, run.execution_count
    for cell in given:
        at = next(i for i, c in enumerate(nb.cells) if "parameters" in c.metadata.get("tags", []))
        cell.id, cell.metadata = "injected-parameters", nbformat.from_dict({"tags": ["injected-parameters"]})
        nb.cells.insert(at + 1, cell)
    kept = {k: v for k, v in nb.metadata.items() if k not in ("papermill", "widgets", "kernelspec", "language_info")}
    nb.metadata = nbformat.from_dict(
        {
            **kept,
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
            "kit": {**kept.get("kit", {}), "stamp": note},
        }
    )
    return nb


def _may_fail(cell: Any) -> bool:
    """Whether a cell did not fail, or may."""
    errors = [o for o in cell.get("outputs", []) if o.output_type == "error"]
    return not errors or "raises-exception" in cell.metadata.get("tags", [])


def _stderr(nb: Any) -> tuple[str, str] | None:
    """The first cell that wrote to stderr, and what."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                return cell.source, output.text
    return None


def _write(nb: Any, target: Path, *, keep_same: bool) -> None:
    """Write beside `target` and move into place; with `keep_same` not where only volatile parts would change, unless
    the run took a CPU second less: a busy machine adds some, and the fewest say what the chapter costs."""
    import nbformat

    if keep_same and target.exists():
        old = target.read_text(encoding="utf-8")
        before = stamp(json.loads(old))
        note = nb.metadata.kit.stamp
        fresh = {name: note[name] for name in VOLATILE}
        note.update({name: before.get(name) for name in VOLATILE})
        same = nbformat.writes(nb).rstrip("\n") + "\n" == old
        if same and fresh["cpu"] > (before.get("cpu") or 0) - 1:
            return
        note.update(fresh)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(nbformat.writes(nb).rstrip("\n") + "\n", encoding="utf-8")
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def execute(job: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the job's notebook and return its outcome; unless it succeeded, `job["partial"]` is what it did."""
    seen: dict[str, Any] = {}
    partial, target = Path(job["partial"]), Path(job["target"])
    start = time.monotonic()

    def failed(error: str, cell: str = "", detail: str = "") -> dict[str, Any]:
        return {
            "status": "failed",
            "error": error,
            "cell": cell,
            "detail": detail,
            "seconds": round(time.monotonic() - start, 1),
            "memory": seen.get("memory", 0),
            "device": seen.get("device", ""),
            "cpu": seen.get("cpu", 0.0),
        }

    try:
        import nbformat
        from papermill.exceptions import PapermillExecutionError
        from papermill.execute import execute_notebook

        engine = _engine(emit, seen)
    except ImportError as error:
        return failed(f"{error.name} is missing: install the project's requirements")
    try:
        text = Path(job["notebook"]).read_text(encoding="utf-8")
        original = nbformat.reads(text, as_version=4)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            done = started(
                lambda: execute_notebook(
                    job["notebook"].replace("{", "{{").replace("}", "}}"),  # papermill formats paths
                    str(partial).replace("{", "{{").replace("}", "}}"),
                    parameters=job["inject"],
                    engine_name=engine,
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    cwd=str(Path(job["notebook"]).parent),
                )
            )
        except PapermillExecutionError as error:
            if "error" in seen:
                return failed(*seen["error"])
            if not all(_may_fail(cell) for cell in seen["nb"].cells):
                return failed(f"{error.ename}: {error.evalue}", error.source, "\n".join(error.traceback))
            done = seen["nb"]  # papermill takes for a failure what the tag raises-exception allows
        except RuntimeError as error:  # nbclient: the kernel did not start, or died
            if "source" in seen:
                return failed("the kernel died, most often because memory ran out", seen["source"], str(error))
            return failed(f"the kernel did not start: {error}")
        if job["in_place"] and (noise := _stderr(done)):
            return failed("the cell wrote to stderr, which committed notebooks must not", noise[0], noise[1])
        if job["in_place"] and Path(job["notebook"]).read_text(encoding="utf-8") != text:
            return failed(EDITED)
        seconds = round(time.monotonic() - start, 1)
        note = {**job["stamp"], "device": seen.get("device", "cpu"), "memory": seen.get("memory", 0)}
        note |= {"seconds": seconds, "cpu": seen.get("cpu", 0.0)}
        final = clean(original, done, note)
        final.metadata.kit.stamp.content = content_key(final, prose=not job["in_place"])
        _write(final, target, keep_same=job["in_place"])
        partial.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return failed(f"{FULL_DISK}: free some space for {target.parent} and run again")
        return failed(f"{error.strerror}: {error.filename or target}")
    except Exception as error:
        return failed(f"{type(error).__name__}: {error}", seen.get("source", ""))
    return {"status": "ok", "seconds": seconds} | {name: note[name] for name in ("memory", "device", "cpu")}


def _end_with_the_runner() -> None:
    """Wait for stdin to close, then end this process and all it started."""
    while os.read(0, 1):
        pass
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def main() -> None:
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the events
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_runner, daemon=True).start()

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    emit(execute(job, emit))
    events.flush()
    os._exit(0)  # the lifeline's thread is still reading


if __name__ == "__main__":
    main()
