"""Notebooks on the workers of a dask cluster: two processes of this machine, on notebooks of a few cells."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from kit.report.measured import merged
from kit.run import cluster, files, notebooks
from kit.run import crew as crews
from kit.run.files import UserError
from kit.run.notebooks import run
from tests.run.cells import gone, printed, write

pytest.importorskip("distributed", reason="dask is not installed: pip install -e '.[scale]'")

WORKER = "import os, psutil\nworker = psutil.Process().parent().parent().pid\n"  # the kernel's, execute's, the worker


@pytest.fixture(scope="module")
def client():
    """A cluster of two workers that the tests reach by its address, and its client."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test
    with crews.cluster("local:2") as found:
        found.wait_for_workers(2, timeout=120)
        yield found


@pytest.fixture(scope="module")
def here(client):
    return client.scheduler.address


def spoilt(client, name: str, how) -> str:
    """Do something to the process of one worker, whose name begins so; its address."""
    for address, found in client.run(lambda dask_worker: str(dask_worker.name)).items():
        if found.startswith(name):
            client.run(how, workers=[address])
            return address
    raise AssertionError(f"no worker is called {name}")


@pytest.fixture(scope="module")
def book(client, here, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    show = "import os\nprint(profile, seed, os.environ['OMP_NUM_THREADS'], os.environ['KIT_CLUSTER'], os.getcwd())"
    read = "from pathlib import Path\nprint(Path('table.csv').read_text())"
    work = [
        write(folder / "in" / "good.ipynb", show, read),
        write(folder / "in" / "bad.ipynb", "print('before')", "1 / 0", "print('never')"),
        write(folder / "in" / "measures.ipynb", "import json\nfrom pathlib import Path\n"
              "path = Path('measures_measured.json')\n"
              "found = json.loads(path.read_text())\nfound['new'] = {'n': 2}\npath.write_text(json.dumps(found))"),
    ]
    (folder / "in" / "table.csv").write_text("a table")
    (folder / "in" / "measures_measured.json").write_text('{"old": {"n": 1}}')
    seen: list = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        results = run(work, profile="full", device="cpu", seed=3, cluster=here, out=folder / "out",
                      finished=seen.append)
    return folder, {result.notebook.stem: result for result in results}, seen


def test_notebooks_run_on_the_workers_and_come_back(book, here):
    folder, results, seen = book
    assert {name: result.status for name, result in results.items()} == {
        "good": "ok", "bad": "failed", "measures": "ok"}
    lines = printed(folder / "out" / "good.ipynb").splitlines()
    threads = max(1, notebooks.cores() // 2)
    assert lines[0].startswith(f"full 3 {threads} {here} ")
    assert str(folder) not in lines[0]  # no folder of this machine is read there
    assert lines[1] == "a table"
    assert {result.notebook.stem for result in seen} == set(results)
    assert results["good"].cpu > 0.2
    assert results["good"].memory > 20


def test_a_failure_names_its_cell_its_cause_and_its_worker(book):
    folder, results, _ = book
    bad = results["bad"]
    assert bad.cell == "1 / 0"
    assert bad.error.startswith("ZeroDivisionError: division by zero (on the worker local-")
    assert bad.output == folder / "out" / "bad.failed.ipynb"
    assert "before" in printed(bad.output)


def test_what_was_measured_stands_beside_the_notebook_with_what_stood_there(book):
    folder, _, _ = book
    assert json.loads((folder / "in" / "measures_measured.json").read_text()) == {"old": {"n": 1}, "new": {"n": 2}}


def test_what_a_cluster_did_is_up_to_date_for_every_run(book, here, monkeypatch):
    folder, results, _ = book
    monkeypatch.setattr(cluster, "cluster", None)  # no cluster is asked
    for where in (here, None):
        (again,) = run([results["good"].notebook], profile="full", device="cpu", seed=3, cluster=where,
                       out=folder / "out")
        assert (again.status, again.seconds) == ("up to date", results["good"].seconds)


def test_in_place_is_as_without_a_cluster(here, tmp_path):
    show = "import os\nprint(os.environ['OMP_NUM_THREADS'], 'KIT_CLUSTER' in os.environ)"
    good = write(tmp_path / "good.ipynb", show)
    noisy = write(tmp_path / "noisy.ipynb", "import sys\nprint('warned', file=sys.stderr)")
    untouched = noisy.read_text()
    first, second = run([good, noisy], in_place=True, cluster=here, out=tmp_path / "out")
    assert (first.status, second.status) == ("ok", "failed")
    assert printed(good) == "1 False\n"
    assert noisy.read_text() == untouched
    assert run([good], in_place=True, out=tmp_path / "out")[0].status == "up to date"


def test_a_worker_that_is_killed_loses_its_notebook_alone_and_that_runs_again(client, here, tmp_path):
    """What it had measured until then was kept, so that the second worker goes on from there."""
    client.wait_for_workers(2, timeout=120)
    note = tmp_path / "worker"
    twice = write(
        tmp_path / "twice.ipynb", WORKER + "import json, time\nfrom pathlib import Path\n"
        f"measured, note = Path('twice_measured.json'), Path({str(note)!r})\n"
        "found = json.loads(measured.read_text()) if measured.exists() else {}\n"
        "if not note.exists():\n    measured.write_text(json.dumps({'first': {'n': 1}}))\n"
        "    note.write_text(str(worker))\n    time.sleep(600)\n"
        "measured.write_text(json.dumps(found | {'second': {'n': 2}}))\nprint(sorted(found))")
    other = write(tmp_path / "other.ipynb", "print('other')")
    kept = tmp_path / "twice_measured.json"
    killed = []

    def kill():
        end = time.monotonic() + 300
        while not (note.exists() and note.read_text() and kept.exists()) and time.monotonic() < end:
            time.sleep(0.2)
        killed.append(int(note.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    seen: list = []
    results = run([twice, other], profile="full", device="cpu", cluster=here, out=tmp_path / "out",
                  finished=seen.append)
    killer.join()
    assert [result.status for result in results] == ["ok", "ok"]
    assert printed(results[0].output) == "['first']\n"
    assert json.loads(kept.read_text()) == {"first": {"n": 1}, "second": {"n": 2}}
    assert len(seen) == 2
    assert gone(killed[0])


def test_a_slow_worker_keeps_nobody_waiting(client, here, tmp_path):
    """The first worker that starts one takes until all the others are done: the other worker does them."""
    client.wait_for_workers(2, timeout=120)
    body = WORKER + (
        f"import time\nfrom pathlib import Path\nfolder = Path({str(tmp_path)!r})\n"
        "try:\n    (folder / 'slow').open('x').write(str(worker))\n    slow = True\nexcept FileExistsError:\n"
        "    slow = False\n"
        "while slow and len(list(folder.glob('done-*'))) < 3:\n    time.sleep(0.1)\n"
        "print(worker)\n(folder / f'done-{seed}-{os.getpid()}').touch()")
    work = [write(tmp_path / f"{i}.ipynb", body) for i in range(4)]
    results = run(work, cluster=here, out=tmp_path / "out", timeout=300)
    assert {result.status for result in results} == {"ok"}
    workers = [printed(result.output).strip() for result in results]
    assert workers.count((tmp_path / "slow").read_text()) == 1


def test_a_full_disk_of_a_worker_sends_its_notebooks_elsewhere(client, here, tmp_path):
    client.wait_for_workers(2, timeout=120)

    def fill():
        import kit.run.worker as there

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        there.tempfile = SimpleNamespace(TemporaryDirectory=full)

    def empty():
        import tempfile

        import kit.run.worker as there

        there.tempfile = tempfile

    work = [write(tmp_path / f"{i}.ipynb", f"print({i})") for i in range(2)]
    said = Console(file=io.StringIO(), width=300)
    spoilt(client, "local-0", fill)
    try:
        results = run(work, cluster=here, out=tmp_path / "out", console=said)
        spoilt(client, "local-1", fill)
        (nowhere,) = run(work[:1], cluster=here, out=tmp_path / "none")
    finally:
        client.run(empty)
    assert [result.status for result in results] == ["ok", "ok"]
    assert re.search(r"On the worker local-0(\.\d+)? the disk is full", said.file.getvalue())  # .1: started anew
    assert nowhere.status == "failed"
    assert "the disk is full: free some space for" in nowhere.error


def test_a_full_disk_of_this_machine_is_one_sentence_and_leaves_the_old_file(here, tmp_path, monkeypatch):
    work = [write(tmp_path / f"{name}.ipynb", "1") for name in "ab"]
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "a.ipynb").write_text("old")
    keep = cluster.os.replace

    def full(source, target):
        if Path(target).name == "a.ipynb":
            raise OSError(errno.ENOSPC, "No space left on device")
        keep(source, target)

    monkeypatch.setattr(cluster.os, "replace", full)
    a, b = run(work, cluster=here, out=tmp_path / "out")
    assert (a.status, b.status) == ("failed", "ok")
    assert a.error.startswith(f"the disk is full: free some space for {tmp_path / 'out'}")
    assert (tmp_path / "out" / "a.ipynb").read_text() == "old"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.ipynb", "b.ipynb"]


def other_kit():
    import kit.run.worker as there

    there.package_key = lambda: "other"


def same_kit():
    import kit.run.files
    import kit.run.worker as there

    there.package_key = kit.run.files.package_key


def other_data():
    import kit.run.worker as there

    there.data_at_hand = lambda: {"svhn.npz": "another"}


def same_data():
    import importlib

    import kit.run.worker as there

    importlib.reload(there)


@pytest.mark.parametrize(
    ("change", "back", "words"),
    [(other_kit, same_kit, "differs from this machine: kit is other and not"), (other_data, same_data, "other data")],
)
def test_a_worker_that_differs_is_refused_by_its_name(client, here, tmp_path, change, back, words):
    client.wait_for_workers(2, timeout=120)
    notebook = write(tmp_path / "a.ipynb", "1")
    spoilt(client, "local-1", change)
    try:
        with pytest.raises(UserError, match=f"local-1.*{words}" if change is other_kit else f"local-.*{words}"):
            run([notebook], profile="full", device="cpu", cluster=here, out=tmp_path / "out")
    finally:
        client.run(back)
    assert not (tmp_path / "out").exists()


def test_the_cells_of_a_grid_go_to_the_workers_and_are_kept(client, here, tmp_path, monkeypatch):
    from kit.report import Measured

    client.wait_for_workers(2, timeout=120)
    monkeypatch.setenv("KIT_CLUSTER", here)
    measured = Measured(tmp_path / "a_measured.json", write=True, seed=0)

    def trial(way, k):
        return [os.getpid(), f"{way}{k}"]

    measured.fill("g", "cells", trial, {f"{way}, {k}": (way, k) for way in "ab" for k in range(3)})
    cells = json.loads((tmp_path / "a_measured.json").read_text())["g"]["cells"]
    assert {cell: name for cell, (_, name) in cells.items()} == {f"{w}, {k}": f"{w}{k}" for w in "ab" for k in range(3)}
    assert {pid for pid, _ in cells.values()} <= set(client.run(os.getpid).values())


def test_the_cells_of_a_grid_go_to_no_other_worker_than_the_notebooks(client, here, monkeypatch):
    from kit.report.grids import computed

    client.wait_for_workers(2, timeout=120)
    address, pid = next(iter(client.run(os.getpid).items()))
    monkeypatch.setenv("KIT_CLUSTER", here)
    monkeypatch.setenv("KIT_CLUSTER_WORKERS", address)
    assert {found for _, found in computed(os.getpid, {str(n): () for n in range(6)})} == {pid}


def test_a_file_named_by_its_whole_path_is_not_written_on_a_worker(here, tmp_path):
    """Each machine has its own; a change of this one's is still a reason to run again."""
    table = tmp_path / "table.csv"
    table.write_text("a table")
    made = table.stat().st_mtime_ns
    notebook = write(tmp_path / "a.ipynb", f"print(open({str(table)!r}).read())")

    def status():
        return run([notebook], cluster=here, out=tmp_path / "out")[0].status

    assert [status(), status()] == ["ok", "up to date"]
    assert table.stat().st_mtime_ns == made
    table.write_text("another table")
    assert status() == "ok"


def test_damaged_figures_fail_their_notebook_alone(here, tmp_path):
    work = [write(tmp_path / f"{name}.ipynb", "1") for name in "ab"]
    (tmp_path / "a_measured.json").write_text('{"half":')
    a, b = run(work, profile="full", device="cpu", cluster=here, out=tmp_path / "out")
    assert (a.status, b.status) == ("failed", "ok")
    assert "a_measured.json is not JSON" in a.error
    assert "restore it, or delete it" in a.error


def test_what_no_worker_offers_is_refused(here, tmp_path):
    notebook = write(tmp_path / "a.ipynb", "1")
    nb = json.loads(notebook.read_text())
    nb["metadata"]["kit"] = {"resources": {"quick": {"memory": 1e6}}}
    notebook.write_text(json.dumps(nb))
    with pytest.raises(UserError, match=r"memory 1e\+06 GiB; they offer local-0(\.\d+)?: memory .* "
                                        r"Start one with `dask worker --resources memory=1e\+06`"):
        run([notebook], cluster=here, out=tmp_path / "out")
    with pytest.raises(UserError, match="asks for, GPU 1; they offer .* Give --device auto or cpu, or start one with "
                                        "`dask worker --resources GPU=1`"):
        run([write(tmp_path / "b.ipynb", "1")], device="cuda", cluster=here, out=tmp_path / "out")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_whichever_way_the_runner_ends_no_process_stays(tmp_path, how):
    pid = tmp_path / "pid"
    notebook = write(tmp_path / "a.ipynb", f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\n"
                     "time.sleep(600)")
    command = [sys.executable, "-m", "kit.run", "run", str(notebook), "--cluster", "local:1"]
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], env={**os.environ, "PYTHONPATH": str(files.ROOT)},
                          cwd=tmp_path, stdout=-3, stderr=subprocess.PIPE, text=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as runner:
        end = time.monotonic() + 300
        while not (pid.exists() and pid.read_text()):
            assert time.monotonic() < end, "the notebook did not start"
            assert runner.poll() is None, runner.stderr.read()
            time.sleep(0.1)
        tree = [child.pid for child in psutil.Process(runner.pid).children(recursive=True)]
        runner.send_signal(how)
        words = runner.communicate(timeout=120)[1]
    assert all(gone(child, 60) for child in {*tree, int(pid.read_text())})
    if how == signal.SIGINT:
        assert runner.returncode == 130
        assert "goes on from there" in words


def test_a_run_that_is_stopped_as_its_workers_start_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "kit.run", "run", str(write(tmp_path / "a.ipynb", "1")), "--cluster", "local:1"]
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], env=environment, cwd=tmp_path, stdout=-3,
                          stderr=subprocess.PIPE, text=True) as runner:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("kit-workers-*/local-0.log")):
            assert time.monotonic() < end, "no worker was started"
            assert runner.poll() is None, runner.stderr.read()
            time.sleep(0.01)
        tree = [child.pid for child in psutil.Process(runner.pid).children(recursive=True)]
        runner.send_signal(signal.SIGTERM)
        words = runner.communicate(timeout=120)[1]
    assert (runner.returncode, words) == (130, "Stopped with 0 done; the same command goes on from there.\n")
    assert not list(tmp_path.glob("kit-workers-*"))
    assert all(gone(child, 60) for child in tree)


