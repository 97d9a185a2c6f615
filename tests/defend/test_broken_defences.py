"""What users get wrong with cleaners and masks."""
import numpy as np
import pytest
import torch
from torch import nn

from kit.core import generator
from kit.defend import JPEG, DeepCloak


def little():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 4)).requires_grad_(False)


def test_jpeg_cleans_images_of_low_precision():
    x = torch.rand(2, 3, 8, 8, generator=generator(0))
    wanted = JPEG(little(), 75).purify(x)
    got = JPEG(little(), 75).half().purify(x.half())
    assert got.dtype == torch.float16
    assert float((got.float() - wanted).abs().mean()) < 0.02
    assert float((wanted - x).abs().mean()) > 0.03


def test_deepcloak_says_what_is_wrong_with_its_pairs():
    cloak, x = DeepCloak(little(), "1", 0.1), torch.rand(2, 3, 8, 8, generator=generator(0))
    with pytest.raises(TypeError, match="use x.to\\(torch.float32\\)"):
        cloak.fit(x.double(), x.double())
    with pytest.raises(TypeError, match="use torch.as_tensor"):
        cloak.fit(x.numpy(), np.asarray(x))
    with pytest.raises(ValueError, match="needs its attacked version"):
        cloak.fit(x, x[:1])
