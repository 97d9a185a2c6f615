"""Draw photograph.png, which opens the book: a photograph, what a network sees in it and where, and the same after an
attack that the eye does not notice. Computed here, in a few seconds: python book/assets/photograph.py
"""
import io
from pathlib import Path

import torch
from PIL import Image

from kit.attacks import pgd
from kit.core import logits
from kit.data import load
from kit.explain import grad_cam
from kit.models import load as network
from kit.report.figures import DPI, PRINT, WIDTH, style

HERE = Path(__file__).parent
EPS = 2 / 255
TARGET = "espresso"


def main() -> None:
    style()
    from matplotlib.figure import Figure

    data, model = load("photos", which="cat"), network("imagenet/efficientnet_lite0")
    target = torch.tensor([data.classes.index(TARGET)])
    x_adv = pgd(model, data.x, data.y, eps=EPS, steps=40, target=target)
    figure = Figure(figsize=(WIDTH, 2.1), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 4)
    for x, (photograph, reason) in zip((data.x, x_adv), (axes[:2], axes[2:]), strict=True):
        p = logits(model, x).softmax(1)[0]
        name, image = data.classes[int(p.argmax())], x[0].permute(1, 2, 0).clamp(0, 1)
        heat = grad_cam(model, x)[0]
        photograph.imshow(image.numpy())
        photograph.set_title(f"{name}, p = {float(p.max()):.2f}")
        reason.imshow(0.3 + 0.7 * image.mean(2).numpy(), cmap="gray", vmin=0, vmax=1)
        reason.imshow(heat.numpy(), cmap="inferno", alpha=(0.8 * heat / heat.max()).numpy())
        reason.set_title(f"why {name}?")
    for axis in axes:
        axis.set_axis_off()
    drawn = io.BytesIO()
    figure.savefig(drawn, **PRINT)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(
        HERE / "photograph.png", optimize=True)


main()
