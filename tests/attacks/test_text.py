"""Misspellings: which there are, and what the worst of them is on a classifier whose answer is a sum over words."""
import re

import numpy as np
import pytest
import torch

from kit.attacks import misspell, misspellings
from kit.attacks.text import KINDS, LETTERS, NEIGHBOURS, STOP_WORDS, importance, misspelt, scores, words
from kit.core import Goal, generator

TEXT = "There is dense tissue near the coarse mass; a benign tissue. Biopsy!"
WEIGHTS = {"dense": -1.0, "tissue": -0.75, "mass": -0.5, "benign": 2.0, "coarse": 1.0, "there": -9.0, "biopsy": 0.25}
BIAS = 5.0


def bag(texts):
    """A bag of words: the sum of the weights of the words it knows, for class 0 against class 1."""
    sums = [sum(WEIGHTS.get(w, 0.0) for w in re.findall("[a-z]+", t.lower())) + BIAS + 9 for t in texts]
    z = torch.tensor(sums, dtype=torch.float64)
    return torch.stack([z, torch.zeros_like(z)], 1)


def test_every_misspelling_is_one_edit_of_the_inner_letters():
    assert set(misspellings("words", ("swap",))) == {"wrods", "wodrs"}
    assert set(misspellings("words", ("drop",))) == {"wrds", "wods", "wors"}
    assert len(misspellings("words", ("add",))) == 4 * 26 - 3  # "woords" from two places, and so on
    assert "worfs" in misspellings("words", ("key",))
    assert "worqs" not in misspellings("words", ("key",))
    for word in ("tissue", "calcification", "feet"):
        every = misspellings(word)
        assert len(every) == len(set(every))
        assert word not in every
        assert all(w[0] == word[0] and w[-1] == word[-1] for w in every)
        assert all(abs(len(w) - len(word)) <= 1 for w in every)
    assert misspellings("sea") == ()
    assert "tisue" in misspellings("tissue")


def test_the_keyboard():
    assert set(NEIGHBOURS["s"]) == set("adwezx")
    assert set(NEIGHBOURS["q"]) == set("wa")
    assert all(a in NEIGHBOURS[b] for a in LETTERS for b in NEIGHBOURS[a])


def test_the_worst_edit_of_a_bag_of_words_is_the_greatest_weight():
    """A word that is not known counts as none. "there" weighs most and is a stop word; "benign" is the next."""
    y = torch.tensor([0])
    one = misspell(bag, [TEXT], y, edits=1)[0]
    gone = [a for a, b in zip(re.findall("[A-Za-z]+", TEXT), re.findall("[A-Za-z]+", one), strict=True) if a != b]
    assert gone == ["benign"]
    exact = min(float(bag([TEXT[:a] + new + TEXT[b:]])[0, 0]) for a, b in words(TEXT)
                for new in misspellings(TEXT[a:b]) if TEXT[a:b].lower() not in STOP_WORDS)
    assert float(bag([one])[0, 0]) == exact == float(bag([TEXT])[0, 0]) - 2.0
    two = misspell(bag, [TEXT], y, edits=2)[0]
    assert float(bag([two])[0, 0]) == float(bag([TEXT])[0, 0]) - 3.0
    assert misspelt(TEXT, two) == 2


def test_by_importance_it_is_the_same_word_and_at_random_seldom():
    y = torch.tensor([0])
    gain = importance(bag, TEXT, Goal(y))
    first = [TEXT[a:b] for a, b in words(TEXT)][int(gain.argmax())]
    assert first == "benign"
    assert gain.max() == 2
    ranked, greedy = (misspell(bag, [TEXT], y, edits=2, by=by)[0] for by in ("importance", "worst"))
    assert torch.equal(bag([ranked]), bag([greedy]))
    top = misspell(bag, [TEXT], y, edits=2, top=2, tries=5)[0]
    assert torch.equal(bag([top]), bag([greedy]))
    random = [misspell(bag, [TEXT], y, edits=1, by="random", generator=generator(s))[0] for s in range(20)]
    assert len(set(random)) > 5
    assert all(misspelt(TEXT, t) == 1 for t in random)
    assert sum("benign" in t for t in random) > 10


