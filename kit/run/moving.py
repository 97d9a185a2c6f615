"""Figures that move without a kernel: frames computed once by the package, kept beside the pages, stepped by a slider.

`kit moving` writes each as a table (book/_static/moving/<name>.json) and, where there are pictures, one row of frames
(<name>.png). The page shows the table and the first frame; the script `moving.js` adds the sliders. Every figure is a
function of nothing but the shipped data and networks.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kit import data, models
from kit.attacks import fgsm, pgd
from kit.certify import crown, ibp
from kit.core import fooled, generator, logits
from kit.defend import Smoothed
from kit.defend.costs import Weak
from kit.detect import FeatureSqueezing, roc_auc
from kit.explain import (
    energy_inside,
    epsilon,
    gamma,
    grad_cam,
    guided_backpropagation,
    l1_distance,
    lrp,
    randomised,
    rank_correlation,
    relevance_lost,
    saliency,
    smoothgrad,
    zbox,
)
from kit.fire import adv2

FOLDER = Path("book") / "_static" / "moving"


@dataclass
class Moving:
    """A table with a row for each frame: first the positions of the sliders, then what is read off.

    bars    the columns that are drawn, as shares of 1
    after   the label of the equation below which the figure stands, in `chapter`
    """
    name: str
    chapter: str
    after: str
    title: str
    caption: str
    alt: str
    sliders: list[str]
    columns: list[str]
    bars: list[str]
    rows: list[list[str | float]] = field(default_factory=list)
    size: tuple[int, int] | None = None  # of a frame in pixels: height, width


Made = tuple[Moving, Tensor | None]


def _colours(R: Tensor, signed: bool = True) -> Tensor:
    """A map (H, W) as a picture (3, H, W): orange for, purple against, white for nothing; grey levels if unsigned."""
    R = R.detach().float()
    if not signed:
        return (R / R.max().clamp_min(1e-12)).clamp(0, 1).expand(3, -1, -1)
    s = R / R.abs().max().clamp_min(1e-12)
    orange, purple = torch.tensor([0.70, 0.35, 0.02]), torch.tensor([0.33, 0.15, 0.53])
    full = torch.where(s[None] > 0, orange.view(3, 1, 1), purple.view(3, 1, 1))
    return 1 - s.abs() * (1 - full)


def _scene() -> tuple[nn.Module, Tensor, Tensor, list[str]]:
    """The network of the scenes, and an image that it has right: the first whose answer is not a matter of course."""
    scenes, model = data.load("scenes", "test", n=40, seed=0), models.load("scenes/resnet")
    p = logits(model, scenes.x).softmax(1).gather(1, scenes.y[:, None])[:, 0]
    i = int(((p > 0.8).float() + 1e-3 * torch.arange(len(p), 0, -1)).argmax())
    return model, scenes.x[i : i + 1], scenes.y[i : i + 1], list(scenes.classes)


def push() -> Made:
    """ε, with the image and the prediction."""
    model, x, y, names = _scene()
    found = Moving(
        "push", "attacks/gradient", "eq-bim", "How far until it is something else?",
        "One scene under FGSM and under PGD. The frame is the attacked image, the bars are the probability of the true "
        "class and of the class that the network names.",
        "The attacked scene: a coloured shape on a patterned ground, with more and more speckle as ε grows.",
        ["attack", "ε · 255"], ["answer", "true class", "named class"], ["true class", "named class"])
    frames = []
    for name, eps in product(("FGSM", "PGD"), range(0, 17)):
        if eps == 0:
            x_adv = x
        elif name == "FGSM":
            x_adv = fgsm(model, x, y, eps=eps / 255)
        else:
            x_adv = pgd(model, x, y, eps=eps / 255, steps=20, generator=generator(0))
        p = logits(model, x_adv).softmax(1)[0]
        k = int(p.argmax())
        found.rows.append([name, eps, names[k], round(float(p[int(y)]), 3), round(float(p[k]), 3)])
        frames.append(x_adv[0])
    return found, torch.stack(frames)


def rules() -> Made:
    """γ and ε of LRP."""
    model, x, y, _ = _scene()
    found = Moving(
        "rules", "explain/lrp", "eq-lrp0", "What γ and ε do to a map",
        "Relevance by z^B at the pixels, γ in the convolutions and ε above them. γ favours what speaks for the class, "
        "ε takes relevance away where contributions cancel; the second bar is what biases and ε took of the logit.",
        "A map of relevance: orange where pixels speak for the class, purple where they speak against it.",
        ["γ", "ε"], ["positive share", "kept by biases and ε"], ["positive share", "kept by biases and ε"])
    frames = []
    for g, e in product((0.0, 0.1, 0.25, 0.5, 1.0), (0.0, 0.05, 0.25, 1.0)):
        chosen = {"first": zbox(), "conv": gamma(g), "linear": epsilon(e or 1e-6), "add": epsilon(e or 1e-6)}
        R = lrp(model, x, y, rules=chosen)[0]
        lost = sum(v[0] for v in relevance_lost(model, x, y, rules=chosen).values()) / logits(model, x)[0, int(y)]
        share = R.clamp_min(0).sum() / R.abs().sum()
        found.rows.append([g, e, round(float(share), 3), round(float(lost), 3)])
        frames.append(_colours(R))
    return found, torch.stack(frames)


def threshold() -> Made:
    """A detector's threshold, with its rates, and its precision at a chosen base rate."""
    digits, model = data.load("digits", "test", n=200, seed=0), models.load("digits/cnn7")
    right = logits(model, digits.x).argmax(1) == digits.y
    x, y = digits.x[right], digits.y[right]
    x_adv = pgd(model, x, y, eps=0.1, steps=20, generator=generator(0))
    x_adv = x_adv[fooled(model, x_adv, y)]
    detector = FeatureSqueezing(model).fit(x, y)
    clean, attacked = detector.score(x), detector.score(x_adv)
    found = Moving(
        "threshold", "detect/deep_validation", "eq-squeezing", "Where to draw the line?",
        f"Feature Squeezing on {len(x)} digits and {len(x_adv)} attacked ones (PGD, ε = 0.1; area under the ROC curve "
        f"{roc_auc(clean, attacked).value:.2f}). Precision is the share of alarms that are attacks, if so many of the "
        "images that arrive are attacked. What looks good at one half is mostly wrong at one in a thousand.",
        "", ["base rate", "threshold"], ["TPR", "FPR", "precision"], ["TPR", "FPR", "precision"])
    for base, cut in product((0.5, 0.1, 0.01, 0.001), [k / 10 for k in range(0, 20)]):
        tpr, fpr = float((attacked > cut).float().mean()), float((clean > cut).float().mean())
        alarms = base * tpr + (1 - base) * fpr
        precision: float | str = round(base * tpr / alarms, 3) if alarms else "no alarm"
        found.rows.append([base, cut, round(tpr, 3), round(fpr, 3), precision])
    return found, None


