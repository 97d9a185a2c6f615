"""`records`: short reports of mammograms, made here by a grammar. They are of no patient, and say so wherever shown."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kit.data.sets import check_split

CLASSES = ("negative", "positive")
SEEDS = {"train": 30_001, "dev": 30_002, "test": 30_003}
COUNTS = {"train": 1000, "dev": 200, "test": 500}

PLACES = ("upper outer quadrant", "upper inner quadrant", "lower outer quadrant", "lower inner quadrant",
          "retroareolar region", "axillary tail", "central portion", "inframammary fold", "posterior third")
SIDES = ("left", "right")
DENSITY = ("extremely dense fibrous tissue", "heterogeneously dense tissue", "scattered fibroglandular tissue",
           "predominantly fatty tissue", "a mixture of fatty and dense parenchyma")
FRAMES = (
    "There is {density} in both breasts.", "The breasts show {density}.", "The patient is {age} years old.",
    "Comparison is made with the previous examination.", "No comparison films are available.",
    "A marker was placed in the region of palpable abnormality.", "The patient reports occasional tenderness.",
    "This lowers the sensitivity of mammography.", "Standard views of both breasts were obtained.",
    "The skin and nipple are unremarkable.", "Axillary lymph nodes have normal size.",
    "Additional magnification views were performed.", "The examination was interpreted with computer assistance.",
    "Family history includes a maternal aunt with ovarian cancer.", "Hormone replacement was started recently.",
    "Surgical clips mark a previous excision.", "Image quality is limited by motion.",
)
AGES = ("forty", "fifty", "sixty", "seventy")
FOUND = ("mass", "calcification", "density", "nodule", "asymmetry", "opacity", "lesion", "cluster")
SEEN = ("seen", "noted", "present", "visible", "identified", "demonstrated")
# A finding is benign or suspicious. How it looks tells which, but not always (`MIXED`); the rest of the sentence may.
LOOKS = {
    "benign": ("benign", "stable", "smooth", "round", "oval", "circumscribed", "coarse", "lucent", "calcified", "tiny"),
    "suspicious": ("suspicious", "spiculated", "irregular", "pleomorphic", "clustered", "indistinct", "branching",
                   "enlarging", "stellate", "linear"),
}
CLOSES = {
    "benign": ("consistent with a simple cyst", "typical of a fibroadenoma", "of vascular origin", "without concern",
               "unchanged since the previous year", "and routine screening is advised"),
    "suspicious": ("with architectural distortion", "concerning for malignancy", "and biopsy is recommended",
                   "with retraction of the skin", "larger than in the previous year", "and ultrasound is advised"),
}
MIXED = 0.1  # of the words for the look that are those of the other kind


@dataclass(frozen=True)
class Records:
    """Texts with their class: `texts` N strings, `y` (N,) int64, `classes` the names of the labels."""

    texts: list[str]
    y: Tensor
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return len(self.texts)


def records(split: str = "test", n: int | None = None, seed: int = 0) -> Records:
    """`n` reports of a split (all 1000, 200 or 500), half of them positive; `seed` chooses which.

    Each has two to four sentences about the examination, and one to three about what is seen. In a negative report all
    of these are benign; in a positive one exactly one is suspicious, at a random place. What it says of the look is
    sometimes what is said of the other kind, so that no reader can be right about all of them.
    """
    check_split(split)
    n = COUNTS[split] if n is None else n
    if not isinstance(n, int) or not 1 <= n <= COUNTS[split]:
        raise ValueError(f"n={n}, but records/{split} has {COUNTS[split]} texts: ask for 1 to {COUNTS[split]}")
    random = np.random.default_rng(SEEDS[split])
    texts = [_record(random, positive=i % 2 == 1) for i in range(COUNTS[split])]
    order = np.arange(COUNTS[split])
    if n < COUNTS[split]:
        pairs = np.random.default_rng(seed).permutation(COUNTS[split] // 2)
        order = np.stack([2 * pairs, 2 * pairs + 1], 1).flatten()[:n]
    return Records([texts[i] for i in order], torch.from_numpy(order % 2))


def _record(random: np.random.Generator, positive: bool) -> str:
    frames = random.choice(FRAMES, random.integers(2, 5), replace=False)
    seen = int(random.integers(1, 4))
    bad = int(random.integers(seen)) if positive else -1
    sentences = [frame.format(density=random.choice(DENSITY), age=random.choice(AGES)) for frame in frames]
    sentences += [_finding(random, "suspicious" if i == bad else "benign") for i in range(seen)]
    return " ".join(sentences)


def _finding(random: np.random.Generator, kind: str) -> str:
    other = "benign" if kind == "suspicious" else "suspicious"
    looks = [random.choice(LOOKS[other if random.random() < MIXED else kind]) for _ in range(random.integers(1, 3))]
    place = f"in the {random.choice(PLACES)} of the {random.choice(SIDES)} breast"
    close = f", {random.choice(CLOSES[kind])}" if random.random() < 0.5 else ""
    return f"One {' and '.join(dict.fromkeys(looks))} {random.choice(FOUND)} is {random.choice(SEEN)} {place}{close}."
