"""Testing with concept activation vectors: does the logit of a class grow towards a concept, and more than by chance?

    v = the unit normal of a hyperplane between A(concept images) and A(counterparts), towards the concept    the CAV
    S_i = ⟨∇_A z_y(x_i), v⟩                  the directional derivative at image x_i of the class y

    sign    1/N #{S_i > 0}                   the TCAV score, in [0, 1]
    ratio   Σ max(S_i, 0) / Σ |S_i|          its magnitude, in [0, 1]
    mean    1/N Σ S_i                        in logits for a unit of A

Where the derivative points the same way in all images, as on top of a linear head, the share is 0 or 1 and says nothing
of how much. One vector depends on the random images that it was fitted against, so that `TCAV`, which fits one, comes
with `ConceptTest`, which fits many and asks whether random vectors do as well.
Source: Kim et al., Interpretability beyond feature attribution, ICML 2018, sections 3.2 to 3.6.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import (
    borrowed,
    check_images,
    check_labels,
    check_model,
    chunks,
    features,
    generator,
    laid_out,
    leaf,
    replace,
)
from kit.core.checks import check_fits
from kit.core.fitted import Fitted
from kit.core.loop import differentiate
from kit.core.passes import ordinary

KINDS = ("sign", "ratio", "mean")
DESCENT = {"hinge": "hinge", "logistic": "log_loss"}  # scikit-learn's names of the losses
CLASSIFIERS = (*DESCENT, "ridge", "means")
CORRECTIONS = ("holm", "bonferroni")
NULLS = ("runs", "concepts")


class TCAV:
    """`TCAV(model, layer).fit(concept images, random images).score(x, y)`.

    layer      whose output, flattened, is A
    alpha      the l2 penalty of the hinge-loss classifier (the authors': 0.01)

    `fit` keeps `cav`, of the shape of the layer's output for one image, and `accuracy` (in [0, 1]), on a third of both
    kinds that was held out: near a half, the concept is not in the layer and the score means nothing. The larger kind
    is cut to the size of the smaller. Images of other concepts in place of the random ones give a relative CAV.
    Raises ValueError for fewer than 6 of either. Cost: one forward pass of both. `score` and `derivatives` cost a
    forward pass and a backward pass from the logits to the layer.
    """

    def __init__(self, model: nn.Module, layer: str, *, alpha: float = 0.01, seed: int = 0):
        with features(model, [layer]):
            pass
        _penalty(alpha)
        self.model, self.layer, self.alpha, self.seed = model, layer, alpha, seed
        self.cav, self.accuracy = torch.empty(0), float("nan")

    def fit(self, concept: Tensor, random: Tensor) -> Self:
        _alike({"concept": concept}, random)
        n = min(len(concept), len(random))
        if n < 6:
            raise ValueError(f"a concept vector needs 6 images of the concept and 6 random ones, not {n}")
        A = torch.cat([activations(self.model, self.layer, images[:n]) for images in (concept, random)])
        held = np.random.default_rng(self.seed).permutation(n) < n // 3
        order = torch.from_numpy(np.argsort(~held, kind="stable"))
        v, right = planes(A.flatten(1), torch.stack([order, n + order])[None], classifier="hinge", alpha=self.alpha,
                          seed=self.seed)
        self.cav, self.accuracy = v[0].view(A.shape[1:]), float(right[0])
        return self

    def derivatives(self, x: Tensor, y: Tensor) -> Tensor:
        """S (N,), for images x (N, C, H, W) and the classes y (N,) whose logits are asked about."""
        if not self.cav.numel():
            raise ValueError("there is no concept vector yet: call fit(concept images, random images) first")
        return sensitivities(self.model, self.layer, x, y, self.cav[None])[:, 0]

    def score(self, x: Tensor, y: Tensor, kind: str = "sign") -> float:
        """The share of the images with S > 0, or another of the three summaries."""
        return float(summary(self.derivatives(x, y), kind))


class Tested(NamedTuple):
    """What `ConceptTest` found of one concept: the mean score of its runs, the runs (R,), the mean accuracy of its
    vectors on held-out images, and the two-sided p, as it is and corrected for the number of concepts."""

    score: float
    runs: Tensor
    accuracy: float
    p: float
    corrected: float


class ConceptTest(Fitted):
    """`ConceptTest(model, layer).fit({name: images}, random images).test(x, y)`: each concept with R vectors.

    runs         R: how often each concept is set against another draw of random images (paper: 500; 10 at least)
    images       n of each kind in a run, a third of them held out; a concept that has more gives a draw in each run
    controls     so many random concepts: n random images each that stay the same in all of its runs, as a concept's do
    pool         False: A is flattened. True: A is the mean over the places of each channel, and a step towards v moves
                 all places alike, for concepts that may be anywhere in the image
    classifier   "hinge" or "logistic" (stochastic gradient descent, its seed the run's), "ridge" (least squares to ±1)
                 or "means" (the difference of the two means)
    alpha        the penalty: α ‖w‖²/2 beside the mean loss; "ridge": α tr(K) ‖w‖² beside the sum, K the centred Gram
                 matrix; "means" has none
    against      "random", or "others": the images of the other concepts, for relative CAVs

    The random images are one pool, (M, C, H, W), from which every run draws: the counterparts of the concepts, and for
    R runs of their own a random concept as well, which is the chance that scores are compared with. Kept are `cavs`
    (V, R, …) and `accuracies` (V, R) of the concepts, the random runs, and the controls, in this order. Raises
    ValueError for fewer than 6 images of a concept, or a pool smaller than 2 n.
    Cost: `fit` one forward pass of all images; the rest a forward pass and a backward pass from the logits to the
    layer, for all vectors at once.
    """

    def __init__(
        self, model: nn.Module, layer: str, *, runs: int = 20, images: int = 48, controls: int = 0, pool: bool = False,
        classifier: str = "ridge", alpha: float = 0.01, against: str = "random", seed: int = 0,
    ):
        with features(model, [layer]):
            pass
        if any(not isinstance(n, int) for n in (runs, images, controls)):
            raise TypeError(f"runs, images and controls are whole numbers, not {runs!r}, {images!r} and {controls!r}")
        if runs < 2 or images < 6 or controls < 0:
            raise ValueError(f"runs is at least 2, images 6 and controls 0, not {runs}, {images} and {controls}")
        _one_of("classifier", classifier, CLASSIFIERS)
        _one_of("against", against, ("random", "others"))
        _penalty(alpha)
        self.model, self.layer, self.runs, self.images, self.controls = model, layer, runs, images, controls
        self.pool, self.classifier, self.alpha, self.against, self.seed = pool, classifier, alpha, against, seed
        self.names: list[str] = []
        self.cavs = self.accuracies = torch.empty(0)

    def fit(self, concepts: Mapping[str, Tensor], random: Tensor) -> Self:
        if not isinstance(concepts, Mapping) or not concepts or (self.against == "others" and len(concepts) < 2):
            raise ValueError("name a concept and its images, {'stripes': x[striped]}; relative ones need two")
        _alike(concepts, random)
        n = min(self.images, *(len(images) for images in concepts.values()))
        if n < 6 or len(random) < 2 * n:
            raise ValueError(f"a run takes {n} images of a concept, 6 at least, and up to twice as many random ones, "
                             f"and there are {len(random)}: give more, or set images lower")
        draws = generator(self.seed)
        sizes = [len(images) for images in concepts.values()]
        own = list(torch.arange(sum(sizes)).split(sizes))
        pool = sum(sizes) + torch.arange(len(random))
        sets = []
        for k, rows in enumerate(own):
            rest = pool if self.against == "random" else torch.cat(own[:k] + own[k + 1:])
            sets += [torch.stack([_some(rows, n, draws), _some(rest, n, draws)]) for _ in range(self.runs)]
        sets += [_some(pool, 2 * n, draws).view(2, n) for _ in range(self.runs)]
        for _ in range(self.controls):
            chosen = _some(pool, n, draws)
            rest = pool[~torch.isin(pool, chosen)]
            sets += [torch.stack([_some(chosen, n, draws), _some(rest, n, draws)]) for _ in range(self.runs)]
        A = activations(self.model, self.layer, torch.cat([*concepts.values(), random]))
        points = _places(A).mean(2) if self.pool else A.flatten(1)
        v, right = planes(points, torch.stack(sets), classifier=self.classifier, alpha=self.alpha, seed=self.seed)
        shape = (A.shape[1], *(1 for _ in A.shape[2:])) if self.pool else A.shape[1:]
        self.names, self.cavs = list(concepts), v.view(-1, self.runs, *shape)
        self.accuracies = right.view(-1, self.runs)
        return self

    def derivatives(self, x: Tensor, y: Tensor) -> Tensor:
        """S (N, V, R), for images x (N, C, H, W) and the classes y (N,) whose logits are asked about."""
        if not self.cavs.numel():
            raise ValueError("there are no concept vectors yet: call fit({name: images}, random images) first")
        S = sensitivities(self.model, self.layer, x, y, self.cavs.flatten(0, 1))
        return S.view(len(x), -1, self.runs)

    def test(
        self, x: Tensor, y: Tensor, *, kind: str = "sign", null: str = "runs", correction: str = "holm",
    ) -> dict[str, Tested]:
        """{name: Tested} for images x (N, C, H, W) of the class y (N,), the concepts in the order given.

        null   "runs": Student's t-test between the runs of the concept and those of random against random (paper)
               "concepts": the rank of the concept's mean score among those of the controls, by its distance from their
               mean, so that p is at least 1 / (controls + 1)
        The runs of a concept share its images, those of random against random share nothing, so that the t-test takes
        what is common to the images of a set for more than chance: `false_alarms` says how often. The rank does not.
        """
        _one_of("null", null, NULLS)
        if null == "concepts" and not self.controls:
            raise ValueError("there are no random concepts to compare with: fit with controls=99, say")
        scores = summary(self.derivatives(x, y), kind)
        K = len(self.names)
        if null == "runs":
            p = t_test(scores[:K], scores[K])
        else:
            chance = scores[K + 1:].mean(1)
            apart = (scores[:K].mean(1) - chance.mean()).abs()
            as_far = (chance - chance.mean()).abs()[None] >= apart[:, None] - 1e-9
            p = ((1 + as_far.sum(1)).double() / (1 + self.controls)).tolist()
        found = zip(self.names, scores, self.accuracies, p, corrected(p, correction), strict=False)
        return {name: Tested(float(s.mean()), s, float(a.mean()), one, more) for name, s, a, one, more in found}

    def false_alarms(self, x: Tensor, y: Tensor, *, kind: str = "sign", level: float = 0.05) -> Tensor:
        """Whether the t-test calls each of the random concepts significant, (controls,) bool: a share of `level` of
        them would be honest."""
        scores, K = summary(self.derivatives(x, y), kind), len(self.names)
        return torch.tensor(t_test(scores[K + 1:], scores[K])) < level

    def chance(self, x: Tensor, y: Tensor, *, kind: str = "sign") -> Tensor:
        """The scores of random against random, (R,)."""
        return summary(self.derivatives(x, y), kind)[len(self.names)]

    def tensors(self) -> dict[str, Tensor]:
        named = {f"concept/{k:04d}/{name}": self.cavs[k] for k, name in enumerate(self.names)}
        return named | {"chance": self.cavs[len(self.names):], "accuracies": self.accuracies}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        own = sorted(key for key in tensors if key.startswith("concept/"))
        self.names, self.accuracies = [key.split("/", 2)[2] for key in own], tensors["accuracies"]
        if own:
            self.cavs = torch.cat([torch.stack([tensors[key] for key in own]), tensors["chance"]])


def activations(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The layer's outputs (N, …) for images x (N, C, H, W). Cost: one forward pass."""
    check_images(x)
    found = []
    with borrowed(model, x), torch.no_grad(), features(model, [layer]) as A:
        check_fits(model, x)
        for rows in chunks(x):
            model(laid_out(x[rows]))
            found.append(A[layer])
    return torch.cat(found)


def sensitivities(model: nn.Module, layer: str, x: Tensor, y: Tensor, cavs: Tensor) -> Tensor:
    """S (N, V) = ⟨∇_A z_y(x_i), v⟩ for vectors (V, …) of the layer's shape for one image, or (V, C, 1, 1) for one that
    moves all places of a channel alike. Cost: a forward pass and a backward pass to the layer, whatever V is."""
    check_images(x)
    shared = cavs.dim() > 2 and cavs[0].numel() == cavs.shape[1]
    found: list[Tensor] = []
    A = torch.empty(0)

    def begin(h: Tensor) -> Tensor:  # nothing below the layer is kept for a backward pass
        nonlocal A
        torch.set_grad_enabled(True)
        A = leaf(h)
        return A

    with borrowed(model, x):
        check_labels(y, x, check_model(model, x))
        x, y, flat = ordinary(x), ordinary(y), ordinary(cavs).flatten(1).T
        for rows in chunks(x):
            with replace(model, {layer: begin}), torch.no_grad():
                z = model(laid_out(x[rows]))
                g = differentiate(z.gather(1, y[rows, None])[:, 0], A)
            found.append((_places(g).sum(2) if shared else g.flatten(1)) @ flat)
    return torch.cat(found)


def summary(S: Tensor, kind: str = "sign") -> Tensor:
    """The directional derivatives (N, …) of N images in one number: "sign", "ratio" or "mean". A ratio of 0 / 0 is ½,
    as for chance."""
    _one_of("kind", kind, KINDS)
    if kind == "sign":
        return (S > 0).double().mean(0)
    if kind == "mean":
        return S.double().mean(0)
    total = S.abs().double().sum(0)
    return torch.where(total > 0, S.clamp_min(0).double().sum(0) / total.clamp_min(1e-300), 0.5)


def planes(
    points: Tensor, sets: Tensor, *, classifier: str = "ridge", alpha: float = 0.01, seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Unit normals (V, d) between two sets of n points each, and the accuracies (V,) on those held out.

    sets (V, 2, n) are rows of the points (P, d): the concept and its counterpart; the first n // 3 of each are held
    out. Cost: "ridge" and "means" one (P, P) Gram matrix and a system of 2 (n − n // 3) equations for each; "hinge" and
    "logistic" a descent for each, the run v with the seed + v.
    """
    held = sets.shape[2] // 3
    sets = sets.to(points.device)
    test, train = sets[:, :, :held].flatten(1), sets[:, :, held:].flatten(1)
    fit = _descended if classifier in DESCENT else _solved
    w, answers = fit(points, train, test, classifier, alpha, seed)
    truth = torch.arange(test.shape[1], device=points.device) < held
    norm = w.norm(dim=1, keepdim=True)
    return w / norm.clamp_min(1e-12), (answers == truth).double().mean(1)


def _descended(points: Tensor, train: Tensor, test: Tensor, classifier: str, alpha: float, seed: int) -> tuple:
    from sklearn.linear_model import SGDClassifier

    data = points.double().cpu().numpy()
    kind = np.repeat([1, 0], train.shape[1] // 2)
    w, answers = [], []
    for v, (rows, held) in enumerate(zip(train.cpu().numpy(), test.cpu().numpy(), strict=True)):
        plane = SGDClassifier(loss=DESCENT[classifier], alpha=alpha, max_iter=1000, tol=1e-3, random_state=seed + v)
        plane.fit(data[rows], kind)
        w.append(plane.coef_[0])
        answers.append(plane.predict(data[held]) == 1)
    return torch.from_numpy(np.stack(w)).to(points), torch.from_numpy(np.stack(answers)).to(points.device)


def _solved(points: Tensor, train: Tensor, test: Tensor, classifier: str, alpha: float, seed: int) -> tuple:
    """w = Σ_i a_i x_i over the training points, a from their Gram matrix. Σ a_i = 0: any origin will do."""
    points = points - points.mean(0)
    K = (points @ points.T).double()
    m = train.shape[1]
    side = torch.where(torch.arange(m, device=points.device) < m // 2, 1.0, -1.0).double()
    w, answers = [], []
    for rows, held in zip(train.split(256), test.split(256), strict=True):
        inner = K[rows[:, :, None], rows[:, None]]
        a = 2 * side.expand(len(rows), m) / m
        if classifier == "ridge":
            centred = inner - inner.mean(1, keepdim=True) - inner.mean(2, keepdim=True) + inner.mean((1, 2), True)
            size = alpha * centred.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-12)
            system = centred + size[:, None, None] * torch.eye(m, dtype=K.dtype, device=K.device)
            a = torch.linalg.solve(system, side.expand(len(rows), m))
        middle = torch.einsum("vij,vj->v", inner, a) / m
        answers.append(torch.einsum("vij,vj->vi", K[held[:, :, None], rows[:, None]], a) > middle[:, None])
        weights = torch.zeros(len(rows), len(points), dtype=K.dtype, device=K.device).scatter_add_(1, rows, a)
        w.append(weights.to(points) @ points)
    return torch.cat(w), torch.cat(answers)


def t_test(scores: Tensor, chance: Tensor) -> list[float]:
    """Student's two-sided p between each row of scores (K, R) and the scores (R',) of chance. Rows that all agree with
    each other are not told apart from a chance that agrees with them (p = 1), and surely from another (p = 0)."""
    from scipy.stats import ttest_ind_from_stats

    a, b = scores.cpu().numpy(), chance.cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        p = ttest_ind_from_stats(
            a.mean(1), a.std(1, ddof=1), a.shape[1], b.mean(), b.std(ddof=1), len(b)).pvalue
    return np.where(np.isnan(p), 1.0, p).tolist()


def corrected(p: list[float], how: str = "holm") -> list[float]:
    """p-values (K,) that hold for all of the K tests together: K p, or Holm's, which are never larger.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    _one_of("correction", how, CORRECTIONS)
    values = np.asarray(p, float)
    if how == "bonferroni":
        return np.minimum(1.0, len(values) * values).tolist()
    order = values.argsort()
    rising = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    found = np.empty_like(values)
    found[order] = np.minimum(1.0, rising)
    return found.tolist()


def _some(rows: Tensor, n: int, draws: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=draws)[:n]]


def _alike(concepts: Mapping[str, Tensor], random: Tensor) -> None:
    """Raises TypeError or ValueError for images that cannot go through a model together."""
    for name, images in [("random", random), *concepts.items()]:
        if not isinstance(images, Tensor):
            raise TypeError(f"the images of {name!r} must be a torch tensor (N, C, H, W), not {type(images).__name__}")
        if (images.shape[1:], images.dtype, images.device) != (random.shape[1:], random.dtype, random.device):
            raise ValueError(f"the images of {name!r} are {tuple(images.shape)}, {images.dtype}, {images.device}, the "
                             f"random ones {tuple(random.shape)}, {random.dtype}, {random.device}: make them alike")


def _penalty(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha is a penalty, a number above 0, not {alpha!r}")


def _places(A: Tensor) -> Tensor:
    """(N, C, places), of a layer with places or of one without."""
    return A.reshape(len(A), A.shape[1], -1)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, not {value!r}")
