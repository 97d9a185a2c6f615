"""Without a single question: what can be done who knows images of the classes, or nothing at all."""
import torch
from torch import Tensor

from kit.core import Draws, ball, check_images, check_labels, check_settings, normal


def random_perturbation(
    x: Tensor, *, eps: float | Tensor, norm: str = "linf", generator: torch.Generator | None = None,
) -> Tensor:
    """A random step as long as the ball allows, x + eps · sign u in l∞, along u ~ N(0, 1), cut by the box: the control
    of every attack in a ball. Cost: none. Raises ValueError or TypeError for images or an eps that make no sense.

    Source: Bhagoji et al., ECCV 2018, section 2.3.
    """
    check_images(x)
    settings = check_settings({"eps": eps, "generator": generator}, x)
    draws = generator if isinstance(generator, Draws) else Draws(len(x), generator)
    within = ball(norm, settings["eps"])
    x = x.detach()
    return within.project(within.step(x, normal(x, draws), settings["eps"]), x)


def difference_of_means(
    x: Tensor, y: Tensor, images: Tensor, labels: Tensor, *, eps: float | Tensor, norm: str = "linf",
    target: Tensor | None = None,
) -> Tensor:
    """A step as long as the ball allows from the mean of the class y to that of the target, x + eps · sign(μ_t − μ_y)
    in l∞, cut by the box. `images` with their `labels` show what the classes look like: they need not be what the model
    learnt from. Without a target t is the class whose mean is nearest to μ_y.

    Cost: none. Raises ValueError or TypeError for images or labels that make no sense, and for a class without images.
    Source: Bhagoji et al., ECCV 2018, section 2.3.
    """
    for these in (x, images):
        check_images(these)
    if images.shape[1:] != x.shape[1:]:
        raise ValueError(f"images must be like x, {tuple(x.shape[1:])}, not {tuple(images.shape[1:])}")
    x, images = x.detach(), images.detach()
    classes = 1 + max((int(t.max()) for t in (y, labels, target) if isinstance(t, Tensor) and len(t)), default=0)
    check_labels(y, x, classes)
    check_labels(labels, images, classes, "labels")
    counts = labels.bincount(minlength=classes)
    sums = x.new_zeros(classes, x[0].numel()).index_add_(0, labels, images.flatten(1).to(x))
    means = sums / counts[:, None]  # NaN for a class without images, which no image comes from or goes to
    if target is None:
        apart = torch.cdist(means, means).fill_diagonal_(torch.inf).masked_fill(counts == 0, torch.inf)
        target = apart.argmin(1)[y]
    else:
        check_labels(target, x, classes, "target")
    empty = (counts[y] == 0) | (counts[target] == 0) | (target == y)
    if bool(empty.any()):
        raise ValueError(f"{int(empty.sum())} of {len(x)} images have a class or a target that `images` does not show, "
                         "or no other class to go to: give images of each class")
    eps = check_settings({"eps": eps}, x)["eps"]
    within = ball(norm, eps)
    return within.project(within.step(x, (means[target] - means[y]).view_as(x), eps), x)
