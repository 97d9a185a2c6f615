"""Who plays: a defender is a network and what stands around it, an attack a method and what it is shown of that."""
from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kit.core import Ensemble, ball, generator, logits
from kit.core.fitted import fingerprint
from kit.defend.purify import Purified, RandomEnsemble, Through, Wrapper, straight_through
from kit.detect import REFUSED, Detector, evade

Shown = Callable[["Defender", int], nn.Module | None]


@dataclass(frozen=True)
class Defender:
    """What an attack faces: a network (also a module of `kit.defend`), and perhaps a detector that refuses images.

    A defence that draws at random is judged by the draws of `generator=None`, and attacked with others.
    """

    model: nn.Module
    detector: Detector | None = None

    @classmethod
    def of(cls, given: nn.Module | Detector | Defender) -> Defender:
        """A network, a detector with its threshold, or a defender as it is. Raises TypeError for anything else."""
        if isinstance(given, Defender):
            return given
        if isinstance(given, Detector):
            return cls(given.model, given)
        if not isinstance(given, nn.Module):
            raise TypeError(f"a defender is a network or a detector, not a {type(given).__name__}")
        return cls(given)

    @property
    def random(self) -> bool:
        """Whether it draws: several draws a pass, from a generator."""
        return hasattr(self.model, "draws") and hasattr(self.model, "generator")

    @property
    def inner(self) -> nn.Module:
        """The network without what cleans, masks or averages around it."""
        model = self.model
        while isinstance(model, Wrapper):
            inside: Any = model
            model = Ensemble(list(inside.models)) if isinstance(model, RandomEnsemble) else inside.model
        return model

    def seen(self, seed: int, times: int = 1) -> nn.Module:
        """The network as an attacker may ask it; one that draws has fresh draws at every pass, `times` as many."""
        return _drawing(self.model, generator(seed + 1), times) if self.random else self.model

    def answers(self, x: Tensor) -> Tensor:
        """Its labels (N,), and −1 for what it refuses. Cost: one pass, with a detector that and its score."""
        if self.detector is not None:
            return self.detector.predict(x)
        return logits(_drawing(self.model, None) if self.random else self.model, x).argmax(1)

    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether a clean image gets its label (N,): to refuse it is an error."""
        return self.answers(x) == y

    def withstands(self, x_adv: Tensor, y: Tensor) -> Tensor:
        """Whether an attacked image gets its label or is refused (N,)."""
        answers = self.answers(x_adv)
        return (answers == y) | (answers == REFUSED)


def _drawing(model: nn.Module, source: torch.Generator | None, times: int = 1) -> nn.Module:
    """The same module with another source of its draws, and more of them."""
    twin: Any = copy.copy(model)
    twin.generator, twin.draws = source, times * twin.draws
    return twin


@dataclass(frozen=True)
class Attack:
    """What one attacker does to a defender: `run(defender, x, y, eps, norm, seed)` is x' in the ball, or None where the
    attack does not belong. With `alike` the images do not depend on the defender, and are made once."""

    text: str
    run: Callable[[Defender, Tensor, Tensor, float, str, int], Tensor | None]
    alike: bool = False


def on(
    shown: Shown, method: Callable[..., Tensor], settings: Mapping[str, Any], source: nn.Module | None = None
) -> Attack:
    """A method of `kit.attacks` with its settings, run on the network that `shown(defender, seed)` names, if any.

    It gets those of eps, norm, generator and detector that it takes. What a method without a radius returns is
    projected onto the ball.
    """
    if not callable(method):
        raise TypeError(f"an attack is a function such as pgd, called as pgd(model, x, y, …), not {method!r}")
    name, parameters = getattr(method, "__name__", str(method)), inspect.signature(method).parameters
    rest = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if unknown := [] if rest else [k for k in settings if k not in parameters]:
        raise TypeError(f"{name} has no setting {unknown[0]!r}: it takes {', '.join(list(parameters)[3:])}")

    def run(defender: Defender, x: Tensor, y: Tensor, eps: float, norm: str, seed: int) -> Tensor | None:
        model = shown(defender, seed)
        if model is None:
            return None
        offered = {"eps": eps, "norm": norm, "generator": generator(seed), "detector": defender.detector}
        given = {k: v for k, v in offered.items() if k in parameters or (rest and k != "detector")}
        x_adv = method(model, x, y, **(given | dict(settings)))
        check_returned(x_adv, x, name)
        return ball(norm, eps).project(x_adv, x)

    words = [f"{k}={getattr(v, '__name__', v)}" for k, v in settings.items()]
    words += [] if source is None else [fingerprint(source)[:12]]
    return Attack(f"{name}({', '.join(words)})", run, source is not None)


def check_returned(x_adv: Any, x: Tensor, name: str) -> None:
    """What an attack returned is an image for each that it was given. Raises TypeError or ValueError."""
    if not isinstance(x_adv, Tensor):
        raise TypeError(f"the attack {name} returned a {type(x_adv).__name__}: it must return the images as a tensor")
    if x_adv.shape != x.shape:
        raise ValueError(f"the attack {name} returned {tuple(x_adv.shape)} for images of shape {tuple(x.shape)}: it "
                         "must return one image for each")
    if not bool(x_adv.isfinite().all()):
        raise ValueError(f"the attack {name} returned NaN or infinity: check its objective")


def knows(method: Callable[..., Tensor], **settings: Any) -> Attack:
    """On the whole defended network, as it is: differentiated, or asked by a method that needs answers alone."""
    return on(lambda defender, seed: defender.seen(seed), method, settings)


def unaware(method: Callable[..., Tensor], **settings: Any) -> Attack:
    """On the network alone, by one who does not know what stands around it; nowhere else."""
    return on(lambda d, seed: None if d.inner is d.model else d.inner, method, settings)


def elsewhere(source: nn.Module, method: Callable[..., Tensor], **settings: Any) -> Attack:
    """On another network, `source`: the images are made once, and handed to every defender."""
    return on(lambda defender, seed: source, method, settings, source)


def past(method: Callable[..., Tensor], **settings: Any) -> Attack:
    """On a network behind a cleaner, which is taken for the identity on the way back (BPDA); nowhere else.

    Source: Athalye et al., Obfuscated gradients give a false sense of security, ICML 2018, section 4.1.
    """
    def shown(defender: Defender, seed: int) -> nn.Module | None:
        model = defender.model
        return Through(model.model, straight_through(model.purify)) if isinstance(model, Purified) else None

    return on(shown, method, settings)


def averaged(method: Callable[..., Tensor], times: int = 4, **settings: Any) -> Attack:
    """On a network that draws, by the mean over `times` as many draws as it takes itself (EOT); nowhere else.

    Source: Athalye et al., Synthesizing robust adversarial examples, ICML 2018.
    """
    attack = on(lambda d, seed: d.seen(seed, times) if d.random else None, method, settings)
    return Attack(f"{times} x {attack.text}", attack.run)


def undetected(**settings: Any) -> Attack:
    """On a network with a detector, wrong for the one and unsuspicious for the other (`kit.detect.evade`); nowhere
    else."""
    return on(lambda d, seed: None if d.detector is None else d.model, evade, settings)


def first_of(*attacks: Attack) -> Attack:
    """The first of these attacks that belongs: what adapts to a detector, to draws, to a cleaner, as one attacker."""

    def run(*how: Any) -> Tensor | None:
        return next((found for attack in attacks if (found := attack.run(*how)) is not None), None)

    return Attack(" | ".join(attack.text for attack in attacks), run)
