"""Training by name, above all that recipes use: `train("digits/cnn7")`, its recipes, and checkpoints to go on from."""
from kit.models.training import Recipe, fit
from kit.train.by_name import clean_accuracy, train
from kit.train.checkpoints import Checkpoint
from kit.train.recipes import RECIPES, fit_shuffled, fit_spurious, recipe

__all__ = [
    "RECIPES", "Checkpoint", "Recipe", "clean_accuracy", "fit", "fit_shuffled", "fit_spurious", "recipe", "train",
]
