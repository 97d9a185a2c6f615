"""What all attacks on labels keep: one answer is one query, the label alone is looked at, the best is returned."""
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from kit.attacks import LabelOnly, boundary, hopskipjump, opt_attack, sign_opt
from kit.attacks.decision import labels
from kit.core import Draws, Goal, Live, Progress, QueryCounter, fooled, generator
from kit.models.service import Service
from tests.attacks.decision.conftest import exact
from tests.attacks.scores.blind import Blind

ATTACKS = [boundary, hopskipjump, opt_attack, sign_opt]
every = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)


def size(x_adv, x):
    return (x_adv - x).flatten(1).norm(dim=1)


@every
def test_the_label_alone_is_looked_at_and_no_gradient(linear, attack):
    model, x, y = linear
    found = attack(model, x, y, max_queries=250)
    assert fooled(model, found, y).all()
    assert torch.equal(found, attack(LabelOnly(model), x, y, max_queries=250))
    assert torch.equal(found, attack(Blind(model), x, y, max_queries=250))
    assert torch.equal(found, attack(lambda v: 4 * model(v), x, y, max_queries=250))


@every
def test_what_is_returned_is_wrong_when_asked_again_in_any_batch(attack):
    """In float32, with logits so large that their rounding is felt."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 4)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(p.numel())) * 3)
    x = torch.rand(40, 3, 10, 10, generator=generator(0))
    y = model(x).argmax(1)
    x_adv = attack(model, x, y, max_queries=200)
    assert fooled(model, x_adv, y).all()
    assert size(x_adv, x).mean() < 5  # the start is 7 away
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert all(bool(fooled(model, x_adv[i:i + 1], y[i:i + 1])) for i in range(40))
    assert fooled(model.double(), x_adv.double(), y).all()


@every
def test_queries_are_counted_and_never_more_are_asked(linear, attack):
    model, x, y = linear
    already = y.clone()
    already[:3] = (y[:3] + 1) % 5
    for budget in (1, 2, 3, 12, 60, 333):
        counter, trace = QueryCounter(model, len(x)), Progress(x)
        x_adv = attack(counter, x, already, max_queries=budget, trace=trace)
        assert (counter.counts[:3] == 1).all()
        assert torch.equal(x_adv[:3], x[:3])
        assert (counter.counts[3:] <= budget).all()
        assert (counter.counts[3:] >= 0.75 * budget).all()
        assert (trace.first[3:] >= 2).all()
        assert (trace.after(10**6) * 1.0011 >= size(x_adv, x) - 1e-5).all()  # and a thousandth further
        assert (trace.after(budget // 2) >= trace.after(budget)).all()
        assert trace.after(1)[3:].isinf().all()
        assert torch.equal(trace.first.isfinite(), fooled(model, x_adv, already))


@every
def test_more_queries_come_nearer_and_the_nearest_that_was_asked_about_is_returned(plane, attack):
    model, x, y, _ = plane
    asked = []

    class Record(nn.Module):
        def forward(self, v):
            asked.append(v.clone())
            return model(v)

    before = torch.full((8,), torch.inf)
    for budget in (40, 300, 1000):
        distance = size(attack(model, x[:8], y[:8], max_queries=budget), x[:8])
        assert (distance < before).float().mean() > 0.8
        before = distance
    x_adv = attack(Record(), x[:1], y[:1], max_queries=400)
    seen = torch.cat(asked)
    wrong = model(seen).argmax(1) != y[0]
    assert float(size(x_adv, x[:1])) <= 1.003 * float(size(seen[wrong], x[:1]).min())


@every
def test_an_image_for_which_no_start_is_found_comes_back_untouched(linear, attack):
    _, x, _ = linear
    sure = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    nn.init.zeros_(sure[1].weight)
    counter, y = QueryCounter(sure, len(x)), sure(x).argmax(1)
    assert torch.equal(attack(counter, x, y, max_queries=100, tries=7), x)
    assert (counter.counts == 1 + 7).all()


def test_noise_is_blended_until_it_is_wrong():
    """The model says 1 where the mean lies between, and 0 for x and for all fine noise."""
    def model(v):
        mean = v.flatten(1).mean(1)
        inside = ((mean > 0.1) & (mean < 0.3)).to(v)
        return torch.stack([1 - 2 * inside, 2 * inside - 1], 1)

    x = torch.zeros(4, 1, 16, 16)
    y = torch.zeros(4, dtype=torch.int64)
    x_adv = hopskipjump(model, x, y, max_queries=60)
    assert fooled(model, x_adv, y).all()
    assert (x_adv.flatten(1).mean(1) < 0.11).all()


@every
def test_towards_a_target_from_images_of_its_class(linear, attack):
    model, x, y = linear
    target = (y + 1) % 5
    with pytest.raises(ValueError, match="begins from images of the target class: give start="):
        attack(model, x, y, target=target, max_queries=50)
    pool = torch.rand(400, 3, 4, 4, generator=generator(1))
    of = model(pool).argmax(1)
    start = torch.stack([pool[of == t][:4] for t in target])
    begun = Progress(x)
    few = attack(model, x, y, target=target, start=start, max_queries=3, trace=begun)
    nearest = (start - x[:, None]).flatten(2).norm(dim=2).amin(1)
    assert torch.allclose(begun.distance[begun.first == 2], nearest[begun.first == 2])
    assert (begun.first == 2).all()
    x_adv = attack(model, x, y, target=target, start=start, max_queries=800)
    assert fooled(model, few, y, target).all()
    assert fooled(model, x_adv, y, target).all()
    assert (size(x_adv, x) < 0.5 * nearest).float().mean() > 0.9
    one = attack(model, x, y, target=target, start=start[:, 0], max_queries=300)
    assert fooled(model, one, y, target).all()
    wrong = attack(model, x, y, target=target, start=x, max_queries=50)  # which are not of the target's class
    assert torch.equal(wrong, x)
    with pytest.raises(ValueError, match="start must have the images' shape"):
        attack(model, x, y, target=target, start=pool[:1, :, :2], max_queries=50)


@every
def test_a_classifier_of_another_library_and_a_service(linear, attack):
    model, x, y = linear
    points = torch.rand(300, 48, generator=generator(2))
    neighbours = KNeighborsClassifier(3).fit(points.numpy(), model(points.view(-1, 3, 4, 4)).argmax(1).numpy())

    def predict(v):
        return nn.functional.one_hot(torch.from_numpy(neighbours.predict(v.flatten(1).numpy())), 5) - 0.5

    few, said = x[:6], predict(x[:6]).argmax(1)
    assert fooled(predict, attack(predict, few, said, max_queries=120), said).all()
    with Service(model, digits=1) as service:
        counter = QueryCounter(service.remote(), 6)
        remote = attack(counter, few, y[:6], max_queries=60)
        assert service.billed == counter.total + 4  # two images are asked about twice, to look at the model
        assert fooled(service.remote(), remote, y[:6]).all()


@every
def test_a_start_that_is_no_image_and_steps_of_no_length_are_refused(linear, attack):
    model, x, y = linear
    few = {"model": model, "x": x[:4], "y": y[:4], "max_queries": 2}
    for start, said in ((255 * x[:4], "divide them by 255"), (x[:4] / 0, "start"), ((255 * x[:4]).byte(), "/ 255")):
        with pytest.raises((ValueError, TypeError), match=said):
            attack(start=start, **few)
    with pytest.raises(TypeError, match="start must be a torch tensor, not list"):
        attack(start=x[:4].tolist(), **few)
    wrong = {"boundary": ({"around": -1.0}, {"around": float("nan")}, {"towards": 0.0}, {"towards": 1.0}),
             "hopskipjump": ({"gamma": 0.0}, {"gamma": -1.0}),
             "opt_attack": ({"beta": 0.0},),
             "sign_opt": ({"beta": 0.0},)}
    for setting in wrong[attack.__name__]:
        with pytest.raises(ValueError, match=f"{next(iter(setting))}.* more than 0"):
            attack(**few, **setting)


@every
def test_nan_is_no_label(linear, attack):
    model, x, y = linear

    def breaks(v):  # away from the images the model overflows
        z = model(v)
        return torch.where(((v - 0.5).abs() > 0.06).flatten(1).any(1, keepdim=True), torch.nan, z)

    with pytest.raises(ValueError, match="the model returned NaN for 40 of 40 images that an attack asked about"):
        attack(breaks, x, y, max_queries=50)


def at_the_plane(plane, n=4):
    """`Live` images whose v lies on the plane, with the normal towards what is wrong."""
    model, x, y, normal = plane
    live = Live(model, x[:n], Goal(y[:n]), Draws(n, generator(1)))
    live.most, live.norm, live.size = 10**6, "l2", exact(plane)[:n]
    sign = torch.where(y[:n] == 0, 1.0, -1.0).double()[:, None]
    live.v = (live.x.flatten(1) + live.size[:, None] * sign * normal).view_as(live.x)
    return live, sign * normal


def test_bisection_ends_within_its_share_of_the_way(plane):
    live, normal = at_the_plane(plane, 20)
    wrong = live.v + (live.v - live.x) * torch.linspace(0.1, 1, 20).double()[:, None, None, None]
    for theta in (0.1, 1e-3):
        live.found.asked.zero_()
        v = labels.to_boundary(live, wrong, theta)
        beyond = ((v - live.v).flatten(1) * normal).sum(1)
        assert (beyond >= -1e-12).all()
        assert (beyond <= theta * size(wrong, live.x)).all()
        assert (live.asked == labels.rounds(theta)).all()
    live.found.asked.zero_()
    live.most = 6  # five for less than the ten halvings of 1e-3, and one is kept
    labels.to_boundary(live, wrong, 1e-3)
    assert (live.asked == 5).all()
    live.most, live.norm = 10**6, "linf"
    v = labels.to_boundary(live, wrong, 1e-4)
    reach = labels.length(live, wrong - live.x)
    cut = torch.maximum(torch.minimum(wrong - live.x, reach[:, None, None, None]), -reach[:, None, None, None])
    assert ((v - live.x).abs() <= cut.abs() + 1e-12).all()
    assert (live.model(v).argmax(1) != live.goal.y).all()


@pytest.mark.parametrize("count", [20, 100, 400])
@pytest.mark.parametrize("centred", [False, True])
def test_votes_have_the_cosine_of_their_theory(plane, count, centred):
    """cos = 1/√(1 + π (d − 1)/2B) on a plane: towards the normal E|u·n| = √(2/πd), across it noise of √((d − 1)/Bd)."""
    live, normal = at_the_plane(plane)
    cosines = []
    for _ in range(25):
        many = torch.full((4,), count)
        g = labels.votes(live, many, lambda u: live.v[:, None] + 1e-3 * u, centred=centred)
        cosines.append((nn.functional.normalize(g.flatten(1)) * normal).sum(1))
    theory = (1 + torch.pi * 89 / 2 / count) ** -0.5
    cosines = torch.cat(cosines)
    assert float(cosines.mean()) == pytest.approx(theory, abs=4 * float(cosines.std()) / 100**0.5 + 0.01)
    assert theory > 0.3


def test_off_the_plane_the_mean_must_be_taken_off(plane):
    """A probe's reach along the normal is δ/√d: from δ/√d beyond the plane 84 % are wrong, and votes lean that way."""
    live, normal = at_the_plane(plane)
    delta, many = 1e-2, torch.full((4,), 400)
    live.v = live.v + (delta / 90**0.5 * normal).view_as(live.v)

    def cosine(centred):
        g = [labels.votes(live, many, lambda u: live.v[:, None] + delta * u, centred=centred) for _ in range(20)]
        return (nn.functional.normalize(torch.stack(g).flatten(2), dim=2) * normal).sum(2).mean()

    plain, centred = cosine(False), cosine(True)
    phi = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(1.0)) * 2 - 1
    pull = (2 / torch.pi) ** 0.5 * torch.exp(torch.tensor(-0.5))
    theory = [float((1 + 89 * noise / 400 / pull**2) ** -0.5) for noise in (1.0, 1 - phi**2)]
    assert [float(plain), float(centred)] == pytest.approx(theory, abs=0.02)
    assert centred > plain + 0.05