def test_a_worker_that_finds_no_scheduler_leaves(tmp_path, monkeypatch):
    """As one that starts when the runner has just been killed. Another that starts in its place says that it left."""
    monkeypatch.setattr(crews, "ORPHAN", 1)
    with crews._processes(1, "tcp://127.0.0.1:9", tmp_path, False):
        end = time.monotonic() + 120
        while not (tmp_path / "local-0.1.log").exists():
            assert time.monotonic() < end, (tmp_path / "local-0.log").read_text()
            time.sleep(0.1)


# ------------------------------------------------------------------------------------------- without a cluster


def test_mistakes(tmp_path, monkeypatch):
    notebook = write(tmp_path / "a.ipynb", "1")
    for address, words in (
        ("local:0", "at least 1"), ("local:x", "at least 1"), ("local:²", "at least 1"), ("LOCAL:0", "at least 1"),
        ("nothing", "tcp://HOST:8786: not 'nothing'"), ("tcp://h:x", "not 'tcp://h:x'"), ("tls://h:1", "not 'tls://h"),
        ("tcp://h:99999", "not 'tcp://h:99999'"), ("http://h:80", "not 'http://h:80'"),
        ("127.0.0.1", "not '127.0.0.1'"), ("tcp://127.0.0.1:9", "no dask scheduler answers at tcp://127.0.0.1:9"),
    ):
        with pytest.raises(UserError, match=words):
            run([notebook], cluster=address, out=tmp_path / "out")
    with pytest.raises(UserError, match="without --jobs"):
        run([notebook], cluster="local:2", jobs=2)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"needs dask, which is missing: run \.venv/bin/pip install -e '\.\[scale\]'"):
        run([notebook], cluster="local:2")


