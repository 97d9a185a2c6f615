"""What an attack is after has one meaning: the closed forms, and what rounding could take back."""
import pytest
import torch

from kit.core import Goal, cross_entropy, dlr, margin
from kit.core.goal import slack

Z = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 5.0, 1.0], [1.0, 1.0, 0.5, 0.0]])
Y, T = torch.tensor([0, 0, 0]), torch.tensor([1, 2, 1])


def test_lead_and_reached():
    assert Goal(Y).lead(Z).tolist() == [-2.0, 5.0, 0.0]
    assert Goal(Y, T).lead(Z).tolist() == [-2.0, 3.0, 0.0]
    assert Goal(Y).reached(Z).tolist() == [False, True, False]
    assert Goal(Y).reached(Z, kappa=4.999).tolist() == [False, True, False]
    assert not Goal(Y).reached(Z, kappa=5.0).any()


def test_a_lead_within_rounding_is_not_reached():
    z = torch.tensor([[0.0, 1e-6, -100.0], [0.0, 1e-2, -100.0]])
    assert slack(z)[0] == pytest.approx(1e-3)
    assert Goal(torch.zeros(2, dtype=torch.int64)).reached(z).tolist() == [False, True]


@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_gain_is_the_loss_or_its_negative_at_the_target(loss):
    assert torch.equal(Goal(Y).gain(Z, loss), loss(Z, Y))
    assert torch.equal(Goal(Y, T).gain(Z, loss), -loss(Z, T))


def test_the_ratio_of_logits_has_a_targeted_form():
    assert torch.equal(Goal(Y, T).gain(Z, dlr), dlr(Z, Y, T))
    assert not torch.allclose(dlr(Z, Y, T), -dlr(Z, T))


def test_rows_are_taken_together():
    some = Goal(Y + torch.arange(3), T)[torch.tensor([2, 0])]
    assert some.y.tolist() == [2, 0]
    assert some.target.tolist() == [1, 1]
    assert Goal(Y)[:2].target is None


@pytest.mark.parametrize("loss", [lambda z, y: z.mean(), lambda z, y: z])
def test_a_loss_of_another_shape_is_refused(loss):
    with pytest.raises(ValueError, match="one number per image"):
        Goal(Y).gain(Z, loss)
