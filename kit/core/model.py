"""What the methods need of a model: normalisation inside it, several as one, hidden layers, counts, a smooth ReLU."""
import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


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

    With average="probabilities" it returns the logarithm of the mean, whose softmax is that mean.
    """

    def __init__(self, models: Sequence[nn.Module], average: str = "logits"):
        super().__init__()
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average must be 'logits' or 'probabilities', not {average!r}")
        if not models:
            raise ValueError("an ensemble needs at least one model")
        self.models, self.average = nn.ModuleList(models), average

    def forward(self, x: Tensor) -> Tensor:
        z = torch.stack([model(x) for model in self.models])
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
        self.counts[self._rows] += times
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
    """`model.on(indices)` where the model counts its queries; nothing to do where it does not."""
    return model.on(indices) if isinstance(model, QueryCounter) else nullcontext()


@contextmanager
def features(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Read hidden layers by their names: `with features(model, ["block2"]) as f: z = model(x); f["block2"]`.

    Each forward pass inside replaces the tensors, which keep their graph. Raises ValueError for a name that the model
    does not have.
    """
    modules = dict(model.named_modules())
    missing = [name for name in layers if name not in modules or not name]
    if missing:
        known = ", ".join(name for name in modules if name)
        raise ValueError(f"the model has no layer {missing[0]!r}; it has {known}")
    found: dict[str, Tensor] = {}
    hooks = [
        modules[name].register_forward_hook(lambda module, inputs, output, name=name: found.__setitem__(name, output))
        for name in layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class _SmoothReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, tau):
        ctx.save_for_backward(z)
        ctx.tau = tau
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        h = z / (z * z + ctx.tau).sqrt()
        return grad * torch.where(z < 0, 1 + h, h), None


class smooth_relu(TorchFunctionMode):
    """Inside, every ReLU keeps its value but differentiates as h(z) = z/√(z²+τ) for z ≥ 0 and 1 + z/√(z²+τ) for z < 0.

    A ReLU network's gradient is piecewise constant, so what depends on it (a saliency map) has no gradient of its own;
    with h it has one (Zhang et al. 2020, section 4.1; τ = 1e-4 as in their code). Nothing in the model is changed.
    """

    def __init__(self, tau: float = 1e-4):
        super().__init__()
        self.tau = tau

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.relu, torch.relu, F.relu_, torch.relu_, Tensor.relu, Tensor.relu_):
            return _SmoothReLU.apply(args[0] if args else (kwargs or {})["input"], self.tau)
        return func(*args, **(kwargs or {}))


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy in which every batch norm that follows a convolution or linear layer is folded into its weights.

    In eval mode it computes the same function. Raises ValueError where a batch norm cannot be folded (another layer
    before it, or a convolution that is used twice).
    """
    folded = copy.deepcopy(model).eval()
    modules = dict(folded.named_modules())
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    if not any(isinstance(m, norms) for m in modules.values()):
        return folded
    for node in torch.fx.symbolic_trace(folded).graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], norms):
            continue
        before = node.args[0]
        layer = modules.get(before.target) if before.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or len(before.users) > 1:
            raise ValueError(f"the batch norm {node.target!r} cannot be folded: no convolution precedes it alone")
        norm = modules[node.target]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = torch.zeros_like(norm.running_mean) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter(((bias - norm.running_mean) * scale + norm.bias).detach())
        layer.weight = nn.Parameter((layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))).detach())
        parent, _, name = node.target.rpartition(".")
        setattr(modules[parent], name, nn.Identity())
    return folded
