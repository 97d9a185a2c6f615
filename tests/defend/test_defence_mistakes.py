"""What users get wrong with the game, with deflection and with the worlds of what robustness costs."""
import numpy as np
import pytest
import torch
from torch import nn

from kit.attacks import fgsm, pgd
from kit.core import generator
from kit.defend import Deflection, play
from kit.defend.costs import Bits, Gaussian, Weak, linear_accuracy, margins, robust_fit, robust_share
from kit.defend.deflect import deflection_training, drawings
from kit.defend.game import NOBODY, Attack, Played, knows, past
from kit.models import Recipe
from kit.report import Outcomes


def line():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False)


X = 0.1 + 0.8 * torch.rand(6, 1, 2, 2, generator=generator(0))
Y = torch.tensor([0, 1, 0, 1, 0, 1])


def table():
    held = Outcomes(("defender", "attacker"))
    for d in ("plain", "trained"):
        for a in (NOBODY, "FGSM", "PGD"):
            held[d, a] = np.array([True, d == "trained", a == NOBODY])
    return Played(held)


def game(method=fgsm, name="it", **how):
    return play({name: method if isinstance(method, Attack) else knows(method)}, {"line": line()}, X, Y,
                **{"eps": 0.1} | how)


@pytest.mark.parametrize(("method", "error", "message"), [
    (lambda m, x, y: x[:1], ValueError, r"returned \(1, 1, 2, 2\) for images of shape \(6, 1, 2, 2\)"),
    (lambda m, x, y: x.flatten(1), ValueError, "must return one image for each"),
    (lambda m, x, y: x.numpy(), TypeError, "returned a ndarray: it must return the images as a tensor"),
    (lambda m, x, y: x * float("nan"), ValueError, "NaN or infinity: check its objective"),
    (Attack("mine", lambda d, x, y, eps, norm, seed: x[:1]), ValueError, r"attack mine returned \(1, 1, 2, 2\)"),
])
def test_an_attack_returns_one_image_for_each(method, error, message):
    with pytest.raises(error, match=message):
        game(method)


def test_an_attacker_says_what_it_is_shown():
    for given, kind in ((fgsm, "function"), ("pgd", "str")):
        with pytest.raises(TypeError, match=f"the attacker 'FGSM' is a {kind}: say what it is shown .* knows\\("):
            play({"FGSM": given}, {"line": line()}, X, Y, eps=0.1)
    with pytest.raises(TypeError, match="attackers have names: .* not a list"):
        play([knows(fgsm)], {"line": line()}, X, Y, eps=0.1)
    with pytest.raises(TypeError, match="defenders have names: .* not a Sequential"):
        play({"FGSM": knows(fgsm)}, line(), X, Y, eps=0.1)
    with pytest.raises(TypeError, match="an attack is a function such as pgd"):
        knows("pgd")
    with pytest.raises(TypeError, match="pgd has no setting 'stepz': it takes eps, .*steps"):
        past(pgd, stepz=3)


@pytest.mark.parametrize(("how", "message"), [
    ({"eps": -0.1}, "eps must be"), ({"eps": float("nan")}, "eps must be"), ({"eps": 8}, "eps"),
    ({"norm": "Linf"}, "norm must be 'linf', 'l2' or 'l1', not 'Linf'"),
])
def test_the_ball_is_looked_at_before_anything_is_attacked(how, message):
    def never(model, x, y, *, eps):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        game(never, **how)


def test_who_did_not_play_cannot_be_asked_about():
    played = table()
    assert played.only(attackers=["PGD"]).attackers == ["PGD"]
    for call, message in (
        (lambda: played.only(attackers=["PDG"]), "no attacker 'PDG' played here: there are FGSM, PGD"),
        (lambda: played.only(defenders=["trained", "plane"]), "no defender 'plane' played here: there are plain, tr"),
        (lambda: played.only(attackers=[]), "at least one attacker"),
        (lambda: played.best_attack("plane"), "no defender 'plane'"),
        (lambda: played.matrix(instead="PDG"), "no attacker 'PDG'"),
        (lambda: played.game(resamples=0), "resamples must be 1 or more, not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_network_that_draws_nothing_deflects_nothing():
    with pytest.raises(TypeError, match="a Sequential draws no images, it has no method 'capsules'"):
        Deflection(line())
    with pytest.raises(TypeError, match="draws no images"):
        drawings(line(), X)
    r = Recipe("none", "mlp", {"channels": 1, "size": 2, "classes": 2, "width": 2}, epochs=1, batch=2)
    with pytest.raises(TypeError, match="draws no images"):
        deflection_training(r, X, Y, device=torch.device("cpu"))


def test_one_sign_may_be_given_as_a_word():
    from kit.models.purifiers import Capsules
    model = Capsules(size=8, classes=2, numbers=3, width=4)
    assert Deflection(model, "cycle").signs == ("cycle",)
    with pytest.raises(ValueError, match="signs are some of error, best, cycle"):
        Deflection(model, "errors")


WORLD = Weak(0.9, 0.3, 5)
W, SAMPLE = WORLD.bayes(), WORLD.sample(40, generator(0))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: robust_share(W, SAMPLE[0], (SAMPLE[1] + 1) / 2), r"labels y are −1 or 1.*use 2.0 \* y - 1"),
    (lambda: robust_fit(SAMPLE[0], (SAMPLE[1] + 1) / 2), "labels y are −1 or 1"),
    (lambda: margins(W, SAMPLE[0], SAMPLE[1][:1]), "one for each of 40 rows"),
    (lambda: robust_share(W, *SAMPLE, eps=-0.1), "eps must be 0 or more and finite, not -0.1"),
    (lambda: robust_share(W, *SAMPLE, eps=float("nan")), "eps must be 0 or more"),
    (lambda: robust_share(W, *SAMPLE, eps=0.1, norm="Linf"), "norm must be 'linf', 'l2' or 'l1', not 'Linf'"),
    (lambda: robust_share(W[1:], *SAMPLE), r"w needs 6 values, one for each feature, and has the shape \(5,\)"),
    (lambda: robust_fit(*SAMPLE, start=W[1:]), "w needs 6 values"),
    (lambda: WORLD.accuracy(W[1:]), "w needs 6 values"),
    (lambda: WORLD.accuracy(W, -0.1), "eps must be 0 or more"),
    (lambda: WORLD.best(-0.1), "eps must be 0 or more"),
    (lambda: linear_accuracy(W, W[1:]), "w needs 5 values"),
    (lambda: linear_accuracy(W, W, eps=-1.0), "eps must be 0 or more"),
    (lambda: linear_accuracy(W, W, norm="l0"), "norm must be"),
    (lambda: Gaussian(5).accuracy(3, -0.1), "eps must be 0 or more"),
    (lambda: Gaussian(5).needed(0.9, -0.1), "eps must be 0 or more"),
    (lambda: Gaussian(5).sample(W, 3), "theta needs 5 values"),
    (lambda: Gaussian(5).learnt(0, 3), "n must be above 0"),
    (lambda: Bits(5).accuracy(3, -0.1), "eps must be 0 or more"),
    (lambda: Bits(5).accuracy(0), "n must be above 0"),
    (lambda: Bits(5).sample(W, 3), "theta needs 5 values"),
])
def test_worlds_say_what_they_were_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()
