"""What every method stands on: the one loop, balls, losses, checks, and how passes through a model are run."""
from kit.core.balls import L1, L2, Linf, ball
from kit.core.checks import MisleadingModel, check_images, check_labels, check_model
from kit.core.loop import Trace, adam, gradient, momentum, optimise, steepest
from kit.core.losses import cross_entropy, cw, dlr, margin
from kit.core.model import Ensemble, Normalize, QueryCounter, asking, features, fold_batch_norm, smooth_relu
from kit.core.passes import accuracy, borrowed, chunk_size, chunks, fooled, laid_out, logits, per_image, take
from kit.core.seeding import device, generator, normal, seed_everything, uniform

__all__ = [
    "L1", "L2", "Linf", "ball",
    "MisleadingModel", "check_images", "check_labels", "check_model",
    "Trace", "adam", "gradient", "momentum", "optimise", "steepest",
    "cross_entropy", "cw", "dlr", "margin",
    "Ensemble", "Normalize", "QueryCounter", "asking", "features", "fold_batch_norm", "smooth_relu",
    "accuracy", "borrowed", "chunk_size", "chunks", "fooled", "laid_out", "logits", "per_image", "take",
    "device", "generator", "normal", "seed_everything", "uniform",
]
