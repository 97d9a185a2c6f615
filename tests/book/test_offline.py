"""The built site asks no other host for anything: read in its files, and watched in a browser where there is one."""

import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml
from bs4 import BeautifulSoup

from kit.report.links import Book
from kit.run.book import build

ROOT = Path(__file__).resolve().parents[2]
BUILD = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "-n", "--keep-going"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CODE = "source"  # the folder of the package's and the tests' files, which have no links and no scripts
# The checker's own file, out of a package that the tests do not import: its module would need a driver of its own.
AXE = next((Path(place) / "axe.min.js" for spec in [find_spec("axe_playwright_python")] if spec
            for place in spec.submodule_search_locations), None)
needs_axe = pytest.mark.skipif(AXE is None, reason="axe_playwright_python, which carries axe-core, is not installed")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

# The attributes whose address no page loads by itself: a link (a href) is the reader's choice and may lead anywhere.
NOT_LOADED = {("a", "href"), ("area", "href"), ("form", "action"), ("meta", "content"), ("blockquote", "cite"),
              ("q", "cite")}  # fmt: skip
# Attributes that hold text.
PLAIN = re.compile(r"alt|title|content|class|id|name|rel|aria-.*|data-.*|xmlns.*")
LINKS_NOT_LOADED = {"canonical", "license", "author", "next", "prev", "search", "index"}
# Hosts that scripts may name: XML namespaces, and addresses in comments or printed for a developer.
NAMED = {
    "www.w3.org", "www.mathjax.org", "www.apache.org", "github.com", "clipboardjs.com", "developer.mozilla.org",
    "pydata-sphinx-theme.readthedocs.io",
}  # fmt: skip


CALL = r"(?:fetch|import|importScripts|WebSocket|EventSource|sendBeacon|Worker|open\s*\(\s*['\"`]\w+['\"`]\s*,)"


def foreign(address: str) -> bool:
    return bool(re.match(r"\s*(https?:|wss?:|ftp:)?[\\/]{2}", address, re.I))


def foreign_in_css(text: str) -> list[str]:
    bare = re.sub(r"/\*.*?\*/", "", text, flags=re.S)  # without comments
    found = re.findall(r"url\(\s*['\"]?([^'\")]+)|['\"]([^'\"]+)['\"]", bare, re.I)
    return [a or b for a, b in found if foreign(a or b) and not any(f"//{host}/" in (a or b) for host in NAMED)]


def foreign_in_script(text: str) -> list[str]:
    hosts = re.findall(r"(?:https?:|wss?:|['\"`])//([\w-]+(?:\.[\w-]+)+)", text, re.I)
    asked = re.findall(CALL + r"\s*\(?\s*['\"`](?:https?:|wss?:)?[\\/]{2}([\w-]+(?:\.[\w-]+)+)", text, re.I)
    return [host for host in hosts if host not in NAMED] + asked


def foreign_in_html(text: str) -> list[str]:
    return foreign_in_page(BeautifulSoup(text, "html.parser"))


