"""The home page lists the chapters of `_toc.yml`; what a reader has marked as read stays in the browser.

Without the script the list is a list of links.
"""

from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def chapters(root: Path) -> list[tuple[str, list[str]]]:
    """(part, its chapters), in the order of the table of contents."""
    found: list[tuple[str, list[str]]] = []
    caption = ""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    for part in toc.get("parts", []):
        caption = part.get("caption", caption)
        own = [page["file"] for page in part["chapters"] if page["file"].startswith("notebooks/")]
        if own:
            found.append((caption, own))
    return found


def listing(app: Sphinx, doctree: nodes.document) -> None:
    parts = chapters(Path(app.confdir)) if app.env.docname == app.config.root_doc else []
    if not parts:
        return
    section = nodes.section("", nodes.title("", "The chapters"), ids=["the-chapters"])
    section += nodes.raw("", '<div class="kit-progress" hidden><output aria-live="polite"></output> '
                             '<button type="button">Forget what I have read</button></div>', format="html")
    for caption, own in parts:
        section += nodes.paragraph("", caption, classes=["kit-part"])
        items = nodes.bullet_list("", classes=["kit-chapters"])
        for place in own:
            link = addnodes.pending_xref("", nodes.inline("", place), refdomain="std", reftype="doc", refexplicit=False,
                                         reftarget=f"/{place}", refwarn=True, refdoc=app.env.docname)
            items += nodes.list_item("", nodes.paragraph("", "", link))
        section += items
    next(doctree.findall(nodes.section)).append(section)


def mark(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """A chapter ends with a box to tick, which the script fills; the home page and chapters alone load it."""
    if doctree is None or not (pagename == app.config.root_doc or pagename.startswith("notebooks/")):
        return
    app.add_js_file("progress.js", loading_method="defer")
    if pagename.startswith("notebooks/"):
        context["body"] += f'<p class="kit-read" data-chapter="{pagename}" hidden></p>'


def changed(app: Sphinx, env, added, changed_, removed) -> list[str]:
    before, env.kit_toc = getattr(env, "kit_toc", None), chapters(Path(app.confdir))
    return [app.config.root_doc] if before != env.kit_toc and app.config.root_doc in env.found_docs else []


def setup(app: Sphinx) -> dict:
    app.connect("env-get-outdated", changed)
    app.connect("doctree-read", listing, priority=170)
    app.connect("html-page-context", mark, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
