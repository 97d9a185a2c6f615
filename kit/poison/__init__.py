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
from kit.poison.clean_label import feature_collision, nearest_neighbours
from kit.poison.federated import (
    Attacker,
    Federation,
    FoolsGold,
    bounded,
    dirichlet_clients,
    federated,
    geometric_median,
    mean,
    median,
    pieces,
    union,
)
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
from kit.poison.training_set import flipped, hinge, svm_gradient, svm_poison, train_svm, training_set_attack

__all__ = [
    "ActivationClustering", "anomaly_index", "attack_success", "Attacker", "backdoor_training", "badnets",
    "bounded", "client_gradients", "clipped_gradient", "dirichlet_clients", "embedding_training",
    "feature_collision", "federated", "Federation", "fit_on_shared", "flipped", "FoolsGold", "geometric_median",
    "hinge", "Inspection", "leak", "leak_cosine", "leak_labels", "leak_linear", "lenet", "matched", "mean",
    "median", "nearest_neighbours", "NeuralCleanse", "noisy_gradient", "pieces", "plant", "Poisoned", "prune",
    "pruned_gradient", "psnr", "revealed", "reverse_triggers", "SpectralSignatures", "ssim", "svm_gradient",
    "svm_poison", "train_svm", "training_set_attack", "Trigger", "Triggers", "union", "unlearn",
]
