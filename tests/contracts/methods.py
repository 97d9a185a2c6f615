"""Every public method, and how it is called on a small network: found by its signature, so that a new one is covered
the moment it is exported. What cannot be called by these rules is listed in `OTHERS`, with the reason."""
from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kit.attacks import Transformation
from kit.core import generator, logits
from kit.core.fitted import fingerprint
from kit.detect import Energy
from kit.explain import RTS, maximise, saliency

PACKAGES = ("kit.attacks", "kit.explain", "kit.detect", "kit.defend", "kit.fire", "kit.certify", "kit.poison",
            "kit.diverse")
CLASSES = 5

# Small budgets; what is not named here has its default.
CHEAP: dict[str, dict[str, Any]] = {
    "auto_pgd": {"steps": 6, "targets": 2, "restarts": 2},
    "cw": {"steps": 12, "rounds": 3, "c": 1.0, "lr": 0.05},
    "ead": {"steps": 12, "rounds": 3, "c": 1.0, "lr": 0.05},
    "lbfgs": {"steps": 6, "rounds": 3, "c": 1.0},
    "deepfool": {"steps": 6},
    "jsma": {"gamma": 0.1},
    "pgd": {"steps": 5, "restarts": 3},
    "evade": {"steps": 5},
    "stadv": {"steps": 12, "lr": 0.2},
    "wasserstein": {"steps": 6, "window": 3},
    "advcam": {"steps": 12, "lr": 0.1, "lam": 5.0},
    "adv2": {"steps": 6, "warm": 3},
    "adv2_flow": {"steps": 6, "warm": 6, "lr": 0.1},
    "adv2_mask": {"steps": 3, "warm": 4, "inner": 2, "solve": 3, "every": 2},
    "move_map": {"steps": 12},
    "square": {"max_queries": 40, "p": 0.2},
    "simba": {"max_queries": 60},
    "finite_difference": {"group": 12},
    "zoo": {"batch": 32, "max_queries": 700, "c": 10.0, "lr": 0.1, "h": 0.01},  # a small h enlarges what rounding does
    "autozoom": {"max_queries": 120, "c": 10.0, "lr": 0.1, "switch": 20},
    "nes": {"q": 6, "step": 0.05, "h": 0.01, "max_queries": 120},
    "spsa": {"q": 6, "lr": 0.05, "max_queries": 120},
    "zo_ngd": {"q": 6, "lr": 20.0, "max_queries": 120},
    "zo_admm": {"q": 6, "alpha": 0.3, "rho": 1.0, "max_queries": 120},
    **dict.fromkeys(("zo_sign_sgd", "zo_adamm"), {"c": 10.0, "lr": 0.1, "h": 0.01, "switch": 10, "max_queries": 250}),
    "zo_svrg": {"c": 10.0, "lr": 0.1, "many": 20, "q": 5, "inner": 3, "h": 0.01, "switch": 10, "max_queries": 250},
    "boundary": {"max_queries": 120},
    "hopskipjump": {"max_queries": 120, "probes": 30},
    "opt_attack": {"max_queries": 120, "q": 3},
    "sign_opt": {"max_queries": 120, "q": 30},
    "feature_adversary": {"steps": 5, "eps": 0.1},
    "train_transformation": {"outer": 2, "inner": 2},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 8},
    "occlusion": {"size": 3, "stride": 2},
    "mask": {"steps": 4},
    "extremal": {"steps": 4},
    "extremal_curve": {"steps": 3, "areas": (0.1, 0.3)},
    "infidelity": {"samples": 4},
    "deletion": {"steps": 4},
    "insertion": {"steps": 4},
    "deep_dream": {"octaves": 2, "steps": 3, "jitter": 2},
    "maximise": {"steps": 4},
    "alpha_crown": {"steps": 3},
    "certified_radius": {"steps": 5},
    "verify": {"eps": 0.01, "max_nodes": 5},
    "clever": {"batches": 12, "samples": 8},
    "attacked_distance": {"rounds": 2},
    "feature_collision": {"steps": 5},
    "universal": {"steps": 6, "batch": 4},
    "targeted_universal": {"steps": 6, "batch": 4, "target": 1},
    "uap": {"rounds": 2, "steps": 4, "enough": 1.0},
    "targeted_uap": {"rounds": 2, "target": 1},
}
STEPS = {"bim", "mi_fgsm", "ni_fgsm", "tim", "dim", "sim", "si_ni_ti_dim", "tap", "ata", "tap_ata", "atta",
         "at_si_ni_ti_dim"}
