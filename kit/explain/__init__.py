"""Explanations: maps that say which pixels a decision rests on, and measures of whether they can be trusted."""
from kit.explain.cam import cam, grad_cam
from kit.explain.gradient import (
    gradient_times_input,
    guided_backpropagation,
    integrated_gradients,
    occlusion,
    saliency,
    sensitivity,
    smoothgrad,
)
from kit.explain.lrp import alpha_beta, epsilon, flat, gamma, lrp, relevance_lost, zbox, zplus
from kit.explain.metrics import (
    completeness,
    deletion,
    energy_inside,
    infidelity,
    insertion,
    iou,
    l1_distance,
    max_sensitivity,
    pointing_game,
    sparsity,
)
from kit.explain.sanity import randomised, rank_correlation, ssim

__all__ = [
    "gradient_times_input", "guided_backpropagation", "integrated_gradients", "occlusion", "saliency", "sensitivity",
    "smoothgrad",
    "alpha_beta", "epsilon", "flat", "gamma", "lrp", "relevance_lost", "zbox", "zplus",
    "cam", "grad_cam",
    "completeness", "deletion", "energy_inside", "infidelity", "insertion", "iou", "l1_distance", "max_sensitivity",
    "pointing_game", "sparsity",
    "randomised", "rank_correlation", "ssim",
]
