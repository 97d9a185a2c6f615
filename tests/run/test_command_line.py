"""The command line, with the runner and the other parts replaced by fakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from kit.data import Listing
from kit.run import cli
from kit.run.files import UserError
from kit.run.job import Result


def call(*words: str):
    return CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture(autouse=True)
def consoles(monkeypatch):
    """Consoles that write where the test reads."""
    monkeypatch.setattr(cli, "console", cli.Console(width=200))
    monkeypatch.setattr(cli, "errors", cli.Console(width=200, stderr=True))


@pytest.fixture
def ran(monkeypatch):
    """Replace the runner: what it was called with, and what it answers."""
    seen = SimpleNamespace(call=None, results=[])

    def fake(paths, **options):
        seen.call = (paths, options)
        if isinstance(seen.results, BaseException):
            raise seen.results
        for result in seen.results:
            options["finished"](result)
        return seen.results

    monkeypatch.setattr(cli, "run_notebooks", fake)
    return seen


def test_options_reach_the_runner(ran):
    words = "run a.ipynb b --profile full --device cpu --jobs 3 --seed 5 --force --timeout 7 --out o --cluster local:2"
    answer = call(*words.split())
    assert answer.exit_code == 0, answer.output
    paths, options = ran.call
    assert paths == [Path("a.ipynb"), Path("b")]
    expected = {
        "profile": "full",
        "device": "cpu",
        "jobs": 3,
        "seed": 5,
        "force": True,
        "timeout": 7.0,
        "out": Path("o"),
        "cluster": "local:2",
    }
    assert {key: options[key] for key in expected} == expected
    assert options["in_place"] is False


def test_failures_are_shown_and_the_status_says_so(ran, tmp_path):
    partial = tmp_path / "x.failed.ipynb"
    partial.write_text("{}")
    ran.results = [
        Result(Path("good.ipynb"), Path("out/good.ipynb"), "ok", 1.25, 300, "cpu"),
        Result(
            Path("x.ipynb"), partial, "failed", 2, 10, "cpu", "KeyError: 'k'", "a[b]", "\x1b[31mTraceback[0]\x1b[0m"
        ),
    ]
    answer = call("run")
    assert answer.exit_code == 1
    for words in ("a[b]", "Traceback[0]", "KeyError: 'k'", str(partial), "300 MiB", "1.2", "failed"):
        assert words in answer.output
    assert "\x1b" not in answer.output
    ran.results = ran.results[:1]
    assert call("run").exit_code == 0


def test_mistakes_are_one_line_and_status_2(ran):
    ran.results = UserError("no such\nthing [here]")
    answer = call("run")
    assert answer.exit_code == 2
    assert answer.stderr == "no such thing [here]\n"


def test_ctrl_c(ran):
    ran.results = KeyboardInterrupt()
    answer = call("run")
    assert answer.exit_code == 130
    assert "goes on from there" in answer.stderr


def module(monkeypatch, name, **names):
    fake = ModuleType(name)
    vars(fake).update(names)
    monkeypatch.setitem(sys.modules, name, fake)


def test_listings(monkeypatch):
    rows = [
        Listing("digits", "ink [8×8]", {"train": 1100, "dev": None, "test": 400}, (1, 28, 28), "embedded", True),
        Listing("a_name_that_is_far_too_long", "w" * 90, {"test": 10**9}, (3, 1000, 1000), "/" * 90, False),
    ]
    module(monkeypatch, "kit.data", listing=lambda: rows, real=SimpleNamespace(root=lambda: Path("[there]")))
    monkeypatch.setattr(cli, "console", cli.Console(width=80))
    module(monkeypatch, "kit.models", listing=lambda: [{"name": "cnn", "accuracy": 0.98765, "epochs": None}])
    answer = call("data", "list")
    assert answer.exit_code == 0, answer.output
    _, digits, other, where = answer.output.splitlines()  # one line a set
    assert all(word in digits for word in ("digits", "1100/?/400", "1×28×28", "yes", "ink [8×8]"))
    assert all(word in other for word in ("a_name_that_is", "1000000000", "no", "www"))
    assert max(map(len, answer.output.splitlines())) <= 80
    assert "[there]" in where
    monkeypatch.setattr(cli, "console", cli.Console(width=200))
    answer = call("models", "list")
    assert "0.9877" in answer.output
    assert "None" not in answer.output


def test_a_mistake_in_another_part_is_one_line(monkeypatch):
    def missing():
        raise KeyError("no data: set KIT_DATA")

    module(monkeypatch, "kit.data", listing=missing)
    answer = call("data", "list")
    assert answer.exit_code == 2
    assert answer.stderr == "no data: set KIT_DATA\n"


def test_training_saves_what_the_recipe_makes(monkeypatch):
    calls = []

    def train(name, **options):
        calls.append((name, options))
        return "net", {"name": name, "accuracy": 0.5, "recipe": {"lr": 1}}

    module(monkeypatch, "kit.models", train=train, save=lambda model, entry: Path(f"{entry['name']}.safetensors"))
    answer = call("models", "train", "cnn", "--epochs", "2")
    assert answer.exit_code == 0, answer.output
    assert "cnn.safetensors" in answer.output
    assert call("models", "train", "cnn-at", "--seed", "1", "--device", "cpu").exit_code == 0
    assert calls == [("cnn", {"epochs": 2}), ("cnn-at", {"seed": 1, "device": "cpu"})]


def test_the_scoreboard_is_written_from_the_chapters(monkeypatch, tmp_path):
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(cli, "chapters", lambda: [])
    assert call("scoreboard").exit_code == 0
    assert (tmp_path / "book" / "scoreboard.md").read_text().startswith("# Scoreboard")


def test_the_book_is_built_from_the_runs_and_says_what_to_open(monkeypatch, tmp_path):
    calls = []

    def build(out, runs):
        calls.append((out, runs))
        if len(calls) > 1:
            raise RuntimeError("page.md:3: WARNING: no such label")
        return out / "index.html"

    old = iter([[Path("notebooks/a/b.ipynb")], []])
    module(monkeypatch, "kit.run.book", build=build, BuildFailed=RuntimeError, stale=lambda runs: next(old))
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    built = call("book").output
    assert f"Open {tmp_path / 'index.html'}" in built
    assert "notebooks/a/b.ipynb has changed since its run" in built
    failed = call("book")
    assert failed.exit_code == 1
    assert "has changed" not in failed.output
    assert "page.md:3: WARNING" in failed.output
    assert calls == [(tmp_path, tmp_path / "runs" / "quick")] * 2


def test_version_and_a_light_start():
    """Starting imports nothing heavy, so that a run with nothing to do takes under a second."""
    code = (
        "import sys, kit.run.cli as cli, typer.testing as t;"
        "a = t.CliRunner().invoke(cli.app, ['version']); assert a.exit_code == 0, a.output;"
        "print({'torch', 'nbformat', 'papermill', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"
