"""Every public name has its chapter and its tests, every labelled equation its code; one list holds what has none."""
import json
from pathlib import Path

import pytest

from kit.report.links import Book

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def book():
    return Book(ROOT)


def reasons(listed: dict[str, str]) -> bool:
    return all(len(reason.split()) > 3 for reason in listed.values())


def test_every_public_name_has_a_chapter_or_a_reason(book):
    without = {name for name, public in book.public.items() if not public.chapters}
    assert without == set(book.table["no_chapter"]), "put it into a chapter, or its reason into kit/report/links.toml"
    assert reasons(book.table["no_chapter"])


def test_every_public_name_has_a_test_or_a_reason(book):
    without = {name for name, public in book.public.items() if not public.tests}
    assert without == set(book.table["no_test"]), "test it, or put the reason into kit/report/links.toml"
    assert reasons(book.table["no_test"])


def test_every_labelled_equation_has_its_code_or_a_reason(book):
    assert set(book.equations) == set(book.table["equations"]), "kit/report/links.toml says what computes an equation"
    assert reasons({label: said for label, said in book.table["equations"].items() if isinstance(said, str)})


def test_the_code_of_an_equation_is_public_and_used_in_its_chapter(book):
    for label, names in book.table["equations"].items():
        for name in names if isinstance(names, list) else []:
            public = book.public[f"kit.{name}"]
            assert label in public.equations
            assert book.equations[label] in public.chapters, f"{name} is not in the chapter of {label}"


def test_exceptions_name_what_exists(book):
    assert set(book.table["chapters"]) <= set(book.public)
    assert {f"notebooks/{place}" for place in book.table["chapters"].values()} <= set(book.chapters)
    assert set(book.table["looked_up"]) <= set(book.public)


def test_links_lead_to_what_they_say(book):
    pgd, mask = book.public["kit.attacks.pgd"], book.public["kit.explain.mask"]
    assert (pgd.chapters[0], mask.chapters[0]) == ("notebooks/attacks/gradient", "notebooks/explain/mask")
    for public in book.public.values():
        line = (ROOT / public.file).read_text(encoding="utf-8").splitlines()[public.line - 1]
        assert public.short in line or public.line == 1 or "def __getattr__" in line, public.name
        for test in public.tests[:3]:
            assert f"def {test.name}(" in (ROOT / test.file).read_text(encoding="utf-8").splitlines()[test.line - 1]


@pytest.fixture
def small(tmp_path):
    """A package of three names, one chapter and one test."""
    def write(place: str, text: str) -> None:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)

    write("kit/attacks/__init__.py", "from kit.attacks.near import _help, push, pull, slow\n"
          "__all__ = ['push', 'pull', 'slow']\n")
    write("kit/attacks/near.py", "def _help(): ...\ndef push(): return _help()\n"
          "def pull(): ...\ndef slow(): return pull()\n")
    shown = "```{literalinclude} ../../kit/attacks/near.py\n:pyobject: _help\n```"
    cells = [{"cell_type": "markdown", "source": ["# Far\n$$\nx\n$$ (eq-push)\n", shown]},
             {"cell_type": "code", "source": ["import kit.attacks as a\n", "a.push()"]}]
    write("notebooks/attacks/far.ipynb", json.dumps({"cells": cells}))
    write("tests/attacks/test_far.py", "from kit.attacks.near import slow as s\n\ndef run(): return s()\n\n"
          "def test_it(): assert run()\n\ndef test_by_name(): getattr(m, 'push')\n")
    write("kit/report/links.toml", '[equations]\neq-push = ["attacks.push"]\n')
    return tmp_path


def test_uses_are_followed_through_imports_helpers_and_strings(small):
    book = Book(small)
    push, pull, slow = (book.public[f"kit.attacks.{name}"] for name in ("push", "pull", "slow"))
    assert (push.chapters, push.behind, push.equations) == (["notebooks/attacks/far"], False, ["eq-push"])
    assert [test.name for test in push.tests] == ["test_by_name"]
    assert [(test.file, test.line, test.says) for test in slow.tests] == [("tests/attacks/test_far.py", 5, "it")]
    assert [test.name for test in pull.tests] == ["test_it"]  # through slow, which stands on it
    assert pull.behind  # no chapter names it, its file's other names are taught there
    assert [list(book.shown(cells)) for cells in book.chapters.values()] == [[("kit/attacks/near.py", "_help")]]
    assert book.behind("kit/attacks/near.py", "_help") == [push]


def test_an_export_that_is_nowhere_is_pointed_out(small):
    (small / "kit/attacks/__init__.py").write_text("__all__ = ['gone']\n")
    with pytest.raises(LookupError, match="exports gone, which kit does not define"):
        _ = Book(small).public
