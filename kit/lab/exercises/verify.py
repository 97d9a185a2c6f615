"""Complete verification: undecided ReLUs, the exact minimum pattern by pattern, and the multiplier of one side."""
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.certify.verify import Chain, mixed_integer
from kit.certify.verify.programs import intervals
from kit.lab.checks import Case, exercise


def drawn(g: torch.Generator, *sizes: int) -> Chain:
    """A chain with random weights, in double precision."""
    W = [torch.randn(m, n, generator=g).double() for n, m in itertools.pairwise(sizes)]
    return Chain(W, [torch.randn(m, generator=g).double() for m in sizes[1:]])


def box(g: torch.Generator, d: int, size: float) -> tuple[Tensor, Tensor]:
    middle = torch.rand(d, generator=g).double() - 0.5
    return middle - size, middle + size


def undecided_cases(g: torch.Generator) -> Iterator[Case]:
    for size in (0.05, 0.1, 0.2):
        yield drawn(g, 5, 40, 40, 3), *box(g, 5, size)


def undecided(net: Chain, low: Tensor, high: Tensor) -> int:
    return sum(int(m.sum()) for m in intervals(net, low, high).unstable())


def counted(net: Chain, low: Tensor, high: Tensor, *, clip: bool = True, ends: bool = False, layers: int = 9) -> int:
    """The count with one thing left out: the ReLU between layers, the signs of the weights, the later layers."""
    found = 0
    for W, b in list(zip(net.W[:-1], net.b[:-1], strict=True))[:layers]:
        middle, half = W @ (low + high) / 2 + b, W.abs() @ (high - low) / 2
        low, high = (W @ low + b, W @ high + b) if ends else (middle - half, middle + half)
        found += int(((low < 0) & (high > 0)).sum())
        if clip:
            low, high = low.relu(), high.relu()
    return found


exercise(
    "undecided-relus",
    "undecided(net, low, high) -> a number: how many ReLUs of a chain (net.W, net.b: a matrix and a bias for each "
    "layer, no ReLU after the last) may have an input of either sign on the box, by interval arithmetic",
    undecided, undecided_cases,
    [
        ("no-op", lambda net, low, high: net.relus,
         ["that is the number of all ReLUs.", "count those with a lower bound below 0 and an upper one above."]),
        ("decided", lambda net, low, high: net.relus - undecided(net, low, high),
         ["yours counts the others.", "undecided: lower bound < 0 < upper bound."]),
        ("first layer only", lambda net, low, high: counted(net, low, high, layers=1),
         ["a chain has more than one layer of ReLUs.", "push the box on: relu of both bounds, then the next layer."]),
        ("ReLU forgotten", lambda net, low, high: counted(net, low, high, clip=False),
         ["your boxes after the first layer are too wide.", "what goes on is relu(z): relu of both bounds."]),
        ("ends mapped", lambda net, low, high: counted(net, low, high, ends=True),
         ["a negative weight takes the other end of the box.",
          "W m + b ± |W| r, with m the middle and r half the width of the box."]),
        ("no bias", lambda net, low, high: undecided(Chain(net.W, [0 * b for b in net.b]), low, high),
         ["yours does not depend on net.b.", "the bias moves both bounds: W m + b ± |W| r."]),
        ("width for radius", lambda net, low, high: undecided(net, *(
            (low + high) / 2 + sign * (high - low) for sign in (-1, 1))),
         ["your box is twice as wide as the one asked about.", "r is half of high − low."]),
    ],
)


def minimum_cases(g: torch.Generator) -> Iterator[Case]:
    fold = torch.tensor([[1.0, 0.5], [-1, -0.5], [-0.5, 1], [0.5, -1]]).double()  # |x₁ + x₂/2| less 0.7 |x₂ − x₁/2|
    ends = torch.tensor([[1.0, 1, -0.7, -0.7]]).double()
    floor, ones = torch.randn(1, generator=g).double(), torch.ones(2).double()
    yield Chain([fold, ends], [torch.zeros(4).double(), floor]), -ones, ones
    for _ in range(2):
        yield drawn(g, 2, 2, 2, 1), *box(g, 2, 1.0)


def pieces(net: Chain, low: Tensor, high: Tensor, *, within: bool = True) -> Iterator[tuple[float, float]]:
    """For each pattern that some point has: the least M x there (or on all of the box), and the constant c."""
    from scipy.optimize import linprog

    for pattern in itertools.product((0.0, 1.0), repeat=net.relus):
        on = torch.tensor(pattern).double().split([len(b) for b in net.b[:-1]])
        M, c, A, ends = net.W[0], net.b[0], [], []
        for i, o in enumerate(on):
            A.append((1 - 2 * o)[:, None] * M)
            ends.append((2 * o - 1) * c)
            M, c = net.W[i + 1] @ (o[:, None] * M), net.W[i + 1] @ (o * c) + net.b[i + 1]
        limits = {"A_ub": torch.cat(A).numpy(), "b_ub": torch.cat(ends).numpy()} if within else {}
        found = linprog(M[0].numpy(), **limits, bounds=torch.stack([low, high], 1).numpy())
        if found.status == 0:
            yield float(found.fun), float(c)


