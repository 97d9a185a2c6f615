"""Bounds through the layers: a network whose five numbers are known; sound, and exact where they must be."""
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from kit.certify import (
    Box,
    ClippedBall,
    Layers,
    Relaxed,
    alpha_crown,
    certified,
    certified_radius,
    crown,
    fast_lin,
    ibp,
    ibp_training,
)
from kit.certify.bounds import relaxed
from kit.core import Normalize, ball, generator, logits
from kit.models import Recipe
from kit.models.families import FAMILIES, Add, Concat, conv

METHODS = {"ibp": ibp, "fast_lin": fast_lin, "crown": crown, "alpha_crown": alpha_crown}


def tiny() -> tuple[nn.Sequential, Box]:
    """Two inputs in [−1, 1], two hidden layers of two ReLUs, one output, that depends on x₂ − x₁ alone."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    numbers = {0: ([[-1, 1], [2, -2]], [-1, 0]), 2: ([[1, 2], [-1, 2]], [0, -1]), 4: ([[2, -2]], [0])}
    for k, (W, b) in numbers.items():
        model[k].weight.data, model[k].bias.data = torch.tensor(W).double(), torch.tensor(b).double()
    one = torch.ones(1, 2, dtype=torch.float64)
    return model, Box(-one, one)


def greatest(method: str, intervals: str = "unused") -> float:
    model, box = tiny()
    return -float(Relaxed(model, box, method, intervals=intervals).least(-torch.ones(1, 1)).detach())


def triangle() -> float:
    """The greatest output where each ReLU is anything in its triangle: h ≥ z, h ≥ 0, h ≤ w z + t; by linear programs,
    which give the bounds before the ReLUs too. Variables: x, then z and h of each layer."""
    model, _ = tiny()
    bounds, A, b, A_eq, b_eq = [(-1.0, 1.0)] * 2, [], [], [], []

    def row(entries: dict[int, float]) -> np.ndarray:
        found = np.zeros(11)
        for i, value in entries.items():
            found[i] = value
        return found

    def most(entries: dict[int, float]) -> float:
        ends = bounds + [(None, None)] * (11 - len(bounds))
        found = linprog(-row(entries), A or None, b or None, A_eq or None, b_eq or None, bounds=ends)
        return -found.fun

    before = [0, 1]
    for k in (0, 2):
        first, W, bias = len(bounds), model[k].weight.tolist(), model[k].bias.tolist()
        for i in range(2):  # z = W h + b
            A_eq.append(row({first + i: 1.0, **{j: -w for j, w in zip(before, W[i], strict=True)}}))
            b_eq.append(bias[i])
        bounds += [(None, None)] * 2
        ends = [(-most({first + i: -1.0}), most({first + i: 1.0})) for i in range(2)]
        for i, (l, u) in enumerate(ends):
            z, h, w = first + i, first + 2 + i, max(u, 0) / (max(u, 0) - min(l, 0))
            A += [row({z: 1.0, h: -1.0}), row({h: 1.0, z: -w})]
            b += [0.0, -w * min(l, 0)]
        bounds += [(0.0, None)] * 2
        before = [first + 2, first + 3]
    return most(dict(zip(before, (2.0, -2.0), strict=True)))


def test_five_numbers_of_a_tiny_network():
    """Exact 2, triangle 46/9, CROWN 6, Fast-Lin 8.7226, intervals 18 (METHOD 3.5 of the method cards)."""
    model, _ = tiny()
    x = torch.cartesian_prod(*[torch.linspace(-1, 1, 401, dtype=torch.float64)] * 2)
    assert float(model(x).detach().max()) == pytest.approx(2)
    assert triangle() == pytest.approx(46 / 9)
    assert greatest("crown") == pytest.approx(6)
    assert greatest("fast_lin") == pytest.approx(8.7226, abs=5e-5)
    assert greatest("ibp") == pytest.approx(18)
    assert greatest("crown", "choose") == pytest.approx(6)


def test_relu_of_x_and_of_minus_x():
    """relu(x) + relu(−x) = |x| on [−1, 1]: intervals give 2, both linear methods the greatest value, 1."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    model[0].weight.data, model[2].weight.data = torch.tensor([[1.0], [-1.0]]).double(), torch.ones(1, 2).double()
    one = torch.ones(1, 1, dtype=torch.float64)
    for method, most in (("ibp", 2), ("fast_lin", 1), ("crown", 1)):
        assert float(-Relaxed(model, Box(-one, one), method).least(-one).detach()) == pytest.approx(most)


