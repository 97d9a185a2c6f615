"""Projections onto ball ∩ box, and the two halves of a DeepFool step."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.core import L1, L2, Linf
from kit.core.balls import column
from kit.lab.checks import Case, exercise


def far_cases(eps: tuple[float, ...]):
    """Points in the ball and far outside of it, many of them beyond the box."""
    def cases(g: torch.Generator) -> Iterator[Case]:
        for radius in eps:
            x = torch.rand(6, 1, 5, 5, generator=g)
            far = torch.tensor([0.005, 0.02, 0.3, 0.6, 1.0, 2.0]).view(-1, 1, 1, 1)
            yield x + far * torch.randn(x.shape, generator=g), x, radius
    return cases


def shrunk(z: Tensor, x: Tensor, eps: float) -> Tensor:
    """z moved towards x until it is in the l2 ball; the box is not looked at."""
    return x + column((eps / L2.norm(z - x)).clamp(max=1), x) * (z - x)


exercise(
    "linf-projection", "linf_projection(z, x, eps) -> the nearest point to z that is within ε of x in l∞ and in [0, 1]",
    lambda z, x, eps: Linf(eps).project(z, x), far_cases((0.05, 0.2)),
    [
        ("no-op", lambda z, x, eps: z,
         ["it gives z back as it was.", "clamp z − x to [−ε, ε], add x, clamp to [0, 1]."]),
        ("box alone", lambda z, x, eps: z.clamp(0, 1),
         ["some pixels are further than ε from x.", "the ball comes first: clamp(z − x, −ε, ε)."]),
        ("no box", lambda z, x, eps: x + (z - x).clamp(-eps, eps),
         ["some pixels are below 0 or above 1.", "`.clamp(0, 1)` at the end."]),
        ("scales", lambda z, x, eps: (x + column((eps / Linf.norm(z - x)).clamp(max=1), x) * (z - x)).clamp(0, 1),
         ["your point is in the ball, and not the nearest one.",
          "in l∞ every pixel is cut by itself; only l2 shrinks all of them together."]),
    ],
)

exercise(
    "l2-projection", "l2_projection(z, x, eps) -> the nearest point to z that is within ε of x in l2 and in [0, 1]",
    lambda z, x, eps: L2(eps).project(z, x), far_cases((0.4, 1.5)),
    [
        ("no-op", lambda z, x, eps: z,
         ["it gives z back as it was.", "what is outside of the ball has to move towards x."]),
        ("scale, then clip", lambda z, x, eps: shrunk(z, x, eps).clamp(0, 1),
         ["your point is in ball and box, and is not the nearest one.",
          "what the box cuts off is room in the ball that the other pixels may use.",
          "the answer is clamp(x + s(z − x), 0, 1): find the largest s ≤ 1 that stays in the ball, by bisection."]),
        ("clip, then scale", lambda z, x, eps: shrunk(z.clamp(0, 1), x, eps),
         ["your point is in ball and box, and is not the nearest one.",
          "clipping first changes the direction, also where it would not have been necessary.",
          "the answer is clamp(x + s(z − x), 0, 1): find the largest s ≤ 1 that stays in the ball, by bisection."]),
        ("no box", shrunk, ["some pixels are below 0 or above 1.", "ball and box are asked for at once."]),
        ("onto the sphere",
         lambda z, x, eps: (x + column(eps / L2.norm(z - x), x) * (z - x)).clamp(0, 1),
         ["a point that is in the ball already should stay where it is.", "the factor is min(1, ε/‖z − x‖)."]),
        ("one norm for the batch",
         lambda z, x, eps: (x + min(1.0, eps / float((z - x).norm())) * (z - x)).clamp(0, 1),
         ["what happens to an image depends on the others in the batch.",
          "take the norm of each image: flatten(1).norm(dim=1)."]),
        ("l1 norm", lambda z, x, eps: (x + column((eps / L1.norm(z - x)).clamp(max=1), x) * (z - x)).clamp(0, 1),
         ["your points are too near to x.", "‖δ‖₂ is the root of the sum of squares."]),
    ],
)


def plane_cases(g: torch.Generator) -> Iterator[Case]:
    for n, k, d in ((20, 3, 4), (30, 6, 10)):
        z, J = torch.randn(n, k, generator=g), torch.randn(n, k, d, generator=g)
        yield z, J * (0.2 + 2 * torch.rand(n, k, 1, generator=g)), torch.randint(k, (n,), generator=g)


def planes(z: Tensor, J: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """z_j − z_y (N, K) and its gradients (N, K, d)."""
    rows = torch.arange(len(y))
    return z - z[rows, y][:, None], J - J[rows, y][:, None]


def nearest(gap: Tensor, size: Tensor, y: Tensor) -> Tensor:
    return (gap.abs() / size).scatter(1, y[:, None], torch.inf).amin(1)


def by_gap(z: Tensor, J: Tensor, y: Tensor) -> Tensor:
    gap, w = planes(z, J, y)
    first = gap.abs().scatter(1, y[:, None], torch.inf).argmin(1, keepdim=True)
    return (gap.abs().gather(1, first) / w.norm(dim=2).gather(1, first))[:, 0]


exercise(
    "deepfool-plane", "deepfool_plane(z, J, y) -> (N,), the l2 distance to the nearest of the planes z_j = z_y, j ≠ y, "
    "for logits z (N, K) with gradients J (N, K, d)",
    lambda z, J, y: nearest(planes(z, J, y)[0], planes(z, J, y)[1].norm(dim=2), y), plane_cases,
    [
        ("no-op", lambda z, J, y: torch.zeros(len(y)),
         ["a distance of 0 is that of class y itself.", "leave j = y out before you take the least: set it to inf."]),
        ("least gap", by_gap,
         ["you chose the class with the least gap.", "the nearest plane has the least |gap| / ‖w‖: divide first."]),
        ("gradient of one logit", lambda z, J, y: nearest(planes(z, J, y)[0], J.norm(dim=2), y),
         ["whose gradient do you divide by?", "the plane is z_j − z_y = 0: its normal is J_j − J_y."]),
        ("l1 norm", lambda z, J, y: nearest(planes(z, J, y)[0], planes(z, J, y)[1].abs().sum(2), y),
         ["that is the distance in l∞.", "for l2 divide by the l2 norm of the gradient."]),
        ("squared norm", lambda z, J, y: nearest(planes(z, J, y)[0], planes(z, J, y)[1].square().sum(2), y),
         ["that is the factor of w in the step, not the distance.", "divide by ‖w‖ once."]),
        ("gap alone", lambda z, J, y: nearest(planes(z, J, y)[0], torch.ones_like(z), y),
         ["a gap of logits is no distance.", "divide by how fast the gap changes: ‖J_j − J_y‖₂."]),
    ],
)


def normal_cases(g: torch.Generator) -> Iterator[Case]:
    for n, d in ((4, 3), (6, 12)):
        yield -0.1 - torch.rand(n, generator=g), 2 * torch.randn(n, d, generator=g)


exercise(
    "deepfool-step", "deepfool_step(gap, w) -> (N, d), the shortest step onto the plane gap + w·r = 0, gap < 0",
    lambda gap, w: gap.abs()[:, None] * w / w.square().sum(1, keepdim=True), normal_cases,
    [
        ("no-op", lambda gap, w: torch.zeros_like(w), ["nothing moves.", "r points along w, and gap + w·r must be 0."]),
        ("sign error", lambda gap, w: gap[:, None] * w / w.square().sum(1, keepdim=True),
         ["your step goes away from the plane.", "the gap is negative and has to rise: −gap · w/‖w‖²."]),
        ("norm for its square", lambda gap, w: gap.abs()[:, None] * w / w.norm(dim=1, keepdim=True),
         ["put your r into gap + w·r: it is not 0.", "the length of r is |gap|/‖w‖, and w itself has the length ‖w‖."]),
        ("not divided", lambda gap, w: gap.abs()[:, None] * w,
         ["put your r into gap + w·r: it is not 0.", "w·w = ‖w‖²: divide by it."]),
        ("sign of w", lambda gap, w: gap.abs()[:, None] * w.sign() / w.abs().sum(1, keepdim=True),
         ["that reaches the plane, and is the shortest step in l∞.", "the shortest in l2 goes along w itself."]),
    ],
)
