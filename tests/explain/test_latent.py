"""Codes learnt without labels: closed forms of the losses, and what the shipped networks must and must not do."""
import importlib
import math

import pytest
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import generator
from kit.data.factors import read, table
from kit.explain import (
    along,
    draw_code,
    information_bound,
    kl,
    mig,
    permuted,
    progression,
    swap,
    transfer,
    traverse,
    vae_terms,
)
from kit.explain.latent import Discriminator
from kit.models import Recipe
from kit.models.generative import VAE

vae = importlib.import_module("kit.explain.latent.vae")
infogan = importlib.import_module("kit.explain.latent.infogan")
moving = importlib.import_module("kit.explain.latent.transfer")
CPU = torch.device("cpu")
SMALL = Recipe("factors", "vae", {"codes": 3, "widths": (8,)}, epochs=2, batch=32, lr=1e-2)


@pytest.fixture(scope="module")
def own():
    return kit.data.load("factors")


def codes(model, x):
    with torch.no_grad():
        return model.encode(x)[0]


# --- the price and the reconstruction -------------------------------------------------------------------------------


def test_kl_is_torchs():
    mu, s = torch.randn(2, 40, 3, generator=generator(0), dtype=torch.float64)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, (0.5 * s).exp()), torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(kl(mu, s), theirs)
    assert float(kl(torch.zeros(1), torch.zeros(1))) == 0


class Linear(nn.Module):
    """Encoder and decoder with one weight for each direction: what every linear VAE is, after a rotation."""

    def __init__(self, d):
        super().__init__()
        self.a, self.b, self.s = (nn.Parameter(torch.full((d,), v, dtype=torch.float64)) for v in (0.5, 0.5, -1.0))

    def encode(self, x):
        mu = self.a * x.flatten(1)
        return mu, self.s.expand_as(mu)

    def logits(self, z):
        return (self.b * z)[:, None, None]


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_a_linear_vae_gives_up_each_direction_whose_variance_is_below_beta_times_the_noise(beta):
    """b² = (v − βσ²)₊ and KL = ½ ln(v / βσ²)₊: with σ² = ¼ and β = 2 the third direction collapses, and the fourth."""
    v, sigma = torch.tensor([4.0, 1.0, 0.4, 0.1], dtype=torch.float64), 0.5
    x = torch.randn(400, 4, generator=generator(0), dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 400).T) * v.sqrt()  # exactly these variances
    model = Linear(4)
    step = torch.optim.Adam(model.parameters(), 0.03)
    for k in range(900):
        step.param_groups[0]["lr"] = 0.03 * (1 - k / 900)
        reconstruction, price, _ = vae_terms(model, x[:, None, None], sigma=sigma, generator=generator(k))
        step.zero_grad()
        (reconstruction.mean() + beta * price.sum(1).mean()).backward()
        step.step()
    _, price, _ = vae_terms(model, x[:, None, None], sigma=sigma)
    b2 = (v - beta * sigma**2).clamp_min(0)
    assert model.b.detach().square().tolist() == pytest.approx(b2.tolist(), abs=0.08)
    nats = (0.5 * (v / (beta * sigma**2)).log()).clamp_min(0)
    assert price.mean(0).tolist() == pytest.approx(nats.tolist(), abs=0.05)


def test_the_reconstruction_is_a_sum_over_pixels():
    """Of a decoder that says nothing, ln 2 for each pixel; with σ, half the squared distance in units of σ."""
    model, x = VAE(codes=2, widths=(4,)), torch.rand(3, 1, 16, 16, generator=generator(0))
    for p in model.parameters():
        nn.init.zeros_(p)
    reconstruction, price, z = vae_terms(model, x)
    assert reconstruction.tolist() == pytest.approx([256 * math.log(2)] * 3, rel=1e-5)
    assert price.abs().max() == 0
    assert len(z.unique()) == 6  # drawn for each image and number
    by_sigma, _, _ = vae_terms(model, x, sigma=0.5)
    assert torch.allclose(by_sigma, 2 * x.square().flatten(1).sum(1))


def trained(trainer, own, **options):
    return trainer(SMALL, own.x[:64], own.y[:64], device=CPU, **options)


