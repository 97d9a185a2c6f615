"""The notebook runner, on notebooks of a few cells."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from kit.run import execute, files, job, notebooks
from kit.run.files import UserError
from kit.run.kernel import started
from kit.run.notebooks import run
from kit.run.probe import probe
from tests.run.cells import gone, printed, write


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Notebooks of which some fail, run two at once: folder, and results by name."""
    folder = tmp_path_factory.mktemp("book")
    show = "print(profile, device, seed, os.environ['OMP_NUM_THREADS'], os.getcwd())\nprint(sys.executable)"
    names = [
        write(folder / "in" / "good.ipynb", f"import os, sys\n{show}", "import sys\nprint('warned', file=sys.stderr)"),
        write(folder / "in" / "bad.ipynb", "print('before')", "one = 1\none / 0", "print('never')"),
        write(folder / "in" / "dies.ipynb", "import os\nos._exit(3)"),
        write(folder / "in" / "magic.ipynb", "%nosuchmagic"),
        write(folder / "in" / "flood.ipynb", "while True:\n    print('y' * 10_000)"),
        write(folder / "in" / "may.ipynb", ("1 / 0", "raises-exception"), "print('after')"),
        write(folder / "in" / "may_not.ipynb", ("1 / 0", "raises-exception"), "[][1]"),
        write(folder / "in" / "last.ipynb", "print('x' * 400_000)\n2 + 2"),
        write(folder / "in" / "bad.failed.ipynb", "print('a notebook of that name')"),
    ]
    fake = folder / "jupyter" / "kernels" / "python3"  # an installed kernel of that name must not be used
    fake.mkdir(parents=True)
    (fake / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(fake.parent.parent))
        patch.setattr(notebooks, "cores", lambda: 6)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        results = run(names, jobs=2, out=folder / "out")
    return folder, {result.notebook.stem: result for result in results}


def test_one_failure_does_not_stop_the_others(book):
    folder, results = book
    good, failed = ["good", "may", "last", "bad.failed"], ["bad", "dies", "magic", "flood", "may_not"]
    assert {name: results[name].status for name in results} == dict.fromkeys(good, "ok") | dict.fromkeys(
        failed, "failed"
    )
    names = {p.name for p in (folder / "out").rglob("*.ipynb")}
    assert names == {f"{name}.ipynb" for name in good} | {f"{name}.failed.ipynb" for name in failed[1:]} | {
        "bad.failed_.ipynb"  # because a notebook is called bad.failed
    }
    assert "of that name" in printed(folder / "out" / "bad.failed.ipynb")


def test_every_failure_names_its_cell_and_its_cause(book):
    _, results = book
    assert "nosuchmagic" in results["magic"].error
    assert "not found" in results["magic"].error
    assert results["magic"].cell == "%nosuchmagic"
    assert "more than 10 MB of output" in results["flood"].error
    assert results["flood"].cell.startswith("while True")
    assert results["flood"].seconds < 60
    assert results["may_not"].cell == "[][1]"  # and not the cell that may fail
    assert results["may_not"].error == "IndexError: list index out of range"


def test_a_cell_tagged_raises_exception_may_fail(book):
    _, results = book
    assert "after" in printed(results["may"].output)
    (error,) = files.read(results["may"].output)["cells"][2]["outputs"]
    assert error["ename"] == "ZeroDivisionError"


def test_a_long_line_takes_no_longer_than_it_should(book):
    """nbclient's own way takes time quadratic in its length: minutes for this one."""
    _, results = book
    assert "x" * 400_000 in printed(results["last"].output)
    assert results["last"].seconds < 60


def test_a_failure_shows_its_cell_and_keeps_what_was_done(book):
    _, results = book
    bad = results["bad"]
    assert bad.cell == "one = 1\none / 0"
    assert bad.error == "ZeroDivisionError: division by zero"
    assert "before" in printed(bad.output)
    assert "never" not in printed(bad.output)
    assert "died" in results["dies"].error
    assert results["dies"].cell.startswith("import os")


