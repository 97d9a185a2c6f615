"""What can be proved of a network: lower bounds of its margins over all that an attack may do, and the exact answer."""
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
from kit.certify.verify import exact_distance, mixed_integer, search, verify

__all__ = [
    "Box", "ClippedBall", "Layers", "Relaxed", "alpha_crown", "certified", "certified_radius", "crown",
    "exact_distance", "fast_lin", "ibp", "ibp_training", "mixed_integer", "search", "verify",
]
