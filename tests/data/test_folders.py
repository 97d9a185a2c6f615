"""Class folders as they are found on disks: labels come from names, and no picture is lost or read wrongly."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from kit.data import MissingData, available, folders, listing, load
from kit.data.imagenet import classes, wnids
from kit.data.pictures import decode


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_DATA", str(tmp_path))
    return tmp_path


def picture(path, colour=(255, 0, 0), size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def code(k):
    return k // 256, k % 256, 0


def coded(data):
    """The number that `code` wrote into each picture."""
    red_green = (data.x[:, :2, 0, 0] * 255).round().long()
    return red_green[:, 0] * 256 + red_green[:, 1]


PLAIN = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize("names", [
    PLAIN,
    ["airplane", "Automobile", *PLAIN[2:]],
    [str(k) for k in range(10)],
    ["plane", "car", "bird"],  # some of the classes
])  # fmt: skip
def test_labels_of_a_known_set_are_those_of_the_names(home, names):
    for k, name in enumerate(names):
        for i in range(4):
            picture(home / "cifar10" / "train" / name / f"{i}.png", code(k))
    for split in ("train", "dev"):
        d = load("cifar10", split)
        assert torch.equal(d.y, coded(d))
        assert d.classes[3] == "cat"


@pytest.mark.parametrize(("names", "message"), [
    (["plane", "zebra"], "zebra, which is no class"),
    (["plane", "10"], "10, which is no class"),
    (["plane", "airplane"], "two folders of the class airplane"),
])  # fmt: skip
def test_names_that_say_no_class_are_refused(home, names, message):
    for name in names:
        picture(home / "cifar10" / name / "0.png")
    with pytest.raises(ValueError, match=message):
        load("cifar10", "train")


@pytest.mark.parametrize("name", [str, "{:03d}".format, lambda k: list(wnids())[k], lambda k: f"{list(wnids())[k]}_x"])
def test_imagenet_goes_by_the_names_of_the_folders(home, name):
    for k in (0, 2, 10, 100, 999):  # "10" sorts before "2"
        picture(home / "imagenet" / "val" / name(k) / "ILSVRC2012_val_1.png", code(k))
    d = load("imagenet", size=8)
    assert sorted(d.y.tolist()) == [0, 2, 10, 100, 999]
    assert torch.equal(d.y, coded(d))


def test_imagenet_by_words(home):
    for word in ("goldfish", "great_white_shark"):
        picture(home / "imagenet" / "val" / word / "0.png", code(classes().index(word.replace("_", " "))))
    d = load("imagenet", size=8)
    assert torch.equal(d.y, coded(d))
    picture(home / "imagenet" / "val" / "cardigan" / "0.png")  # a dog and a jacket
    with pytest.raises(ValueError, match="cardigan, which is no class"):
        load("imagenet", size=8)


@pytest.mark.parametrize("wnid", ["n00000001", "n014407640", "1000"])
def test_folders_that_are_not_imagenets_are_refused(home, wnid):
    picture(home / "imagenet" / "val" / wnid / "0.png")
    with pytest.raises(ValueError, match=f"{wnid}, which is no class"):
        load("imagenet")


def test_hidden_folders_and_files_are_no_classes(home):
    for name in ("cat", "dog", ".thumbnails", "__MACOSX", ".ipynb_checkpoints"):
        for i in range(5):
            picture(home / "pets" / name / f"{i}.png")
    picture(home / "pets" / "cat" / "._0.png")
    picture(home / "pets" / "cat" / ".cache" / "0.png")
    parts = [load("pets", s) for s in ("train", "dev", "test")]
    assert {d.classes for d in parts} == {("cat", "dog")}
    assert sum(map(len, parts)) == 10


def test_an_empty_class_folder_keeps_its_number(home):
    for split in ("train", "test"):
        for k, name in enumerate("abc"):
            (home / "set" / split / name).mkdir(parents=True)
            for i in range(3 if (split, name) != ("test", "b") else 0):
                picture(home / "set" / split / name / f"{i}.png", code(k))
    for split in ("train", "dev", "test"):
        d = load("set", split)
        assert d.classes == ("a", "b", "c")
        assert torch.equal(d.y, coded(d))
    assert set(load("set", "test").y.tolist()) == {0, 2}


def test_numbered_folders_go_by_their_numbers(home):
    for k in range(12):
        picture(home / "signs" / "test" / str(k) / "0.png", code(k))
    d = load("signs")
    assert torch.equal(d.y, coded(d))
    assert d.classes[11] == "11"


def test_no_picture_is_left_out_without_a_word(home):
    kinds = ("png", "jpg", "JPEG", "jfif", "tif", "tiff", "bmp", "webp", "gif", "ppm")
    for i, kind in enumerate(kinds):
        inside = home / "set" / "test" / "a" / ("deep/deeper" if i % 2 else "")
        picture(inside / f"{i}.{kind}", format="JPEG" if kind == "jfif" else None)
    picture(home / "set" / "test" / "b" / "0.tif")
    d = load("set")
    assert d.classes == ("a", "b")
    assert d.y.tolist() == [0] * len(kinds) + [1]
    row = next(r for r in listing() if r.name == "set")
    assert row.splits["test"] == len(d)
    (home / "set" / "test" / "b" / "1.heic").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 files .* left out: b.1\.heic"):
        assert len(load("set")) == len(d)


def test_a_class_that_is_called_like_a_split(home):
    picture(home / "vehicles" / "train" / "0.png", code(1))
    picture(home / "vehicles" / "bus" / "0.png", code(0))
    parts = [load("vehicles", s) for s in ("dev", "test")]
    assert {d.classes for d in parts} == {("bus", "train")}
    assert all(torch.equal(d.y, coded(d)) for d in parts)
    (home / "vehicles" / "train" / "0.png").unlink()
    picture(home / "vehicles" / "train" / "steam" / "0.png")
    with pytest.raises(ValueError, match="train as a split and pictures in bus"):
        load("vehicles")


def test_what_may_not_be_read_hides_no_other_set(home, monkeypatch):
    picture(home / "pets" / "cat" / "0.png")
    (home / "closed").mkdir()

    def subfolders(where, real=folders.subfolders):  # root may read everything, so the refusal is imitated
        if where.name == "closed":
            raise PermissionError(13, "Permission denied", str(where))
        return real(where)

    monkeypatch.setattr(folders, "subfolders", subfolders)
    assert available("digits")
    assert available("pets")
    with pytest.raises(MissingData, match="no folder of class folders"):
        load("closed")


def ramp(dtype, top, n=64):
    return np.linspace(0, top, n).reshape(8, 8).round().astype(dtype)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits(tmp_path, suffix):
    Image.fromarray(ramp(np.uint16, 65535)).save(tmp_path / f"x.{suffix}")
    expected = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    grey = decode([tmp_path / f"x.{suffix}"], grey=True)
    torch.testing.assert_close(grey, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(decode([tmp_path / f"x.{suffix}"]), expected.expand(1, 3, 8, 8), atol=1e-4, rtol=0)
    assert decode([tmp_path / f"x.{suffix}"], size=4).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_32_bits_is_refused(tmp_path, dtype):
    Image.fromarray(ramp(dtype, 1)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="8 or 16 bits"):
        decode([tmp_path / "x.tif"])


# What a viewer does to an image that is stored with this orientation.
TURNS = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
         6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90}


@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_as_their_camera_says(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    shown = torch.from_numpy(TURNS[orientation](stored).copy()).permute(2, 0, 1)
    assert torch.equal((decode([tmp_path / "x.png"])[0] * 255).round().byte(), shown)


@pytest.mark.parametrize("shape", [(100_000, 1), (1, 100_000)])
def test_a_thin_picture_is_never_enlarged_as_a_whole(tmp_path, monkeypatch, shape):
    """Its short side of one pixel would become 256, its long side 25 600 000."""
    Image.new("L", shape, 128).save(tmp_path / "x.png")
    resized = []

    def resize(image, size, *args, real=Image.Image.resize, **options):
        resized.append(size)
        assert max(size) <= 256
        return real(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    x = decode([tmp_path / "x.png"], size=224)
    assert resized
    assert torch.allclose(x, torch.full((1, 3, 224, 224), 128 / 255))


@pytest.mark.parametrize("shape", [(451, 300), (300, 451), (90, 91), (224, 224), (1000, 333)])
def test_the_centre_is_that_of_the_whole_picture_resized(tmp_path, shape):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    k = 256 / min(shape)
    whole = Image.fromarray(pixels).resize(
        (max(224, round(shape[0] * k)), max(224, round(shape[1] * k))), Image.Resampling.BILINEAR)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)))
    found = (decode([tmp_path / "x.png"], size=224)[0] * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    buffer = io.BytesIO()
    Image.new("1", (100, 100)).save(buffer, format="PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"x\.png is not a picture that can be read"):
        decode([tmp_path / "x.png"])
