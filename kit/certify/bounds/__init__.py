"""Bounds through the layers of a network: intervals, Fast-Lin, CROWN and its fitted slopes."""
from kit.certify.bounds.domains import Box, ClippedBall
from kit.certify.bounds.layers import Layers
from kit.certify.bounds.methods import alpha_crown, certified, crown, fast_lin, ibp
from kit.certify.bounds.radius import certified_radius
from kit.certify.bounds.relaxed import Relaxed
from kit.certify.bounds.training import certified_figures, ibp_training

__all__ = [
    "Box", "ClippedBall", "Layers", "Relaxed", "alpha_crown", "certified", "certified_figures", "certified_radius",
    "crown", "fast_lin", "ibp", "ibp_training",
]
