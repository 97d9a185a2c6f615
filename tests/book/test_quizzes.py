"""Every part ends with a card and three to five questions, and every wrong answer is told what is wrong with it."""
import sys
import tomllib
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
QUIZZES = {path.stem: tomllib.loads(path.read_text()) for path in (ROOT / "book" / "quizzes").glob("*.toml")}


def test_every_part_has_one_and_no_other_page():
    assert set(QUIZZES) == {path.stem for path in (ROOT / "book" / "parts").glob("*.md")} - {"instructors"}


@pytest.mark.parametrize("part", QUIZZES)
def test_questions_have_one_right_answer_and_say_something_to_each(part):
    quiz = QUIZZES[part]
    assert 3 <= len(quiz["question"]) <= 5
    assert 3 <= len(quiz["card"]) <= 7
    for asked in quiz["question"]:
        assert asked["text"].endswith("?")
        assert len(asked["answer"]) >= 3
        assert [answer.get("right", False) for answer in asked["answer"]].count(True) == 1
        said = [answer["says"] for answer in asked["answer"]]
        assert len(set(said)) == len(said)
        assert all(len(says.split()) >= 3 for says in said)


def test_the_right_answer_is_not_always_at_the_same_place():
    places = [[answer.get("right", False) for answer in asked["answer"]].index(True)
              for quiz in QUIZZES.values() for asked in quiz["question"]]
    assert len(set(places)) == 3
    assert max(map(places.count, set(places))) < 0.75 * len(places)


def test_the_page_shows_questions_with_folded_answers_without_a_script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    from kit_quiz import markup

    for part, quiz in QUIZZES.items():
        card, asked = (BeautifulSoup(text, "html.parser") for text in markup(part, quiz))
        assert len(card("li")) == len(quiz["card"])
        for fieldset, question in zip(asked("fieldset"), quiz["question"], strict=True):
            assert len(fieldset("input", type="radio")) == len(question["answer"])
            assert all(radio.find_parent("label") for radio in fieldset("input"))
            assert len({radio["name"] for radio in fieldset("input")}) == 1
            right = next(answer["text"] for answer in question["answer"] if answer.get("right"))
            assert fieldset.find("details").find("p").get_text() == right.replace("`", "").replace("*", "")
            assert not fieldset.find("details").has_attr("open")
            assert fieldset.find("output")["aria-live"] == "polite"
    sys.modules.pop("kit_quiz")
