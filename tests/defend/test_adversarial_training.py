import json
import sys
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import nn

import kit.data
import kit.defend
import kit.models
from kit.attacks import bim, pgd
from kit.core import accuracy, generator
from kit.defend import (
    adversarial_augmentation,
    adversarial_training,
    ensemble_adversarial_training,
    fast_training,
    free_training,
    masking,
    noisy_training,
    single_step_training,
    trades,
    yopo_training,
)
from kit.defend.adversarial_training import half_normal, inner
from kit.defend.adversarial_training.enlarged import sampled
from kit.models import Recipe, registry

CPU = torch.device("cpu")
TOY = Recipe("none", "mlp", {"channels": 1, "size": 4, "classes": 2, "width": 16}, epochs=30, batch=50, lr=1e-2)
DEFENDED = ["ens3/inception", "ens4/inception", "adv/resnet", "noisy/inception"]
EPS = 0.1


def robust_or_not(n, seed):
    """The first pixel says the class in 85 % of the images, and a perturbation of 0.1 does not hide it; the fifteen
    others say it in all of them, each by 0.04. Who learns from clean images alone takes the fifteen."""
    g = generator(seed)
    y = torch.randint(2, (n,), generator=g)
    sign = 2.0 * y - 1
    honest = torch.where(torch.rand(n, generator=g) < 0.85, sign, -sign)
    x = 0.5 + 0.04 * sign[:, None] + 0.01 * torch.randn(n, 16, generator=g)
    x[:, 0] = 0.5 + 0.4 * honest
    return x.view(n, 1, 4, 4), y


@pytest.fixture(scope="module")
def plain():
    """Trained on clean images alone."""
    return kit.models.fit(TOY, *robust_or_not(600, 0), device=CPU).eval()


def robustness(model, x, y):
    return accuracy(model, pgd(model.eval(), x, y, eps=EPS, steps=20), y)


@pytest.mark.parametrize(("trainer", "how"), [(adversarial_training, {"steps": 5}), (yopo_training, {}), (trades, {})])
def test_it_learns_what_an_attack_cannot_hide(plain, trainer, how):
    (x, y), (held, label) = robust_or_not(600, 0), robust_or_not(400, 1)
    assert accuracy(plain, held, label) > 0.97
    assert robustness(plain, held, label) < 0.3
    robust = trainer(TOY, x, y, device=CPU, eps=EPS, **how).eval()
    assert robustness(robust, held, label) > 0.75
    assert accuracy(robust, held, label) < 0.95  # the price: what is weak is given up


def test_with_no_radius_or_only_clean_images_it_is_plain_training():
    x, y = robust_or_not(200, 0)
    plain = kit.models.fit(TOY, x, y, device=CPU)
    for same in (adversarial_training(TOY, x, y, device=CPU, eps=EPS, steps=1, clean=1.0),
                 noisy_training(TOY, x, y, device=CPU, sigma=0.0)):
        z, again = plain(x), same(x)
        assert z.shape == again.shape
        assert accuracy(same.eval(), x, y) == pytest.approx(accuracy(plain.eval(), x, y), abs=0.02)


def spied(monkeypatch):
    """What the trainer's FGSM is called with."""
    module, calls = sys.modules["kit.defend.adversarial_training.ensemble"], []
    fgsm = module.fgsm

    def spy(model, x, y, *, eps):
        calls.append((model, len(x), eps))
        return fgsm(model, x, y, eps=eps)

    monkeypatch.setattr(module, "fgsm", spy)
    return calls


def test_an_ensemble_attacks_half_of_each_batch_by_all_in_turn(plain, monkeypatch):
    x, y = robust_or_not(600, 0)
    others = {name: kit.models.build(TOY).eval() for name in ("one", "two")}
    monkeypatch.setattr(kit.models, "load", lambda name, device=None: others[name])
    calls = spied(monkeypatch)
    model = ensemble_adversarial_training(TOY, x, y, device=CPU, static=("one", "two"), eps=3 * EPS)
    assert len(calls) == 30 * 12
    assert {n for _, n, _ in calls} == {25}
    shares = [sum(m is source for m, *_ in calls) / len(calls) for source in (model, *others.values())]
    assert all(abs(s - 1 / 3) < 0.1 for s in shares)
    radii = torch.cat([eps for *_, eps in calls])
    assert 0 <= radii.min() < radii.max() <= 3 * EPS
    held, label = robust_or_not(400, 1)
    assert robustness(model, held, label) > robustness(plain, held, label) + 0.2
    calls.clear()
    alone = single_step_training(TOY, x, y, device=CPU, eps=EPS)
    assert all(m is alone for m, *_ in calls)


def test_a_ramp_lets_the_radius_grow(monkeypatch):
    x, y = robust_or_not(600, 0)
    calls = spied(monkeypatch)
    single_step_training(TOY, x, y, device=CPU, eps=EPS, ramp=0.5)
    largest = torch.stack([eps.max() for *_, eps in calls])
    share = (torch.arange(360.0) / 180).clamp(max=1)
    assert (largest <= share * EPS + 1e-7).all()
    assert (largest[1:] > 0.3 * share[1:] * EPS).all()


