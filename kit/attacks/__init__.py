"""Attacks: methods that change an image a little, and a model's answer a lot."""
from kit.attacks.advcam import advcam
from kit.attacks.atta import Transformation, at_si_ni_ti_dim, atta, train_transformation
from kit.attacks.decision import LabelOnly, boundary, hopskipjump, opt_attack, sign_opt
from kit.attacks.gradient import bim, fgm, fgsm, mi_fgsm, pgd
from kit.attacks.minimal import (
    auto_pgd,
    cw,
    deepfool,
    distance,
    ead,
    feature_adversary,
    jsma,
    lbfgs,
    least_likely,
    next_class,
    success_curve,
)
from kit.attacks.scores import (
    autozoom,
    difference_of_means,
    finite_difference,
    nes,
    random_perturbation,
    simba,
    spsa,
    square,
    zo_adamm,
    zo_admm,
    zo_ngd,
    zo_sign_sgd,
    zo_svrg,
    zoo,
)
from kit.attacks.spatial import stadv
from kit.attacks.text import misspell, misspellings
from kit.attacks.transfer import ata, dim, ni_fgsm, si_ni_ti_dim, sim, tap, tap_ata, tim
from kit.attacks.wasserstein import transport, wasserstein

__all__ = [
    "advcam", "at_si_ni_ti_dim", "ata", "atta", "auto_pgd", "autozoom", "bim", "boundary", "cw", "deepfool",
    "difference_of_means", "dim", "distance", "ead", "feature_adversary", "fgm", "fgsm", "finite_difference",
    "hopskipjump", "jsma", "LabelOnly", "lbfgs", "least_likely", "mi_fgsm", "misspell", "misspellings", "nes",
    "next_class", "ni_fgsm", "opt_attack", "pgd", "random_perturbation", "si_ni_ti_dim", "sign_opt", "sim", "simba",
    "spsa", "square", "stadv", "success_curve", "tap", "tap_ata", "tim", "train_transformation", "Transformation",
    "transport", "wasserstein", "zo_adamm", "zo_admm", "zo_ngd", "zo_sign_sgd", "zo_svrg", "zoo",
]