def layers() -> Made:
    """Layers made random from the top, with the map of two explainers."""
    model, x, y, _ = _scene()
    explainers: dict[str, Callable[..., Tensor]] = {
        "saliency": saliency, "guided backpropagation": guided_backpropagation, "Grad-CAM": grad_cam}
    found = Moving(
        "layers", "explain/metrics", "eq-deletion", "A network is taken apart, layer by layer",
        "From the logits down, the weights of one stage after the other are shuffled. A map that explains the network "
        "must change with it; the bar is the rank correlation with the map of the trained network, its sign dropped.",
        "A map in grey levels, bright where the explainer points.",
        ["explainer", "random down to"], ["rank correlation"], ["rank correlation"])
    frames = []
    for name, explain in explainers.items():
        first = explain(model, x, y)
        stages = ["stem", "block1", "block2", "block3", "head"]
        for stage, network in [("none", model), *randomised(model, layers=stages, generator=generator(0))]:
            R = explain(network, x, y)
            found.rows.append([name, stage, round(abs(float(rank_correlation(first, R))), 3)])
            frames.append(_colours(R[0].clamp_min(0), signed=False))
    return found, torch.stack(frames)


def radius() -> Made:
    """The certified radius against the noise."""
    digits = data.load("digits", "test", n=60, seed=0)
    found = Moving(
        "radius", "defend/smoothing", "eq-radius", "More noise reaches further, and costs answers",
        f"{len(digits.x)} digits, a network trained under each noise, 1000 copies each, confidence 99.9 %. The bar is "
        "the share that is answered rightly and certified at least to that radius. Where it falls to nothing at once, "
        "1000 copies can certify no more.",
        "", ["noise σ", "radius"], ["certified"], ["certified"])
    for sigma, name in ((0.25, "noisy25/digits"), (0.5, "noisy50/digits"), (1.0, "noisy100/digits")):
        smooth = Smoothed(models.load(name), sigma)
        answer, far = smooth.certify(digits.x, n=1000, generator=generator(0))
        for r in [k / 8 for k in range(0, 17)]:
            held = (answer == digits.y) & (far >= r) & (far > 0)
            found.rows.append([sigma, r, round(float(held.float().mean()), 3)])
    return found, None


