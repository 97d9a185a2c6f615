"""Many networks: what they share, and in what they differ.

    diverse_inputs    inputs on which networks that agree come to differ
    n_version         several versions of a network that vote, and the faults that they have in common
    tradeoff          accuracy against robustness: the images that all have right, the slope with its interval
"""
from kit.diverse.diverse_inputs import deepxplore, differ
from kit.diverse.n_version import Faults, NVersion, independent_vote, majority, mutual_faults, shared, votes
from kit.diverse.tradeoff import Line, common, log_error, slope

__all__ = [
    "Faults", "Line", "NVersion", "common", "deepxplore", "differ", "independent_vote", "log_error", "majority",
    "mutual_faults", "shared", "slope", "votes",
]
