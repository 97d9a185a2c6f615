"""Complete verification: an answer that is right or "unknown"; the mixed-integer program that checks it; Reluplex."""
from kit.certify.verify.acasxu import ADVICE, PROPERTIES, networks, published
from kit.certify.verify.branching import Verdict, search
from kit.certify.verify.chain import Chain, chain
from kit.certify.verify.images import SAFE, UNKNOWN, UNSAFE, around, exact_distance, margins, verify
from kit.certify.verify.programs import Optimum, mixed_integer
from kit.certify.verify.reluplex import Reluplex, tableau

__all__ = [
    "ADVICE", "PROPERTIES", "SAFE", "UNKNOWN", "UNSAFE", "Chain", "Optimum", "Reluplex", "Verdict", "around", "chain",
    "exact_distance", "margins", "mixed_integer", "networks", "published", "search", "tableau", "verify",
]
