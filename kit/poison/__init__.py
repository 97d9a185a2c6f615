"""Attacks on training: what is learnt from, and what a client of a training gives away."""
from kit.poison.clean_label import feature_collision, nearest_neighbours
from kit.poison.leakage import (
    client_gradients,
    clipped_gradient,
    fit_on_shared,
    leak,
    leak_cosine,
    leak_labels,
    leak_linear,
    lenet,
    matched,
    noisy_gradient,
    pruned_gradient,
    psnr,
    ssim,
)
from kit.poison.svm import flipped, hinge, svm_gradient, svm_poison, train_svm

__all__ = [
    "client_gradients", "clipped_gradient", "fit_on_shared", "leak", "leak_cosine", "leak_labels", "leak_linear",
    "lenet", "matched", "noisy_gradient", "pruned_gradient", "psnr", "ssim",
    "feature_collision", "nearest_neighbours",
    "flipped", "hinge", "svm_gradient", "svm_poison", "train_svm",
]
