"""Many networks: what they share, and in what they differ.

    tradeoff    accuracy against robustness: the images that all have right, the slope with its interval
"""
from kit.diverse.tradeoff import Line, common, log_error, slope

__all__ = ["Line", "common", "log_error", "slope"]
