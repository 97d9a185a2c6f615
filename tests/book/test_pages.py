"""The book's own pages: what the table of contents names exists, openers keep their shape, and words are defined."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest
import yaml
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
OPENERS = ["foundations", "explaining", "attacking", "poisoning", "defending", "under_fire", "many",
           "instructors"]
HEADINGS = ["What you will learn", "Before you start", "The chapters", "What you will be able to do"]
PAGES = sorted((ROOT / "book").rglob("*.md"))


def files(part: dict) -> list[str]:
    entries = part.get("chapters", [])
    return [page["file"] for entry in entries for page in (entry, *entry.get("sections", []))]


def test_every_file_in_the_table_of_contents_exists_and_appears_once():
    listed = [TOC["root"], *chain.from_iterable(files(part) for part in TOC["parts"])]
    assert len(listed) == len(set(listed))
    assert [f for f in listed if not any((ROOT / f"{f}{ending}").is_file() for ending in (".md", ".ipynb"))] == []
    on_disk = {str(path.relative_to(ROOT).with_suffix("")) for path in PAGES}
    on_disk |= {str(p.relative_to(ROOT).with_suffix("")) for p in (ROOT / "notebooks").rglob("*.ipynb")
                if ".ipynb_checkpoints" not in p.parts}  # fmt: skip
    assert on_disk == set(listed)


def test_parts_in_their_order_each_with_its_opener_first():
    captions = [part["caption"] for part in TOC["parts"] if "caption" in part]
    expected = ["Foundations", "Explaining", "Attacking", "Poisoning", "Defending", "Explanations under fire",
                "Many networks", "For instructors"]
    assert [caption for caption in captions if caption in expected] == expected
    firsts = [files(part)[0] for part in TOC["parts"] if part.get("caption") in expected]
    assert firsts == [f"book/parts/{name}" for name in OPENERS]


@pytest.mark.parametrize("name", OPENERS)
def test_openers_have_the_same_headings_and_list_the_chapters_that_exist(name):
    text = (ROOT / "book" / "parts" / f"{name}.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    own = [i for i, part in enumerate(TOC["parts"]) if f"book/parts/{name}" in files(part)][0]
    parts = [TOC["parts"][own]]
    if own + 1 < len(TOC["parts"]) and "caption" not in TOC["parts"][own + 1]:
        parts.append(TOC["parts"][own + 1])
    chapters = [f for f in chain.from_iterable(map(files, parts)) if f != f"book/parts/{name}"]
    rows = re.findall(r"^\| \{doc\}`/([^`]+)` \| (\d+) \|$", text, re.M)
    assert [chapter for chapter, _ in rows] == chapters
    for chapter, minutes in rows:
        if (notebook := ROOT / f"{chapter}.ipynb").is_file():
            first = "".join("".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"][:2])
            assert re.search(r"\*\*Time\*\*: (\d+)\s+minutes to read", first)[1] == minutes


def test_notebooks_are_not_executed_by_the_build():
    assert CONFIG["execute"]["execute_notebooks"] == "off"
    assert CONFIG["only_build_toc_files"] is True


def test_the_glossary_defines_its_terms():
    body = (ROOT / "book" / "glossary.md").read_text().split("```{glossary}")[1].rsplit("```", 1)[0]
    terms = re.findall(r"^(\S.*)\n((?:  .+\n)+)", body, re.M)
    names = [term for term, _ in terms]
    assert len(names) >= 40
    assert names == sorted(names, key=lambda n: n.lower().replace("ℓ", "l").replace("²", "2"))
    assert [term for term, meaning in terms if len(meaning.split()) < 4] == []


def test_every_citation_is_in_the_bibliography_and_every_entry_is_complete():
    entries = parse_file(str(ROOT / "book" / "references.bib")).entries
    assert len(entries) > 100
    venue = ("journal", "booktitle", "howpublished", "school", "institution", "publisher")
    for key, entry in entries.items():
        assert entry.persons.get("author"), f"{key} has no author"
        assert re.fullmatch(r"(19|20)\d\d", entry.fields.get("year", "")), f"{key} has no year"
        assert entry.fields.get("title"), f"{key} has no title"
        assert any(entry.fields.get(field) for field in venue), f"{key} does not say where it appeared"
        assert re.fullmatch(r"[a-z]+(19|20)\d\d[a-z0-9]+", key), f"{key} is not author, year, word"
        assert entry.fields["year"] in key, f"{key} names another year than {entry.fields['year']}"
    sources = PAGES + [p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    text = "".join(path.read_text() for path in sources)
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")}
    assert cited
    assert cited - set(entries) == set()


def test_titles_in_the_bibliography_are_not_listed_twice():
    entries = parse_file(str(ROOT / "book" / "references.bib")).entries
    titles = [re.sub(r"[^a-z]", "", entry.fields["title"].lower()) for entry in entries.values()]
    assert sorted({t for t in titles if titles.count(t) > 1}) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_figures_have_alt_text_a_name_and_a_caption(path):
    text = path.read_text()
    figures = re.findall(r"^```\{figure\} (\S+)\n((?::.+\n)+)\n(.+)", text, re.M)
    assert len(figures) == text.count("```{figure}")
    assert "```{image}" not in text
    assert "<img" not in text
    for file, options, caption in figures:
        assert (path.parent / file).is_file()
        assert len(re.search(r'^:alt: "?(.+?)"?$', options, re.M)[1]) > 40
        assert re.search(r"^:name: fig-", options, re.M)
        assert len(caption) > 20


def test_the_books_assets_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "book").rglob("*") if path.is_file()}
    assert {name: size for name, size in sizes.items() if size > 200_000} == {}
