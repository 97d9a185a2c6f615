"""Explanations: why a model answers as it does, from inside, from outside, and from its training data."""
from kit.explain.afi import Afi
from kit.explain.bayes import Posterior, bayes, bayes_table
from kit.explain.cam import cam, grad_cam
from kit.explain.counterfactual import counterfactual, mad
from kit.explain.extremal import extremal, extremal_curve, perturbed
from kit.explain.games import Game, image_game, superpixels, table_game, text_game
from kit.explain.gradient import (
    gradient_times_input,
    guided_backpropagation,
    integrated_gradients,
    occlusion,
    saliency,
    sensitivity,
    smoothgrad,
)
from kit.explain.influence import Influence, retrain, tracin, training_set_attack
from kit.explain.latent import (
    DCI,
    Progression,
    along,
    binned,
    dci,
    draw_code,
    factor_vae_score,
    information,
    information_bound,
    kl,
    mig,
    permuted,
    progression,
    sap,
    swap,
    transfer,
    traverse,
    vae_terms,
)
from kit.explain.lime import Surrogate, kernel_shap, lime, lime_table, shapley, sp_lime, stability, surrogate
from kit.explain.lrp import alpha_beta, epsilon, flat, gamma, lrp, relevance_lost, zbox, zplus
from kit.explain.mask import Descent, mask
from kit.explain.maximise import (
    Unit,
    colour_basis,
    deep_dream,
    facets,
    maximise,
    multifaceted,
    purity,
    responses,
    selectivity,
    top_images,
)
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
from kit.explain.rts import RTS
from kit.explain.sanity import randomised, rank_correlation, ssim
from kit.explain.tcav import TCAV, ConceptTest
from kit.explain.uncertainty import (
    answers,
    entropies,
    error_kept,
    gaussian_nll,
    mc_dropout,
    noisy_logits_nll,
    reliability,
    temperature,
    variances,
)

__all__ = [
    "gradient_times_input", "guided_backpropagation", "integrated_gradients", "occlusion", "saliency", "sensitivity",
    "smoothgrad",
    "alpha_beta", "epsilon", "flat", "gamma", "lrp", "relevance_lost", "zbox", "zplus",
    "cam", "grad_cam",
    "Descent", "extremal", "extremal_curve", "mask", "perturbed",
    "RTS",
    "completeness", "deletion", "energy_inside", "infidelity", "insertion", "iou", "l1_distance", "max_sensitivity",
    "pointing_game", "sparsity",
    "randomised", "rank_correlation", "ssim",
    "Game", "Surrogate", "image_game", "kernel_shap", "lime", "lime_table", "shapley", "sp_lime", "stability",
    "superpixels", "surrogate", "table_game", "text_game",
    "Posterior", "bayes", "bayes_table",
    "Influence", "retrain", "tracin", "training_set_attack",
    "counterfactual", "mad",
    "Afi", "colour_basis", "ConceptTest", "deep_dream", "facets", "maximise", "multifaceted", "purity", "responses",
    "selectivity", "TCAV", "top_images", "Unit",
    "DCI", "Progression", "along", "binned", "dci", "draw_code", "factor_vae_score", "information", "information_bound",
    "kl", "mig", "permuted", "progression", "sap", "swap", "transfer", "traverse", "vae_terms",
    "answers", "entropies", "error_kept", "gaussian_nll", "mc_dropout", "noisy_logits_nll", "reliability",
    "temperature", "variances",
]
