"""ADV²: one image that deceives a classifier, and the explanation of its answer with it.

    x' = argmin  ℓ_prd(f(x'), t) + λ ℓ_int(g(x'), m)     subject to   ‖x' − x‖∞ ≤ eps   and   x' ∈ [0, 1]

    t     the class to be answered (N,)        g(x')    the interpreter's map for the class t (N, H, W)
    m     the map that is to be shown          ℓ_int    the mean over the pixels of (g − m)², both scaled to [0, 1]

    descent    on the sum, for a map that a pass or two through the network makes: gradients, CAM, RTS
    flow       the same sum, but pixels are moved, not changed
    bilevel    for a map that is itself the end of a descent, a few steps of which are watched: MASK

Source: Zhang et al., Interpretable deep learning under fire, USENIX Security 2020, section 3, and the authors' code.
"""
from kit.fire.adv2.bilevel import adv2_mask
from kit.fire.adv2.descent import adv2, map_distance, random_patches
from kit.fire.adv2.flow import adv2_flow

__all__ = ["adv2", "adv2_flow", "adv2_mask", "map_distance", "random_patches"]
