"""RTS, real-time saliency: a network learns once which pixels a classifier must see, and then says so in one pass.

    Φ(x, m) = m ⊙ x + (1 − m) ⊙ x̃      x̃ the blurred image or one noisy colour, either half the time

    ℓ(m) = destroy(Φ(x, 1 − m)) + λ_p preserve(Φ(x, m)) + λ_a area(m) + λ_s smooth(m),     one number per image

    area       mean over the pixels of (m + 0.0005)^q
    smooth     ½ (Σ (m_ij − m_i+1,j)² + Σ (m_ij − m_i,j+1)² + 0.3 Σ_border m²), sums over the pixels
    preserve   max(0, 1 − lead)        lead = z_y − max_{j≠y} z_j of the image that keeps m
    destroy    max(0, 5 + lead)        of the image that has lost m

The class is named from outside, by a selector in the decoder (`kit.models.decoders`). Training asks for classes that
are not there too; then the roles change: without m the image must still be y (max(0, 1 − lead)), and m alone must not
be (max(0, 1 + lead)), so that the best mask is empty.

Source: Dabkowski & Gal, Real time image saliency for black box classifiers, NeurIPS 2017, section 3 and 4, and their
code (pytorch-saliency), whose terms and constants these are. The paper's own equation 3 has −log p_y for `preserve`
and p_y^λ for `destroy`, λ = 0.3: that is form="probability".
"""
from __future__ import annotations

import copy
import math
from numbers import Real
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.data
import kit.models
from kit.core import (
    QueryCounter,
    accuracy,
    alike,
    borrowed,
    check_images,
    check_labels,
    check_model,
    chunks,
    features,
    generator,
    laid_out,
    margin,
    per_image,
)
from kit.core.fitted import Fitted, fingerprint
from kit.core.folding import fold_batch_norm
from kit.core.network import calls
from kit.explain.metrics import blurred, energy_inside, pointing_game
from kit.models import Recipe
from kit.models.decoders import MaskDecoder, selected

KEEP, LOSE = 1.0, 5.0  # the leads that the class terms ask for
POWER, TINY, BORDER = 0.3, 5e-4, 0.3  # of the area; of the smoothness
DESTROY_POWER = 0.3  # the paper's λ₄
BLUR = 11 / 224  # σ in sides of the image; their 55 pixels are 5 σ
COLOUR, COLOUR_NOISE, IMAGE_NOISE = 0.165, 0.055, 0.015  # their 0.33, 0.11 and 0.03, of images in [−1, 1]
FAKES = 0.3  # the share of classes asked for that are not there, in phase two; in phase one it is a half
WEIGHT_DECAY = 1e-4  # of both phases
SCALES = 4  # sizes of maps that are read, the coarsest, and none finer than half the image: theirs 7, 14, 28, 56 of 224


class Seen(NamedTuple):
    """What one pass through the encoder gives: the masks (N, H, W) in [0, 1], the selector's logit (N,) of "the class
    is there", and the encoder's own logits (N, K)."""

    mask: Tensor
    exists: Tensor
    logits: Tensor


class Terms(NamedTuple):
    """The four terms of the objective, not weighted, (N,) each."""

    area: Tensor
    smooth: Tensor
    preserve: Tensor
    destroy: Tensor


