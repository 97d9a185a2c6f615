"""Attacks through the prediction interface: the model answers with scores, and nothing can be differentiated.

    x' = argmax ℓ(f(x'), y)   or   argmin ‖x' − x‖₂² + c · max(κ − lead(x'), 0),     by at most `max_queries` answers

    model         images (N, C, H, W) in [0, 1] → logits (N, K); no gradient is asked of it
    x, y          images and their labels (N,)           target       labels (N,) to reach, or None
    max_queries   answers that may be asked for, per image
    generator     where random numbers come from         trace        kit.core.Progress(x): what was reached by when

A gradient is estimated from answers, or done without:

    descent       ZOO: differences along coordinates; AutoZOOM: along random directions of a small space
    estimators    the others that follow random directions: NES, SPSA, ZO-signSGD, -SVRG, -NGD, -ADMM and -AdaMM
    bounded       finite differences along all pixels, groups of them or principal components, in a ball of radius eps
    search        Square and SimBA: propose, ask, keep what is better
    zero          a random change, and the difference of two classes' means: no question at all

An image that reaches its goal as it is comes back as it was, for one query. Probabilities p serve as logits through
their logarithms, since only differences of logits are used. Each raises ValueError or TypeError for images, labels and
numbers that make no sense.
"""
from kit.attacks.scores.bounded import finite_difference
from kit.attacks.scores.descent import autozoom, zoo
from kit.attacks.scores.estimators import nes, spsa, zo_adamm, zo_admm, zo_ngd, zo_sign_sgd, zo_svrg
from kit.attacks.scores.search import simba, square
from kit.attacks.scores.zero import difference_of_means, random_perturbation

__all__ = [
    "autozoom", "difference_of_means", "finite_difference", "nes", "random_perturbation", "simba", "spsa", "square",
    "zo_adamm", "zo_admm", "zo_ngd", "zo_sign_sgd", "zo_svrg", "zoo",
]
