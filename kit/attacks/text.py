"""Misspellings that turn a text classifier's answer: one edit of a letter in a word, and few words.

    predict(texts) -> (n, K)     scores of the classes for a list of n texts, the greatest is the answer

A misspelling keeps a word's first and last letter, by which people read. Its size is the number of words that are
misspelt. All attacks ask for answers alone: a letter has no gradient.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.core import Goal, alike, check_settings

Predict = Callable[[list[str]], Tensor]
KINDS = ("swap", "drop", "add", "key")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # each row half a key to the right of the one above
LEAST = 4  # letters of a word that is misspelt (Pruthi et al.)
WORD = re.compile(r"[A-Za-z]+")
# Words of grammar, which a reader does not miss (Pruthi et al. leave them out): those of four letters and more.
STOP = """about above after again because been before being below between both could does down during each from further
have having here into itself just more most only other over same should since some such than that their them then there
these they this those through under until very were what when where which while will with without would your"""
STOP_WORDS = frozenset(STOP.split())


def _neighbours() -> dict[str, str]:
    """The keys that touch each key: its row's neighbours, and two in the row above and below."""
    place = {letter: (2 * j + i, i) for i, row in enumerate(KEYBOARD) for j, letter in enumerate(row)}
    return {a: "".join(b for b, (u, v) in place.items() if a != b and abs(u - s) <= 2 - abs(v - t) and abs(v - t) <= 1)
            for a, (s, t) in place.items()}


NEIGHBOURS = _neighbours()


@functools.lru_cache(maxsize=100_000)
def misspellings(word: str, kinds: tuple[str, ...] = KINDS) -> tuple[str, ...]:
    """Every word that one edit of the inner letters makes of `word`; none where it has fewer than `LEAST` letters.

    swap    two neighbours change places          add    any letter is put in
    drop    a letter is left out                  key    a letter becomes one that touches it on the keyboard
    """
    if len(word) < LEAST:
        return ()
    inner = range(1, len(word) - 1)
    found: list[str] = []
    for kind in kinds:
        if kind == "swap":
            found += [word[:i] + word[i + 1] + word[i] + word[i + 2:] for i in inner[:-1]]
        elif kind == "drop":
            found += [word[:i] + word[i + 1:] for i in inner]
        elif kind == "add":
            found += [word[:i] + letter + word[i:] for i in range(1, len(word)) for letter in LETTERS]
        elif kind == "key":
            found += [word[:i] + letter + word[i + 1:] for i in inner for letter in NEIGHBOURS.get(word[i].lower(), "")]
        else:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, not {kind!r}")
    return tuple(dict.fromkeys(w for w in found if w != word))


