"""Every abbreviation of the chapters is in the glossary, and every chapter leads to it."""
import json
import re
from pathlib import Path

import pytest

from kit.run.files import chapters, source

ROOT = Path(__file__).resolve().parents[2]
BODY = (ROOT / "book" / "glossary.md").read_text().split("```{glossary}")[1].rsplit("```", 1)[0]
ENTRIES = re.findall(r"^(\S.*)$", BODY, re.M)
KNOWN = {piece for entry in ENTRIES for piece in re.findall(r"[A-Za-z&²]+", entry)}
# What is no prose: code, formulas, addresses, and roles, whose text leads somewhere already.
NO_PROSE = re.compile(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|\{[\w:]+\}`[^`]*`|`[^`]*`|https?://\S+|\]\([^)]*\)", re.S)
# Capitals, two or more, with at most one small letter between them; a plural's s is not part of it.
ABBREVIATION = re.compile(r"(?<![\w/.²-])([A-Z](?:[A-Z&²]|[a-z](?=[A-Z]))*[A-Z²])(?=s?(?![\w²&]))")


def prose(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")


def abbreviations(text: str) -> set[str]:
    return set(ABBREVIATION.findall(NO_PROSE.sub(" ", text)))


def test_an_abbreviation_is_seen_and_code_and_formulas_are_not():
    text = "An XYZ, two QQQs, an IoU; `NOT`, $A_{BC}$, {term}`PGD`, {cite:t}`AB2020`, [x](../CD.md), McNemar, A."
    assert abbreviations(text) == {"XYZ", "QQQ", "IoU"}
    assert "XYZ" not in KNOWN
    assert {"PGD", "ADV²", "IoU", "CIFAR"} <= KNOWN


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_the_glossary_has_every_abbreviation_of_a_chapter_which_links_it(path):
    text = prose(path)
    assert sorted(abbreviations(text) - KNOWN) == []
    assert len(set(re.findall(r"\{term\}`([^`]+)`", text))) >= 1, "link the words that a reader may not know"
