"""DeepTest: images changed as weather, lens and driver change them, and what the answers may then do.

    T(x; p)        seven changes, each of strength p = 1, …, 10
    ‖f(T(x)) − f(x)‖² ≤ λ · mean ‖f(x) − y‖²        the relation: a change costs no more than λ times the usual error

translation 10 p pixels of 480, to the right and down; scale 1 + p/2; shear p/10 to the right per row; rotation 3 p
degrees; contrast x (1 + p/5); brightness x + 10 p/255; blur, ten kinds. Moves and scalings are those of kit.data, about
the centre, black outside. The authors shear about a corner, and their "scale" enlarges a frame that is then cropped and
shrunk to the network's size, so that the crop alone changes.
Source: Tian et al., DeepTest, ICSE 2018, and its code.
"""
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Ensemble, check_images, check_labels, laid_out, logits, per_image, uniform
from kit.data.corner_cases import brightness, rotate, scale, shear, translate
from kit.diverse.diverse_inputs import check_several

ROWS = 480  # of the authors' frames, in which 10 p pixels are counted


def blur(x: Tensor, p: Tensor) -> Tensor:
    """The p-th of ten blurs, p (N,): means of 3², 4², 5² pixels, Gaussians of 3², 5², 7², medians of 3², 5², the mean
    of 6², and a bilateral filter of 9² (σ 75/255 in colour, 75 pixels). Mirrored at the edge, repeated for a median."""
    out = x.clone()
    for kind in p.unique().tolist():
        out[p == kind] = _BLURS[int(kind) - 1](x[p == kind])
    return out


def _mirrored(x: Tensor, size: int) -> Tensor:
    """The size² pixels about each, (N, C, size², H, W); of an even size one more to the left and above."""
    before, after = size // 2, (size - 1) // 2
    windows = F.pad(x, (before, after, before, after), mode="reflect").unfold(2, size, 1).unfold(3, size, 1)
    return windows.flatten(4).permute(0, 1, 4, 2, 3)


def _mean(x: Tensor, size: int) -> Tensor:
    before, after = size // 2, (size - 1) // 2
    return F.avg_pool2d(F.pad(x, (before, after, before, after), mode="reflect"), size, 1)