def test_a_higher_price_buys_fewer_nats(own):
    def nats(**options):
        model = vae.vae_training(SMALL.__class__("factors", "vae", {"codes": 3, "widths": (16,)}, epochs=60, batch=64,
                                                 lr=1e-2), own.x[:256], own.y[:256], device=CPU, **options)
        with torch.no_grad():
            return float(vae_terms(model, own.x[:256])[1].sum(1).mean())

    cheap, dear, held = nats(beta=0.2), nats(beta=8.0), nats(capacity=3.0)
    assert cheap > 2 * dear
    assert held == pytest.approx(3, abs=0.3)


class Known(nn.Module):
    """A "VAE" that draws every image as it is, but the last four as the next ones, and whose code is the factors."""

    def forward(self, x):
        return torch.cat([x[:-4], x[-4:].roll(1, 0)])

    def encode(self, x):
        mu = read(x).double()
        return mu, torch.zeros_like(mu)

    def logits(self, z):
        return torch.zeros(len(z), 1, 16, 16)


def test_the_figures_of_a_known_vae_are_those_of_theory(own):
    x, v = own.x[::19][:40], table(own)[::19][:40]
    found = vae.vae_figures(SMALL, Known(), x, own.y[:40])
    kept = (v[-4:] == v[-4:].roll(1, 0)).double().mean()
    assert float(kept) < 1
    assert found["accuracy"] == pytest.approx(0.9 + 0.1 * float(kept))
    assert found["reconstruction"] == pytest.approx(256 * math.log(2), rel=1e-5)
    assert found["kl"] == pytest.approx(float(v.double().square().sum(1).mean() / 2))
    assert found["mig"] == mig(v.double(), v)


# --- FactorVAE ------------------------------------------------------------------------------------------------------


def test_permuting_keeps_each_column_and_breaks_what_they_share():
    z = torch.randn(500, 1, generator=generator(0)).expand(500, 3).contiguous()
    drawn = permuted(z, generator(1))
    assert torch.equal(drawn.sort(0).values, z.sort(0).values)
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.15
    assert torch.equal(drawn, permuted(z, generator(1)))


def test_the_discriminator_finds_the_total_correlation_of_a_gaussian():
    """−½ ln(1 − ρ²) nats for two numbers of correlation ρ, and none for independent ones."""
    for rho in (0.9, 0.0):
        torch.manual_seed(0)
        D, source = Discriminator(2, width=16, lr=5e-3), generator(0)
        mixed = torch.tensor([[1.0, rho], [0.0, math.sqrt(1 - rho**2)]])
        for _ in range(500):
            D.step(torch.randn(256, 2, generator=source) @ mixed, source)
        with torch.no_grad():
            found = float(D(torch.randn(4000, 2, generator=source) @ mixed).mean())
        assert found == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.15)


def test_without_its_weight_factor_vae_is_the_vae_weight_for_weight(own):
    """The trap of stepping: D neither reaches the encoder nor takes its random numbers."""
    plain = trained(vae.vae_training, own).state_dict()
    without = trained(vae.factor_vae_training, own, gamma=0.0).state_dict()
    with_it = trained(vae.factor_vae_training, own, gamma=10.0).state_dict()
    assert all(torch.equal(v, without[k]) for k, v in plain.items())
    assert not all(torch.equal(v, with_it[k]) for k, v in plain.items())


def test_torch_refuses_a_discriminator_that_steps_between_loss_and_gradient():
    torch.manual_seed(0)
    D, z = Discriminator(2, width=4), torch.randn(8, 2, requires_grad=True)
    loss = D(z).mean()
    D.step(z)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
    assert z.grad is None
    D.step(z)
    assert z.grad is None


def test_factor_vaes_loss_is_the_three_terms_and_its_discriminator_has_stepped_before(own, monkeypatch):
    made = []

    class Stub(nn.Module):
        def __init__(self, codes):
            super().__init__()
            self.codes, self.first, self.steps = codes, float(torch.rand(())), []
            made.append(self)

        def forward(self, z):
            assert len(self.steps) == 1
            return z.sum(1)

        def step(self, z, generator):
            self.steps.append((z.detach().clone(), generator))

    monkeypatch.setattr(vae, "Discriminator", Stub)
    losses = []
    monkeypatch.setattr(vae, "fit", lambda r, x, y, loss, seed, device: losses.append(loss))
    for seed in (3, 3, 4):
        vae.factor_vae_training(SMALL, own.x, own.y, gamma=7.0, seed=seed, device=CPU)
    assert made[0].first == made[1].first != made[2].first
    model, x = VAE(codes=3, widths=(8,)), own.x[:5]
    found = losses[0](model, x, own.y[:5], generator(1))
    reconstruction, price, z = vae_terms(model, x, generator=generator(1))
    assert torch.allclose(found, (reconstruction + price.sum(1) + 7 * z.sum(1)).mean())
    assert torch.equal(made[0].steps[0][0], z)
    assert made[0].steps[0][1].initial_seed() == 3