class RTS(Fitted):
    """Masks by a decoder on the feature maps of the classifier itself: m(x, c) in one forward pass, no gradient.

        rts = RTS.shipped("scenes/resnet")      rts.explain(x, target)      rts(rts.model, x, target)

    The last is the form that all explainers have, so that `rts` stands wherever one is asked for; it refuses any
    network but the one that it was fitted on.

    layers        those whose maps are read, the coarsest first; None is the last of each size up to half the image
    width         of the decoder
    confidence    how sure of the class the selector must be at a place, when it explains
    area, smooth, preserve, destroy     the weights λ of the four terms
    form          of the two class terms: "hinge" (the authors' code) or "probability" (their paper)

    The encoder is the classifier itself, frozen, and not a copy: what its maps do not hold no mask can show, and the
    encoder's loss is the classifier's. `see(x, target)` gives mask and logits of one pass. Who trains the same decoder
    for something else overrides `objective`.
    """

    def __init__(
        self, model: nn.Module, *, layers: list[str] | None = None, width: int = 16, confidence: float = 6.0,
        area: float = 8.0, smooth: float = 0.005, preserve: float = 0.3, destroy: float = 1.0, form: str = "hinge",
    ):
        if form not in ("hinge", "probability"):
            raise ValueError(f"form must be 'hinge' or 'probability', not {form!r}")
        if layers is not None and (len(layers) == 0 or len(set(layers)) < len(layers)):
            raise ValueError(f"layers must name one layer or more, each once, or be None, not {layers}")
        with features(model, layers or []):  # a name that the model does not have is refused here
            pass
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be a whole number of channels, 1 or more, not {width!r}")
        for name, number in {"confidence": confidence, "area": area, "smooth": smooth, "preserve": preserve,
                             "destroy": destroy}.items():
            if not isinstance(number, Real) or not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number, not {number!r}")
        self.model, self.layers, self.width, self.confidence = model, layers, width, confidence
        self.area, self.smooth, self.preserve, self.destroy, self.form = area, smooth, preserve, destroy, form
        self.decoder: MaskDecoder | None = None

    @classmethod
    def shipped(cls, name: str, device: str | torch.device | None = None) -> Self:
        """The one trained for a network of the catalogue: `RTS.shipped("scenes/resnet")`, its network as `.model`.

        Raises ValueError where there is none, or where the network has other weights now than it was trained on.
        """
        rts = cls(kit.models.load(name, device))
        decoder: Any = kit.models.load(f"rts/{name.replace('/', '-')}", device)
        rts.decoder, rts.layers, rts.width = decoder, list(decoder.maps), decoder.width
        rts._check(rts.model)
        return rts

    # --- explaining -------------------------------------------------------------------------------------------------

    def explain(self, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
        """m (N, H, W) in [0, 1]: what the classifier must see to answer `target` (N,), or what it predicts.

        1 stays, 0 can go; near 0 everywhere where the class is not there. Cost: one forward pass of the network and of
        the decoder, and two of two images. Raises ValueError before `fit`.
        """
        return self(self.model, x, target, create_graph=create_graph)

    def __call__(
        self, model: nn.Module, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False,
    ) -> Tensor:
        """`explain` in the form of all explainers.

        Raises ValueError for another network than the one that it was fitted on, by its fingerprint.
        """
        self._check(_inner(model))
        return _explained(model, x, target, rts=self, create_graph=create_graph)

    def _check(self, model: nn.Module) -> None:
        if not torch.equal(self.fitted().fitted_on.cpu(), _sha(model)):
            raise ValueError("this RTS was fitted on a model with other weights or layers: fit one on this model")

    def fitted(self) -> MaskDecoder:
        """The decoder. Raises ValueError before `fit`."""
        if self.decoder is None:
            raise ValueError("this RTS is not fitted yet: call fit(training images, labels) first")
        return self.decoder

    def see(self, x: Tensor, target: Tensor | None = None, *, model: nn.Module | None = None) -> Seen:
        """Mask, existence and logits of one chunk of images from one pass, differentiable by x. Nothing is checked.

        The pass is through `model` where one is given: the same network, or what counts its queries.
        Cost: one forward pass, and the decoder's.
        """
        maps, z = self._encoded(x, model)
        decoder = self.fitted()
        if (decoder.selector.dtype, decoder.selector.device) != (x.dtype, x.device):
            decoder = copy.deepcopy(decoder).to(x)
        e = decoder.selector[z.detach().argmax(1) if target is None else target]
        return Seen(_as_large(decoder(maps, e, self.confidence), x), selected(maps[0], e).mean((1, 2)), z)

    def _encoded(self, x: Tensor, model: nn.Module | None = None) -> tuple[list[Tensor], Tensor]:
        layers, model = self.layers or [], self.model if model is None else model
        with features(_inner(model), layers) as found:
            z = model(x)
        return [found[name] for name in layers], z

    # --- fitting ----------------------------------------------------------------------------------------------------

    def fit(
        self, x: Tensor, y: Tensor, *, epochs: int = 10, batch: int = 32, lr: float = 4e-3,
        weight_decay: float = WEIGHT_DECAY, shift: int = 0, flip: bool = False, **how: Any,
    ) -> Self:
        """Train selector and decoder on images x and their labels y; the network stays as it is.

        Phase one finds the selector (`selection`), phase two the decoder, by `objective`, the selector fixed. `how` is
        what else `kit.models.fit` takes: seed, progress, checkpoint. Cost: phase one is one forward pass over x; a step
        of phase two three forward passes of the network and two backward passes.
        """
        device = next((p.device for p in self.model.parameters()), x.device)
        check_images(x)
        with borrowed(self.model, x):
            few = x[:2].to(device)
            classes = check_model(self.model, few)
            check_labels(y, x, classes)
            self.layers = _scales(self.model, few) if self.layers is None else list(self.layers)
            with torch.no_grad():
                sizes = _channels(dict(zip(self.layers, self._encoded(few)[0], strict=True)))
                parts = (laid_out(x[rows].to(device)) for rows in chunks(x))
                pooled = torch.cat([self._encoded(part)[0][0].mean((2, 3)) for part in parts])
            selector = selection(pooled, y.to(device), classes)

            def loss(decoder: Any, xb: Tensor, yb: Tensor, generator: torch.Generator) -> Tensor:
                return self.objective(decoder, selector, xb, yb, generator).mean()

            build = {"maps": dict(zip(self.layers, sizes, strict=True)), "classes": classes, "width": self.width}
            r = Recipe("images", "masks", build, epochs=epochs, batch=batch, lr=lr, weight_decay=weight_decay,
                       shift=shift, flip=flip)
            decoder: Any = kit.models.fit(r, x, y, device=device, loss=loss, **how)
        self.decoder = _without_norms(decoder)
        self.decoder.selector, self.decoder.fitted_on = selector, _sha(self.model).to(device)
        return self

    def objective(
        self, decoder: MaskDecoder, selector: Tensor, x: Tensor, y: Tensor, generator: torch.Generator,
    ) -> Tensor:
        """Phase two: ℓ(m) (N,) of the decoder's masks of x, asked for y or, 30 % of the time, for another class."""
        target, real = asked(y, len(selector), generator)
        with torch.no_grad():
            maps, _ = self._encoded(x)
        mask = decoder([A.to(selector.dtype) for A in maps], selector[target])
        t = self.terms(x, y, _as_large(mask, x).to(x.dtype), real, generator)
        return self.destroy * t.destroy + self.preserve * t.preserve + self.area * t.area + self.smooth * t.smooth

    def terms(
        self, x: Tensor, y: Tensor, mask: Tensor, real: Tensor, generator: torch.Generator | None = None,
    ) -> Terms:
        """The four terms for masks (N, H, W) that were asked for y where `real` (N,), else for a class not there."""
        generator = alike(generator)
        kept = self.model(masked(x, mask, generator))
        lost = self.model(masked(x, 1 - mask, generator))
        if self.form == "hinge":
            preserve = torch.where(real, F.relu(margin(kept, y) + KEEP), F.relu(KEEP - margin(kept, y)))
            destroy = torch.where(real, F.relu(LOSE - margin(lost, y)), F.relu(margin(lost, y) + KEEP))
        else:
            there, gone = (-F.cross_entropy(z, y, reduction="none") for z in (kept, lost))  # log p_y
            preserve = torch.where(real, -there, (DESTROY_POWER * there).exp())
            destroy = torch.where(real, (DESTROY_POWER * gone).exp(), -gone)
        return Terms(area(mask), smoothness(mask), preserve, destroy)

    # --- keeping ----------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The decoder's, and the numbers of channels that it reads."""
        if self.decoder is None:
            return {}
        return {"channels": torch.tensor([*self.decoder.maps.values()]), **self.decoder.state_dict()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        selector = tensors["selector"]
        maps = dict(zip(self.layers or [], tensors["channels"].tolist(), strict=True))
        decoder = MaskDecoder(maps, len(selector), self.width, norm=False)
        decoder.load_state_dict({name: t for name, t in tensors.items() if name != "channels"})
        self.decoder = decoder.eval().to(selector.device)


@per_image
def _explained(model: nn.Module, x: Tensor, target: Tensor | None, *, rts: RTS, create_graph: bool) -> Tensor:
    with torch.set_grad_enabled(create_graph):
        return rts.see(x, target, model=model).mask


def _inner(model: nn.Module) -> nn.Module:
    """The network itself, where its queries are counted."""
    return model.model if isinstance(model, QueryCounter) else model


# --- the four terms -------------------------------------------------------------------------------------------------


def area(mask: Tensor) -> Tensor:
    """Mean over the pixels of (m + 0.0005)^0.3: (N,). The power makes little everywhere dearer than much in places."""
    return (mask + TINY).pow(POWER).mean((1, 2))


def smoothness(mask: Tensor) -> Tensor:
    """½ (Σ (differences of neighbours)² + 0.3 Σ_border m²): sums over the pixels (N,). Corners are counted twice."""
    steps = mask.diff(dim=1).square().sum((1, 2)) + mask.diff(dim=2).square().sum((1, 2))
    border = sum(side.square().sum(1) for side in (mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]))
    return (steps + BORDER * border) / 2


def masked(x: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Φ(x, m) = m ⊙ x + (1 − m) ⊙ x̃, not cut to [0, 1]: every image has its own x̃, and a little noise on x.

    x̃ is x blurred with σ = side · 11/224, or one colour 0.5 ± 0.165 with noise of 0.055, with equal probability.
    """
    generator = alike(generator)

    def normal(sigma: float) -> Tensor:
        return sigma * torch.randn(x.shape, generator=generator).to(x)

    def uniform(channels: int) -> Tensor:
        return torch.rand(len(x), channels, 1, 1, generator=generator).to(x)

    x = x + normal(IMAGE_NOISE)
    colour = 0.5 + COLOUR * (2 * uniform(x.shape[1]) - 1) + normal(COLOUR_NOISE)
    sigma = BLUR * max(x.shape[2:])
    blur = blurred(x, 2 * round(2.5 * sigma) + 1, sigma)
    return mask[:, None] * x + (1 - mask[:, None]) * torch.where(uniform(1) < 0.5, blur, colour)


# --- what fitting needs ---------------------------------------------------------------------------------------------


def selection(pooled: Tensor, y: Tensor, classes: int) -> Tensor:
    """argmin over e (classes, K) of E[½ softplus(−⟨Ā, e_y⟩) + ½ mean_{c≠y} softplus(⟨Ā, e_c⟩)] + 10⁻⁴ ½ ‖e‖².

    Ā (N, K) are the maps' means over the places: the cross-entropy of "class c is there" where half of the classes
    asked for are not. The authors take 8500 steps on draws of c; it is convex, so here L-BFGS takes its expectation.
    """
    e = torch.zeros(classes, pooled.shape[1], device=pooled.device, requires_grad=True)
    pooled, there = pooled.to(e.dtype), F.one_hot(y, classes).bool()
    solver = torch.optim.LBFGS([e], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        s = pooled @ e.T
        fakes = F.softplus(s).masked_fill(there, 0).sum(1) / (classes - 1)
        value = (F.softplus(-s[there]) + fakes).mean() / 2 + WEIGHT_DECAY * e.square().sum() / 2
        solver.zero_grad()
        (e.grad,) = torch.autograd.grad(value, e)
        return value

    solver.step(loss)
    return e.detach()


def asked(y: Tensor, classes: int, generator: torch.Generator, fakes: float = FAKES) -> tuple[Tensor, Tensor]:
    """The classes asked for (N,): y, or with probability `fakes` any other, all alike; and whether it is y."""
    other = torch.randint(1, classes, y.shape, generator=generator).to(y.device)
    real = (torch.rand(y.shape, generator=generator) >= fakes).to(y.device)
    return torch.where(real, y, (y + other) % classes), real


def _scales(model: nn.Module, x: Tensor) -> list[str]:
    """The last layer of each size of maps that a convolution has made, the coarsest first.

    Masks finer than half the image are left out: they come out as grids, which blind a network and show nothing.
    """
    with torch.no_grad():
        called = calls(model, x[:1])
    names = [name for name, *_ in called]
    first = next((i for i, (_, module, _) in enumerate(called) if isinstance(module, nn.Conv2d)), len(called))
    last: dict[int, str] = {}
    for name, _, output in called[first:]:
        if name and names.count(name) == 1 and isinstance(output, Tensor) and output.dim() == 4 and (
                output[0, 0].numel() > 1):
            last[output[0, 0].numel()] = name
    if not last:
        raise ValueError("this model has no feature maps (N, K, h, w) of a convolution, which RTS decodes")
    coarsest, *others = sorted(last)[:SCALES]
    return [last[size] for size in (coarsest, *(size for size in others if 4 * size <= x[0, 0].numel()))]


def _channels(maps: dict[str, Tensor]) -> list[int]:
    """The channels of the layers' maps. Raises ValueError for what is no map, and for a finer one before a coarser."""
    if flat := [name for name, A in maps.items() if A.dim() != 4]:
        raise ValueError(f"RTS decodes feature maps (N, K, h, w), and the layer {flat[0]!r} has none")
    places = [A[0, 0].numel() for A in maps.values()]
    if places != sorted(places):
        raise ValueError(f"layers must be named the coarsest first, and {list(maps)} have {places} places")
    return [A.shape[1] for A in maps.values()]


def _as_large(mask: Tensor, x: Tensor) -> Tensor:
    """The masks (N, h, w), resized bilinearly to the images."""
    if mask.shape[1:] == x.shape[2:]:
        return mask
    large = F.interpolate(mask[:, None], x.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return large.clamp(0, 1)  # its weights add up to 1 but for rounding


def _sha(model: nn.Module) -> Tensor:
    """The fingerprint as 32 numbers, which survive half precision."""
    return torch.tensor([float(byte) for byte in bytes.fromhex(fingerprint(model))])


def _without_norms(decoder: MaskDecoder) -> MaskDecoder:
    """The batch norms folded into the convolutions before them."""
    ups: Any = decoder.ups
    for up in ups:
        up.larger, up.bottleneck = fold_batch_norm(up.larger), fold_batch_norm(up.bottleneck)
    return decoder.eval()


# --- the recipes' training ------------------------------------------------------------------------------------------


def rts_training(
    r: Recipe, x: Tensor, y: Tensor, *, classifier: str, device: torch.device, half: bool = True, **how: Any,
) -> nn.Module:
    """The decoder of an `RTS` of the catalogue's network `classifier`. Cost: that of `fit`.

    `half` says that its weights are stored in half precision; it is trained in single.
    """
    rts = RTS(kit.models.load(classifier, device), layers=list(r.build["maps"]))
    rts.fit(x, y, epochs=r.epochs, batch=r.batch, lr=r.lr, weight_decay=r.weight_decay, shift=r.shift, flip=r.flip,
            **how)
    return rts.fitted()


def rts_figures(r: Recipe, decoder: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """For the manifest: how often the selector is right on a class that is there and on one that is not (accuracy).

    Of the first 500 images: how many the classifier labels y when only what the mask keeps is left, and when only that
    is gone; the mean of the masks, also for a class that is not there; and where the object is known, how many masks
    have their highest pixel on it once they are blurred (flat where they are 1, they have no highest else), and the
    share of them that lies on it.
    """
    few = slice(0, 500)
    x, y = x[few], y[few]
    rts = RTS(kit.models.load(r.options["classifier"]), layers=list(decoder.maps))
    rts.decoder = decoder
    target, _ = asked(y, len(decoder.selector), generator(), fakes=1.0)
    with torch.no_grad():
        there, other = rts.see(x, y), rts.see(x, target)
        kept, lost = (masked(x, m, generator()).clamp(0, 1) for m in (there.mask, 1 - there.mask))
    figures = {
        "accuracy": float(torch.cat([there.exists > 0, other.exists < 0]).float().mean()),
        "kept": accuracy(rts.model, kept, y), "lost": accuracy(rts.model, lost, y),
        "mask": float(there.mask.mean()), "mask_of_another": float(other.mask.mean()),
    }
    truth = kit.data.load(r.data, "test").mask
    if truth is not None:
        blurry = blurred(there.mask[:, None], 7)[:, 0]
        figures["pointing"] = float(pointing_game(blurry, truth[few]).float().mean())
        figures["energy_inside"] = float(energy_inside(there.mask, truth[few]).mean())
    return figures
