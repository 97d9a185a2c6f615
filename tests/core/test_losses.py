import pytest
import torch

from kit.core import cross_entropy, cw, dlr, margin

Z = torch.tensor([[2.0, 5.0, 1.0, 0.0], [4.0, -1.0, 3.5, 2.0]])
Y = torch.tensor([1, 2])


def test_values_by_hand():
    assert torch.allclose(margin(Z, Y), torch.tensor([-3.0, 0.5]))
    assert torch.allclose(cw(Z, Y, kappa=0.2), torch.tensor([-3.0, 0.2]))
    assert torch.allclose(dlr(Z, Y), torch.tensor([-3 / 4, 0.5 / 2]))
    assert torch.allclose(dlr(Z, Y, target=torch.tensor([0, 0])), torch.tensor([-3 / (5 - 0.5), 0.5 / (4 - 0.5)]))
    assert torch.allclose(cross_entropy(Z, Y), -Z.softmax(1).log()[[0, 1], Y])


@pytest.mark.parametrize("loss", [cross_entropy, cw, dlr, margin])
@pytest.mark.parametrize("shift", [100.0, -100.0])
def test_a_constant_on_all_logits_changes_nothing(loss, shift):
    z = Z.double().requires_grad_()
    shifted = (Z.double() + shift).requires_grad_()
    a, b = loss(z, Y), loss(shifted, Y)
    assert torch.allclose(a, b)
    assert torch.allclose(*(torch.autograd.grad(v.sum(), at)[0] for v, at in ((a, z), (b, shifted))))


def test_dlr_ignores_the_scale_and_needs_three_classes():
    assert torch.allclose(dlr(Z, Y), dlr(7 * Z, Y))
    with pytest.raises(ValueError, match="at least 3 classes"):
        dlr(Z[:, :2], Y.clamp(max=1))