# --- InfoGAN --------------------------------------------------------------------------------------------------------


def test_the_bound_is_ln_10_where_q_is_right_and_sure_and_0_where_it_says_nothing():
    c = torch.arange(10).repeat(3)
    sure = 50 * nn.functional.one_hot(c, 10).float()
    assert information_bound(sure, c) == pytest.approx(math.log(10))
    assert information_bound(torch.zeros(30, 10), c) == pytest.approx(0, abs=1e-9)
    assert information_bound(sure.roll(1, 1), c) < -40
    some = information_bound(torch.randn(30, 10, generator=generator(0)) + sure / 20, c)
    assert 0 < some < math.log(10)


def test_a_code_is_drawn_as_its_distribution_says():
    model = kit.models.build(kit.models.CATALOGUE["infogan/factors"])
    z, category, values = draw_code(model, 3000, generator=generator(0))
    k = model.noise
    assert torch.equal(z[:, k : k + model.categories].argmax(1), category)
    assert torch.equal(z[:, k + model.categories :], values)
    assert category.bincount().min() > 800
    assert values.abs().max() <= 1
    assert float(values.var()) == pytest.approx(1 / 3, abs=0.03)
    assert torch.equal(draw_code(model, 5, category=category[:5])[1], category[:5])


def test_a_turn_of_infogan_descends_both_losses_as_they_are_written(own, monkeypatch):
    """Of the first batch: D and Q on real and drawn, then G and Q on drawn, the bound in both."""
    turns = []
    monkeypatch.setattr(infogan, "_step", lambda *turn: turns.append(turn))
    r = Recipe("factors", "infogan", {"width": 8}, epochs=1, batch=64, lr=1e-2)
    model = infogan.infogan_training(r, own.x[:64], own.y[:64], device=CPU, lam=0.7, seed=5)
    source = generator(5)
    rows = torch.randint(64, (64,), generator=source)
    z, category, values = draw_code(model, 64, generator=source)
    fake = model.decode(z)
    (real, _), (drawn, judged) = model.judge(own.x[:64][rows]), model.judge(fake)
    named, read_off = judged.split([model.categories, model.numbers], 1)
    bound = nn.functional.cross_entropy(named, category) + 0.5 * (read_off - values).square().sum(1).mean()
    logistic = nn.functional.binary_cross_entropy_with_logits
    by_d = logistic(real, torch.ones(64)) + logistic(drawn, torch.zeros(64)) + 0.7 * bound
    by_g = logistic(drawn, torch.ones(64)) + 0.7 * bound
    for (_, loss, _), exact in zip(turns, (by_d, by_g), strict=True):
        torch.testing.assert_close(loss, exact)
    rates = [rule.param_groups[0]["lr"] for rule, _, _ in turns]
    assert rates == pytest.approx([r.lr / 5, r.lr])
    theirs = sum(1 for part in (model.trunk, model.real, model.read) for _ in part.parameters())
    ours = sum(1 for part in (model.generator, model.read) for _ in part.parameters())
    assert [len(weights) for _, _, weights in turns] == [theirs, ours]
    other = infogan.infogan_training(r, own.x[:64], own.y[:64], device=CPU, seed=6)
    assert not torch.equal(model.read.weight, other.read.weight)


def test_the_code_of_an_infogan_is_its_surest_category_and_the_means():
    model = lambda x: torch.tensor([[0.0, 3.0, 1.0, 0.25, -0.5]])  # noqa: E731
    model.categories = 3
    assert infogan.codes(model, None).tolist() == [[1.0, 0.25, -0.5]]


# --- moves ----------------------------------------------------------------------------------------------------------


