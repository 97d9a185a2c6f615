"""Without a question: steps of the full length, in the direction that is said."""
import pytest
import torch
from torch import nn

from kit.attacks import difference_of_means, random_perturbation
from kit.core import ball, fooled, generator


def test_a_random_perturbation_goes_to_the_edge_of_the_ball_and_differs_image_by_image():
    x = torch.full((6, 1, 5, 5), 0.5)
    for norm, eps in (("linf", 0.1), ("l2", 0.3)):
        delta = random_perturbation(x, eps=eps, norm=norm) - x
        assert torch.allclose(ball(norm, 1).norm(delta), torch.full((6,), eps), atol=1e-6)
        assert abs(float(delta.mean())) < 0.3 * float(delta.abs().mean())
        assert not torch.allclose(delta[0], delta[1])
        assert torch.allclose(delta[:1], random_perturbation(x[:1], eps=eps, norm=norm) - x[:1])
        assert not torch.allclose(delta, random_perturbation(x, eps=eps, norm=norm, generator=generator(1)) - x)
    edge = random_perturbation(torch.ones(2, 1, 3, 3), eps=torch.tensor([0.1, 0.2]))
    assert edge.max() == 1
    assert torch.allclose(edge.flatten(1).amin(1), torch.tensor([0.9, 0.8]))
    with pytest.raises(ValueError, match=r"eps"):
        random_perturbation(x, eps=-1)


@pytest.fixture(scope="module")
def classes():
    """Three classes around means on a line, 0 – 1 — 2, and the network of nearest means, whose distances are known."""
    means = torch.full((3, 1, 4, 4), 0.3)
    means[1, :, :2], means[2, :, :, :3] = 0.45, 0.7
    labels = torch.arange(3).repeat(20)
    images = means[labels] + 0.1 * torch.randn(60, 1, 4, 4, generator=generator(2)).clamp(-2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    of = torch.stack([images[labels == k].mean(0) for k in range(3)]).flatten(1)
    model[1].weight.data, model[1].bias.data = of.clone(), -of.square().sum(1) / 2
    return model, of, images, labels


def test_it_crosses_between_nearest_means_at_the_exact_distance(classes):
    """x at μ_y: in l2 the border to μ_t lies half way, so that 1.01 of that is enough, and 0.99 is not."""
    model, of, images, labels = classes
    x, y = of.view(3, 1, 4, 4), torch.arange(3)
    apart = torch.cdist(of, of).fill_diagonal_(torch.inf)
    nearest = apart.argmin(1)
    assert nearest.tolist() == [1, 0, 1]
    half = apart.amin(1) / 2
    for factor, reached in ((1.01, True), (0.99, False)):
        x_adv = difference_of_means(x, y, images, labels, eps=factor * half, norm="l2")
        assert fooled(model, x_adv, y, nearest).tolist() == [reached] * 3
    target = torch.tensor([2, 2, 0])
    half = apart[y, target] / 2
    x_adv = difference_of_means(x, y, images, labels, eps=1.01 * half, norm="l2", target=target)
    delta = nn.functional.normalize((x_adv - x).flatten(1))
    assert torch.allclose((delta * nn.functional.normalize(of[target] - of[y])).sum(1), torch.ones(3), atol=1e-5)
    corner = difference_of_means(x, y, images, labels, eps=0.05, target=target)
    assert torch.allclose(corner - x, 0.05 * (of[target] - of[y]).sign().view_as(x), atol=1e-6)


def test_a_class_without_images_is_not_in_the_way(classes):
    """The class 1 has none: from 0 the nearest of the others is 2."""
    _, of, images, labels = classes
    x, y, shown = of.view(3, 1, 4, 4)[[0, 2]], torch.tensor([0, 2]), labels != 1
    x_adv = difference_of_means(x, y, images[shown], labels[shown], eps=0.05)
    aside = (of[2] - of[0]).sign().view(1, 4, 4)
    assert torch.allclose(x_adv - x, 0.05 * torch.stack([aside, -aside]), atol=1e-6)


def test_mistakes_are_said(classes):
    _, of, images, labels = classes
    x, y = of.view(3, 1, 4, 4), torch.arange(3)
    with pytest.raises(ValueError, match="1 of 3 images have a class or a target that `images` does not show"):
        difference_of_means(x, y, images[labels < 2], labels[labels < 2], eps=0.1)
    with pytest.raises(ValueError, match="no other class to go to"):
        difference_of_means(x, y, images, labels, eps=0.1, target=y)
    with pytest.raises(ValueError, match=r"images must be like x, \(1, 4, 4\), not \(1, 2, 4\)"):
        difference_of_means(x, y, images[:, :, :2], labels, eps=0.1)
    with pytest.raises(ValueError, match=r"labels must have the shape \(60,\)"):
        difference_of_means(x, y, images, labels[:5], eps=0.1)


def test_labels_that_are_no_tensor_are_refused_and_no_graph_is_kept(classes):
    _, _, images, labels = classes
    for y, of, said in ((labels.tolist(), labels, "y must be"), (labels, labels.tolist(), "labels must be")):
        with pytest.raises(TypeError, match=f"{said} a torch tensor of class numbers"):
            difference_of_means(images.clamp(0, 1), y, images.clamp(0, 1), of, eps=0.1)
    with pytest.raises(TypeError, match="target must be a torch tensor"):
        difference_of_means(images.clamp(0, 1), labels, images.clamp(0, 1), labels, eps=0.1, target=2)
    x = images.clamp(0, 1).clone().requires_grad_()
    assert not random_perturbation(x, eps=0.1).requires_grad
    assert not difference_of_means(x, labels, images.clamp(0, 1), labels, eps=0.1).requires_grad
