"""A defence of texts: each word is recognised from its first letter, its inner letters as a bag, and its last."""
from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.attacks.text import KINDS, LETTERS, WORD, misspellings
from kit.core import alike, check_settings
from kit.core.fitted import Fitted
from kit.core.seeding import ambient_randomness_kept

PLACES = {letter: i for i, letter in enumerate(LETTERS)}
SIZE = len(LETTERS)


@functools.lru_cache(maxsize=100_000)
def letters(word: str) -> Tensor:
    """(3 · 26,): the first letter, how often each letter stands inside, and the last. A swap inside changes nothing."""
    first, inside, last = torch.zeros(3, SIZE).unbind()
    at = [PLACES[letter] for letter in word.lower()]
    if at:
        first[at[0]] = last[at[-1]] = 1
        inside += torch.bincount(torch.tensor(at[1:-1], dtype=torch.int64), minlength=SIZE)
    return torch.cat([first, inside, last])


def vocabulary(texts: Sequence[str], least: int = 1) -> list[str]:
    """The words, in small letters, that stand in these texts at least so often."""
    counts = Counter(word for row in _rows(texts) for word in row)
    return sorted(word for word, count in counts.items() if count >= least)


class WordRecogniser(Fitted):
    """A semi-character network: `letters` of a word and of its two neighbours → a hidden layer → one of `known`.

    `recogniser(texts)` gives the texts with every word replaced by the one that it was recognised as. Where it is
    recognised as none of them, it passes as it stands (`unknown="pass"`) or becomes "a" (`unknown="neutral"`).
    Source: Sakaguchi et al., Robsut wrod reocginiton via semi-character recurrent neural network, AAAI 2017; as a
    defence, with these ways for unknown words, Pruthi et al., ACL 2019. Theirs is a recurrent network, which reads the
    whole sentence; here the neighbours are enough, and only what is new to it has to be read.
    """

    def __init__(self, known: Sequence[str], *, width: int = 64, unknown: str = "pass"):
        if unknown not in ("pass", "neutral"):
            raise ValueError(f"unknown must be pass or neutral, not {unknown!r}")
        if isinstance(known, str) or any(WORD.fullmatch(word) is None or word != word.lower() for word in known):
            raise ValueError("known must be a list of words of the letters a to z, such as vocabulary(texts)")
        if width < 1:
            raise ValueError(f"width must be 1 or more hidden units, not {width}")
        self.known, self.width, self.unknown = list(known), width, unknown
        self.net = self._new()

    def _new(self) -> nn.Sequential:
        """The network as it is before it is trained, the same each time."""
        with ambient_randomness_kept(torch.device("cpu")):
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Linear(9 * SIZE, self.width), nn.ReLU(), nn.Linear(self.width, len(self.known) + 1))

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.net.state_dict())

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.net.load_state_dict(tensors)

    def fit(
        self, texts: Sequence[str], *, epochs: int = 6, batch: int = 256, lr: float = 0.005, share: float = 0.5,
        kinds: Sequence[str] = KINDS, generator: torch.Generator | None = None,
    ) -> WordRecogniser:
        """Trained by cross-entropy to give back the words of `texts`, of which each time a share is misspelt.

        A word that is not `known` is to be recognised as none. `batch` is in words. A second fit begins anew.
        """
        check_settings({"epochs": epochs, "batch": batch, "lr": lr, "generator": generator})
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie between 0 and 1, not {share}")
        rows = _rows(texts)
        if not any(rows):
            raise ValueError("there is no word in these texts to learn from")
        self.net, source = self._new(), alike(generator)
        random = np.random.default_rng(int(torch.randint(2**31, (), generator=source)))
        parameters, place = list(self.net.parameters()), {word: i for i, word in enumerate(self.known)}
        adam = torch.optim.Adam(parameters, lr=lr)
        y = torch.tensor([place.get(word, len(self.known)) for row in rows for word in row])
        for _ in range(epochs):
            typed = [[_typed(word, share, tuple(kinds), random) for word in row] for row in rows]
            table, index = _table([three for row in typed for three in _threes(row)])
            for part in torch.randperm(len(y), generator=source).split(batch):
                loss = F.cross_entropy(self.net(table[index[part]].flatten(1)), y[part])
                for parameter, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = g
                adam.step()
                adam.zero_grad()
        return self

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The texts as they are read. Cost: a pass for each different word among different neighbours."""
        rows = [_threes(row) for row in _rows(texts)]
        different = list(dict.fromkeys(three for row in rows for three in row))
        read: dict[tuple[str, ...], str] = {}
        if different:
            table, index = _table(different)
            with torch.no_grad():
                best = torch.cat([self.net(table[part].flatten(1)).argmax(1) for part in index.split(4096)])
            for three, k in zip(different, best.tolist(), strict=True):
                missing = three[1] if self.unknown == "pass" else "a"
                read[three] = self.known[k] if k < len(self.known) else missing
        found = []
        for text, row in zip(texts, rows, strict=True):
            now = iter([read[three] for three in row])
            found.append(WORD.sub(lambda _, now=now: next(now), text))  # type: ignore[misc]
        return found


def _rows(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, in small letters: found first, since small letters of other scripts may be of a to z."""
    if isinstance(texts, str):
        raise ValueError("texts must be a list of strings, not one string: write [text]")
    return [[word.lower() for word in WORD.findall(text)] for text in texts]


def _threes(row: list[str]) -> list[tuple[str, str, str]]:
    """Each word with its neighbours, "" beyond the ends."""
    return list(zip(["", *row], row, [*row[1:], ""], strict=False))


def _table(threes: list[tuple[str, str, str]]) -> tuple[Tensor, Tensor]:
    """The `letters` of all words in these, (words, 78), and which each consists of, (n, 3)."""
    place: dict[str, int] = {}
    index = torch.tensor([[place.setdefault(word, len(place)) for word in three] for three in threes])
    return torch.stack([letters(word) for word in place]), index


def _typed(word: str, share: float, kinds: tuple[str, ...], random: np.random.Generator) -> str:
    options = misspellings(word, kinds)
    return options[random.integers(len(options))] if options and random.random() < share else word
