"""The exercises, a file for each family. Importing a file enters its exercises in `kit.lab.EXERCISES`."""
from kit.lab.exercises import (
    adv2,
    bias,
    certify,
    detect,
    gradient,
    influence,
    lrp,
    projections,
    scores,
    svm,
    versions,
)

__all__ = ["adv2", "bias", "certify", "detect", "gradient", "influence", "lrp", "projections", "scores", "svm",
           "versions"]