def forged() -> Made:
    """λ of ADV², with image, map and prediction."""
    model, x, y, names = _scene()
    target = logits(model, x).topk(2).indices[:, 1]
    benign = grad_cam(model, x, y)
    found = Moving(
        "forged", "fire/adv2", "eq-adv2", "The weight of the lie",
        "ADV² against Grad-CAM, at most 8 of 255 per channel. Left the attacked image, right the map for the class "
        "that is named now. λ weighs how much the map must look as it did for the image before the attack.",
        "Left the attacked scene, right a map in grey levels of where the network is said to look.",
        ["λ"], ["answer", "probability", "distance of the maps"], ["probability", "distance of the maps"])
    frames = []
    for lam in (0.0, 10.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0):
        x_adv = adv2(model, x, target, grad_cam, eps=8 / 255, steps=60, lam=lam or 1e-9, smooth=None)
        p, k = logits(model, x_adv).softmax(1).max(1)
        R = grad_cam(model, x_adv, k)
        found.rows.append([lam, names[int(k)], round(float(p), 3), round(float(l1_distance(R, benign)), 3)])
        frames.append(torch.cat([x_adv[0], _colours(R[0], signed=False)], -1))
    return found, torch.stack(frames)


def weak() -> Made:
    """ε against a rule that leans on many weak features."""
    found = Moving(
        "weak", "defend/costs", "eq-costs-weak", "Many weak features, and what ε makes of them",
        "Accuracies in closed form, p = 0.95 and η = 0.1. Bayes' rule outvotes the strong feature with many weak ones, "
        "and loses that lead, and more, before ε reaches η. The best rule knows ε. Where it is the strong feature "
        "alone, the difference to the first bar at ε = 0 is what robustness costs.",
        "", ["weak features", "ε"], ["Bayes' rule", "strong feature", "best for this ε"],
        ["Bayes' rule", "strong feature", "best for this ε"])
    for d, eps in product((10, 100, 300, 1000), [k / 100 for k in range(0, 13)]):
        world = Weak(p=0.95, eta=0.1, d=d)
        rules = world.bayes(), world.rule(1.0, 0.0), world.best(eps)
        found.rows.append([d, eps, *(round(float(world.accuracy(w, eps)), 3) for w in rules)])
    return found, None


def proofs() -> Made:
    """ε against what intervals, lines and an attack say of the same digits."""
    digits = data.load("digits", "test", n=60, seed=0)
    found = Moving(
        "proofs", "certify/bounds", "eq-bounds-margin", "Proved, unknown, broken",
        f"{len(digits.x)} digits and three networks. On the first two lines prove far more than intervals, on the one "
        "that was trained on intervals less. What PGD breaks cannot be proved: the truth lies between the better of "
        "the first two bars and the third, and training on the bounds narrows that gap.",
        "", ["trained", "ε"], ["proved by intervals", "proved by lines", "held against PGD"],
        ["proved by intervals", "proved by lines", "held against PGD"])
    own = one_hot(digits.y, 10).bool()
    for trained, name in (("plainly", "digits/mlp"), ("on PGD", "pgd/digits"), ("on intervals", "ibp/digits")):
        model = models.load(name)
        for eps in (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15):
            proved = [((bound(model, digits.x, digits.y, eps=eps) > 0) | own).all(1) for bound in (ibp, crown)]
            held = ~fooled(model, pgd(model, digits.x, digits.y, eps=eps, steps=20, generator=generator(0)), digits.y)
            found.rows.append([trained, eps, *(round(float(v.float().mean()), 3) for v in (*proved, held))])
    return found, None


