"""A model for attacks that may only ask."""
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
