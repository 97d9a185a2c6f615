"""The attack that knows the detector: wrong for the model and unsuspicious for the detector at once.

    find x' in ball ∩ box:   m(x') = max_{j≠y} z_j(x') − z_y(x') ≥ κ   and   s(x') ≤ τ

Adding the two with a weight makes each undo the other. Instead, each step follows one of them: the margin while the
image is not misclassified by κ, the detector's score from there on (selective gradient descent, Bryniarski et al.,
Evading adversarial example detection defenses with orthogonal projected gradient descent, ICLR 2022).
"""
import torch
from torch import Tensor, nn

from kit.core import Goal, Trace, ball, laid_out, optimise, per_image, steepest
from kit.detect.detector import Detector

AHEAD = 1e6  # a misclassified image is kept before any other


@per_image
def evade(
    model: nn.Module, x: Tensor, y: Tensor, *, detector: Detector, eps: float | Tensor,
    step: float | Tensor | None = None, steps: int = 100, norm: str = "linf", kappa: float = 0.0,
    random_start: bool = True, target: Tensor | None = None, generator: torch.Generator | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Keep, of `steps` steps, the iterate with the lowest detector score among those misclassified by a margin over κ.

        ℓ(x') = −s(x') where m(x') > κ,   m(x') elsewhere;     with a target t, m(x') = z_t − max_{j≠t} z_j

    s stands for `detector.evasion`, the score or what falls with it and has a gradient where the score is flat.
    The default step is 2.5 eps/steps. Whether it succeeded is for the caller to measure, on the tensor returned:
    fooled(model, x', y) & ~detector.alarm(x'). Cost: `steps` forward and backward passes of the model and the detector.
    Raises ValueError when the detector belongs to another model.
    """
    if detector.model is not model:
        raise ValueError("the detector guards another model: pass model=detector.model")
    step = 2.5 * eps / steps if step is None else step
    within, goal = ball(norm, eps), Goal(y, target)

    def objective(x_adv: Tensor, k: int) -> Tensor:
        x_adv = laid_out(x_adv)
        z = model(x_adv)
        m = goal.lead(z)
        return torch.where(m > kappa, -detector.evasion(x_adv), m.clamp(max=kappa) - AHEAD)

    start = within.random(x, generator) if random_start else x
    return optimise(objective, start, steps=steps, rule=steepest(within, step),
                    project=lambda v: within.project(v, x), keep="best", trace=trace)
