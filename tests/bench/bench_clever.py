"""CLEVER beside the passes that it cannot avoid: of every point one forward pass, and a backward pass for each class.

What comes on top is the fit of nine laws for an image by scipy, some 20 ms each. It shows where the passes are few: the
row of the tiny network has no target.
"""
import warnings

import torch

import kit.data
import kit.models
from kit.certify import clever
from kit.core import chunk_size, fooled, laid_out
from tests.bench import Task


def tasks():
    for name, n, batches, samples, target in (("mnist/small", 2, 50, 64, 1.3), ("tiny/digits", 24, 12, 8, None)):
        model, digits = kit.models.load(name).requires_grad_(False), kit.data.load("digits", "test", n=60)
        right = (~fooled(model, digits.x, digits.y)).nonzero()[:n, 0]  # nothing is asked about the others
        x, y = digits.x[right], digits.y[right]
        yield Task(f"clever, {name}, {n} images, {batches} times {samples} points",
                   lambda m=model, x=x, many=n * batches * samples: bare(m, x, many),
                   {"kit": lambda m=model, x=x, y=y, b=batches, s=samples: estimates(m, x, y, b, s)},
                   lambda result: f"estimate {float(result.mean()):.4f}", target=target, repeats=2)


def estimates(model, x, y, batches, samples):
    with warnings.catch_warnings():  # a fit that is rejected
        warnings.simplefilter("ignore")
        return clever(model, x, y, eps=0.3, batches=batches, samples=samples)[0]


def bare(model, x, many):
    """The passes of that many points, on chunks that are there."""
    chunk = laid_out(torch.rand(chunk_size(x), *x.shape[1:]))
    for _ in range(-(-many // len(chunk))):
        v = chunk.detach().requires_grad_()
        z = model(v)
        for k in range(1, z.shape[1]):
            torch.autograd.grad((z[:, 0] - z[:, k]).sum(), v, retain_graph=True)
