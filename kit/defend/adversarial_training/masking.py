"""Signs that a network hides its gradient instead of resisting: each is a comparison that honest robustness passes."""
from dataclasses import dataclass

from torch import Tensor, nn

from kit.attacks import fgsm, pgd, square
from kit.core import fooled, generator, normal


@dataclass(frozen=True)
class Sign:
    """One comparison: what it compares, the two shares of images, and whether they are as they should not be."""

    text: str
    weaker: float
    stronger: float
    suspicious: bool


def masking(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, source: nn.Module | None = None, steps: int = 20,
    max_queries: int = 200, seed: int = 0,
) -> list[Sign]:
    """What may not fool more images than what: of each pair the second attack is the stronger, if gradients are honest.

        one step ≤ many steps      no gradient (Square, noise) ≤ gradient      made against `source` ≤ against the model
        ε ≤ 2 ε                    with ε = 1, where every image is reachable, all are fooled

    A pair that is turned by more than a twentieth of the images is suspicious. No sign is a proof, and none of them is
    missing where an attack was merely too short: look again with more steps. Images are shares of those given.
    Cost: about 4 (`steps` + 1) forward and backward passes and `max_queries` forward passes.
    Source: Athalye et al., Obfuscated gradients give a false sense of security, ICML 2018, section 3.1; Carlini et al.,
    On evaluating adversarial robustness, 2019.
    """
    def rate(x_adv: Tensor) -> float:
        return float(fooled(model, x_adv, y).float().mean())

    def climbed(radius: float, of: nn.Module = model) -> float:
        return rate(pgd(of, x, y, eps=radius, steps=steps, generator=generator(seed)))

    white = climbed(eps)
    noise = (x + eps * normal(x, generator(seed)).sign()).clamp(0, 1)
    pairs = [
        ("one step against many", rate(fgsm(model, x, y, eps=eps)), white),
        ("noise against the gradient", rate(noise), white),
        ("Square, without a gradient, against the gradient",
         rate(square(model, x, y, eps=eps, max_queries=max_queries, generator=generator(seed))), white),
        ("ε against 2 ε", white, climbed(min(1.0, 2 * eps))),
        ("ε = 1 against all images", 1.0, climbed(1.0)),
    ]
    if source is not None:
        pairs.insert(3, ("made against another network, against made against this one", climbed(eps, source), white))
    return [Sign(f"{text}: {weak:.0%} and {strong:.0%}", weak, strong, weak > strong + 0.05)
            for text, weak, strong in pairs]
