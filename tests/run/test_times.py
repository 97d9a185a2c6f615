"""What the chapters take, from the stamps of their runs."""

from __future__ import annotations

import json

import pytest

from kit.run import times
from kit.run.files import UserError, chapters
from tests.run.cells import write


def stamped(path, **stamp):
    """An executed notebook that took what the stamp says."""
    nb = json.loads(write(path, "1").read_text())
    for number, cell in enumerate(cell for cell in nb["cells"] if cell["cell_type"] == "code"):
        cell["execution_count"] = number + 1
    note = {"profile": "quick", "device": "cpu", "seconds": 40.0, "cpu": 24.0, "memory": 1024, "torch": "2"}
    nb["metadata"]["kit"] = {"stamp": note | stamp}
    path.write_text(json.dumps(nb))


@pytest.fixture
def root(tmp_path):
    stamped(tmp_path / "notebooks" / "a.ipynb")
    stamped(tmp_path / "notebooks" / "b.ipynb", cpu=30.0, memory=2048)
    (tmp_path / times.FILE).parent.mkdir(parents=True)
    return tmp_path


def keep(root, *folders):
    found = times.gathered(folders, root)
    (root / times.FILE).write_text(json.dumps(found))
    return found


def test_the_table_is_of_the_committed_stamps_and_of_the_runs_that_were_gathered(root):
    assert times.table(root) == [
        ("notebooks/a.ipynb", ["0.4", "1.0", "–", "–", "–", "–"]),
        ("notebooks/b.ipynb", ["0.5", "2.0", "–", "–", "–", "–"]),
    ]
    stamped(root / "gpu" / "notebooks" / "a.ipynb", device="H", seconds=90.0, cpu=200.0)
    stamped(root / "full" / "notebooks" / "a.ipynb", profile="full", cpu=1200.0, memory=3072, kept=0)
    stamped(root / "full" / "notebooks" / "b.ipynb", profile="full", device="H", seconds=300.0, kept=2)
    keep(root, root / "gpu", root / "full")
    assert times.table(root) == [
        ("notebooks/a.ipynb", ["0.4", "1.0", "1.5", "20", "3.0", "–"]),
        ("notebooks/b.ipynb", ["0.5", "2.0", "–", "–", "–", "≥ 5.0"]),
    ]
    assert times.gpus(root) == ["H"]
    (said,) = times.on_paper(root)
    assert said.startswith("All 2 chapters under the quick profile: 0.9 minutes of one core;")
    assert "first 0.5 on 2, 0.5 on 4" in said
    stamped(root / "notebooks" / "a.ipynb", cpu=12.0)  # the committed stamp is read when the book is built
    assert times.table(root)[0][1][0] == "0.2"


def test_a_full_run_that_only_looked_replaces_none_that_measured(root):
    def run(**stamp):
        stamped(root / "full" / "notebooks" / "a.ipynb", profile="full", **stamp)
        return keep(root, root / "full")["notebooks/a.ipynb"]["full"]["cpu"]["cpu"]

    assert run(cpu=600.0, kept=1) == 600.0
    assert run(cpu=20.0, kept=3) == 600.0
    assert run(cpu=500.0, kept=0) == 500.0  # all of it was measured
    assert run(cpu=700.0, kept=1) == 700.0


def test_what_several_workers_would_take():
    assert times.spread([3, 3, 2, 2, 2], 2) == 7  # 3 + 2 + 2 and 3 + 2: the free one takes the longest that is left
    assert times.spread([5, 1, 1], 2) == 5
    assert times.spread([1, 2, 3], 1) == 6


def test_what_is_no_run_is_refused_or_left_out(root):
    with pytest.raises(UserError, match="no executed chapter"):
        times.gathered([root / "nowhere"], root)
    write(root / "runs" / "notebooks" / "a.ipynb", "1")  # never executed
    assert times.gathered([root / "runs"], root) == {}


def test_every_chapter_has_its_row_and_its_committed_minutes():
    rows = times.table()
    assert [place for place, _ in rows] == [path.relative_to(times.ROOT).as_posix() for path in chapters()]
    assert [place for place, cells in rows if not 0 < float(cells[0]) <= 0.6 or not 0.2 < float(cells[1]) < 4] == []
    assert set(times.known()) <= {place for place, _ in rows}