def lowest(net: Chain, low: Tensor, high: Tensor) -> float:
    return mixed_integer(net, low, high).value


def corners(net: Chain, low: Tensor, high: Tensor) -> Tensor:
    return net(torch.stack([torch.stack(p) for p in itertools.product(*zip(low, high, strict=True))])).amin()


exercise(
    "exact-minimum",
    "lowest(net, low, high) -> a number: the least value of a chain's one output over the box, by a linear program for "
    "each pattern of its ReLUs",
    lowest, minimum_cases,
    [
        ("no-op", lambda net, low, high: net((low + high)[None] / 2)[0, 0],
         ["that is the value at the middle of the box.", "one linear program for each of the 2ⁿ patterns."]),
        ("corners", corners,
         ["a network with ReLUs need not be lowest at a corner.", "one linear program for each of the 2ⁿ patterns."]),
        ("pattern not enforced", lambda net, low, high: min(sum(p) for p in pieces(net, low, high, within=False)),
         ["your points need not have the pattern whose affine function you minimise.",
          "add A x ≤ b: z ≥ 0 where the pattern is 1, z ≤ 0 where it is 0."]),
        ("constant forgotten", lambda net, low, high: min(p[0] for p in pieces(net, low, high)),
         ["linprog minimises M·x; the output is M·x + c.", "add c of the pattern to found.fun before you compare."]),
        ("triangles", lambda net, low, high: mixed_integer(net, low, high, relaxed=True).value,
         ["a bound that holds, and that no point reaches.", "each ReLU is on or off: no triangle."]),
        ("highest", lambda net, low, high: -lowest(net.ended(
            -torch.ones(1, 1).double(), torch.zeros(1).double()), low, high),
         ["that is the largest value.", "linprog minimises: no minus before the cost, `min` over the patterns."]),
    ],
)


def side_cases(g: torch.Generator) -> Iterator[Case]:
    for side, beta in ((1, 0.7), (-1, 1.5), (1, 1.0)):
        a, w = torch.randn(2, 6, generator=g).double()
        c, v = torch.randn(2, generator=g).tolist()
        yield a, c, w, v, *box(g, 6, 0.6), side, beta


def least(a: Tensor, c: float, low: Tensor, high: Tensor) -> Tensor:
    """min over the box of a·x + c."""
    return a @ (low + high) / 2 - a.abs() @ (high - low) / 2 + c


def beta_bound(
    a: Tensor, c: float, w: Tensor, v: float, low: Tensor, high: Tensor, side: int, beta: float
) -> Tensor:
    return least(a - beta * side * w, c - beta * side * v, low, high)


exercise(
    "beta-bound",
    "beta_bound(a, c, w, v, low, high, side, beta) -> a number: a lower bound of a·x + c on the part of the box where "
    "z = w·x + v has the sign `side`, 1 or −1, with the multiplier β",
    beta_bound, side_cases,
    [
        ("no-op", lambda a, c, w, v, low, high, side, beta: least(a, c, low, high),
         ["that is the bound on the whole box.", "take β · side · z off before you minimise."]),
        ("sign error", lambda a, c, w, v, low, high, side, beta: beta_bound(a, c, w, v, low, high, side, -beta),
         ["what you add is positive on the part: yours need not lie below.", "minus β · side · (w·x + v)."]),
        ("one side", lambda a, c, w, v, low, high, side, beta: beta_bound(a, c, w, v, low, high, 1, beta),
         ["yours is meant for z ≥ 0, whatever `side` is.", "where z ≤ 0 it is −z that is positive: β · side · z."]),
        ("v forgotten", lambda a, c, w, v, low, high, side, beta: beta_bound(a, c, w, 0.0, low, high, side, beta),
         ["z has a constant, too.", "c − β · side · v."]),
        ("bounded apart", lambda a, c, w, v, low, high, side, beta:
         least(a, c, low, high) + least(-beta * side * w, -beta * side * v, low, high),
         ["true, and too low: your two minima are taken at two points.",
          "one linear function, a − β · side · w, and one minimum."]),
        ("lower ends", lambda a, c, w, v, low, high, side, beta:
         (a - beta * side * w) @ low + c - beta * side * v,
         ["a negative coefficient is lowest at the upper end.", "A·m − |A|·r with A = a − β · side · w."]),
    ],
)
