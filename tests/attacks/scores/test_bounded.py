"""Finite differences: the gradient itself where the loss is linear, and exact counts."""
import pytest
import torch

from kit.attacks import fgsm, finite_difference
from kit.attacks.gradient import bim
from kit.core import QueryCounter, ball, fooled, margin


def test_on_a_linear_network_it_is_fgsm_and_bim(linear):
    model, x, y = (v.double() for v in linear)
    y = y.long()
    assert torch.equal(finite_difference(model, x, y, h=1e-6, eps=0.01), fgsm(model, x, y, eps=0.01, loss=margin))
    assert torch.allclose(finite_difference(model, x, y, h=1e-6, eps=0.01, norm="l2"),
                          ball("l2", 0.01).step(x, _slope(model, x, y), 0.01), atol=1e-8)
    target = (y + 1) % 5
    assert torch.equal(finite_difference(model, x, y, h=1e-6, eps=0.01, target=target),
                       fgsm(model, x, y, eps=0.01, loss=margin, target=target))
    few = finite_difference(model, x, y, eps=0.004, steps=3, step=0.002, h=1e-6)
    missed = ~fooled(model, few, y)  # those that were fooled stopped there
    assert missed.sum() > 10
    whole = bim(model, x, y, eps=0.004, steps=3, step=0.002, loss=margin)
    assert torch.allclose(few[missed], whole[missed])


def _slope(model, x, y):
    v = x.clone().requires_grad_()
    return torch.autograd.grad(margin(model(v), y).sum(), v)[0]


def test_any_orthonormal_basis_gives_the_gradient_and_few_of_it_its_projection(linear):
    model, x, y = (v.double() for v in linear)
    y = y.long()
    basis = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)).double())[0]
    basis = basis.view(1, 48, *x.shape[1:])
    whole = finite_difference(model, x, y, h=1e-6, eps=0.01, norm="l2", directions=basis)
    assert torch.allclose(whole, finite_difference(model, x, y, h=1e-6, eps=0.01, norm="l2"), atol=1e-8)
    moved = (finite_difference(model, x, y, h=1e-6, eps=0.01, norm="l2", directions=basis[:, :5]) - x).flatten(1)
    along = moved @ basis.flatten(2)[0].T
    assert along[:, 5:].abs().max() < 1e-8
    right = (_slope(model, x, y).flatten(1) @ basis.flatten(2)[0].T)[:, :5]
    assert torch.allclose(along[:, :5], 0.01 * torch.nn.functional.normalize(right), atol=1e-8)


def test_a_group_moves_together_and_another_image_has_others(linear):
    model, x, y = linear
    delta = (finite_difference(model, x, y, h=1e-6, eps=0.01, norm="l2", group=6) - x).flatten(1)
    values = [row.mul(1e6).round().unique() for row in delta]
    assert all(len(v) <= 9 for v in values)  # 48 / 6 groups, and rounding
    assert max(len(v) for v in values) >= 7
    same = [(delta[i, :, None] - delta[i]).abs() < 1e-7 for i in range(2)]
    assert not torch.equal(*same)


def test_counts_and_budget(linear):
    model, x, y = linear
    already = y.clone()
    already[:3] = (y[:3] + 1) % 5
    counter = QueryCounter(model, len(x))
    finite_difference(counter, x, already, eps=1e-4, steps=2, group=6)
    assert counter.counts.tolist() == [1] * 3 + [1 + 2 * (2 * 8 + 1)] * 37
    counter = QueryCounter(model, len(x))
    finite_difference(counter, x, y, eps=1e-4, steps=50, group=6, max_queries=40)
    assert (counter.counts == 35).all()  # a third step would ask 52
    with pytest.raises(ValueError, match="takes 18 queries, and max_queries is 17"):
        finite_difference(model, x, y, eps=0.1, group=6, max_queries=17)
    with pytest.raises(ValueError, match="from 1 to the image's 48 numbers"):
        finite_difference(model, x, y, eps=0.1, group=0)


def test_what_is_asked_about_lies_in_the_box_and_the_difference_knows_it(linear):
    model, x = (v.double() for v in linear[:2])  # the module itself becomes double
    edge = torch.where(x > 0.5, 1.0, 0.0).to(x)
    seen = []

    class Record(torch.nn.Module):
        def forward(self, v):
            seen.append(v)
            return model(v)

    y = model(edge).argmax(1)
    x_adv = finite_difference(Record(), edge, y, eps=0.1, norm="l2", h=1e-6)
    assert all(v.min() >= 0 and v.max() <= 1 for v in seen)
    right = ball("l2", 0.1)
    assert torch.allclose(x_adv, right.project(right.step(edge, _slope(model, edge, y), 0.1), edge), atol=1e-7)


def test_answers_of_another_dtype(linear):
    model, x, y = linear
    x_adv = finite_difference(lambda v: model(v).double(), x, y, eps=0.1)
    assert torch.equal(x_adv, finite_difference(model, x, y, eps=0.1))
    assert x_adv.dtype == x.dtype