# What makes one result of all images: the contracts that speak of each image are not for it.
TOGETHER = {"universal", "targeted_universal", "uap", "targeted_uap"}
# What takes a model and images and is no method on images one by one, and why.
OTHERS = {
    **dict.fromkeys(("transfer", "vae_terms"), "reads an autoencoder, which is no classifier; see tests of latent"),
    "answers": "of several networks; its own tests", "mc_dropout": "of a network with dropout; its own tests",
    "Influence": "fitted on a training set", "retrain": "of a training set", "tracin": "pairs of images",
    "training_set_attack": "of a training set", "counterfactual": "on rows of any shape; its own tests",
    "randomised": "yields models", "max_sensitivity": "takes an explainer first; its own tests",
    "lime": "image by image, each with superpixels and samples of its own; its own tests", "kernel_shap": "as lime",
    "lipschitz": "of the network, not of an image; its own tests",
    "exact_distance": "calls verify, and answers in float64 whatever the images are; its own tests",
    **dict.fromkeys(("nearest_neighbours", "reverse_triggers", "federated", "fit_on_shared"),
                    "of a set of images; test_poison_contracts.py"),
    "client_gradients": "a row for each client, of the model's weights; test_poison_contracts.py",
    "masked_attack": "one sticker for all photographs; its own tests", "patch": "as masked_attack",
    **dict.fromkeys(("deepxplore", "deeptest", "differ", "common"), "of several networks; tests of diverse"),
    "votes": "of several networks; tests of diverse",
    **dict.fromkeys(("broken_promise", "contributions", "pull_apart", "relevances", "robustness"),
                    "of a self-explaining network; tests of diverse"),
    "clean_error": "one number of a labelled set; its own tests", "departure": "of two sets; its own tests",
    "watched": "names layers; its own tests",
    "image_game": "one image, and it returns a game", "masking": "shares of a batch; its own tests",
}


def network(channels: int = 3, size: tuple[int, int] = (7, 9), dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network whose stages have the names that methods look for; every weight is drawn from one seed."""
    source = generator(4)
    model = nn.Sequential()
    model.add_module("block1", nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU()))
    model.add_module("block2", nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()))
    model.add_module("block3", nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(6, CLASSES))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source) * 1.5 / max(1, p[0].numel()) ** 0.5)
    model.head.bias.data -= model(images(40, channels, size, torch.float32)).mean(0).detach()  # no class always wins
    return model.to(dtype).eval()


def images(
    n: int = 11, channels: int = 3, size: tuple[int, int] = (7, 9), dtype: torch.dtype = torch.float64,
) -> Tensor:
    return torch.rand(n, channels, *size, generator=generator(6), dtype=torch.float64).to(dtype)


def found() -> dict[str, Callable]:
    """The public functions of `PACKAGES` whose first two parameters are a model, or what predicts, and images x."""
    methods = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) and name not in OTHERS:
                first = [*inspect.signature(value).parameters][:2]
                if first in (["model", "x"], ["models", "x"], ["predict", "x"]):
                    methods[name] = value
    return methods


def fitted() -> dict[str, Callable]:
    """The explainers that are fitted, as functions of model and images: each is fitted once on the network it meets."""
    kept: dict[str, RTS] = {}

    def rts(model: nn.Module, x: Tensor, target: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
        own: Any = getattr(model, "inner", getattr(model, "model", model))
        name = fingerprint(own)
        if name not in kept:
            weight = own.block1[0].weight
            some = images(24, weight.shape[1], dtype=weight.dtype)
            kept[name] = RTS(own, width=4).fit(some, logits(own, some).argmax(1), epochs=1, batch=8)
        return kept[name](model, x, target, create_graph=create_graph)

    return {"RTS": rts}


def class_images(
    model: nn.Module, x: Tensor, target: Tensor, *, steps: int = 4, lr: float = 0.05, lam: float = 0.0,
    lam_tv: float = 0.0, generator: torch.Generator | None = None, trace: Any = None,
) -> Tensor:
    """`maximise`, which takes its images as a start."""
    return maximise(model, target, start=x, steps=steps, lr=lr, lam=lam, lam_tv=lam_tv, generator=generator,
                    trace=trace)


METHODS = found() | fitted() | {"maximise": class_images}


def arguments(name: str, model: nn.Module, x: Tensor, y: Tensor, **changed: Any) -> dict[str, Any]:
    """What the method is called with, beside model and x."""
    known: dict[str, Any] = {
        "y": y, "eps": 0.1, "x_adv": (x + 0.05).clamp(0, 1), "guide": x.flip(2), "layers": ["block2"],
        "layer": "block2",
        "T": Transformation.start("random", x.shape[1], 3, 4, generator(2)).to(x), "relevance": x.mean(1),
        "detector": Energy(model), "style": x.flip(2), "explain": saliency, "target": (y + 1) % CLASSES,
    }
    parameters = inspect.signature(METHODS[name]).parameters
    needed = {k: known[k] for k, p in parameters.items() if k in known and p.default is inspect.Parameter.empty}
    if name in STEPS:
        needed["steps"] = 4
    return needed | CHEAP.get(name, {}) | changed


def run(name: str, model: Any, x: Tensor, y: Tensor, **changed: Any) -> Any:
    return METHODS[name](model, x, **arguments(name, getattr(model, "inner", model), x, y, **changed))


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, which may be one, several, or those of a transformation."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Transformation):
        return [result.theta]
    return [t for part in (result.values() if isinstance(result, dict) else result) for t in tensors(part)]


def takes(name: str, *words: str) -> bool:
    parameters = inspect.signature(METHODS[name]).parameters
    hints = [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    return all(word in parameters or (bool(hints) and word == "steps") for word in words)
