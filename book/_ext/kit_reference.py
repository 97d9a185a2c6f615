"""The reference of the package, made by autodoc from its docstrings, and its links with chapters, equations and tests.

A page of the reference is one directive, `kit-reference`. Chapters get their links when they are read: under each
equation what computes it, under each piece of the package's code what it belongs to, and at the end what they use.
Which name belongs to which chapter, equation and test is read by `kit.report.links`.
"""

import ast
import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.nodes import nested_parse_with_titles

from kit.report.links import Book, Public

SHOWN = 3  # so many tests of a name are linked, and the number of the others is told
CODE = "source"  # the folder of the built site that holds the files of the package and of its tests


# Docstrings are plain text with formulas, in no markup. Turned into reStructuredText they keep every character.

LABELS = re.compile(r"(?:(?<=[.:;)] )|^)((?:Cost|Sources?|Raises|Warns|Default)\b:?)(?= )")
ROW = re.compile(r"(\S.*?) {2,}(\S.*)")


def escaped(text: str) -> str:
    text = re.sub(r"([\\*`|_])", r"\\\1", text)
    return text[:-2] + "\\:\\:" if text.endswith("::") else text


def inline(text: str, link) -> str:
    """A paragraph: what stands between backticks is code, and a link where it is a name of the package."""
    pieces = re.split(r"``?([^`]+)``?", text)
    out = []
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            out.append(escaped(piece))
        elif target := link(piece):
            out.append(f"\\ :py:obj:`{escaped(piece)} <{target}>`\\ ")
        else:
            out.append(f"\\ :code:`{escaped(piece)}`\\ ")
    line = "".join(out).strip()
    start = re.match(r"(\w{1,4}|#)[.)]\s|\(\w+\)\s|[^\w\\`:]", line)
    return f"\\ {line}" if start and not start[0][0].isalnum() else f"\\{line}" if start else line


def paragraphs(text: str, link) -> list[str]:
    """A paragraph, cost and source and what it raises in paragraphs of their own."""
    parts = LABELS.split(text)
    lines = [inline(parts[0].strip(), link), ""] if parts[0].strip() else []
    for label, rest in zip(parts[1::2], parts[2::2], strict=True):
        lines += [f"**{label}** {inline(rest.strip(), link)}", ""]
    return lines


def blocks(lines: list[str]) -> list[list[str]]:
    """What stands between blank lines; formulas and code, which are set in, are never one with the text before them."""
    found: list[list[str]] = [[]]
    for line in lines:
        if not line.strip():
            found.append([])
            continue
        if found[-1] and found[-1][0].startswith("    ") and not line.startswith("    "):
            found.append([])
        found[-1].append(line)
    return [block for block in found if block]


def table(rows: list[list[str]], link) -> list[str]:
    """What the settings are: a list of definitions."""
    pairs = [(inline(name, lambda _: None), "   " + inline(" ".join(rest), link)) for name, *rest in rows]
    return [*(line for pair in pairs for line in pair), ""] if rows else []


def to_rst(lines: list[str], link) -> list[str]:
    out: list[str] = []
    for block in blocks(lines):
        if block[0].startswith("    "):
            indent = min(len(line) - len(line.lstrip()) for line in block)
            out += [".. rst-class:: formula", "", "   ::", "", *("      " + line[indent:] for line in block), ""]
            continue
        rows: list[list[str]] = []
        text: list[str] = []
        for line in [*block, "- "]:  # the last ends what is open
            row = ROW.fullmatch(line) if not line.startswith(" ") else None
            if line.startswith(" ") and rows:
                rows[-1].append(line.strip())
                continue
            if row or line.startswith("- "):
                out += paragraphs(" ".join(text), link)
                text = ["•\u00a0" + line[2:]] if not row else []
            if row:
                rows.append([row[1], row[2]])
            else:
                out, rows = out + table(rows, link), []
                text += [] if line.startswith("- ") else [line.strip()]
    return out


# What is known of the package.


