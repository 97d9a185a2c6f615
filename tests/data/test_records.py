"""The made reports: what is promised of them holds, so that what is measured on them can be judged."""
import re

import pytest
import torch

from kit.data import records
from kit.data.records import CLOSES, COUNTS, LOOKS


def test_splits_are_balanced_repeat_and_do_not_meet():
    train, test = records("train"), records("test")
    assert (len(train), len(test)) == (COUNTS["train"], COUNTS["test"])
    assert float(train.y.float().mean()) == 0.5
    assert records("test").texts == test.texts
    assert len(set(train.texts)) > 0.99 * len(train)
    assert not set(train.texts) & set(test.texts)
    few, more = records("test", n=10, seed=1), records("test", n=30, seed=1)
    assert more.texts[:10] == few.texts
    assert few.y.tolist() == [0, 1] * 5
    assert records("test", n=10, seed=2).texts != few.texts


def test_only_a_positive_report_concludes_so():
    """A suspicious end of a finding stands in positive reports alone, and at most once."""
    data = records("train")
    bad = torch.tensor([sum(close in text for close in CLOSES["suspicious"]) for text in data.texts])
    assert bool((bad[data.y == 0] == 0).all())
    assert bool((bad[data.y == 1] <= 1).all())
    assert 0.4 < float((bad[data.y == 1] == 1).float().mean()) < 0.6
    looks = torch.tensor([any(re.search(rf"\b{look}\b", text) for look in LOOKS["suspicious"]) for text in data.texts])
    assert 0.8 < float(looks[data.y == 1].float().mean()) < 1
    assert 0 < float(looks[data.y == 0].float().mean()) < 0.5


def test_mistakes():
    for n in (501, 0, 2.5):
        with pytest.raises(ValueError, match="ask for 1 to 500"):
            records("test", n=n)
    with pytest.raises(ValueError, match="split"):
        records("val")
