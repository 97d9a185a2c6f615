"""Who holds which images. Real clients differ: one writes ones, another nothing but sevens."""
from __future__ import annotations

import torch
from torch import Tensor

from kit.core import check_settings


def dirichlet_clients(
    y: Tensor, clients: int = 100, alpha: float = 0.5, *, generator: torch.Generator | None = None
) -> list[Tensor]:
    """The rows of the images that each client holds: every image is with one client, and no client is without any.

        of class k, client i gets the share q_ki,    q_k ~ Dirichlet(alpha, …, alpha)    independently for each class

    A small alpha gives most of a class to few clients, a large one gives everybody the same mixture. A client that
    drew nothing gets an image from the client with the most. Raises ValueError for fewer images than clients.
    Source: Hsu, Qi and Brown 2019; alpha = 0.5 is that of Xie et al., ICLR 2020.
    """
    if not isinstance(y, Tensor) or y.dim() != 1:
        raise TypeError("y must be a tensor of labels (N,): use torch.as_tensor")
    if clients < 1 or not 0 < alpha < float("inf"):
        raise ValueError(f"clients is 1 or more and alpha above 0, not {clients} and {alpha:g}")
    if len(y) < clients:
        raise ValueError(f"{len(y)} images cannot be dealt to {clients} clients, one each at least: take fewer clients")
    check_settings({"generator": generator})
    g = generator or torch.Generator().manual_seed(0)
    held: list[list[int]] = [[] for _ in range(clients)]
    for k in y.unique().tolist():
        rows = (y == k).nonzero().flatten().cpu()
        rows = rows[torch.randperm(len(rows), generator=g)]
        q = torch._standard_gamma(torch.full((clients,), float(alpha), dtype=torch.float64), generator=g)
        cuts = (q.cumsum(0) / q.sum() * len(rows)).round().long().diff(prepend=torch.zeros(1, dtype=torch.long))
        for own, some in zip(held, rows.split(cuts.tolist()), strict=True):
            own += some.tolist()
    for own in held:
        if not own:
            own.append(max(held, key=len).pop())
    return [torch.tensor(own) for own in held]
