"""Many networks: what they share, and in what they differ; and networks that explain themselves.

    diverse_inputs     inputs on which networks that agree come to differ
    deeptest           the same by changes that a camera meets, and the relation that they should keep
    coverage           how much of a network a set of images exercises, and what that says about failures
    n_version          several versions of a network that vote, and the faults that they have in common
    tradeoff           accuracy against robustness: the images that all have right, the slope with its interval
    self_explaining    a logit that is a sum of concepts times relevances, and what that is worth as an explanation
"""
from kit.diverse.coverage import Ranges, activated, corners, covered, guides, most_covering, neurons, sections, watched
from kit.diverse.deeptest import changed, clean_error, deeptest, departure
from kit.diverse.diverse_inputs import deepxplore, differ
from kit.diverse.n_version import Faults, NVersion, independent_vote, majority, mutual_faults, shared, votes
from kit.diverse.self_explaining import (
    broken_promise,
    contributions,
    local_lipschitz,
    pull_apart,
    relevances,
    robustness,
    self_explaining_training,
)
from kit.diverse.tradeoff import Line, common, log_error, slope
from kit.models.explaining import SelfExplaining

__all__ = [
    "Faults", "Line", "NVersion", "Ranges", "SelfExplaining", "activated", "broken_promise", "changed", "clean_error",
    "common", "contributions", "corners", "covered", "deeptest", "deepxplore", "departure", "differ", "guides",
    "independent_vote", "local_lipschitz", "log_error", "majority", "most_covering", "mutual_faults", "neurons",
    "pull_apart", "relevances", "robustness", "sections", "self_explaining_training", "shared", "slope", "votes",
    "watched",
]
