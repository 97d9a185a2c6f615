"""Defences: networks trained to withstand attacks, images purified before a network sees them, certificates."""
from kit.defend.adversarial_training import (
    adversarial_augmentation,
    adversarial_training,
    ensemble_adversarial_training,
    fast_training,
    free_training,
    generated_augmentation,
    masking,
    single_step_training,
    trades,
    yopo_training,
)
from kit.defend.cloak import DeepCloak
from kit.defend.deflect import Deflection
from kit.defend.game import play
from kit.defend.purify import (
    HGD,
    JPEG,
    ComDefend,
    FeatureDistillation,
    RandomEnsemble,
    RandomResizePad,
    Squeezed,
    Through,
    straight_through,
)
from kit.defend.smoothing import ABSTAIN, PixelDP, Smoothed, noisy_training, pixeldp_training
from kit.defend.victims import load, names
from kit.defend.words import WordRecogniser

__all__ = [
    "ABSTAIN", "adversarial_augmentation", "adversarial_training", "ComDefend", "DeepCloak", "Deflection",
    "ensemble_adversarial_training", "fast_training", "FeatureDistillation", "free_training",
    "generated_augmentation", "HGD", "JPEG", "load", "masking", "names", "noisy_training", "PixelDP",
    "pixeldp_training", "play", "RandomEnsemble", "RandomResizePad", "single_step_training", "Smoothed", "Squeezed",
    "straight_through", "Through", "trades", "WordRecogniser", "yopo_training",
]
