"""The teacher's pages name chapters, headings, cells and equations that exist, and their ninety minutes are ninety."""
import json
import re
from itertools import chain
from pathlib import Path

import pytest
import yaml

from kit.report.links import Book
from kit.run.files import source

ROOT = Path(__file__).resolve().parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = sorted((ROOT / "book" / "instructors" / "teaching").glob("*.md"))
SECTIONS = [(page, section) for page in PAGES for section in re.split(r"^## ", page.read_text(), flags=re.M)[1:]]
PARTS = ("At the board.", "Run live.", "Ask.", "Where they go wrong.")
EQUATIONS = Book(ROOT).equations


def named(section: str) -> str:
    return re.search(r"^\{doc\}`/(notebooks/\S+)`$", section, re.M)[1]


def cells_under(chapter: str, heading: str) -> list[str]:
    """The code of the cells between this heading and the next of the same or a higher level; solutions are left out."""
    found, inside = [], False
    for cell in json.loads((ROOT / f"{chapter}.ipynb").read_text())["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            for level, title in re.findall(r"^(#{2,3}) (.+)$", text, re.M):
                inside = title.strip() == heading or (inside and level == "###")
        elif inside and "hide-cell" not in cell["metadata"].get("tags", []):
            found.append(text)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_goes_through_all_chapters_of_its_part_in_their_order(page):
    parts = TOC["parts"]
    at = next(i for i, part in enumerate(parts)
              if part["chapters"][0]["file"] == f"book/parts/{page.stem}")
    both = chain(parts[at]["chapters"], parts[at + 1]["chapters"])
    chapters = [entry["file"] for entry in both if entry["file"].startswith("notebooks/")]
    assert [named(section) for of, section in SECTIONS if of == page] == chapters


@pytest.mark.parametrize(("page", "section"), SECTIONS,
                         ids=lambda value: value.stem if isinstance(value, Path) else value.split("\n")[0])
def test_a_section_holds_ninety_minutes_a_derivation_a_cell_and_three_questions(page, section):
    chapter = named(section)
    first = source(json.loads((ROOT / f"{chapter}.ipynb").read_text())["cells"][0])
    assert section.split("\n")[0] == re.search(r"^# (.+)$", first, re.M)[1]
    assert sum(map(int, re.findall(r"^\| (\d+) \|", section, re.M))) == 90
    assert re.findall(r"^\*\*(.+?)\*\*", section, re.M) == list(PARTS)
    said = dict(zip(PARTS, re.split(r"^\*\*(?:At the board|Run live|Ask|Where they go wrong)\.\*\*", section,
                                    flags=re.M)[1:], strict=True))
    for label in re.findall(r"\{eq\}`([^`]+)`", section):
        assert EQUATIONS.get(label) == chapter, f"{label} is not an equation of {chapter}"
    heading, code = re.match(r"\s+In \*(.+?)\*, the cell\s+with\s+`([^`]+)`", said["Run live."]).groups()
    assert any(code in cell for cell in cells_under(chapter, heading)), f"{chapter}: no cell with {code} in {heading}"
    questions = re.findall(r"^(\d)\. (.+?\?) \*(.+?)\*$", said["Ask."].replace("\n   ", " "), re.M)
    assert [number for number, _, _ in questions] == ["1", "2", "3"]
    assert len(said["Where they go wrong."].split()) > 15


def test_the_syllabus_has_twelve_weeks_and_every_chapter_in_one_of_them():
    text = (ROOT / "book" / "instructors" / "syllabus.md").read_text()
    weeks = re.findall(r"^\| (\d+) \| .+? \| (.+) \|$", text, re.M)
    assert [int(week) for week, _ in weeks] == list(range(1, 13))
    listed = list(chain.from_iterable(re.findall(r"\{doc\}`/(notebooks/[^`]+)`", row) for _, row in weeks))
    assert set(listed) == set(Book(ROOT).chapters)
    assert {chapter for chapter in listed if listed.count(chapter) > 1} == {"notebooks/attacks/gradient"}  # two weeks
