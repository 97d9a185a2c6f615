"""What an attack is after: any class but y, or one target and no other class."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kit.core.losses import cross_entropy, dlr, margin

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Goal:
    """Away from y (N,), or with a target (N,) towards it. `goal[rows]` is that of some of the images.

    Every method reads its goal here, so that "reached" means one thing: the lead is greater than what rounding could
    take back when the same image is asked about in a batch of another size.
    """

    y: Tensor
    target: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Goal:
        return Goal(self.y[rows], None if self.target is None else self.target[rows])

    def gain(self, z: Tensor, loss: Loss = cross_entropy) -> Tensor:
        """What the attacker maximises, (N,): ℓ(z, y), or −ℓ(z, target); of `dlr` its targeted form."""
        labels = self.y if self.target is None else self.target
        value = dlr(z, self.y, self.target) if loss is dlr else loss(z, labels)
        if value.shape != (len(z),):
            raise ValueError(f"the loss must return one number per image, ({len(z)},), not {tuple(value.shape)}")
        return value if self.target is None or loss is dlr else -value

    def lead(self, z: Tensor) -> Tensor:
        """By how much the attack leads, (N,): max_{j≠y} z_j − z_y, or z_t − max_{j≠t} z_j."""
        return margin(z, self.y) if self.target is None else -margin(z, self.target)

    def reached(self, z: Tensor, kappa: float = 0.0) -> Tensor:
        """Whether the lead is beyond κ and beyond rounding, (N,) bool."""
        return self.lead(z) > slack(z).clamp_min(kappa)


def slack(z: Tensor) -> Tensor:
    """What rounding may do to a difference of logits, (N,): the same image in another batch gives slightly others."""
    return 1e-5 * (z.detach().amax(1) - z.detach().amin(1))