def test_swapping_twice_is_the_identity_and_with_itself_nothing():
    a, b = torch.randn(2, 5, 6, generator=generator(0))
    group = [1, 4]
    a1, b1 = swap(a, b, group)
    assert torch.equal(a1[:, group], b[:, group])
    assert torch.equal(b1[:, group], a[:, group])
    rest = [0, 2, 3, 5]
    assert torch.equal(a1[:, rest], a[:, rest])
    assert all(torch.equal(u, v) for u, v in zip(swap(a1, b1, group), (a, b), strict=True))
    assert torch.equal(swap(a, a, group)[0], a)


def test_with_the_true_factors_for_a_code_the_donors_value_is_drawn_in_that_group_only(own):
    v = table(own)
    donor = v[torch.randperm(768, generator=generator(0))]
    for k in range(4):
        drawn = read(kit.data.factors.draw(swap(v, donor, [k])[0]))
        assert torch.equal(drawn[:, k], donor[:, k])
        assert torch.equal(drawn[:, [i for i in range(4) if i != k]], v[:, [i for i in range(4) if i != k]])


class Shift:
    """A "decoder" of three numbers: the brightness of the left half, of the right half, and an idle one."""

    def decode(self, z):
        x = torch.zeros(len(z), 1, 4, 4)
        x[:, 0, :, :2], x[:, 0, :, 2:] = z[:, 0, None, None].sigmoid(), z[:, 1, None, None].sigmoid()
        return x


class Left(nn.Module):
    """Two classes, by the left half alone."""

    def forward(self, x):
        left = 6 * (x[:, 0, :, :2].mean((1, 2)) - 0.5)
        return torch.stack([-left, left], 1)


def test_a_traversal_moves_one_number_at_a_time():
    z = torch.randn(2, 3, generator=generator(0))
    walk = along(z, 1, torch.tensor([-1.0, 0.0, 1.0]))
    assert walk[:, :, 1].tolist() == [[-1, 0, 1]] * 2
    assert torch.equal(walk[:, :, [0, 2]], z[:, None, [0, 2]].expand(2, 3, 2))
    images = traverse(Shift(), z, span=1.0, steps=3)
    assert images.shape == (2, 3, 3, 1, 4, 4)
    assert (images[:, 0].diff(dim=1)[..., :2] > 0).all()
    assert (images[:, 0].diff(dim=1)[..., 2:] == 0).all()
    assert (images[:, 2].diff(dim=1) == 0).all()
    assert torch.equal(traverse(Shift(), z, numbers=[2, 0], span=1.0, steps=3), images[:, [2, 0]])


def test_a_classifier_is_moved_along_what_it_looks_at_and_along_nothing_else():
    z = torch.zeros(4, 3)
    found = [progression(Left(), Shift(), z, j) for j in range(3)]
    assert (found[0].effect > 0.9).all()
    assert found[1].effect.abs().max() == found[2].effect.abs().max() == 0
    p = found[0].probabilities
    assert p.shape == (4, 7, 2)
    assert torch.allclose(p.sum(2), torch.ones(4, 7))
    assert (p[:, :, 1].diff(dim=1) > 0).all()


# --- the shipped networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae/factors", "beta-vae/factors", "factor-vae/factors"])
def test_a_shipped_vae_draws_its_images_again_and_does_not_ignore_its_code(name, own):
    model, v = kit.models.load(name), table(own)
    mu = codes(model, own.x)
    entry = kit.models.entry(name)
    assert mig(mu, v) == pytest.approx(entry["mig"], abs=0.03)
    assert entry["mig"] > 0.1
    right = (read(model(own.x)) == v).float().mean(0)
    assert (right[2:] > 0.75).all()  # the place
    order = torch.randperm(768, generator=generator(0))
    with torch.no_grad():
        drawn = read(model.decode(mu[order]))
    assert ((drawn == v).float().mean(0) < 0.6).all()  # another image's code draws another image
    assert ((drawn == v[order])[:, 2:].float().mean(0) > 0.75).all()


def test_the_shipped_infogan_draws_what_its_category_says():
    """A generator that ignored its code would leave Q at chance, L_I at 0, and the drawn shape as it was."""
    model = kit.models.load("infogan/factors")
    z, category, _ = draw_code(model, 600, generator=generator(0))
    with torch.no_grad():
        x = model.decode(z)
        found = information_bound(model(x)[:, : model.categories], category)
        k = slice(model.noise, model.noise + model.categories)
        other = z.clone()
        other[:, k] = z[:, k].roll(1, 1)  # the next category, and nothing else
        changed = (model.decode(other) - x).square().flatten(1).sum(1)
    assert 0.8 * math.log(3) < found <= math.log(3)
    assert float((changed > 1).float().mean()) > 0.9
    with torch.no_grad():
        assert (model(model.decode(other))[:, : model.categories].argmax(1) == (category + 1) % 3).float().mean() > 0.8