def test_what_a_notebook_asks_for(tmp_path):
    path = tmp_path / "a.ipynb"

    def of(profile, device, **resources):
        return files.needs({"metadata": {"kit": {"resources": resources}}}, path, profile, device)

    assert of("quick", "auto") == of("full", "cpu") == {}
    assert of("full", "auto") == of("quick", "cuda") == {"GPU": 1}
    assert of("full", "auto", full={"GPU": 0, "memory": 8}) == {"memory": 8}
    assert of("quick", "auto", full={"memory": 8}) == {}
    assert of("full", "cuda", full={"GPU": 0.25}) == {"GPU": 0.25}
    assert of("full", "cpu", full={"GPU": 2, "memory": 8}) == {"memory": 8}
    for wrong in ({"full": {"gpu": 1}}, {"full": {"memory": "8 GB"}}, {"full": {"memory": -1}}, {"full": 8}):
        with pytest.raises(UserError, match="kit.resources"):
            of("full", "auto", **wrong)


def worker(**of) -> crews.Worker:
    return crews.Worker(**({"address": "tcp://w", "name": "w", "host": "h", "threads": 2, "cores": 8,
                              "offers": {"GPU": 1, "memory": 10.0}, "declared": set()} | of))


def test_a_worker_gives_no_more_than_it_offers():
    here = worker()
    assert here.room({"GPU": 1, "memory": 6.0})
    assert not here.room({"GPU": 2})
    assert not here.room({"memory": 11.0})
    here.taken["a"] = {"GPU": 1, "memory": 6.0}
    assert not here.room({"GPU": 1})
    assert not here.room({"memory": 5.0})
    assert here.room({"memory": 4.0})
    assert here.could({"memory": 10.0})
    here.taken["b"] = {}
    assert not here.room({})  # one for each thread
    here.taken.clear()
    here.out = "its disk is full"
    assert not here.room({})


