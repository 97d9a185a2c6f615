"""Attacking for Interpretability: what must go from all images of a class before the network no longer sees it?

    δ* = argmin ‖δ‖₁  so that f(x_i − δ) ≠ y and f(t(x_i − δ)) ≠ y  for all images x_i of the class y    the occluder

with t uniform noise and random rotation, and images with f(x_i) = f(t(x_i)) = y alone. One δ (1, C, H, W) in [−1, 1]
serves all of them; x − δ is cut to [0, 1]. What the units j of a layer lose by it says what they have to do with y:

    s_j = max(0, mean_i (f_l(x_i)_j − f_l(x_i − δ*)_j))                      the importance of feature j
    w_c = 1/B Σ_j s_j over the places j of channel c, so that Σ_c w_c = 1    that of a channel
    f'(x) = Σ_c w_c A_c(x)                                                   the meta-detector, a map (h, w)

Where δ* lowers no more of a layer than its values at random places do, s_j says that j is active, not that y needs it:
`controls` takes that off.

A concept is a set of images. It matters for the class as far as f' answers to it otherwise than to random images.

The source gives δ*, s, w and f', and names MMD and segments. The relaxation of the constraints, its weights, the
kernel, the controls and how segments become concepts are ours. Source: Wu et al., Towards global explanations of
convolutional neural networks with concept attribution, CVPR 2020, as in W. Wu's thesis, topic 4.

    occluder    δ*, by proximal steps; what it leaves of an image; t
    concepts    how far f' tells two sets of images apart; segments as concepts, and the curves of an order of them
    classes     `Afi`: the importance of features, channels and concepts for one class
"""
from kit.explain.afi.classes import Afi, Checked, Importance
from kit.explain.afi.concepts import concept_curves, mmd, pieces, segment_concepts
from kit.explain.afi.occluder import occluded, occluder, rotated, shuffled, transformed

__all__ = [
    "Afi", "Checked", "Importance", "concept_curves", "mmd", "occluded", "occluder", "pieces", "rotated",
    "segment_concepts", "shuffled", "transformed",
]
