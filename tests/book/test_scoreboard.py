"""The committed chapters answer the claims of the seeds that are theirs, and the pages are those of the chapters."""

import pytest

from kit.report.scoreboard import missing, others, page
from kit.run.files import ROOT, chapters

BOOK = ROOT / "book"


def test_every_standing_chapter_gives_its_verdicts_with_intervals():
    found = {p.relative_to(ROOT / "notebooks").with_suffix("").as_posix(): p for p in chapters()}
    assert missing(found) == []


@pytest.mark.parametrize(("name", "write"), [("scoreboard", page), ("records", others)])
def test_the_pages_are_those_of_the_notebooks(name, write):
    assert (BOOK / f"{name}.md").read_text(encoding="utf-8") == write(chapters(), BOOK), "run kit scoreboard"
