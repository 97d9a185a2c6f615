"""RTS itself: what is fitted, and how it explains. See `kit.explain.rts`."""
from __future__ import annotations

import copy
import math
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.models
from kit.core import (
    QueryCounter,
    alike,
    borrowed,
    check_images,
    check_labels,
    check_model,
    chunks,
    features,
    laid_out,
    margin,
    per_image,
)
from kit.core.fitted import Fitted, fingerprint
from kit.core.folding import fold_batch_norm
from kit.core.network import calls
from kit.explain.rts.objective import WEIGHT_DECAY, Terms, area, asked, masked, selection, smoothness
from kit.models import Recipe
from kit.models.decoders import MaskDecoder, selected

KEEP, LOSE = 1.0, 5.0  # the leads that the class terms ask for
DESTROY_POWER = 0.3  # the paper's λ₄
SCALES = 4  # sizes of maps that are read, the coarsest, and none finer than half the image: theirs 7, 14, 28, 56 of 224


class Seen(NamedTuple):
    """What one pass through the encoder gives: the masks (N, H, W) in [0, 1], the selector's logit (N,) of "the class
    is there", and the encoder's own logits (N, K)."""

    mask: Tensor
    exists: Tensor
    logits: Tensor


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
    for something else overrides `objective`; `shelf` is where the catalogue keeps its decoders.
    """

    shelf: ClassVar[str] = "rts"

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
        decoder: Any = kit.models.load(f"{cls.shelf}/{name.replace('/', '-')}", device)
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
        return Seen(as_large(decoder(maps, e, self.confidence), x), selected(maps[0], e).mean((1, 2)), z)

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
        t = self.terms(x, y, as_large(mask, x).to(x.dtype), real, generator)
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


def as_large(mask: Tensor, x: Tensor) -> Tensor:
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