def test_radii_are_a_truncated_half_normal():
    r = half_normal(4000, 0.2, generator(0))
    assert kstest(r.double().numpy(), truncnorm(0, 2, scale=0.1).cdf).pvalue > 0.01


def test_noise_is_what_it_learns_from():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 2)

        def forward(self, x):
            seen.append(x)
            return self.linear(x.flatten(1))

    registry.FAMILIES["spy"] = lambda norm=True: Spy()
    try:
        x = torch.full((600, 1, 4, 4), 0.9)
        noisy_training(Recipe("none", "spy", epochs=2), x, torch.zeros(600, dtype=torch.int64), device=CPU, sigma=0.3)
    finally:
        del registry.FAMILIES["spy"]
    noise = torch.cat(seen) - 0.9
    assert noise.std().item() == pytest.approx(0.3, rel=0.03)
    assert noise.max() > 0.3  # not clipped


def test_it_repeats_and_changes_nothing_else():
    x, y = robust_or_not(100, 0)
    one, two = (adversarial_training(TOY, x, y, device=CPU, eps=EPS, steps=2, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_all_trainers_have_the_same_radius_where_none_is_given():
    """So that what they make can be compared; those of ensembles have twice that, as in their paper."""
    radius = {t: signature(t).parameters["eps"].default for t in (
        adversarial_training, trades, fast_training, free_training, yopo_training, adversarial_augmentation)}
    assert set(radius.values()) == {8 / 255}
    for trainer in (single_step_training, ensemble_adversarial_training):
        assert signature(trainer).parameters["eps"].default == 16 / 255


def test_generated_images_are_drawn_from_the_generator_and_are_images():
    x, y = robust_or_not(60, 0)
    x, label = (3 * x - 1).clamp(0, 1), torch.arange(300) % 2
    one, again, other = (sampled(x, y, label, 4, generator(s)) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.aminmax() == (0, 1)  # both ends are met


@pytest.mark.filterwarnings("ignore::kit.core.MisleadingModel")
def test_signs_of_masking_are_asked_of_images():
    """At the ends of the box, of a network that is wrong only beyond them."""
    class Beyond(nn.Module):
        def forward(self, x):
            out = ((x - 1).relu() + (-x).relu()).flatten(1).sum(1)
            return torch.stack([1e-6 + 0 * out, out], 1)

    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 4, 4) % 2
    signs = masking(Beyond(), x, torch.zeros(8, dtype=torch.int64), eps=EPS, steps=2, max_queries=5)
    assert [(s.weaker, s.stronger, s.suspicious) for s in signs] == [(0, 0, False)] * 4 + [(1, 0, True)]


# --- the shipped networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DEFENDED, "hgd/scenes", "comdefend/scenes"])
def test_shipped(name):
    entry = kit.models.entry(name)
    assert entry["recipe"] == json.loads(json.dumps(kit.models.RECIPES[name].as_dict()))
    assert (registry.SHIPPED / entry["file"]).stat().st_size < 400_000
    assert callable(kit.models.RECIPES[name].train)
    assert entry["parameters"] == sum(p.numel() for p in kit.models.load(name).parameters())


@pytest.fixture(scope="module")
def scenes():
    return kit.data.load("scenes", "test", n=150)


def test_trained_on_attacks_they_withstand_them(scenes):
    d = scenes[:60]
    plain = kit.models.load("scenes/resnet")
    under = lambda m: accuracy(m, pgd(m, d.x, d.y, eps=8 / 255, steps=10), d.y)  # noqa: E731
    assert under(plain) < 0.1
    assert under(kit.models.load("adv/resnet")) > 0.6
    assert under(kit.models.load("ens3/inception")) > 0.3
    for name in DEFENDED[:3]:
        assert accuracy(kit.models.load(name), scenes.x, scenes.y) > 0.93


def test_victims_withstand_what_travels(scenes):
    """BIM at 16/255 from a network that none of them has met, against the undefended network of the same family."""
    d = scenes
    x_adv = bim(kit.models.load("scenes/mobilenet"), d.x, d.y, eps=16 / 255)
    for name in DEFENDED[:3]:
        undefended = kit.models.load("scenes/" + name.rpartition("/")[2])
        assert accuracy(kit.models.load(name), x_adv, d.y) > accuracy(undefended, x_adv, d.y) + 0.2


def test_the_six_victims(scenes):
    d = scenes[:40]
    assert kit.defend.names() == ["HGD", "R&P", "NIPS-r3", "FD", "ComDefend", "RS"]
    for name in kit.defend.names():
        assert accuracy(kit.defend.load(name), d.x, d.y) > 0.75
    with pytest.raises(ValueError, match="there are HGD"):
        kit.defend.load("hgd2")


def test_a_gpus_generator_is_seeded_by_the_trainings(monkeypatch):
    monkeypatch.setattr(inner, "seeded", lambda seed, device: seed)
    x = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    assert inner.nearby(generator(3), x) == inner.nearby(generator(3), x) != inner.nearby(generator(4), x)