def test_budget_target_and_a_text_that_is_wrong_already():
    y = torch.tensor([0, 0])
    assert misspell(bag, [TEXT, "Biopsy."], y, edits=0) == [TEXT, "Biopsy."]
    assert misspell(bag, [TEXT], torch.tensor([1]), edits=2) == [TEXT]  # its answer is not 1
    towards = misspell(bag, [TEXT], torch.tensor([0]), target=torch.tensor([1]), edits=1)[0]
    away = misspell(bag, [TEXT], torch.tensor([1]), target=torch.tensor([0]), edits=1)[0]
    assert float(bag([towards])[0, 0]) == float(bag([TEXT])[0, 0]) - 2
    assert away == TEXT
    assert misspell(bag, [], torch.tensor([], dtype=torch.int64)) == []
    assert misspell(bag, ["A sea."], y[:1]) == ["A sea."]


def test_it_stops_when_the_answer_is_turned():
    def edge(texts):
        return bag(texts) - torch.tensor([2.75, 0.0])  # two words are enough, the first is not

    found = misspell(edge, [TEXT], torch.tensor([0]), edits=5)[0]
    assert misspelt(TEXT, found) == 2
    assert edge([found]).argmax(1) == 1


def test_a_text_does_not_depend_on_the_others():
    texts, y = [TEXT, "Another benign coarse opacity.", TEXT], torch.tensor([0, 0, 0])
    for options in ({"by": "random"}, {"tries": 3}, {"tries": 3, "each": 2}):
        together = misspell(bag, texts, y, edits=2, **options)
        assert together[:1] == misspell(bag, texts[:1], y[:1], edits=2, **options)
        assert together == misspell(bag, texts, y, edits=2, **options)


def test_several_letters_of_one_word():
    found = misspell(bag, [TEXT], torch.tensor([0]), edits=1, each=3, tries=200)[0]
    assert misspelt(TEXT, found) == 1
    new = next(b for a, b in zip(re.findall("[A-Za-z]+", TEXT), re.findall("[A-Za-z]+", found), strict=True) if a != b)
    assert new not in misspellings("benign")
    assert new[0] == "b"
    assert new[-1] == "n"


def test_the_next_edit_starts_from_what_was_written():
    """A defence that corrects one word: the attacker must not be given the corrected text to go on from."""
    def corrected(texts):
        return bag([re.sub(r"\bb\w*n\b", "benign", t) for t in texts])

    found = misspell(corrected, [TEXT], torch.tensor([0]), edits=2)[0]
    assert misspelt(TEXT, found) == 2
    assert float(corrected([found])[0, 0]) == float(bag([TEXT])[0, 0]) - 1.25


def test_scores_of_a_classifier():
    class Two:
        def decision_function(self, texts):
            return np.array([2.0, -1.0])

    class Three:
        def decision_function(self, texts):
            return np.array([[1.0, 2.0, 0.0]])

    assert scores(Two())(["a", "b"]).argmax(1).tolist() == [1, 0]
    assert scores(Two())(["a", "b"])[0].tolist() == [-1, 1]
    assert scores(Three())(["a"]).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(("options", "words"), [
    ({"by": "best"}, "by must be"), ({"edits": -1}, "edits must be"), ({"edits": 1.5}, "edits must be"),
    ({"kinds": ("flip",)}, "kinds must be"), ({"each": 2}, "say how many"), ({"tries": 0}, "tries"),
    ({"top": 0}, "top"),
])
def test_mistakes_get_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        misspell(bag, [TEXT], torch.tensor([0]), **options)
    with pytest.raises(ValueError, match="list of strings"):
        misspell(bag, TEXT, torch.tensor([0]))
    with pytest.raises(ValueError, match="scores"):
        misspell(lambda texts: bag(texts)[0], [TEXT], torch.tensor([0]))
    assert set(KINDS) == {"swap", "drop", "add", "key"}


