"""Minimal attacks: find the nearest image that the model gets wrong.

    x' = argmin ‖x' − x‖_p   subject to   argmax f(x') ≠ y   and   x' ∈ [0, 1]

No radius is given: the distance is the answer, and it is a property of the image and the model. The constraint is as
hard as the network, so each method replaces it:

    deepfool        reads the Jacobian: DeepFool steps onto a tangent plane, JSMA chooses features greedily
    penalty         a penalty whose weight c is searched for image by image: Carlini–Wagner, EAD
    quasi_newton    Szegedy's, which did so first, with L-BFGS-B; and feature adversaries
    adaptive_step   Auto-PGD, which is given a radius, and needs no step
"""
from kit.attacks.minimal.adaptive_step import auto_pgd
from kit.attacks.minimal.deepfool import deepfool, distance, jsma, least_likely, next_class, success_curve
from kit.attacks.minimal.penalty import cw, ead
from kit.attacks.minimal.quasi_newton import feature_adversary, lbfgs

__all__ = [
    "auto_pgd", "cw", "deepfool", "distance", "ead", "feature_adversary", "jsma", "lbfgs", "least_likely", "next_class",
    "success_curve",
]
