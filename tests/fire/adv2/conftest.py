import pytest

from kit.core import logits
from kit.data import load
from kit.explain import RTS
from kit.fire.defences.rtsa import runner_up


@pytest.fixture(scope="session")
def case():
    """RTS of scenes/resnet, eight scenes, the network's answers and its second choices."""
    rts, x = RTS.shipped("scenes/resnet"), load("scenes", "dev", n=8).x
    y = logits(rts.model, x).argmax(1)
    return rts, x, y, runner_up(rts.model, x, y)
