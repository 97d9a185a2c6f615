"""Attacks on the training set that are climbed through the training itself: everybody's errors, or some test images'.

    svm_poison             points added to a support vector machine's, followed by its optimality conditions
    training_set_attack    images changed by at most eps, followed by influence (Koh and Liang 2017)

The second stands in `kit.explain.influence`, with what it is made of.
"""
from kit.explain.influence import training_set_attack
from kit.poison.svm import flipped, hinge, svm_gradient, svm_poison, train_svm

__all__ = ["flipped", "hinge", "svm_gradient", "svm_poison", "train_svm", "training_set_attack"]
