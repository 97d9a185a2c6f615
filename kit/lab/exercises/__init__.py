"""The exercises, a file for each family. Importing a file enters its exercises in `kit.lab.EXERCISES`."""
from kit.lab.exercises import (
    adv2,
    bias,
    certify,
    detect,
    explained,
    gradient,
    influence,
    lrp,
    projections,
    scores,
    svm,
)

__all__ = [
    "adv2", "bias", "certify", "detect", "explained", "gradient", "influence", "lrp", "projections", "scores", "svm",
]
