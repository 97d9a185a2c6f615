import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.attacks import pgd
from kit.core import fooled, generator
from kit.defend.deflect import Deflection, apart, deflection_training, drawings, every
from kit.detect import evade
from kit.models import Recipe, build
from kit.models.purifiers import Capsules

EDGES = torch.eye(8)[:6].double().view(2, 3, 8)  # class k: three pixels of its own; the last two belong to nobody


class Subspaces(nn.Module):
    """r_k(x) is the projection of x on the subspace of class k, and z_k = −‖x − r_k(x)‖₂²: all in closed form."""

    def __init__(self, bases=EDGES):
        super().__init__()
        self.register_buffer("bases", bases)

    def capsules(self, x):
        flat = x.flatten(1)
        parts = torch.einsum("krd,nd->nkr", self.bases, flat)
        rest = flat.square().sum(1)[:, None] - parts.square().sum(2)
        return torch.cat([parts, rest[:, :, None]], 2)

    def answers(self, v):
        return -v[:, :, -1]

    def draw(self, v, k):
        own = v[torch.arange(len(v)), k, :-1]
        return torch.einsum("nr,nrd->nd", own, self.bases[k]).view(-1, 1, 2, 4)

    def forward(self, x):
        return self.answers(self.capsules(x))


@pytest.fixture
def case():
    """Images in their class's subspace, with a little noise in what belongs to nobody."""
    g = generator(0)
    y = torch.arange(400) % 2
    inside = 0.3 + 0.5 * torch.rand(400, 3, generator=g).double()
    x = torch.einsum("nr,nrd->nd", inside, EDGES[y])
    x[:, 6:] = 0.05 * torch.rand(400, 2, generator=g).double()
    return Subspaces(), x.view(-1, 1, 2, 4), y


def test_the_error_is_the_residual_and_the_other_signs_follow(case):
    model, x, y = case
    detector = Deflection(model)
    error, best, cycle = detector.measured(x).unbind(1)
    flat = x.flatten(1)
    torch.testing.assert_close(error, flat[:, 6:].norm(dim=1), atol=1e-6, rtol=1e-6)
    own = flat.view(-1, 8)[:, :6].view(-1, 2, 3)[torch.arange(400), y].norm(dim=1)
    other = (error.square() + own.square()).sqrt()  # nothing of the image lies in the other subspace
    torch.testing.assert_close(best, error - other)
    torch.testing.assert_close(cycle, -own.square())  # the drawing has a distance of zero from its own
    torch.testing.assert_close(every(model, x, model.capsules(x))[torch.arange(400), y], error)
    torch.testing.assert_close(drawings(model, x).flatten(1)[:, 6:], torch.zeros(400, 2).double())


def test_what_stays_in_the_subspace_passes_and_what_leaves_it_is_refused(case):
    model, x, y = case
    detector = Deflection(model, ["error"]).fit(x[:200])
    detector.threshold(x[200:300])
    within, beyond = x.clone().flatten(1), x.clone().flatten(1)
    within[torch.arange(400), 3 * y] += 0.2
    beyond[:, 7] += 0.2
    within, beyond = within.view_as(x), beyond.view_as(x)
    assert detector.alarm(beyond).all()
    assert torch.equal(detector.alarm(within), detector.alarm(x))
    torch.testing.assert_close(detector.score(within), detector.score(x))


def test_the_rate_of_false_alarms_is_the_one_asked_for(case):
    model, _, _ = case
    g = generator(5)
    y = torch.arange(4000) % 2
    x = torch.einsum("nr,nrd->nd", 0.3 + 0.5 * torch.rand(4000, 3, generator=g).double(), EDGES[y])
    x[:, 6:] = 0.05 * torch.rand(4000, 2, generator=g).double()
    x = x.view(-1, 1, 2, 4)
    for signs in (("error",), ("best", "cycle"), ("error", "best", "cycle")):
        detector = Deflection(model, signs).fit(x[:1000])
        detector.threshold(x[1000:2000], fpr=0.05)
        assert abs(float(detector.alarm(x[2000:]).double().mean()) - 0.05) < 0.025


