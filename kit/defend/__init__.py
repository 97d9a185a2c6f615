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
from kit.defend.purify import HGD, ComDefend, FeatureDistillation, RandomEnsemble, RandomResizePad
from kit.defend.smoothing import ABSTAIN, PixelDP, Smoothed, noisy_training, pixeldp_training
from kit.defend.victims import load, names

__all__ = [
    "ABSTAIN", "HGD", "ComDefend", "FeatureDistillation", "PixelDP", "RandomEnsemble", "RandomResizePad", "Smoothed",
    "adversarial_augmentation", "adversarial_training", "ensemble_adversarial_training", "fast_training",
    "free_training", "generated_augmentation", "load", "masking", "names", "noisy_training",
    "pixeldp_training", "single_step_training", "trades", "yopo_training",
]
