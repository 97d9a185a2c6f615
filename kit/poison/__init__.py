"""Attacks that come before the test image: on the training set, on the training, on what it gives away."""
from kit.poison.backdoor import (
    ActivationClustering,
    Inspection,
    NeuralCleanse,
    Poisoned,
    SpectralSignatures,
    Trigger,
    Triggers,
    anomaly_index,
    attack_success,
    backdoor_training,
    badnets,
    embedding_training,
    plant,
    prune,
    revealed,
    reverse_triggers,
    unlearn,
)

__all__ = [
    "ActivationClustering", "Inspection", "NeuralCleanse", "Poisoned", "SpectralSignatures", "Trigger", "Triggers",
    "anomaly_index", "attack_success", "backdoor_training", "badnets", "embedding_training", "plant", "prune",
    "reverse_triggers", "revealed", "unlearn",
]