def test_what_differs_is_named():
    here = {"torch": "2.15.0", "numpy": "2.4.6", "kit": "a" * 64}
    assert crews.differing(here, dict(here)) == ""
    assert crews.differing(here, {"torch": "2.11.0", "kit": "b" * 64}) == (
        "kit is bbbbbbbbbbbb and not aaaaaaaaaaaa, numpy is missing and not 2.4.6, torch is 2.11.0 and not 2.15.0")


def test_a_late_worker_that_differs_gets_nothing_and_is_named():
    there = {"tcp://a": 1}
    found = {"host": "h", "threads": 1, "cores": 1, "memory": 4.0, "resources": {}, "data": {"mnist.npz": "1"}}
    about = crews.setup("")

    def ask(function, code, data, workers, on_error):
        other = {"tcp://b": {"torch": "0"}}
        return {a: {**found, "name": a[-1], "about": about | other.get(a, {})} for a in workers}

    client = SimpleNamespace(nthreads=lambda: there, run=ask, subscribe_topic=lambda *_: None)
    crew = crews.Crew(client, [], "quick", print)
    crew.look()
    assert set(crew.workers) == {"tcp://a"}
    there |= {"tcp://b": 1, "tcp://c": 1}
    crew.look()
    assert set(crew.workers) == {"tcp://a", "tcp://c"}
    assert "the worker b (tcp://b) differs from this machine: torch is 0 and not" in crew.refused["tcp://b"]
    del there["tcp://a"]
    crew.look()
    assert set(crew.workers) == {"tcp://c"}
    assert crew.threads == 1
    assert crew.nobody() == ""
    crew.workers["tcp://c"].out = "its disk is full"
    assert crew.nobody().startswith("c: its disk is full; the worker b")
    there.clear()
    crew.look()
    assert crew.nobody() == ""  # others may come