def test_the_kernel_is_this_interpreter_in_the_notebooks_folder_with_its_share_of_cores(book):
    folder, results = book
    lines = printed(results["good"].output).splitlines()
    assert lines[0] == f"quick auto 0 3 {folder / 'in'}"
    assert lines[1] == sys.executable


def test_the_stamp(book):
    _, results = book
    result = results["good"]
    nb = files.read(result.output)
    stamp = files.stamp(nb)
    assert stamp["profile"] == "quick"
    assert stamp["seed"] == 0
    assert stamp["device"] == "cpu"
    assert stamp["python"] == ".".join(map(str, sys.version_info[:3]))
    assert stamp["seconds"] == result.seconds > 0
    assert stamp["memory"] == result.memory > 20
    assert 0.2 < stamp["cpu"] == result.cpu < 60
    assert stamp["content"] == files.content_key(nb, prose=True)
    assert stamp["source"] == files.code_key(files.read(result.notebook))
    assert set(stamp) == {
        "profile",
        "seed",
        "device",
        "python",
        "torch",
        "kit",
        "seconds",
        "cpu",
        "memory",
        "commit",
        "source",
        "key",
        "content",
    }


def test_only_outputs_are_added(book):
    _, results = book
    before, after = files.read(results["good"].notebook), files.read(results["good"].output)
    for old, new in zip(before["cells"], after["cells"], strict=True):
        assert files.source(old) == files.source(new)
        assert (old["metadata"], old["id"]) == (new["metadata"], new["id"])
    assert [c["execution_count"] for c in after["cells"] if c["cell_type"] == "code"] == [1, 2, 3]
    assert set(after["metadata"]) == {"kernelspec", "language_info", "kit"}


def test_what_is_up_to_date_is_skipped(book, monkeypatch):
    folder, results = book
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing may start
    good = results["good"]
    (again,) = run([good.notebook], out=folder / "out")
    assert again.status == "up to date"
    assert (again.seconds, again.cpu, again.memory) == (good.seconds, good.cpu, good.memory)


def test_a_full_run_whose_figures_were_changed_or_deleted_is_run_again(tmp_path):
    measure = ("import json\nfrom pathlib import Path\npath = Path('a_measured.json')\n"
               "found = json.loads(path.read_text()) if path.exists() else {}\n"
               "if 'n' not in found:\n    path.write_text(json.dumps({'n': 1}))")
    notebook, kept = write(tmp_path / "a.ipynb", measure), tmp_path / "a_measured.json"

    def status():
        return run([notebook], profile="full", device="cpu", out=tmp_path / "out")[0].status

    assert [status(), status()] == ["ok", "up to date"]
    kept.write_text("{}")  # a group is taken out
    assert [status(), status()] == ["ok", "up to date"]
    kept.unlink()
    assert [status(), status()] == ["ok", "up to date"]
    assert json.loads(kept.read_text()) == {"n": 1}


CHANGES = ["force", "seed", "code", "prose", "kit", "lock", "own weights", "measured", "edited", "damaged"]


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_not_up_to_date(book, monkeypatch, tmp_path, what):
    folder, results = book
    source, given, force = results["good"].notebook, {"profile": "quick", "device": "auto", "seed": 0}, what == "force"
    target = folder / "out"
    if what == "seed":
        given["seed"] = 1
    elif what in ("code", "prose"):
        text = source.read_text().replace(
            *{"code": ("print(profile", "print( profile"), "prose": ("Text.", "Word.")}[what]
        )
        assert text != source.read_text()
        source = tmp_path / "good.ipynb"
        source.write_text(text)
        target = tmp_path / "out"
        target.mkdir()
        (target / "good.ipynb").write_text(results["good"].output.read_text())
        monkeypatch.chdir(tmp_path)
    elif what == "kit":
        monkeypatch.setattr(files, "package_key", lambda: "other")
    elif what == "lock":
        monkeypatch.setattr(files, "environment_key", lambda: "other")
    elif what == "own weights":
        monkeypatch.setenv("KIT_MODELS", str(tmp_path))
        (tmp_path / "manifest.json").write_text('{"digits/mlp": {"sha256": "other"}}')
    elif what in ("measured", "edited", "damaged"):
        source, target = tmp_path / "in" / "good.ipynb", tmp_path / "out"
        monkeypatch.setattr(job, "relative", lambda notebook: Path(notebook.name))
        source.parent.mkdir()
        target.mkdir()
        source.write_text(results["good"].notebook.read_text())
        text = results["good"].output.read_text()
        (target / "good.ipynb").write_text(text)
        assert job.prepare(source, given, target, in_place=False, force=False).up_to_date
        if what == "measured":
            (source.parent / "good_measured.json").write_text("{}")
        else:
            changed = text.replace("quick auto 0", "quick auto 1") if what == "edited" else text[:500]
            assert changed != text
            (target / "good.ipynb").write_text(changed)
    assert not job.prepare(source, given, target, in_place=False, force=force).up_to_date


