"""Backdoors: planted by poisoned copies (BadNets) or by who trains (embedding), found by triggers or by features.

    trigger      the mask and the pattern                       planting      BadNets, and what counts as success
    embedding    a backdoor that hides its features             secret        one whose class nobody is told
    cleanse      Neural Cleanse: a trigger for every class      inspection    spectral signatures, clusters
    mitigation   pruning and unlearning
"""
from kit.poison.backdoor.cleanse import NeuralCleanse, Triggers, anomaly_index, reverse_triggers
from kit.poison.backdoor.embedding import embedding_training
from kit.poison.backdoor.inspection import ActivationClustering, Inspection, SpectralSignatures
from kit.poison.backdoor.mitigation import Pruned, excitement, prune, unlearn
from kit.poison.backdoor.planting import (
    Poisoned,
    attack_success,
    backdoor_figures,
    backdoor_training,
    badnets,
    planted,
)
from kit.poison.backdoor.secret import hidden, plant, revealed, secret_figures, secret_training
from kit.poison.backdoor.trigger import Trigger

__all__ = [
    "ActivationClustering", "Inspection", "NeuralCleanse", "Poisoned", "Pruned", "SpectralSignatures", "Trigger",
    "Triggers", "anomaly_index", "attack_success", "backdoor_figures", "backdoor_training", "badnets",
    "embedding_training", "excitement", "hidden", "plant", "planted", "prune", "reverse_triggers", "revealed",
    "secret_figures", "secret_training", "unlearn",
]
