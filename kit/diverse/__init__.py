"""Many networks: what they share, and in what they differ.

    diverse_inputs    inputs on which networks that agree come to differ
    tradeoff          accuracy against robustness: the images that all have right, the slope with its interval
"""
from kit.diverse.diverse_inputs import deepxplore, differ
from kit.diverse.tradeoff import Line, common, log_error, slope

__all__ = ["Line", "common", "deepxplore", "differ", "log_error", "slope"]
