"""Questions that answer back: at the end of each chapter, and of each part's opening page, with a card to remember.

They are written in `book/quizzes/<part>.toml` and `book/quizzes/<folder>/<chapter>.toml`. Without the script a question
shows its answers, and what is said to each is folded below it.
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
        f'data-says="{html.escape(text(answer["says"]))}"> {text(answer["text"])}</label>'
        for answer in asked["answer"])
    folded = "".join(f'<li>{text(answer["text"])} <em>{text(answer["says"])}</em></li>' for answer in asked["answer"])
    return (f'<fieldset class="kit-quiz"><legend>{number}. {text(asked["text"])}</legend>{answers}'
            f'<output aria-live="polite"></output><details><summary>Answer</summary><p>{text(right)}</p>'
            f'<ul>{folded}</ul></details></fieldset>')


def markup(name: str, quiz: dict) -> dict[str, str]:
    """The sections by their titles: a part's card, and the questions."""
    asked = "".join(question(name, number, one) for number, one in enumerate(quiz["question"], 1))
    card = "".join(f"<li>{text(line)}</li>" for line in quiz.get("card", []))
    cards = {"The part on a card": f'<div class="kit-card"><ul>{card}</ul></div>'} if card else {}
    return cards | {"Questions": f'<form class="kit-quizzes">{asked}</form>'}


def source(app: Sphinx, docname: str) -> Path | None:
    """Where the questions of a page are written; None for a page without."""
    for folder in ("book/parts/", "notebooks/"):
        path = Path(app.confdir) / FOLDER / f"{docname.removeprefix(folder)}.toml"
        if docname.startswith(folder) and path.is_file():
            return path
    return None


def place(app: Sphinx, doctree: nodes.document) -> None:
    """A chapter's questions follow what is to be remembered; a part's stand last."""
    if not (path := source(app, app.env.docname)):
        return
    app.env.note_dependency(str(path))
    page = next(doctree.findall(nodes.section))
    titles = [str(part.next_node(nodes.title).astext()) if isinstance(part, nodes.section) else "" for part in page]
    at = titles.index("What to remember") + 1 if "What to remember" in titles else len(page)
    for title, body in markup(path.stem, tomllib.loads(path.read_text(encoding="utf-8"))).items():
        section = nodes.section("", nodes.title("", title), ids=[nodes.make_id(title)])
        section += nodes.raw("", body, format="html")
        page.insert(at, section)
        at += 1


def script(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if source(app, pagename):
        app.add_js_file("quiz.js", loading_method="defer")


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", place, priority=160)
    app.connect("html-page-context", script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
