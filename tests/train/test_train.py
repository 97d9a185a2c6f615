"""Training by name: it repeats, goes on after a stop, and leaves the caller as it was."""
import json
import shutil
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kit.data
import kit.models
import kit.train
from kit.core import logits
from kit.models import CATALOGUE, Recipe, training
from kit.models.registry import GREY_28, Network
from kit.train import Checkpoint, checkpoints

CPU = torch.device("cpu")
TOY = Recipe("none", "mlp", {"channels": 1, "size": 4, "classes": 2, "width": 8}, epochs=4, batch=8, lr=1e-2)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No networks of the user's own."""
    monkeypatch.setenv("KIT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def toy(n=40):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 4, 4, generator=g), torch.randint(2, (n,), generator=g)


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- recipes --------------------------------------------------------------------------------------------------------


def test_every_network_of_the_catalogue_has_a_recipe_made_of_functions():
    assert kit.train.RECIPES.keys() == CATALOGUE.keys()
    for name, r in kit.train.RECIPES.items():
        assert (r.family, r.build) == (CATALOGUE[name].family, CATALOGUE[name].build)
        assert r.train is None or callable(r.train)
        assert r.measure is None or callable(r.measure)
        for dotted in (r.as_dict()["train"], r.as_dict().get("measure")):  # what the manifest says is where it stands
            module, _, function = (dotted or "fit").rpartition(".")
            assert not module or callable(getattr(sys.modules[module], function))


def test_recipes_are_those_that_the_shipped_networks_were_made_by():
    shipped = [name for name in kit.models.names() if kit.models.entry(name)]
    assert len(shipped) == 95
    for name in shipped:
        assert kit.models.entry(name)["recipe"] == json.loads(json.dumps(kit.train.RECIPES[name].as_dict())), name


def test_what_stood_in_models_is_found_there():
    assert kit.models.RECIPES is kit.train.RECIPES
    assert kit.models.train is kit.train.train
    assert kit.models.fit is kit.train.fit
    with pytest.raises(AttributeError, match="no attribute 'recipes'"):
        kit.models.recipes  # noqa: B018


@pytest.mark.parametrize(("numbers", "message"), [
    ({"epochs": 0}, "epochs=0: at least 1"), ({"batch": 0}, "batch=0"), ({"images": 0}, "images=0"),
    ({"shift": -1}, "shift=-1"), ({"lr": 0.0}, "lr must be positive"), ({"lr": float("nan")}, "lr must be positive"),
    ({"weight_decay": -1.0}, "weight_decay 0 or more"),
])
def test_numbers_that_no_training_can_have(numbers, message):
    with pytest.raises(ValueError, match=message):
        Recipe("digits", "mlp", **numbers)


def test_a_training_that_cannot_be(home):
    x, y = toy()
    with pytest.raises(ValueError, match="40 images and 39 labels"):
        kit.train.fit(TOY, x, y[1:], device=CPU)
    with pytest.raises(ValueError, match=r"loss is nan at step 1, in epoch 1: lower the recipe's lr"):
        kit.train.fit(TOY, x, y, device=CPU, loss=lambda model, *_: model(x).sum() * torch.nan)
    with pytest.raises(ValueError, match="no recipe for 'digits/cnn8'"):
        kit.train.train("digits/cnn8")


# --- going on -------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop(after):
    def progress(step, steps, loss):
        if step == after:
            raise Stopped
    return progress


@pytest.mark.parametrize("how", [{}, {"momentum": 0.9, "cutout": 2}, {"half": True}])
def test_a_training_that_was_stopped_ends_in_the_same_weights(tmp_path, how):
    x, y = toy()
    steps = []

    def noisy(model, xb, yb, generator):  # draws from the generator and from the ambient state
        return training.cross_entropy(model, (xb + 0.1 * torch.rand(xb.shape, generator=generator)
                                              + 0.1 * torch.rand(xb.shape)).clamp(0, 1), yb, generator)

    how = {"device": CPU, "loss": noisy, "before": lambda step, n: steps.append(step), **how}
    whole = kit.train.fit(TOY, x, y, **how)
    assert steps == list(range(20))
    kept = Checkpoint(tmp_path, "toy", {"seed": 0})
    with pytest.raises(Stopped):
        kit.train.fit(TOY, x, y, **how, checkpoint=kept, progress=stop(13))
    steps.clear()
    torch.manual_seed(99)
    assert same(kit.train.fit(TOY, x, y, **how, checkpoint=kept), whole)
    assert steps == list(range(10, 20))  # from the last whole epoch
    kept.delete()
    assert same(kit.train.fit(TOY, x, y, **how, checkpoint=kept), whole)


def test_train_goes_on_by_itself_and_only_with_the_same_training(home):
    how = {"device": "cpu", "epochs": 2, "n": 128}
    whole, _ = kit.train.train("digits/mlp", **how)
    assert not list(home.rglob("*.checkpoint"))
    with pytest.raises(Stopped):
        kit.train.train("digits/mlp", **how, progress=stop(3))
    assert len(list(home.rglob("*.checkpoint"))) == 1
    seen = []
    watch = lambda step, steps, loss: seen.append(step)  # noqa: E731
    kit.train.train("digits/mlp", **how | {"n": 126}, progress=watch)  # another training
    assert seen[0] == 1
    kit.train.train("digits/mlp", **how, resume=False, progress=watch)
    seen.clear()
    again, _ = kit.train.train("digits/mlp", **how, progress=watch)
    assert seen == [3, 4]
    assert same(again, whole)
    assert not list(home.rglob("*.checkpoint"))


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    kept = Checkpoint(tmp_path / "new", "a/b", {"seed": 0, "x": torch.zeros(3)})
    assert kept.load() is None
    kept.save({"epoch": 1, "weights": torch.ones(2)})
    assert torch.equal(kept.load()["weights"], torch.ones(2))
    monkeypatch.setattr(checkpoints.torch, "save", lambda state, file: file.write(b"x") and None)
    monkeypatch.setattr("pathlib.Path.replace", lambda self, other: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        kept.save({"epoch": 2})
    monkeypatch.undo()
    assert [p.name for p in kept.path.parent.iterdir()] == [kept.path.name]
    assert kept.load()["epoch"] == 1
    for seed, x in ((1, torch.zeros(3)), (0, torch.ones(3)), (0, torch.zeros(3, 1))):
        assert Checkpoint(tmp_path / "new", "a/b", {"seed": seed, "x": x}).load() is None
    kept.path.write_bytes(kept.path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is damaged: delete it"):
        kept.load()


# --- training by name -----------------------------------------------------------------------------------------------


def test_training_repeats_and_keeps_the_ambient_state(home):
    torch.manual_seed(7)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    seen = []
    watch = lambda step, steps, loss: seen.append((step, steps))  # noqa: E731
    model, entry = kit.models.train("digits/mlp", device="cpu", epochs=3, n=300, progress=watch)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpys  # noqa: NPY002
    again, other = kit.models.train("digits/mlp", device="cpu", epochs=3, n=300)
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert entry["accuracy"] == other["accuracy"] > 0.5
    assert entry["recipe"]["epochs"] == 3
    assert entry["images"] == 300
    assert seen[-1] == (12, 12)
    seeded, _ = kit.models.train("digits/mlp", device="cpu", epochs=3, n=300, seed=1)
    assert not torch.equal(next(seeded.parameters()), next(model.parameters()))

    # What the user trained is loaded in place of what is shipped, until it is deleted.
    path = kit.models.save(model, entry)
    assert path.parent == home
    x = kit.data.load("digits", n=20).x
    torch.testing.assert_close(logits(kit.models.load("digits/mlp"), x), logits(model, x))
    assert next(r for r in kit.models.listing() if r.name == "digits/mlp").status == "trained here"
    shutil.rmtree(home)
    assert (logits(kit.models.load("digits/mlp"), x) - logits(model, x)).abs().max() > 0.1
    with pytest.raises(ValueError, match="at least 1"):
        kit.models.train("digits/mlp", epochs=0)


@pytest.mark.parametrize("name", ["digits/mlp", "digits/cnn7"])
def test_the_recipe_reaches_the_shipped_accuracy(name):
    """By its whole recipe, from the first step; the second takes half a minute. One test image is 0.25 points."""
    _, entry = kit.models.train(name, device="cpu")
    assert entry["accuracy"] == pytest.approx(kit.models.entry(name)["accuracy"], abs=0.0125)


def test_momentum_cutout_and_half_precision(home, monkeypatch):
    options = {"momentum": 0.9, "cutout": 8, "half": True}
    quick = Recipe("digits", "densenet", GREY_28 | {"width": 4, "depth": 2}, images=640, epochs=5,
                            batch=32, lr=0.05, weight_decay=5e-4, options=options)
    monkeypatch.setitem(kit.train.RECIPES, "digits/quick", quick)
    monkeypatch.setitem(CATALOGUE, "digits/quick", Network(quick.family, quick.build))
    model, entry = kit.models.train("digits/quick", device="cpu")
    assert entry["accuracy"] > 0.5  # a tenth is chance
    assert entry["recipe"]["options"] == options
    path = kit.models.save(model, entry)
    stored = load_file(path)
    assert {v.dtype for v in stored.values()} == {torch.float16}  # and nothing is lost by it
    again = kit.models.load("digits/quick")
    for name, v in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], v), name
    plain, _ = kit.models.train("digits/mlp", device="cpu", epochs=1, n=100)
    kit.models.save(plain, entry | {"name": "digits/mlp"})
    assert {v.dtype for v in load_file(home / "digits-mlp.safetensors").values()} == {torch.float32}


def test_each_option_of_the_training_changes_it():
    plain = Recipe("digits", "mlp", GREY_28, epochs=1, batch=32, lr=0.01)
    d = kit.data.load("digits", "train", n=64)
    every = ({}, {"momentum": 0.9}, {"momentum": 0.5}, {"cutout": 8}, {"half": True})
    weights = [next(training.fit(plain, d.x, d.y, device=torch.device("cpu"), **o).parameters()) for o in every]
    for a, b in permutations(weights, 2):
        assert not torch.equal(a, b)


def test_cutout_blanks_one_square_within_each_image():
    x = torch.rand(50, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    out = training.blank(x, 5, torch.Generator().manual_seed(0))
    changed = (out != x).any(1)
    assert changed.flatten(1).sum(1).tolist() == [25] * 50
    assert (out[changed[:, None].expand_as(x)] == 0.5).all()
    assert changed.any(0).float().mean() > 0.9  # wherever it may lie
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert rows.tolist() == columns.tolist() == [5] * 50
    assert training.blank(x, 0, torch.Generator()) is x


def test_a_recipe_with_its_own_training(monkeypatch):
    """How `kit.defend` adds networks: a Recipe whose `train` is its own."""
    calls = []

    def tiny(recipe, x, y, *, device, seed, progress):
        calls.append((recipe.data, len(x), seed))
        return kit.models.FAMILIES[recipe.family](**recipe.build).to(device)

    monkeypatch.setitem(kit.train.RECIPES, "digits/own", Recipe("digits", "mlp", GREY_28, train=tiny))
    with pytest.raises(ValueError, match="no network 'digits/own'"):
        kit.models.load("digits/own")
    model, entry = kit.models.train("digits/own", device="cpu", n=50, seed=3)
    assert calls == [("digits", 50, 3)]
    kit.models.save(model, entry)
    x = kit.data.load("digits", n=5).x
    torch.testing.assert_close(logits(kit.models.load("digits/own"), x), logits(model, x))  # by the manifest alone
    assert entry["recipe"]["train"].endswith("tiny")
