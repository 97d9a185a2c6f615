"""Agreement with auto_LiRPA, where it is installed. Its newest release on PyPI (0.3) requires torch below 1.13, and
that has no wheel for Python 3.11."""
import pytest
import torch

import kit.data
import kit.models
from kit.certify import crown, ibp
from tests.bench.bench_bounds import lirpa

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ["digits/mlp", "ibp/digits", "mnist/small"])
def test_the_bounds_are_those_of_auto_lirpa(name):
    pytest.importorskip("auto_LiRPA")
    data = kit.data.load("digits", "test", n=4)
    model = kit.models.load(name)
    theirs = lirpa(model, data.x, data.y, eps=0.02)
    for method, bound in (("IBP", ibp), ("CROWN", crown)):
        ours = bound(model, data.x, data.y, eps=0.02)
        assert torch.allclose(ours, theirs(method), rtol=1e-3, atol=1e-3)
