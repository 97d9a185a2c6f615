"""The recogniser of words: what it cannot see, what it learns, and what it does with what it does not know."""
import pytest
import torch

from kit.attacks import misspellings
from kit.core import generator
from kit.data import records
from kit.defend import WordRecogniser
from kit.defend.words import _threes, letters, vocabulary


@pytest.fixture(scope="module")
def trained():
    texts = records("train", n=120).texts
    known = [word for word in vocabulary(texts) if word != "spiculated"]
    return WordRecogniser(known).fit(texts, epochs=6), records("test", n=20).texts


def test_letters_are_first_bag_and_last():
    a = letters("Tissue")
    assert a[:26].nonzero().flatten().tolist() == [ord("t") - 97]
    assert a[52:].nonzero().flatten().tolist() == [ord("e") - 97]
    assert a[26 + ord("s") - 97] == 2
    assert a.sum() == 6
    assert letters("a").sum() == 2  # first and last at once
    assert letters("").sum() == 0


def test_a_swap_inside_changes_no_bit(trained):
    recogniser, texts = trained
    for word in ("calcification", "tissue", "architectural"):
        assert all(torch.equal(letters(word), letters(new)) for new in misspellings(word, ("swap",)))
        assert not any(torch.equal(letters(word), letters(new)) for new in misspellings(word, ("drop", "add", "key")))
    jumbled = [text.replace("breast", "bresat").replace("region", "rgeion") for text in texts]
    assert jumbled != texts
    assert recogniser(jumbled) == recogniser(texts)


def test_it_reads_clean_and_misspelt_words(trained):
    recogniser, texts = trained
    clean = [text.lower() for text in texts]
    share = [sum(a == b for a, b in zip(t.split(), r.split(), strict=True)) / len(t.split())
             for t, r in zip(clean, recogniser(texts), strict=True)]
    assert sum(share) / len(share) > 0.97
    typed = [text.replace("quadrant", "quadrnt").replace("calcification", "calcifcation") for text in clean]
    assert typed != clean
    assert recogniser(typed) == recogniser(clean)
    untrained = WordRecogniser(recogniser.known)
    assert untrained(texts) != recogniser(texts)


def test_what_it_does_not_know(trained):
    recogniser, _ = trained
    text = "One spiculated mass is seen."
    assert recogniser([text])[0] == "one spiculated mass is seen."
    neutral = WordRecogniser(recogniser.known, unknown="neutral")
    neutral.restore(recogniser.tensors())
    assert neutral([text])[0] == "one a mass is seen."
    assert recogniser([]) == []
    assert recogniser(["12!", ""]) == ["12!", ""]


def test_a_fit_repeats_leaves_the_random_state_and_is_kept(tmp_path):
    texts = records("train", n=20).texts
    before = torch.get_rng_state()
    a, b, c = (WordRecogniser(vocabulary(texts), width=8).fit(texts, epochs=1, generator=generator(s))
               for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(t, b.tensors()[name]) for name, t in a.tensors().items())
    assert not torch.equal(a.tensors()["0.weight"], c.tensors()["0.weight"])
    a.save(tmp_path / "words")
    kept = WordRecogniser.load(tmp_path / "words")
    assert kept.known == a.known
    assert kept(texts) == a(texts)
    with pytest.raises(ValueError, match="unknown must be"):
        WordRecogniser(["a"], unknown="drop")


def test_vocabulary_counts():
    assert vocabulary(["A mass, a Mass.", "the mass"]) == ["a", "mass", "the"]
    assert vocabulary(["A mass, a Mass.", "the mass"], least=2) == ["a", "mass"]


def test_letters_of_other_scripts_pass_and_a_second_fit_begins_anew():
    """Small letters of İ and of the sign for kelvin hold an i and a k: no word may be found there that is not."""
    recogniser = WordRecogniser(["mass"])
    assert recogniser(["İ \u212a!", "12"]) == ["İ \u212a!", "12"]
    assert len(recogniser(["İ mass \u212a"])[0].split()) == 3
    assert vocabulary(["İ mass \u212a"]) == ["mass"]
    texts = records("train", n=6).texts
    once = WordRecogniser(vocabulary(texts), width=8).fit(texts, epochs=1)
    twice = WordRecogniser(vocabulary(texts), width=8).fit(texts, epochs=1).fit(texts, epochs=1)
    assert all(torch.equal(t, twice.tensors()[name]) for name, t in once.tensors().items())


@pytest.mark.parametrize(("how", "words"), [
    ({"texts": "one mass"}, "not one string"), ({"texts": ["12"]}, "no word"), ({"texts": []}, "no word"),
    ({"share": 2.0}, "share must"), ({"epochs": 0}, "epochs must"), ({"batch": 0}, "batch must"),
    ({"lr": -1.0}, "lr must"), ({"kinds": ("flip",)}, "kinds must"), ({"generator": 3}, "generator must"),
])
def test_mistakes_get_one_sentence(how, words):
    with pytest.raises((ValueError, TypeError), match=words):
        WordRecogniser(["mass"]).fit(**({"texts": ["one mass"], "epochs": 1} | how))
    with pytest.raises(ValueError, match="not one string"):
        WordRecogniser(["mass"])("one mass")
    for known in ("mass", ["Mass"], ["two words"]):
        with pytest.raises(ValueError, match="known must"):
            WordRecogniser(known)
    with pytest.raises(ValueError, match="width"):
        WordRecogniser(["mass"], width=0)


def test_it_reads_the_neighbours_and_begins_alike_whatever_the_ambient_seed():
    assert _threes(["one", "two", "six"]) == [("", "one", "two"), ("one", "two", "six"), ("two", "six", "")]
    a = WordRecogniser(["mass"]).tensors()
    torch.manual_seed(5)
    assert torch.equal(a["0.weight"], WordRecogniser(["mass"]).tensors()["0.weight"])
