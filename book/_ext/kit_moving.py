"""Figures that move, below the equations that they are about: a frame, a table of all frames, and a small script."""

import html
import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

FOLDER = Path("book") / "_static" / "moving"


def figures(root: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / FOLDER).glob("*.json"))]


def markup(figure: dict, up: str) -> str:
    """The figure as it is without the script."""
    said = {key: html.escape(figure[key]) for key in ("name", "title", "caption", "alt")}
    frame = ""
    if figure["size"]:
        height, width = figure["size"]
        style = (f"--frames:{len(figure['rows'])};--at:0;aspect-ratio:{width}/{height};"
                 f"background-image:url({up}_static/moving/{figure['name']}.png)")
        wide = " moving-wide" if width > height else ""
        frame = f'<div class="moving-frame{wide}" role="img" aria-label="{said["alt"]}" style="{style}"></div>'
    heads = "".join(f'<th scope="col"{" data-bar" if name in figure["bars"] else ""}>{html.escape(name)}</th>'
                    for name in figure["sliders"] + figure["columns"])
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>"
                   for row in figure["rows"])
    return (f'<figure class="kit-moving" id="moving-{said["name"]}" data-sliders="{len(figure["sliders"])}" '
            f'aria-label="{said["title"]}"><p class="moving-title">{said["title"]}</p>{frame}'
            f'<details open><summary>All values as a table</summary><div class="moving-table"><table><thead><tr>{heads}'
            f'</tr></thead><tbody>{rows}</tbody></table></div></details><figcaption>{said["caption"]}</figcaption></figure>')


def place(app: Sphinx, doctree: nodes.document) -> None:
    docname = app.env.docname
    for figure in app.kit_moving:
        if docname != f"notebooks/{figure['chapter']}":
            continue
        equations = [node for node in doctree.findall(nodes.math_block) if node.get("label") == figure["after"]]
        if not equations:
            raise LookupError(f"{docname} has no equation {figure['after']} for the figure {figure['name']}")
        after = equations[0]
        if isinstance(after.parent, nodes.container):
            after = after.parent
        at = after.parent.index(after) + 1
        if at < len(after.parent) and "kit-links" in after.parent[at].get("classes", []):
            at += 1
        after.parent.insert(at, nodes.raw("", markup(figure, "../" * docname.count("/")), format="html"))


def changed(app: Sphinx, env, added, changed_, removed) -> list[str]:
    state = {f"notebooks/{figure['chapter']}": json.dumps(figure) for figure in app.kit_moving}
    before, env.kit_moving = getattr(env, "kit_moving", {}), state
    return [doc for doc in state.keys() | before.keys() if state.get(doc) != before.get(doc) and doc in env.found_docs]


def script(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if any(pagename == f"notebooks/{figure['chapter']}" for figure in app.kit_moving):
        app.add_js_file("moving.js", loading_method="defer")


def prepare(app: Sphinx) -> None:
    app.kit_moving = figures(Path(app.confdir))


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", prepare)
    app.connect("env-get-outdated", changed)
    app.connect("doctree-read", place, priority=150)
    app.connect("html-page-context", script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
