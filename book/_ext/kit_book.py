"""The three things that `_config.yml` cannot say: MathJax from the book itself, buttons only when they lead somewhere,
and no address of another host on a page that does not use it."""

import hashlib
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


def drop_thebe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """sphinx-thebe writes a foreign address into every page, also where it is switched off."""

    def is_thebe(script) -> bool:
        text = f"{getattr(script, 'filename', '')} {getattr(script, 'attributes', {}).get('body')}"
        return "thebe" in text.lower()

    if "script_files" in context:
        context["script_files"] = [script for script in context["script_files"] if not is_thebe(script)]


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", hide_dead_buttons)
    app.connect("builder-inited", copy_mathjax)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
