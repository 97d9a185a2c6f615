"""The list of what the seeds report, records and verdicts that name it, and the scoreboard made from both."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from kit.report import Estimate, numbers, printed, record, record_table, records, verdict, verdicts
from kit.report import seeds as listed
from kit.report.numbers import MIME, VERDICT, VERDICTS
from kit.report.scoreboard import missing, others, page

OVERALL = "thesis-dv-overall/Deep Validation/CIFAR-10 (DenseNet)"
AHEAD = "thesis-ata-undefended/ahead-of-tap"
LOWER = {
    "reason": "ATA is behind.",
    "of": "accuracy under TAP minus under ATA",
    "value": Estimate(-0.065, -0.074, -0.056, 9),
    "unit": "points",
}


@pytest.fixture
def shown(monkeypatch):
    """As if in a notebook under the full profile on a GPU: what is displayed."""
    import IPython.display

    class Shell:
        user_ns = {"profile": "full", "device": "cuda"}
        kernel = None

    seen = []
    monkeypatch.setattr(numbers, "_shell", lambda: Shell)
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: seen.append(bundle))
    return seen


def chapter(path: Path, *bundles: dict) -> Path:
    """A notebook that holds these displays."""
    outputs = [{"output_type": "display_data", "data": data, "metadata": {}} for data in bundles]
    cells = [
        {"cell_type": "markdown", "source": "# A chapter"},
        {"cell_type": "code", "source": "", "outputs": outputs},
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
    return path


def test_the_list_is_complete_and_consistent():
    entries = listed.seeds()
    places = [(place, f) for s in entries.values() for place, f in s.figures.items()]
    printed = [f for place, f in places if len(place) == 2 and not math.isnan(f.value)]
    assert len(entries) == 31
    assert len(printed) == 504
    assert len(listed.claims()) == 50
    assert len({c.id for c in listed.claims()}) == 50
    for s in entries.values():
        assert set(s.figures) >= {(row, column) for row in s.rows for column in s.columns}
        assert all(f.better in (None, "higher", "lower") and f.unit in ("", "%") for f in s.figures.values())
        assert all(0 <= f.paper <= 1 for f in s.figures.values() if f.unit == "%")
        assert all("/" not in name for name in (s.id, *s.rows, *s.columns))
        assert all(c.text.endswith(".") and c.chapter.count("/") == 1 for c in s.claims)


def test_a_table_of_the_list_is_shown_as_printed():
    found = printed("thesis-dv-overall")
    assert found.values.shape == (3, 3)
    assert found.figure("Feature Squeezing", "SVHN (seven-layer CNN)").value == 0.687
    assert found.figure("corner cases misclassified").paper == pytest.approx(0.658)
    assert found.table().rows[1] == ["Feature Squeezing", "0.9784", "0.8796", "0.6870"]
    turned = found.table("The thesis", transposed=True)
    assert (turned.caption, turned.columns[2]) == ("The thesis", "Feature Squeezing")
    assert turned.rows[2] == ["SVHN (seven-layer CNN)", "0.9506", "0.6870", "0.2543"]
    assert np.isnan(printed("thesis-dv-adversarial").figure("success rate", "overall").value)
    assert printed("thesis-dv-adversarial").table().rows[0][-1] == ""
    assert printed("adv2-effectiveness").figure("ADV² confidence", "ResNet GRAD").unit == ""
    assert printed("adv2-effectiveness").figure("ADV² success", "ResNet MASK").paper == pytest.approx(0.98)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: record("a", 0.5, id=OVERALL.replace("DenseNet", "Net")), "did you mean 'thesis-dv-overall/Deep V"),
        (lambda: record_table("thesis-dv-overal", {("a", "b"): 1}, on="x"), "did you mean 'thesis-dv-overall'"),
        (lambda: record_table("thesis-ata-tap", {("TAP", "Res-v3"): 1}, on="x"), "did you mean 'thesis-ata-tap/TAP/R"),
        (lambda: verdict("thesis-ata-undefended/ahead-of-tab", "holds", **LOWER), f"did you mean '{AHEAD}'"),
        (lambda: printed("qqq"), "kit/report/seeds.toml lists them"),
    ],
)
def test_a_wrong_id_names_near_matches_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=f"^the seeds have no .*{words}") as found:
        call()
    assert "\n" not in str(found.value)


def test_a_record_takes_what_its_id_says(shown):
    record("cifar10 / joint", Estimate(0.957, 0.953, 0.962, 4000), id=OVERALL)
    (bundle,) = shown
    assert bundle["text/plain"] == "cifar10 / joint: 0.957 [0.953, 0.962] (paper 0.981)"
    assert json.loads(json.dumps(bundle[MIME])) == {
        "name": "cifar10 / joint", "value": 0.957, "unit": "", "interval": [0.953, 0.962], "n": 4000, "paper": 0.9805,
        "id": OVERALL, "profile": "full", "device": "cuda", "better": "higher",
        "source": "Wu, PhD defence 2021, Deep Validation: overall ROC-AUC on successful corner cases",
    }  # fmt: skip
    record("given", 0.9, id=OVERALL, profile="quick", device="cpu")
    assert (shown[1][MIME]["profile"], shown[1][MIME]["device"]) == ("quick", "cpu")
    record("percent", 0.5, id="thesis-ata-tap/TAP/Res-v2")
    assert shown[2]["text/plain"] == "percent: 50.0 % (paper 58.4 %)"


@pytest.mark.parametrize(
    ("given", "words"),
    [({"paper": 0.9}, "paper already"), ({"better": "higher"}, "better already"), ({"unit": "%"}, "has the unit ''"),
     ({"profile": "fast"}, "'quick' or 'full'")],
)  # fmt: skip
def test_a_record_with_an_id_refuses_what_contradicts_it(given, words):
    with pytest.raises(ValueError, match=words):
        record("name", 0.5, id=OVERALL, **given)


def test_a_table_is_recorded_by_one_call(shown, tmp_path):
    values = {("TAP", "Res-v2"): (0.5, 0.4, 0.6), ("TAP+ATA", "Ensemble"): Estimate(0.25, 0.2, 0.3, 7)}
    record_table("thesis-ata-tap", values, on="scenes", n=48, profile="quick")
    (bundle,) = shown
    assert bundle["text/plain"] == "thesis-ata-tap: 2 of 10 figures recorded, measured on scenes"
    found = records(chapter(tmp_path / "a.ipynb", bundle))
    assert [(e["name"], e["id"], e["value"], e["interval"], e["n"]) for e in found] == [
        ("scenes / TAP, Res-v2", "thesis-ata-tap/TAP/Res-v2", 0.5, [0.4, 0.6], 48),
        ("scenes / TAP+ATA, Ensemble", "thesis-ata-tap/TAP+ATA/Ensemble", 0.25, [0.2, 0.3], 7),
    ]
    assert [e["paper"] for e in found] == pytest.approx([0.584, 0.481])
    with pytest.raises(ValueError, match="no values"):
        record_table("thesis-ata-tap", {}, on="scenes")
    with pytest.raises(ValueError, match="fractions"):
        record_table("thesis-ata-tap", {("TAP", "Res-v2"): 50.0}, on="scenes")


def test_a_verdict_is_shown_and_kept(shown, tmp_path):
    verdict(AHEAD, "does not hold here", **LOWER)
    (bundle,) = shown
    number = "(accuracy under TAP minus under ATA: -6.5 points [-7.4, -5.6], n = 9)"
    text = "ATA is ahead of TAP on most pairs."
    assert bundle["text/plain"] == f"{text} Does not hold here: ATA is behind. {number}"
    assert bundle["text/markdown"] == f"**Claim.** {text} **Does not hold here**: ATA is behind. {number}"
    assert verdicts(chapter(tmp_path / "a.ipynb", bundle)) == [
        {"claim": AHEAD, "verdict": "does not hold here", "reason": "ATA is behind.", "of": LOWER["of"],
         "value": -0.065, "unit": "points", "interval": [-0.074, -0.056], "n": 9}]  # fmt: skip
    verdict(AHEAD, "not yet tried", reason="It needs a GPU.")
    assert shown[1][VERDICT] == {"claim": AHEAD, "verdict": "not yet tried", "reason": "It needs a GPU."}


@pytest.mark.parametrize(
    ("says", "given", "words"),
    [
        ("true", LOWER, "a verdict is one of 'holds', 'in part'"),
        ("holds", LOWER | {"reason": " "}, "no reason"),
        ("holds", LOWER | {"of": None}, "rests on a number"),
        ("holds", {"reason": "It does."}, "rests on a number"),
        ("in part", LOWER | {"value": 0.5}, "no interval"),
        ("in part", LOWER | {"value": 0.5, "interval": (0.6, 0.4)}, "lo <= hi"),
        ("in part", LOWER | {"value": [0.5, 0.6]}, "value, lo, hi"),
    ],
)
def test_a_verdict_needs_a_reason_a_number_and_an_interval(says, given, words):
    with pytest.raises(ValueError, match=words):
        verdict(AHEAD, says, **given)


def test_the_scoreboard_has_every_claim_and_every_figure(shown, tmp_path):
    verdict(AHEAD, "does not hold here", **LOWER)
    record("scenes / TAP", Estimate(0.44, 0.4, 0.5, 48), id="thesis-ata-tap/TAP/Res-v2", profile="quick", device="cpu")
    record("scenes, full profile / TAP", 0.4, id="thesis-ata-tap/TAP/Res-v2")
    record("cifar10 / TAP", 0.3, id="thesis-ata-tap/TAP/Res-v2")
    record("another number", 2.0)
    path = chapter(tmp_path / "notebooks" / "attacks" / "transfer.ipynb", *shown)
    text = page([path], tmp_path / "book")
    link = "[A chapter](../notebooks/attacks/transfer.ipynb)"
    assert "- ✗ ATA is ahead of TAP on most pairs.\\\n  **Does not hold here**: ATA is behind." in text
    assert f"-6.5 points [-7.4, -5.6], n = 9) → {link}" in text
    assert "holds: 0 · ◐ in part: 0 · ✗ does not hold here: 1 · ○ not yet tried: 49" in text
    assert (
        "| TAP · Res-v2 | 58.4 % | 44.0 % [40.0, 50.0], n = 48 |"
        " 40.0 % (scenes)<br>30.0 % (cifar10) |"
    ) in text
    assert f"Quick: scenes, on cpu ({link})." in text
    assert "(1 of 10 measured)" in text
    for claim in listed.claims():
        assert claim.text.replace("_", "\\_").replace("*", "\\*") in text
    assert "| bit depth 2 · MASK-A\\* | 11.7 % |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| figure")]
    assert len(rows) == 504 + 1
    assert "another number" not in text
    assert "| another number | 2 |" in others([path], tmp_path / "book")
    assert "TAP" not in others([path], tmp_path / "book")


def test_what_a_chapter_owes_is_found(shown, tmp_path):
    verdict(AHEAD, "does not hold here", **LOWER)
    verdict("thesis-ata-undefended/ahead-of-bim", "holds", **LOWER)
    record("TAP", 0.4, id="thesis-ata-tap/TAP/Res-v2")
    path = tmp_path / "transfer.ipynb"
    owed = missing({"attacks/transfer": chapter(path, *shown)})
    assert owed == ["attacks/transfer gives no verdict on thesis-ata-tap/adds-to-tap: "
                    "Adding ATA's term to TAP lowers the accuracy of every victim."]  # fmt: skip
    verdict("thesis-ata-tap/adds-to-tap", "in part", **LOWER)
    assert missing({"attacks/transfer": chapter(path, *shown)}) == []
    assert missing({"explain/lrp": chapter(tmp_path / "lrp.ipynb")}) == []
    damage = {
        "no interval": (3, VERDICT, lambda entry: entry.pop("interval")),
        "no reason": (3, VERDICT, lambda entry: entry.update(reason="")),
        "is 'sure'": (3, VERDICT, lambda entry: entry.update(verdict="sure")),
        "the seeds have no claim": (3, VERDICT, lambda entry: entry.update(claim="thesis-ata-tap/adds")),
        "the seeds have no figure": (2, MIME, lambda entry: entry.update(id="thesis-ata-tap/TAP/Res")),
    }
    for words, (at, mime, harm) in damage.items():
        bundles = json.loads(json.dumps(shown))
        harm(bundles[at][mime])
        assert any(words in found for found in missing({"attacks/transfer": chapter(path, *bundles)})), words
    assert VERDICTS[-1] == "not yet tried"