def test_a_word_without_a_misspelling_makes_way():
    """"good" has no swap. It must not end the attack, nor the control, nor let a text depend on its mates."""
    def long(texts):  # the more an o stands in front, the more it matters
        z = torch.tensor([9.0 * t.count("good") + t.count("words") for t in texts])
        return torch.stack([z + 1, torch.zeros_like(z)], 1)

    y, swap = torch.tensor([0, 0]), ("swap",)
    for by in ("worst", "importance", "random"):
        for seed in range(6):
            options = {"edits": 1, "by": by, "kinds": swap, "generator": generator(seed)}
            alone = misspell(long, ["A good few words"], y[:1], **options)
            options["generator"] = generator(seed)
            assert alone[0] in ("A good few wrods", "A good few wodrs"), by
            assert misspell(long, ["A good few words", "other things"], y, **options)[0] == alone[0]
    assert misspell(long, ["good food"], y[:1], kinds=swap, each=2, tries=3) == ["good food"]
    assert misspell(long, ["good food"], y[:1], kinds=swap, each=2, by="random") == ["good food"]


@pytest.mark.parametrize(("changed", "words"), [
    ({"y": torch.tensor([5])}, r"y holds 5 … 5"), ({"y": [0]}, "int64 tensor"), ({"y": torch.tensor([0.0])}, "int64"),
    ({"y": torch.tensor([0, 0])}, r"int64 tensor \(1,\)"), ({"target": torch.tensor([2])}, "target holds 2"),
    ({"target": torch.tensor([1, 1])}, "target must be"), ({"texts": [None]}, "list of strings"),
    ({"kinds": ()}, "at least one"), ({"kinds": "swap"}, "kinds must be"),
    ({"predict": lambda texts: bag(texts) * torch.nan}, "NaN for 1 of 1"),
])
def test_labels_texts_and_answers_that_make_no_sense(changed, words):
    with pytest.raises(ValueError, match=words):
        misspell(**({"predict": bag, "texts": [TEXT], "y": torch.tensor([0])} | changed))
    with pytest.raises(ValueError, match="2 and 1"):
        misspelt("two words", "one")


def test_words_of_grammar_are_left_whatever_they_weigh():
    def grammar(texts):
        z = torch.tensor([9.0 * ("with" in t.lower()) + t.lower().count("mass") for t in texts])
        return torch.stack([z + 1, torch.zeros_like(z)], 1)

    y = torch.tensor([0])
    for by in ("worst", "importance", "random"):
        assert misspelt("With mass with", misspell(grammar, ["With mass with"], y, by=by, edits=3)[0]) == 1
    assert grammar(misspell(grammar, ["With mass"], y, keep=frozenset()))[0, 0] == 1


def test_at_random_it_is_any_word():
    found = [misspell(bag, [TEXT], torch.tensor([0]), edits=1, by="random", generator=generator(s))[0]
             for s in range(20)]
    pairs = [zip(re.findall("[A-Za-z]+", TEXT), re.findall("[A-Za-z]+", t), strict=True) for t in found]
    assert len({next(a for a, b in pair if a != b) for pair in pairs}) >= 5


def test_the_questions_are_those_that_it_says():
    """One about the text; of each word that is tried the number of its candidates; and one for each word's place."""
    asked = []

    def counted(texts):
        asked.append(len(texts))
        assert len(set(texts)) == len(texts)
        return bag(texts)

    y, spans = torch.tensor([0]), words(TEXT)
    able = [TEXT[a:b] for a, b in spans if b - a >= 4 and TEXT[a:b].lower() not in STOP_WORDS]
    forms = {word: len(misspellings(word)) for word in able}
    ranked = len({TEXT[:a] + TEXT[b:] for a, b in spans}) + 1
    for options, expected in (
        ({"by": "worst"}, 1 + sum(forms[word] for word in able)),
        ({"by": "importance"}, 1 + ranked + forms["benign"]),
        ({"by": "worst", "top": 2}, 1 + ranked + forms["benign"] + forms["coarse"]),
        ({"by": "worst", "tries": 3}, 1 + 3 * len(able)),
        ({"by": "random"}, 2), ({"edits": 0}, 0)):
        asked.clear()
        misspell(counted, [TEXT], y, **({"edits": 1} | options))
        slack = len(able) if options == {"by": "worst"} else 0  # two words that are alike have other texts
        assert abs(sum(asked) - expected) <= slack, options