def test_own_networks_count_where_they_take_a_shipped_ones_place_or_are_named(tmp_path, monkeypatch):
    """A chapter that trains one for its reader would otherwise make every other chapter's run stale."""
    monkeypatch.setenv("KIT_MODELS", str(tmp_path))
    assert files.weights_used("load('own/net')") == {}
    (tmp_path / "manifest.json").write_text('{"digits/mlp": {"sha256": "1"}, "own/net": {"sha256": "2"}}')
    shadow = {"digits/mlp": "1"}
    assert files.weights_used("x = 1\nload(f'{data}/cnn')") == shadow
    assert files.weights_used("name = 'backdoor/secret'  # or 'own/net'") == shadow
    assert files.weights_used('x = 1\nname = "own/net"') == {"digits/mlp": "1", "own/net": "2"}
    (tmp_path / "manifest.json").write_text("{")
    assert files.weights_used("load('own/net')") == {}


def test_force_measures_anew_what_the_full_profile_keeps(tmp_path):
    """Without it what is complete stays, with it all is measured again, and the quick profile measures nothing."""
    source = write(tmp_path / "chapter.ipynb", (
        "from kit.report import Measured\nmeasured = Measured('chapter_measured.json', write=profile == 'full')\n"
        "if measured.lacks('mnist'):\n    measured.keep('mnist', n=measured.get('mnist', {}).get('n', 0) + 1)\n"
        "    print('measured')\nelse:\n    print('kept')"))
    said = []
    for profile, force in (("full", False), ("full", False), ("full", True), ("quick", True)):
        (result,) = run([source], profile=profile, device="cpu", force=force, out=tmp_path / "out")
        assert result.status in ("ok", "up to date"), result
        said.append(printed(result.output))
        (tmp_path / "out" / "chapter.ipynb").unlink(missing_ok=True)
    assert said == ["measured\n", "kept\n", "measured\n", "kept\n"]


def test_prose_does_not_make_committed_outputs_stale_but_code_does(tmp_path):
    given = {"profile": "quick", "device": "auto", "seed": 0}
    nb = files.read(write(tmp_path / "a.ipynb", "1"))
    prose, code = json.loads(json.dumps(nb)), json.loads(json.dumps(nb))
    prose["cells"][0]["source"] = "# Another title"
    code["cells"][2]["source"] = "2"
    assert files.run_key(prose, given, prose=False) == files.run_key(nb, given, prose=False)
    assert files.run_key(prose, given, prose=True) != files.run_key(nb, given, prose=True)
    assert files.run_key(code, given, prose=False) != files.run_key(nb, given, prose=False)
    assert files.code_key(code) != files.code_key(nb)


def test_a_file_that_the_code_names_is_in_the_key(tmp_path):
    quick, full = files.DEFAULTS, files.DEFAULTS | {"profile": "full"}
    path = write(tmp_path / "a.ipynb", "open('table.csv')\nopen(\"a_measured.json\")")
    nb = files.read(path)

    def keys():
        return [files.run_key(nb, given, prose=False, path=path) for given in (quick, full)]

    before = keys()
    (tmp_path / "a_measured.json").write_text("{}")  # the full profile writes it
    assert (keys()[0] != before[0], keys()[1] == before[1]) == (True, True)
    before = keys()
    (tmp_path / "table.csv").write_text("1")
    assert (keys()[0] != before[0], keys()[1] != before[1]) == (True, True)
    before = keys()
    (tmp_path / "other.csv").write_text("1")
    assert keys() == before


