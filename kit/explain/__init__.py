"""Explanations: why a model answers as it does, from its gradients, from outside, and from its training data."""
from kit.explain.counterfactual import counterfactual, mad
from kit.explain.influence import Influence, retrain, tracin, training_set_attack
from kit.explain.lime import (
    Game,
    Surrogate,
    image_game,
    kernel_shap,
    lime,
    lime_table,
    shapley,
    sp_lime,
    stability,
    superpixels,
    surrogate,
    table_game,
    text_game,
)

__all__ = [
    "counterfactual", "mad",
    "Influence", "retrain", "tracin", "training_set_attack",
    "Game", "Surrogate", "image_game", "kernel_shap", "lime", "lime_table", "shapley", "sp_lime", "stability",
    "superpixels", "surrogate", "table_game", "text_game",
]
