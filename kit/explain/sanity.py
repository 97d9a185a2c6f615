"""Sanity checks: a map that is the same for a network without knowledge does not show what the network knows.

`randomised` takes a network's weights away, layer by layer; `ssim` and `rank_correlation` compare the maps before and
after. Taking away the labels needs a network trained on permuted ones: `kit.models` ships none, the chapter trains it.
Source: Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018.
"""
import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.explain.metrics import unit_range


def randomised(
    model: nn.Module, *, cascading: bool = True, layers: list[str] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name of the layer, a copy of the model with it made random), from the logits down to the pixels.

    Cascading: all layers above it are random as well. Independent (cascading=False): it alone is. A layer's weights,
    and apart from them its biases, are permuted: they stay as large as they were, and what they mean is gone.
    `layers` are names of modules; the default is each with weights of its own.
    Source: Adebayo et al. 2018, section 3 (they draw anew from the initial distribution).
    """
    generator = generator or torch.Generator().manual_seed(0)
    modules = dict(model.named_modules())
    own = [name for name, m in modules.items() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
    chosen = own if layers is None else layers
    if missing := [name for name in chosen if name not in modules]:
        raise ValueError(f"the model has no layer {missing[0]!r}; those with weights are {', '.join(own)}")
    broken = copy.deepcopy(model)
    for name in reversed(chosen):
        broken = broken if cascading else copy.deepcopy(model)
        with torch.no_grad():
            for p in dict(broken.named_modules())[name].parameters():
                order = torch.randperm(p.numel(), generator=generator).to(p.device)
                p.copy_(p.flatten()[order].view_as(p))
        yield name, copy.deepcopy(broken) if cascading else broken


def ssim(a: Tensor, b: Tensor, *, size: int = 7) -> Tensor:
    """Structural similarity of two maps (N, H, W), each scaled to [0, 1]: 1 where they are the same, (N,).

    The mean, over windows of `size` × `size` pixels, of (2 μ_a μ_b + C₁)(2 σ_ab + C₂) / ((μ_a² + μ_b² + C₁)(σ_a² + σ_b²
    + C₂)) with C₁ = 0.01², C₂ = 0.03², all pixels weighted alike, variances with n − 1.
    Source: Wang et al., Image quality assessment, 2004, equation 13.
    """
    if a.shape != b.shape or a.dim() != 3:
        raise ValueError(f"the two maps must have one shape (N, H, W), not {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = unit_range(a.detach().double())[:, None], unit_range(b.detach().double())[:, None]
    mu_a, mu_b = F.avg_pool2d(a, size, 1), F.avg_pool2d(b, size, 1)
    n = size * size / (size * size - 1)
    var_a, var_b = n * (F.avg_pool2d(a * a, size, 1) - mu_a**2), n * (F.avg_pool2d(b * b, size, 1) - mu_b**2)
    cov = n * (F.avg_pool2d(a * b, size, 1) - mu_a * mu_b)
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return values.mean((1, 2, 3)).to(torch.float32)


def rank_correlation(a: Tensor, b: Tensor, *, absolute: bool = True) -> Tensor:
    """Spearman's ρ between the pixels of two maps (N, H, W), of their |R| where `absolute`; equal pixels share a rank.

    1 where the order is the same, about 0 where it has nothing in common, and 0 for a constant map.
    """
    if a.shape != b.shape or a.dim() != 3:
        raise ValueError(f"the two maps must have one shape (N, H, W), not {tuple(a.shape)} and {tuple(b.shape)}")
    from scipy.stats import rankdata

    flat = ((m.abs() if absolute else m).detach().flatten(1).cpu().numpy() for m in (a, b))
    ranks = [torch.from_numpy(rankdata(m, axis=1)) for m in flat]
    u, v = (r - r.mean(1, keepdim=True) for r in ranks)
    return ((u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)).clamp_min(1e-30)).float()
