"""The loop of federated learning: a server, clients that train at home, and updates in between.

    Δ_i = θ_i − θ     after local steps of client i from θ on its own images         θ ← θ + η · aggregate(Δ_1, …, Δ_n)

All chosen clients train at once, their weights side by side in one tensor for each layer (`torch.func`).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from kit.core import Normalize, borrowed, check_images, check_labels, check_model, check_settings
from kit.poison.backdoor.planting import check_aims
from kit.poison.federated.aggregate import Aggregate, mean
from kit.poison.federated.distributed import Attacker

Weights = dict[str, Tensor]


class Federation(NamedTuple):
    """The global model, and what `watch` returned after each round."""

    model: nn.Module
    history: list[Any]


def local_training(
    model: nn.Module, x: Tensor, y: Tensor, *, lr: float = 0.1, momentum: float = 0.9, decay: float = 5e-4
) -> Weights:
    """The weights (M, …) of M clients after S steps of SGD each from the weights of `model`, all clients at once.

        u ← momentum · u + ∇CE + decay · θ        θ ← θ − lr · u

    x (S, M, B, C, H, W) and y (S, M, B) are their batches. What a client learns does not depend on the others.
    Cost: S forward and backward passes of M · B images.
    """
    start = {name: p.detach() for name, p in model.named_parameters()}
    theta = {name: p.expand(x.shape[1], *p.shape).clone() for name, p in start.items()}
    u = {name: torch.zeros_like(p) for name, p in theta.items()}

    def loss(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (images,)), labels)

    gradients = vmap(grad(loss))
    for images, labels in zip(x, y, strict=True):
        g = gradients(theta, images, labels)
        for name in theta:
            u[name] = momentum * u[name] + g[name] + decay * theta[name]
            theta[name] = theta[name] - lr * u[name]
    return theta


def federated(
    model: nn.Module, x: Tensor, y: Tensor, clients: Sequence[Tensor], *, rounds: int, per_round: int = 10,
    steps: int = 5, batch: int = 16, lr: float = 0.1, momentum: float = 0.9, decay: float = 5e-4, eta: float = 1.0,
    aggregate: Aggregate = mean, attackers: Sequence[Attacker] = (), generator: torch.Generator | None = None,
    watch: Callable[[int, nn.Module], Any] | None = None,
) -> Federation:
    """Federated averaging from the weights of `model`, which is not changed, with or without attackers among them.

    x, y are the images of all clients, `clients` the rows that each holds. In every round `per_round` clients are
    drawn, those who attack in it among them; each takes `steps` batches of `batch` of its images, drawn with
    replacement, and trains at home. `watch(round, global model)` is called after every round, the first being 1, and
    what it returns is the history. What a round and a client draw depends on the generator alone, not on who attacks.

    Raises ValueError for a model with buffers such as batch statistics, which averaging does not treat as weights, for
    more attackers than places, and for an update that is not finite, with its round; and as every method does for
    images, labels and settings. Cost: rounds · per_round · steps forward and backward passes of a batch.
    Sources: McMahan et al. 2017; Xie et al., ICLR 2020.
    """
    check_settings({"rounds": rounds, "steps": steps, "batch": batch, "lr": lr, "eta": eta, "mu": momentum,
                    "generator": generator})
    _check(model, x, y, clients, rounds, per_round, attackers)
    model = deepcopy(model).eval()
    weights = list(model.parameters())
    seeds = torch.randint(2**62, (rounds, 1 + len(clients)), generator=generator or torch.Generator().manual_seed(0))
    history = []
    for r in range(1, rounds + 1):
        active = {a.client: a for a in attackers if a.attacks(r)}
        who = _chosen(len(clients), per_round, list(active), seeds[r - 1, 0])
        sent: dict[int, Tensor] = {}
        for group in _groups(who, active, lr, steps):
            rate, length = group[0][1:]
            batches = [_batches(x, y, clients[i], length, batch, seeds[r - 1, 1 + i], active.get(i)) for i, *_ in group]
            images, labels = (torch.stack(part, 1) for part in zip(*batches, strict=True))
            theta = local_training(model, images, labels, lr=rate, momentum=momentum, decay=decay)
            delta = torch.cat([(theta[name] - p.detach()).flatten(1) for name, p in model.named_parameters()], 1)
            for (i, *_), d in zip(group, delta, strict=True):
                sent[i] = d * active[i].scale if i in active else d
        step = eta * aggregate(torch.stack([sent[i] for i in who]), torch.tensor(who))
        if not bool(step.isfinite().all()):
            raise ValueError(f"the update of round {r} is not finite: lower lr, or an attacker's scale")
        with torch.no_grad():
            for p, change in zip(weights, step.split([p.numel() for p in weights]), strict=True):
                p.add_(change.view_as(p))
        history.append(watch(r, model) if watch else None)
    return Federation(model, history)


def _check(
    model: nn.Module, x: Tensor, y: Tensor, clients: Sequence[Tensor], rounds: int, per_round: int,
    attackers: Sequence[Attacker],
) -> None:
    check_images(x)
    with borrowed(model, x):
        classes = check_model(model, x)
    check_labels(y, x, classes)
    if any(module._buffers and not isinstance(module, Normalize) for module in model.modules()):
        raise ValueError("the model has buffers (batch statistics), which are not weights and cannot be averaged as "
                         "such: take a network without batch norm, such as kit's `mlp` or `small`")
    if not 1 <= per_round <= len(clients):
        raise ValueError(f"per_round is between 1 and the {len(clients)} clients, not {per_round}")
    if any(not isinstance(own, Tensor) or not len(own) or int(own.min()) < 0 or int(own.max()) >= len(x)
           for own in clients):
        raise ValueError(f"every client needs a tensor of rows of the images, 0 … {len(x) - 1}, one at least")
    names = [a.client for a in attackers]
    if len(set(names)) < len(names) or any(not 0 <= i < len(clients) for i in names):
        raise ValueError(f"attackers are different clients 0 … {len(clients) - 1}, not {names}")
    check_aims(classes, **{f"the target of attacker {a.client}": a.target for a in attackers})
    for r in range(1, rounds + 1):
        if (count := sum(a.attacks(r) for a in attackers)) > per_round:
            raise ValueError(f"{count} attackers in round {r} do not fit into {per_round} places")


def _chosen(clients: int, per_round: int, sure: list[int], seed: Tensor) -> list[int]:
    """Who takes part: those who attack, and the first others of a random order."""
    order = torch.randperm(clients, generator=torch.Generator().manual_seed(int(seed))).tolist()
    return (sure + [i for i in order if i not in sure])[:per_round]


def _groups(
    who: list[int], active: dict[int, Attacker], lr: float, steps: int
) -> list[list[tuple[int, float, int]]]:
    """(client, lr, steps) of all, in groups that train alike and so at once."""
    alike: dict[tuple[float, int], list[tuple[int, float, int]]] = {}
    for i in who:
        a = active.get(i)
        how = (lr if a is None or a.lr is None else a.lr, steps if a is None or a.steps is None else a.steps)
        alike.setdefault(how, []).append((i, *how))
    return list(alike.values())


def _batches(
    x: Tensor, y: Tensor, own: Tensor, steps: int, batch: int, seed: Tensor, attacker: Attacker | None
) -> tuple[Tensor, Tensor]:
    """A client's batches (S, B, C, H, W) and labels (S, B), poisoned where it attacks."""
    draws = torch.randint(len(own), (steps, batch), generator=torch.Generator().manual_seed(int(seed)))
    rows = own[draws].to(x.device)
    images, labels = x[rows], y[rows]
    if attacker is None:
        return images, labels
    stamped = [attacker.poisoned(b, t) for b, t in zip(images, labels, strict=True)]
    return torch.stack([b for b, _ in stamped]), torch.stack([t for _, t in stamped])