def depth() -> Made:
    """Grad-CAM, from the first layer to the last."""
    scenes, model = data.load("scenes", "test", n=40, seed=0), models.load("scenes/resnet")
    x, y, mask, names = scenes.x[:4], scenes.y[:4], scenes.mask, scenes.classes
    assert mask is not None
    covered = float(mask[:4].float().mean())
    found = Moving(
        "depth", "explain/cam", "eq-gradcam", "The same question at every layer",
        "Grad-CAM for the true class of four scenes. Left the scene, right the map. At the first layers a channel's "
        "average gradient means little, and the share of the map on the object jumps from scene to scene; at the last "
        f"the places are coarse, and the four scenes are alike. The bar is that share; the object covers {covered:.0%} "
        "of the images.",
        "Left a scene, a coloured shape on a patterned ground, right a map in grey levels, bright where it points.",
        ["scene", "layer"], ["share on the object"], ["share on the object"])
    frames = []
    for i in range(len(x)):
        for layer in ("stem", "block1", "block2", "block3"):
            R = grad_cam(model, x[i : i + 1], y[i : i + 1], layer=layer)
            inside = energy_inside(R, mask[i : i + 1])
            found.rows.append([f"{i + 1}, {names[int(y[i])]}", layer, round(float(inside), 3)])
            frames.append(torch.cat([x[i], _colours(R[0], signed=False)], -1))
    return found, torch.stack(frames)


def averaged() -> Made:
    """SmoothGrad's noise, and how many copies it takes."""
    scenes, model = data.load("scenes", "test", n=40, seed=0), models.load("scenes/resnet")
    x, y, mask = scenes.x[:1], scenes.y[:1], scenes.mask
    assert mask is not None
    found = Moving(
        "averaged", "explain/gradient", "eq-smoothgrad", "How much noise, how many copies?",
        "SmoothGrad of one scene. With σ = 0 all copies are the same, and the map is the plain gradient's. The mean "
        "over many copies takes the grain away. It brings no more of the map onto the object, which is the bar: on "
        "this scene the plain gradient has the most, and from σ = 0.4 on the images are new to the network.",
        "A map in grey levels, bright where the averaged gradient is large.",
        ["σ", "copies"], ["share on the object"], ["share on the object"])
    frames = []
    for sigma, copies in product((0.0, 0.05, 0.1, 0.2, 0.4, 0.8), (1, 4, 16, 64)):
        R = smoothgrad(model, x, y, sigma=sigma, samples=copies, generator=generator(0))
        found.rows.append([sigma, copies, round(float(energy_inside(R, mask[:1])), 3)])
        frames.append(_colours(R[0], signed=False))
    return found, torch.stack(frames)


FIGURES: dict[str, Callable[[], Made]] = {
    "push": push, "rules": rules, "threshold": threshold, "layers": layers, "radius": radius, "forged": forged,
    "weak": weak, "proofs": proofs, "depth": depth, "averaged": averaged}


def strip(frames: Tensor) -> Any:
    """Frames (F, 3, H, W) side by side, as a picture of 8 bits."""
    from PIL import Image

    row = (torch.cat(list(frames.detach().clamp(0, 1)), -1) * 255).round().byte()
    return Image.fromarray(row.permute(1, 2, 0).contiguous().numpy())


def write(name: str, folder: Path) -> list[Path]:
    """Compute one figure and keep it."""
    found, frames = FIGURES[name]()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json"]
    if frames is not None:
        found.size = (int(frames.shape[2]), int(frames.shape[3]))
        paths.append(folder / f"{name}.png")
        strip(frames).save(paths[1], optimize=True)
    paths[0].write_text(json.dumps(asdict(found), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return paths
