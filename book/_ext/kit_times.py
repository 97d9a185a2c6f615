"""The table of what each chapter takes, in the place of a `{run-times}` directive."""

from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from kit.run.files import chapters
from kit.run.times import COLUMNS, FILE, gpus, on_paper, table


def entry(*content: nodes.Node) -> nodes.entry:
    return nodes.entry("", *content)


def text(words: str) -> nodes.entry:
    return entry(nodes.paragraph("", words))


class RunTimes(SphinxDirective):
    """Made from the stamps of the committed notebooks and of the runs that `kit times` has gathered."""

    def chapter(self, place: str) -> nodes.entry:
        document = place.removesuffix(".ipynb")
        link = pending_xref("", nodes.inline("", ""), refdomain="std", reftype="doc", refexplicit=False,
                            reftarget=f"/{document}", refdoc=self.env.docname, refwarn=True)
        return entry(nodes.paragraph("", "", link))

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.app.confdir)
        for path in (root / FILE, *chapters(root)):
            self.env.note_dependency(str(path))
        head = nodes.row("", *map(text, ("chapter", *COLUMNS)))
        rows = [nodes.row("", self.chapter(place), *map(text, cells)) for place, cells in table(root)]
        columns = [nodes.colspec(colwidth=width) for width in (4, *[1] * len(COLUMNS))]
        group = nodes.tgroup("", *columns, nodes.thead("", head), nodes.tbody("", *rows), cols=len(columns))
        names = ", ".join(gpus(root)) or "none yet"
        said = [f"GPU of these runs: {names}.", *on_paper(root)]
        return [nodes.table("", group, classes=["kit-times"]), *(nodes.paragraph("", words) for words in said)]


def setup(app: Sphinx) -> dict:
    app.add_directive("run-times", RunTimes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
