"""What `_config.yml` cannot say: MathJax comes from the book itself, buttons are there only when they lead somewhere,
no page names another host for what it does not use, a screen reader is told what is shown, lines break where a reader
would break them, and a changed stylesheet counts as a change."""

import hashlib
import html
import json
import re
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# The package carries MathJax 3.2.2; the checksum is that of the same file in MathJax's own release.
MATHJAX_PACKAGE = "sphinx-mathjax-offline"
MATHJAX_FILE = "sphinx-mathjax-offline/static/mathjax/tex-svg-full.js"
MATHJAX_SHA256 = "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6"
# Where MathJax would look for the speech of its menu, which the book does not show.
SPEECH_HOST = b"https://cdn.jsdelivr.net/npm/"
# A formula in a sentence with the bracket before it, and with what follows without a space.
FORMULA = r'<span class="math notranslate nohighlight">[^<]*</span>'
KEPT = re.compile(rf"\({FORMULA}(?:[.,;:?!)]+|-\w+)?|{FORMULA}(?:[.,;:?!)]+|-\w+)")
# What is no sentence: code, and tags.
TAG = re.compile(r"<(pre|code|script|style|svg|textarea)\b.*?</\1>|<[^>]+>", re.S)
# What is read as one: an interval, a sign and the number after it, a number with its per cent or in thousands, a name.
NUMBER = r"[+−-]?\d[\d.]*(?:e[+-]?\d+)?%?"
WHOLE = re.compile(
    rf"\[{NUMBER},\s{NUMBER}\]|[\w.]+\s(?:[=≤≥±×]|&[lg]t;)\s{NUMBER}|(?<![\w.,])[\d.]*\d(?:\s\d{{3}})*\s%|"
    r"(?<![\w.,])\d{1,3}(?:\s\d{3})+(?![\w.])|CIFAR-10\b")
RAISED = re.compile(r"\b(RTS|z)\^([AB])\b")


def hide_dead_buttons(app: Sphinx, config) -> None:
    """Without a repository's address there is nothing to launch and nothing to link to."""
    options = config.html_theme_options
    if options.get("repository_url"):
        options["use_repository_button"] = True
        options["use_issues_button"] = True
    else:
        options.pop("launch_buttons", None)
        options.pop("repository_url", None)


def copy_mathjax(app: Sphinx) -> None:
    """Lay MathJax into the built site, beside the book's own static files but not among those added to every page."""
    if app.builder.format != "html":
        return
    try:
        source = Path(str(metadata.distribution(MATHJAX_PACKAGE).locate_file(MATHJAX_FILE)))
        content = source.read_bytes()
    except (metadata.PackageNotFoundError, OSError):
        raise ExtensionError(
            f"{MATHJAX_PACKAGE} is not installed: run `make env`, or pip install {MATHJAX_PACKAGE}"
        ) from None
    if hashlib.sha256(content).hexdigest() != MATHJAX_SHA256:
        raise ExtensionError(
            f"{source.name} of {MATHJAX_PACKAGE} is not MathJax 3.2.2's: install the version in requirements.lock"
        )
    content = content.replace(SPEECH_HOST, b"")
    target = Path(app.outdir) / "_static" / app.config.mathjax_path
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def follow_static_files(app: Sphinx, env, added, changed, removed) -> list[str]:
    """Sphinx copies static files only when some page has changed: a changed stylesheet changes every page."""
    for folder in app.config.html_static_path:
        for source in (Path(app.confdir) / folder).rglob("*.*"):
            built = Path(app.outdir) / "_static" / source.relative_to(Path(app.confdir) / folder)
            if source.is_file() and built.is_file() and built.read_bytes() != source.read_bytes():
                return list(env.found_docs)
    return []


def drop_thebe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """sphinx-thebe writes a foreign address into every page, also where it is switched off."""

    def is_thebe(script) -> bool:
        text = f"{getattr(script, 'filename', '')} {getattr(script, 'attributes', {}).get('body')}"
        return "thebe" in text.lower()

    if "script_files" in context:
        context["script_files"] = [script for script in context["script_files"] if not is_thebe(script)]


def show_stamp(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """End a chapter with how it was executed, as `kit run` noted it in the notebook (`metadata.kit.stamp`)."""
    path = Path(app.env.doc2path(pagename))
    if doctree is None or path.suffix != ".ipynb":
        return
    stamp = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("kit", {}).get("stamp")
    if not stamp:
        return
    parts = [f"{stamp['profile']} profile", f"on {stamp['device']}", f"in {stamp['seconds']:.0f} s"]
    parts += [f"seed {stamp['seed']}"]
    parts += [f"{name} {stamp[name]}" for name in ("python", "torch") if stamp.get(name)]
    parts += [f"commit {stamp['commit'][:10]}"] if stamp.get("commit") else []
    context["body"] += f'<p class="stamp">Executed: {html.escape(", ".join(parts))}.</p>'


def say_what_is_folded(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """A folded cell is called what it says on it, "Show solution", by a screen reader too, and not another name."""
    context["body"] = context.get("body", "").replace('<summary aria-label="Toggle hidden content">', "<summary>")


def empty_heads_are_cells(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """The corner of a table heads nothing: as a cell it is no header without a name."""
    body = context.get("body", "")
    context["body"] = re.sub(r"<th(?: class=\"head\")?>(?:<p></p>)?</th>", "<td></td>", body)


def keep_with_formula(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """No line begins with the full stop that follows a formula, or ends with the bracket before it."""
    context["body"] = KEPT.sub(r'<span class="kit-kept">\g<0></span>', context.get("body", ""))


def words(text: str) -> str:
    """What stands between two tags, with what is read as one held together; a formula is left to MathJax."""
    if "\\" in text:
        return text
    return RAISED.sub(r"\1<sup>\2</sup>", WHOLE.sub(r'<span class="kit-kept">\g<0></span>', text))


def keep_together(body: str) -> str:
    """No line ends within a number with its unit, an interval, or what a check says."""
    body = re.sub(r'(<code class="[^"]*)(?="><span class="pre">✓<)', r"\1 kit-kept", body)
    out, at = [], 0
    for tag in TAG.finditer(body):
        out += [words(body[at : tag.start()]), tag[0]]
        at = tag.end()
    return "".join([*out, words(body[at:])])


def end_code(body: str) -> str:
    """A piece of code ends with its last line; where it is cut out of a file, blank lines may follow."""
    return re.sub(r"\n\s*\n(?=</pre>)", "\n", body)


def set_lines(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    context["body"] = end_code(keep_together(context.get("body", "")))


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", hide_dead_buttons)
    app.connect("builder-inited", copy_mathjax)
    app.connect("env-get-outdated", follow_static_files)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", show_stamp)
    app.connect("html-page-context", say_what_is_folded)
    app.connect("html-page-context", empty_heads_are_cells)
    app.connect("html-page-context", keep_with_formula)
    app.connect("html-page-context", set_lines, priority=600)
    app.add_js_file("names.js", loading_method="defer")
    app.add_js_file("figures.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