def test_a_unit_that_is_zero_everywhere_costs_nothing():
    """Its two bounds are both 0, and the line between them has no slope of its own."""
    model, box = tiny()
    wider = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), *model[3:]).double()
    with torch.no_grad():
        for k, W, b in ((0, model[0].weight, model[0].bias), (2, model[2].weight, model[2].bias)):
            wider[k].weight.zero_()[: len(W), : W.shape[1]] = W
            wider[k].bias.zero_()[: len(b)] = b
        wider[2].weight[:, 2] = 7.0
        C = torch.tensor([[1.0], [-1.0]])
        for method in ("crown", "fast_lin", "ibp"):
            assert torch.equal(Relaxed(wider, box, method).least(C), Relaxed(model, box, method).least(C))


def scaled(model: nn.Module, seed: int) -> nn.Module:
    source = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source) * 1.5 / max(1, p[0].numel()) ** 0.5)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(generator=source)
                m.running_var.uniform_(0.5, 2, generator=source)
    return model.double().eval()


class Mixed(nn.Module):
    """What the kit's networks are made of, and functions that are no modules: sums, a mean, a view by the batch."""

    def __init__(self):
        super().__init__()
        self.normalise, self.stem = Normalize((0.4, 0.5), (0.3, 0.2)), nn.Conv2d(2, 4, 3, padding=1)
        self.bn, self.shortcut, self.inner = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 3, 2, 1)
        self.add, self.concat, self.head = Add(), Concat(), nn.Linear(16 + 4 + 2, 5)
        self.pool, self.over = nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)
        self.average = nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        h = self.bn(self.stem(self.normalise(x))).relu()
        a = self.over(self.average(h))
        r = torch.relu(self.add(self.shortcut(a), self.inner(a)))
        cat = self.concat(r, self.over(self.pool(self.stem(self.normalise(x)))))
        return self.head(torch.cat([cat.reshape(x.size(0), -1)[:, :16], a.mean((2, 3)), 2 * x.flatten(1)[:, :2]], 1))


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(),
                                 nn.Linear(12, 5)),
    "mixed": Mixed,
    "normed": lambda: nn.Sequential(conv(2, 3), nn.MaxPool2d(2), conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                    nn.Linear(4, 5)),
    **{name: lambda name=name: FAMILIES[name](5, 2, 8, width=4, mean=(0.4, 0.5), std=(0.3, 0.2)) for name in
       ("cnn7", "vgg", "resnet", "densenet", "inception", "mobilenet")},
}


def inside(x: torch.Tensor, eps: float, norm: str, source: torch.Generator) -> torch.Tensor:
    """Points of the clipped ball, most of them at its corners and faces."""
    b = ball(norm, eps)
    d = torch.randn(x.shape, generator=source, dtype=x.dtype)
    return b.project(x + (d.sign() * eps if norm == "linf" else b.step(torch.zeros_like(x), d, 3 * eps)), x)


@pytest.mark.parametrize(("name", "norm"), [
    *((name, "linf") for name in NETWORKS), *((name, norm) for name in ("mlp", "mixed") for norm in ("l2", "l1"))])
