"""What must be seen: the price of a mask, how far it is from an area, and a map that is pushed one step ahead."""
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.explain.extremal import missed_area
from kit.explain.mask import total_variation
from kit.lab.checks import Case, exercise


def cost_cases(g: torch.Generator) -> Iterator[Case]:
    for (h, w), lam, lam_tv, beta in (((5, 4), 0.02, 0.3, 3.0), ((3, 6), 0.1, 0.02, 2.0)):
        yield torch.rand(4, h, w, generator=g).double(), lam, lam_tv, beta


def cost(m: Tensor, lam: float, lam_tv: float, beta: float) -> Tensor:
    return lam * (1 - m).sum((1, 2)) + lam_tv * total_variation(m, beta)


def steps_apart(m: Tensor) -> tuple[Tensor, Tensor]:
    return F.pad(m[:, 1:] - m[:, :-1], (0, 0, 0, 1)), F.pad(m[:, :, 1:] - m[:, :, :-1], (0, 1))


def each_way(m: Tensor, lam: float, lam_tv: float, beta: float) -> Tensor:
    return cost(m, lam, 0.0, beta) + lam_tv * sum(d.abs().pow(beta).sum((1, 2)) for d in steps_apart(m))


def round_the_edge(m: Tensor, lam: float, lam_tv: float, beta: float) -> Tensor:
    down, across = m.roll(-1, 1) - m, m.roll(-1, 2) - m
    return cost(m, lam, 0.0, beta) + lam_tv * (down.square() + across.square()).pow(beta / 2).sum((1, 2))


exercise(
    "mask-cost",
    "mask_cost(m, lam, lam_tv, beta) -> (N,), λ Σ (1 − m) + λ_tv Σ (Δ₁² + Δ₂²)^(β/2) over the cells of each mask m "
    "(N, h, w), where Δ₁ and Δ₂ are the differences to the next cell below and to the right, 0 beyond the last",
    cost, cost_cases,
    [
        ("no-op", lambda m, lam, lam_tv, beta: torch.zeros(len(m), dtype=m.dtype),
         ["yours deletes for nothing.", "λ (1 − m).sum((1, 2)), and the ragged edges."]),
        ("mean for sum", lambda m, lam, lam_tv, beta: cost(m, lam, lam_tv, beta) / m[0].numel(),
         ["your weights mean something else for another number of cells.", "sums over the cells, not means."]),
        ("mean for one sum", lambda m, lam, lam_tv, beta: cost(m, lam / m[0].numel(), lam_tv, beta),
         ["your first term is a mean.", "both are sums over the cells of an image."]),
        ("one sum for all", lambda m, lam, lam_tv, beta: cost(m, lam, lam_tv, beta).sum().expand(len(m)),
         ["what a mask costs depends on its mates in yours.", "a number for each mask: .sum((1, 2))."]),
        ("what is kept", lambda m, lam, lam_tv, beta: cost(1 - m, lam, lam_tv, beta),
         ["yours is the price of keeping.", "a deletion pays for 1 − m."]),
        ("β for β/2", lambda m, lam, lam_tv, beta: cost(m, lam, lam_tv, 2 * beta),
         ["the length of the gradient is the root of Δ₁² + Δ₂².", "(Δ₁² + Δ₂²) to the power β/2."]),
        ("each way by itself", each_way,
         ["yours raises |Δ₁| and |Δ₂| to the power β one by one.", "one length a cell: √(Δ₁² + Δ₂²)."]),
        ("round the edge", round_the_edge,
         ["the last row is no neighbour of the first.", "0 beyond the last: F.pad, and no roll."]),
    ],
)


def area_cases(g: torch.Generator) -> Iterator[Case]:
    for (h, w), area in (((5, 4), 0.2), ((6, 6), 0.75)):
        yield torch.rand(3, h, w, generator=g).double(), area


def kept(m: Tensor, area: float) -> Tensor:
    """r_a for each mask, in rising order: (N, h·w)."""
    d = m.shape[1:].numel()
    return (torch.arange(d) >= d - round(area * d)).to(m).expand(len(m), d)


def by_size(m: Tensor, area: float, r: Tensor, power: float = 2.0) -> Tensor:
    return (m.flatten(1).sort(1).values - r).abs().pow(power).mean(1)


