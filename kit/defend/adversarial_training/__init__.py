"""Adversarial training: learn from the images that an attack makes of the training images, while learning.

    min_θ E_(x,y) [ max_{‖δ‖ ≤ ε} CE(f_θ(x + δ), y) ]                                          (Madry et al. 2018)

The trainers differ in who looks for δ, how long, and what is learnt beside it. Each is `kit.models.fit` with another
loss or another gradient, and stands in a recipe as its `train`, with its settings as `options`. What they share:

    r       the kit.models.Recipe      x, y    training images and labels      eps    the radius, in pixel units
    step, steps     of the attack      device, seed, progress, checkpoint, half, …    as in `fit`, which keeps the
                                       caller's random state, and goes on after a stop

Unless a trainer says otherwise, δ is sought on the network as it is used, in evaluation mode, and kept as the last step
left it; the network then learns from it in training mode. Costs are those of one image in one epoch, in passes; a step
of plain training is one forward and one backward pass.
"""
from kit.defend.adversarial_training.cheap import fast_training, free_training, yopo_training
from kit.defend.adversarial_training.enlarged import adversarial_augmentation, generated_augmentation
from kit.defend.adversarial_training.ensemble import (
    ensemble_adversarial_training,
    half_normal,
    single_step_training,
)
from kit.defend.adversarial_training.inner import Growing, ascend
from kit.defend.adversarial_training.masking import Sign, masking
from kit.defend.adversarial_training.measure import robust_accuracy, robust_at_eps, surviving
from kit.defend.adversarial_training.minmax import adversarial_training, trades

__all__ = [
    "Growing", "Sign", "adversarial_augmentation", "adversarial_training", "ascend", "ensemble_adversarial_training",
    "fast_training", "free_training", "generated_augmentation", "half_normal", "masking", "robust_accuracy",
    "robust_at_eps", "single_step_training", "surviving", "trades", "yopo_training",
]
