"""Cleaning the input: defences that change the image before the classifier sees it, z(x) = f(q(x)).

Each is a module from images (N, C, H, W) in [0, 1] to logits (N, K) around a classifier, so that whatever attacks a
model attacks it, and gradients pass through all of them; where q rounds, rounding is differentiated as the identity.
`straight_through` is for a q that has no gradient at all. `RandomResizePad` and `RandomEnsemble` draw transformations
for every batch and use them for all images of it, as the originals do. With generator=None the draws are the same at
every call, so that image i's result depends on nothing but image i; with a generator they are fresh.
"""
from kit.defend.purify.compression import JPEG, FeatureDistillation, Squeezed
from kit.defend.purify.learned import (
    HGD,
    ComDefend,
    adversarial_versions,
    codec_figures,
    codec_training,
    denoiser_figures,
    denoiser_training,
)
from kit.defend.purify.transformations import RandomEnsemble, RandomResizePad
from kit.defend.purify.wrapper import Purified, Through, Wrapper, mean_probability, straight_through

__all__ = [
    "HGD", "JPEG", "ComDefend", "FeatureDistillation", "Purified", "RandomEnsemble", "RandomResizePad", "Squeezed",
    "Through", "Wrapper", "adversarial_versions", "codec_figures", "codec_training", "denoiser_figures",
    "denoiser_training", "mean_probability", "straight_through",
]
