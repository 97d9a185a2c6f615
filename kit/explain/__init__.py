"""Explanations: why a model answers as it does, from its gradients, from outside, and from its training data."""
from kit.explain.influence import Influence, retrain, tracin, training_set_attack

__all__ = ["Influence", "retrain", "tracin", "training_set_attack"]
