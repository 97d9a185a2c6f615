"""Certificates by a vote beside what no implementation avoids: the passes on noisy copies, the drawing of the noise.

A pass of the MLP costs no more than the addition of the noise, which the bound leaves out: its row has no target.
"""
import torch

import kit.data
import kit.models
from kit.core import chunk_size, laid_out
from kit.defend import Smoothed
from tests.bench import Task


def tasks():
    for name, network in (("digits", "digits/mlp"), ("digits", "digits/cnn7"), ("scenes", "noisy/inception")):
        model = kit.models.load(network).requires_grad_(False)
        x = kit.data.load(name, "test", n=50).x
        n = 1000 if network == "digits/mlp" else 100
        target = None if network == "digits/mlp" else 1.15
        yield Task(f"certify, {network}, {len(x)} images, {n} copies", lambda m=model, x=x, n=n: bare(m, x, n + 20),
                   {"kit": lambda m=model, x=x, n=n: Smoothed(m).certify(x, n0=20, n=n, early=False)},
                   lambda result: f"radius {float(result[1].mean()):.3f}", target=target)


def bare(model, x, n):
    """The noise of n copies, drawn once for all images, and the passes of all copies, on chunks that are there."""
    size, source = chunk_size(x), torch.Generator().manual_seed(0)
    for _ in range(n):
        torch.randn(x.shape[1:], generator=source)
    chunk = laid_out(torch.rand(size, *x.shape[1:]))
    with torch.no_grad():
        for _ in range(n * len(x) // size):
            model(chunk)