def words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end."""
    return [match.span() for match in WORD.finditer(text)]


def importance(predict: Predict, text: str, goal: Goal) -> Tensor:
    """By how much the attack leads more without each word, (words,): the word of the greatest is the most important.

    `goal` is that of this text alone. Cost: one query for each word and one for the text.
    Source: Li et al., TextBugger, NDSS 2019 (deletion). Gao et al., DeepWordBug, 2018, score a word by what the words
    before it say with it and without.
    """
    without = [text[:a] + text[b:] for a, b in words(text)]
    lead = _lead(predict, goal, [text, *without], [0] * (len(without) + 1))[0]
    return lead[1:] - lead[0]


def misspell(
    predict: Predict, texts: Sequence[str], y: Tensor, *, edits: int = 2, each: int = 1, kinds: Sequence[str] = KINDS,
    by: str = "worst", top: int | None = None, tries: int | None = None, keep: frozenset[str] = STOP_WORDS,
    target: Tensor | None = None, generator: torch.Generator | None = None,
) -> list[str]:
    """Texts in which at most `edits` words are misspelt, so that the answer is not y (or is the target).

        "worst"        of all misspellings of all words the one after which the attack leads most, and so on from there
        "importance"   words in the order of `importance`, which is asked for once; of each its worst misspelling
        "random"       a random misspelling of a random word: the control

    A text is left alone once its answer is turned, and comes back as it was where `edits` is 0. `top` looks only at so
    many of the words that `importance` puts first, `tries` at so many misspellings of each, drawn at random; None at
    all. Words in `keep`, and those of fewer than four letters, are not touched. With `each` a misspelling is so many
    edits of one word, one after the other; since there are too many of them, `tries` are drawn.
    The edits are made on the text that the attacker wrote, never on one that a defence in `predict` has corrected.
    Cost: in queries a text, for each word misspelt the number of its candidates, and for "importance" or `top` one for
    each word more.
    Source: Pruthi, Dhingra and Lipton, Combating adversarial misspellings with robust word recognition, ACL 2019
    (worst); Gao et al. 2018 and Li et al. 2019 (importance).
    """
    if by not in ("worst", "importance", "random"):
        raise ValueError(f"by must be worst, importance or random, not {by!r}")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError("texts must be a list of strings")
    for name, labels in (("y", y), ("target", target)):
        if labels is not None and (not isinstance(labels, Tensor) or labels.dtype != torch.int64
                                   or labels.shape != (len(texts),)):
            raise ValueError(f"{name} must be an int64 tensor ({len(texts)},), one class number for each text")
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be among {', '.join(KINDS)}, and at least one, not {kinds!r}")
    if not isinstance(edits, int) or edits < 0:
        raise ValueError(f"edits must be a whole number of words, 0 or more, not {edits!r}")
    check_settings({"top": top, "tries": tries, "each": each, "generator": generator})
    if each > 1 and tries is None and by != "random":
        raise ValueError(f"a word has too many misspellings of {each} edits: say how many are tried, such as tries=100")
    seeds = torch.randint(2**31, (len(texts),), generator=alike(generator)).tolist()
    goal = Goal(y, target)
    todo = [_Text(text, keep, np.random.default_rng(seed)) for text, seed in zip(texts, seeds, strict=True)]
    if edits and todo:
        for text, reached in zip(todo, _lead(predict, goal, list(texts), range(len(todo)))[1].tolist(), strict=True):
            text.done = reached
    for i, text in enumerate(todo):
        if edits and not text.done and (by == "importance" or top is not None):
            gain = importance(predict, text.now, goal[i:i + 1])
            text.left = sorted(text.left, key=lambda k, gain=gain: -float(gain[k]))[:top]  # type: ignore[misc]
    for _ in range(edits):
        tried = [(i, k, new) for i, text in enumerate(todo) if not text.done
                 for k, new in text.candidates(by, tuple(kinds), each, tries)]
        if not tried:
            break
        lead, reached = _lead(predict, goal, [new for _, _, new in tried], [i for i, _, _ in tried])
        best: dict[int, int] = {}
        for j, (i, _, _) in enumerate(tried):
            if i not in best or lead[j] > lead[best[i]]:
                best[i] = j
        for i, j in best.items():
            todo[i].take(tried[j][1], tried[j][2], bool(reached[j]))
    return [text.now for text in todo]


class _Text:
    """A text that is worked on: as it is now, the words that may yet be misspelt, and whether its answer is turned."""

    def __init__(self, text: str, keep: frozenset[str], random: np.random.Generator):
        self.now, self.random, self.done = text, random, False
        self.left = [k for k, (a, b) in enumerate(words(text)) if b - a >= LEAST and text[a:b].lower() not in keep]

    def candidates(self, by: str, kinds: tuple[str, ...], each: int, tries: int | None) -> list[tuple[int, str]]:
        """What one more misspelt word makes of the text, with the number of the word. A word that has no misspelling of
        these kinds, as "good" has none by a swap, makes way for the next."""
        spans = words(self.now)
        found: list[tuple[int, str]] = []
        while self.left and not found:
            chosen = self.left
            if by == "importance":
                chosen = chosen[:1]
            elif by == "random":
                chosen, tries = [chosen[self.random.integers(len(chosen))]], 1
            for k in chosen:
                a, b = spans[k]
                forms = self.forms(self.now[a:b], kinds, each, tries)
                found += [(k, self.now[:a] + new + self.now[b:]) for new in forms]
                if not forms:
                    self.left = [j for j in self.left if j != k]
        return found

    def forms(self, word: str, kinds: tuple[str, ...], each: int, tries: int | None) -> Sequence[str]:
        options = misspellings(word, kinds)
        if options and tries is not None and (len(options) > tries or each > 1):
            options = tuple(options[j] for j in self.random.choice(len(options), tries, replace=each > 1))
        for _ in range(each - 1):
            further = [misspellings(option, kinds) for option in options]
            options = tuple(f[self.random.integers(len(f))] for f in further if f)
        return list(dict.fromkeys(option for option in options if option != word))

    def take(self, k: int, text: str, reached: bool) -> None:
        self.now, self.done, self.left = text, reached, [j for j in self.left if j != k]


def misspelt(before: str, after: str) -> int:
    """How many words differ between two texts of as many words. Raises ValueError where they are not as many."""
    one, other = WORD.findall(before), WORD.findall(after)
    if len(one) != len(other):
        raise ValueError(f"a misspelling keeps the number of words, and these texts have {len(one)} and {len(other)}")
    return sum(a != b for a, b in zip(one, other, strict=True))


def scores(classifier: Any) -> Predict:
    """`predict` of a classifier of scikit-learn that takes texts and has a `decision_function`."""

    def predict(texts: list[str]) -> Tensor:
        z = torch.from_numpy(np.asarray(classifier.decision_function(texts), dtype=np.float64))
        return torch.stack([-z / 2, z / 2], 1) if z.dim() == 1 else z

    return predict


def _lead(predict: Predict, goal: Goal, texts: list[str], of: Sequence[int]) -> tuple[Tensor, Tensor]:
    """By how much the attack leads with each text, and whether that turns the answer about the text `of` which it is a
    form. Each different text is asked about once."""
    different = list(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(different)}
    z = predict(different)
    if not isinstance(z, Tensor) or z.dim() != 2 or len(z) != len(different):
        raise ValueError("predict must return scores (n, K) for a list of n texts")
    if bool(z.isnan().any()):
        raise ValueError(f"predict returned NaN for {int(z.isnan().any(1).sum())} of {len(z)} texts")
    for name, labels in (("y", goal.y), ("target", goal.target)):
        if labels is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < z.shape[1]:
            raise ValueError(f"{name} holds {int(labels.min())} … {int(labels.max())}, predict gives scores of the "
                             f"classes 0 … {z.shape[1] - 1}")
    z, part = z[[place[text] for text in texts]].cpu(), goal[torch.tensor(list(of))]
    return part.lead(z), part.reached(z)
