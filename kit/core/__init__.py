"""What every method stands on: the one loop, balls, losses, checks, and how passes through a model are run."""
from kit.core.balls import L1, L2, Linf, ball
from kit.core.checks import MisleadingModel, check_images, check_labels, check_model, check_settings, warn
from kit.core.folding import fold_batch_norm
from kit.core.goal import Goal
from kit.core.live import Live, Progress
from kit.core.loop import Trace, adam, differentiate, gradient, leaf, optimise, steepest
from kit.core.losses import cross_entropy, cw, dlr, margin
from kit.core.model import Ensemble, Normalize, QueryCounter, asking
from kit.core.network import features, operations, relus, replace, smooth_relu
from kit.core.oracles import ahead, diverse, gaussian, momentum, resized_and_padded, scaled, smoothed
from kit.core.passes import accuracy, borrowed, chunk_size, chunks, fooled, laid_out, logits, per_image, take
from kit.core.seeding import Draws, alike, device, generator, normal, seed_everything, uniform

__all__ = [
    "L1", "L2", "Linf", "ball",
    "MisleadingModel", "check_images", "check_labels", "check_model", "check_settings", "warn",
    "Goal", "Live", "Progress",
    "Trace", "adam", "differentiate", "gradient", "leaf", "optimise", "steepest",
    "cross_entropy", "cw", "dlr", "margin",
    "ahead", "diverse", "gaussian", "momentum", "resized_and_padded", "scaled", "smoothed",
    "Ensemble", "Normalize", "QueryCounter", "asking",
    "features", "fold_batch_norm", "operations", "relus", "replace", "smooth_relu",
    "accuracy", "borrowed", "chunk_size", "chunks", "fooled", "laid_out", "logits", "per_image", "take",
    "Draws", "alike", "device", "generator", "normal", "seed_everything", "uniform",
]
