"""Draw reading_order.svg: what each part of the book stands on. python book/assets/reading_order.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

BLUE, GREY = "#1b4f8a", "#5a6472"
PARTS = {
    "Foundations": (0.0, 0.5, "models, data,\nthe one interface"),
    "Explaining": (1.0, 1.0, "why this answer?"),
    "Attacking": (1.0, 0.0, "how little\nmakes it wrong?"),
    "Defending": (2.0, 0.0, "detect, resist,\ncertify"),
    "Explanations\nunder fire": (2.0, 1.0, "can the reason\nbe forged?"),
}
ARROWS = [
    ("Foundations", "Explaining"),
    ("Foundations", "Attacking"),
    ("Attacking", "Defending"),
    ("Explaining", "Explanations\nunder fire"),
    ("Attacking", "Explanations\nunder fire"),
]
WIDTH, HEIGHT = 0.66, 0.5


def main():
    plt.rcParams.update({"svg.hashsalt": "kit", "svg.fonttype": "path"})
    figure, axes = plt.subplots(figsize=(8, 3.1), facecolor="white")
    for name, (x, y, question) in PARTS.items():
        box = {"boxstyle": "round,pad=0.02,rounding_size=0.05", "facecolor": "#eef3f9", "edgecolor": BLUE}
        axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, linewidth=1.4, **box))
        middle = {"x": x + WIDTH / 2, "ha": "center", "va": "center"}
        axes.text(y=y + 0.345, s=name, fontsize=12, fontweight="bold", color=BLUE, linespacing=1.0, **middle)
        axes.text(y=y + 0.105, s=question, fontsize=9.5, color="black", linespacing=1.15, **middle)
    for start, end in ARROWS:
        (x0, y0, _), (x1, y1, _) = PARTS[start], PARTS[end]
        axes.annotate(
            "",
            xy=(x1 - 0.03, y1 + HEIGHT / 2 + (0.1 if y1 < y0 else -0.1 if y1 > y0 else 0)),
            xytext=(x0 + WIDTH + 0.03, y0 + HEIGHT / 2),
            arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1.6},
        )
    axes.set_xlim(-0.06, 2.72)
    axes.set_ylim(-0.06, 1.56)
    axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
