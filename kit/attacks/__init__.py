"""Attacks: methods that change an image a little, and a model's answer a lot."""
from kit.attacks.gradient import bim, fgm, fgsm, mi_fgsm, pgd

__all__ = ["bim", "fgm", "fgsm", "mi_fgsm", "pgd"]
