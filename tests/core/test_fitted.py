"""What is fitted is written and read whole, for the model that it belongs to, or not at all."""
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kit.core import Normalize
from kit.core.fitted import Fitted, fingerprint


class Mean(Fitted):
    """The mean image, and a number."""

    numbers = ("cut",)

    def __init__(self, model, *, scale=2.0, names=("a", "b")):
        self.model, self.scale, self.names = model, scale, names
        self.cut, self.mean = None, torch.zeros(0)

    def fit(self, x):
        self.mean, self.cut = self.scale * x.mean(0), float(x.max())
        return self

    def tensors(self):
        return {"mean": self.mean, "count": torch.tensor(3)}

    def restore(self, tensors):
        self.mean = tensors["mean"]


class Alone(Fitted):
    def __init__(self, size=1):
        self.size = size


def network(act=None, mean=0.5):
    torch.manual_seed(0)
    return nn.Sequential(Normalize((mean,), (0.5,)), nn.Flatten(), nn.Linear(4, 3), act or nn.ReLU())


@pytest.fixture
def saved(tmp_path):
    fitted = Mean(network(), scale=3.0, names=["c"]).fit(torch.rand(5, 1, 2, 2))
    fitted.save(tmp_path / "f.safetensors")
    return fitted, tmp_path / "f.safetensors"


def test_what_is_read_is_what_was_written(saved, tmp_path):
    fitted, path = saved
    again = Mean.load(path, network())
    assert torch.equal(again.mean, fitted.mean)
    assert (again.scale, again.names, again.cut) == (3.0, ["c"], fitted.cut)
    Mean(network()).save(path)  # not fitted yet: no tensor of any length, no number
    assert Mean.load(path, network()).cut is None
    Alone(4).save(path)  # no model, nothing fitted
    assert Alone.load(path).size == 4
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_no_flipped_bit_is_read(saved):
    _, path = saved
    whole = path.read_bytes()
    contents = Mean.load(path, network())
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            again = Mean.load(path, network())
        except ValueError:
            continue
        assert torch.equal(again.mean, contents.mean), place  # as 1e-05 and 1E-05
        assert (again.cut, again.settings()) == (contents.cut, contents.settings()), place
    for part in (whole[:-1], whole[:7], b""):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="fit and save it again"):
            Mean.load(path, network())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_decide_nothing_are_refused(saved, value, monkeypatch):
    fitted, path = saved
    whole = path.read_bytes()
    fitted.cut = value
    with pytest.raises(ValueError, match="'cut' holds NaN or infinity"):
        fitted.save(path)
    fitted.cut, fitted.mean[0, 0, 0] = None, value
    with pytest.raises(ValueError, match="'mean' holds NaN or infinity"):
        fitted.save(path)
    assert path.read_bytes() == whole  # what was there stays
    monkeypatch.setattr("kit.core.fitted._check_numbers", lambda *_: None)
    fitted.save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="'mean' holds NaN or infinity"):
        Mean.load(path, network())


@pytest.mark.parametrize("other", [
    network(mean=0.4), network(nn.Tanh()), network(nn.LeakyReLU(0.3)), network().double(), network()[1:]])
def test_another_model_is_refused(saved, other):
    _, path = saved
    assert fingerprint(other) != fingerprint(network())
    with pytest.raises(ValueError, match="fitted on a model with other weights"):
        Mean.load(path, other)
    with pytest.raises(ValueError, match="fitted on a model with other weights"):
        Mean.load(path)


def test_a_fingerprint_is_of_the_model_and_not_of_its_state():
    model = network().train()
    model[2].weight.requires_grad_(False)
    assert fingerprint(model) == fingerprint(network().eval())
    assert fingerprint(nn.BatchNorm2d(2)) != fingerprint(nn.BatchNorm2d(2, affine=False))
    moved = nn.BatchNorm2d(2)
    moved.running_mean += 1
    assert fingerprint(moved) != fingerprint(nn.BatchNorm2d(2))


def test_what_is_no_such_file(tmp_path, saved):
    _, path = saved
    with pytest.raises(ValueError, match="does not hold a Alone but Mean"):
        Alone.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Mean.load(tmp_path / "nothing", network())
    save_file({"mean": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="something else"):
        Mean.load(path, network())
    save_file({"mean": torch.zeros(2)}, path, metadata={"kit": json.dumps({"kind": "Mean"})})
    with pytest.raises(ValueError, match="checksum differs"):
        Mean.load(path, network())
    with pytest.raises(TypeError, match="settings of this Mean cannot be written"):
        Mean(network(), scale=torch.Generator()).save(path)
