"""The diagnosis: how much of an attack's success each layer contributes, with its controls: see the package."""
from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import Draws, check_images, normal, per_image, uniform
from kit.core.checks import check_fits, check_settings
from kit.core.fitted import fingerprint
from kit.core.network import features, replace
from kit.fire.diagnosis.drawing import answered, read
from kit.fire.diagnosis.information import information_lost
from kit.report.intervals import Estimate, mean


class Drawing(Protocol):
    """What draws a layer's features: an `InterpretGAN`, or any other with these."""

    model: nn.Module
    layers: list[str]
    noise: int

    def draw(self, layer: str, h: Tensor, n: Tensor) -> Tensor: ...


class Diagnosis(NamedTuple):
    """Of L layers and N images. Column 0 of each tensor (N, L + 1) is the images themselves.

    flipped      whether the judge gives the drawings of x and of x' two answers; `by_noise` for x and noise of one size
    floor        whether it gives the drawing of x another answer than x: what the generators lose by themselves
    moved        ‖h_l(x') − h_l(x)‖ / ‖h_l(x)‖, and by noise
    lost         the share of the layer before that the layer has lost (`information_lost`), L numbers
    """

    layers: list[str]
    flipped: Tensor
    by_noise: Tensor
    floor: Tensor
    moved: Tensor
    moved_by_noise: Tensor
    lost: list[float]

    def vulnerability(self, of: Tensor | None = None) -> list[Estimate]:
        """V_l = e_l − e_{l−1}, e_l the share flipped at layer l: L numbers, with intervals over the images. They add up
        to e_L − e_0. Of `by_noise`, the same for noise."""
        e = (self.flipped if of is None else of).double()
        return [mean(step) for step in e.diff(dim=1).T.cpu().numpy()]

    def rank_correlation(self) -> float:
        """Spearman's, of vulnerability and information lost over the layers; NaN where one of them is constant."""
        from scipy.stats import spearmanr

        V = [v.value for v in self.vulnerability()]
        if np.ptp(V) == 0 or np.ptp(self.lost) == 0:
            return float("nan")
        return float(spearmanr(V, self.lost).statistic)


def diagnose(
    gan: Drawing, x: Tensor, x_adv: Tensor, *, judge: nn.Module, generator: torch.Generator | None = None,
) -> Diagnosis:
    """How much each layer of gan.model contributes to what x_adv does to the images x, both (N, C, H, W).

        e_0 = P[J(x') ≠ J(x)]      e_l = P[J(G_l(h_l(x'), n)) ≠ J(G_l(h_l(x), n))]      V_l = e_l − e_{l−1}

    `judge`, J, is another network than the one that was attacked: with the attacked network itself, e_L is the attack's
    success by construction, whatever is drawn. Beside it the same for noise of the same size (`equal_noise`), the clean
    floor, and what each layer loses. Raises ValueError for the attacked network as a judge, and where x and x_adv
    differ in shape. Cost: three forward passes of the network, and for each layer three drawings and as many passes of
    the judge.
    """
    if not all(hasattr(gan, name) for name in ("model", "layers", "noise", "draw")):
        raise TypeError(f"gan must be a fitted InterpretGAN, not {type(gan).__name__}: the generators of a network's "
                        "layers, which know it")
    if judge is gan.model or fingerprint(judge) == fingerprint(gan.model):
        raise ValueError("the judge is the attacked network itself, which reads from any drawing what the attack made "
                         "it read: give another network")
    check_settings({"generator": generator})
    for v in (x, x_adv):
        check_images(v)
        check_fits(gan.model, v)
        check_fits(judge, v)
    if x.shape != x_adv.shape:
        raise ValueError(f"x and x_adv are the same images, clean and attacked: {tuple(x.shape)} is not "
                         f"{tuple(x_adv.shape)}")
    source = generator
    n = normal(x.new_empty(len(x), gan.noise), Draws(len(x), source))
    noisy = equal_noise(x, x_adv, source)
    clean, attacked, disturbed = (read(gan.model, v, gan.layers) for v in (x, x_adv, noisy))
    own = answered(judge, x)
    flipped, by_noise = [answered(judge, x_adv) != own], [answered(judge, noisy) != own]
    floor, moved, moved_by_noise = [torch.zeros_like(own, dtype=torch.bool)], [relative(x, x_adv)], [relative(x, noisy)]
    for layer in gan.layers:
        seen, seen_adv, seen_noisy = (
            answered(judge, gan.draw(layer, h[layer], n)) for h in (clean, attacked, disturbed))
        flipped.append(seen_adv != seen)
        by_noise.append(seen_noisy != seen)
        floor.append(seen != own)
        moved.append(relative(clean[layer], attacked[layer]))
        moved_by_noise.append(relative(clean[layer], disturbed[layer]))
    e, e_noise, e_clean, r, r_noise = (torch.stack(part, 1) for part in (
        flipped, by_noise, floor, moved, moved_by_noise))
    return Diagnosis(list(gan.layers), e, e_noise, e_clean, r, r_noise, information_lost([x, *clean.values()]))


