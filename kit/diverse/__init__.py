"""Many networks: what they share, and in what they differ.

    diverse_inputs    inputs on which networks that agree come to differ
    deeptest          the same by changes that a camera meets, and the relation that they should keep
    coverage          how much of a network a set of images exercises, and what that says about failures
    tradeoff          accuracy against robustness: the images that all have right, the slope with its interval
"""
from kit.diverse.coverage import Ranges, activated, corners, covered, guides, most_covering, neurons, sections, watched
from kit.diverse.deeptest import changed, clean_error, deeptest, departure
from kit.diverse.diverse_inputs import deepxplore, differ
from kit.diverse.tradeoff import Line, common, log_error, slope

__all__ = [
    "Line", "Ranges", "activated", "changed", "clean_error", "common", "corners", "covered", "deeptest", "deepxplore",
    "departure", "differ", "guides", "log_error", "most_covering", "neurons", "sections", "slope", "watched",
]
