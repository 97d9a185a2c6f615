"""Draw course.png, the picture of the landing page: one linear model of handwritten digits, and the five things the
book does to a model. Everything in it is computed here, in a few seconds: python book/assets/course.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent
EPS = 0.12
BLUE, ORANGE, GREY = "#1b4f8a", "#d1761b", "#5a6472"


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def input_gradient(w, b, x, y):
    p = softmax(x @ w + b)
    p[np.arange(len(y)), y] -= 1
    return p, p @ w.T


def fgsm(w, b, x, y, eps):
    return np.clip(x + eps * np.sign(input_gradient(w, b, x, y)[1]), 0, 1)


def train(x, y, eps=0.0, steps=3000, rate=0.5):
    """Softmax regression by gradient descent, on the images or on the worst ones within eps of them."""
    w, b = np.zeros((x.shape[1], 10)), np.zeros(10)
    for _ in range(steps):
        x_step = fgsm(w, b, x, y, eps) if eps else x
        residual = input_gradient(w, b, x_step, y)[0] / len(y)
        w, b = w - rate * x_step.T @ residual, b - rate * residual.sum(0)
    return w, b


def accuracy(w, b, x, y):
    return float(((x @ w + b).argmax(1) == y).mean())


def radius(w, b, x, y):
    """The exact L2 distance of each image to the nearest decision boundary; negative where the model is wrong."""
    z = x @ w + b
    distance = (z[np.arange(len(y)), y, None] - z) / (np.linalg.norm(w[:, y].T[:, :, None] - w[None], axis=1) + 1e-12)
    distance[np.arange(len(y)), y] = np.inf
    return distance.min(1)


def squeeze_score(w, b, x):
    """How far the prediction moves when the image is rounded to two grey levels."""
    return np.abs(softmax(x @ w + b) - softmax(np.round(x) @ w + b)).sum(1)


def show(axes, image, title, **options):
    axes.imshow(image.reshape(8, 8), interpolation="bicubic", **options)
    axes.set_title(title, fontsize=9.5, color="black")
    axes.set_xticks([])
    axes.set_yticks([])


def main():
    digits = load_digits()
    x_train, x, y_train, y = train_test_split(digits.data / 16, digits.target, test_size=0.4, random_state=0)
    plain, hardened = train(x_train, y_train), train(x_train, y_train, eps=EPS)
    x_adv = fgsm(*plain, x, y, EPS)
    before, after = softmax(x @ plain[0] + plain[1]), softmax(x_adv @ plain[0] + plain[1])

    # The first image of a 3 that is surely right before and surely wrong after.
    sure = (before[np.arange(len(y)), y] > 0.9) & (after.argmax(1) != y) & (after.max(1) > 0.8)
    i = int(np.flatnonzero(sure & (y == 3))[0])
    guess = int(after[i].argmax())

    figure = plt.figure(figsize=(9, 5.3), facecolor="white", layout="constrained")
    panels = figure.subfigures(2, 3, wspace=0.04, hspace=0.05)
    for panel, name in zip(
        panels.flat, ["A model", "Explain it", "Attack it", "Detect the attack", "Defend it", "Certify it"], strict=True
    ):
        panel.set_facecolor("white")
        panel.suptitle(name, fontsize=12.5, fontweight="bold", color=BLUE if name != "Attack it" else ORANGE)

    title = f"says {y[i]}, with probability {before[i, y[i]]:.2f}"
    show(panels[0, 0].subplots(), x[i], title, cmap="gray", vmin=0, vmax=1)

    relevance = x[i] * (plain[0][:, y[i]] - plain[0].mean(1))
    top = np.abs(relevance).max()
    axes = panels[0, 1].subplots()
    image = axes.imshow(relevance.reshape(8, 8), cmap="PuOr_r", vmin=-top, vmax=top, interpolation="nearest")
    axes.set_title(f"which pixels speak for {y[i]}", fontsize=9.5)
    axes.set_xticks([])
    axes.set_yticks([])
    bar = panels[0, 1].colorbar(image, ax=axes, shrink=0.8, ticks=[-top, 0, top])
    bar.ax.set_yticklabels(["against", "0", "for"], fontsize=8.5)

    left, right = panels[0, 2].subplots(1, 2)
    show(left, x_adv[i] - x[i], f"add at most {EPS}", cmap="gray", vmin=-3 * EPS, vmax=3 * EPS)
    show(right, x_adv[i], f"it says {guess} ({after[i, guess]:.2f})", cmap="gray", vmin=0, vmax=1)

    axes = panels[1, 0].subplots()
    right_before, fooled = before.argmax(1) == y, after.argmax(1) != y
    clean, attacked = squeeze_score(*plain, x[right_before]), squeeze_score(*plain, x_adv[fooled])
    bins = np.linspace(0, 2, 21)
    share = {"weights": np.full(len(clean), 1 / len(clean))}, {"weights": np.full(len(attacked), 1 / len(attacked))}
    axes.hist(clean, bins, color=BLUE, alpha=0.85, label="clean", **share[0])
    axes.hist(attacked, bins, histtype="step", color=ORANGE, linewidth=2, label="attacked", **share[1])
    axes.set_xlabel("change when the image is squeezed", fontsize=9)
    axes.set_ylabel("share of images", fontsize=9)
    axes.legend(fontsize=8.5, frameon=False)

    axes = panels[1, 1].subplots()
    sizes = np.linspace(0, 0.3, 16)
    curves = [(plain, GREY, "--", "usual training"), (hardened, BLUE, "-", "adversarial training")]
    for weights, colour, style, label in curves:
        reached = [accuracy(*weights, fgsm(*weights, x, y, eps), y) for eps in sizes]
        axes.plot(sizes, reached, style, color=colour, linewidth=2, label=label)
    axes.set_xlabel(r"size of the attack, $\epsilon$", fontsize=9)
    axes.set_ylabel("accuracy", fontsize=9)
    axes.legend(fontsize=8.5, frameon=False)

    axes = panels[1, 2].subplots()
    radii = np.linspace(0, 1.1, 60)
    for weights, colour, style, label in curves:
        r = radius(*weights, x, y)
        axes.plot(radii, [(r > s).mean() for s in radii], style, color=colour, linewidth=2, label=label)
    axes.set_xlabel(r"radius, in $\ell_2$", fontsize=9)
    axes.set_ylabel("images proven safe", fontsize=9)
    axes.legend(fontsize=8.5, frameon=False)

    for panel in panels[1]:
        for axes in panel.axes:
            axes.tick_params(labelsize=8)
            axes.set_ylim(0, None)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "course.png", dpi=130, metadata={"Software": None})
    print(f"test image {i}: {y[i]} -> {guess}")
    for weights, *_, label in curves:
        reached = accuracy(*weights, fgsm(*weights, x, y, EPS), y)
        print(f"{label}: clean {accuracy(*weights, x, y):.3f}, attacked {reached:.3f}")


if __name__ == "__main__":
    main()
