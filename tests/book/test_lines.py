"""Lines of a page break where a reader would break them."""

import sys

import pytest

from tests.book.test_pages import ROOT


@pytest.fixture
def book(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    import kit_book

    yield kit_book
    sys.modules.pop("kit_book")


@pytest.mark.parametrize("whole", [
    "[0.35, 0.60]", "[-0.6, +0.1]", "[87%, 98%]", "[2.6e-08, 5]", "0.9 %", "10 000", "n = 400", "p &lt; 0.05",
    "76.8 ± 0.1", "8 × 8", "λ = 1", "CIFAR-10"])
def test_what_is_read_as_one_stays_on_one_line(book, whole):
    assert book.keep_together(f"<p>so {whole} of it</p>") == f'<p>so <span class="kit-kept">{whole}</span> of it</p>'


@pytest.mark.parametrize("left", [
    "<pre>n = 400</pre>", "<code>n = 400</code>", '<img alt="n = 400">', '<span class="math">\\(n = 400\\)</span>',
    "<p>in 2018 nine of ten</p>", "<p>f = g, and a list [a, b]</p>"])
def test_code_formulas_and_attributes_are_left(book, left):
    assert book.keep_together(left) == left


def test_what_a_check_says_is_not_cut(book):
    said = '<code class="docutils literal"><span class="pre">✓</span> <span class="pre">majority-vote:</span></code>'
    assert book.keep_together(said) == said.replace("docutils literal", "docutils literal kit-kept")


def test_a_name_has_its_letter_raised(book):
    assert book.keep_together("<p>RTS^A’s maps, 2^b levels</p>") == "<p>RTS<sup>A</sup>’s maps, 2^b levels</p>"


def test_a_piece_of_code_ends_with_its_last_line(book):
    assert book.end_code("<pre>a\n\nb\n\n\n</pre>") == "<pre>a\n\nb\n</pre>"