def test_the_lock_and_the_versions_are_in_the_key(monkeypatch, tmp_path):
    before = files.environment_key()
    files.environment_key.cache_clear()
    files.installed.cache_clear()
    version = files.importlib.metadata.version
    monkeypatch.setattr(files.importlib.metadata, "version", lambda name: version(name) + "+" * (name == "scipy"))
    assert files.environment_key() != before
    monkeypatch.undo()
    files.environment_key.cache_clear()
    files.installed.cache_clear()
    (tmp_path / "requirements.lock").write_text("numpy==1")
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert files.environment_key() != before
    files.environment_key.cache_clear()
    files.installed.cache_clear()


def test_an_edited_copy_is_seen_and_prose_is_not_in_place(tmp_path):
    nb = files.read(write(tmp_path / "a.ipynb", "print(1)"))
    nb["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}]
    whole, code = (files.content_key(nb, prose=prose) for prose in (True, False))
    nb["cells"][2]["outputs"][0]["text"] = "1\n2\n"  # how it is stored does not count
    assert (files.content_key(nb, prose=True), files.content_key(nb, prose=False)) == (whole, code)
    nb["cells"][0]["source"] = "# Another title"
    assert files.content_key(nb, prose=True) != whole
    assert files.content_key(nb, prose=False) == code
    nb["cells"][2]["outputs"][0]["text"] = "1\n3\n"
    assert files.content_key(nb, prose=False) != code


def test_parameters_may_be_annotated_and_stand_beside_other_statements(tmp_path):
    cell = 'import os\nprofile: str = "quick"  # or full\ndevice = "auto"\nseed: int = 0\nn = len(device)\nx: int'
    nb = files.read(write(tmp_path / "a.ipynb", parameters=cell))
    assert files.parameters(nb) == files.DEFAULTS
    (result,) = run([write(tmp_path / "a.ipynb", "print(seed, n)", parameters=cell)], seed=3, out=tmp_path / "out")
    assert result.status == "ok", result.error
    assert printed(result.output) == "3 4\n"
    (again,) = run([result.output], out=tmp_path / "again")  # its injected parameters are those of that run
    assert printed(again.output) == "0 4\n"
    assert len(files.read(again.output)["cells"]) == len(nb["cells"]) + 2  # as many, with one cell of code more


def test_streams_are_joined_and_what_is_overwritten_goes():
    nbformat = pytest.importorskip("nbformat")

    def of(*streams):
        outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in streams]
        return [(o.name, o.text) for o in execute.coalesce(outputs)]

    assert of(("stdout", "a"), ("stdout", "b\n")) == [("stdout", "ab\n")]
    assert of(("stderr", "w"), ("stdout", "a"), ("stderr", "x")) == [("stdout", "a"), ("stderr", "wx")]
    assert of(("stdout", "1 %\r2 %"), ("stdout", "\r3 %\nend\r\n")) == [("stdout", "3 %\nend\r\n")]


def test_other_parameters_are_injected_under_a_fixed_id(tmp_path):
    notebook = write(tmp_path / "a {b}.ipynb", "print(profile, seed)")
    (result,) = run([notebook], profile="full", seed=3, out=tmp_path / "out")
    assert result.status == "ok", result.error
    assert printed(result.output) == "full 3\n"
    injected = files.read(result.output)["cells"][2]
    assert injected["id"] == "injected-parameters"
    assert injected["metadata"] == {"tags": ["injected-parameters"]}