exercise(
    "mask-area",
    "area_missed(M, area) -> (N,), the mean over pixels of (sort(M) − r_a)², without λ; M (N, H, W), in each of which "
    "area · H · W is a whole number",
    lambda M, area: missed_area(M, kept(M, area)), area_cases,
    [
        ("no-op", lambda M, area: M.flatten(1).square().mean(1),
         ["the best mask is empty in yours.", "the pixels in order, less 0 for the smallest and 1 for the largest."]),
        ("area of the mean", lambda M, area: (M.mean((1, 2)) - area).square(),
         ["half of everything has the same mean as all of one half.", "sort the pixels, and compare one by one."]),
        ("not sorted", lambda M, area: (M.flatten(1) - kept(M, area)).square().mean(1),
         ["yours asks for the last pixels of the image.", "M.flatten(1).sort(1).values comes first."]),
        ("the other share", lambda M, area: by_size(M, area, kept(M, 1 - area)),
         ["yours has the area 1 − a.", "the largest a · H · W of them should be 1."]),
        ("smallest to one", lambda M, area: by_size(M, area, 1 - kept(M, 1 - area)),
         ["sort puts the smallest first.", "r_a is 0 first, then 1."]),
        ("sum for mean", lambda M, area: M[0].numel() * by_size(M, area, kept(M, area)),
         ["yours grows with the number of pixels.", "the bar is a mean over pixels."]),
        ("distance for its square", lambda M, area: by_size(M, area, kept(M, area), 1.0),
         ["the differences are squared.", "(… − r)², then the mean."]),
    ],
)


class Answers:
    """A smooth objective J(m, v) → (N,) of masks (N, h) and images (N, d), with mixed second derivatives."""

    def __init__(self, g: torch.Generator, h: int, d: int):
        self.A = torch.randn(d, h, generator=g).double()
        self.b = torch.randn(h, generator=g).double()

    def __call__(self, m: Tensor, v: Tensor) -> Tensor:
        return torch.tanh((v @ self.A * m).sum(1)) + (m * self.b).square().sum(1)


def ahead_cases(g: torch.Generator) -> Iterator[Case]:
    for n, h, d, lr in ((3, 4, 6, 0.3), (5, 3, 4, 0.1)):
        m, aim = (torch.rand(n, h, generator=g).double() for _ in range(2))
        yield Answers(g, h, d), m, 0.5 * torch.rand(n, d, generator=g).double(), aim, lr


def one_ahead(
    J: Callable[[Tensor, Tensor], Tensor], m: Tensor, v: Tensor, aim: Tensor, lr: float, back: bool = False,
) -> Tensor:
    """The gradient of ‖m − lr ∇_m J(m, v) − aim‖² at v; `back`: only that through the new mask's own loss J."""
    m, v = m.detach().requires_grad_(), v.detach().requires_grad_()
    ahead = m - lr * torch.autograd.grad(J(m, v).sum(), m, create_graph=True)[0]
    aimed = J(ahead.detach(), v).sum() if back else (ahead - aim).square().sum()
    return torch.autograd.grad(aimed, v)[0]


exercise(
    "look-ahead",
    "look_ahead(J, m, v, aim, lr) -> the gradient with respect to the images v of Σ (m⁺ − aim)², where m⁺ = m − lr ∇_m "
    "J(m, v) is one step of descent on the masks m; J(m, v) gives a number for each image",
    one_ahead, ahead_cases,
    [
        ("no-op", lambda J, m, v, aim, lr: torch.zeros_like(v),
         ["your mask does not answer to the image: was the graph of its step kept?", "create_graph=True in ∇_m J."]),
        ("objective for mask", lambda J, m, v, aim, lr: one_ahead(J, m, v, aim, lr, back=True),
         ["yours changes what the mask is paid for, not where it goes.", "differentiate the distance of m⁺ to aim."]),
        ("uphill", lambda J, m, v, aim, lr: one_ahead(J, m, v, aim, -lr),
         ["your mask climbs.", "m minus lr times the gradient."]),
        ("sign error", lambda J, m, v, aim, lr: -one_ahead(J, m, v, aim, lr),
         ["that is the way to the aim; the gradient points away from it.", "no minus: whoever steps puts it there."]),
        ("mean for sum", lambda J, m, v, aim, lr: one_ahead(J, m, v, aim, lr) / m.numel(),
         ["a constant is missing: the number of cells.", ".square().sum(), not the mean."]),
        ("step alone", lambda J, m, v, aim, lr: one_ahead(J, m, v, m, lr),
         ["your aim is the mask itself.", "m⁺ − aim, where m⁺ is the whole mask after the step."]),
    ],
)
