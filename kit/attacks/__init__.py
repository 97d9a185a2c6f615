"""Attacks: methods that change an image a little, and a model's answer a lot."""
from kit.attacks.adaptive_step import auto_pgd
from kit.attacks.gradient import bim, fgm, fgsm, mi_fgsm, pgd
from kit.attacks.minimal import deepfool, distance, jsma, least_likely, next_class, success_curve
from kit.attacks.penalty import cw, ead
from kit.attacks.quasi_newton import feature_adversary, lbfgs

__all__ = [
    "auto_pgd", "bim", "cw", "deepfool", "distance", "ead", "feature_adversary", "fgm", "fgsm", "jsma", "lbfgs",
    "least_likely", "mi_fgsm", "next_class", "pgd", "success_curve",
]