def test_no_point_of_the_ball_is_below_a_bound(name, norm):
    """Nor above one before a ReLU; and without a ball every bound is the margin itself."""
    model, source = scaled(NETWORKS[name](), 1), generator(2)
    x = torch.rand(3, 2, 8, 8, generator=source, dtype=torch.float64)
    y = torch.tensor([0, 3, 1])
    eps = {"linf": 0.02, "l2": 0.25, "l1": 2.0}[norm]
    bounds = {m: f(model, x, y, eps=eps, norm=norm, **({"steps": 3} if m == "alpha_crown" else {}))
              for m, f in METHODS.items()}
    bounds["crown-ibp"] = crown(model, x, y, eps=eps, norm=norm, intermediate="ibp")
    for k in range(40):
        z = logits(model, inside(x, eps * (k % 4 + 1) / 4, norm, source))
        found = z.gather(1, y[:, None]) - z
        for method, bound in bounds.items():
            assert bool((bound <= found + 1e-9).all()), method
    z = logits(model, x)
    for method, bound in bounds.items():
        assert bool((bound.gather(1, y[:, None]).abs() < 1e-9).all())  # z_y − z_y
        assert torch.allclose(METHODS.get(method, crown)(model, x, y, eps=0.0, norm=norm),
                              z.gather(1, y[:, None]) - z, atol=1e-9)
    assert bool((bounds["alpha_crown"] >= bounds["crown"] - 1e-12).all())
    if name == "mlp":
        assert bounds["alpha_crown"].sum() > bounds["crown"].sum() > bounds["ibp"].sum()


GROUPS, CLASSES = 100, 3


def many(seed: int) -> nn.Module:
    """Hundreds of small networks side by side, as the groups of convolutions: 2 inputs, 6 and 5 ReLUs, 3 logits."""
    widths = (2, 6, 5, CLASSES)
    layers: list[nn.Module] = []
    for cin, cout in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(GROUPS * cin, GROUPS * cout, 1, groups=GROUPS), nn.ReLU()]
    return scaled(nn.Sequential(*layers[:-1], nn.Flatten()), seed)


def margins_of(model: nn.Module, domain, method: str, **how) -> torch.Tensor:
    """Lower bounds of z_0 − z_1 and z_0 − z_2 of every network, (2 · GROUPS,)."""
    C = torch.zeros(GROUPS, CLASSES - 1, GROUPS, CLASSES)
    for k in (1, 2):
        C[torch.arange(GROUPS), k - 1, torch.arange(GROUPS), 0] = 1
        C[torch.arange(GROUPS), k - 1, torch.arange(GROUPS), k] = -1
    with torch.no_grad():
        return Relaxed(model, domain, method, **how).least(C.flatten(0, 1).flatten(1))[0]


def least_of_grid(model: nn.Module, x: torch.Tensor, eps: float) -> torch.Tensor:
    steps = torch.linspace(-eps, eps, 21, dtype=x.dtype)
    grid = (x + torch.cartesian_prod(steps, steps).repeat(1, GROUPS)[:, :, None, None]).clamp(0, 1)
    with torch.no_grad():
        z = model(grid).unflatten(1, (GROUPS, CLASSES))
    return (z[:, :, :1] - z[:, :, 1:]).amin(0).flatten()


def test_thousands_of_random_networks():
    """2000 networks at two radii: no bound is above what a grid finds, linear bounds are tighter than intervals, and
    bounds fall as ε grows: those of intervals always, those of CROWN not quite, since its slopes jump."""
    gaps, rises = dict.fromkeys(("ibp", "fast_lin", "crown"), 0.0), dict.fromkeys(("ibp", "fast_lin", "crown"), 0)
    for seed in range(20):
        model, before = many(seed), {}
        x = torch.rand(1, 2 * GROUPS, 1, 1, dtype=torch.float64, generator=generator(seed))
        for eps in (0.1, 0.3):
            exact = least_of_grid(model, x, eps)
            for method in gaps:
                bound = margins_of(model, ClippedBall(x, eps), method)
                assert bool((bound <= exact + 1e-9).all()), method
                gaps[method] += float((exact - bound).mean()) / 40
                rises[method] += int((bound > before.get(method, bound) + 1e-9).sum())
                before[method] = bound
    assert gaps["crown"] < gaps["fast_lin"] < gaps["ibp"] / 5
    assert rises["ibp"] == 0
    assert 0 < rises["crown"] < 40  # of 4000
    assert rises["fast_lin"] < 40


