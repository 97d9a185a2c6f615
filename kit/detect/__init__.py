"""Detectors of inputs that a model was not made for: fitted on clean images, with a threshold at a stated FPR."""
from kit.detect.adaptive import evade
from kit.detect.deep_validation import DeepValidation
from kit.detect.density import BayesianUncertainty, Energy, KernelDensity
from kit.detect.detector import AUC, REFUSED, Detector, roc_auc
from kit.detect.squeezing import (
    COLOUR,
    COLOUR_SQUEEZERS,
    GREY,
    GREY_SQUEEZERS,
    FeatureSqueezing,
    bit_depth,
    median,
    non_local_means,
)

__all__ = [
    "AUC", "COLOUR", "COLOUR_SQUEEZERS", "GREY", "GREY_SQUEEZERS", "REFUSED", "BayesianUncertainty", "DeepValidation",
    "Detector", "Energy", "FeatureSqueezing", "KernelDensity", "bit_depth", "evade", "median", "non_local_means",
    "roc_auc",
]