def _gauss(x: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Separable; the weights are those of OpenCV for kernels of 3, 5 and 7."""
    w, reach, channels = x.new_tensor(weights), len(weights) // 2, x.shape[1]
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, w.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, w.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _median(x: Tensor, size: int) -> Tensor:
    padded = F.pad(x, (size // 2,) * 4, mode="replicate")
    return padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4).median(4).values


def _bilateral(x: Tensor, size: int = 9, colour: float = 75 / 255, space: float = 75.0) -> Tensor:
    """Σ w x / Σ w over a disc, w = exp(−(Σ_c |Δ|)²/2σ_c² − r²/2σ_s²)."""
    axis = torch.arange(size, device=x.device) - size // 2
    r = (axis[:, None].square() + axis.square()).flatten()
    near = _mirrored(x, size)[:, :, r <= (size // 2) ** 2]  # (N, C, k, H, W)
    off = (near - x[:, :, None]).abs().sum(1, keepdim=True)
    far = r[r <= (size // 2) ** 2].to(x).view(1, 1, -1, 1, 1)
    w = torch.exp(-off.square() / (2 * colour**2) - far / (2 * space**2))
    return (w * near).sum(2) / w.sum(2)


_BLURS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: _mean(x, 3), lambda x: _mean(x, 4), lambda x: _mean(x, 5),
    lambda x: _gauss(x, (0.25, 0.5, 0.25)), lambda x: _gauss(x, (0.0625, 0.25, 0.375, 0.25, 0.0625)),
    lambda x: _gauss(x, (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125)),
    lambda x: _median(x, 3), lambda x: _median(x, 5), lambda x: _mean(x, 6), _bilateral,
)
TESTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "translation": lambda x, p: translate(x, 10 * p * x.shape[2] / ROWS),
    "scale": lambda x, p: scale(x, 1 + p / 2),
    "shear": lambda x, p: shear(x, p / 10),
    "rotation": lambda x, p: rotate(x, 3 * p),
    "contrast": lambda x, p: (x * (1 + p.view(-1, 1, 1, 1) / 5)).clamp(0, 1),
    "brightness": lambda x, p: brightness(x, 10 * p / 255),
    "blur": blur,
}
STRONGEST = 10


def changed(x: Tensor, test: Tensor, p: Tensor) -> Tensor:
    """Each image (N, C, H, W) under its change: `test` (N,) counts in the order of `TESTS`, p (N,) from 1 to 10.

    Raises ValueError for another number of either, and for blurs of images with fewer than 5 pixels a side.
    """
    check_images(x)
    for name, value, least, most in (("test", test, 0, len(TESTS) - 1), ("p", p, 1, STRONGEST)):
        if value.shape != (len(x),) or bool(((value < least) | (value > most) | (value % 1 != 0)).any()):
            raise ValueError(f"{name} is a whole number from {least} to {most} for each of {len(x)} images")
    if min(x.shape[2:]) < 5 and bool((test == list(TESTS).index("blur")).any()):
        raise ValueError(f"a blur mirrors 4 pixels at the edge: {tuple(x.shape[2:])} are too few")
    out = x.clone()
    for place, function in enumerate(TESTS.values()):
        rows = test == place
        if bool(rows.any()):
            out[rows] = function(x[rows], p[rows].to(x)).clamp(0, 1)
    return out


@per_image
def deeptest(
    model: Ensemble, x: Tensor, *, tries: int = 20, strongest: int = STRONGEST, generator: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Change each image at random until the networks of the ensemble differ about it.

    Each try draws one of the seven changes of the image as it was, and p from 1 to `strongest`. Returns the images of
    the last try of each, and that try: (N, C, H, W), `test` (N,) and p (N,), as `changed` takes them; an image about
    which the networks differed from the start is not changed, and has p = 0.
    Cost: at most `tries` forward passes of all networks; `differ` says about which they disagree.
    Raises TypeError for what is no Ensemble, ValueError for fewer than two networks, for networks of different classes,
    and for a strength past 10.
    """
    check_several("deeptest", model)
    if strongest != int(strongest) or not 1 <= strongest <= STRONGEST:
        raise ValueError(f"strongest must be a whole number from 1 to {STRONGEST}, not {strongest}")
    found, test = x.clone(), torch.zeros(len(x), dtype=torch.long, device=x.device)
    p, live = torch.zeros_like(test), torch.arange(len(x), device=x.device)
    for _ in range(tries):
        with torch.no_grad():
            said = torch.stack([member(laid_out(found[live])) for member in model.models]).argmax(2)
        live = live[(said == said[:1]).all(0)]
        if not len(live):
            break
        which, how = uniform(x.new_empty(len(x), 2), generator).unbind(1)
        test[live] = (which[live] * len(TESTS)).long().clamp(max=len(TESTS) - 1)
        p[live] = 1 + (how[live] * strongest).long().clamp(max=strongest - 1)
        found[live] = changed(x[live], test[live], p[live])
    return found, test, p


def clean_error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """mean ‖f(x) − y‖² over labelled images, f the probabilities and y one-hot. Cost: one forward pass."""
    f = logits(model, x).softmax(1)
    check_labels(y, x, f.shape[1])
    return float((f - F.one_hot(y, f.shape[1])).square().sum(1).mean())


def departure(model: nn.Module, x: Tensor, x_changed: Tensor) -> Tensor:
    """‖f(T(x)) − f(x)‖² of each image (N,), f the probabilities; above λ `clean_error` it breaks the relation.

    Raises ValueError for another number of changed images. Cost: two forward passes.
    """
    if len(x) != len(x_changed):
        raise ValueError(f"there are {len(x_changed)} changed images for {len(x)}: give one for each")
    return (logits(model, x_changed).softmax(1) - logits(model, x).softmax(1)).square().sum(1)