def test_of_a_linear_network_every_bound_is_the_least_margin_itself():
    """Over the box, and over the l2 and l1 balls cut by it."""
    x = torch.tensor([[0.05, 0.5, 0.6, 0.9]], dtype=torch.float64).view(1, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    model[1].weight.data = torch.tensor([[3.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).double()
    model[1].bias.data = torch.zeros(2).double()
    clean = 3 * 0.05 + 0.5 - 0.6
    y = torch.tensor([0])
    expected = {  # the first pixel can fall by 0.05 alone
        "linf": clean - 3 * 0.05 - 0.2 - 0.2, "l1": clean - 3 * 0.05 - 0.15,
        "l2": clean - 3 * 0.05 - (2 * (0.2**2 - 0.05**2)) ** 0.5,
    }
    for norm, least in expected.items():
        for method in ("crown", "fast_lin"):
            assert float(METHODS[method](model, x, y, eps=0.2, norm=norm)[0, 1]) == pytest.approx(least, abs=1e-7)


def test_the_radius_of_a_linear_network_is_its_distance():
    x = 0.4 + 0.2 * torch.rand(20, 1, 4, 4, generator=generator(0), dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    model[1].weight.data = 0.3 * torch.randn(3, 16, generator=generator(1), dtype=torch.float64)
    model[1].bias.data = -(model[1].weight.data * x.mean(0).flatten()).sum(1)
    z = logits(model, x)
    y = z.argmax(1)
    y[0] = (y[0] + 1) % 3  # one that is misclassified
    W = model[1].weight.data
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", float("inf"))):
        distances = torch.stack([
            (z.gather(1, y[:, None])[:, 0] - z[:, k]) / (W[y] - W[k]).norm(p=dual, dim=1).clamp_min(1e-9)
            + 9 * (y == k) for k in range(3)], 1).amin(1).clamp_min(0)
        radius = certified_radius(model, x, y, norm=norm, steps=20)
        assert radius[0] == 0
        if norm != "l1":  # there a pixel may meet the box first
            assert torch.allclose(radius, distances, rtol=2e-3)
        assert bool((radius >= 0.99 * distances).all())


def test_certified_wants_every_other_class_above_zero():
    bounds = torch.tensor([[0.0, 1.0, 2.0], [0.0, -0.1, 3.0], [5.0, 0.0, 1e-9], [-1.0, 0.0, 2.0]])
    assert certified(bounds, torch.tensor([0, 0, 1, 1])).tolist() == [True, False, False, False]


def test_a_max_pooling_is_bounded_by_a_plane_and_not_by_a_constant():
    """max(x₁, x₂) ≤ (x₁ + x₂)/2 + 1 on [−1, 1]²: x₁ + x₂ − 2 max ≥ −2, where the greatest end alone gives −4."""
    class Net(nn.Module):
        def forward(self, x):
            most = nn.functional.max_pool2d(x, (1, 2)).flatten(1)
            return torch.cat([x.flatten(1), most], 1)

    one = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    C = torch.tensor([[1.0, 1.0, -2.0], [-1.0, -1.0, 2.0]])
    net = Relaxed(Net(), Box(-one, one))
    assert net.least(C)[0].tolist() == pytest.approx([-2, -0.0])
    A, c = net.linear(C)
    x = 2 * torch.rand(500, 1, 1, 2, dtype=torch.float64, generator=generator(0)) - 1
    value = Net()(x) @ C.double().T
    assert bool((value >= torch.einsum("sjkl,njkl->ns", A[0], x) + c[0] - 1e-12).all())


def test_bounds_that_hold_already_are_used():
    """Intervals before the ReLUs, cut with what CROWN found there, give CROWN's own bound."""
    model = scaled(NETWORKS["mlp"](), 1)
    domain = ClippedBall(torch.rand(2, 2, 8, 8, generator=generator(2), dtype=torch.float64), 0.05)
    C = torch.eye(5)
    with torch.no_grad():
        net = Relaxed(model, domain)
        loose = Relaxed(model, domain, intermediate="ibp").least(C)
        again = Relaxed(model, domain, intermediate="ibp", known=net.ends).least(C)
        assert torch.allclose(again, net.least(C))
        assert float((again - loose).mean()) > 0.01
        with pytest.raises(ValueError, match="known has bounds for 1"):
            Relaxed(model, domain, known=net.ends[:1])


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AvgPool2d(2, 1)])
def test_intervals_lose_nothing_at_a_pooling(pool):
    """The rows of the last layer end at an average over separate windows and pass one over windows that overlap: the
    bound is that of the whole affine part on the ends of the ReLU either way."""
    torch.manual_seed(0)
    body, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), torch.rand(5, 1, 6, 6)
    tail = nn.Sequential(pool, nn.Flatten(), nn.LazyLinear(4))
    tail(body(x))
    W = torch.func.vmap(torch.func.jacrev(lambda h: tail(h[None])[0]))(body(x)).flatten(2)  # the same for every x
    b = tail(torch.zeros(1, 3, 4, 4))[0]
    lower, upper = Relaxed(nn.Sequential(body, tail), Box(x - 0.1, x + 0.1), "ibp").ends[0]
    l, u = lower.clamp(min=0).flatten(1), upper.clamp(min=0).flatten(1)
    C = torch.eye(4)[:1] - torch.eye(4)[1:]
    rows = C @ W[0]
    want = ((rows.clamp(min=0) @ l.T) + (rows.clamp(max=0) @ u.T)).T + C @ b
    torch.testing.assert_close(Relaxed(nn.Sequential(body, tail), Box(x - 0.1, x + 0.1), "ibp").least(C), want)


def test_the_groups_of_rows_make_no_difference(monkeypatch):
    model, y = scaled(NETWORKS["mixed"](), 1), torch.tensor([0, 1])
    x = torch.rand(2, 2, 8, 8, generator=generator(2)).double()
    whole = crown(model, x, y, eps=0.02)
    monkeypatch.setitem(relaxed.ROWS, "cpu", 1)
    assert torch.allclose(whole, crown(model, x, y, eps=0.02), atol=1e-12)


@pytest.mark.parametrize(("model", "message"), [
    (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh()), "no rule for tanh"),
    (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(1, 3)), "ceil_mode"),
])
def test_what_has_no_rule_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        ibp(model, torch.rand(1, 1, 2, 2), torch.tensor([0]), eps=0.1)


