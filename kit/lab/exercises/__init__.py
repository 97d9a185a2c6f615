"""The exercises, a file for each family. Importing a file enters its exercises in `kit.lab.EXERCISES`."""
from kit.lab.exercises import (
    adv2,
    backdoor,
    beyond,
    bias,
    certify,
    collision,
    costs,
    coverage,
    decision,
    detect,
    explained,
    foundations,
    game,
    gradient,
    influence,
    lrp,
    maps,
    measures,
    minimal,
    projections,
    scores,
    svm,
    travelling,
    universal,
    versions,
)

__all__ = [
    "adv2", "backdoor", "beyond", "bias", "certify", "collision", "costs", "coverage", "decision", "detect",
    "explained", "foundations", "game", "gradient", "influence", "lrp", "maps", "measures", "minimal",
    "projections", "scores", "svm", "travelling", "universal", "versions",
]