def test_who_asks_for_fewer_threads_gets_them(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    show = write(tmp_path / "show.ipynb", "import os\nprint(os.environ['OMP_NUM_THREADS'])")
    (result,) = run([show], out=tmp_path / "out")
    assert printed(result.output) == "2\n"


def test_in_place_is_stable_and_refuses_stderr(tmp_path):
    good = write(
        tmp_path / "good.ipynb", "print('one')\nprint('two')", "import os\nprint(os.environ['OMP_NUM_THREADS'])"
    )
    noisy = write(tmp_path / "noisy.ipynb", "import sys\nprint('warned', file=sys.stderr)")
    untouched = noisy.read_text()
    first, second = run([good, noisy], in_place=True, out=tmp_path / "out", jobs=2)
    assert (first.status, second.status) == ("ok", "failed")
    assert "stderr" in second.error
    assert noisy.read_text() == untouched
    assert second.output == tmp_path / "out" / "noisy.failed.ipynb"
    content = good.read_text()
    assert printed(good) == "one\ntwo\n1\n"
    assert "papermill" not in content
    assert run([good], in_place=True, out=tmp_path / "out")[0].status == "up to date"
    assert run([good], in_place=True, out=tmp_path / "out", force=True)[0].status == "ok"
    assert good.read_text() == content
    note = json.loads(content)
    note["metadata"]["kit"]["stamp"]["cpu"] = 60.0  # as on a busy machine
    good.write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n")
    run([good], in_place=True, out=tmp_path / "out", force=True)
    assert json.loads(good.read_text())["metadata"]["kit"]["stamp"]["cpu"] < 30


def test_the_time_limit(tmp_path):
    slow = write(tmp_path / "slow.ipynb", "import time\ntime.sleep(300)")
    (result,) = run([slow], timeout=8, out=tmp_path / "out")
    assert result.status == "timed out"
    assert "8 s" in result.error
    assert result.seconds < 100
    assert not (tmp_path / "out" / "slow.ipynb").exists()


MISTAKES = {
    "profile": ({"profile": "fast"}, "quick or full"),
    "device": ({"device": "tpu"}, "auto, cpu or cuda"),
    "jobs": ({"jobs": 0}, "at least 1"),
    "timeout": ({"timeout": -1}, "positive"),
    "in place": ({"in_place": True, "profile": "full"}, "--in-place"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_options(tmp_path, name):
    options, words = MISTAKES[name]
    with pytest.raises(UserError, match=words):
        run([write(tmp_path / "a.ipynb", "1")], out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_cuda_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    with pytest.raises(UserError, match="no GPU"):
        run([write(tmp_path / "a.ipynb", "1")], device="cuda", out=tmp_path / "out")


def test_mistakes_in_the_notebooks(tmp_path):
    with pytest.raises(UserError, match="there is no notebook"):
        run([tmp_path / "none.ipynb"])
    with pytest.raises(UserError, match="no notebooks in the folder"):
        run([tmp_path])
    for text in ("hello", "[]", '{"cells": 3}', '{"cells": [], "nbformat": 3}'):
        (tmp_path / "a.ipynb").write_text(text)
        with pytest.raises(UserError, match="not a notebook"):
            run([tmp_path / "a.ipynb"])
    with pytest.raises(UserError, match="tagged `parameters`"):
        run([write(tmp_path / "b.ipynb", "1", parameters=None)])
    with pytest.raises(UserError, match="tagged `parameters`"):
        run([write(tmp_path / "b.ipynb", "1", parameters='profile = "quick"')])
    with pytest.raises(UserError, match="plain assignments"):
        run([write(tmp_path / "b.ipynb", "1", parameters="profile = str(1)")])
    with pytest.raises(UserError, match="asks for a R kernel"):
        run([write(tmp_path / "c.ipynb", "1", language="R")])
    with pytest.raises(UserError, match="overwrite"):
        run([write(Path.cwd() / tmp_path / "d.ipynb", "1")], out=tmp_path)
    with pytest.raises(UserError, match="both"):
        run([write(tmp_path / "x" / "d.ipynb", "1"), write(tmp_path / "y" / "d.ipynb", "1")], out=tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(tmp_path):
    ran, place = tmp_path / "ran", tmp_path / "a file"
    note = write(tmp_path / "note.ipynb", f"open({str(ran)!r}, 'w').close()")
    place.write_text("")
    with pytest.raises(UserError, match="nothing can be written to .*a file.*give --out another folder"):
        run([note], out=place)
    assert not ran.exists()


def test_under_nohup_a_run_goes_on_without_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with notebooks._terminable():
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), notebooks._terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execute.os, "replace", full)
    target = tmp_path / "out.ipynb"
    target.write_text("old")
    nbformat = pytest.importorskip("nbformat")
    nb = nbformat.read(write(tmp_path / "a.ipynb", "1"), as_version=4)
    with pytest.raises(OSError, match="No space"):
        execute._write(nb, target, keep_same=False)
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb", "out.ipynb"]  # nothing left beside
    monkeypatch.setattr(nbformat, "reads", full)
    job = {"notebook": str(tmp_path / "a.ipynb"), "partial": str(tmp_path / "p"), "target": str(target)}
    assert "disk is full" in execute.execute(job, lambda event: None)["error"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_resumes(tmp_path, how):
    """Whichever way the runner ends, the kernel ends with it."""
    quick, pid = write(tmp_path / "a.ipynb", "1"), tmp_path / "pid"
    body = (
        f"import os, time\nfrom pathlib import Path\nPath({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(300)"
    )
    slow = write(tmp_path / "b.ipynb", body)
    order = [quick, slow] if how == signal.SIGINT else [slow]
    command = [sys.executable, "-m", "kit.run", "run", *map(str, order), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT)}
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=-3, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background is born deaf to it
    ) as runner:
        end = time.monotonic() + 300
        while not (pid.exists() and pid.read_text()):
            assert time.monotonic() < end, "the slow notebook did not start"
            assert runner.poll() is None
            time.sleep(0.1)
        workers = [child.pid for child in psutil.Process(runner.pid).children(recursive=True)]
        assert len(workers) >= 2
        runner.send_signal(how)
        words = runner.communicate(timeout=60)[1]
    assert all(gone(worker) for worker in {*workers, int(pid.read_text())})
    assert not (tmp_path / "out" / "b.ipynb").exists()
    if how != signal.SIGKILL:
        assert runner.returncode == 130
        assert "goes on from there" in words
    if quick in order:
        assert run([quick], out=tmp_path / "out")[0].status in ("up to date", "ok")


def slow(folder: Path, cell: str, jobs: int = 1) -> tuple[subprocess.Popen, list[int]]:
    """A runner in the middle of notebooks that write their kernel's number and then run `cell`."""
    names = [folder / f"{i}.ipynb" for i in range(jobs)]
    for name in names:
        note = f"Path('{name.stem}.pid').write_text(str(os.getpid()))"
        write(name, f"import os\nfrom pathlib import Path\n{note}\n{cell}")
    command = [sys.executable, "-m", "kit.run", "run", *map(str, names), "--out", str(folder / "out")]
    runner = subprocess.Popen(
        [*command, "--jobs", str(jobs)], env={**os.environ, "PYTHONPATH": str(files.ROOT)}, cwd=folder, stdout=-3,
        stderr=-3, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    end, found = time.monotonic() + 300, [name.with_suffix(".pid") for name in names]
    while not all(pid.exists() and pid.read_text() for pid in found):
        assert time.monotonic() < end, "the notebooks did not start"
        time.sleep(0.1)
    return runner, [int(pid.read_text()) for pid in found]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_two_interrupts_end_a_run(tmp_path, how):
    runner, kernels = slow(tmp_path, "import time\ntime.sleep(300)", jobs=2)
    runner.send_signal(how)
    time.sleep(0.02)
    runner.send_signal(how)
    assert runner.wait(30) == 130
    assert all(map(gone, kernels))


@pytest.mark.parametrize("both", [False, True])
def test_no_kernel_outlives_its_process_not_even_in_a_long_call_of_c(tmp_path, both):
    runner, (kernel,) = slow(tmp_path, "import re\nre.match('(a+)+$', 'a' * 60 + 'b')")
    tree = psutil.Process(runner.pid).children(recursive=True)
    between = next(p for p in tree if "kit.run.execute" in " ".join(p.cmdline()))
    if both:
        runner.kill()
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended with the runner
        between.kill()
    runner.wait(30)
    assert gone(kernel)


@pytest.mark.parametrize(("deaths", "status"), [(2, "ok"), (3, "failed")])
def test_a_kernel_that_dies_before_it_answers_is_started_again(tmp_path, monkeypatch, deaths, status):
    """As one does whose port another process took first: three times, and no more."""
    died = tmp_path / "died"
    died.touch()
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"size = os.path.getsize({str(died)!r})\n"
        f"if 'ipykernel_launcher' in sys.orig_argv and size < {deaths}:\n"
        f"    open({str(died)!r}, 'a').write('x')\n    os._exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    (result,) = run([write(tmp_path / "a.ipynb", "print('done')")], out=tmp_path / "out")
    assert len(died.read_text()) == deaths
    assert result.status == status
    if status == "ok":
        assert printed(result.output) == "done\n"
    else:
        assert result.error.startswith("the kernel did not start")


def test_what_fails_otherwise_is_not_started_again():
    calls = []

    def start():
        calls.append(1)
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    with pytest.raises(RuntimeError, match="respond"):
        started(start)
    assert len(calls) == 1


def test_outputs_lie_as_the_notebooks_do(tmp_path, monkeypatch):
    assert job.relative(files.ROOT / "notebooks" / "a" / "b.ipynb") == Path("notebooks/a/b.ipynb")
    monkeypatch.chdir(tmp_path)
    assert job.relative(tmp_path / "mine" / "b.ipynb") == Path("mine/b.ipynb")
    assert job.relative(Path("/elsewhere/b.ipynb")) == Path("b.ipynb")


def test_time_left():
    def of(expected, result=None):
        return job.Job(Path("a"), Path("b"), Path("c"), {}, expected, result=result)

    assert notebooks._left([of(10.0), of(20.0), of(30.0)], 2) == 30.0
    assert notebooks._left([of(10.0), of(None)], 1) == 20.0  # unknown: like the others
    done = job.Result(Path("a"), Path("b"), "ok", 4.0)
    assert notebooks._left([of(4.0, done), of(None)], 1) == 4.0
    running = of(None)
    running.started, running.share = time.monotonic() - 10, 0.5  # half of its cells in ten seconds
    assert notebooks._left([running], 1) == pytest.approx(10, abs=0.5)
    assert [notebooks._clock(s) for s in (5, 65, 3665)] == ["0:05", "1:05", "1:01:05"]


def test_chapters_come_in_the_order_of_the_book(tmp_path):
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "notebooks" / f"{name}.ipynb", "1")
    write(tmp_path / "notebooks" / ".ipynb_checkpoints" / "a.ipynb", "1")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nparts:\n"
        "- chapters:\n  - file: notebooks/c\n    sections:\n    - file: notebooks/d.ipynb\n"
        "- chapters:\n  - file: notebooks/a\n"
    )
    assert [p.stem for p in files.chapters(tmp_path)] == ["c", "d", "a", "b"]
    assert files.toc(tmp_path)[0] == "book/index"


def test_the_kernel_environment_keeps_the_gpu_only_where_it_may(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert job.kernel_environment(3, gpu=False)["CUDA_VISIBLE_DEVICES"] == ""
    found = job.kernel_environment(3, gpu=True)
    assert "CUDA_VISIBLE_DEVICES" not in found
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["PYTHONPATH"].split(os.pathsep) == [str(files.ROOT), "elsewhere"]


def test_a_kernel_adds_in_the_order_that_processors_have_in_common(monkeypatch):
    if job.has_avx2():
        variables = {**os.environ, **job.kernel_environment(1, gpu=False)}
        asked = "import torch; print(torch.backends.cpu.get_cpu_capability())"
        found = subprocess.run([sys.executable, "-c", asked], env=variables, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "AVX2"
    monkeypatch.setattr(job, "has_avx2", lambda: False)  # told to use what it has not, torch would crash
    assert not set(job.ONE_ARITHMETIC) & set(job.kernel_environment(1, gpu=False))


def test_the_probe_names_the_gpu_only_if_it_was_used(monkeypatch):
    for used, device in ((True, "H"), (False, "cpu")):
        cuda = SimpleNamespace(is_initialized=lambda used=used: used, get_device_name=lambda: "H")
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        assert probe()["device"] == device
    monkeypatch.delitem(sys.modules, "torch")
    assert probe()["device"] == "cpu"
    assert 20 < probe()["memory"] < 100_000
    before = probe()["cpu"]
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert probe()["cpu"] > before + 0.35  # its own and that of the process it waited for
