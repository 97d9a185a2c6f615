"""Federated learning, and the backdoor that comes in pieces.

    clients      who holds which images          rounds       local training, and the loop over rounds
    aggregate    what a server makes of updates  distributed  a trigger in pieces, and who carries them
"""
from kit.poison.federated.aggregate import FoolsGold, bounded, geometric_median, mean, median
from kit.poison.federated.clients import dirichlet_clients
from kit.poison.federated.distributed import Attacker, pieces, union
from kit.poison.federated.rounds import Federation, federated, local_training

__all__ = [
    "Attacker", "Federation", "FoolsGold", "bounded", "dirichlet_clients", "federated", "geometric_median",
    "local_training", "mean", "median", "pieces", "union",
]