def test_on_scenes_the_reader_sees_the_donors_value_in_the_exchanged_group_only():
    data = kit.data.load("scenes", "test", n=400, size=16, near=True)
    network, entry = kit.models.load("attributes/scenes"), kit.models.entry("attributes/scenes")
    moved, stayed = moving.moved_and_stayed(network, data)
    assert float(moved.float().mean()) == pytest.approx(entry["accuracy"], abs=0.05)
    assert float(stayed.mean()) == pytest.approx(entry["others"], abs=0.05)
    assert entry["accuracy"] > 0.6
    assert entry["others"] > 0.6
    assert torch.equal(transfer(network, data.x[:5], data.x[:5], "colour"), network(data.x[:5]))


def test_the_reader_of_hues_reads_scenes():
    data = kit.data.load("scenes", "test", n=400, size=16, near=True)
    found = kit.data.hues(data.x, data.mask)
    for name, least in (("colour", 0.95), ("background_colour", 0.95), ("polarity", 0.97)):
        assert float((found[name] == data.concepts[name]).float().mean()) > least, name


class Plain(nn.Module):
    """Images are their codes: two attributes of a number each, and one number more."""

    def __init__(self):
        super().__init__()
        self.groups = {"a": range(0, 1), "b": range(1, 2)}
        self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3)
        self.own = nn.ModuleDict({name: nn.Linear(1, 2) for name in self.groups})
        self.other = nn.ModuleDict({name: nn.Linear(2, 2) for name in self.groups})

    def encode(self, x):
        return self.encoder(2 * x - 1)

    def decode(self, h):
        return self.decoder(h).sigmoid()

    parts = kit.models.generative.Attributes.parts


def test_the_loss_of_the_exchange_is_its_four_terms():
    torch.manual_seed(0)
    model, x = Plain(), torch.rand(5, 3, generator=generator(0))
    labels = {"a": torch.tensor([0, 1, 1, 0, 1]), "b": torch.tensor([1, 1, 0, 0, 1])}
    order = torch.tensor([3, 0, 4, 1, 2])
    found = moving.transfer_loss(model, x, labels, lam=0.5, name="b", order=order)
    entropy = nn.functional.cross_entropy
    h = model.encode(x)
    moved = torch.stack([h[:, 0], h[order, 1], h[:, 2]], 1)
    again = model.encode(model.decode(moved))
    back = torch.stack([again[:, 0], h[:, 1], again[:, 2]], 1)
    told = {"a": labels["a"], "b": labels["b"][order]}
    loss = ((model.decode(h) - x).square().sum(1) + (model.decode(back) - x).square().sum(1)).mean()
    for k, name in enumerate(("a", "b")):
        rest = [j for j in range(3) if j != k]
        loss = loss + 0.5 * (entropy(model.own[name](h[:, [k]]), labels[name])
                             + entropy(model.other[name](h[:, rest]), labels[name])
                             + entropy(model.own[name](again[:, [k]]), told[name]))
    torch.testing.assert_close(found, loss)
    turned = [torch.autograd.grad(v, p, retain_graph=True)[0] for v in (found, loss)
              for p in (model.other["b"].weight, model.encoder.weight)]
    torch.testing.assert_close(turned[0], turned[2])  # the adversary learns
    assert not torch.allclose(turned[1], turned[3])  # and the encoder unlearns