def test_a_scheduler_that_is_gone_is_one_sentence():
    def gone():
        raise OSError("Timed out")

    for nthreads in (gone, lambda: {"tcp://a": 1}):  # before, and as a new worker is asked
        client = SimpleNamespace(nthreads=nthreads, run=lambda *_, **__: gone(), subscribe_topic=lambda *_: None)
        with pytest.raises(UserError, match=r"the dask scheduler is gone \(OSError\): start it again"):
            crews.Crew(client, [], "quick", print).look()


def test_a_worker_computes_with_the_instructions_of_a_kernel(monkeypatch):
    from kit.run import job
    from kit.run.worker import facts

    monkeypatch.setattr(job, "has_avx2", lambda: True)
    monkeypatch.setattr(os, "environ", {**os.environ, "OMP_NUM_THREADS": "7", "ATEN_CPU_CAPABILITY": "default"})
    state = SimpleNamespace(nthreads=1, total_resources={})
    facts("", False, SimpleNamespace(name="w", state=state, memory_manager=None))
    assert (os.environ["ATEN_CPU_CAPABILITY"], os.environ["OMP_NUM_THREADS"]) == ("avx2", "1")




def test_a_lost_connection_is_not_told_twice(capsys):
    import distributed  # noqa: F401  it gives its loggers their levels

    logs = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        with crews._silent():
            for log in (*logs, logging.getLogger("distributed.core")):
                log.error("Failed to reconnect to scheduler after 30.00 seconds")
            assert capsys.readouterr().err == ""
        assert [log.level for log in logs] == [logging.WARNING] * 2
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def test_data_are_the_same_by_names_sizes_and_ends(tmp_path, monkeypatch):
    from kit.run.worker import data_at_hand

    monkeypatch.setenv("KIT_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(b"x" * 10_000)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"1")
    before = data_at_hand()
    assert set(before) == {"mnist.npz", "photos"}
    assert data_at_hand() == before
    (tmp_path / "mnist.npz").write_bytes(b"x" * 9_999 + b"y")
    assert data_at_hand()["mnist.npz"] != before["mnist.npz"]
    (tmp_path / "photos" / "cat" / "1.png").rename(tmp_path / "photos" / "cat" / "2.png")
    assert data_at_hand()["photos"] != before["photos"]
    monkeypatch.setenv("KIT_DATA", str(tmp_path / "nowhere"))
    assert data_at_hand() == {}


def test_groups_are_merged_without_losing_one():
    before = {"a": {"n": 1}, "b": {"n": 1}}
    assert merged(before, before, {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}) == {
        "a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}
    ours = {"a": {"n": 9}, "d": {"n": 4}}  # another run wrote a and d meanwhile, and b was taken out
    assert merged(ours, before, before | {"c": {"n": 3}}) == {"a": {"n": 9}, "d": {"n": 4}, "c": {"n": 3}}
    cells = {"g": {"seed": 0, "ways": {"x": 1}}}
    both = merged({"g": {"seed": 0, "ways": {"y": 2}}}, {}, cells)
    assert both == {"g": {"seed": 0, "ways": {"y": 2, "x": 1}}}
    assert merged({"g": {"seed": 7, "ways": {"y": 2}}}, {}, cells) == cells  # made otherwise: not mixed
