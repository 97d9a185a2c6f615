import json

import pytest

from kit.report import Measured


def test_the_full_profile_writes_and_the_quick_one_reads(tmp_path):
    path = tmp_path / "chapter_measured.json"
    quick = Measured(path, write=False)
    quick.keep("mnist", auc=0.5)
    assert not quick
    assert not path.exists()
    full = Measured(path, write=True)
    full.keep("mnist", auc=0.9, kinds={"Drehung": [1, 2]}, note="ε")
    full.keep("mnist", auc=0.99)
    full.keep("cifar10", n=3)
    assert list(tmp_path.iterdir()) == [path]
    assert "ε" in path.read_text(encoding="utf-8")
    again = Measured(path, write=False)
    assert again == {"mnist": {"auc": 0.99, "kinds": {"Drehung": [1, 2]}, "note": "ε"}, "cifar10": {"n": 3}}
    again.keep("cifar10", n=4)
    assert json.loads(path.read_text(encoding="utf-8"))["cifar10"] == {"n": 3}


def test_how_it_was_made_is_kept_with_every_group(tmp_path):
    path = tmp_path / "chapter_measured.json"
    measured = Measured(path, write=True, seed=3, device="cpu")
    measured.keep("mnist", auc=0.9)
    measured.keep("cifar10", auc=0.8, device="cuda")
    assert Measured(path, write=False) == {
        "mnist": {"seed": 3, "device": "cpu", "auc": 0.9}, "cifar10": {"seed": 3, "device": "cuda", "auc": 0.8}}


def test_what_is_not_finite_is_kept_as_none_and_the_file_is_json_for_any_reader(tmp_path):
    path = tmp_path / "chapter_measured.json"
    measured = Measured(path, write=True)
    measured.keep("mnist", first=[3.0, float("inf")], deeper={"b": (float("nan"), 1)}, one=-float("inf"))

    def refuse(word):
        raise AssertionError(word)

    kept = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert kept == measured == {"mnist": {"first": [3.0, None], "deeper": {"b": [None, 1]}, "one": None}}


def test_a_group_gives_way_to_a_larger_one_and_not_to_a_smaller_one(tmp_path):
    path = tmp_path / "chapter_measured.json"
    Measured(path, write=True).keep("mnist", images=200, steps=40, auc=0.9, wrong=3)
    assert not Measured(path, write=False).lacks("mnist", images=500)
    measured = Measured(path, write=True)
    assert not measured.lacks("mnist", images=200, steps=40)
    assert not measured.lacks("mnist", images=100)
    assert measured.lacks("mnist", "clean", images=100)
    assert measured.lacks("mnist", images=200, votes=10)  # it does not say how many
    again = Measured(path, write=True)
    assert again.lacks("mnist", images=200, steps=80)
    assert again["mnist"]["auc"] == 0.9  # until there is another
    again.keep("mnist", images=200, steps=80, auc=0.8)
    assert json.loads(path.read_text())["mnist"] == {"images": 200, "steps": 80, "auc": 0.8}  # not the other's `wrong`
    assert not again.lacks("mnist", images=200, steps=80)


@pytest.mark.parametrize("content", ["{", "[1]", '{"recipe": "kit run"}'])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "chapter_measured.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="chapter_measured.json .*run the full profile"):
        Measured(path, write=False)
    assert path.read_text() == content


def test_what_is_complete_is_kept_and_what_is_not_goes_on(tmp_path):
    path = tmp_path / "chapter_measured.json"
    calls = []

    def run(stop=None, write=True, **about):
        measured = Measured(path, write=write, **about)
        if measured.lacks("whole", "images"):
            calls.append("whole")
            measured.keep("whole", auc=0.5)
            if stop == "whole":
                return
            measured.keep("whole", images=3)
        for cell in measured.missing("cells", "ways", ["a", "b"]):
            if stop == cell:
                return
            calls.append(cell)
            measured.add("cells", "ways", cell, len(calls), images=2)

    run(write=False, seed=0)
    assert calls == []
    assert not path.exists()
    run("whole", seed=0)
    run("b", seed=0)
    assert calls == ["whole", "whole", "a"]
    run(seed=0)
    assert calls[3:] == ["b"]
    complete = path.read_bytes()
    run(seed=0)
    assert calls[4:] == []
    assert path.read_bytes() == complete
    assert Measured(path, write=False)["cells"] == {"seed": 0, "images": 2, "ways": {"a": 3, "b": 4}}
    run("b", seed=1)  # another seed measures anew, and nothing of the first is left among its cells
    assert calls[4:] == ["whole", "a"]
    assert Measured(path, write=False)["cells"] == {"seed": 1, "images": 2, "ways": {"a": 6}}