def equal_noise(x: Tensor, x_adv: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """x with the differences of x_adv at other places and with other signs: noise of the same size in every norm.

    The |δ| of each image are permuted among its values; a sign is drawn, and turned where x ± |δ| would leave [0, 1],
    which one of the two never does for |δ| ≤ ½. Raises ValueError for larger differences.
    """
    for v in (x, x_adv):
        check_images(v)
    if x.shape != x_adv.shape:
        raise ValueError(f"x and x_adv are the same images, clean and attacked: {tuple(x.shape)} is not "
                         f"{tuple(x_adv.shape)}")
    check_settings({"generator": generator})
    size = (x_adv - x).abs()
    if float(size.max()) > 0.5:
        raise ValueError(f"a difference of {float(size.max()):.2f} does not fit into [0, 1] on either side of every "
                         "value: noise of equal size is there up to 0.5")
    draws = Draws(len(x), generator)
    size = size.flatten(1).gather(1, uniform(x.flatten(1), draws).argsort(1)).view_as(x)
    size = torch.where(uniform(x, draws) < 0.5, -size, size)
    return torch.where((x + size < 0) | (x + size > 1), x - size, x + size).clamp(0, 1)


def _instead(probe: Tensor, h: Tensor) -> Tensor:
    return probe


def relative(h: Tensor, other: Tensor) -> Tensor:
    """‖h' − h‖ / ‖h‖ (N,)."""
    size = h.flatten(1).norm(dim=1).clamp_min(torch.finfo(h.dtype).tiny)
    return (other - h).flatten(1).norm(dim=1) / size


@per_image
def nearest_flip(model: nn.Module, x: Tensor, y: Tensor, *, layer: str, steps: int = 20) -> Tensor:
    """The least ‖δ‖ / ‖h_l‖ (N,) found that makes the rest of the network answer other than y from h_l + δ.

    DeepFool's steps (Moosavi-Dezfooli et al., CVPR 2016) in the features of `layer`, which are in no box; exact where
    the rest is linear, else an upper bound. 0 for an image that is not answered y, infinity where no step got there.
    Cost: `steps` times a forward pass and K − 1 backward passes, of the network from the layer on.
    """
    with torch.no_grad(), features(model, [layer]) as found:
        z = model(x)
    h = found[layer].detach()
    K, delta = z.shape[1], torch.zeros_like(h)
    reached = torch.where(z.argmax(1) == y, torch.inf, 0.0).to(h)
    for _ in range(steps):
        probe = (h + 1.02 * delta).requires_grad_()
        with torch.enable_grad(), replace(model, {layer: partial(_instead, probe)}):
            z = model(x)
            away = z.argmax(1) != y
            size = relative(h, probe.detach())
            reached = torch.where(away & reached.isinf(), size, reached)
            if bool(reached.isfinite().all()):
                break
            lead = z.gather(1, y[:, None]) - z
            slopes = torch.stack([torch.autograd.grad(lead[:, k].sum(), probe, retain_graph=k < K - 1)[0].flatten(1)
                                  for k in range(K)], 1)
        far = (lead.detach() / slopes.norm(dim=2).clamp_min(1e-12)).scatter(1, y[:, None], torch.inf)
        near, k = far.min(1)
        w = slopes[torch.arange(len(x)), k]
        step = (near.clamp_min(0) + 1e-6)[:, None] * -w / w.norm(dim=1, keepdim=True).clamp_min(1e-12)
        delta = delta + torch.where(reached.isinf()[:, None], step, torch.zeros_like(step)).view_as(delta)
    return reached
