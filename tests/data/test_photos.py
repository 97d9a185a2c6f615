import pytest
import torch

import kit.data
from kit.data import MissingData, load, photos
from kit.data.imagenet import classes

SHOWS = {"cat": "tiger cat", "coffee": "espresso", "camera": "tripod", "rocket": "missile", "motorcycle": "moped",
         "palace": "palace", "flower": "daisy"}  # fmt: skip


def test_photos_come_with_their_imagenet_classes():
    d = load("photos")
    assert d.x.shape == (7, 3, 224, 224)
    assert 0 <= d.x.min() <= d.x.max() <= 1
    assert len({t.numpy().tobytes() for t in d.x}) == 7
    assert len(d.classes) == 1000
    names = [d.concept_names["photo"][k] for k in d.concepts["photo"]]
    assert {name: d.classes[k] for name, k in zip(names, d.y, strict=True)} == SHOWS
    assert load("photos", n=3, seed=1).x.shape == (3, 3, 224, 224)
    assert torch.equal(load("photos", n=7, seed=2).x.sum((1, 2, 3)).sort()[0], d.x.sum((1, 2, 3)).sort()[0])
    assert kit.data.available("photos")


def test_photos_at_a_size_and_by_name():
    d = load("photos", which=("coffee", "astronaut"), size=64)
    assert d.x.shape == (2, 3, 64, 64)
    assert d.y.tolist() == [classes().index("espresso"), -1]  # there is no astronaut among the 1000 classes
    cup = d.x[0]
    assert cup[0].mean() > cup[2].mean() + 0.2  # the wood round the cup is brown
    assert len(load("photos", which="cat")) == 1
    every = load("photos", which=tuple(photos.PHOTOS), size=32)
    assert len(every) == len(photos.PHOTOS)
    assert (every.y == -1).sum() == len(photos.PHOTOS) - len(SHOWS)


def test_what_is_no_photograph():
    with pytest.raises(ValueError, match="no photograph 'dog': there are cat, coffee"):
        load("photos", which=["dog"])
    with pytest.raises(ValueError, match="names no photograph"):
        load("photos", which=[])
    with pytest.raises(MissingData, match="no train split"):
        load("photos", "train")
    with pytest.raises(ValueError, match="photos/test has 7 images"):
        load("photos", n=8)


def test_a_package_without_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match="scikit-image is not installed with its picture chelsea.png"):
        load("photos", which="cat")


def test_the_classes_are_those_of_torchvision():
    torchvision = pytest.importorskip("torchvision")
    assert list(load("photos").classes) == torchvision.models.SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"]