class Reference:
    def __init__(self, root: Path):
        self.book = Book(root)
        self.public: dict[str, Public] = self.book.public if (root / "kit").is_dir() else {}
        self.words: dict[str, str] = {}
        for name, public in self.public.items():
            self.words.setdefault(public.short, name)

    def link(self, package: str):
        """What a word of a docstring stands for, one of the same package first."""
        def target(text: str) -> str | None:
            word = re.sub(r"\(.*\)$", "", text)
            if word in self.public:
                return word
            own = f"{package}.{word}"
            return own if own in self.public else self.words.get(word)
        return target

    def definition(self, public: Public) -> ast.stmt | None:
        module, name = self.book.defined(public.name)
        _, source = self.book.modules[module]
        bound = (s for s in source.body if isinstance(s, ast.FunctionDef | ast.ClassDef) and s.name == name)
        return next(bound, None)

    def first_line(self, public: Public) -> str:
        found = self.definition(public)
        text = ast.get_docstring(found) if found is not None else None
        return re.split(r"(?<=[.:]) (?=[A-Z`])", " ".join((text or "").split("\n\n")[0].split()))[0]

    def arguments(self, name: str) -> tuple[str, str] | None:
        """The arguments of a function, class or method and what it returns, as they are written in the file."""
        owner, method = (name, None) if name in self.public else name.rpartition(".")[::2]
        found = self.definition(self.public[owner]) if owner in self.public else None
        if isinstance(found, ast.ClassDef):
            inner = [s for s in found.body if isinstance(s, ast.FunctionDef) and s.name == (method or "__init__")]
            found = inner[0] if inner else None
            if found is not None and found.args.args[:1] and found.args.args[0].arg in ("self", "cls"):
                found.args.args = found.args.args[1:]
        if not isinstance(found, ast.FunctionDef):
            return None
        returns = ast.unparse(found.returns) if found.returns and found.name != "__init__" else ""
        return f"({ast.unparse(found.args)})", returns

    def links(self, public: Public) -> list[str]:
        """A paragraph: chapter, equations, tests, source."""
        parts = []
        if public.chapters:
            first, *others = [f":doc:`/{place}`" for place in public.chapters]
            word = "Behind" if public.behind else "Chapter"
            more = f" (also in {', '.join(others[:3])}{' and others' if len(others) > 3 else ''})" if others else ""
            parts.append(f"{word}: {first}{more}")
        if public.equations:
            parts.append("Equations: " + ", ".join(f":eq:`{label}`" for label in public.equations))
        if public.tests:
            shown = [f":kit-code:`{test.says} <{test.file}#{test.line}>`" for test in public.tests[:SHOWN]]
            rest = len(public.tests) - SHOWN
            parts.append("Tests: " + "; ".join(shown) + (f"; and {rest} more" if rest > 0 else ""))
        parts.append(f"Source: :kit-code:`{public.file} <{public.file}#{public.line}>`")
        return ["", *(line for part in parts for line in (".. rst-class:: kit-links", "", "   " + part, ""))]


def address(docname: str, file: str, line: int | str) -> str:
    return "../" * docname.count("/") + f"{CODE}/{file}.html#L-{line}"


class CodeRole(SphinxRole):
    """A link to a line of a file of the package or of its tests: `text <file#line>`."""

    def run(self):
        text, file, line = re.fullmatch(r"(.*) <(.*)#(\d+)>", self.text, re.S).groups()
        return [nodes.reference("", text, refuri=address(self.env.docname, file, line), internal=True)], []


class ReferencePage(SphinxDirective):
    """`.. kit-reference:: kit.attacks`: every public name of a subpackage, by chapter."""

    required_arguments = 1

    def run(self):
        known: Reference = self.env.app.kit_reference
        package = self.arguments[0]
        order = list(known.book.chapters)
        toc = (Path(self.env.app.confdir) / "_toc.yml").read_text(encoding="utf-8")
        order = sorted(order, key=lambda place: toc.find(f"file: {place}\n"))
        groups: dict[str, list[Public]] = {place: [] for place in [*order, ""]}
        for name, public in known.public.items():
            if name.rpartition(".")[0] == package:
                groups[public.chapters[0] if public.chapters else ""].append(public)
        found = []
        for place, members in groups.items():
            if members:
                title = self.title(known, place) if place else "Without a chapter"
                section = nodes.section("", nodes.title("", title), ids=[nodes.make_id(f"{package} {title}")])
                section.document = self.state.document
                lines = [line for public in members for line in self.entry(known, public)]
                nested_parse_with_titles(self.state, StringList(lines, source=f"reference of {package}"), section)
                found.append(section)
        return found

    @staticmethod
    def title(known: Reference, place: str) -> str:
        first = "".join(known.book.chapters[place][0]["source"])
        return re.search(r"^# (.+)$", first, re.M)[1]

    def entry(self, known: Reference, public: Public) -> list[str]:
        at = known.book.defined(public.name)
        twice = [name for name, other in known.public.items() if known.book.defined(name) == at]
        if twice[0] != public.name:
            return [f".. py:data:: {public.name}", "", f"   The same as :py:obj:`{twice[0]}`.", ""]
        if at[1] == "":
            return [f".. py:data:: {public.name}", "", *("   " + line for line in known.links(public)), "",
                    f".. automodule:: {public.name}", "   :members:", "   :no-index:", "",
                    ".. py:currentmodule:: None", ""]
        found = known.definition(public)
        kind = {ast.FunctionDef: "autofunction", ast.ClassDef: "autoclass"}.get(type(found))
        if kind is None:
            text = self.comment(known, public)
            return [f".. py:data:: {public.name}", "", f"   {inline(text, known.link(public.name))}", "",
                    *("   " + line for line in known.links(public)), ""]
        return [f".. {kind}:: {public.name}", *(["   :members:"] if kind == "autoclass" else []), ""]

    @staticmethod
    def comment(known: Reference, public: Public) -> str:
        """What stands above or beside the assignment of a constant."""
        lines = (known.book.root / public.file).read_text(encoding="utf-8").splitlines()
        above: list[str] = []
        for line in reversed(lines[: public.line - 1]):
            if not line.startswith("#"):
                break
            above.insert(0, line.lstrip("# "))
        beside = re.search(r" {2}# (.+)$", lines[public.line - 1])
        return " ".join(above) or (beside[1] if beside else "") or f"A constant of {public.file}."