def test_signs_count_alike_and_any_of_them_refuses(case):
    model, x, _ = case
    three, few = Deflection(model).fit(x[:200]), x[200:]
    values = three.measured(few)
    scaled = (values - three.mean) / three.deviation
    torch.testing.assert_close(three.score(few), scaled.amax(1))
    for i, sign in enumerate(("error", "best", "cycle")):
        torch.testing.assert_close(Deflection(model, [sign]).fit(x[:200]).score(few), scaled[:, i])


def test_an_attack_that_knows_it_moves_along_the_drawings(case):
    """Class 1's own pixels may grow and class 0's shrink: then the drawing of the wrong class is a good one."""
    model, x, y = case
    detector = Deflection(model).fit(x[:200])
    detector.threshold(x[200:300])
    few, label = x[300:340], y[300:340]
    blind = pgd(model, few, label, eps=0.5, steps=20)
    aware = evade(model, few, label, detector=detector, eps=0.8, steps=60)
    seen = fooled(model, blind, label) & detector.alarm(blind)
    through = fooled(model, aware, label) & ~detector.alarm(aware)
    assert seen.double().mean() > 0.9
    assert through.double().mean() > 0.9


def test_a_drawing_reads_one_class_alone_and_an_image_no_other():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Capsules(size=16, classes=4, numbers=3, width=4).double().eval()
    x = torch.rand(5, 1, 16, 16, generator=generator(1)).double()
    v, k = model.capsules(x), torch.tensor([0, 1, 2, 3, 0])
    assert v.shape == (5, 4, 3)
    torch.testing.assert_close(model(x), v.square().mean(2))
    changed = v.clone()
    changed[~F.one_hot(k, 4).bool()] += 1
    torch.testing.assert_close(model.draw(changed, k), model.draw(v, k))
    assert not torch.allclose(model.draw(v + F.one_hot(k, 4)[..., None], k), model.draw(v, k))
    assert model.draw(v, k).shape == x.shape
    detector = Deflection(model).fit(x)
    torch.testing.assert_close(torch.cat([detector.score(row[None]) for row in x]), detector.score(x))


def test_training_makes_drawings_and_answers():
    """Two classes, a bright left and a bright right half: both are learnt, and each class's drawing is its own."""
    g = generator(0)
    y = torch.arange(64) % 2
    x = 0.1 * torch.rand(64, 1, 8, 8, generator=g)
    x[y == 0, :, :, :4] += 0.8
    x[y == 1, :, :, 4:] += 0.8
    r = Recipe("none", "capsules", {"size": 8, "classes": 2, "width": 4}, epochs=150, batch=16, lr=1e-2)
    state = torch.get_rng_state()
    model = deflection_training(r, x, y, device=torch.device("cpu")).eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert not fooled(model, x, y).any()
    error = (drawings(model, x) - x).square().mean()
    assert error < 0.02  # a grey image has 0.16
    own, other = every(model, x, model.capsules(x)).gather(1, torch.stack([y, 1 - y], 1)).unbind(1)
    assert (own < other).all()


def test_the_network_is_built_by_its_name_and_what_was_fitted_is_kept(tmp_path):
    model = build("deflect/digits").eval()
    assert sum(p.numel() for p in model.parameters()) < 75_000  # 150 kB in half precision
    x = torch.rand(6, 1, 28, 28, generator=generator(0))
    detector = Deflection(model, ["error", "cycle"]).fit(x)
    detector.tau = 0.5
    detector.save(tmp_path / "d")
    again = Deflection.load(tmp_path / "d", model)
    assert (again.signs, again.tau) == (("error", "cycle"), 0.5)
    assert torch.equal(again.score(x), detector.score(x))


def test_what_makes_no_sense(case):
    model, x, _ = case
    for signs in ((), ("error", "worst")):
        with pytest.raises(ValueError, match="signs are some of error, best, cycle"):
            Deflection(model, signs)
    with pytest.raises(ValueError, match="call fit"):
        Deflection(model).score(x)
    assert float(apart(x, x).max()) < 1e-5
