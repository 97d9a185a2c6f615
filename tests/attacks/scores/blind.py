"""Models for attacks that may only ask."""
import torch
from torch import nn


class Blind(nn.Module):
    """A model that answers and refuses autograd."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.no_grad():
            return self.inner(x)


class Recorded(nn.Module):
    """A model that keeps what it was asked."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.asked = inner, []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.inner(x)