def foreign_in_page(page: BeautifulSoup) -> list[str]:
    found = []
    for element in page.find_all(True):
        loaded = not (element.name == "link" and LINKS_NOT_LOADED & set(element.get("rel", [])))
        for attribute, value in element.attrs.items():
            if attribute == "style":
                found += foreign_in_css(value)
            elif attribute == "srcdoc":
                found += foreign_in_html(value)
            elif attribute.startswith("on"):
                found += foreign_in_script(value)
            elif loaded and (element.name, attribute) not in NOT_LOADED and not PLAIN.fullmatch(attribute):
                words = value if isinstance(value, list) else re.split(r"[\s,]+", value)
                found += [word for word in words if foreign(word)]
    for element in page.find_all("meta", attrs={"http-equiv": re.compile("refresh", re.I)}):
        addresses = re.findall(r"url\s*=\s*['\"]?\s*([^'\";\s]+)", element.get("content", ""), re.I)
        found += [address for address in addresses if foreign(address)]
    for element in page.find_all("style"):
        found += foreign_in_css(element.get_text())
    for element in page.find_all("script", src=False):
        if element.get("type") != "application/vnd.jupyter.widget-state+json":
            found += foreign_in_script(element.get_text())
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The book built as `make book` builds it, from the committed outputs."""
    return build(tmp_path_factory.mktemp("book"), ROOT).parent


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if not {"_static", CODE} & set(path.parts))


@pytest.fixture(scope="module")
def parsed(site) -> dict[Path, BeautifulSoup]:
    """Every page, read once: that takes longer than all that is asked of it."""
    return {path.resolve(): BeautifulSoup(path.read_text(), "html.parser") for path in pages(site)}


def test_the_check_finds_every_way_to_load_from_elsewhere():
    planted = """<html><head><link rel="stylesheet" href="https://a.example/s.css">
    <script src="//b.example/x.js"></script>
    <style>@import "https://c.example/t.css"; p {background: url(https://d.example/p.png)}</style>
    <script>const from = "https://e.example/lib.js"</script>
    <meta http-equiv="refresh" content="0; url=https://f.example/"></head>
    <body><img src="https://g.example/i.png" srcset="own.png 1x, https://h.example/i.png 2x">
    <div style="background: url('https://i.example/p.png')"></div>
    <a href="https://j.example/">a link</a></body></html>"""
    found = " ".join(foreign_in_html(planted))
    assert [letter for letter in "abcdefghij" if f"{letter}.example" in found] == list("abcdefghi")


WAYS = [
    "<base href='https://a.example/'>", "<img src='HTTPS://a.example/i.png'>", "<img src='\\\\a.example/i.png'>",
    "<img src='x' onload=\"fetch('https://a.example/')\">", "<iframe srcdoc=\"<img src='https://a.example/i.png'>\"></iframe>",
    "<style>p{background:image-set('https://a.example/i.png' 1x)}</style>",
    "<style>p{background:URL(https://a.example/i.png)}</style>", "<svg><feImage href='https://a.example/i.png'/></svg>",
    "<link rel=preload as=image imagesrcset='https://a.example/i.png 1x'>",
    "<video poster='//a.example/i.png'></video>",
    "<meta http-equiv=refresh content=\"0;url='https://a.example/'\">", "<a href='b' ping='https://a.example/'>c</a>",
    "<script>fetch('https://github.com/x')</script>", "<script>r.open('GET', 'https://www.w3.org/x')</script>",
    "<body background='https://a.example/i.png'>", "<style>@import \"//a.example/t.css\";</style>",
    "<p style=\"background:url('//a.example/i.png')\"></p>", "<script>new WebSocket('wss://a.example')</script>",
]  # fmt: skip


@pytest.mark.parametrize("html", WAYS)
def test_no_way_to_ask_another_host_is_missed(html):
    assert foreign_in_html(html)


@pytest.mark.parametrize(
    "html",
    [
        "<a href='https://a.example/'>a link</a>", "<link rel=canonical href='https://a.example/'>",
        "<img src='own.png' alt='as on https://a.example/'>", "<svg xmlns='http://www.w3.org/2000/svg'></svg>",
        "<style>/* https://a.example/ */ p{background:url(\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>\")}"
        "</style>", "<script>// see https://github.com/x\nfetch('own.json')</script>",
        "<meta property='og:url' content='https://a.example/'>",
    ],
)  # fmt: skip
def test_what_asks_no_host_is_let_through(html):
    assert foreign_in_html(html) == []


def test_no_page_loads_from_elsewhere(site, parsed):
    found = {str(path.relative_to(site.resolve())): foreign_in_page(page) for path, page in parsed.items()}
    assert len(found) > 15
    assert {page: addresses for page, addresses in found.items() if addresses} == {}


def test_no_stylesheet_or_script_loads_from_elsewhere(site):
    found = {path.name: foreign_in_css(path.read_text()) for path in site.rglob("*.css")}
    found |= {path.name: foreign_in_script(path.read_text()) for path in site.rglob("*.js")}
    assert {"kit.css", "tex-svg-full.js"} <= set(found)
    assert {name: addresses for name, addresses in found.items() if addresses} == {}


def test_pages_of_source_load_one_stylesheet_of_their_own(site):
    found = sorted((site / CODE).rglob("*.html"))
    assert len(found) > 200
    for path in found:
        text = path.read_text()
        up = "../" * (len(path.relative_to(site).parts) - 1)
        assert re.findall(r"<(?:link|script|img|iframe|style)\b[^>]*", text) == [
            f'<link rel="stylesheet" href="{up}_static/code.css"']


@pytest.fixture(scope="module")
def names() -> Book:
    return Book(ROOT)


def leads(link, path: Path, parsed: dict[Path, BeautifulSoup]) -> bool:
    """Whether the place that a link names is there."""
    address = urlparse(link["href"])
    to = (path.parent / address.path).resolve() if address.path else path
    if CODE in to.parts:
        return f'id="{address.fragment}"' in to.read_text()
    return to in parsed and bool(not address.fragment or parsed[to].find(id=address.fragment))


def test_every_public_name_leads_to_its_chapter_equations_and_tests(site, parsed, names):
    first: dict[tuple[str, int], str] = {}
    for name, public in names.public.items():
        path = (site / "book" / "reference" / f"{name.split('.')[1]}.html").resolve()
        entry = parsed[path].find(id=name)
        assert entry is not None, f"{name} is on no page of the reference"
        if first.setdefault((public.file, public.line), name) != name:
            continue  # exported twice, and described once
        links = entry.find_parent("dl").select(".kit-links a")
        paths = [(path.parent / urlparse(link["href"]).path).resolve() for link in links]
        found = {to.relative_to(site.resolve()).as_posix() for to in paths}
        wanted = {f"{place}.html" for place in public.chapters[:1]} | {f"{CODE}/{public.file}.html"}
        wanted |= {f"{CODE}/{test.file}.html" for test in public.tests[:3]}
        wanted |= {f"{names.equations[label]}.html" for label in public.equations}
        assert wanted <= found, name
        assert all(leads(link, path.resolve(), parsed) for link in links), name


def test_every_chapter_leads_back_from_its_equations_and_its_code(site, parsed, names):
    for place, cells in names.chapters.items():
        path = (site / f"{place}.html").resolve()
        page = parsed[path]
        for label in (label for label, of in names.equations.items() if of == place):
            below = page.find(id=f"equation-{label}").find_next_sibling("p")
            linked = {urlparse(a["href"]).fragment for a in below.find_all("a")} if below else set()
            said = names.table["equations"][label]
            assert {f"kit.{name}" for name in said if isinstance(said, list)} <= linked, label
        shown = page.select('div[class*="highlight-"] + p.kit-links')
        assert len(shown) == len(list(names.shown(cells)))
        ends = page.find(id="in-the-package")
        own = {name for name, p in names.public.items() if p.chapters[:1] == [place] and not p.behind}
        assert own <= {urlparse(a["href"]).fragment for a in ends.find_all("a")}
        assert all(leads(link, path, parsed) for link in page.select("p.kit-links a"))


def test_a_folded_cell_is_called_what_it_says(parsed):
    folded = [tag for page in parsed.values() for tag in page.find_all("summary")]
    assert len(folded) > 100
    assert not [tag for tag in folded if tag.has_attr("aria-label")]


def test_no_line_begins_with_what_follows_a_formula(parsed):
    formulas = [(path.name, formula) for path, page in parsed.items() for formula in page.select("span.math")]
    assert len(formulas) > 1000
    alone = [(page, str(formula)) for page, formula in formulas if "kit-kept" not in formula.parent.get("class", [])
             and re.match(r"[.,;:?!)]", str(formula.next_sibling or ""))]  # fmt: skip
    assert alone == []


def test_every_image_has_alt_text(parsed):
    images = [(path.name, image) for path, page in parsed.items() for image in page("img")]
    assert len(images) >= 2
    bare = {(page, image.get("src")) for page, image in images if len(image.get("alt") or "") < 3}
    automatic = {(page, image["src"]) for page, image in images if "_images/" in (image.get("alt") or "")}
    assert (bare, automatic) == (set(), set())


def test_every_local_file_that_a_page_loads_exists(parsed):
    missing = set()
    for path, page in parsed.items():
        for tag, attribute in [("script", "src"), ("link", "href"), ("img", "src"), ("a", "href")]:
            for element in page.find_all(tag, attrs={attribute: True}):
                address = urlparse(element[attribute])
                local = address.path and not (address.scheme or address.netloc)
                if local and not (path.parent / address.path).exists():
                    missing.add((path.name, element[attribute]))
    assert missing == set()


def test_no_button_leads_nowhere(site):
    """Launch and repository buttons are there exactly if the repository's address is set."""
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    chapters = [path for path in pages(site) if "notebooks" in path.parts]
    assert chapters
    for path in chapters:
        text = path.read_text()
        assert ("colab.research" in text, "mybinder" in text, "btn-source-repository" in text) == (bool(address),) * 3


def test_an_address_in_one_place_brings_the_buttons(tmp_path):
    """One notebook, one page, and repository.url: both services are offered for the notebook's own path. The page ends
    with how the notebook was executed."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["repository"]["url"] = "https://github.com/someone/something"
    (tmp_path / "book").mkdir()
    shutil.copy(ROOT / "book" / "references.bib", tmp_path / "book")
    for name in ("_ext", "_static", "assets"):
        shutil.copytree(ROOT / "book" / name, tmp_path / "book" / name)
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n  - file: book/chapter\n")
    (tmp_path / "book" / "index.md").write_text("# Index\n\nText.\n")
    stamp = {"profile": "quick", "device": "cpu", "seconds": 12.3, "seed": 0, "torch": "2.15.0"}
    stamp["commit"] = "0123456789abcdef"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Chapter\n\n$x^2$"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel | {"kit": {"stamp": stamp}}, "cells": [cell]}
    (tmp_path / "book" / "chapter.ipynb").write_text(json.dumps(notebook))
    result = subprocess.run(BUILD, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    text = (tmp_path / "_build" / "html" / "book" / "chapter.html").read_text()
    assert "https://colab.research.google.com/github/someone/something/blob/main/book/chapter.ipynb" in text
    assert "https://mybinder.org/v2/gh/someone/something/main?urlpath=lab/tree/book/chapter.ipynb" in text
    assert "btn-source-repository" in text
    assert foreign_in_html(text) == []
    assert "Executed: quick profile, on cpu, in 12 s, seed 0, torch 2.15.0, commit 0123456789." in text


def browse(address: str, folder: Path) -> tuple[str, list[str]]:
    """The page after its scripts have run, and every address that it asked for, by a browser that reaches no host.

    What the browser asks for by itself has no origin in its log.
    """
    folder.mkdir(parents=True)
    log = folder / "net.json"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={folder / 'user'}",
        f"--log-net-log={log}", "--virtual-time-budget=10000", "--dump-dom", address,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert result.returncode == 0, result.stderr[-2000:]
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # a browser that is slow to leave does not close its log
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    requests = [event["params"] for event in events if {"url", "initiator"} <= set(event.get("params", {}))]
    return result.stdout, [r["url"] for r in requests if r["initiator"] != "not an origin"]


def driven(page: Path, tag: str, script: str, folder: Path) -> tuple[BeautifulSoup, list[str]]:
    """What becomes of a page with a script of the test in place of its first such tag, and what it asked for."""
    copy = page.with_name("driven.html")
    copy.write_text(page.read_text().replace(tag, script, 1))
    try:
        dom, asked = browse(copy.as_uri(), folder / "run")
    finally:
        copy.unlink()
    return BeautifulSoup(dom, "html.parser"), asked


def hosts(addresses: list[str]) -> set[str]:
    parsed = [urlparse(address) for address in addresses]
    return {p.hostname for p in parsed if p.scheme in {"http", "https", "ws", "wss"}} - {"127.0.0.1"}


@pytest.fixture(scope="module")
def idle(tmp_path_factory) -> set[str]:
    """The hosts that the browser asks for by itself."""
    return hosts(browse("about:blank", tmp_path_factory.mktemp("idle") / "run")[1])


@pytest.fixture
def serve(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    servers = []

    def start(folder: Path) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@needs_browser
def test_the_watch_sees_a_foreign_request(serve, idle, tmp_path):
    (tmp_path / "pages").mkdir()
    script = "<script>setTimeout(() => fetch('https://late.example/x'), 500)</script>"
    image = "<img src='https://image.example/i.png'>"
    (tmp_path / "pages" / "index.html").write_text(f"<html><body>{image}{script}</body></html>")
    asked = browse(serve(tmp_path / "pages"), tmp_path / "run")[1]
    assert hosts(asked) - idle == {"image.example", "late.example"}


@needs_browser
@pytest.mark.parametrize("page", ["book/index.html", "notebooks/attacks/gradient.html", "search.html?q=loss"])
def test_a_browser_asks_no_other_host(site, serve, idle, tmp_path, page):
    address = serve(site)
    dom, asked = browse(f"{address}/{page}", tmp_path / "run")
    assert any(a.startswith(f"{address}/_static/") for a in asked)
    assert hosts(asked) - idle == set()
    if page.startswith("search"):
        assert "page(s) matching" in dom or "pages matching" in dom


@needs_browser
@pytest.mark.parametrize("served", [True, False], ids=["served", "from disk"])
def test_equations_are_rendered(site, serve, idle, tmp_path, served):
    path = "book/notation.html"
    dom, asked = browse(f"{serve(site)}/{path}" if served else (site / path).as_uri(), tmp_path / "run")
    page = BeautifulSoup(dom, "html.parser")
    written = BeautifulSoup((site / path).read_text(), "html.parser").find_all(class_="math")
    assert len(written) > 50
    assert len(page.find_all("mjx-container")) == len(written)
    assert page.find_all("mjx-merror") == page.find_all(attrs={"data-mml-node": "merror"}) == []
    assert hosts(asked) - idle == set()


DRIVE = """<script>
addEventListener("load", () => {
  const figure = document.querySelector("#moving-push");
  const [attack, eps] = figure.querySelectorAll("input[type=range]");
  const set = (range, value) => { range.value = value; range.dispatchEvent(new Event("input", {bubbles: true})); };
  const note = (id) => {
    const p = document.createElement("p");
    p.id = id;
    p.textContent = figure.querySelector("output").textContent + " | " +
      figure.querySelector(".moving-frame").style.getPropertyValue("--at") + " | " + eps.getAttribute("aria-valuetext");
    document.body.append(p);
  };
  note("first"); set(attack, 1); set(eps, 16); note("last");
});
</script></body>"""


@needs_browser
def test_a_figure_moves_from_disk_and_says_what_it_shows(site, tmp_path):
    """The sliders of the built page are driven in a browser: frame, text and label follow the table."""
    page = site / "notebooks" / "attacks" / "gradient.html"
    after, asked = driven(page, "</body>", DRIVE, tmp_path)
    figure = after.find(id="moving-push")
    rows = [[cell.get_text() for cell in row("td")] for row in figure.select("tbody tr")]
    heads = [head.get_text() for head in figure.select("thead th")][2:]
    for name, at in (("first", 0), ("last", len(rows) - 1)):
        said = ", ".join(f"{head}: {value}" for head, value in zip(heads, rows[at][2:], strict=True))
        assert after.find(id=name).get_text() == f"{said} | {at} | {rows[at][1]}"
    assert not figure.find("details").has_attr("open")
    assert all(range_.find_parent("label").get_text(strip=True) for range_ in figure("input"))
    assert hosts(asked) == set()


def test_without_scripts_a_figure_is_its_first_frame_and_its_table(parsed):
    figures = [(path, figure) for path, page in parsed.items() for figure in page.select("figure.kit-moving")]
    assert len({path for path, _ in figures}) >= 10
    for path, figure in figures:
        assert figure.find("details").has_attr("open")
        assert len(figure.select("tbody tr")) > 5
        assert len(figure.find("figcaption").get_text()) > 60
        for frame in figure.select(".moving-frame"):
            assert len(frame["aria-label"]) > 40
            assert "--at:0" in frame["style"]
            assert (path.parent / re.search(r"url\(([^)]+)\)", frame["style"])[1]).is_file()


ANSWER = """<script>
addEventListener("load", () => {
  for (const [id, right] of [["wrong", "false"], ["right", "true"]]) {
    const quiz = document.querySelector("fieldset.kit-quiz");
    quiz.querySelector(`input[data-right=${right}]`).click();
    const p = document.createElement("p");
    p.id = id;
    p.textContent = `${quiz.querySelector("output").textContent} | ${quiz.querySelector("details").hidden}`;
    document.body.append(p);
  }
});
</script></body>"""


@needs_browser
def test_a_question_answers_back_in_a_browser(site, tmp_path):
    page = site / "book" / "parts" / "attacking.html"
    after, asked = driven(page, "</body>", ANSWER, tmp_path)
    first = after.select_one("fieldset.kit-quiz")
    wrong, right = (first.select_one(f"input[data-right={word}]")["data-says"] for word in ("false", "true"))
    assert after.find(id="wrong").get_text() == f"Not quite. {wrong} | true"
    assert after.find(id="right").get_text() == f"Right. {right} | false"
    assert hosts(asked) == set()


READ = """<script>
localStorage.setItem("kit-read", JSON.stringify(["notebooks/attacks/gradient"]));
addEventListener("load", () => {
  const note = (id) => {
    const p = document.createElement("p");
    p.id = id;
    p.textContent = `${document.querySelector(".kit-progress output").textContent} ` +
      `${[...document.querySelectorAll(".kit-tick")].map((t) => t.previousElementSibling.getAttribute("href"))}`;
    document.body.append(p);
  };
  note("some"); document.querySelector(".kit-progress button").click(); note("none");
});
</script></head>"""


def test_the_home_page_lists_every_chapter(site, parsed, names):
    page = parsed[(site / "book" / "index.html").resolve()]
    linked = [link["href"] for link in page.select(".kit-chapters a")]
    assert sorted(linked) == sorted(f"../{place}.html" for place in names.chapters)
    assert page.select_one(".kit-progress").has_attr("hidden")  # until the script has something to show


@needs_browser
def test_progress_is_shown_and_can_be_cleared(site, tmp_path, names):
    page = site / "book" / "index.html"
    after, _ = driven(page, "</head>", READ, tmp_path)
    said = f"{{}} of {len(names.chapters)} chapters read, as this browser remembers. {{}}"
    assert after.find(id="some").get_text() == said.format(1, "../notebooks/attacks/gradient.html")
    assert after.find(id="none").get_text() == said.format(0, "")


# A frame is as narrow as a phone, which no window of this browser is. It is served: a file may not look into a frame.
NARROW = """<!doctype html><html><body><script>
(async () => {{
  const found = {{}};
  for (const page of {pages}) {{
    const frame = document.createElement("iframe");
    frame.width = 390;
    frame.height = 800;
    frame.style.border = 0;
    frame.src = `${{page}}.html`;
    await new Promise((go) => {{ frame.onload = go; document.body.append(frame); }});
    const inside = frame.contentWindow, book = frame.contentDocument;
    frame.width = 390 + frame.clientWidth - book.documentElement.clientWidth; // beside the scroll bar
    await inside.MathJax?.startup?.promise;
    await new Promise((go) => setTimeout(go, 300));
    const boxes = [...book.querySelectorAll(".kit-wide")];
    const wide = boxes.filter((box) => box.scrollWidth > box.clientWidth + 8);
    found[page] = {{
      page: [book.scrollingElement.clientWidth, book.scrollingElement.scrollWidth],
      equations: [...book.querySelectorAll("div.math, div.math mjx-container")]
        .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.closest("[id]").id),
      figures: boxes.length,
      small: boxes.map((box) => box.querySelector("img"))
        .filter((image) => image.offsetWidth < Math.min(0.74 * image.naturalWidth, 700)).map((image) => image.src),
      wide: wide.length,
      told: wide.filter((box) => box.tabIndex === 0 && box.getAttribute("aria-label") &&
        box.nextElementSibling.checkVisibility()).length,
      idle: boxes.filter((box) => !wide.includes(box) && (box.tabIndex === 0 ||
        box.nextElementSibling.checkVisibility())).length,
    }};
    frame.remove();
  }}
  const p = document.createElement("p");
  p.id = "found";
  p.textContent = JSON.stringify(found);
  document.body.append(p);
}})();
</script></body></html>"""
ON_A_PHONE = [
    "book/index", "book/what_is_meant", "notebooks/certify/bounds", "notebooks/explain/latent",
    "notebooks/fire/defences",
]  # fmt: skip


@needs_browser
def test_a_phone_shows_every_figure_legibly_and_no_page_scrolls_sideways(site, serve, tmp_path):
    """Nothing but a figure's or a table's own box scrolls sideways, and a figure's box says so, to the keyboard too."""
    page = site / "narrow.html"
    page.write_text(NARROW.format(pages=json.dumps(ON_A_PHONE)))
    try:
        dom, _ = browse(f"{serve(site)}/narrow.html", tmp_path / "run")
    finally:
        page.unlink()
    found = json.loads(BeautifulSoup(dom, "html.parser").find(id="found").get_text())
    assert list(found) == ON_A_PHONE
    for name, seen in found.items():
        assert seen["page"] == [390, 390], name
        assert seen["equations"] == seen["small"] == [], name
        assert seen["told"] == seen["wide"], name
        assert seen["idle"] == 0, name
    assert all(found[name]["wide"] for name in ("book/index", "notebooks/certify/bounds"))


# Colours are looked at in both modes, once they have changed. What else axe looks at does not depend on the mode, but
# for the button's name.
LOOK = """<head><style>* {{ transition: none !important; }}</style><script src="{axe}"></script><script>
localStorage.setItem("mode", "light"); localStorage.setItem("theme", "light");
addEventListener("load", async () => {{
  const wait = (time) => new Promise((go) => setTimeout(go, time));
  const names = "label-content-name-mismatch";
  const found = {{}};
  await wait(500);
  for (const theme of ["light", "dark"]) {{
    while (document.documentElement.dataset.theme !== theme) document.querySelector(".theme-switch-button").click();
    await wait(500);
    const options = {{rules: {{[names]: {{enabled: true}}}}, resultTypes: ["violations"]}};
    if (theme === "dark") options.runOnly = ["color-contrast", names];
    const result = await axe.run(document, options);
    found[theme] = result.violations.map((rule) => [rule.id, ...rule.nodes.map((node) => String(node.target))]);
    found[`${{theme}}, colours looked at`] = result.passes.some((rule) => rule.id === "color-contrast");
  }}
  const p = document.createElement("p");
  p.id = "axe";
  p.textContent = JSON.stringify(found);
  document.body.append(p);
}});
</script>"""
LOOKED_AT = [
    "book/index", "notebooks/explain/gradient", "notebooks/explain/cam", "book/glossary", "book/reference/fire",
]  # fmt: skip


@needs_browser
@needs_axe
@pytest.mark.parametrize("page", LOOKED_AT)
def test_axe_finds_nothing_in_light_and_in_dark(site, tmp_path, page):
    """Home, a chapter with exercises and tables, one with a figure that moves, the glossary, a part's reference."""
    after, _ = driven(site / f"{page}.html", "<head>", LOOK.format(axe=AXE.as_uri()), tmp_path)
    clean = {"light": [], "light, colours looked at": True, "dark": [], "dark, colours looked at": True}
    assert json.loads(after.find(id="axe").get_text()) == clean


@needs_browser
@needs_axe
def test_axe_sees_what_is_wrong(site, tmp_path):
    page = tmp_path / "wrong.html"
    text = (site / "book" / "index.html").read_text().replace('href="../', f'href="{site.as_uri()}/')
    wrong = '<img src="i.png"><p style="color: #777; background: #888">grey on grey</p></article>'
    page.write_text(text.replace('src="../', f'src="{site.as_uri()}/').replace("</article>", wrong, 1))
    after, _ = driven(page, "<head>", LOOK.format(axe=AXE.as_uri()), tmp_path)
    found = json.loads(after.find(id="axe").get_text())
    assert {"image-alt", "color-contrast"} <= {rule for rule, *_ in found["light"]}
    assert "color-contrast" in {rule for rule, *_ in found["dark"]}