def test_cells_of_two_sizes_are_never_mixed(tmp_path):
    path, ways = tmp_path / "m.json", ["a", "b"]
    measured = Measured(path, write=True)
    for way in measured.missing("set", "ways", ways, images=20, device="cuda"):
        measured.add("set", "ways", way, 1, images=20, device="cuda")
    assert Measured(path, write=True).missing("set", "ways", ways, images=10) == []  # whole, and larger
    assert Measured(path, write=True).missing("set", "ways", [*ways, "c"], images=10) == [*ways, "c"]
    assert Measured(path, write=False).missing("set", "ways", ways, images=500) == []
    larger = Measured(path, write=True)
    assert larger.missing("set", "ways", [*ways, "c"], images=20, device="cpu") == ["c"]  # a device is no size
    assert larger.missing("set", "ways", ways, images=500) == ways
    assert json.loads(path.read_text())["set"]["ways"] == {"a": 1, "b": 1}  # nothing is lost before the first is there
    larger.add("set", "ways", "a", 2, images=500)
    assert larger["set"] == {"images": 500, "ways": {"a": 2}}
    assert larger.missing("set", "ways", [*ways, "c"], images=500) == ["b", "c"]
    larger.fill("set", "ways", lambda v: v, {"a": (3,), "d": (3,)}, images=30)
    assert larger["set"] == {"images": 30, "ways": {"a": 3, "d": 3}}


def test_two_runs_of_a_chapter_lose_nothing(tmp_path):
    path = tmp_path / "m.json"
    Measured(path, write=True).keep("old", n=1)
    one, two = Measured(path, write=True), Measured(path, write=True)
    one.keep("a", n=1)
    two.keep("b", n=2)
    one.add("grid", "cells", "x", 1)
    two.add("grid", "cells", "y", 2)
    one.keep("old", n=3)
    two.keep("b", n=4)
    assert json.loads(path.read_text()) == {
        "old": {"n": 3}, "a": {"n": 1}, "b": {"n": 4}, "grid": {"cells": {"x": 1, "y": 2}}}
    assert list(tmp_path.iterdir()) == [path]


def test_a_group_says_itself_that_it_is_not_finished(tmp_path):
    measured = Measured(tmp_path / "chapter_measured.json", write=True)
    measured.keep("game", outcomes=1, finished=False)
    assert measured.lacks("game", "outcomes")
    measured.keep("game", finished=True)
    assert not measured.lacks("game", "outcomes")
    assert measured.lacks("game", "masking")


def test_force_measures_all_anew_and_deleting_the_file_too(tmp_path, monkeypatch):
    path = tmp_path / "chapter_measured.json"
    Measured(path, write=True).keep("mnist", auc=0.5)
    assert not Measured(path, write=True).lacks("mnist")
    monkeypatch.setenv("KIT_MEASURE_ANEW", "1")
    assert Measured(path, write=False) == {"mnist": {"auc": 0.5}}
    forced = Measured(path, write=True)
    assert forced.lacks("mnist")
    forced.keep("svhn", auc=0.6)  # and killed here: what was kept is there still
    assert json.loads(path.read_text())["mnist"] == {"auc": 0.5}
    forced.keep("mnist", area=0.7)
    assert forced["mnist"] == {"area": 0.7}
    assert not forced.lacks("mnist")
    monkeypatch.delenv("KIT_MEASURE_ANEW")
    path.unlink()
    assert Measured(path, write=True).lacks("mnist")
