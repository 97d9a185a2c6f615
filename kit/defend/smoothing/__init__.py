"""Answers by a vote under noise, with a proof of how far they hold: `Smoothed`, and its ancestor `PixelDP`."""
from kit.defend.smoothing.binomial import clopper_pearson, enough_to_certify, enough_to_decide
from kit.defend.smoothing.pixeldp import PixelDP
from kit.defend.smoothing.training import noisy_training, pixeldp_figures, pixeldp_training, smoothed_figures
from kit.defend.smoothing.vote import ABSTAIN, Smoothed

__all__ = [
    "ABSTAIN", "PixelDP", "Smoothed", "clopper_pearson", "enough_to_certify", "enough_to_decide", "noisy_training",
    "pixeldp_figures", "pixeldp_training", "smoothed_figures",
]
