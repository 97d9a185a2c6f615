"""What can be proved of a network: lower bounds of its margins over all that an attack may do."""
from kit.certify.bounds import (
    Box,
    ClippedBall,
    Layers,
    Relaxed,
    alpha_crown,
    certified,
    certified_radius,
    crown,
    fast_lin,
    ibp,
    ibp_training,
)

__all__ = [
    "Box", "ClippedBall", "Layers", "Relaxed", "alpha_crown", "certified", "certified_radius", "crown", "fast_lin",
    "ibp", "ibp_training",
]
