"""Random transformations: the mean answer over images that were resized, shifted, turned or mirrored by chance."""
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import seeding
from kit.defend.purify.wrapper import Wrapper, mean_probability


class RandomResizePad(Wrapper):
    """R&P: resize to a random size, pad with zeros at a random place, mirror or not; the mean probability of `draws`.

    z(x) = log (1/D) Σ_d softmax f(q_d(x)). The paper goes from 299 to r ∈ {310, …, 330}, nearest neighbour, within 331
    pixels; here the same ratios: from 32 to r ∈ {33, 34, 35} within 36. The model must take images of another size.
    Each draw starts from the image itself (in the authors' code the mirrorings accumulate). They add 0.4 times the
    probabilities of an auxiliary head, which our networks do not have. Cost: `draws` forward passes.
    Source: Xie et al., Mitigating adversarial effects through randomization, ICLR 2018.
    """

    def __init__(self, model: nn.Module, draws: int = 30, generator: torch.Generator | None = None):
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws must be 1 or more, not {draws}")
        self.model, self.draws, self.generator = model, draws, generator

    def transforms(self, height: int, width: int) -> list[Callable[[Tensor], Tensor]]:
        """One function from images to images per draw."""
        u = torch.rand(self.draws, 4, generator=self.generator or seeding.generator()).tolist()
        return [_resize_pad(height, width, *numbers) for numbers in u]

    def forward(self, x: Tensor) -> Tensor:
        return mean_probability([self.model(q(x)) for q in self.transforms(*x.shape[2:])])


def _resize_pad(height: int, width: int, size: float, down: float, right: float, mirrored: float):
    """q for four numbers in [0, 1)."""
    shape, before, after = [], [], []
    for n, place in ((height, down), (width, right)):
        smallest, canvas = round(n * 310 / 299), math.ceil(n * 331 / 299)
        new = smallest + int(size * (canvas - smallest))
        start = int(place * (canvas - new + 1))
        shape.append(new)
        before.append(start)
        after.append(canvas - new - start)
    around = (before[1], after[1], before[0], after[0])

    def q(x: Tensor) -> Tensor:
        x = F.pad(F.interpolate(x, size=shape, mode="nearest"), around)
        return x.flip(3) if mirrored < 0.5 else x

    return q


class RandomEnsemble(Wrapper):
    """NIPS-r3: several adversarially trained networks, each behind random rotations, shears, shifts and zooms.

    z(x) = log (1/MD) Σ_m Σ_d softmax f_m(q_md(x)), q an affine map by bilinear interpolation, the edge repeated.
    The ranges: rotation ± `rotation` degrees, shear ± `shear`, shift ± `shift` of the image's side, zoom 1 ± `zoom`,
    all uniform; they are ours, as is `draws` per network. Cost: M × draws forward passes.
    Source: the third place of the defence track of the NIPS 2017 competition (Kurakin et al., 2018, section 5).
    """

    def __init__(
        self, models: Sequence[nn.Module], draws: int = 3, rotation: float = 8.0, shear: float = 0.1,
        shift: float = 0.06, zoom: float = 0.1, generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not models or draws < 1:
            raise ValueError("an ensemble needs at least one model and one draw")
        self.models, self.draws, self.generator = nn.ModuleList(models), draws, generator
        self.ranges = (math.radians(rotation), shear, shift, shift, zoom)

    def maps(self) -> Tensor:
        """The affine maps (M, D, 2, 3), from the output's coordinates in [−1, 1] to the input's."""
        u = torch.rand(len(self.models), self.draws, 5, generator=self.generator or seeding.generator()) * 2 - 1
        angle, shear, down, right, zoom = (u * torch.tensor(self.ranges)).unbind(-1)
        cos, sin, scale = angle.cos(), angle.sin(), 1 / (1 + zoom)
        rows = [scale * cos, scale * (shear * cos - sin), 2 * right, scale * sin, scale * (shear * sin + cos), 2 * down]
        return torch.stack(rows, -1).unflatten(-1, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        votes = []
        for model, own in zip(self.models, self.maps().to(x), strict=True):
            for theta in own:
                grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
                votes.append(model(F.grid_sample(x, grid, padding_mode="border", align_corners=False)))
        return mean_probability(votes)
