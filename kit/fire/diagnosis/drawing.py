"""InterpretGAN itself: a generator for each layer, trained against a critic and the classifier: see its package."""
from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kit.models
from kit.core import Draws, Normalize, borrowed, check_images, check_model, chunks, features, laid_out, logits, normal
from kit.core.checks import check_counts, check_fits, check_settings
from kit.core.fitted import Fitted, fingerprint
from kit.models import Recipe
from kit.models.decoders import Critic, Drawers
from kit.models.training import Gradients

STEEP = 1.0  # γ of the critic's penalty ½ γ ‖∇D(x)‖² on real images (R1, Mescheder et al. 2018)


class InterpretGAN(Fitted):
    """Images that show what a layer still says of its input: G_l(h_l(x), n), one generator for each layer.

        gan = InterpretGAN.shipped("digits/cnn7")     gan.explain(x, generator=g)["layer4"]     (N, C, H, W)

    model     the classifier f; it stays as it is
    layers    whose features are drawn, from the input on; None is every stage of the network but the first scaling
    noise     how many numbers n ~ N(0, I) an image is drawn with
    width     channels of the generators
    lam       λ, the weight of reading the same features, against that of looking like an image
    jitter    noise on the features in training, in standard deviations: features of attacked images are none of clean
              ones, and a generator that has seen only those may fail on them by itself
    spread    ρ, the weight of drawing different images from different noise: −ρ ‖G(h, n) − G(h, n')‖₁ / ‖n − n'‖₁, each
              norm a mean (Mao et al., CVPR 2019). Without it what is not read is drawn as one thing

    Two images that are explained with generators of one seed are drawn with the same noise, so that what differs
    between their drawings is what the layer says of them.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str] | None = None, *, noise: int = 8, width: int = 12,
        lam: float = 3.0, jitter: float = 0.0, spread: float = 0.0,
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a network, not {model!r}: for one of the catalogue write "
                            "InterpretGAN.shipped(name)")
        if layers is not None and (isinstance(layers, str) or not layers or len(set(layers)) < len(layers)):
            raise ValueError(f"layers must name one layer or more, each once, or be None, not {layers!r}")
        check_counts(noise=noise, width=width)
        for name, number in {"lam": lam, "jitter": jitter, "spread": spread}.items():
            if not isinstance(number, Real) or not 0 <= number < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or more, not {number!r}")
        self.model, self.noise, self.width = model, noise, width
        self.lam, self.jitter, self.spread = lam, jitter, spread
        self.layers = stages(model) if layers is None else list(layers)
        with features(model, self.layers):  # a name that the model does not have is refused here
            pass
        self.drawers: Drawers | None = None

    @classmethod
    def shipped(cls, name: str, device: str | torch.device | None = None) -> Self:
        """The one trained for a network of the catalogue: `InterpretGAN.shipped("digits/cnn7")`.

        Raises ValueError where there is none, or where the network has other weights now than it was trained on.
        """
        drawn = f"drawn/{name.replace('/', '-')}"
        if drawn not in kit.models.CATALOGUE:
            there = [n for n in kit.models.CATALOGUE if f"drawn/{n.replace('/', '-')}" in kit.models.CATALOGUE]
            raise ValueError(f"no generators are shipped for {name!r}, but for {', '.join(there)}: train some with "
                             "InterpretGAN(model).fit(x)")
        drawers: Any = kit.models.load(drawn, device)
        gan = cls(kit.models.load(name, device), list(drawers.shapes), noise=drawers.noise, width=drawers.width)
        gan.drawers = drawers
        if not torch.equal(drawers.fitted_on.cpu(), sha(gan.model)):
            raise ValueError(f"the generators of {name} were trained on other weights than it has now: fit new ones")
        return gan

    # --- drawing ----------------------------------------------------------------------------------------------------

    def explain(self, x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """{layer: G_l(h_l(x), n)}: what each layer says of images x (N, C, H, W), drawn with the same n for all layers.

        Cost: one forward pass of the network and of each generator. Raises ValueError before `fit`.
        """
        n = self.noise_for(x, generator)
        return {layer: self.draw(layer, h, n) for layer, h in self.read(x).items()}

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """The features {layer: (N, …)} of images, in chunks, without gradients. Cost: one forward pass."""
        return read(self.model, x, self.layers)

    def noise_for(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n ~ N(0, I), (N, noise): the same for the image at the same place, from generators of one seed."""
        check_images(x)
        check_settings({"generator": generator})
        return normal(x.new_empty(len(x), self.noise), Draws(len(x), generator))

    def draw(self, layer: str, h: Tensor, n: Tensor) -> Tensor:
        """G_l(h, n), images (N, C, H, W), without gradients; n has a row for each of h, or one for all."""
        if layer not in self.layers:
            raise ValueError(f"there is no generator for the layer {layer!r}: there are {', '.join(self.layers)}")
        drawers = self.fitted()
        shape = drawers.shapes[layer]
        if h.shape[1:] != shape or not h.is_floating_point():
            raise ValueError(f"the features of {layer} are floats (N, {', '.join(map(str, shape))}), not {h.dtype} "
                             f"{tuple(h.shape)}: read(x)[{layer!r}] gives them")
        if n.shape not in ((len(h), self.noise), (1, self.noise)):
            raise ValueError(f"n has {self.noise} numbers for each of the {len(h)} images, or for all, not the shape "
                             f"{tuple(n.shape)}: noise_for(x) gives them")
        if not bool(h.isfinite().all() & n.isfinite().all()):
            raise ValueError("features or noise hold NaN or infinity: nothing can be drawn from them")
        n = n.to(h)
        if drawers.fitted_on.dtype != h.dtype or drawers.fitted_on.device != h.device:
            drawers = copy.deepcopy(drawers).to(h)
        with torch.no_grad():
            return torch.cat([drawers(layer, a, b) for a, b in zip(
                h.split(256), n.expand(len(h), -1).split(256), strict=True)])

    def fitted(self) -> Drawers:
        """The generators. Raises ValueError before `fit`."""
        if self.drawers is None:
            raise ValueError("this InterpretGAN is not fitted yet: call fit(training images) first")
        return self.drawers

    def follows(self, x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, tuple[float, float]]:
        """Does a generator read its layer? {layer: (it follows, it stays)}, for features permuted among the images.

        Image i is drawn from the features of an image of another answer and with its own noise. The first is the share
        whose drawing f answers as the image of the features, the second as image i. A generator that ignores the
        features follows no more often than chance, whatever it draws and however real that looks.
        Cost: one forward pass, one drawing and a forward pass for each layer. Raises ValueError where all images have
        one answer.
        """
        answer = answered(self.model, x)
        order = other_answers(answer)
        n, found = self.noise_for(x, generator), {}
        for layer, h in self.read(x).items():
            drawn = answered(self.model, self.draw(layer, h[order], n))
            found[layer] = tuple(float((drawn == of).float().mean()) for of in (answer[order], answer))
        return found  # type: ignore[return-value]

    # --- fitting ----------------------------------------------------------------------------------------------------

    def fit(
        self, x: Tensor, y: Tensor | None = None, *, epochs: int = 70, batch: int = 64, lr: float = 4e-3,
        weight_decay: float = 0.0, shift: int = 0, flip: bool = False, **how: Any,
    ) -> Self:
        """Train generators and critic on images x. Labels are not needed: the classifier's features are the target.

        `how` is what else `kit.models.fit` takes: seed, progress, checkpoint. Cost of a step: three passes of the
        network, two backward passes of it, and four of the critic.
        """
        check_images(x)
        device = next((p.device for p in self.model.parameters()), x.device)
        if len(x) < 2 or batch < 2:
            raise ValueError(f"a training needs two images in a batch at least, whose features differ: there are "
                             f"{len(x)} images and batch={batch}")
        if x.shape[2] != x.shape[3]:
            raise ValueError(f"generators draw square images, and these are {x.shape[2]} × {x.shape[3]}: crop or pad "
                             "them")
        with borrowed(self.model, x):
            check_model(self.model, x[:2].to(device))
            with torch.no_grad(), features(self.model, self.layers) as found:
                self.model(x[:1].to(device))
            build: dict[str, Any] = {"shapes": {layer: list(found[layer].shape[1:]) for layer in self.layers},
                     "channels": x.shape[1], "size": x.shape[2], "width": self.width, "noise": self.noise}
            r = Recipe("images", "drawers", build, epochs=epochs, batch=batch, lr=lr, weight_decay=weight_decay,
                       shift=shift, flip=flip)
            with torch.random.fork_rng():
                torch.manual_seed(how.get("seed", 0))
                game = Game(Drawers(**build), Critic(x.shape[1], x.shape[2]))
            labels = torch.zeros(len(x), dtype=torch.int64) if y is None else y
            trained: Any = kit.models.fit(r, x, labels, device=device, start=game, oracle=self.both_players, **how)
        self.drawers = trained.drawers.eval()
        self.fitted().fitted_on = sha(self.model).to(device)
        return self

    def both_players(
        self, game: Any, weights: list[nn.Parameter], x: Tensor, y: Tensor, generator: torch.Generator,
    ) -> Gradients:
        """The sum of both losses, and for each player the gradient of its own: see the formulas of the package.

        Every image of the batch is drawn from one layer, in turn, so that a step costs what one generator would.
        """
        with torch.no_grad(), features(self.model, self.layers) as found:
            z = self.model(x)
        h = {layer: found[layer].detach() for layer in self.layers}
        n = torch.randn(len(x), self.noise, generator=generator).to(x)
        turn = torch.arange(len(x), device=x.device) % len(self.layers)
        rows = [(turn == i).nonzero()[:, 0] for i in range(len(self.layers))]
        order = torch.cat(rows)
        given = [self.disturbed(h[layer], generator)[at] for layer, at in zip(self.layers, rows, strict=True)]

        def draw(n: Tensor) -> Tensor:
            return torch.cat([game.drawers(layer, own, n[at])
                              for layer, own, at in zip(self.layers, given, rows, strict=True)])

        drawn = draw(n)
        with features(self.model, self.layers) as again:
            z_drawn = self.model(drawn)
        same = []
        for i, layer in enumerate(self.layers):
            same.append(unread(again[layer][turn[order] == i], h[layer][rows[i]], h[layer]))
        named = F.kl_div(z_drawn.log_softmax(1), z[order].log_softmax(1), log_target=True, reduction="none").sum(1)
        generators = (F.softplus(-game.critic(drawn)) + self.lam * (torch.cat(same) + named)).mean()
        if self.spread:
            other = torch.randn(n.shape, generator=generator).to(n)
            apart = (draw(other) - drawn).abs().flatten(1).mean(1) / (other - n).abs().mean(1)[order]
            generators = generators - self.spread * apart.mean()

        real = x.detach().requires_grad_()
        answer = game.critic(real)
        slope = torch.autograd.grad(answer.sum(), real, create_graph=True)[0].flatten(1).square().sum(1)
        critic = (F.softplus(-answer) + F.softplus(game.critic(drawn.detach())) + STEEP / 2 * slope).mean()

        own = {id(p) for p in game.drawers.parameters()}
        first, second = ([p for p in weights if (id(p) in own) == mine] for mine in (True, False))
        gradients = dict(zip(map(id, first), torch.autograd.grad(generators, first, allow_unused=True), strict=True))
        gradients |= dict(zip(map(id, second), torch.autograd.grad(critic, second, allow_unused=True), strict=True))
        return generators + critic, [gradients[id(p)] for p in weights]

    def disturbed(self, h: Tensor, generator: torch.Generator) -> Tensor:
        """h with `jitter` standard deviations of the batch's features on it; where a unit is silent, none."""
        if not self.jitter:
            return h
        return h + self.jitter * h.std(0, keepdim=True) * torch.randn(h.shape, generator=generator).to(h)

    # --- keeping ----------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The generators', and the shapes of the features and of the images."""
        if self.drawers is None:
            return {}
        shapes = {f"shape.{i}": torch.tensor(shape) for i, shape in enumerate(self.drawers.shapes.values())}
        last: Any = self.drawers.each[0].draw
        image = torch.tensor([last[-2].out_channels, int(last[-3].size[0])])
        return {"image": image, **shapes, **self.drawers.state_dict()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        channels, size = tensors["image"].tolist()
        shapes = {layer: tensors[f"shape.{i}"].tolist() for i, layer in enumerate(self.layers)}
        with torch.random.fork_rng():
            self.drawers = Drawers(shapes, channels, size, self.width, self.noise)
        state = {name: t for name, t in tensors.items() if name != "image" and not name.startswith("shape.")}
        self.drawers.load_state_dict(state)
        self.drawers.eval().to(tensors["fitted_on"].device)


class Game(nn.Module):
    """The two players: generators and critic."""

    def __init__(self, drawers: Drawers, critic: Critic):
        super().__init__()
        self.drawers, self.critic = drawers, critic


def unread(again: Tensor, h: Tensor, batch: Tensor) -> Tensor:
    """‖h_l(G) − h_l‖² (N,), in the variance of the layer: mean ‖h_l − h̄‖² over a batch. A constant reaches 1."""
    variance = (batch - batch.mean(0)).flatten(1).square().sum(1).mean().clamp_min(torch.finfo(h.dtype).tiny)
    return (again - h).flatten(1).square().sum(1) / variance


def stages(model: nn.Module) -> list[str]:
    """The names of a network's stages, but of what only scales or reshapes."""
    found = [name for name, m in model.named_children() if not isinstance(m, Normalize | nn.Flatten | nn.Identity)]
    if not found:
        raise ValueError("this model has no stages of its own: name the layers that are to be drawn")
    return found


def read(model: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The features {layer: (N, …)} of images, in chunks, without gradients. Cost: one forward pass."""
    check_images(x)
    check_fits(model, x)
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with borrowed(model, x), torch.no_grad():
        for rows in chunks(x):
            with features(model, layers) as found:
                model(laid_out(x[rows]))
            for layer in layers:
                parts[layer].append(found[layer])
    return {layer: torch.cat(part) for layer, part in parts.items()}


def answered(model: nn.Module, x: Tensor) -> Tensor:
    """The class that the model names for each image (N,). Cost: one forward pass."""
    return logits(model, x).argmax(1)


def other_answers(answer: Tensor) -> Tensor:
    """A permutation (N,) after which as many places as possible have another answer than before: sorted by answer, and
    turned by half of the most frequent one's number or more. Raises ValueError where all have one answer."""
    if answer.dim() != 1 or answer.dtype != torch.int64 or not len(answer):
        raise ValueError(f"answers are class numbers (N,) as int64, one for each image, not {answer.dtype} "
                         f"{tuple(answer.shape)}")
    most = int(answer.bincount().max())
    if most == len(answer):
        raise ValueError("all images have one answer: whether a drawing follows its features needs two at least")
    by = answer.argsort(stable=True)
    order = torch.empty_like(by)
    order[by] = by.roll(-most)
    return order


def sha(model: nn.Module) -> Tensor:
    """The fingerprint as 32 numbers, which survive half precision."""
    return torch.tensor([float(byte) for byte in bytes.fromhex(fingerprint(model))])
