"""Scoring by the detectors beside the bare forward passes, and single pieces beside scikit-learn's and SciPy's."""
import scipy.ndimage
import torch
from sklearn.svm import OneClassSVM

import kit.data
import kit.models
from kit.core import chunks, features
from kit.data.corner_cases import rotate
from kit.detect import DeepValidation, FeatureSqueezing, KernelDensity, bit_depth, evade, median
from kit.detect.detector import rightly_classified
from tests.bench import Task, bare_passes

LAYERS = [f"layer{i}" for i in range(1, 7)]


def tasks():
    model = kit.models.load("digits/cnn7").requires_grad_(False)
    train, test = kit.data.load("digits", "train"), kit.data.load("digits", "test")
    x, y = test.x, test.y
    deep = DeepValidation(model, LAYERS).fit(train.x, train.y)

    def forward(times=1):
        return lambda: [bare_passes(model, x, y, backward=False) for _ in range(times)]

    def range_of(score):
        return f"{float(score.min()):.3g} … {float(score.max()):.3g}"

    yield Task("Deep Validation, score", forward(), {"kit": lambda: deep.score(x), "sklearn": peer(deep, train, x)},
               range_of, target=2.5)
    yield Task("Feature Squeezing, score", forward(3), {"kit": lambda: FeatureSqueezing(model).score(x)}, range_of,
               target=1.5)
    density = KernelDensity(model, "layer6").fit(train.x, train.y)
    yield Task("kernel density, score", forward(), {"kit": lambda: density.score(x)}, range_of, target=1.5)
    yield Task("Deep Validation, fit", forward(7 * len(train) // len(x)),
               {"kit": lambda: DeepValidation(model, LAYERS).fit(train.x, train.y)}, repeats=3)
    yield Task("evade Deep Validation, 20 steps", lambda: bare_passes(model, x[:64], y[:64], 20),
               {"kit": lambda: evade(model, x[:64], y[:64], detector=deep, eps=0.3, steps=20)}, repeats=3)
    yield Task("median 2×2", forward(),
               {"kit": lambda: median(x, 2),
                "SciPy": lambda: scipy.ndimage.median_filter(x.numpy(), (1, 1, 2, 2), mode="reflect")})
    yield Task("median 3×3", lambda: torch.nn.functional.avg_pool2d(x, 3, 1, 1),
               {"kit": lambda: median(x, 3),
                "SciPy": lambda: scipy.ndimage.median_filter(x.numpy(), (1, 1, 3, 3), mode="reflect")}, target=1.2)
    yield Task("3 bits", lambda: (x * 7).round() / 7, {"kit": lambda: bit_depth(x, 3)}, target=1.2)
    yield Task("rotation", lambda: torch.nn.functional.grid_sample(
        x, torch.nn.functional.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), x.shape, align_corners=True),
        align_corners=True), {"kit": lambda: rotate(x, 30.0)})


def peer(deep, train, x):
    """The same scores with one-class SVMs of scikit-learn in place of ours, fitted beforehand on the same features."""
    svms = {}
    with torch.no_grad(), features(deep.model, LAYERS) as found:
        right, y = rightly_classified(deep.model, train.x, train.y, deep.per_class)
        deep.model(right)
        for layer in LAYERS:
            phi = deep.svms[layer].reduced(deep._pooled(found[layer]))
            for k in y.unique().tolist():
                gamma = float(deep.svms[layer].tensors[f"{k}/gamma"])
                svms[layer, k] = OneClassSVM(nu=deep.nu, gamma=gamma).fit(phi[y == k].numpy())

    def score():
        total = torch.zeros(len(x))
        for rows in chunks(x):
            with torch.no_grad(), features(deep.model, LAYERS) as found:
                predicted = deep.model(x[rows]).argmax(1)
            for layer in LAYERS:
                phi = deep.svms[layer].reduced(deep._pooled(found[layer])).numpy()
                for k in predicted.unique().tolist():
                    own = predicted == k
                    distance = svms[layer, k].decision_function(phi[own.numpy()])
                    total[rows][own] -= torch.as_tensor(distance).float() / deep.svms[layer].tensors["sigma"]
        return total

    return score
