"""The wrap-up of a part, at the end of its opening page: a card of what to remember, and questions that answer back.

They are written in `book/quizzes/<part>.toml`. Without the script a question shows its answers, and what is said to
each is folded below it.
"""

import html
import re
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

FOLDER = Path("book") / "quizzes"


def text(words: str) -> str:
    """Plain words; what stands between backticks is code, between stars stressed."""
    return re.sub(r"\*(.+?)\*", r"<em>\1</em>", re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(words)))


def question(part: str, number: int, asked: dict) -> str:
    name = f"quiz-{part}-{number}"
    right = next(answer["text"] for answer in asked["answer"] if answer.get("right"))
    answers = "".join(
        f'<label><input type="radio" name="{name}" data-right="{str(answer.get("right", False)).lower()}" '
        f'data-says="{html.escape(answer["says"])}"> {text(answer["text"])}</label>' for answer in asked["answer"])
    folded = "".join(f'<li>{text(answer["text"])} <em>{text(answer["says"])}</em></li>' for answer in asked["answer"])
    return (f'<fieldset class="kit-quiz"><legend>{number}. {text(asked["text"])}</legend>{answers}'
            f'<output aria-live="polite"></output><details><summary>Answer</summary><p>{text(right)}</p>'
            f'<ul>{folded}</ul></details></fieldset>')


def markup(part: str, quiz: dict) -> tuple[str, str]:
    """The card, and the questions."""
    card = "".join(f"<li>{text(line)}</li>" for line in quiz["card"])
    asked = "".join(question(part, number, one) for number, one in enumerate(quiz["question"], 1))
    return f'<div class="kit-card"><ul>{card}</ul></div>', f'<form class="kit-quizzes">{asked}</form>'


def place(app: Sphinx, doctree: nodes.document) -> None:
    docname = app.env.docname
    path = Path(app.confdir) / FOLDER / f"{docname.rpartition('/')[2]}.toml"
    if not docname.startswith("book/parts/") or not path.is_file():
        return
    app.env.note_dependency(str(path))
    card, asked = markup(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    for title, body in (("The part on a card", card), ("Questions", asked)):
        section = nodes.section("", nodes.title("", title), ids=[nodes.make_id(title)])
        section += nodes.raw("", body, format="html")
        next(doctree.findall(nodes.section)).append(section)


def script(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if (Path(app.confdir) / FOLDER / f"{pagename.rpartition('/')[2]}.toml").is_file():
        app.add_js_file("quiz.js", loading_method="defer")


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", place, priority=160)
    app.connect("html-page-context", script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
