"""The committed chapters answer the claims of the seeds that are theirs, and the pages are those of the chapters."""

import json
import math

import pytest

from kit.report import seeds
from kit.report.numbers import records
from kit.report.scoreboard import missing, others, page
from kit.run.files import ROOT, chapters

BOOK = ROOT / "book"


def test_every_standing_chapter_gives_its_verdicts_with_intervals():
    found = {p.relative_to(ROOT / "notebooks").with_suffix("").as_posix(): p for p in chapters()}
    assert missing(found) == []


def test_every_figure_of_the_documents_has_a_value_here():
    noted = [entry for path in chapters() for entry in records(json.loads(path.read_text(encoding="utf-8")))]
    printed = {f.id for seed in seeds.seeds().values() for f in seed.figures.values() if not math.isnan(f.value)}
    assert sorted(printed - {seeds.figure(entry["id"]).id for entry in noted if "id" in entry}) == []


@pytest.mark.parametrize(("name", "write"), [("scoreboard", page), ("records", others)])
def test_the_pages_are_those_of_the_notebooks(name, write):
    assert (BOOK / f"{name}.md").read_text(encoding="utf-8") == write(chapters(), BOOK), "run kit scoreboard"