def test_wrong_sets_and_specifications_are_refused():
    model, box = tiny()
    with pytest.raises(ValueError, match="empty"):
        Box(box.upper, box.lower)
    with pytest.raises(ValueError, match="listed for inputs of shape"):
        Relaxed(Layers(model, box.lower), Box(torch.zeros(1, 3).double(), torch.ones(1, 3).double()))
    with pytest.raises(ValueError, match="C must have the shape"):
        Relaxed(model, box).least(torch.ones(1, 2))
    with pytest.raises(ValueError, match="no linear function"):
        Relaxed(model, box, "ibp").linear(torch.ones(1, 1))
    with pytest.raises(ValueError, match="method must be one of"):
        Relaxed(model, box, "crwon")


def test_training_on_intervals_makes_margins_that_intervals_prove():
    """On two classes of bars; the same training without the intervals' share (kappa = 1) proves next to nothing."""
    source = generator(0)
    y = torch.arange(96) % 2
    x = 0.25 + 0.1 * torch.rand(96, 1, 8, 8, generator=source)
    x[y == 0, :, :4] += 0.4
    x[y == 1, :, 4:] += 0.4
    r = Recipe("bars", "small", {"classes": 2, "size": 8, "width": 4}, epochs=40, batch=16, lr=5e-3)
    share = {}
    for kappa in (1.0, 0.5):
        model = ibp_training(r, x, y, eps=0.15, kappa=kappa, device=torch.device("cpu"))
        share[kappa] = float(certified(ibp(model, x, y, eps=0.15), y).float().mean())
    assert share[0.5] > 0.95
    assert share[1.0] < 0.5
    with pytest.raises(ValueError, match="batch norm"):
        ibp_training(Recipe("bars", "cnn7", {"size": 8}, epochs=1), x, y, eps=0.1, warm=0.0, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="kappa"):
        ibp_training(r, x, y, eps=0.1, kappa=2.0, device=torch.device("cpu"))
