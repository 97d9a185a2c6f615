"""What a gradient says without any search: the image, where the network begins with a linear layer, and the labels."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from kit.core import borrowed, check_images, check_model, features, generator, uniform
from kit.core.network import calls
from kit.poison.leakage.shared import Shared, check_gradients


def check_shared(model: nn.Module, shared: Shared, shape: tuple[int, int, int], batch: int) -> tuple[Tensor, int]:
    """An image of that shape as the model's parameters are, (1, C, H, W), and the number of clients.

    Raises ValueError where the gradients are not those of this model's parameters, a row for each client.
    """
    theta = dict(model.named_parameters())
    check_gradients(shared)
    if len(shape) != 3 or min(shape) < 1 or batch < 1:
        raise ValueError(f"shape is (C, H, W) of one image and batch at least 1, not {tuple(shape)} and {batch}")
    clients = len(next(iter(shared.values())))
    for name, g in shared.items():
        if name not in theta:
            raise ValueError(f"the model has no parameter {name!r}: these gradients are of another network")
        if g.shape != (clients, *theta[name].shape):
            raise ValueError(f"the gradient of {name!r} must have the shape {(clients, *theta[name].shape)}, a row for "
                             f"each client, not {tuple(g.shape)}")
        if not bool(g.isfinite().all()):
            raise ValueError(f"the gradient of {name!r} holds NaN or infinity")
    first = next(iter(theta.values()))
    return torch.full((1, *shape), 0.5, dtype=first.dtype, device=first.device), clients


def check_known(y: Tensor | None, like: Tensor, images: int, classes: int) -> None:
    """Labels that the attacker brings are class numbers (clients · batch,). Raises ValueError."""
    if y is not None and (not isinstance(y, Tensor) or y.shape != (images,) or y.dtype != torch.int64
                          or y.device != like.device or int(y.min()) < 0 or int(y.max()) >= classes):
        raise ValueError(f"y must be ({images},) class numbers in 0 … {classes - 1} as int64, one for each image of "
                         f"each client, on {like.device}")


def leak_linear(model: nn.Module, shared: Shared, shape: tuple[int, int, int]) -> Tensor:
    """The image of each client, (clients, C, H, W), read from the first linear layer: h = ∇W_i / ∇b_i.

    ∇W = δ hᵀ and ∇b = δ for one image, so that every row with δ_i ≠ 0 holds the input h; that of the largest |δ_i| is
    taken. What stands before the layer must be affine in every pixel by itself, as a normalisation is, and is undone.
    Of a client's batch it is only a mixture: Σ_b δ_bi h_b / Σ_b δ_bi. Cost: two forward passes.
    Raises ValueError for a network that does not begin with a linear layer with a bias, and where ∇b is zero.
    """
    like, clients = check_shared(model, shared, shape, 1)
    with borrowed(model, like), torch.no_grad():
        check_model(model, like)
        first = next((name for name, module, _ in calls(model, like) if [*module.parameters(recurse=False)]), "")
        layer = model.get_submodule(first)
        weight, bias = f"{first}.weight", f"{first}.bias"
        if not isinstance(layer, nn.Linear) or weight not in shared or bias not in shared:
            raise ValueError("the network must begin with a linear layer with a bias, whose gradients are shared: "
                             "use leak or leak_cosine")
        probe = uniform(like, generator())
        with features(model, [first], inputs=True) as f:
            model(torch.cat([torch.zeros_like(like), torch.ones_like(like), probe]))
        zero, one, h = f[first]
        x = probe.flatten()
        if h.shape != x.shape or not torch.allclose(h, zero + (one - zero) * x, rtol=1e-4, atol=1e-5):
            raise ValueError(f"what the layer {first!r} is given is no pixel by itself: use leak or leak_cosine")
    delta = shared[bias].to(like)
    row = delta.abs().argmax(1, keepdim=True)
    if bool((delta.gather(1, row) == 0).any()):
        raise ValueError(f"the bias gradient of {first!r} is zero for a client: nothing of its image is in this layer")
    h = shared[weight].to(like)[torch.arange(clients), row[:, 0]] / delta.gather(1, row)
    return ((h - zero) / (one - zero)).view(clients, *shape)


def leak_labels(
    model: nn.Module, shared: Shared, shape: tuple[int, int, int], *, batch: int = 1, guess: Tensor | None = None,
) -> Tensor:
    """The labels of each client, (clients · batch,), from the last linear layer; those of a batch in rising order.

    One image: ∇b = p − e_y has one negative entry, at y. Without a bias ∇W_k = (p_k − [k = y]) h, and row y is the
    longest, since p − e_y sums to zero: exact for K > 2, whatever the sign of h.
    A batch: B ∇b_k = Σ_i p_ik − n_k, so that n_k ≈ B (p̄_k − ∇b_k), rounded so that they sum to B. p̄ is the model's mean
    answer to `guess` (any number of images; noise by default): right for a new network, which answers everything alike.
    Raises ValueError where the gradient of a last linear layer is not shared, or has no bias and B > 1.
    Source: Zhao et al. 2020, section 3.2, for one image, there by the row sums of ∇W, which need h ≥ 0.
    """
    like, clients = check_shared(model, shared, shape, batch)
    with borrowed(model, like), torch.no_grad():
        classes = check_model(model, like)
        last = [name for name, module, _ in calls(model, like) if isinstance(module, nn.Linear)][-1:]
        weight, bias = (shared.get(f"{last[0]}.{kind}") if last else None for kind in ("weight", "bias"))
        if bias is not None and batch == 1:
            return bias.argmin(1)
        if weight is not None and batch == 1 and weight.shape[1] == classes:
            return weight.norm(dim=2).argmax(1)
        if bias is None or bias.shape[1] != classes:
            raise ValueError("labels are read from the gradient of a last linear layer with a bias: give y instead")
        guess = uniform(like.expand(64, *shape), generator()) if guess is None else guess
        check_images(guess)
        expected = batch * (model(guess.to(like)).softmax(1).mean(0) - bias.to(like))
    return torch.cat([_counted(row, batch) for row in expected])


def _counted(expected: Tensor, batch: int) -> Tensor:
    """Labels in whole numbers that sum to `batch`: one after the other where most of the expected number is left."""
    left, labels = expected.clone(), []
    for _ in range(batch):
        labels.append(int(left.argmax()))
        left[labels[-1]] -= 1
    return torch.tensor(sorted(labels), device=expected.device)
