"""Every part and chapter ends with three to five questions, a part with a card, and every wrong answer is told why."""
import sys
import tomllib

import pytest
from bs4 import BeautifulSoup

from kit.run.files import ROOT, chapters

FOLDER = ROOT / "book" / "quizzes"
QUIZZES = {path.relative_to(FOLDER).with_suffix("").as_posix(): tomllib.loads(path.read_text())
           for path in FOLDER.rglob("*.toml")}
PARTS = {name for name in QUIZZES if "/" not in name}


def test_every_part_and_chapter_has_one_and_no_other_page():
    assert {path.stem for path in (ROOT / "book" / "parts").glob("*.md")} - {"instructors"} == PARTS
    assert set(QUIZZES) - PARTS == {
        path.relative_to(ROOT / "notebooks").with_suffix("").as_posix() for path in chapters()}


@pytest.mark.parametrize("name", QUIZZES)
def test_questions_have_one_right_answer_and_say_something_to_each(name):
    quiz = QUIZZES[name]
    assert 3 <= len(quiz["question"]) <= 5
    assert 3 <= len(quiz["card"]) <= 7 if name in PARTS else "card" not in quiz
    for asked in quiz["question"]:
        assert asked["text"].endswith("?")
        assert len(asked["answer"]) >= 3
        assert [answer.get("right", False) for answer in asked["answer"]].count(True) == 1
        said = [answer["says"] for answer in asked["answer"]]
        assert len(set(said)) == len(said)
        assert all(len(says.split()) >= 3 for says in said)


def test_no_question_is_asked_twice():
    asked = [one["text"] for quiz in QUIZZES.values() for one in quiz["question"]]
    assert len(set(asked)) == len(asked)


def test_the_right_answer_is_not_always_at_the_same_place():
    places = [[answer.get("right", False) for answer in asked["answer"]].index(True)
              for quiz in QUIZZES.values() for asked in quiz["question"]]
    assert len(set(places)) >= 3
    assert max(map(places.count, set(places))) < 0.75 * len(places)


def test_the_page_shows_questions_with_folded_answers_without_a_script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    from kit_quiz import markup

    for name, quiz in QUIZZES.items():
        sections = {title: BeautifulSoup(text, "html.parser") for title, text in markup(name, quiz).items()}
        asked = sections.pop("Questions")
        assert [len(card("li")) for card in sections.values()] == ([len(quiz["card"])] if name in PARTS else [])
        for fieldset, question in zip(asked("fieldset"), quiz["question"], strict=True):
            assert len(fieldset("input", type="radio")) == len(question["answer"])
            assert all(radio.find_parent("label") for radio in fieldset("input"))
            assert len({radio["name"] for radio in fieldset("input")}) == 1
            right = next(answer["text"] for answer in question["answer"] if answer.get("right"))
            assert fieldset.find("details").find("p").get_text() == right.replace("`", "").replace("*", "")
            assert not fieldset.find("details").has_attr("open")
            assert fieldset.find("output")["aria-live"] == "polite"
    sys.modules.pop("kit_quiz")
