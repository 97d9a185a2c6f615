"""What a client sends: its gradient, and what it may do to the gradient before. And the small network of the paper."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from kit.core import borrowed, check_images, check_labels, check_model, check_settings, chunk_size
from kit.core import generator as new_generator
from kit.core.seeding import ambient_randomness_kept

Shared = dict[str, Tensor]
ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def lenet(
    classes: int = 10, channels: int = 1, size: int = 28, *, width: int = 12, activation: str = "sigmoid",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Zhu et al.'s network, untrained: three 5 × 5 convolutions of strides 2, 2, 1 and one linear layer.

    Their weights are U(−½, ½), which saturates a sigmoid; here all are U(±1/√fan-in), as PyTorch draws them, from
    `generator`. Raises ValueError for an activation other than sigmoid, tanh and relu.
    """
    if min(classes, channels, size, width) < 1:
        raise ValueError("classes, channels, size and width are 1 or more, not "
                         f"{classes}, {channels}, {size} and {width}")
    check_settings({"generator": generator})
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be {', '.join(ACTIVATIONS)}, not {activation!r}")
    source, cin, side = generator or new_generator(), channels, size
    model = nn.Sequential()
    with ambient_randomness_kept(torch.device("cpu")):  # PyTorch draws weights as it makes layers
        for k, stride in enumerate((2, 2, 1), 1):
            model.add_module(f"block{k}", nn.Sequential(nn.Conv2d(cin, width, 5, stride, 2), ACTIVATIONS[activation]()))
            cin, side = width, (side - 1) // stride + 1
        model.add_module("flatten", nn.Flatten())
        model.add_module("head", nn.Linear(width * side * side, classes))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                reach = layer.weight[0].numel() ** -0.5
                for p in layer.parameters():
                    p.copy_((2 * torch.rand(p.shape, generator=source) - 1) * reach)
    return model


def gradients(model: nn.Module, x: Tensor, p: Tensor, names: list[str] | None = None) -> Shared:
    """∇_θ 1/B Σ_b −Σ_k p_bk log softmax(f(x_b))_k for every row of x (M, B, C, H, W) and p (M, B, K): name → (M, …).

    It keeps the graph to x and p. `names` are the parameters asked for, all by default.
    """
    theta = {name: value.detach() for name, value in model.named_parameters()}
    some = theta if names is None else {name: theta[name] for name in names}

    def loss(some: Shared, x: Tensor, p: Tensor) -> Tensor:
        z = functional_call(model, theta | some, (x,))
        return -(p * z.log_softmax(1)).sum(1).mean()

    return vmap(grad(loss), in_dims=(None, 0, 0))(some, x, p)


def client_gradients(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 1) -> Shared:
    """The gradient of the mean cross-entropy of each client, which holds `batch` images of x (N, C, H, W) in a row.

    Returns name → (N/batch, …), one row for each client. Cost: a forward and a backward pass.
    Raises ValueError where N is no multiple of `batch`, and as every method does for images, labels and models.
    """
    check_images(x)
    if batch < 1 or len(x) % batch:
        raise ValueError(f"{len(x)} images cannot be shared out to clients of batch={batch}: give a multiple of it")
    with borrowed(model, x):
        classes = check_model(model, x)
        check_labels(y, x, classes)
        p = F.one_hot(y, classes).to(x).unflatten(0, (-1, batch))
        few = max(1, chunk_size(x) // batch)
        parts = [gradients(model, a, b) for a, b in zip(x.unflatten(0, (-1, batch)).split(few), p.split(few),
                                                        strict=True)]
    return {name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]}


def check_gradients(shared: Shared) -> None:
    """What clients sent: name of a parameter → tensor. Raises TypeError for anything else, ValueError for nothing."""
    if not isinstance(shared, dict) or not all(isinstance(g, Tensor) for g in shared.values()):
        raise TypeError(f"shared must be a dict from names of parameters to tensors, as client_gradients gives it, "
                        f"not {type(shared).__name__}")
    if not shared:
        raise ValueError("shared holds no gradient: make it by client_gradients(model, x, y)")


def norms(shared: Shared) -> Tensor:
    """‖g‖₂ of each client over all parameters, (clients,)."""
    check_gradients(shared)
    return torch.stack([g.flatten(1).square().sum(1) for g in shared.values()]).sum(0).sqrt()


def _by_client(factor: Tensor, g: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (g.dim() - 1)) * g


def noisy_gradient(shared: Shared, sigma: float, generator: torch.Generator | None = None) -> Shared:
    """g + N(0, (σ ‖g‖/√P)²) in each of P entries: noise of σ times the gradient's own size, as its length says it.

    σ is relative, since the gradient of a trained network is a hundred times smaller than that of a new one.
    """
    if not sigma >= 0:
        raise ValueError(f"sigma must be at least 0, not {sigma}")
    check_settings({"generator": generator})
    source = generator or new_generator()
    scale = sigma * norms(shared) / sum(g[0].numel() for g in shared.values()) ** 0.5

    def noise(g: Tensor) -> Tensor:
        return torch.randn(g.shape, generator=source, dtype=g.dtype, device=source.device).to(g.device)

    return {name: g + _by_client(scale, noise(g)) for name, g in shared.items()}


def pruned_gradient(shared: Shared, share: float) -> Shared:
    """Set the smallest entries of each parameter's gradient to zero, this share of them, as gradient compression does.

    Source: Lin et al., Deep gradient compression, ICLR 2018, without its accumulation of what was left out.
    """
    check_gradients(shared)
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and below 1, not {share}")

    def pruned(g: Tensor) -> Tensor:
        flat = g.flatten(1)
        out = round(share * flat.shape[1])
        return flat.scatter(1, flat.abs().topk(out, largest=False).indices, 0.0).view_as(g)

    return {name: pruned(g) for name, g in shared.items()}


def clipped_gradient(shared: Shared, norm: float) -> Shared:
    """g · min(1, norm/‖g‖₂): the length of a client's gradient is at most `norm`; its direction stays."""
    if not norm > 0:
        raise ValueError(f"norm must be more than 0, not {norm}")
    factor = (norm / norms(shared)).clamp(max=1)
    return {name: _by_client(factor, g) for name, g in shared.items()}


def fit_on_shared(
    model: nn.Module, x: Tensor, y: Tensor, defend: Callable[[Shared], Shared] = lambda shared: shared, *,
    steps: int = 600, clients: int = 16, batch: int = 1, lr: float = 0.05, momentum: float = 0.9,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Train the model in place on what its clients send: θ ← θ − lr · momentum of the mean of defend(g) over clients.

    In each step `clients` of them hold `batch` images each, drawn at random. This is what a defence costs: the accuracy
    after it. lr falls to 0 linearly. Cost: `steps` forward and backward passes of clients · batch images.
    """
    check_images(x)
    classes = check_model(model, x)
    check_labels(y, x, classes)
    check_settings({"steps": steps, "many": clients, "batch": batch, "lr": lr, "mu": momentum, "generator": generator})
    source, theta = generator or new_generator(), dict(model.named_parameters())
    optimiser = torch.optim.SGD(theta.values(), lr=lr, momentum=momentum)
    for k in range(steps):
        rows = torch.randint(len(x), (clients, batch), generator=source).to(x.device)
        found = gradients(model, x[rows], F.one_hot(y[rows], classes).to(x))
        sent = defend({name: g.detach() for name, g in found.items()})
        for name, p in theta.items():
            p.grad = sent[name].mean(0)
        optimiser.param_groups[0]["lr"] = lr * (1 - k / steps)
        optimiser.step()
    optimiser.zero_grad()
    return model
