"""What the tests of transfer attacks share: a few images and a source network."""
import pytest

from kit.data import load
from kit.models import load as network


@pytest.fixture(scope="module")
def scenes():
    data = load("scenes", "dev", n=12)
    return data.x, data.y


@pytest.fixture(scope="module")
def resnet():
    return network("scenes/resnet")