def test_votes_do_not_depend_on_the_batch_nor_on_the_chunk(plane, monkeypatch):
    import kit.core.passes

    def estimate(n, counts):
        live, _ = at_the_plane(plane, n)
        live.draws = Draws(4, generator(1))[torch.arange(n)]
        return labels.votes(live, torch.tensor(counts), lambda u: live.v[:, None] + 1e-3 * u, centred=True)

    whole = estimate(4, [30, 17, 1, 30])
    assert torch.allclose(whole[:1], estimate(1, [30]))
    assert torch.allclose(whole[:2], estimate(2, [30, 17]))
    monkeypatch.setitem(kit.core.passes.PIXELS, "cpu", 1)
    assert torch.allclose(whole, estimate(4, [30, 17, 1, 30]))


def test_votes_that_agree_point_where_they_were_cast(plane):
    live, normal = at_the_plane(plane)
    live.v = live.v + 0.1 * normal.view_as(live.v)
    many = torch.full((4,), 50)
    assert labels.votes(live, many, lambda u: live.v[:, None] + 1e-3 * u, centred=True).abs().max() > 0


def test_label_only_gives_the_label_and_nothing_else(linear):
    model, x, _ = linear
    z = LabelOnly(model)(x)
    assert torch.equal(z.argmax(1), model(x).argmax(1))
    assert z.unique().tolist() == [-1, 1]
    assert (z.sum(1) == -3).all()