def process_docstring(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    known: Reference = app.kit_reference
    lines[:] = to_rst(lines, known.link(".".join(name.split(".")[:2])))
    if name in known.public and what in ("function", "class"):
        lines += known.links(known.public[name])


def skip_member(app: Sphinx, what: str, name: str, obj, skip: bool, options) -> bool | None:
    """The fields of a named tuple are in its signature, and Python says of each no more than its number."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def process_signature(app: Sphinx, what: str, name: str, obj, options, signature, returns):
    return app.kit_reference.arguments(name) if what in ("function", "class", "method") else None


# What chapters get.


def to_name(public: Public, docname: str) -> nodes.Node:
    shown = nodes.literal("", public.short, classes=["xref", "py"])
    return addnodes.pending_xref("", shown, refdomain="py", reftype="obj", reftarget=public.name, refexplicit=True,
                                 refwarn=True, refdoc=docname)


def to_code(text: str, docname: str, file: str, line: int) -> nodes.Node:
    return nodes.reference("", text, refuri=address(docname, file, line), internal=True)


def to_equation(label: str, docname: str) -> nodes.Node:
    return addnodes.pending_xref("", nodes.inline("", label), refdomain="math", reftype="eq", reftarget=label,
                                 refexplicit=False, refwarn=True, refdoc=docname)


def paragraph(*parts: nodes.Node | str) -> nodes.paragraph:
    found = nodes.paragraph("", "", classes=["kit-links"])
    found += [nodes.Text(part) if isinstance(part, str) else part for part in parts]
    return found


def listed(names: list[Public], docname: str) -> list[nodes.Node | str]:
    """Names, each with its first test."""
    parts: list[nodes.Node | str] = []
    for public in names:
        parts += [", " if parts else "", to_name(public, docname)]
        if public.tests:
            parts += [" (", to_code("test", docname, public.tests[0].file, public.tests[0].line), ")"]
    return parts


def link_chapter(app: Sphinx, doctree: nodes.document) -> None:
    """Links from a chapter's equations and code to the reference, and at its end all that it uses."""
    known: Reference = app.kit_reference
    docname = app.env.docname
    if docname not in known.book.chapters or not known.public:
        return
    computed: dict[str, list[Public]] = {}
    for public in known.public.values():
        for label in public.equations:
            computed.setdefault(label, []).append(public)
    for equation in list(doctree.findall(nodes.math_block)):
        if names := computed.get(equation.get("label") or ""):
            after(equation, paragraph("In the package: ", *listed(names, docname)))
    shown = iter(known.book.shown(known.book.chapters[docname]))
    for block in list(doctree.findall(nodes.literal_block)):
        if str(block.get("source", "")).endswith(".py"):
            file, name = next(shown)
            line = next(m for f, m in known.book.modules.values() if f == file).lines.get(name, 1)
            names = known.book.behind(file, name)
            of = ["In the reference: ", *listed(names, docname), ". "] if names else []
            after(block, paragraph(*of, "Source: ", to_code(file, docname, file, line)))
    own = [p for p in known.public.values() if p.chapters[:1] == [docname] and not p.behind]
    used = [p for p in known.public.values() if docname in p.chapters[1:] and not p.behind]
    if own or used:
        section = nodes.section("", nodes.title("", "In the package"), ids=["in-the-package"], names=["in the package"])
        doctree.note_implicit_target(section, section)
        if own:
            items = nodes.bullet_list("", classes=["kit-names"])
            for public in own:
                said = known.first_line(public).rstrip(":")
                pieces = re.split(r"``?([^`]+)``?", f": {said}" if said else "")
                said_so = [nodes.literal("", piece) if at % 2 else piece for at, piece in enumerate(pieces) if piece]
                line = paragraph(*listed([public], docname), *said_so)
                for label in public.equations:
                    line += [nodes.Text(" "), to_equation(label, docname)]
                items += nodes.list_item("", line)
            section += items
        if used:
            section += paragraph("From other chapters: ", *listed(used, docname))
        next(doctree.findall(nodes.section)).append(section)


def after(node: nodes.Node, new: nodes.Node) -> None:
    """Put a node below another, and below the box that a caption or a label makes around it."""
    while isinstance(node.parent, nodes.container) or (
        node.parent.index(node) > 0 and isinstance(node.parent, nodes.target)
    ):
        node = node.parent
    node.parent.insert(node.parent.index(node) + 1, new)


def changed(app: Sphinx, env, added, changed_, removed) -> list[str]:
    """Pages whose links are others than when they were read."""
    known: Reference = app.kit_reference
    state = {}
    for place in known.book.chapters if known.public else []:
        state[place] = repr([(p.name, p.equations, p.tests[:1], p.chapters[:1]) for p in known.public.values()
                             if place in p.chapters or any(known.book.equations[e] == place for e in p.equations)])
    for package in {name.rpartition(".")[0] for name in known.public}:
        state[f"book/reference/{package.rpartition('.')[2]}"] = repr(
            [(p.name, p.file, p.line, p.equations, p.tests[:SHOWN], len(p.tests), p.chapters[:4])
             for name, p in known.public.items() if name.rpartition(".")[0] == package])
    before = getattr(env, "kit_links", {})
    env.kit_links = state
    return [doc for doc in state if state[doc] != before.get(doc) and doc in env.found_docs]


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="stylesheet" href="{up}_static/code.css"></head>
<body><h1>{title}</h1><p><a href="{up}book/reference/index.html">Reference</a></p>
{code}</body></html>
"""
CSS = """body {margin: 1rem auto; max-width: 62rem; padding: 0 1rem; font-family: sans-serif; color-scheme: light dark}
h1 {font-size: 1.2rem; font-family: monospace}
pre {font-size: 0.85rem; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere}
pre > span:target {background: #fff2b3; display: block}
"""


def write_code(app: Sphinx, exception: Exception | None) -> None:
    """The files of the package and its tests that pages link to, a page each with an anchor for every line."""
    known: Reference = app.kit_reference
    if exception or app.builder.format != "html" or not known.public:
        return
    files = {p.file for p in known.public.values()} | {t.file for p in known.public.values() for t in p.tests[:SHOWN]}
    files |= {file for cells in known.book.chapters.values() for file, _ in known.book.shown(cells)}
    light = HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".highlight")
    dark = HtmlFormatter(style="a11y-high-contrast-dark").get_style_defs(".highlight")
    night = f"@media (prefers-color-scheme: dark) {{\n{dark}\npre > span:target {{background: #4a4420}}\n" \
            "body {background: #14181e; color: #ced6dd}\na {color: #8ab8ec}\n}\n"
    (Path(app.outdir) / "_static" / "code.css").write_text(CSS + light + night, encoding="utf-8")
    for file in sorted(files):
        source = known.book.root / file
        target = Path(app.outdir) / CODE / f"{file}.html"
        if target.is_file() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        code = highlight(source.read_text(encoding="utf-8"), PythonLexer(), HtmlFormatter(linespans="L"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(PAGE.format(title=file, up="../" * (file.count("/") + 1), code=code), encoding="utf-8")


def prepare(app: Sphinx) -> None:
    app.kit_reference = Reference(Path(app.confdir))


def setup(app: Sphinx) -> dict:
    app.setup_extension("sphinx.ext.autodoc")
    app.add_role("kit-code", CodeRole())
    app.add_directive("kit-reference", ReferencePage)
    app.connect("builder-inited", prepare)
    app.connect("env-get-outdated", changed)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", link_chapter, priority=100)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("build-finished", write_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
