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
from kit.attacks.physical import Anywhere, Camera, masked_attack, paste, patch, printability, stick
from kit.attacks.reprogram import Reprogram, frequency_mapping
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
from kit.attacks.universal import shifted, targeted_uap, targeted_universal, uap, universal
from kit.attacks.wasserstein import transport, wasserstein

__all__ = [
    "advcam", "Anywhere", "at_si_ni_ti_dim", "ata", "atta", "auto_pgd", "autozoom", "bim", "boundary", "Camera", "cw",
    "deepfool", "difference_of_means", "dim", "distance", "ead", "feature_adversary", "fgm", "fgsm",
    "finite_difference", "frequency_mapping", "hopskipjump", "jsma", "LabelOnly", "lbfgs", "least_likely",
    "masked_attack", "mi_fgsm", "misspell", "misspellings", "nes", "next_class", "ni_fgsm", "opt_attack", "paste",
    "patch", "pgd", "printability", "random_perturbation", "Reprogram", "shifted", "si_ni_ti_dim", "sign_opt", "sim",
    "simba", "spsa", "square", "stadv", "stick", "success_curve", "tap", "tap_ata", "targeted_uap",
    "targeted_universal", "tim", "train_transformation", "Transformation", "transport", "uap", "universal",
    "wasserstein", "zo_adamm", "zo_admm", "zo_ngd", "zo_sign_sgd", "zo_svrg", "zoo",
]
