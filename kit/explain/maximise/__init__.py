"""Activation maximisation: the picture that a unit answers to most, and what can be concluded from it.

    units          what is maximised: a class, a channel, a neuron or a direction; which real images maximise it
    pictures       how the picture is written (pixels, or Fourier coefficients and decorrelated colours) and shaken
    ascent         `maximise`: the search                    facets    one search from each kind of image of a class
    dream          `deep_dream`: enlarge whatever a layer sees in an image
    selectivity    do units mean more than random directions of their layer?
"""
from kit.explain.maximise.ascent import maximise
from kit.explain.maximise.dream import deep_dream
from kit.explain.maximise.facets import facets, multifaceted
from kit.explain.maximise.pictures import IMAGENET_COLOURS, Fourier, Pixels, colour_basis
from kit.explain.maximise.selectivity import Selectivity, purity, random_directions, selectivity, whitened
from kit.explain.maximise.units import Unit, responses, top_images

__all__ = [
    "Fourier", "IMAGENET_COLOURS", "Pixels", "Selectivity", "Unit", "colour_basis", "deep_dream", "facets", "maximise",
    "multifaceted", "purity", "random_directions", "responses", "selectivity", "top_images", "whitened",
]
