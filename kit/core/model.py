"""What the methods need of a model: normalisation inside it, several as one, counts."""
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x − mean) / std per channel: the first layer of a model, so that every method works on pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Ensemble(nn.Module):
    """Several networks as one, by the mean of their logits (Dong et al. 2018, section 3.4) or of their probabilities.

    With average="probabilities" it returns the logarithm of the mean, whose softmax is that mean. A pass raises
    ValueError where the networks know different classes.
    """

    def __init__(self, models: Sequence[nn.Module], average: str = "logits"):
        super().__init__()
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average must be 'logits' or 'probabilities', not {average!r}")
        if not models:
            raise ValueError("an ensemble needs at least one model")
        self.models, self.average = nn.ModuleList(models), average

    def forward(self, x: Tensor) -> Tensor:
        each = [model(x) for model in self.models]
        if len({z.shape for z in each}) > 1:
            raise ValueError("the networks answer in the shapes " + ", ".join(str(tuple(z.shape)) for z in each)
                             + ": an ensemble answers one question")
        z = torch.stack(each)
        return z.mean(0) if self.average == "logits" else z.log_softmax(2).logsumexp(0) - math.log(len(z))


class QueryCounter(nn.Module):
    """A model that counts how often each of `n` images is asked about: `.counts` (n,), and `.total`.

    A row of a batch belongs to the image at the same place, and a batch of several times n rows to the images in turn.
    A method that works on some of the images says which: `with counter.on(indices): counter(x[indices])`.
    """

    def __init__(self, model: nn.Module, n: int):
        super().__init__()
        self.model = model
        self.counts = torch.zeros(n, dtype=torch.int64)
        self._rows = torch.arange(n)

    def forward(self, x: Tensor) -> Tensor:
        times, rest = divmod(len(x), len(self._rows))
        if rest:
            raise ValueError(
                f"{len(x)} rows cannot belong to {len(self._rows)} images: say which with `with counter.on(indices)`")
        self.counts.index_add_(0, self._rows, torch.full_like(self._rows, times))  # a row may be there several times
        return self.model(x)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @contextmanager
    def on(self, indices: Tensor) -> Iterator[None]:
        """Inside, the rows of a batch belong to these of the images (numbered within an enclosing `on`)."""
        before, self._rows = self._rows, self._rows[indices.cpu()]
        try:
            yield
        finally:
            self._rows = before


def asking(model: nn.Module, indices: Tensor) -> AbstractContextManager:
    """`model.on(indices)` where the model counts queries, or one that it wraps does; else there is nothing to do."""
    return model.on(indices) if hasattr(type(model), "on") else nullcontext()  # type: ignore[operator]
