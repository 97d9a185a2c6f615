import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from kit.data import Data, MissingData, available, listing, load, names
from kit.data.sets import choose


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty KIT_DATA, and no way to download."""
    monkeypatch.setenv("KIT_DATA", str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    for kind in ("MNIST", "CIFAR10", "SVHN"):
        monkeypatch.setattr(f"torchvision.datasets.{kind}.download", refuse)
    return tmp_path


def test_data_is_indexed_like_its_tensors():
    d = load("scenes", n=20)
    assert len(d) == 20
    for idx in (slice(3, 7), [1, 5], torch.tensor([4, 2]), d.y == d.y[0], 3, -1, np.array([0, 1])):
        part = d[idx]
        rows = torch.arange(20)[idx].reshape(-1)
        assert torch.equal(part.x, d.x[rows])
        assert torch.equal(part.y, d.y[rows])
        assert torch.equal(part.mask, d.mask[rows])
        assert torch.equal(part.concepts["scale"], d.concepts["scale"][rows])
    assert d[2:4].classes == d.classes
    assert repr(d) == "Data(20 images 3×32×32, 10 classes, mask, 11 concepts)"
    assert d.to("cpu").x.device.type == "cpu"
    with pytest.raises(IndexError):
        d[20]
    with pytest.raises(TypeError, match=r"data\.x and data\.y"):
        x, y = d


def test_choose_is_balanced_nested_and_seeded():
    y = np.array([0] * 50 + [1] * 30 + [2] * 3)
    assert np.bincount(y[choose(y, 30, 0)]).tolist() in ([14, 13, 3], [13, 14, 3])
    assert np.array_equal(choose(y, 10, 0), choose(y, 40, 0)[:10])
    assert not np.array_equal(choose(y, 10, 0), choose(y, 10, 1))
    assert sorted(choose(y, 83, 4)) == list(range(83))
    assert np.array_equal(choose(y, None, 0), np.arange(83))
    for n in (0, 84, -1):
        with pytest.raises(ValueError, match="ask for 1 to 83"):
            choose(y, n, 0)


def test_digits():
    parts = {s: load("digits", s) for s in ("train", "dev", "test")}
    assert {s: len(d) for s, d in parts.items()} == {"train": 1100, "dev": 297, "test": 400}
    seen = [t.numpy().tobytes() for d in parts.values() for t in d.x]
    assert len(set(seen)) == len(seen) == 1797
    for d in parts.values():
        assert d.x.shape[1:] == (1, 28, 28)
        assert 0 <= d.x.min() <= d.x.max() <= 1
        share = d.y.bincount(minlength=10) / len(d)
        assert (share - 0.1).abs().max() < 0.01
    from sklearn.datasets import load_digits

    # The order of the 8×8 ink is kept: the mean image of a class correlates with scikit-learn's own.
    small = torch.nn.functional.adaptive_avg_pool2d(parts["train"].x[:, :, 2:-2, 2:-2], 8)
    raw = load_digits()
    for k in range(10):
        ours = small[parts["train"].y == k].mean(0).flatten()
        theirs = torch.from_numpy(raw.images[raw.target == k]).float().mean(0).flatten() / 16
        assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.97
        assert (ours.mean() - theirs.mean()).abs() < 0.02


def test_n_is_deterministic_and_bounded():
    a, b = load("digits", n=30, seed=1), load("digits", n=30, seed=1)
    assert torch.equal(a.x, b.x)
    assert a.y.bincount().tolist() == [3] * 10
    assert not torch.equal(a.x, load("digits", n=30, seed=2).x)
    with pytest.raises(ValueError, match="digits/test has 400 images"):
        load("digits", n=401)
    with pytest.raises(ValueError, match='"train", "dev" or "test"'):
        load("digits", "valid")
    with pytest.raises(ValueError, match="no data set 'digitz'"):
        load("digitz")
    with pytest.raises(ValueError, match="digits has no option 'size'"):
        load("digits", size=3)


def _npz(path, n=40, shape=(28, 28), **other):
    rng = np.random.default_rng(0)
    arrays = {}
    for half, k in (("train", n), ("test", n // 2)):
        arrays[f"x_{half}"] = rng.integers(0, 256, (k, *shape), dtype=np.uint8)
        arrays[f"y_{half}"] = np.arange(k) % 10
    np.savez_compressed(path, **(arrays | other))
    return arrays | other


def test_npz(home):
    a = _npz(home / "mnist.npz")
    d = load("mnist", "test")
    assert torch.equal((d.x * 255).round().byte()[:, 0], torch.from_numpy(a["x_test"]))
    assert d.y.tolist() == a["y_test"].tolist()
    train, dev = load("mnist", "train"), load("mnist", "dev")  # dev: the last tenth
    assert torch.equal(torch.cat([train.y, dev.y]), torch.from_numpy(a["y_train"]))
    assert len(dev) == 4
    c = _npz(home / "cifar10.npz", shape=(32, 32, 3))
    d = load("cifar10", n=5)
    assert d.x.shape == (5, 3, 32, 32)
    assert d.classes[3] == "cat"
    same = [(d.x[0] * 255).round().byte().permute(1, 2, 0).numpy() == x for x in c["x_test"]]
    assert sum(s.all() for s in same) == 1
    rows = {r.name: r for r in listing()}
    assert rows["mnist"].splits == {"train": 36, "dev": 4, "test": 20}
    assert available("mnist")
    assert not available("svhn")


def test_any_npz_of_the_form_is_a_set(home):
    y = np.repeat(np.arange(3), 30)  # sorted by class: the last tenth would be of one class alone
    a = _npz(home / "skin.npz", 90, (8, 8, 3), y_train=y, y_test=np.arange(45) % 3,
             classes=np.array(["a", "b", "c", "d"]))
    parts = {s: load("skin", s) for s in ("train", "dev", "test")}
    assert {s: len(d) for s, d in parts.items()} == {"train": 81, "dev": 9, "test": 45}
    assert parts["dev"].y.bincount().tolist() == [3, 3, 3]
    assert parts["dev"].classes == ("a", "b", "c", "d")
    pixels = [(d.x * 255).round().byte().permute(0, 2, 3, 1).numpy() for d in parts.values()]
    stored = sorted(x.tobytes() for x in a["x_train"])
    assert sorted(x.tobytes() for x in (*pixels[0], *pixels[1])) == stored  # each image once
    for x, k in zip(pixels[0], parts["train"].y.tolist(), strict=True):
        assert k == y[[np.array_equal(x, other) for other in a["x_train"]]]
    assert load("skin", "train", n=6, seed=3).y.bincount().tolist() == [2, 2, 2]
    row = next(r for r in listing() if r.name == "skin")
    assert row.splits == {"train": 81, "dev": 9, "test": 45}
    assert row.shape == (3, 8, 8)
    assert available("skin")
    _npz(home / "plain.npz")
    assert load("plain").classes == tuple("0123456789")
    assert load("plain").x.shape == (20, 1, 28, 28)


def test_images_that_belong_together_stay_on_one_side(home):
    y, track = np.repeat([0, 1], 60), np.tile(np.repeat(np.arange(20), 3), 2)  # tracks are numbered within a class
    a = _npz(home / "signs.npz", 120, (4, 4), y_train=y, track_train=track)
    group = {x.tobytes(): (k, t) for x, k, t in zip(a["x_train"], y, track, strict=True)}
    sides = {}
    for split in ("train", "dev"):
        d = load("signs", split)
        keys = [group[x.numpy().tobytes()] for x in (d.x[:, 0] * 255).round().byte()]
        assert [k for k, _ in keys] == d.y.tolist()
        sides[split] = keys
    assert len(sides["dev"]) == 12
    assert {k for k, _ in sides["dev"]} == {0, 1}
    assert not set(sides["train"]) & set(sides["dev"])
    assert next(r for r in listing() if r.name == "signs").splits["dev"] == 12
    _npz(home / "signs.npz", 120, (4, 4), y_train=y, track_train=track[:50])
    with pytest.raises(ValueError, match="track_train must hold 120 numbers"):
        load("signs", "dev")
    assert not available("signs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.full(40, 10**9)}, "whole numbers from 0 to 59"),
        ({"y_train": np.full(40, -1)}, "whole numbers from 0"),
        ({"classes": np.array(["a", "b"])}, "whole numbers from 0 to 1"),
        ({"x_test": np.zeros((20, 28, 28))}, "must be uint8"),
    ],
)
def test_other_npz_that_are_no_set(home, change, message):
    _npz(home / "other.npz", **change)
    with pytest.raises(ValueError, match=message):
        load("other", "test")


def test_npz_of_something_else(home):
    np.savez(home / "weights.npz", w=np.zeros(3))
    with pytest.raises(ValueError, match="weights.npz is no set of images"):
        load("weights")
    assert "weights" not in [r.name for r in listing()]
    for name in ("../weights", "", ".", "nothing"):
        with pytest.raises(ValueError, match="no data set"):
            load(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": np.zeros((20, 28, 28), dtype=np.float32)}, "must be uint8"),
        ({"x_test": np.zeros((20, 784), dtype=np.uint8)}, r"must be uint8 \(N, H, W\)"),
        ({"y_test": np.zeros(3, dtype=np.int64)}, "20 images and 3 labels"),
        ({"y_test": np.full(20, 10)}, "from 0 to 9"),
        ({"y_test": np.array([{}] * 20)}, "cannot be read"),  # pickled objects are never loaded
    ],
)
def test_corrupt_npz(home, change, message):
    _npz(home / "mnist.npz", **change)
    with pytest.raises(ValueError, match=message):
        load("mnist", "test")


def test_truncated_npz(home):
    _npz(home / "mnist.npz")
    whole = (home / "mnist.npz").read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 30):
        (home / "mnist.npz").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"mnist\.npz"):
            load("mnist", "test")
        assert not available("mnist")
    middle = bytearray(whole)
    middle[2000:2050] = b"x" * 50
    (home / "mnist.npz").write_bytes(middle)
    with pytest.raises(ValueError, match=r"mnist\.npz"):
        load("mnist", "train")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_missing_says_what_to_put_where(home, name):
    with pytest.raises(MissingData) as caught:
        load(name)
    text = str(caught.value)
    for part in (str(home), f"{name}.npz", "x_train", "KIT_DATA", "no network in this test"):
        assert part in text
    assert isinstance(caught.value, FileNotFoundError)
    assert "\n" not in text


def _mat(path, n=30):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    y = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]  # SVHN writes 10 for the digit 0
    scipy.io.savemat(path, {"X": x, "y": y})
    return x, y


def test_svhn_in_its_real_format(home):
    (home / "svhn").mkdir()
    x, y = _mat(home / "svhn" / "test_32x32.mat")
    d = load("svhn")
    assert d.y.tolist() == [k % 10 for k in y[:, 0].tolist()]
    assert torch.equal((d.x[4] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(x[..., 4]))
    _mat(home / "train_32x32.mat", 50)  # straight under KIT_DATA serves too
    assert len(load("svhn", "dev")) == 5
    assert len(load("svhn", "train")) == 45
    whole = (home / "train_32x32.mat").read_bytes()
    (home / "train_32x32.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="corrupt or incomplete"):
        load("svhn", "train")


def test_torchvision_layout_of_mnist(home):
    raw = home / "MNIST" / "raw"
    raw.mkdir(parents=True)
    x = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    y = (np.arange(12) % 10).astype(np.uint8)
    for half in ("train", "t10k"):  # IDX: magic, sizes (big-endian), bytes
        magic = np.array([2051, 12, 28, 28], dtype=">i4").tobytes()
        (raw / f"{half}-images-idx3-ubyte").write_bytes(magic + x.tobytes())
        (raw / f"{half}-labels-idx1-ubyte").write_bytes(np.array([2049, 12], dtype=">i4").tobytes() + y.tobytes())
    d = load("mnist")
    assert torch.equal((d.x[:, 0] * 255).round().byte(), torch.from_numpy(x))
    assert d.y.tolist() == y.tolist()
    assert available("mnist")
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"cut")
    with pytest.raises(ValueError, match="corrupt or incomplete"):
        load("mnist")


def _picture(path, size=(40, 30), colour=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_folder(home, tmp_path):
    where = tmp_path / "pets"
    for k, name in enumerate(("cat", "dog")):
        for i in range(10):
            _picture(where / name / f"{i}.png", colour=(255 * k, 10 * i, 0))
    parts = {s: load("folder", s, root=where) for s in ("train", "dev", "test")}
    assert {s: len(d) for s, d in parts.items()} == {"train": 14, "dev": 2, "test": 4}
    assert parts["test"].classes == ("cat", "dog")
    assert parts["test"].x.shape == (4, 3, 30, 40)
    for d in parts.values():
        assert torch.equal(d.x[:, 0, 0, 0], d.y.float())  # red is the label
    assert len({t.numpy().tobytes() for d in parts.values() for t in d.x}) == 20
    assert torch.equal(load("pets").x, parts["test"].x)  # under KIT_DATA its name is enough
    assert load("pets", size=16, n=2).x.shape == (2, 3, 16, 16)
    assert "pets" in [r.name for r in listing()]
    mixed = tmp_path / "mixed"
    _picture(mixed / "test" / "cat" / "0.png")
    _picture(mixed / "test" / "cat" / "1.png", size=(20, 20))
    with pytest.raises(ValueError, match="give size="):
        load("folder", root=mixed)
    assert load("folder", root=mixed, size=16).x.shape == (2, 3, 16, 16)
    (mixed / "test" / "cat" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"1\.png is not a picture"):
        load("folder", root=mixed, size=16)


def test_folder_with_splits(home, tmp_path):
    where = tmp_path / "set"
    for split, n in (("train", 20), ("val", 3)):
        for name in ("a", "b"):
            for i in range(n):
                _picture(where / split / name / f"{i}.png", colour=(i, 0, 0))
    assert len(load("folder", "test", root=where)) == 6  # val serves where there is no test
    assert len(load("folder", "dev", root=where)) == 4
    assert len(load("folder", "train", root=where)) == 36
    _picture(where / "test" / "a" / "0.png")
    with pytest.raises(ValueError, match="same class folders"):
        load("folder", "test", root=where)
    with pytest.raises(MissingData, match="no folder of class folders"):
        load("folder", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="root="):
        load("folder")


def test_imagenet_sample(home):
    for wnid, k in (("n01440764", 0), ("n01443537", 1), ("n15075141", 999)):
        _picture(home / "imagenet_sample" / "val" / wnid / f"{wnid}_{k:04d}.jpg", size=(256, 256))
    d = load("imagenet")
    assert d.x.shape == (3, 3, 224, 224)
    assert d.y.tolist() == [0, 1, 999]
    assert d.classes[1] == "goldfish"
    assert load("imagenet", n=1, size=64).x.shape == (1, 3, 64, 64)
    with pytest.raises(MissingData, match="imagenet/train|imagenet.train"):
        load("imagenet", "dev")


def test_imagenet_decodes_only_what_is_asked_for(home):
    wnids = ("n01440764", "n01443537", "n01484850")
    for wnid in wnids:
        path = home / "imagenet_sample" / "val" / wnid / "broken.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="is not a picture"):
        load("imagenet", n=1)
    i = int(choose(np.arange(3), 1, 0)[0])  # the one that n=1 picks; the others stay broken
    _picture(home / "imagenet_sample" / "val" / wnids[i] / "broken.jpg")
    assert load("imagenet", n=1).y.tolist() == [i]


def test_listing_reads_and_downloads_nothing(home):
    rows = listing()
    assert [r.name for r in rows] == names()
    assert {r.name for r in rows if r.available} == {"digits", "scenes", "factors", "photos", "folder"}
    assert not any(home.iterdir())
    for r in rows[:3]:
        for split, count in r.splits.items():
            assert not count or len(load(r.name, split)) == count
        assert tuple(load(r.name, n=1).x.shape[1:]) == r.shape
    with pytest.raises(ValueError, match="no data set"):
        available("nothing")


def test_data_is_a_value():
    d = Data(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(AttributeError):
        d.x = None
    assert d[1].y.tolist() == [1]
    assert d.mask is None


real = Path(os.environ.get("KIT_DATA", "nowhere"))


@pytest.mark.skipif(not (real / "mnist.npz").is_file(), reason="needs KIT_DATA with mnist.npz")
def test_real_mnist():
    d = load("mnist")
    assert len(d) == 10_000
    assert d.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert d.x.mean().item() == pytest.approx(0.1325, abs=1e-3)
