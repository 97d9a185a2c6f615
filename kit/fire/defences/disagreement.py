"""Several explainers at once: how far their maps of one answer are apart, and one explainer that is all of them."""
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from kit.core import laid_out
from kit.detect.detector import Detector
from kit.explain.metrics import l1_distance
from kit.fire.adv2.descent import unit

Explain = Callable[..., Tensor]


def joint(*explainers: Explain) -> Explain:
    """One explainer whose map (N, H, k·W) is the maps of k explainers side by side, each scaled to [0, 1].

    `adv2` on it has ℓ_int = 1/k Σ_i ℓ_int(g_i(x'), m_i): the attack on an ensemble that the attacker knows. Its
    gradient needs what the most demanding of them needs, such as smooth=1e-4 for GRAD. Cost: that of all of them.
    Raises ValueError for none.
    """
    if not explainers:
        raise ValueError("name at least one explainer to join")

    def explain(model: nn.Module, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
        maps = [unit(g(model, x, target, create_graph=create_graph)) for g in explainers]
        return torch.cat(maps, 2)

    return explain


class Disagreement(Detector):
    """s(x) = the mean over pairs i < j of L1(g_i(x; c), g_j(x; c)) ∈ [0, 1], c the class that is predicted for x.

    explainers    two or more g(model, x, target) -> (N, H, W), in a dict by their names

    L1 is `kit.explain.l1_distance`, of maps scaled to [0, 1]. Maps of two kinds are apart on clean images too: how far
    is what `threshold` learns. There is nothing to fit, and nothing kept but the threshold's number: explainers are
    code. Cost: a forward pass and an explanation by each. Raises ValueError for fewer than two explainers.
    """

    def __init__(self, model: nn.Module, explainers: dict[str, Explain]):
        super().__init__(model)
        if len(explainers) < 2:
            raise ValueError(f"it takes two explainers to disagree, and there are {len(explainers)}")
        self.explainers = dict(explainers)

    def maps(self, x: Tensor, create_graph: bool = False) -> list[Tensor]:
        """The maps (N, H, W) of the predicted class, by each explainer in turn."""
        with torch.no_grad():
            c = self.model(laid_out(x)).argmax(1)
        return [g(self.model, x, c, create_graph=create_graph) for g in self.explainers.values()]

    def discrepancy(self, x: Tensor) -> Tensor:
        return apart(self.maps(x, create_graph=x.requires_grad))


def apart(maps: Sequence[Tensor]) -> Tensor:
    """The mean over all pairs of their L1 distance, (N,)."""
    return torch.stack([l1_distance(a, b) for a, b in combinations(maps, 2)]).mean(0)
