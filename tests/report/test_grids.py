"""Grids of independent runs: one after another, in processes of this machine; on a cluster see tests/run."""
import json
import os
import sys
from types import SimpleNamespace

import pytest

from kit.report import Measured
from kit.report.grids import CLUSTER, computed


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv(CLUSTER, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def squared(n):
    if n == 3:
        raise RuntimeError("three")
    return n * n


def test_each_cell_is_kept_as_it_is_done_and_the_rest_resumes(tmp_path):
    """The run that fails in its third cell keeps the two before; the next computes what is missing alone."""
    path, asked = tmp_path / "a_measured.json", []

    def noted(n):
        asked.append(n)
        return squared(n)

    measured = Measured(path, write=True, seed=1)
    with pytest.raises(RuntimeError, match="three"):
        measured.fill("g", "cells", noted, {f"n = {n}": (n,) for n in (1, 2, 3)}, images=8)
    kept = {"g": {"seed": 1, "images": 8, "cells": {"n = 1": 1, "n = 2": 4}}}
    assert json.loads(path.read_text()) == kept
    again = Measured(path, write=True, seed=1)
    again.fill("g", "cells", noted, {f"n = {n}": (n,) for n in (1, 2, 4)}, images=8)
    assert asked == [1, 2, 3, 4]
    assert again["g"]["cells"] == {"n = 1": 1, "n = 2": 4, "n = 4": 16}
    Measured(path, write=False).fill("g", "cells", noted, {"n = 5": (5,)})  # the quick profile computes nothing
    Measured(path, write=True, seed=2).fill("g", "cells", noted, {"n = 1": (1,)})  # another seed: made anew
    assert asked == [1, 2, 3, 4, 1]
    assert json.loads(path.read_text())["g"]["cells"] == {"n = 1": 1}


def test_with_more_threads_there_are_as_many_processes_of_one_thread_each(monkeypatch):
    def where(n):
        return os.getpid(), os.environ["OMP_NUM_THREADS"], n

    cells = {str(n): (n,) for n in range(3)}
    assert [value for _, value in computed(where, cells)] == [(os.getpid(), "1", n) for n in range(3)]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [value for _, value in computed(where, {"one": (1,)})] == [(os.getpid(), "2", 1)]
    found = dict(computed(where, cells))
    assert {cell: n for cell, (_, _, n) in found.items()} == {"0": 0, "1": 1, "2": 2}
    assert os.getpid() not in {pid for pid, _, _ in found.values()}
    assert {threads for _, threads, _ in found.values()} == {"1"}
    gpu = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", gpu)  # processes would each want the GPU
    assert {pid for _, (pid, _, _) in computed(where, cells)} == {os.getpid()}


def test_a_cell_that_fails_is_named_and_costs_no_other(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found, done = computed(squared, {f"n = {n}": (n,) for n in (3, 1, 2, 4)}), []
    with pytest.raises(RuntimeError, match="three") as raised:
        done.extend(cell for cell, _ in found)
    assert raised.value.__notes__ == ["in the cell 'n = 3' of a grid"]
    assert sorted(done) == ["n = 1", "n = 2", "n = 4"]


def test_a_process_that_is_killed_is_one_sentence(monkeypatch):
    def killed(n):
        os.kill(os.getpid(), 9)

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(RuntimeError, match="was killed, as happens when memory runs out: run again"):
        list(computed(killed, {"1": (1,), "2": (2,)}))


def test_a_cluster_without_dask_is_one_sentence(monkeypatch):
    monkeypatch.setenv(CLUSTER, "tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"dask is missing: run \.venv/bin/pip"):
        list(computed(squared, {"1": (1,), "2": (2,)}))
