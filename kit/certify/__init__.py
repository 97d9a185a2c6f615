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
from kit.certify.clever import clever
from kit.certify.lipschitz import lipschitz, lipschitz_radius
from kit.certify.measures import (
    Between,
    Robustness,
    adversarial_frequency,
    adversarial_severity,
    attacked_distance,
    pointwise_robustness,
)
from kit.certify.verify import exact_distance, mixed_integer, search, verify

__all__ = [
    "Between", "Box", "ClippedBall", "Layers", "Relaxed", "Robustness", "adversarial_frequency", "adversarial_severity",
    "alpha_crown", "attacked_distance", "certified", "certified_radius", "clever", "crown", "exact_distance",
    "fast_lin", "ibp", "ibp_training", "lipschitz", "lipschitz_radius", "mixed_integer", "pointwise_robustness",
    "search", "verify",
]