def test_what_is_unlearnt_has_its_gradient_turned_round():
    h = torch.randn(3, 2, requires_grad=True)
    out = moving.Reverse.apply(h)
    assert torch.equal(out, h)
    out.square().sum().backward()
    assert torch.allclose(h.grad, -2 * h)


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "words"), [
    (lambda: swap(torch.zeros(2, 3), torch.zeros(2, 4), [0]), "one shape"),
    (lambda: swap(torch.zeros(2, 3), torch.zeros(2, 3), [3]), "0 … 2"),
    (lambda: swap(torch.zeros(2, 3), torch.zeros(2, 3), [1, 1]), "different numbers"),
    (lambda: along(torch.zeros(2, 3), 3, torch.zeros(2)), "0 … 2"),
    (lambda: traverse(Shift(), torch.zeros(1, 3), steps=1), "two steps"),
    (lambda: traverse(Shift(), torch.zeros(1, 3), span=0.0), "positive span"),
    (lambda: information_bound(torch.zeros(3, 2), torch.tensor([0, 1, 2])), "below K"),
    (lambda: vae_terms(VAE(widths=(4,)), torch.zeros(1, 1, 16, 16), sigma=0.0), "positive"),
    (lambda: vae.vae_training(SMALL, torch.zeros(1), torch.zeros(1), beta=0.0), "positive"),
    (lambda: vae.factor_vae_training(SMALL, torch.zeros(1), torch.zeros(1), gamma=-1.0, device=CPU), "0 or more"),
    (lambda: transfer(kit.models.build(kit.models.CATALOGUE["attributes/scenes"]), torch.zeros(1, 3, 16, 16),
                      torch.zeros(1, 3, 16, 16), "shape"), "no attribute 'shape'"),
    (lambda: along(torch.zeros(3), 0, torch.zeros(2)), r"\(N, D\)"),
    (lambda: along(torch.zeros(2, 3), 1.5, torch.zeros(2)), "number=1.5"),
    (lambda: traverse(Shift(), torch.zeros(1, 3), steps=2.5), "two steps"),
    (lambda: traverse(Shift(), torch.zeros(1, 3), span=math.inf), "positive span"),
    (lambda: traverse(Shift(), torch.zeros(1, 3), numbers=[]), "a list of one"),
    (lambda: traverse(Shift(), torch.full((1, 3), torch.nan)), "NaN"),
    (lambda: traverse(Shift(), torch.zeros(0, 3)), "one row"),
    (lambda: swap(torch.zeros(2, 3), torch.zeros(2, 3), [0.5]), "different numbers"),
    (lambda: swap(torch.zeros(2, 3), torch.zeros(2, 3).double(), [0]), "one shape"),
    (lambda: permuted(torch.zeros(4)), r"\(N, D\)"),
    (lambda: information_bound(torch.zeros(0, 3), torch.zeros(0).long()), "below K"),
    (lambda: information_bound(torch.full((2, 3), torch.nan), torch.zeros(2).long()), "NaN"),
    (lambda: draw_code(kit.models.load("infogan/factors"), 0), "n=0"),
    (lambda: draw_code(kit.models.load("infogan/factors"), 2, category=torch.tensor([0, 7])), "0 … 2"),
    (lambda: draw_code(kit.models.load("infogan/factors"), 3, category=torch.tensor([0, 1])), "3 class numbers"),
    (lambda: vae_terms(VAE(widths=(4,)), torch.full((1, 1, 16, 16), 255.0)), "255"),
    (lambda: vae_terms(VAE(widths=(4,)), torch.zeros(0, 1, 16, 16)), "empty"),
    (lambda: vae_terms(VAE(widths=(4,)), torch.zeros(1, 1, 16, 16), sigma=math.inf), "positive"),
    (lambda: transfer(kit.models.load("attributes/scenes"), torch.full((1, 3, 16, 16), 255.0),
                      torch.zeros(1, 3, 16, 16), "colour"), "255"),
    (lambda: transfer(kit.models.load("attributes/scenes"), torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16),
                      "colour"), "one donor"),
    (lambda: kit.data.hues(torch.zeros(1, 1, 16, 16), torch.zeros(1, 16, 16).bool()), "colour images"),
])
def test_mistakes_get_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("call", [
    lambda net: traverse(net, torch.zeros(1, 3)), lambda net: vae_terms(net, torch.zeros(1, 1, 16, 16)),
    lambda net: draw_code(net, 3), lambda net: transfer(net, torch.zeros(1), torch.zeros(1), "colour")])
def test_another_kind_of_network_is_told_what_it_lacks(call):
    with pytest.raises(TypeError, match="is needed"):
        call(nn.Linear(3, 3))


def test_generators_that_are_none_are_told():
    for call in (lambda g: draw_code(kit.models.load("infogan/factors"), 2, generator=g),
                 lambda g: permuted(torch.zeros(2, 3), g),
                 lambda g: vae_terms(VAE(widths=(4,)), torch.zeros(1, 1, 16, 16), generator=g)):
        with pytest.raises(TypeError, match="generator must"):
            call(3)
